"""Whether a training waited for its batches, measured against the same steps on a batch that is there already.

Owns the replay, the threshold and the words; what steps took is counted by `fastad.train`.
Use: `judge(members, batch, Pace(steps=1_500, seconds=30.0, waiting_s=2.0), sources).line`.
"""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from fastad.group import Member, step
from fastad.pipeline import Batch, Source, Unmade
from fastad.ranks import share

# From this share of the time on it is said what would help.
BOUND_FROM = 0.05

# Shorter trainings are not replayed; of longer ones, this share of their steps, in rounds.
REPLAY_FROM_S = 2.0
REPLAY_SHARE, MOST_REPLAYED = 0.02, 99
ROUNDS = 3

# If the slowest round takes this much longer than the fastest one, other work is on the machine, and a replay says
# nothing: on two busy cores it has come to 30 to 155 % of the steps it was to be compared with.
QUIET = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps of one process in a row, the seconds they took, and those in which the host waited for a batch. The first
    step of a process is not among them: it builds pipelines and compiles."""

    steps: int
    seconds: float
    waiting_s: float


class Verdict(NamedTuple):
    """`stall_share`: the share of the time that went on waiting for batches. `line`: what that says, in a sentence."""

    stall_share: float
    line: str


def judge(members: Sequence[Member], batch: Batch | Unmade, pace: Pace, sources: Sequence[Source]) -> Verdict:
    """Trainer-bound or what else, by how much less a step takes on the last batch alone; members are left as they were.

    The host's clock, what it waited, is taken for trainings too short to replay or of several processes, on a busy
    machine, and on the CPU where all images are held: there it is exact, as steps and batches are made in turn. On a
    GPU the host runs ahead of the device; and on the CPU, decoding takes cores from the trainer also while nothing
    waits for it. A step that makes its images itself does so when it is replayed, too: what waits for batches then is
    what waits for the host's numbers.
    """
    if pace.steps < 1:
        return Verdict(0.0, "one step is too few to tell what bounds it")
    step_s, stall_share, how = pace.seconds / pace.steps, pace.waiting_s / pace.seconds, "by the host's clock"
    in_turn = batch.target.device.type == "cpu" and all(source.held is not None for source in sources)
    alone = share().ranks == 1  # replaying steps of several processes would take all of them
    if pace.seconds >= REPLAY_FROM_S and alone and not in_turn:
        rounds = _replayed_s(members, batch, pace.steps)
        if max(rounds) <= (1 + QUIET) * min(rounds):
            stall_share = max(0.0, 1 - median(rounds) / step_s)
            how = f"{1e3 * median(rounds):.1f} ms on a batch replayed"
        else:
            how = "by the host's clock: the machine is too busy to replay a batch"
    bound, advice = "trainer-bound", ""
    if stall_share >= BOUND_FROM:
        bound, advice = _bound(sources)
    waited = f"{100 * stall_share:.1f} % of the time was spent waiting for batches"
    return Verdict(stall_share, f"{bound}: {waited} ({1e3 * step_s:.1f} ms a step, {how}){advice}")


def _bound(sources: Sequence[Source]) -> tuple[str, str]:
    """What makes the trainer wait, and what would help."""
    if all(source.held is not None for source in sources):
        return "augment-bound", "; the images are held already: more objectives a batch or less augmentation would help"
    hold = "holding the images (--set train.resident=on)"
    if any(source.held is None and source.reader.is_encoded for source in sources):
        cores = len(os.sched_getaffinity(0))
        return "decode-bound", f"; {hold}, smaller ones (fastad shard --resize) or more of {cores} cores would help"
    return "read-bound", f"; {hold} or a faster disk would help"


def _replayed_s(members: Sequence[Member], batch: Batch | Unmade, steps: int) -> list[float]:
    """Seconds of one step on a batch that is there, round by round; what the steps changed is put back."""
    before = [copy.deepcopy(member.state()) for member in members]
    each = max(1, min(int(REPLAY_SHARE * steps), MOST_REPLAYED) // ROUNDS)
    rounds = []
    for _ in range(ROUNDS):
        _wait(batch)
        started = time.perf_counter()
        for _ in range(each):
            step(members, batch)
        _wait(batch)
        rounds.append((time.perf_counter() - started) / each)
    for member, state in zip(members, before, strict=True):
        member.load(state)
    return rounds


def _wait(batch: Batch | Unmade) -> None:
    if batch.target.device.type == "cuda":
        torch.cuda.synchronize(batch.target.device)

"""Checkpoints: what an interrupted training goes on from.

Owns `checkpoint.pt` and the one before it: what is in them, the hash that tells whether they are whole, and which one
is taken. When they are written is `fastad.train`'s.
Use: `write_checkpoint(training, task, sources)`, and in a later process `read_checkpoint(run, sets, plan_of(...))`.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastad.errors import FastadError
from fastad.files import write_bytes
from fastad.objectives import Objective
from fastad.pipeline import Source
from fastad.plan import Plan
from fastad.progress import say
from fastad.run import Run, tensor_bytes
from fastad.sets import Sets
from fastad.training import Task, Training

# What of a `Training` is kept as it is.
KEPT = ("step", "train_s", "stall_s", "guard_hits", "nonfinite_losses", "largest_second_moment", "diverged_at_epoch")

# How an archive ends that has no comment: with its length.
_NO_COMMENT = b"\0\0"


def write_checkpoint(training: Training, task: Task, sources: Sequence[Source]) -> None:
    """Keeps all that training has changed, and the checkpoint before it; raises `Unwritable` if the disk is full, and
    then both are what they were."""
    streams = zip(task.plan.streams, sources, strict=True)
    state = {
        "fingerprint": task.sets.fingerprint(),
        "plan": plan_of(training.member.objective, task.plan),
        "faults": {stream.name: source.faults.reason.copy() for stream, source in streams},
        "training": {name: getattr(training, name) for name in KEPT},
        "member": training.member.state(),
    }
    run = training.run
    write_bytes(run.checkpoint, sealed(tensor_bytes(state)), kept=run.earlier_checkpoint)


def plan_of(objective: Objective, plan: Plan) -> list[str]:
    """What a checkpoint must agree with beside its shards: the streams that the objective sees."""
    return list(plan.fingerprints if objective.uses_oe else plan.fingerprints[:1])


def take_up(training: Training, saved: Mapping[str, Any]) -> None:
    """Makes the training what it was when `saved` was written."""
    training.member.load(saved["member"])
    training.faults = saved["faults"]
    for name in KEPT:
        setattr(training, name, saved["training"][name])


def read_checkpoint(run: Run, sets: Sets, plan: list[str]) -> dict[str, Any] | None:
    """The newest checkpoint of a run that is whole, None if there is none; a damaged one is told of.

    Raises `FastadError` if none is whole, and for one of other shards or of another plan, which would go on with other
    batches than it began with.
    """
    paths = [path for path in (run.checkpoint, run.earlier_checkpoint) if path.exists()]
    for path in paths:
        if (saved := _read(path)) is None:
            continue
        if path != paths[0]:
            step = saved["training"]["step"]
            say(f"{paths[0]} is damaged or cut short: going on from the one before it, of step {step:,}")
        _check(run, saved, sets, plan)
        return saved
    if paths:
        raise FastadError(f"{paths[0]} cannot be read: remove {run.folder} to train this run anew")
    return None


def discard_checkpoints(run: Run) -> None:
    """Removes what a finished run needs no more, what a killed process left of writing included."""
    for path in (run.checkpoint, run.earlier_checkpoint, *run.folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def sealed(archive: bytes) -> bytes:
    """The archive that torch wrote, with the SHA-256 of its bytes as the archive's comment: it stays one that any
    reader takes."""
    assert archive.endswith(_NO_COMMENT)
    bare = archive[: -len(_NO_COMMENT)]
    seal = hashlib.sha256(bare).hexdigest().encode()
    return bare + len(seal).to_bytes(2, "little") + seal


def _read(path: Path) -> dict[str, Any] | None:
    """The checkpoint, None if it is not what was written."""
    try:
        data = path.read_bytes()
        seal = hashlib.sha256().hexdigest()
        bare = data[: -len(seal) - len(_NO_COMMENT)]
        if data != sealed(bare + _NO_COMMENT):
            return None
        found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return found


def _check(run: Run, saved: Mapping[str, Any], sets: Sets, plan: list[str]) -> None:
    if saved["fingerprint"] != sets.fingerprint():
        raise FastadError(
            f"{run.folder} was begun with other shards: remove it, or train with the shards it began with"
        )
    if saved["plan"] != plan:
        raise FastadError(
            f"{run.folder} was begun with another order of images, by another version of fastad or NumPy, say: "
            "remove it, or train with the version it began with"
        )

"""How long groups of trainings took, as their results tell, and from that how long others would: by network.

Owns the reading of those times, and what is assumed of an H100 where none was measured.
Use: `rate_of("cifar-lenet", 4, group_times(runs), runs)`.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fastad.run import Run, RunResult, find_runs, read_result
from fastad.sweep_queue import Group

GPU = "H100"

# Milliseconds for a step of one objective on an H100 where no group has been measured on one: the goals of `fastad
# bench step` there (256 of CIFAR-10's images in 0.28 ms in a group of four, 14,000 of ImageNet's in a second), not what
# it has reached. The MNIST LeNet is smaller than CIFAR-10's and taken as that.
ASSUMED_MS = {"cifar-lenet": 0.28, "mnist-lenet": 0.28, "resnet18-cbam": 18.3}

MEASURED, SCALED, ASSUMED = "measured", "scaled", "assumed"


class GroupTime(NamedTuple):
    """What a finished group took: seconds from being claimed to its results if a sweep's worker told, else those that
    its results have."""

    experiment: str
    network: str
    objectives: int
    device: str
    steps: int
    seconds: float


class Rate(NamedTuple):
    """Seconds for a step of a group; `basis` is MEASURED, SCALED from groups of another size, or ASSUMED, and
    `rests_on` says more: `groups` of them."""

    step_s: float
    basis: str
    rests_on: str
    groups: int = 0


def group_times(out: Path) -> list[GroupTime]:
    """Of all finished groups in a folder; those with models that diverged, which were trained less, are left out."""
    if not any(out.glob("**/run.json")):
        return []
    told = _told(out)
    groups: dict[tuple[str, int], list[tuple[Run, RunResult]]] = {}
    for run in find_runs([out]):
        result = read_result(run)
        if result is not None and result.diverged_at_epoch is None:
            name = Group(run.recipe, run.class_name, run.seed).name
            groups.setdefault((name, result.group_size), []).append((run, result))
    return [
        _time(members, told.get(name, 0.0))
        for (name, size), members in groups.items()
        if len(members) == size or size == 1
    ]


def _time(members: Sequence[tuple[Run, RunResult]], told_s: float) -> GroupTime:
    (run, result), size = members[0], members[0][1].group_size
    seconds = [each.seconds for _, each in members[:size]]
    train_s, score_s = (max(each[phase] for each in seconds) for phase in ("train", "score"))
    known_s = train_s + score_s + sum(each["measure"] for each in seconds)
    return GroupTime(
        experiment=run.recipe.name.partition("/")[0],
        network=run.recipe.network,
        objectives=size,
        device=result.environment["device"],
        steps=result.counts["steps"],
        # A worker that took up what another had begun tells its own part.
        seconds=max(told_s, known_s),
    )


def _told(out: Path) -> dict[str, float]:
    """Seconds by group, as the workers of sweeps told."""
    found = {}
    for path in out.glob("*/.sweep/workers/*.jsonl"):
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # cut by a kill
                if (event := json.loads(line))["event"] == "done":
                    found[event["group"]] = event["seconds"]
    return found


def rate_of(network: str, objectives: int, times: Iterable[GroupTime], where: Path) -> Rate | None:
    """The rate of a group from those measured: of its own size, else of another, for each objective; None where there
    are none of the network. `where` they come from."""
    fitting = [each for each in times if each.network == network]
    own = [each for each in fitting if each.objectives == objectives]
    sizes = {objectives} if own else {each.objectives for each in fitting}
    if not sizes:
        return None
    # The nearest size scales best.
    size = min(sizes, key=lambda other: (abs(other - objectives), other))
    used = [each for each in fitting if each.objectives == size]
    step_s = median(each.seconds / each.steps for each in used) * objectives / size
    devices = ", ".join(dict.fromkeys(each.device for each in used))
    basis = f"median of {len(used):,} group{'s' * (len(used) > 1)} of {size} in {where}, on {devices}"
    if own:
        return Rate(step_s, MEASURED, basis, len(used))
    return Rate(step_s, SCALED, f"{basis}, × {objectives}/{size}", len(used))


def assumed_rate(network: str, objectives: int, where: Path) -> Rate:
    """What is assumed of an H100, as none was measured in the folder."""
    each_ms = ASSUMED_MS[network]
    why = f"{objectives} × {each_ms} ms, the goal of fastad bench step on an {GPU}; nothing measured on one in {where}"
    return Rate(each_ms / 1e3 * objectives, ASSUMED, why)

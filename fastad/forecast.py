"""What an experiment will cost, and what it still lacks, before anything is trained.

Owns the estimates and what they rest on: groups that were measured, else rates that are assumed and said to be.
Use: `forecast(find_experiment("smoke"), shards=home, out=Path("runs"), room=Room())`, `costs(home, Path("runs"))`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from fastad.experiment import Experiment, experiment_names, find_experiment
from fastad.listing import find_converter
from fastad.manifest import MANIFEST, open_set
from fastad.progress import duration
from fastad.recipe import Recipe
from fastad.sweep import Room, folder_of, groups_of, known_classes, layout, missing_sets, recipes_of
from fastad.sweep_queue import Group
from fastad.sweep_watch import Measured, Watch

# Milliseconds for a step of one objective on an H100 where no group has been measured on one: what `fastad bench step`
# is to reach there, not what it has reached. The MNIST LeNet is smaller than CIFAR-10's and taken as that.
ASSUMED_MS = {"cifar-lenet": 0.28, "mnist-lenet": 0.28, "resnet18-cbam": 18.3}
GPU, GPUS_A_NODE = "H100", 8

PAPER_RECIPES = ("cifar10", "imagenet30", "mnist")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of a sweep beforehand. `points`: of each label, the groups and how many of them are finished.

    `seconds_a_group`: the median of `measured` groups on `device`, and `seconds_left` with that many `workers`; None
    where no group has been measured. `missing`: sets, with the commands that make them.
    """

    experiment: str
    recipe: str
    points: Mapping[str, tuple[int, int]]
    classes: int
    seeds: int
    objectives: tuple[str, ...]
    missing: Mapping[str, str]
    workers: int
    device: str
    measured: int
    seconds_a_group: float | None
    seconds_left: float | None

    @property
    def groups(self) -> int:
        return sum(groups for groups, _ in self.points.values())

    @property
    def done(self) -> int:
        return sum(done for _, done in self.points.values())


def forecast(experiment: Experiment, *, shards: Path, out: Path, room: Room, changes: Iterable[str] = ()) -> Forecast:
    """What `sweep` with the same arguments would do; writes nothing."""
    groups = groups_of(experiment, shards, changes)
    watch = Watch(experiment.name, groups, out, folder_of(experiment, out))
    watch.read()
    points = {point.label: (0, 0) for point in experiment.points()}
    for group in groups:
        count, done = points[group.point]
        points[group.point] = count + 1, done + (group.name in watch.done)
    found = layout(room, max(1, watch.left))
    devices = [each.device for each in watch.measured]
    device = max(set(devices), key=devices.count) if devices else ""
    seconds = [each.seconds for each in watch.measured if each.device == device]
    typical = median(seconds) if seconds else None
    recipes = recipes_of(experiment, changes)
    return Forecast(
        experiment=experiment.name,
        recipe=experiment.recipe,
        points=points,
        classes=len({group.class_name for group in groups}),
        seeds=experiment.seeds,
        objectives=experiment.objectives,
        missing=missing_sets(recipes, shards),
        workers=found.workers,
        device=device,
        measured=len(seconds),
        seconds_a_group=typical,
        seconds_left=None if typical is None else typical * math.ceil(watch.left / found.workers),
    )


def forecast_text(found: Forecast) -> str:
    """The forecast for people."""
    several = "s" * (len(found.points) > 1)
    lines = [
        f"{found.experiment}: recipe {found.recipe}; {len(found.points)} point{several} × {found.classes} classes × "
        f"{found.seeds} seeds × {len(found.objectives)} objectives ({', '.join(found.objectives)})",
        f"{found.groups * len(found.objectives):,} trainings in {found.groups:,} groups, {found.done:,} finished",
    ]
    for label, (groups, done) in found.points.items():
        lines.append(f"  {label or 'the recipe as it is'}: {groups} groups, {done} finished")
    lines += [f"missing: {name}; make it with {command}" for name, command in found.missing.items()]
    if found.seconds_a_group is None or found.seconds_left is None:
        lines.append("estimate: none, no group of this experiment has been measured in this folder yet")
    else:
        lines.append(
            f"estimate: {duration(found.seconds_left)} for {found.groups - found.done:,} groups on {found.workers} "
            f"workers, at {found.seconds_a_group:.1f} s a group (median of {found.measured}, on {found.device})"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one experiment on one GPU. `rests_on`: which rate it was reckoned with."""

    experiment: str
    trainings: int
    groups: int
    steps: int
    hours: float
    rests_on: str


@dataclass(frozen=True, slots=True)
class _Rates:
    """Seconds a step of a group, by network and number of objectives, as measured on the GPU."""

    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def of(self, network: str, objectives: int) -> tuple[float, str]:
        """The rate, and what it rests on."""
        name = f"{network}, groups of {objectives}"
        if (measured := self.seconds.get((network, objectives))) is not None:
            step_s = median(measured)
            return step_s, f"{name}: {1e3 * step_s:.2f} ms a step, median of {len(measured)} groups on one {GPU}"
        step_s = ASSUMED_MS[network] / 1e3 * objectives
        return step_s, f"{name}: {1e3 * step_s:.2f} ms a step, assumed: no such group was measured on an {GPU} yet"


def costs(shards: Path, out: Path) -> list[Cost]:
    """Of every experiment of the paper's on images, on one H100, from the groups measured in `out`."""
    experiments = [find_experiment(name) for name in experiment_names()]
    experiments = [each for each in experiments if each.recipe in PAPER_RECIPES]
    groups = {each.name: groups_of(each, shards) for each in experiments}
    rates = _Rates()
    for experiment in experiments:
        for measured in _measured(experiment, groups[experiment.name], out):
            if GPU in measured.device:
                key = measured.group.recipe.network, len(experiment.objectives)
                rates.seconds.setdefault(key, []).append(measured.seconds / measured.steps)
    found = []
    for experiment in experiments:
        each = groups[experiment.name]
        step_s, rests_on = rates.of(each[0].recipe.network, len(experiment.objectives))
        steps = steps_of(each[0].recipe, shards)
        hours = len(each) * steps * step_s / 3600
        found.append(
            Cost(
                experiment=experiment.name,
                trainings=len(each) * len(experiment.objectives),
                groups=len(each),
                steps=steps,
                hours=hours,
                rests_on=rests_on,
            )
        )
    return found


def _measured(experiment: Experiment, groups: Iterable[Group], out: Path) -> list[Measured]:
    watch = Watch(experiment.name, groups, out, folder_of(experiment, out))
    watch.read()
    return watch.measured


def steps_of(recipe: Recipe, shards: Path) -> int:
    """The steps of a training with the set's mean number of images a class, as converted or as published."""
    name = recipe.data.nominal
    if (shards / name / MANIFEST).is_file():
        images = len(open_set(shards / name).split_rows("train"))
    else:
        images = next((counts["train"] for counts in find_converter(name).published_counts.values()), 0)
    return recipe.optim.epochs * (images // len(known_classes(name, shards)) // recipe.data.batch_nominal)


def costs_text(found: Sequence[Cost]) -> str:
    """The costs as a table, with their sum and what they rest on."""
    width = max(len(each.experiment) for each in found)
    lines = [f"{'experiment':{width}}  trainings  groups  steps  hours on one {GPU}  on a node of {GPUS_A_NODE}"]
    for each in found:
        lines.append(
            f"{each.experiment:{width}}  {each.trainings:9,}  {each.groups:6,}  {each.steps:5,}  "
            f"{each.hours:17.1f}  {each.hours / GPUS_A_NODE:14.1f}"
        )
    trainings, hours = sum(each.trainings for each in found), sum(each.hours for each in found)
    lines.append(
        f"The paper's {trainings:,} trainings: {hours:.0f} h on one {GPU}, {hours / GPUS_A_NODE:.1f} h on eight."
    )
    lines.append(
        "Rests on (groups are independent, so eight GPUs take an eighth; loading and testing count if measured):"
    )
    lines += [f"  {line}" for line in dict.fromkeys(each.rests_on for each in found)]
    return "\n".join(lines)

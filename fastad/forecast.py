"""What an experiment will cost, and what it still lacks, before anything is trained.

Owns the estimates, and the words that say of each figure whether it was measured or is assumed; rates are
`fastad.rates`'.
Use: `forecast(find_experiment("smoke"), shards=home, out=Path("runs"), room=Room())`, `costs(home, Path("runs"))`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, mode
from typing import NamedTuple

from fastad.experiment import Experiment, experiment_names, find_experiment
from fastad.listing import find_converter
from fastad.manifest import MANIFEST, open_set
from fastad.progress import duration
from fastad.rates import ASSUMED, GPU, GroupTime, Rate, assumed_rate, group_times, rate_of
from fastad.recipe import Recipe
from fastad.sweep import Room, folder_of, groups_of, known_classes, layout, missing_sets, recipes_of
from fastad.sweep_watch import Watch

GPUS_A_NODE = 8
PAPER_RECIPES = ("cifar10", "imagenet30", "mnist")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of a sweep beforehand. `points`: of each label, the groups and how many of them are finished.

    `seconds_a_group`: from `measured` groups on `device`, this experiment's own or, as `rests_on` says, others of its
    network; `seconds_left` with that many `workers`; None where no group has been measured. `missing`: sets, with the
    commands that make them.
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
    rests_on: str
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
    recipes = recipes_of(experiment, changes)
    times = [each for each in group_times(out) if (each.device == "cpu") == (found.device == "cpu")]
    expected = _expected(experiment, recipes[0], times, shards, out)
    return Forecast(
        experiment=experiment.name,
        recipe=experiment.recipe,
        points=points,
        classes=len({group.class_name for group in groups}),
        seeds=experiment.seeds,
        objectives=experiment.objectives,
        missing=missing_sets(recipes, shards),
        workers=found.workers,
        device=expected.device if expected else "",
        measured=expected.groups if expected else 0,
        rests_on=expected.rests_on if expected else "",
        seconds_a_group=expected.seconds if expected else None,
        seconds_left=expected.seconds * math.ceil(watch.left / found.workers) if expected else None,
    )


class _Expected(NamedTuple):
    """What a group of an experiment is to take, and what that rests on."""

    seconds: float
    device: str
    groups: int
    rests_on: str


def _expected(
    experiment: Experiment, recipe: Recipe, times: Sequence[GroupTime], shards: Path, out: Path
) -> _Expected | None:
    """From the experiment's own groups, else from those of its network; of the device that most of them had."""
    size = len(experiment.objectives)
    own = [each for each in times if each.experiment == experiment.name and each.objectives == size]
    fitting = own or [each for each in times if each.network == recipe.network]
    if not fitting:
        return None
    device = mode(each.device for each in fitting)
    if own:
        seconds = [each.seconds for each in own if each.device == device]
        return _Expected(median(seconds), device, len(seconds), f"measured, median of {len(seconds):,} on {device}")
    rate = rate_of(recipe.network, size, [each for each in fitting if each.device == device], out)
    if rate is None:
        return None
    steps = steps_of(recipe, shards)
    why = f"{steps:,} steps of {1e3 * rate.step_s:.2f} ms, {rate.basis} on other experiments: {rate.rests_on}"
    return _Expected(steps * rate.step_s, device, rate.groups, why)


def forecast_text(found: Forecast) -> str:
    """The forecast for people."""
    grid = (
        *(_counted(len(found.points), "point"), _counted(found.classes, "class", "classes")),
        *(_counted(found.seeds, "seed"), _counted(len(found.objectives), "objective")),
    )
    trainings = found.groups * len(found.objectives)
    lines = [
        f"{found.experiment}: recipe {found.recipe}; {' × '.join(grid)} ({', '.join(found.objectives)})",
        f"{_counted(trainings, 'training')} in {_counted(found.groups, 'group')}, {found.done:,} finished",
    ]
    for label, (groups, done) in found.points.items():
        lines.append(f"  {label or 'the recipe as it is'}: {_counted(groups, 'group')}, {done:,} finished")
    lines += [f"missing: {name}; make it with {command}" for name, command in found.missing.items()]
    if found.groups == found.done:
        lines.append("nothing is left to do")
    elif found.seconds_a_group is None or found.seconds_left is None:
        lines.append(
            "estimate: none, as no group of its network has been measured in this folder yet; "
            f"fastad train {found.recipe} --dry-run measures some steps now"
        )
    else:
        lines.append(
            f"estimate: {duration(found.seconds_left)} for {_counted(found.groups - found.done, 'group')} on "
            f"{_counted(found.workers, 'worker')}, at {found.seconds_a_group:,.1f} s a group ({found.rests_on})"
        )
    return "\n".join(lines)


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one experiment on one GPU. `basis`: whether its rate was measured, scaled or is assumed (`fastad.rates`), and
    `rests_on` the rate in words."""

    experiment: str
    trainings: int
    groups: int
    steps: int
    hours: float
    basis: str
    rests_on: str


@dataclass(frozen=True, slots=True)
class Costs:
    """Of all experiments. `elsewhere`: rates that were measured on other devices, and that no cost rests on."""

    experiments: tuple[Cost, ...]
    elsewhere: tuple[str, ...]

    @property
    def trainings(self) -> int:
        return sum(each.trainings for each in self.experiments)

    def hours(self, *bases: str) -> float:
        """In all, or of the experiments whose rates have such a basis."""
        return sum(each.hours for each in self.experiments if not bases or each.basis in bases)


def costs(shards: Path, out: Path) -> Costs:
    """Of every experiment of the paper's on images, on one H100, from the groups measured in `out`."""
    experiments = [find_experiment(name) for name in experiment_names()]
    times, found = group_times(out), []
    meant = [each for each in times if GPU in each.device]
    for experiment in experiments:
        if experiment.recipe not in PAPER_RECIPES:
            continue
        groups, size = groups_of(experiment, shards), len(experiment.objectives)
        recipe = groups[0].recipe
        rate = rate_of(recipe.network, size, meant, out) or assumed_rate(recipe.network, size, out)
        steps = steps_of(recipe, shards)
        cost = Cost(
            experiment=experiment.name,
            trainings=len(groups) * size,
            groups=len(groups),
            steps=steps,
            hours=len(groups) * steps * rate.step_s / 3600,
            basis=rate.basis,
            rests_on=_line(recipe.network, size, rate),
        )
        found.append(cost)
    others = dict.fromkeys((each.device, each.network, each.objectives) for each in times if GPU not in each.device)
    elsewhere = []
    for device, network, size in others:
        there = [each for each in times if each.device == device]
        if (measured := rate_of(network, size, there, out)) is not None:
            elsewhere.append(_line(network, size, measured))
    return Costs(tuple(found), tuple(elsewhere))


def _line(network: str, objectives: int, rate: Rate) -> str:
    return f"{network}, groups of {objectives}: {1e3 * rate.step_s:.2f} ms a step, {rate.basis}: {rate.rests_on}"


def steps_of(recipe: Recipe, shards: Path) -> int:
    """The steps of a training with the set's mean number of images a class, as converted or as published."""
    name = recipe.data.nominal
    if (shards / name / MANIFEST).is_file():
        images = len(open_set(shards / name).split_rows("train"))
    else:
        images = next((counts["train"] for counts in find_converter(name).published_counts.values()), 0)
    return recipe.optim.epochs * (images // len(known_classes(name, shards)) // recipe.data.batch_nominal)


def costs_text(found: Costs) -> str:
    """The costs as a table, with their sum and what they rest on."""
    width = max(len(each.experiment) for each in found.experiments)
    lines = [f"{'experiment':{width}}  trainings  groups  steps  on one {GPU}  on {GPUS_A_NODE} of them  rate"]
    for each in found.experiments:
        lines.append(
            f"{each.experiment:{width}}  {each.trainings:9,}  {each.groups:6,}  {each.steps:5,}  "
            f"{_time(each.hours):>11}  {_time(each.hours / GPUS_A_NODE):>12}  {each.basis}"
        )
    hours, assumed = found.hours(), found.hours(ASSUMED)
    lines.append(
        f"The paper's {found.trainings:,} trainings: {_time(hours)} on one {GPU}, {_time(hours / GPUS_A_NODE)} on a "
        f"node of {GPUS_A_NODE}; {_share(hours - assumed, hours)} of that rests on groups measured on an {GPU}, "
        f"{_share(assumed, hours)} on assumed rates."
    )
    lines.append("Rates:")
    lines += [f"  {line}" for line in dict.fromkeys(each.rests_on for each in found.experiments)]
    lines.append(
        "Measured rates count all that a worker does for a group, assumed ones its training steps alone. Groups need "
        f"nothing of each other, so {GPUS_A_NODE} GPUs take an eighth. What a worker does once is not counted: it "
        "starts and compiles in 15 to 90 s."
    )
    if found.elsewhere:
        lines.append("Measured on other devices, and used for no figure above:")
        lines += [f"  {line}" for line in found.elsewhere]
    return "\n".join(lines)


def _time(hours: float) -> str:
    return duration(3600 * hours)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"

"""What of the named experiments the results hold: how many of their trainings, what is missing, what was changed.

Owns that comparison; what an experiment is, is `fastad.experiment`'s.
Use: `found = coverage(runs)["smoke"]`, then `if not found.is_whole: print(command(found, Path("runs")))`.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastad.experiment import Experiment, class_names, experiment_names, find_experiment, point_recipe
from fastad.listing import converter_names, find_converter
from fastad.recipe import Recipe, known_keys
from fastad.run import Run, natural
from fastad.tables import Cell, Row, Table


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of an experiment there is. `changes`: what its runs do otherwise than it says, as `key=value`; `root`:
    the folder that they were written to, None where there are none."""

    experiment: Experiment
    found: int
    expected: int
    changes: tuple[str, ...]
    root: Path | None

    @property
    def is_whole(self) -> bool:
        return self.found >= self.expected


def set_classes(name: str) -> tuple[str, ...]:
    """The classes of a set that fastad converts, if its converter names them."""
    return tuple(find_converter(name).classes or ()) if name in converter_names() else ()


def classes_of(experiment: Experiment, found: Iterable[str] = ()) -> tuple[str, ...]:
    """The nominal classes of an experiment; of a set whose classes are not known here, those found."""
    nominal = point_recipe(experiment, experiment.points()[0]).data.nominal
    return class_names(experiment, set_classes(nominal) or sorted(found, key=natural))


def coverage(runs: Sequence[Run]) -> dict[str, Coverage]:
    """How much of every named experiment is among the finished runs, by name."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.recipe.name.partition("/")[0], []).append(run)
    return {name: _coverage(find_experiment(name), by_name.get(name, [])) for name in experiment_names()}


def _coverage(experiment: Experiment, runs: Sequence[Run]) -> Coverage:
    classes = classes_of(experiment, {run.class_name for run in runs})
    recipes = {recipe.name: recipe for recipe in (point_recipe(experiment, point) for point in experiment.points())}
    wanted = [
        run
        for run in runs
        if run.recipe.name in recipes
        and run.class_name in classes
        and run.objective in experiment.objectives
        and 1 <= run.seed <= experiment.seeds
    ]
    changes: dict[str, None] = {}
    for recipe in {id(run.recipe): run.recipe for run in wanted}.values():
        changes |= dict.fromkeys(_changes(recipe, recipes[recipe.name]))
    expected = len(recipes) * len(classes) * len(experiment.objectives) * experiment.seeds
    return Coverage(experiment, len(wanted), expected, tuple(changes), root_of(wanted[0]) if wanted else None)


# What bears on no score, or is no choice of the user's.
EXECUTION = ("name", "objectives", "loader", "train")


def _changes(recipe: Recipe, named: Recipe) -> list[str]:
    keys = [key for key in known_keys() if key.partition(".")[0] not in EXECUTION]
    return [f"{key}={_toml(_at(recipe, key))}" for key in keys if _at(recipe, key) != _at(named, key)]


def _toml(value: object) -> str:
    """A value as `--set` takes it; JSON of what a recipe holds is TOML."""
    return "none" if value is None else json.dumps(value)


def _at(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def root_of(run: Run) -> Path:
    """The folder that a sweep was told to write to."""
    depth = 3 + run.recipe.name.count("/")
    return run.folder.parents[depth] if depth < len(run.folder.parents) else run.folder.resolve().parents[depth]


def command(found: Coverage, out: Path) -> str:
    """What trains the rest of an experiment, with the changes that its runs have; into `out` if there are none yet."""
    changes = (part for change in found.changes for part in ("--set", change))
    return shlex.join(("fastad", "sweep", found.experiment.name, "--out", str(found.root or out), *changes))


def coverage_table(covered: Iterable[Coverage], shows: Mapping[str, str], out: Path) -> Table:
    """The experiments that are not whole. `shows`: what of a report an experiment is for; `out`: where runs are."""
    rows = tuple(
        Row(
            found.experiment.name,
            (
                Cell(shows.get(found.experiment.name, "–")),
                Cell(f"{found.found:,} of {found.expected:,}"),
                Cell(command(found, out)),
            ),
        )
        for found in covered
        if not found.is_whole
    )
    note = "What is shown of these experiments rests on what there is; the command trains the rest."
    return Table("What is missing", ("experiment", "for", "trainings", "command"), rows, note, words=frozenset({0, 2}))

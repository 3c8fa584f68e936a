"""The named experiments: a recipe over a grid, and for which objectives, classes and seeds it is trained.

Owns the form of `experiments/*.toml`; running one is `fastad.sweep`'s, its tables and figures are `fastad.report`'s.
Use: `for point in find_experiment("cifar10-oe-size").points(): recipe = point_recipe(experiment, point)`.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastad.errors import FastadError, unknown
from fastad.named import read_named, shipped
from fastad.objectives import find
from fastad.recipe import Recipe, known_keys, load


@dataclass(frozen=True, slots=True)
class Point:
    """A place of the grid: `label` such as "oe_size=64", empty where there is no grid, and its `overrides` of the
    recipe as `key=value`, the experiment's own among them."""

    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of the grid: each value's name, and the `key=value` that it stands for."""

    name: str
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """`recipe`: its name, or the path of its TOML file. `classes`: their names, or how many of the set's first ones;
    empty means all. Seeds are 1 to `seeds`. `overrides`: of the recipe, as `key=value`."""

    name: str
    recipe: str
    objectives: tuple[str, ...]
    seeds: int
    classes: tuple[str, ...] | int
    overrides: tuple[str, ...]
    grid: tuple[Axis, ...]

    def points(self) -> list[Point]:
        """The product of the grid's axes, the last one changing fastest."""
        return [
            Point(
                ",".join(f"{axis.name}={value}" for axis, value in zip(self.grid, values, strict=True)),
                (
                    *self.overrides,
                    *itertools.chain(*(axis.values[v] for axis, v in zip(self.grid, values, strict=True))),
                ),
            )
            for values in itertools.product(*(axis.values for axis in self.grid))
        ]


def experiment_names() -> list[str]:
    """The experiments that fastad ships."""
    return shipped("experiment")


def find_experiment(name: str) -> Experiment:
    """The experiment of that name, or of the TOML file at that path.

    Raises `FastadError` for an unknown one, and for a key, a value or a recipe that is not what it must be.
    """
    experiment = _parse(*read_named("experiment", name))
    for point in experiment.points():
        point_recipe(experiment, point)
    return experiment


def point_recipe(experiment: Experiment, point: Point, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of a point, named `<experiment>` or `<experiment>/<label>`, with the user's `changes` (`key=value`).

    Raises `FastadError` if they change what the grid does: two points would be the same.
    """
    changes = tuple(changes)
    varied = {
        override.partition("=")[0] for axis in experiment.grid for value in axis.values.values() for override in value
    }
    for change in changes:
        if (key := change.partition("=")[0]) in varied:
            raise FastadError(f"--set {change}: the experiment {experiment.name} varies {key} itself, leave it out")
    recipe = load(experiment.recipe, (*point.overrides, *changes))
    name = f"{experiment.name}/{point.label}" if point.label else experiment.name
    return dataclasses.replace(recipe, name=name, objectives=experiment.objectives)


def class_names(experiment: Experiment, known: Sequence[str]) -> tuple[str, ...]:
    """The experiment's classes among those of its nominal set, in the set's order where it names none."""
    if isinstance(experiment.classes, int):
        return tuple(known[: experiment.classes])
    for name in experiment.classes:
        if name not in known:
            raise unknown("class", name, known)
    return experiment.classes or tuple(known)


# Every key of an experiment's file, and what it must be.
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "recipe": str,
    "objectives": list,
    "seeds": int,
    "classes": (list, int),
    "overrides": dict,
    "grid": dict,
}
_NEEDED = ("recipe", "objectives", "seeds")


def _parse(name: str, table: Mapping[str, Any]) -> Experiment:
    for key, value in table.items():
        if key not in _KEYS:
            raise unknown("experiment key", key, _KEYS)
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise FastadError(f"experiment {name}: {key} cannot be {value!r}")
    for key in _NEEDED:
        if not table.get(key):
            raise FastadError(f"experiment {name}: {key} is missing or empty")
    classes = table.get("classes", [])
    return Experiment(
        name=name,
        recipe=table["recipe"],
        objectives=tuple(find(str(objective)).name for objective in table["objectives"]),
        seeds=table["seeds"],
        classes=classes if isinstance(classes, int) else tuple(classes),
        overrides=tuple(_overrides(table.get("overrides", {}))),
        grid=tuple(_axes(name, table.get("grid", {}))),
    )


def _axes(experiment: str, grid: Mapping[str, Any]) -> Iterator[Axis]:
    """Lists at recipe keys are axes of those values; a table of tables is one of named values, overrides each."""
    sections = {key.partition(".")[0] for key in known_keys()}
    for key, value in grid.items():
        if key not in sections:
            if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
                raise unknown("recipe key", key, known_keys())
            yield Axis(key, {each: tuple(_overrides(changes)) for each, changes in value.items()})
            continue
        for place, values in _dotted({key: value}):
            if not isinstance(values, list) or not values:
                raise FastadError(
                    f"experiment {experiment}: grid key {place} must be a list of values, found {values!r}"
                )
            named = {_shown(each): (f"{place}={_toml(each)}",) for each in values}
            yield Axis(place.rpartition(".")[2], named)


def _overrides(table: Mapping[str, Any]) -> Iterator[str]:
    """The table's values as `key=value`."""
    return (f"{key}={_toml(value)}" for key, value in _dotted(table))


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The table's values, each with its dotted place."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _toml(value: Any) -> str:
    """A value as TOML writes it; so does JSON, but for dates, which no recipe holds."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _toml(value).replace(", ", "+")

"""What experiments measured: the AUROC of every run by experiment, point of its grid, objective, class and seed.

Owns what is averaged over which classes and seeds; drawing and comparing what comes of it is the work of others.
Use: `found = measured(results)`, then `by_seed(found[Place("cifar10-table1", "", "hsc")], classes)`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastad.run import RunResult
from fastad.tables import has_figures


class Place(NamedTuple):
    """An objective at a point of an experiment; the label of the point is empty where there is no grid."""

    experiment: str
    label: str
    objective: str


# AUROC in %, by class and seed.
Values = Mapping[str, Mapping[int, float]]
Measured = Mapping[Place, Values]


def measured(results: Iterable[RunResult]) -> Measured:
    """The results that have figures by their places, in one pass."""
    found: dict[Place, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in filter(has_figures, results):
        experiment, _, label = result.recipe.partition("/")
        place = Place(experiment, label, result.objective)
        found[place][result.class_name][result.seed] = 100 * result.metrics["auroc"].value
    return {place: dict(values) for place, values in found.items()}


def by_seed(values: Values, classes: Sequence[str]) -> dict[int, np.ndarray]:
    """For each seed that every one of the classes has: the AUROC of each class; empty if a class is missing."""
    seeds = [values.get(name, {}) for name in classes]
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return {seed: np.array([each[seed] for each in seeds]) for seed in common}


def class_means(values: Values, classes: Sequence[str]) -> list[float]:
    """For each seed that every class has, the mean over the classes."""
    return [float(each.mean()) for each in by_seed(values, classes).values()]

"""The numbers that the paper printed, in its tables' own form.

Owns how `fastad/data/table-*.csv` are read; comparing is `fastad.compare`'s.
Use: `published(5).rows["bird"][1].mean`.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

# Every published mean is over as many seeds (captions of Tables 1 to 6).
SEEDS = 10

MEAN = "mean"


class Printed(NamedTuple):
    """A printed AUC in %, and the standard deviation beside it (over seeds; in a mean row over classes), else NaN."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Method:
    """A column: its name as printed, the heading above it, and the objective here that is the same, if there is one."""

    name: str
    regime: str
    objective: str


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of the paper. `rows`: a figure for each method, by class, or by what else the rows are."""

    number: int
    source: str
    methods: tuple[Method, ...]
    rows: Mapping[str, tuple[Printed, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.rows if name != MEAN)

    def column(self, objective: str) -> int:
        """The place of the method that is this objective."""
        return [method.objective for method in self.methods].index(objective)


@cache
def published(number: int) -> PublishedTable:
    """The table of that number, 1 to 6; of Table 6 the columns DSAD and Focal are in the order of the classes."""
    text = (resources.files("fastad.data") / f"table-{number}.csv").read_text(encoding="utf-8")
    source, *lines = text.splitlines()
    (_, *regimes), (_, *names), (_, *objectives), *rows = csv.reader(lines)
    methods = tuple(Method(*column) for column in zip(names, regimes, objectives, strict=True))
    return PublishedTable(
        number, source.lstrip("# "), methods, {label: tuple(map(_printed, cells)) for label, *cells in rows}
    )


def _printed(cell: str) -> Printed:
    mean, _, std = cell.partition(" ± ")
    return Printed(float(mean), float(std) if std else math.nan)


# Where the spread over seeds was printed: Table 5 for the CIFAR-10 runs of Tables 1 and 4, Table 6 for those of 2.
SPREAD_IN = {1: 5, 2: 6, 4: 5, 5: 5, 6: 6}


def seed_std(number: int, row: str, objective: str) -> float:
    """The standard deviation over seeds of a published figure; NaN where the paper does not tell it (Table 3).

    Of a mean over classes it follows from theirs, whose seeds are independent.
    """
    if number not in SPREAD_IN:
        return math.nan
    table = published(SPREAD_IN[number])
    column = table.column(objective)
    if row != MEAN:
        return table.rows[row][column].std
    return math.sqrt(sum(table.rows[name][column].std ** 2 for name in table.classes)) / len(table.classes)

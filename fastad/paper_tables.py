"""The paper's Tables 1 to 6 with our figures in their place, the published ones below them and the differences.

Owns which experiment each table shows and how its cells are put; the test of a difference is `fastad.compare`'s.
Use: `for table in compared_tables(measured(results)): print(markdown(table.shown()))`.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastad.compare import LEVEL, REPEAT, Difference, difference
from fastad.measured import Measured, Place, Values, by_seed, class_means
from fastad.published import MEAN, SEEDS, Method, Printed, published, seed_std
from fastad.tables import NO_CELL, Cell, Row, Table


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of the paper. `labels`: the point of the grid that a row shows, where the experiment has one."""

    title: str
    experiment: str
    labels: Mapping[str, str]
    note: str = ""


REORDERED = (
    "In the paper the columns DSAD and Focal stand in the order of class numbers sorted as text (0, 1, 10, 11, …, 2, "
    "20, …), HSC and BCE in that of the numbers: as printed, BCE and Focal correlate at 0.17 over the classes, in the "
    "classes' own order, which is used here, at 0.99. The means do not change."
)

TABLES: Mapping[int, TableSpec] = {
    1: TableSpec("mean AUROC in % on CIFAR-10, 80 Million Tiny Images as OE", "cifar10-table1", {}),
    2: TableSpec("mean AUROC in % on ImageNet-30, ImageNet-22K as OE", "imagenet30-table2", {}),
    3: TableSpec(
        "mean AUROC in % on CIFAR-10 of HSC with four norms",
        "cifar10-hsc-norms",
        {"without": "augmentation=off", "with": "augmentation=on"},
    ),
    4: TableSpec("mean AUROC in % of each class of CIFAR-10", "cifar10-table1", {}),
    5: TableSpec("AUROC in % of each class of CIFAR-10, with standard deviations", "cifar10-table1", {}),
    6: TableSpec(
        "AUROC in % of each class of ImageNet-30, with standard deviations", "imagenet30-table2", {}, REORDERED
    ),
}

READING = (
    "Below each of our figures stand the paper's and the difference ours − paper, with its simultaneous "
    f"{100 * LEVEL:.0f} % interval from the seeds of both (Student's t with pooled variance, Bonferroni over the "
    f"figures of a table). † marks what noise does not explain: the interval lies wholly beyond ±{REPEAT}, by which "
    "the paper's own two figures of one experiment differ (HSC in Tables 1 and 3)."
)

# The classes that a table's means are over are the rows of these.
CLASSES_OF = {1: 4, 2: 6, 3: 4, 4: 4, 5: 4, 6: 6}


@dataclass(frozen=True, slots=True)
class ComparedCell:
    """A published figure and ours. `ours`: one figure for each seed, none if not measured; `std`: over seeds, in a mean
    row over classes. `difference` is None where there is nothing to compare."""

    printed: Printed
    ours: tuple[float, ...]
    std: float
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """A table of the paper with our figures; rows and methods as it has them."""

    number: int
    methods: tuple[Method, ...]
    rows: Mapping[str, tuple[ComparedCell, ...]]

    @property
    def what(self) -> str:
        return TABLES[self.number].title

    def cells(self) -> list[ComparedCell]:
        """Those of which there are figures on both sides."""
        return [cell for row in self.rows.values() for cell in row if cell.difference is not None]


def compared_tables(found: Measured) -> list[ComparedTable]:
    """Those of the paper's tables for which anything was measured."""
    tables = (_compared(number, found) for number in TABLES)
    return [table for table in tables if table.cells()]


def _compared(number: int, found: Measured) -> ComparedTable:
    spec, printed = TABLES[number], published(number)
    classes = published(CLASSES_OF[number]).classes
    ours = {
        (row, method.objective): _ours(
            found.get(Place(spec.experiment, spec.labels.get(row, ""), method.objective), {}), row, classes
        )
        for row in printed.rows
        for method in printed.methods
    }
    comparisons = sum(bool(seeds) for seeds, _ in ours.values())
    rows = {}
    for row, figures in printed.rows.items():
        cells = []
        for method, figure in zip(printed.methods, figures, strict=True):
            seeds, std = ours[row, method.objective]
            spread = seed_std(number, row, method.objective) if seeds else math.nan
            apart = difference(figure, spread, seeds, comparisons) if seeds else None
            cells.append(ComparedCell(figure, seeds, std, apart))
        rows[row] = tuple(cells)
    return ComparedTable(number, printed.methods, rows)


def _ours(values: Values, row: str, classes: Sequence[str]) -> tuple[tuple[float, ...], float]:
    """Our figure for each seed, and the standard deviation that the paper gives in such a row."""
    if row in classes:
        seeds = tuple(values.get(row, {}).values())
        return seeds, float(np.std(seeds, ddof=1)) if len(seeds) > 1 else math.nan
    matrix = list(by_seed(values, classes).values())
    # Over n, not n − 1: so are the paper's mean rows (Table 5, DSAD: 94.5 ± 3.30).
    return tuple(class_means(values, classes)), float(np.std(np.mean(matrix, axis=0))) if matrix else math.nan


def shown(table: ComparedTable) -> Table:
    """The table in the paper's form: our figures, below them what the paper has, and how far they are apart."""
    rows = []
    for label, cells in table.rows.items():
        figures = [_figure(cell, method) for cell, method in zip(cells, table.methods, strict=True)]
        best = max((figure for figure in figures if figure is not None), default=math.nan)
        columns = frozenset(place for place, figure in enumerate(figures) if figure == best)
        # Table 5 has the intervals of Table 4.
        texts = tuple(
            _cell(cell, method, has_interval=table.number != 4)
            for cell, method in zip(cells, table.methods, strict=True)
        )
        rows.append(Row(label.replace("_", " "), texts, columns, is_mean=label == MEAN and len(table.rows) > 1))
    first = {3: "augmentation"}.get(table.number, "class")
    return Table(
        f"Table {table.number}: {table.what}",
        (first, *(method.name for method in table.methods)),
        tuple(rows),
        _note(table),
        tuple(method.regime for method in table.methods),
    )


def _figure(cell: ComparedCell, method: Method) -> float | None:
    """What is ranked in a row, as it is shown: our figure, or that of a method from the literature."""
    if cell.ours:
        return round(float(np.mean(cell.ours)), 1)
    return None if method.objective else cell.printed.mean


def _cell(cell: ComparedCell, method: Method, has_interval: bool) -> Cell:
    paper = f"{cell.printed.mean:.1f}" + ("" if math.isnan(cell.printed.std) else f" ± {cell.printed.std:.2f}")
    if not method.objective:
        return Cell(paper)
    if cell.difference is None:
        return Cell(NO_CELL.figure, below=(f"paper {paper}",))
    std = "" if math.isnan(cell.printed.std) or math.isnan(cell.std) else f" ± {cell.std:.2f}"
    return Cell(
        f"{np.mean(cell.ours):.1f}{std}",
        below=(f"paper {paper}", _apart(cell.difference, has_interval)),
        flagged=cell.difference.disagrees,
    )


def _apart(found: Difference, has_interval: bool) -> str:
    interval = "" if math.isnan(found.low) or not has_interval else f" [{signed(found.low)}, {signed(found.high)}]"
    return f"{signed(found.value)}{'†' * found.disagrees}{interval}"


def signed(value: float) -> str:
    """A difference with its sign, one decimal."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"


def _note(table: ComparedTable) -> str:
    seeds = sorted({len(cell.ours) for cell in table.cells()})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    parts = [f"Ours over {over} seed{'s' * (seeds[-1] > 1)}, the paper's over {SEEDS}."]
    if any(not math.isnan(cell.printed.std) for cell in table.cells()):
        parts.append("± is the standard deviation over seeds, in the last row that over classes.")
    if any(method.name.endswith("*") for method in table.methods):
        parts.append("* marks methods whose figures the paper took from the literature.")
    return " ".join((*parts, TABLES[table.number].note)).strip()


CSV_COLUMNS = (
    *("table", "row", "regime", "method", "objective", "paper", "paper_std", "ours", "ours_std", "seeds"),
    *("difference", "low", "high", "disagrees"),
)


def as_csv(table: ComparedTable) -> str:
    """The table with a line for each figure, nothing rounded but what the paper had rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, cells in table.rows.items():
        for method, cell in zip(table.methods, cells, strict=True):
            found = cell.difference
            apart = ("", "", "", "") if found is None else (*map(_number, found), str(found.disagrees).lower())
            ours = _number(float(np.mean(cell.ours))) if cell.ours else ""
            paper = (cell.printed.mean, _number(cell.printed.std))
            names = (method.regime, method.name, method.objective)
            writer.writerow((table.number, row, *names, *paper, ours, _number(cell.std), len(cell.ours), *apart))
    return file.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}".rstrip("0").rstrip(".")

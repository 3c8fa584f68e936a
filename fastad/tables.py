"""Figures over seeds and over classes, and the tables that show them, before any layout.

Owns what is averaged over what and how a figure is written; which runs count is `fastad.report`'s matter, the metrics
of a run are `fastad.evaluate`'s.
Use: `for table in tables(group_runs(results)): ...`.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from fastad.evaluate import METRICS, over_seeds
from fastad.run import RunResult

TITLES: Mapping[str, str] = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "fpr95": "FPR at 95 % TPR",
}
LOWER_IS_BETTER = ("fpr95",)

Item = TypeVar("Item", bound=Hashable)


class Cell(NamedTuple):
    """A figure and its interval, as text; the interval may be empty. `below`: lines under them, such as the published
    figure; `flagged`: the last of them is to be set off."""

    figure: str
    interval: str = ""
    below: tuple[str, ...] = ()
    flagged: bool = False


NO_CELL = Cell("–")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. `best`: the columns to be set off; `is_mean`: the row sums up those above it."""

    label: str
    cells: tuple[Cell, ...]
    best: frozenset[int] = frozenset()
    is_mean: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table in plain text. `header`: what the rows are, then the columns; `note`: how the figures are to be read.
    `regimes`: a heading above each column but the first, alike for columns that belong together."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str
    regimes: tuple[str, ...] = ()


def regime_spans(table: Table) -> list[tuple[str, int]]:
    """Each heading above columns that belong together, with their number."""
    return [(name, len(list(columns))) for name, columns in itertools.groupby(table.regimes)]


class Statistic(NamedTuple):
    """A metric over runs, as fractions: mean, standard deviation (n − 1) and 95 % interval; NaN where there is none."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassMean:
    """A metric over the classes of one recipe and objective.

    `over_seeds`: of the class means of each seed, where all classes have the same seeds; else the mean alone. `spread`:
    the standard deviation over classes.
    """

    classes: int
    over_seeds: Statistic
    spread: float


@dataclass(frozen=True, slots=True)
class Groups:
    """Results by recipe, class and objective, seeds ascending; all in the order in which they first appeared."""

    runs: Mapping[tuple[str, str, str], Sequence[RunResult]]

    @property
    def classes(self) -> dict[str, list[str]]:
        """The classes of each recipe."""
        found: dict[str, list[str]] = {}
        for recipe, class_name, _ in self.runs:
            found.setdefault(recipe, []).append(class_name)
        return {recipe: distinct(names) for recipe, names in found.items()}

    @property
    def objectives(self) -> list[str]:
        return distinct(objective for _, _, objective in self.runs)

    def label(self, recipe: str, name: str) -> str:
        """A class, objective or "mean", after its recipe if there are several."""
        return name if len(self.classes) == 1 else f"{recipe} / {name}"

    def of(self, recipe: str, objective: str) -> list[Sequence[RunResult]]:
        """The results of a recipe and objective, a sequence for each class."""
        return [group for key, group in self.runs.items() if (key[0], key[2]) == (recipe, objective)]


def has_figures(result: RunResult) -> bool:
    """Whether the model could be measured: the scores of one that diverged may not be finite."""
    return math.isfinite(result.metrics["auroc"].value)


def diverged_note(results: Iterable[RunResult]) -> str:
    """How many models diverged, and how many of them have no figures; empty if none did."""
    diverged = [result for result in results if result.diverged_at_epoch is not None or not has_figures(result)]
    if not diverged:
        return ""
    first = diverged[0]
    lost = sum(not has_figures(result) for result in diverged)
    return (
        f"{len(diverged):,} model{'s' * (len(diverged) > 1)} diverged and stayed as they were then, such as "
        f"{first.recipe}, {first.class_name}, {first.objective}, seed {first.seed}; "
        f"{lost:,} of them could not be measured and are left out."
    )


def group_runs(results: Iterable[RunResult]) -> Groups:
    """The results that have figures, by what is averaged."""
    runs: dict[tuple[str, str, str], list[RunResult]] = {}
    for result in filter(has_figures, results):
        runs.setdefault((result.recipe, result.class_name, result.objective), []).append(result)
    return Groups({key: sorted(group, key=lambda result: result.seed) for key, group in runs.items()})


def distinct(items: Iterable[Item]) -> list[Item]:
    """Each item once, in the order of first appearance."""
    return list(dict.fromkeys(items))


def metric_over_seeds(group: Sequence[RunResult], metric: str) -> Statistic:
    """A metric over the runs of a group."""
    return _statistic([result.metrics[metric].value for result in group])


def _statistic(values: Sequence[float]) -> Statistic:
    mean, low, high = over_seeds(values)
    return Statistic(mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, low, high)


def metric_over_classes(groups: Sequence[Sequence[RunResult]], metric: str) -> ClassMean:
    """A metric over groups that differ in their class."""
    values = [[result.metrics[metric].value for result in group] for group in groups]
    class_means = [float(np.mean(seeds)) for seeds in values]
    same_seeds = len({tuple(result.seed for result in group) for group in groups}) == 1
    over_seeds = _statistic(np.mean(values, axis=0).tolist() if same_seeds else [float(np.mean(class_means))])
    # Over n, not n − 1: so are the paper's mean rows (Table 5, DSAD: 94.5 ± 3.30).
    return ClassMean(len(groups), over_seeds, float(np.std(class_means)))


def class_means(groups: Groups, recipe: str, metric: str) -> dict[str, ClassMean]:
    """By objective, for those that have every class of the recipe: means over different classes do not compare."""
    found = {objective: groups.of(recipe, objective) for objective in groups.objectives}
    classes = len(groups.classes[recipe])
    return {name: metric_over_classes(each, metric) for name, each in found.items() if len(each) == classes}


def tables(groups: Groups) -> list[Table]:
    """Classes × objectives, a table for each metric; for a single class metrics × objectives, in one."""
    if not groups.runs:
        return []
    if len(groups.classes) == 1:
        ((recipe, names),) = groups.classes.items()
        if len(names) == 1:
            rows = [_row(TITLES[metric], _line(groups, recipe, names[0], metric), metric) for metric in METRICS]
            title, note = (
                f"{recipe}: {names[0]} against the rest, in %",
                f"{_seeds_note(groups)} Of the FPR, lower is better.",
            )
            return [Table(title, ("metric", *groups.objectives), tuple(rows), note)]
    return [_class_table(groups, metric) for metric in METRICS]


def _title(metric: str) -> str:
    return f"{TITLES[metric]} in %{', lower is better' if metric in LOWER_IS_BETTER else ''}"


def _class_table(groups: Groups, metric: str) -> Table:
    """A row for each class and, after the classes of a recipe, their mean."""
    rows, notes = [], [_seeds_note(groups)] if metric == METRICS[0] else []
    for recipe, names in groups.classes.items():
        rows += [_row(groups.label(recipe, name), _line(groups, recipe, name, metric), metric) for name in names]
        if len(names) > 1:
            means, label = class_means(groups, recipe, metric), groups.label(recipe, "mean")
            statistics = [means[name].over_seeds if name in means else None for name in groups.objectives]
            rows.append(_row(label, statistics, metric, is_mean=True))
            spreads = ", ".join(f"{name} {percent(mean.spread, 2)}" for name, mean in means.items())
            notes.append(f"Row “{label}”: over classes{_mean_note(means)}.")
            notes.append(f"Spread over classes, the ± of the paper's mean rows: {spreads or '–'}.")
    return Table(_title(metric), ("class", *groups.objectives), tuple(rows), " ".join(notes))


def grid_table(groups: Groups, experiment: str) -> Table:
    """AUROC of the points of a grid × objectives, each over the classes that the point has."""
    rows = []
    for recipe in groups.classes:
        of, _, label = recipe.partition("/")
        if of == experiment:
            means = class_means(groups, recipe, "auroc")
            statistics = [means[name].over_seeds if name in means else None for name in groups.objectives]
            rows.append(_row(label, statistics, "auroc"))
    title = f"{experiment}: {_title('auroc')}, mean over classes"
    return Table(title, ("point", *groups.objectives), tuple(rows), "± and interval: of the seeds' class means.")


def _mean_note(means: Mapping[str, ClassMean]) -> str:
    has_interval = any(not math.isnan(mean.over_seeds.std) for mean in means.values())
    return ", ± and interval of the seeds' class means" if has_interval else ""


def _seeds_note(groups: Groups) -> str:
    sizes = {len(group) for group in groups.runs.values()}
    parts = ["One seed: [95 % bootstrap interval over test images]."] if 1 in sizes else []
    if sizes != {1}:
        parts.append("Several seeds: mean ± standard deviation over seeds [Student's 95 % interval of the mean].")
    return " ".join(parts)


def _line(groups: Groups, recipe: str, class_name: str, metric: str) -> list[Statistic | None]:
    """For each objective the figures over seeds, or those of a single run with its own interval."""
    found: list[Statistic | None] = []
    for objective in groups.objectives:
        group = groups.runs.get((recipe, class_name, objective), ())
        if len(group) == 1:
            value, low, high = group[0].metrics[metric]
            found.append(Statistic(value, math.nan, low, high))
        else:
            found.append(metric_over_seeds(group, metric) if group else None)
    return found


def _row(label: str, statistics: Sequence[Statistic | None], metric: str, is_mean: bool = False) -> Row:
    """The cells in %; set off is every column that shows the best figure, if there are two to compare."""
    shown = {column: percent(found.mean) for column, found in enumerate(statistics) if found is not None}
    best = (min if metric in LOWER_IS_BETTER else max)(shown.values(), key=float, default="")
    columns = frozenset(column for column, figure in shown.items() if figure == best and len(shown) > 1)
    return Row(label, tuple(NO_CELL if found is None else _cell(found) for found in statistics), columns, is_mean)


def _cell(found: Statistic) -> Cell:
    std = "" if math.isnan(found.std) else f" ± {percent(found.std, 2)}"
    interval = "" if math.isnan(found.low) else f"[{percent(found.low)}, {percent(found.high)}]"
    return Cell(percent(found.mean) + std, interval)


def cost_table(results: Iterable[RunResult]) -> Table:
    """What was spent on each objective of an experiment, and what one of its runs took, as medians over them."""
    gathered: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        gathered.setdefault((result.recipe.partition("/")[0], result.objective), []).append(result)
    phases = distinct(phase for group in gathered.values() for result in group for phase in result.seconds)
    several = len({experiment for experiment, _ in gathered}) > 1
    rows = []
    for (experiment, objective), group in gathered.items():
        figures = [
            *_spent(group),
            *(f"{np.median([result.seconds.get(phase, 0) for result in group]):,.1f}" for phase in phases),
            f"{np.median([result.images_per_s for result in group]):,.0f}",
            percent(float(np.median([result.stall_share for result in group]))),
            ", ".join(distinct(result.verdict.partition(":")[0] or "–" for result in group)),
            ", ".join(map(str, distinct(result.group_size for result in group))),
            "; ".join(distinct(map(_execution, group))),
        ]
        rows.append(Row(f"{experiment} / {objective}" if several else objective, tuple(map(Cell, figures))))
    if len(gathered) > 1:
        spent = _spent([result for group in gathered.values() for result in group])
        rows.append(Row("all", tuple(Cell(figure) for figure in (*spent, *[""] * (len(phases) + 5))), is_mean=True))
    header = (
        "objective",
        "runs",
        "images, millions",
        "hours",
        *(f"{phase}, s" for phase in phases),
        "images/s",
        "waiting, %",
        "verdict",
        "trained at once",
        "precision",
    )
    note = (
        "Images and hours in all; from there on, medians over runs. Objectives that are trained at once share their "
        "batches: each run shows the time of them all, of which hours count its own share."
    )
    return Table("Cost", header, tuple(rows), note)


def _execution(result: RunResult) -> str:
    """How steps were computed; channels_last, as nearly all are, is not told."""
    layout = "" if result.memory_format == "channels_last" else result.memory_format
    return ", ".join(filter(None, (result.precision, "compiled" if result.compiled else "", layout)))


def _spent(group: Sequence[RunResult]) -> tuple[str, str, str]:
    """Runs, millions of images that they were trained on, hours."""
    images = sum(result.images_per_s * result.seconds.get("train", 0) for result in group)
    return f"{len(group):,}", f"{images / 1e6:,.1f}", f"{sum(map(shared_seconds, group)) / 3600:,.2f}"


def shared_seconds(result: RunResult) -> float:
    """The time that a run took, its own share of what the objectives of its group took together."""
    return sum(result.seconds.values()) / result.group_size


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in %, without the sign."""
    return f"{100 * fraction:.{digits}f}"

"""Whether one objective is better than another: differences of the runs that share class and seed.

Owns the tests. The runs of a pair saw the same nominal images, OE images and batches. A pair of objectives is told by
its mean difference with Student's interval over seeds (of each the mean over classes), by the share of pairs that the
first wins with Wilson's interval, and by two p-values of Wilcoxon's signed-rank test, corrected after Holm over all
tests of an experiment: over class and seed, and over the classes' means, as the seeds of a class are not independent.
Use: `for table in paired_tables(measured(results)): ...`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from fastad.measured import Measured, Values
from fastad.run import natural
from fastad.tables import Cell, Row, Table, distinct


class Paired(NamedTuple):
    """Objective `a` against `b` at a point of an experiment, in percentage points of AUROC; NaN where there is none.

    `low`, `high`: of `mean`. `won`: the share of pairs in which a is ahead, ties half, with its interval. `p_runs` and
    `p_classes` are two-sided and not yet corrected.
    """

    label: str
    a: str
    b: str
    pairs: int
    mean: float
    low: float
    high: float
    won: float
    won_low: float
    won_high: float
    p_runs: float
    p_classes: float


def paired(label: str, a: str, b: str, values_a: Values, values_b: Values) -> Paired | None:
    """The comparison over all classes and seeds that both have; None if there are fewer than two."""
    by_class = {
        name: {seed: values_a[name][seed] - value for seed, value in seeds.items() if seed in values_a.get(name, {})}
        for name, seeds in values_b.items()
    }
    by_class = {name: seeds for name, seeds in by_class.items() if seeds}
    differences = np.array([value for seeds in by_class.values() for value in seeds.values()])
    if len(differences) < 2:
        return None
    common = set.intersection(*(set(seeds) for seeds in by_class.values()))
    by_seed = [float(np.mean([seeds[seed] for seeds in by_class.values()])) for seed in sorted(common)]
    means = np.array([np.mean(list(seeds.values())) for seeds in by_class.values()])
    won = float(np.mean((differences > 0) + (differences == 0) / 2))
    mean, low, high = _students(by_seed) if len(by_seed) > 1 else (float(differences.mean()), math.nan, math.nan)
    return Paired(
        *(label, a, b, len(differences), mean, low, high),
        *(won, *_wilsons(won, len(differences)), _signed_rank(differences), _signed_rank(means)),
    )


def _students(values: Sequence[float]) -> tuple[float, float, float]:
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def _wilsons(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = float(stats.norm.ppf(0.975))
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def _signed_rank(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test, two-sided; 1 where all are equal, NaN for a single one."""
    if len(differences) < 2:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays, and is not counted."""
    corrected, highest = list(p_values), 0.0
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def comparisons(found: Measured, experiment: str) -> list[Paired]:
    """Every pair of objectives at every point of an experiment, p-values corrected."""
    at_points: dict[str, dict[str, Values]] = {}
    for place, values in found.items():
        if place.experiment == experiment:
            at_points.setdefault(place.label, {})[place.objective] = values
    pairs = list(_pairs(at_points))
    corrected = (holm([pair.p_runs for pair in pairs]), holm([pair.p_classes for pair in pairs]))
    return [pair._replace(p_runs=runs, p_classes=each) for pair, runs, each in zip(pairs, *corrected, strict=True)]


def _pairs(at_points: Mapping[str, Mapping[str, Values]]) -> Iterator[Paired]:
    for label in sorted(at_points, key=natural):
        for a, b in itertools.combinations(at_points[label], 2):
            if pair := paired(label, a, b, at_points[label][a], at_points[label][b]):
                yield pair


SIGNIFICANT = 0.05

READING = (
    "Over the runs that share class and seed. Difference: mean AUROC of the first less the second, in percentage "
    "points, with Student's 95 % interval over seeds. Won: share of pairs in which the first is ahead, with Wilson's "
    "95 % interval. p: Wilcoxon's signed-rank test, two-sided, corrected after Holm over the table; over pairs, and "
    "over the classes' means, which is cautious: a class's seeds are not independent. Set off: p over pairs below 0.05."
)


def paired_tables(found: Measured) -> list[Table]:
    """A table for each experiment in which objectives can be compared, to be read as `READING` says."""
    experiments = distinct(place.experiment for place in found)
    return [_table(name, pairs) for name in experiments if (pairs := comparisons(found, name))]


def _table(experiment: str, pairs: Sequence[Paired]) -> Table:
    header = ("objectives", "pairs", "difference", "won, %", "p, pairs", "p, classes")
    return Table(experiment, header, tuple(_rows(pairs)), "")


def _rows(pairs: Iterable[Paired]) -> Iterator[Row]:
    for pair in pairs:
        interval = "" if math.isnan(pair.low) else f"[{pair.low:+.2f}, {pair.high:+.2f}]".replace("-", "−")
        yield Row(
            f"{pair.label}: {pair.a} – {pair.b}" if pair.label else f"{pair.a} – {pair.b}",
            (
                Cell(f"{pair.pairs:,}"),
                Cell(f"{pair.mean:+.2f}".replace("-", "−"), interval),
                Cell(f"{100 * pair.won:.0f}", f"[{100 * pair.won_low:.0f}, {100 * pair.won_high:.0f}]"),
                Cell(_p(pair.p_runs)),
                Cell(_p(pair.p_classes)),
            ),
            best=frozenset({1}) if pair.p_runs < SIGNIFICANT else frozenset(),
        )


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

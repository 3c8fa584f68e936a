"""Our figures beside the published ones: differences, their intervals, and which of them noise does not explain.

Owns the test. A difference is told with Student's interval of two means from the seeds of both sides, simultaneous over
the cells of a table (Bonferroni). Their variance is pooled: that both are the same experiment is what is tested. It
counts as a disagreement where the interval lies wholly beyond `REPEAT`, by which the paper's own two figures of one
experiment differ.
Use: `difference(printed, seed_std, ours, comparisons=4)`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from fastad.published import SEEDS, Printed

# HSC on CIFAR-10 is 95.9 in Table 1 and 96.1 in Table 3: the same experiment, run twice. It includes rounding.
REPEAT = 0.2
LEVEL = 0.95


class Difference(NamedTuple):
    """Ours − published in percentage points with its interval, NaN where neither side has a spread."""

    value: float
    low: float
    high: float

    @property
    def disagrees(self) -> bool:
        """Whether the whole interval lies beyond what a repeat may differ by."""
        return self.low > REPEAT or self.high < -REPEAT


def difference(printed: Printed, seed_std: float, ours: Sequence[float], comparisons: int) -> Difference:
    """Our mean over seeds (AUROC in %, one figure each) less the printed one.

    `seed_std`: the standard deviation over the seeds behind the printed mean, NaN where it is not known: then ours
    serves for both, as does the printed one for a single seed. `comparisons`: how many intervals hold at once.
    """
    value = float(np.mean(ours)) - printed.mean
    sides = [(seed_std, SEEDS), (float(np.std(ours, ddof=1)) if len(ours) > 1 else math.nan, len(ours))]
    known = [(std, count - 1) for std, count in sides if not math.isnan(std)]
    if not known:
        return Difference(value, math.nan, math.nan)
    freedom = sum(count for _, count in known)
    pooled = math.sqrt(sum(std**2 * count for std, count in known) / freedom)
    quantile = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, freedom))
    half = quantile * pooled * math.sqrt(1 / SEEDS + 1 / len(ours))
    return Difference(value, value - half, value + half)

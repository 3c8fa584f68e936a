"""Differences from published figures: the interval by hand, and how often noise alone is flagged."""

import math

import numpy as np
import pytest
from scipy import stats

from fastad.compare import REPEAT, Difference, difference
from fastad.published import Printed


def test_the_interval_is_students_with_pooled_variance() -> None:
    ours = (96.0, 96.4, 96.2)
    found = difference(Printed(95.9, math.nan), 0.3, ours, comparisons=1)
    pooled = math.sqrt((9 * 0.3**2 + 2 * 0.2**2) / 11)
    half = stats.t.ppf(0.975, 11) * pooled * math.sqrt(1 / 10 + 1 / 3)
    assert found == pytest.approx((0.3, 0.3 - half, 0.3 + half))


def test_a_single_seed_takes_the_published_spread_and_an_unpublished_one_takes_ours() -> None:
    one = difference(Printed(95.0, 0.2), 0.2, (95.5,), comparisons=1)
    assert one.high - one.value == pytest.approx(stats.t.ppf(0.975, 9) * 0.2 * math.sqrt(1.1))
    unpublished = difference(Printed(95.0, math.nan), math.nan, (95.0, 95.4), comparisons=1)
    assert unpublished.high - unpublished.value == pytest.approx(
        stats.t.ppf(0.975, 1) * 0.4 / math.sqrt(2) * math.sqrt(1 / 10 + 1 / 2)
    )


def test_without_any_spread_there_is_no_interval_and_no_verdict() -> None:
    found = difference(Printed(95.0, math.nan), math.nan, (80.0,), comparisons=1)
    assert found.value == -15 and math.isnan(found.low) and not found.disagrees


def test_a_difference_disagrees_where_its_whole_interval_is_beyond_a_repeats() -> None:
    assert Difference(0.5, REPEAT + 0.01, 0.8).disagrees
    assert not Difference(0.5, REPEAT - 0.01, 0.8).disagrees
    assert Difference(-0.5, -0.8, -REPEAT - 0.01).disagrees


def test_noise_alone_is_seldom_flagged_and_a_real_difference_is() -> None:
    rng = np.random.default_rng(0)
    cells, std = 40, 0.25

    def flagged(shift: float) -> float:
        tables = []
        for _ in range(50):
            printed, ours = rng.normal(90, std, (cells, 10)), rng.normal(90 + shift, std, (cells, 10))
            tables.append(
                [
                    difference(Printed(round(a.mean(), 1), math.nan), a.std(ddof=1), tuple(b), cells).disagrees
                    for a, b in zip(printed, ours, strict=True)
                ]
            )
        return float(np.mean(np.any(tables, axis=1) if not shift else tables))

    assert flagged(0) <= 0.05
    assert flagged(1.0) > 0.9

"""Objectives against each other: figures by hand, Holm's correction, and how often equals are told apart."""

import math

import numpy as np
import pytest
from scipy import stats

from fastad.measured import Measured, Place
from fastad.paired import comparisons, holm, paired, paired_tables

A = {"0": {1: 90.0, 2: 92.0}, "1": {1: 80.0, 2: 84.0}, "2": {1: 70.0}}
B = {"0": {1: 89.0, 2: 90.0}, "1": {1: 81.0, 2: 81.0}}


def test_differences_are_of_the_runs_that_share_class_and_seed() -> None:
    found = paired("", "hsc", "bce", A, B)
    assert found is not None
    # Differences 1, 2, −1, 3; of seed 1 on average 0, of seed 2 2.5.
    half = stats.t.ppf(0.975, 1) * np.std([0, 2.5], ddof=1) / math.sqrt(2)
    assert (found.pairs, found.mean, found.won) == (4, 1.25, 0.75)
    assert (found.low, found.high) == pytest.approx((1.25 - half, 1.25 + half))
    assert found.p_runs == pytest.approx(stats.wilcoxon([1, 2, -1, 3]).pvalue)
    assert found.p_classes == pytest.approx(stats.wilcoxon([1.5, 1]).pvalue)


def test_wilsons_interval_is_that_of_a_known_case() -> None:
    found = paired("", "a", "b", {"0": dict.fromkeys(range(10), 2.0)}, {"0": dict.fromkeys(range(10), 1.0)})
    assert found is not None
    assert (found.won_low, found.won_high) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_one_seed_has_no_interval_one_class_no_test_over_classes_and_one_pair_nothing() -> None:
    one_seed = paired("", "a", "b", {"0": {1: 1.0}, "1": {1: 2.0}}, {"0": {1: 0.0}, "1": {1: 0.0}})
    assert one_seed is not None and math.isnan(one_seed.low) and one_seed.mean == 1.5
    one_class = paired("", "a", "b", {"0": {1: 1.0, 2: 2.0}}, {"0": {1: 0.0, 2: 0.0}})
    assert one_class is not None and math.isnan(one_class.p_classes)
    assert paired("", "a", "b", {"0": {1: 1.0}}, {"0": {1: 0.0}}) is None
    assert paired("", "a", "b", {"0": {1: 1.0, 2: 2.0}}, {"1": {1: 0.0, 2: 0.0}}) is None


def test_equal_results_are_no_difference() -> None:
    found = paired("", "a", "b", A, A)
    assert found is not None and (found.mean, found.won, found.p_runs) == (0.0, 0.5, 1.0)


def test_holm_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([math.nan, 0.02])[1] == 0.02 and math.isnan(holm([math.nan, 0.02])[0])


def test_every_pair_of_every_point_is_compared_and_corrected_together() -> None:
    rng = np.random.default_rng(0)

    def values(level: float) -> dict[str, dict[int, float]]:
        return {str(name): {seed: level + rng.normal() for seed in range(1, 6)} for name in range(6)}

    found: Measured = {
        Place("sweep", f"oe_size={size}", objective): values(level)
        for size in (16, 2)
        for objective, level in (("hsc", 90.0), ("bce", 90.0 if size == 2 else 96.0))
    }
    few, many = comparisons(found, "sweep")
    assert (few.label, many.label) == ("oe_size=2", "oe_size=16")
    raw = paired(
        "", "hsc", "bce", found[Place("sweep", "oe_size=16", "hsc")], found[Place("sweep", "oe_size=16", "bce")]
    )
    assert raw is not None and many.p_runs == pytest.approx(2 * raw.p_runs)
    assert many.p_runs < 0.001 < 0.05 < few.p_runs
    (table,) = paired_tables(found)
    assert [bool(row.best) for row in table.rows] == [False, True]
    assert table.rows[1].label == "oe_size=16: hsc – bce" and table.rows[1].cells[1].figure.startswith("−")


def test_of_equal_objectives_a_twentieth_or_less_is_told_apart() -> None:
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(200):
        a, b = ({str(name): {1: rng.normal()} for name in range(12)} for _ in range(2))
        found = paired("", "a", "b", a, b)
        told += found is not None and found.p_runs < 0.05
    assert told <= 0.09 * 200

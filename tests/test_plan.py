"""Plans, as properties over random sizes and seeds (PROTOCOL, Batches)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastad.errors import FastadError
from fastad.plan import OE_ORDERS, Plan

NOMINAL = st.integers(2, 400)
OE = st.integers(1, 400)
BATCH = st.integers(2, 50)
SEED = st.integers(0, 2**32)

properties = settings(max_examples=60, deadline=None)


def make(nominal: int, oe: int | None, batch: int, seed: int, **fields: object) -> Plan:
    """A plan whose nominal rows are 1000, 1001, … and whose OE rows are 5000, 5001, …"""
    return Plan(
        nominal=np.arange(1000, 1000 + max(nominal, batch)),
        oe=None if oe is None else np.arange(5000, 5000 + oe),
        seed=seed,
        epochs=3,
        batch_nominal=batch,
        batch_oe=batch,
        **fields,  # type: ignore[arg-type]
    )


@properties
@given(NOMINAL, BATCH, SEED)
def test_nominal_rows_come_at_most_once_an_epoch_and_only_a_partial_batch_is_dropped(
    nominal: int, batch: int, seed: int
) -> None:
    plan = make(nominal, None, batch, seed)
    rows = plan.epoch(0).nominal
    assert rows.shape == (len(plan.nominal) // batch, batch)
    assert len(np.unique(rows)) == rows.size
    assert len(plan.nominal) - rows.size < batch
    assert np.isin(rows, plan.nominal).all()


@properties
@given(NOMINAL, OE, BATCH, SEED, st.sampled_from(sorted(OE_ORDERS)))
def test_batches_are_balanced_and_epochs_can_be_made_in_any_order(
    nominal: int, oe: int, batch: int, seed: int, order: str
) -> None:
    plan, again = make(nominal, oe, batch, seed, oe_order=order), make(nominal, oe, batch, seed, oe_order=order)
    epochs = [plan.epoch(epoch) for epoch in range(3)]
    for epoch in (2, 0, 1):
        for rows, other in zip(epochs[epoch], again.epoch(epoch), strict=True):
            np.testing.assert_array_equal(rows, other)
    for rows in epochs:
        assert rows.nominal.shape == rows.oe.shape
        assert np.isin(rows.oe, np.arange(5000, 5000 + oe)).all()


@properties
@given(NOMINAL, OE, BATCH, SEED)
def test_cyclic_oe_repeats_as_evenly_as_can_be(nominal: int, oe: int, batch: int, seed: int) -> None:
    rows = make(nominal, oe, batch, seed).epoch(1).oe
    counts = np.bincount(rows.ravel() - 5000, minlength=oe)
    assert counts.max() - counts.min() <= 1
    if oe <= batch and batch % oe == 0:
        for step in rows:
            assert (np.bincount(step - 5000, minlength=oe) == batch // oe).all()


@properties
@given(st.integers(100, 400), OE, BATCH, SEED)
def test_a_window_is_contiguous(nominal: int, oe: int, batch: int, seed: int) -> None:
    rows = make(nominal, oe, batch, seed, oe_order="window").epoch(0).oe.ravel() - 5000
    np.testing.assert_array_equal(np.diff(rows) % oe, np.full(len(rows) - 1, 1 % oe))


def test_with_replacement_repeats_by_chance() -> None:
    rows = make(400, 400, 50, 1, oe_order="with-replacement").epoch(0).oe
    assert 200 < len(np.unique(rows)) < 300  # 400 draws from 400 find 1 − 1/e of them


def test_epochs_and_seeds_differ_and_nominal_does_not_depend_on_oe() -> None:
    plan = make(300, 200, 20, 1)
    assert not np.array_equal(plan.epoch(0).nominal, plan.epoch(1).nominal)
    assert not np.array_equal(plan.epoch(0).oe, plan.epoch(1).oe)
    assert not np.array_equal(plan.epoch(0).nominal, make(300, 200, 20, 2).epoch(0).nominal)
    np.testing.assert_array_equal(plan.epoch(0).nominal, make(300, None, 20, 1).epoch(0).nominal)


def test_each_place_is_uniform_over_rows() -> None:
    """Mean of the first row drawn, over 400 seeds: within five standard errors of the middle."""
    first = [make(100, 100, 10, seed).epoch(0) for seed in range(400)]
    for drawn, low in ((0, 1000), (1, 5000)):
        mean = np.mean([rows[drawn][0, 0] - low for rows in first])
        assert abs(mean - 49.5) < 5 * np.sqrt((100**2 - 1) / 12 / 400)


def test_the_order_of_a_run_never_changes() -> None:
    """Golden: a change here would change every result."""
    rows = make(40, 7, 8, 1).epoch(2)
    assert rows.nominal[0].tolist() == [1017, 1031, 1000, 1034, 1036, 1013, 1004, 1028]
    assert rows.oe[0].tolist() == [5002, 5005, 5001, 5000, 5003, 5004, 5006, 5002]


def test_too_few_nominal_images_are_said() -> None:
    with pytest.raises(FastadError, match=r"20 nominal images do not fill one batch of 128: .*data\.batch_nominal=20"):
        Plan(np.arange(20), None, seed=1, epochs=1)


def test_an_unknown_order_is_said() -> None:
    with pytest.raises(FastadError, match="unknown OE order 'cycle': did you mean cyclic"):
        Plan(np.arange(200), None, seed=1, epochs=1, oe_order="cycle")

"""Plans, as properties over random sizes and seeds (PROTOCOL, Batches)."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastad.augment import AugmentSpec, draw
from fastad.errors import FastadError
from fastad.feed import planned
from fastad.plan import ORDERS, WHOLE_BATCH, Plan, Share, Stream
from fastad.recipe import OE_ORDERS

NOMINAL = st.integers(2, 400)
OE = st.integers(1, 400)
BATCH = st.integers(2, 50)
SEED = st.integers(0, 2**32)

properties = settings(max_examples=60, deadline=None)


def make(nominal: int, oe: int | None, batch: int, seed: int, order: str = "cyclic") -> Plan:
    """A plan whose nominal rows are 1000, 1001, … and whose OE rows are 5000, 5001, …"""
    streams = [Stream("nominal", np.arange(1000, 1000 + max(nominal, batch)), batch)]
    if oe is not None:
        streams.append(Stream("oe", np.arange(5000, 5000 + oe), batch, order, np.arange(oe) // 30))
    return Plan(tuple(streams), seed, epochs=3)


@properties
@given(NOMINAL, BATCH, SEED)
def test_nominal_rows_come_at_most_once_an_epoch_and_only_a_partial_batch_is_dropped(
    nominal: int, batch: int, seed: int
) -> None:
    plan = make(nominal, None, batch, seed)
    (rows,) = plan.epoch(0)
    assert rows.shape == (len(plan.nominal.rows) // batch, batch)
    assert len(np.unique(rows)) == rows.size
    assert len(plan.nominal.rows) - rows.size < batch
    assert np.isin(rows, plan.nominal.rows).all()


@properties
@given(NOMINAL, OE, BATCH, SEED, st.sampled_from(OE_ORDERS))
def test_batches_are_balanced_and_epochs_can_be_made_in_any_order(
    nominal: int, oe: int, batch: int, seed: int, order: str
) -> None:
    plan, again = make(nominal, oe, batch, seed, order), make(nominal, oe, batch, seed, order)
    epochs = [plan.epoch(epoch) for epoch in range(3)]
    for epoch in (2, 0, 1):
        for rows, other in zip(epochs[epoch], again.epoch(epoch), strict=True):
            np.testing.assert_array_equal(rows, other)
    for nominal_rows, oe_rows in epochs:
        assert nominal_rows.shape == oe_rows.shape
        assert np.isin(oe_rows, np.arange(5000, 5000 + oe)).all()


@properties
@given(NOMINAL, OE, BATCH, SEED)
def test_cyclic_oe_repeats_as_evenly_as_can_be(nominal: int, oe: int, batch: int, seed: int) -> None:
    _, rows = make(nominal, oe, batch, seed).epoch(1)
    counts = np.bincount(rows.ravel() - 5000, minlength=oe)
    assert counts.max() - counts.min() <= 1
    if oe <= batch and batch % oe == 0:
        for step in rows:
            assert (np.bincount(step - 5000, minlength=oe) == batch // oe).all()


@properties
@given(st.integers(100, 400), OE, BATCH, SEED)
def test_a_window_is_contiguous(nominal: int, oe: int, batch: int, seed: int) -> None:
    rows = make(nominal, oe, batch, seed, "window").epoch(0)[1].ravel() - 5000
    np.testing.assert_array_equal(np.diff(rows) % oe, np.full(len(rows) - 1, 1 % oe))


def test_with_replacement_repeats_by_chance() -> None:
    _, rows = make(400, 400, 50, 1, "with-replacement").epoch(0)
    assert 200 < len(np.unique(rows)) < 300  # 400 draws from 400 find 1 − 1/e of them


def test_epochs_and_seeds_differ_and_nominal_does_not_depend_on_oe() -> None:
    plan = make(300, 200, 20, 1)
    (nominal, oe), (next_nominal, next_oe) = plan.epoch(0), plan.epoch(1)
    assert not np.array_equal(nominal, next_nominal)
    assert not np.array_equal(oe, next_oe)
    assert not np.array_equal(nominal, make(300, 200, 20, 2).epoch(0)[0])
    np.testing.assert_array_equal(nominal, make(300, None, 20, 1).epoch(0)[0])


def test_each_place_is_uniform_over_rows() -> None:
    """Mean of the first row drawn, over 400 seeds: within five standard errors of the middle."""
    first = [make(100, 100, 10, seed).epoch(0) for seed in range(400)]
    for drawn, low in ((0, 1000), (1, 5000)):
        mean = np.mean([rows[drawn][0, 0] - low for rows in first])
        assert abs(mean - 49.5) < 5 * np.sqrt((100**2 - 1) / 12 / 400)


def test_the_order_of_a_run_never_changes() -> None:
    """Golden: a change here would change every result."""
    nominal, oe = make(40, 7, 8, 1).epoch(2)
    assert nominal[0].tolist() == [1017, 1031, 1000, 1034, 1036, 1013, 1004, 1028]
    assert oe[0].tolist() == [5002, 5005, 5001, 5000, 5003, 5004, 5006, 5002]


def test_too_few_nominal_images_are_said() -> None:
    with pytest.raises(FastadError, match=r"20 nominal images do not fill one batch of 128: .*data\.batch_nominal=20"):
        Plan((Stream("nominal", np.arange(20), 128),), seed=1, epochs=1)


def test_an_unknown_order_is_said() -> None:
    with pytest.raises(FastadError, match="unknown OE order 'cycle': did you mean cyclic"):
        Stream("oe", np.arange(200), 128, "cycle")


@properties
@given(NOMINAL, OE, st.sampled_from([8, 16, 24]), SEED, st.sampled_from([1, 2, 4, 8]), st.sampled_from(sorted(ORDERS)))
def test_ranks_partition_every_batch_and_each_is_half_nominal(
    nominal: int, oe: int, batch: int, seed: int, ranks: int, order: str
) -> None:
    plan = make(nominal, max(oe, nominal, batch) if order == "permutation" else oe, batch, seed, order)
    shares = [Share(rank, ranks) for rank in range(ranks)]
    for rows in plan.epoch(1):
        parts = [rows[:, share.columns(batch)] for share in shares]
        assert {part.shape[1] for part in parts} == {batch // ranks}
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), rows)


def test_batches_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(FastadError, match="3 processes cannot share 8 nominal images a batch equally"):
        make(40, 7, 8, 1).check_share(Share(0, 3))


@properties
@given(st.integers(1, 400), BATCH, SEED)
def test_shards_are_read_few_at_a_time_and_every_row_once_a_round(oe: int, batch: int, seed: int) -> None:
    stream = Stream("oe", np.arange(oe), batch, "shards", np.arange(oe) // 30)
    places = ORDERS["shards"](np.random.default_rng(seed), stream, 2 * oe)
    for start in (0, oe):
        assert sorted(places[start : start + oe].tolist()) == list(range(oe))
    for start in range(0, oe, 4 * 30):
        # As many places as four shards have lie in two such groups at most.
        assert len(np.unique(places[start : min(start + 4 * 30, oe)] // 30)) <= 8


def test_reading_shard_by_shard_mixes_classes_as_a_permutation_does() -> None:
    """Mean entropy of the classes in a batch, in bits, of a set whose shards hold a permutation as fastad's do."""
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.repeat(np.arange(100), 200))
    shard = np.arange(len(classes)) // 1_000

    def entropy(order: str) -> float:
        stream = Stream("oe", np.arange(len(classes)), 128, order, shard)
        batches = classes[ORDERS[order](rng, stream, 128 * 150)].reshape(150, 128)
        shares = [np.bincount(batch, minlength=100) / 128 for batch in batches]
        return float(np.mean([-(share[share > 0] * np.log2(share[share > 0])).sum() for share in shares]))

    assert entropy("shards") == pytest.approx(entropy("permutation"), abs=0.03)
    assert entropy("permutation") > 5.9


def test_fingerprints_tell_whatever_changes_a_batch_of_their_stream() -> None:
    def plan(seed: int = 1, epochs: int = 2, **oe: object) -> Plan:
        fields: dict[str, object] = {"rows": np.arange(100, 160), "batch": 8, "order": "cyclic"} | oe
        streams = (Stream("nominal", np.arange(40), 8), Stream("oe", **fields))  # type: ignore[arg-type]
        return Plan(streams, seed, epochs)

    nominal, oe = plan().fingerprints
    assert plan().fingerprints == (nominal, oe)
    others: list[dict[str, object]] = [
        {"rows": np.arange(100, 159)},
        {"rows": np.arange(101, 161)},
        {"batch": 16},
        {"order": "with-replacement"},
    ]
    for other in others:
        found = plan(**other).fingerprints  # type: ignore[arg-type]
        assert found[0] == nominal
        assert found[1] != oe
    for changed in (plan(seed=2), plan(epochs=3)):
        assert changed.fingerprints[0] != nominal
        assert changed.fingerprints[1] != oe


IMAGENET_22K = 14_200_000


def peak_bytes(plan: Plan, stream: Stream, start_step: int, steps: int) -> int:
    """What stepping through some of a plan takes at most, its rows not counted, nor the blocks of draws that are kept
    from one batch to the next: of those there are no more for a longer plan."""
    for step in range(start_step, start_step + steps):
        epoch, place = divmod(step, plan.steps_per_epoch)
        draw(AugmentSpec(), plan.seed, stream.name, epoch, place * stream.batch, stream.batch)
    tracemalloc.start()
    try:
        wanted = planned(plan, stream, AugmentSpec(), start_step=start_step, share=WHOLE_BATCH)
        assert sum(len(part.rows) for part in itertools.islice(wanted, steps)) == steps * stream.batch
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_of_a_plan_over_imagenet_22k_no_more_than_an_epoch_is_in_memory() -> None:
    """Of 150 epochs, 8.5 GB of rows: two at most where one follows the other, with the places of one; and where the
    nominal class sets the epoch, what that needs of the OE images and no more."""
    rows = np.arange(IMAGENET_22K, dtype=np.int32)
    all_of_it = Plan((Stream("nominal", rows, 128),), seed=1, epochs=150)
    assert peak_bytes(all_of_it, all_of_it.nominal, 75 * all_of_it.steps_per_epoch - 1, 2) < 5 * rows.nbytes
    one_class = Plan((Stream("nominal", rows[:1_300], 128), Stream("oe", rows, 128, "cyclic")), seed=1, epochs=150)
    assert peak_bytes(one_class, one_class.oe[0], 0, 3 * one_class.steps_per_epoch) < 2**20

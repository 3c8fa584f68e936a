"""The benchmark of sharding: it runs, and its ratios are what they say."""

import pytest

from fastad import bench_shard
from fastad.bench_shard import measure_shard, simulate


def test_a_small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SMALL_IMAGES": 300, "PHOTOS": 6, "PHOTOS_A_SHARD": 3}.items():
        monkeypatch.setattr(bench_shard, name, value)
    monkeypatch.setattr(bench_shard, "_simulate_apart", dict)
    found = measure_shard(workers=1, repeats=1)
    assert found["small_arrays_ratio"] == pytest.approx(
        found["small_arrays_per_s"] / found["plain_small_arrays_per_s"], abs=0.02
    )
    # Once the checks' time is taken off, little may be left of six images; the ratio is positive all the same.
    assert all(found[f"{name}_ratio"] > 0 for name in ("small_arrays", "pass_through", "resize"))


def test_the_simulation_selects_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SIMULATED_ROWS": 20_000, "SIMULATED_CLASSES": 4_000, "TEST_IMAGES": 100, "SUBSET": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_shard, name, value)
    found = simulate()
    assert found["rows_selected"] == pytest.approx(15_000, rel=0.05)
    assert found["peak_gib"] > 0

"""The benchmark of sharding: it runs, and its ratios are what they say."""

import pytest

from fastad import bench_shard
from fastad.bench_shard import measure_shard, simulate


def test_a_small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SMALL_IMAGES": 300, "PLAIN_SMALL_IMAGES": 60, "PHOTOS": 4, "PASSED": 6, "RESIZED": 6}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_shard, name, value)
    monkeypatch.setattr(bench_shard, "_simulate_apart", dict)
    found = measure_shard(workers=1, repeats=1)
    for ratio, plain in {
        "small_arrays": "plain_small_arrays",
        "pass_through": "plain_copy",
        "unchecked": "plain_copy",
        "unhashed": "plain_copy",
        "resize": "plain_resize",
    }.items():
        rates = found[f"{ratio}_images_per_s"] / found[f"{plain}_images_per_s"]
        assert found[f"{ratio}_ratio"] == pytest.approx(rates, abs=0.02, rel=0.02)
    assert all(found["us_an_image"].values())


def test_the_simulation_selects_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SIMULATED_ROWS": 20_000, "SIMULATED_CLASSES": 4_000, "TEST_IMAGES": 100, "SUBSET": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_shard, name, value)
    found = simulate()
    assert found["rows_selected"] == pytest.approx(15_000, rel=0.05)
    assert found["peak_gib"] > 0

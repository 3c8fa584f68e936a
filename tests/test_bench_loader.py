"""The benchmark of batches: both sides do the same job, and ratios are what they say."""

import pytest
import torch

from fastad import bench, bench_loader
from fastad.bench_loader import measure_cases


# Forked loader workers inherit this process's threads, which newer Pythons warn of.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "PHOTOGRAPHS": 24,
        "SMALL_IMAGES": 24,
        "BATCH": 4,
        "PLAIN_BATCH": 2,
        "WARM_UP_BATCHES": 1,
        "MEMORY_BATCHES": (2, 4),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(bench_loader, name, value)
    monkeypatch.setattr(bench, "SECONDS_A_MEASUREMENT", 0.05)
    found = measure_cases(torch.device("cpu"), repeats=1)
    for name in ("photographs", "decode", "small", "grey"):
        rates = found[f"{name}_images_per_s"] / found[f"plain_{name}_images_per_s"]
        assert found[f"{name}_ratio"] == pytest.approx(rates, rel=0.02, abs=0.02)
    rates = found["grey_images_per_s"] / found["grey_reader_images_per_s"]
    assert found["grey_to_reader_ratio"] == pytest.approx(rates, rel=0.02, abs=0.02)
    assert all(mib > 100 for mib in found["resident_mib"].values())

"""The benchmark of batches: both sides do the same job, and ratios are what they say."""

from dataclasses import replace

import pytest
import torch

from fastad import bench, bench_loader
from fastad.bench import plain_transforms
from fastad.bench_loader import measure_cases
from fastad.errors import FastadError

CPU = torch.device("cpu")


# Forked loader workers inherit this process's threads, which newer Pythons warn of.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "PHOTOGRAPHS": 24,
        "SMALL_IMAGES": 24,
        "BATCH": 4,
        "WARM_UP_BATCHES": 1,
        "MEMORY_BATCHES": (2, 4),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(bench_loader, name, value)
    monkeypatch.setattr(bench, "SECONDS_A_MEASUREMENT", 0.05)
    monkeypatch.setattr(
        bench_loader, "CASES", {name: replace(case, plain_batch=2) for name, case in bench_loader.CASES.items()}
    )
    found = measure_cases(CPU, repeats=1)
    for ratio, over, under in (
        *((f"{name}_ratio", name, f"plain_{name}") for name in ("photographs", "decode", "small", "grey")),
        ("photographs_to_crop_first_ratio", "photographs", "plain_photographs_crop_first"),
        ("small_resident_to_dali_ratio", "small", "small_by_dali"),
        ("grey_resident_to_dali_ratio", "grey", "grey_by_dali"),
        ("grey_to_reader_ratio", "grey", "grey_reader"),
    ):
        rates = found[f"{over}_images_per_s"] / found[f"{under}_images_per_s"]
        assert found[ratio] == pytest.approx(rates, rel=0.02, abs=0.02)
    assert all(mib > 100 for mib in found["resident_mib"].values())


def test_an_unknown_case_names_the_known_ones() -> None:
    with pytest.raises(FastadError, match="photograph.*did you mean photographs"):
        measure_cases(CPU, repeats=1, names=["photograph"])


def test_the_plain_loaders_order_is_the_papers_or_crops_first() -> None:
    spec = bench_loader.CASES["photographs"].spec
    paper, crop_first = (
        [type(each).__name__ for each in plain_transforms(spec, 224, False, crop_first=first)]
        for first in (False, True)
    )
    rest = ["ToDtype", "GaussianNoise", "Normalize"]
    assert paper == ["ColorJitter", "RandomHorizontalFlip", "RandomCrop", *rest]
    assert crop_first == ["RandomCrop", "RandomHorizontalFlip", "ColorJitter", *rest]

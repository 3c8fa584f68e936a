"""Benchmarks: both sides run, and ratios are what they say."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from fastad import bench
from fastad.bench import measure_loader
from fastad.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS_A_MEASUREMENT", 0.05)
    monkeypatch.setattr(bench, "WARM_UP_BATCHES", 1)


# Forked loader workers inherit this process's threads, which newer Pythons warn of.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ratios_are_of_medians_measured_in_the_same_run(recipe: Recipe, home: Path) -> None:
    augment = replace(recipe.augment, flip_probability=0.5, crop_padding_px=2, oe_blur_sigma_px=1.0, mean=(0.5,))
    loader = measure_loader(replace(recipe, augment=augment), home, CPU, repeats=3)
    each = loader["each_images_per_s"]
    assert len(each["fastad"]) == len(each["plain"]) == loader["repeats"] == 3
    assert all(rate > 0 for rate in each["fastad"] + each["plain"])
    assert loader["fastad_images_per_s"] == pytest.approx(median(each["fastad"]), rel=1e-3)
    ratio = median(each["fastad"]) / median(each["plain"])
    assert loader["loader_ratio"] == pytest.approx(ratio, rel=0.05, abs=0.02)


def test_the_plain_batches_are_the_same_job(recipe: Recipe, home: Path) -> None:
    sets, plan = bench.sets_and_plan(recipe, home)
    images, target = next(bench.plain_batches(plan, sets, recipe, CPU))
    assert images.shape == (32, 1, 28, 28)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert target.tolist() == [0.0] * 16 + [1.0] * 16

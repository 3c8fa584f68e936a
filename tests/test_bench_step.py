"""The benchmark of steps: both sides train the same network, and figures are what they say."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from fastad import bench, bench_step
from fastad.bench_step import measure_networks, measure_step, plain_model
from fastad.errors import FastadError
from fastad.networks import build
from fastad.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS_A_MEASUREMENT", 0.05)
    monkeypatch.setattr(bench, "WARM_UP_BATCHES", 1)


def test_a_recipes_groups_against_their_plain_loops(recipe: Recipe, home: Path) -> None:
    found = measure_step(recipe, home, CPU, repeats=3)
    each = {name: median(values) for name, values in found["each_images_per_s"].items()}
    assert all(len(values) == 3 and min(values) > 0 for values in found["each_images_per_s"].values())
    assert found["mnist-lenet_group_of_2_images_per_s"] == pytest.approx(each["mnist-lenet_group_of_2"], rel=1e-3)
    one_after_another = 2 / (1 / each["mnist-lenet_plain_hsc"] + 1 / each["mnist-lenet_plain_bce"])
    assert found["plain_mnist-lenet_group_of_2_images_per_s"] == pytest.approx(one_after_another, rel=1e-3)
    ratio = each["mnist-lenet_group_of_2"] / one_after_another
    assert found["mnist-lenet_group_of_2_ratio"] == pytest.approx(ratio, rel=0.02, abs=0.02)
    step_s = 2 * 32 / each["mnist-lenet_group_of_2"]
    assert found["mnist-lenet_group_of_2_step_ms"] == pytest.approx(1e3 * step_s, rel=0.01)
    low, high = found["mnist-lenet_group_of_2_step_ms_range"]
    assert low <= found["mnist-lenet_group_of_2_step_ms"] <= high
    for size in (1, 2):
        name = f"mnist-lenet_group_of_{size}"
        assert 0 < found[f"{name}_mfu"] <= found[f"{name}_roofline_share"]
        assert found[f"{name}_memory_mib"] > 100
    assert "mnist-lenet_group_of_4_ratio" not in found


def test_own_images_need_no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "GROUPS", (1,))
    monkeypatch.setattr(
        bench_step, "cases", lambda device: [replace(case, count=16, batch=4) for case in _cases(device)[1:2]]
    )
    found = measure_networks(CPU, repeats=1, networks=["cifar-lenet"])
    assert found["cifar-lenet_group_of_1_ratio"] > 0
    assert (found["cifar-lenet_batch_size"], found["objectives"]) == (8, ["hsc"])
    with pytest.raises(FastadError, match="unknown network 'lenet'"):
        measure_networks(CPU, repeats=1, networks=["lenet"])


_cases = bench_step.cases


def test_the_plain_network_is_the_same_in_the_authors_order() -> None:
    ours, theirs = build("mnist-lenet", (28, 28, 1), 1, seed=1), plain_model(build("mnist-lenet", (28, 28, 1), 1, 1))
    kinds = [type(module) for module in theirs.body]  # type: ignore[union-attr]
    assert kinds[2:4] == [nn.LeakyReLU, nn.MaxPool2d]
    assert kinds[6:8] == [nn.LeakyReLU, nn.MaxPool2d]
    assert all(parameter.is_contiguous() for parameter in theirs.parameters())
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)

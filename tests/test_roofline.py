"""Floors of a step: counted as the documentation says, measured rates positive."""

import pytest
import torch

from fastad import roofline
from fastad.networks import build
from fastad.roofline import Roof, floor_s, flops, least_bytes, measured_roof


def test_arithmetic_of_the_mnist_lenet() -> None:
    """Twice the multiplications; forward, and backward twice, but for the images, which need no gradient."""
    model = build("mnist-lenet", (28, 28, 1), None, seed=1)
    first = 2 * 28 * 28 * 16 * 25
    others = 2 * (14 * 14 * 32 * 16 * 25 + 1568 * 64 + 64 * 32)
    assert flops(model, torch.rand(4, 1, 28, 28)) == 4 * (2 * first + 3 * others)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bytes_of_the_mnist_lenet() -> None:
    model = build("mnist-lenet", (28, 28, 1), None, seed=1)
    images, one, other = 28 * 28, 28 * 28 * 16, 14 * 14 * 32
    pooled = 14 * 14 * 16
    layers = 2 * (images + one) + 3 * (pooled + other) + 3 * (1568 + 64) + 3 * (64 + 32)
    norms = 8 * (one + other + 64)
    assert least_bytes(model, torch.rand(4, 1, 28, 28)) == 4 * 4 * (layers + norms) + 28 * 115_968
    model.autocast_dtype = torch.bfloat16
    assert least_bytes(model, torch.rand(4, 1, 28, 28)) == 4 * 2 * (layers + norms) + 28 * 115_968


def test_the_slower_of_arithmetic_and_memory_counts() -> None:
    assert floor_s(100, 100, Roof(flops_per_s=50.0, bytes_per_s=100.0)) == 2
    assert floor_s(100, 100, Roof(flops_per_s=100.0, bytes_per_s=25.0)) == 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_roof_is_measured(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "CONVOLVED", {"cpu": 1})
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**16})
    found = measured_roof(torch.device("cpu"), precision)
    assert min(found) > 0

"""Networks: counts and initial statistics as PROTOCOL gives them, and the numbers of an independent construction."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastad.errors import FastadError
from fastad.networks import Detector, build, parameter_count

SHAPE = (28, 28, 1)


def layers(model: Detector, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_parameter_count_of_the_mnist_lenet() -> None:
    convolutions = (25 * 1 * 16 + 16) + (25 * 16 * 32 + 32)
    norms = 2 * 16 + 2 * 32 + 2 * 64
    linears = (1568 * 64 + 64) + (64 * 32 + 32)
    assert parameter_count(build("mnist-lenet", SHAPE, None, seed=1)) == convolutions + norms + linears == 115_968
    assert parameter_count(build("mnist-lenet", SHAPE, 1, seed=1)) == 115_968 + 33


def test_initial_statistics() -> None:
    """Standard deviations over 200 seeds within 1 % of √(2 / (fan in + fan out)) × gain; biases within ±1/√fan in."""
    gain = math.sqrt(2 / (1 + 0.01**2))
    weights: list[list[np.ndarray]] = [[], [], [], []]
    biases: list[list[np.ndarray]] = [[], [], [], []]
    for seed in range(200):
        model = build("mnist-lenet", SHAPE, 1, seed=seed)
        modules = [*layers(model.body, nn.Conv2d), *layers(model.body, nn.Linear)]  # type: ignore[arg-type]
        for place, module in enumerate(modules):
            weights[place].append(module.weight.detach().numpy().ravel())  # type: ignore[union-attr,operator]
            biases[place].append(module.bias.detach().numpy())  # type: ignore[union-attr,operator]
    fans = [(25, 25 * 16), (25 * 16, 25 * 32), (1568, 64), (64, 32)]
    for place, (fan_in, fan_out) in enumerate(fans):
        values = np.concatenate(weights[place])
        expected = (1 if place == 3 else gain) * math.sqrt(2 / (fan_in + fan_out))
        assert values.std() == pytest.approx(expected, rel=0.01)
        assert abs(values.mean()) < 5 * expected / math.sqrt(values.size)
        bound, bias = 1 / math.sqrt(fan_in), np.concatenate(biases[place])
        assert np.abs(bias).max() <= bound
        assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for norm in layers(model, nn.BatchNorm2d) + layers(model, nn.BatchNorm1d):
        assert (norm.eps, norm.momentum) == (1e-4, 0.1)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))


def test_outputs_equal_an_independent_construction() -> None:
    model = build("mnist-lenet", SHAPE, 1, seed=3)
    p = {name: value.contiguous() for name, value in model.state_dict().items()}
    x = torch.rand(32, 1, 28, 28)

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-4).sqrt()
        return F.leaky_relu(x * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape), 0.01)

    y = F.max_pool2d(normalised(F.conv2d(x, p["body.0.weight"], p["body.0.bias"], padding=2), "body.1"), 2)
    y = F.max_pool2d(normalised(F.conv2d(y, p["body.4.weight"], p["body.4.bias"], padding=2), "body.5"), 2)
    y = normalised(y.reshape(32, -1) @ p["body.9.weight"].T + p["body.9.bias"], "body.10")
    y = y @ p["body.12.weight"].T + p["body.12.bias"]
    y = y @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), y, atol=1e-5, rtol=1e-4)


def test_a_seed_gives_the_same_body_under_every_head_and_leaves_global_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, other = build("mnist-lenet", SHAPE, None, seed=1), build("mnist-lenet", SHAPE, 1, seed=1)
    assert torch.equal(torch.rand(3), expected)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    weight = build("mnist-lenet", SHAPE, None, seed=2).state_dict()["body.0.weight"]
    assert not torch.equal(weight, one.state_dict()["body.0.weight"])


def test_other_images_and_unknown_networks_are_said() -> None:
    with pytest.raises(FastadError, match="mnist-lenet takes images of 28×28×1, found 32×32×3"):
        build("mnist-lenet", (32, 32, 3), None, seed=1)
    with pytest.raises(FastadError, match="unknown network 'lenet': did you mean mnist-lenet"):
        build("lenet", SHAPE, None, seed=1)

"""torchvision's networks: theirs in everything but the last layer, exact to repeat, and clear about wrong weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from fastad.errors import FastadError
from fastad.networks import build, parameter_count
from fastad.recipe import load

SHAPE = (64, 64, 3)


def theirs(name: str) -> nn.Module:
    """torchvision's own network with fresh weights and its 1,000 classes."""
    auxiliary: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **auxiliary)
    return model


@pytest.mark.parametrize(
    ("name", "last", "width_in"),
    [
        ("resnet18", "fc", 512),
        ("densenet121", "classifier", 1024),
        ("efficientnet_b0", "classifier.1", 1280),
        ("googlenet", "fc", 1024),
    ],
)
def test_with_weights_from_a_file_the_last_layer_sees_what_torchvisions_does(
    name: str, last: str, width_in: int, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    original, path = theirs(name), tmp_path / "weights.pt"
    torch.save(original.state_dict(), path)
    model = build(f"torchvision:{name}", SHAPE, 1, seed=1, weights=str(path))
    seen = []
    for network in (original, model.body):
        network.get_submodule(last).register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
        network.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(*seen)
    assert seen[0].shape == (2, width_in)
    auxiliary = sum(p.numel() for key, p in original.named_parameters() if key.startswith("aux"))
    fewer = (width_in + 1) * (1000 - 256)
    assert parameter_count(model.body) == parameter_count(original) - auxiliary - fewer
    drawn = build(f"torchvision:{name}", SHAPE, 1, seed=1)
    assert torch.equal(model.body.get_parameter(f"{last}.weight"), drawn.body.get_parameter(f"{last}.weight"))


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    original, path = theirs("densenet121"), tmp_path / "weights.pt"
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in original.state_dict().items()
    }
    assert old.keys() != original.state_dict().keys()
    torch.save(old, path)
    model = build("torchvision:densenet121", SHAPE, None, seed=1, weights=str(path))
    name = "features.denseblock2.denselayer3.conv2.weight"
    assert torch.equal(model.body.get_parameter(name), original.get_parameter(name))


@pytest.mark.parametrize("name", ["efficientnet_b0", "mnasnet0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_the_same_batch_gives_the_same_numbers_in_training(name: str) -> None:
    """They have dropout or stochastic depth, which would draw from PyTorch's global state."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    one, other = (build(f"torchvision:{name}", SHAPE, None, seed=2).train()(images) for _ in range(2))
    assert one.shape == (4, 256)
    assert torch.equal(one, other)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path, other = tmp_path / "weights.pt", theirs("resnet34").state_dict()

    def saved(value: object) -> str:
        torch.save(value, path)
        return str(path)

    with pytest.raises(FastadError, match="unknown network 'torchvision:resnet51': did you mean torchvision:resnet50"):
        build("torchvision:resnet51", SHAPE, None, seed=1)
    with pytest.raises(FastadError, match="torchvision:resnet18 takes colour images, found 28×28×1: choose another"):
        build("torchvision:resnet18", (28, 28, 1), None, seed=1)
    with pytest.raises(FastadError, match=r"torchvision:alexnet does not take images of 32×32×3 \(.*\): resize or"):
        build("torchvision:alexnet", (32, 32, 3), None, seed=1)
    cases: list[tuple[Callable[[], str], str]] = [
        (lambda: str(tmp_path / "nothing.pt"), "no weights at .*nothing.pt: give the file of a state dict"),
        (lambda: saved(other), r"holds the weights of another network than torchvision:resnet18: 96 of 120 tensors .*"),
        (lambda: saved([1, 2]), "holds no state dict: save one"),
        (lambda: saved(theirs("resnet18")), "cannot be read as weights: save them with"),  # a pickled module
        (lambda: str(path.with_name("text.pt")), "cannot be read as weights"),
    ]
    path.with_name("text.pt").write_text("no weights")
    for weights, message in cases:
        with pytest.raises(FastadError, match=message):
            build("torchvision:resnet18", SHAPE, None, seed=1, weights=weights())


def test_recipes_name_them_and_their_weights() -> None:
    found = load("digits", ["network=torchvision:resnet50", "network_weights=/data/resnet50.pth"])
    assert (found.network, found.network_weights) == ("torchvision:resnet50", "/data/resnet50.pth")
    with pytest.raises(FastadError, match="unknown network 'torchvision:resnet': did you mean torchvision:resnet"):
        load("digits", ["network=torchvision:resnet"])
    with pytest.raises(FastadError, match="network_weights is for torchvision's networks, and mnist-lenet is none"):
        load("digits", ["network_weights=/data/x.pth"])

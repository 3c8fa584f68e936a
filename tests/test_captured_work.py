"""What a capture forbids, seen without a GPU: the work runs on tensors that have no numbers and only say that they are
on one. Reading a number, as `item` does, raises there, and every operation tells where its tensors are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastad import pixels
from fastad.augment import AugmentSpec, draw
from fastad.group import Workbench
from fastad.networks import Detector, build
from fastad.objectives import OBJECTIVES, find
from fastad.packed import Layout
from fastad.pipeline import Maker
from fastad.pixels import Finish
from fastad.recipe import Recipe
from fastad.resident import Gather, Held

GPU = torch.device("cuda", 0)
COUNT, BATCH = 10, 4

Maps = Mapping[str, Any] | None


class ElsewhereFound(TorchDispatchMode):
    """Remembers the operations that have a tensor on another device than the GPU, and counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Maps = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        if any(tensor.device != GPU for tensor in tensors):
            self.elsewhere.append(str(func))
        self.count += 1
        return found


def maker_of(spec: AugmentSpec, side: int, channels: int) -> Maker:
    """What makes batches on the GPU of 4 nominal and 4 OE images, after the first one's numbers."""
    first, size = side * side * np.arange(COUNT), np.full((COUNT, 2), side, dtype=np.int32)
    held = [
        Held(np.arange(COUNT), torch.empty(COUNT * side**2, channels, dtype=torch.uint8, device=GPU), first, size)
        for _ in range(2)
    ]
    gathers = [Gather(each, spec, drawn=True) for each in held]
    finish = Finish(spec, gathers[0].out_hw, channels, GPU, oe_from=BATCH)
    maker = Maker(gathers, finish, torch.empty(2 * BATCH, device=GPU))
    places, inside = zip(
        *(gather.numbers(np.arange(BATCH), draw(spec, 1, "oe", 0, 0, BATCH)) for gather in gathers), strict=True
    )
    bounds = None if inside[0] is None else np.concatenate(inside)
    numbers = {f"places {number}": each for number, each in enumerate(places)}
    maker.layout = Layout.of(numbers | finish.needed(draw(spec, 1, "oe", 0, 0, 2 * BATCH), bounds))
    return maker


def on_the_gpu(model: Detector) -> Detector:
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is not None:
                    moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
                    kept[name] = nn.Parameter(moved) if isinstance(value, nn.Parameter) else moved
    return model


SPECS = {
    "plain": AugmentSpec(),
    "normalised": AugmentSpec(crop_px=24, flip_probability=0.5, noise_std=0.01, mean=(0.5,), std=(0.2,)),
    "whole": AugmentSpec(
        crop_px=32,
        crop_padding_px=4,
        flip_probability=0.5,
        brightness=0.01,
        contrast=0.01,
        saturation=0.01,
        hue_turns=0.01,
        oe_blur_sigma_px=2,
        noise_std=0.001,
    ),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_made_of_nothing_that_is_on_the_host(
    channels: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_bank_on", lambda device, beyond: torch.empty(2**24 + beyond, device=device))
    with FakeTensorMode():
        maker = maker_of(SPECS[name], 32, channels)
        assert maker.layout is not None
        packed = torch.empty(maker.layout.size, dtype=torch.uint8, device=GPU)
        with ElsewhereFound() as found:
            images = maker(packed)
    assert images.device == GPU
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert found.count > 4
    assert not found.elsewhere


@pytest.mark.parametrize("network", ["mnist-lenet", "cifar-lenet", "resnet18-cbam"])
def test_losses_are_computed_of_nothing_that_is_on_the_host(network: str, recipe: Recipe) -> None:
    shape = (28, 28, 1) if network == "mnist-lenet" else (32, 32, 3)
    workbench = Workbench(recipe, shape, torch.device("cpu"))
    for name in (*OBJECTIVES, "hsc:l1", "hsc:l2"):
        objective = find(name)
        model = build(network, shape, objective.output_width, seed=1)
        with FakeTensorMode():
            loss = workbench._loss(on_the_gpu(model), objective, compiled=False)
            images = torch.empty(8, shape[2], *shape[:2], device=GPU).contiguous(memory_format=torch.channels_last)
            with ElsewhereFound() as found:
                mean, at_guard = loss(images, torch.empty(8, device=GPU))
        assert mean.device == at_guard.device == GPU
        assert found.count > 20
        assert not found.elsewhere, name


def test_what_a_capture_forbids_is_found() -> None:
    with FakeTensorMode():
        numbers = torch.empty(4, device=GPU)
        with ElsewhereFound() as found:
            numbers + torch.ones(4).to(GPU)
        assert found.elsewhere
        with pytest.raises(Exception, match="_local_scalar_dense"):
            numbers[0].item()

"""What a training step takes at least: by its arithmetic, and by the bytes that it moves.

Owns counting both, and measuring how fast a device is at either.
Use: `floor_s(flops(model, images), least_bytes(model, images), measured_roof(device, "float32"))`.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastad.networks import Detector

# Sides of square matrices, images that are convolved (28×28, 256 channels, by 3×3), and bytes that are copied: enough
# to take milliseconds, several times each.
MATRIX = {"cpu": 2_048, "cuda": 8_192}
CONVOLVED = {"cpu": 32, "cuda": 1_024}
COPIED = {"cpu": 2**28, "cuda": 2**31}
TIMES = 5


class Roof(NamedTuple):
    """What a device does at most: of multiplications and additions, and of bytes read and written."""

    flops_per_s: float
    bytes_per_s: float


def measured_roof(device: torch.device, precision: str) -> Roof:
    """The best of several matrix products and convolutions in that precision ("float32", "bfloat16"), and of copies.

    Convolutions, too: the library of matrix products leaves half of some processors unused, that of convolutions none.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side, count, size = (sizes[device.type] for sizes in (MATRIX, CONVOLVED, COPIED))
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    images, weight = (
        torch.ones(first, 256, place, place, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for first, place in ((count, 28), (256, 3))
    )
    source = torch.zeros(size, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)
    product_s = _best_s(lambda: matrix @ matrix, device)
    convolution_s = _best_s(lambda: F.conv2d(images, weight, padding=1), device)
    arithmetic = max(2 * side**3 / product_s, 2 * 9 * images.numel() * 256 / convolution_s)
    return Roof(arithmetic, 2 * size / _best_s(lambda: target.copy_(source), device))


def _best_s(work: Callable[[], Tensor], device: torch.device) -> float:
    seconds = []
    for _ in range(TIMES + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def flops(model: Detector, images: Tensor) -> int:
    """Multiplications and additions of a forward and a backward pass: those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counted:
        model(images).sum().backward()
    model.zero_grad()
    return counted.get_total_flops()


def least_bytes(model: Detector, images: Tensor) -> int:
    """What a step moves between memory and chip, if all that can be joined to what stands beside it is, and no cache
    holds an activation until it is needed again. Counted are

    - of a convolution or a fully connected layer, forward: input and output; backward: its output's gradient and input,
      for the weights' gradient, and, but for the first, its output's and input's gradients;
    - of a batch norm, forward: its input twice, since it must be known whole before it is normalised, and its output;
      backward: input and gradient twice for the same reason, and the input's gradient;
    - of a parameter: itself, its gradient and Adam's two averages read, and all but the gradient written, in float32.

    In the type that the body computes in.
    """
    size = (model.autocast_dtype or torch.float32).itemsize
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        taken, made = inputs[0].numel(), output.numel()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            moved += size * (2 * taken + made + 5 * taken)
        else:
            first = inputs[0] is images
            moved += size * (taken + made + made + taken + (0 if first else made + taken))

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return moved + 7 * 4 * sum(parameter.numel() for parameter in model.parameters())


def floor_s(arithmetic: int, moved: int, roof: Roof) -> float:
    """Seconds of a step that computes and moves at the same time, and so waits for the slower of both."""
    return max(arithmetic / roof.flops_per_s, moved / roof.bytes_per_s)

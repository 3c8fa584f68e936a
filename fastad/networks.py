"""The networks, as functions in one table; they know no data and no objective but the width of its output.

Owns architecture and initialisation (PROTOCOL, Networks). A model is a body, which may compute in bfloat16, and a head
for objectives that need one, which does not.
Use: `build("mnist-lenet", (28, 28, 1), output_width=1, seed=1)`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastad.errors import FastadError, unknown
from fastad.seeds import sub_seed

LEAKY_SLOPE = 0.01


class Detector(nn.Module):
    """images [B, C, H, W] → float32 [B, D]: the body's representation, or the head's output where there is a head."""

    def __init__(self, body: nn.Module, head: nn.Linear | None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.autocast_dtype: torch.dtype | None = None

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            z = self.body(images)
        z = z.float()
        return z if self.head is None else self.head(z)


class Network(NamedTuple):
    """How to make a body for images of a shape [H, W, C], its representation's width, and what it changes of
    PyTorch's default initialisation."""

    body: Callable[[tuple[int, int, int]], nn.Module]
    representation_width: int
    initialise: Callable[[nn.Module], None]


def mnist_lenet(shape_hwc: tuple[int, int, int]) -> nn.Module:
    """The LeNet of the paper's MNIST experiments (Appendix F): channels 16-32, fully connected 1568 → 64 → 32."""
    if shape_hwc != (28, 28, 1):
        raise FastadError(
            f"mnist-lenet takes images of 28×28×1, found {'×'.join(map(str, shape_hwc))}: choose another set"
        )
    return nn.Sequential(
        *_convolution(1, 16),
        *_convolution(16, 32),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.BatchNorm1d(64, eps=1e-4),
        nn.LeakyReLU(LEAKY_SLOPE),
        nn.Linear(64, 32),
    )


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, kernel_size=5, padding=2),
        nn.BatchNorm2d(channels_out, eps=1e-4),
        nn.LeakyReLU(LEAKY_SLOPE),
        nn.MaxPool2d(2),
    )


def _initialise_lenet(body: nn.Module) -> None:
    """Xavier-normal weights with leaky ReLU's gain, the last layer's with gain 1; biases stay PyTorch's default."""
    weighted = [module for module in body.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in weighted:
        nn.init.xavier_normal_(module.weight, nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE))
    nn.init.xavier_normal_(weighted[-1].weight)


NETWORKS = {"mnist-lenet": Network(mnist_lenet, 32, _initialise_lenet)}


def build(network: str, shape_hwc: tuple[int, int, int], output_width: int | None, seed: int) -> Detector:
    """A detector on the CPU, channels_last, with parameters drawn from `seed` alone.

    `output_width` None: the output is the representation; else a further linear layer of PyTorch's default
    initialisation stands on it. The body's parameters do not depend on `output_width`. Raises `FastadError` for an
    unknown network or images that it does not take.
    """
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    body, representation_width, initialise = NETWORKS[network]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sub_seed(seed, "initialise"))
        detector = Detector(body(shape_hwc), None)
        initialise(detector.body)
        if output_width is not None:
            detector.head = nn.Linear(representation_width, output_width)
    return detector.to(memory_format=torch.channels_last)


def parameter_count(model: nn.Module) -> int:
    """The number of trainable numbers."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)

"""The networks, as functions in one table; they know no data and no objective but the width of its output.

Owns the paper's architectures and their initialisation (PROTOCOL, Networks); torchvision's are `fastad.backbones`'.
A model is a body, which may compute in bfloat16, and a head for objectives that need one, which does not.
Use: `build("mnist-lenet", (28, 28, 1), output_width=1, seed=1)`.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastad.backbones import PREFIX, REPRESENTATION_WIDTH, check_backbone, load_weights, torchvision_body
from fastad.errors import FastadError, unknown
from fastad.seeds import sub_seed

LEAKY_SLOPE = 0.01

# As recipes name them; the first is the one that a detector has at first.
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Detector(nn.Module):
    """images [B, C, H, W] → float32 [B, D]: the body's representation, or the head's output where there is a head.

    It computes in the `memory_format` that `in_memory_format` has set; images come channels_last.
    """

    def __init__(self, body: nn.Module, head: nn.Linear | None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.autocast_dtype: torch.dtype | None = None
        self.memory_format = "channels_last"

    def forward(self, images: Tensor) -> Tensor:
        if self.memory_format == "contiguous":
            # As a view, so that strides are counted anew: images of one channel are in either format to PyTorch, and
            # their strides decide which one it computes in.
            images = images.flatten(1).view(images.shape)
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
    _check_shape("mnist-lenet", shape_hwc, (28, 28, 1))
    return _lenet((1, 16, 32), 32 * 7 * 7, 64, 32)


def cifar_lenet(shape_hwc: tuple[int, int, int]) -> nn.Module:
    """The LeNet of its CIFAR-10 experiments (Appendix F): channels 32-64-128, fully connected 2048 → 512 → 256."""
    _check_shape("cifar-lenet", shape_hwc, (32, 32, 3))
    return _lenet((3, 32, 64, 128), 128 * 4 * 4, 512, 256)


def _check_shape(name: str, found: tuple[int, int, int], taken: tuple[int, int, int]) -> None:
    if found != taken:
        takes, has = ("×".join(map(str, shape)) for shape in (taken, found))
        raise FastadError(f"{name} takes images of {takes}, found {has}: choose another set or network")


def _lenet(channels: tuple[int, ...], flat: int, hidden: int, width: int) -> nn.Module:
    convolutions = itertools.chain.from_iterable(itertools.starmap(_convolution, itertools.pairwise(channels)))
    return nn.Sequential(
        *convolutions,
        nn.Flatten(),
        nn.Linear(flat, hidden),
        nn.BatchNorm1d(hidden, eps=1e-4),
        nn.LeakyReLU(LEAKY_SLOPE),
        nn.Linear(hidden, width),
    )


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    """Pooled before leaky ReLU, which is monotone: the same numbers, at a quarter of the places."""
    return (
        nn.Conv2d(channels_in, channels_out, kernel_size=5, padding=2),
        nn.BatchNorm2d(channels_out, eps=1e-4),
        nn.MaxPool2d(2),
        nn.LeakyReLU(LEAKY_SLOPE),
    )


def _initialise_lenet(body: nn.Module) -> None:
    """Xavier-normal weights with leaky ReLU's gain, the last layer's with gain 1; biases stay PyTorch's default."""
    weighted = [module for module in body.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in weighted:
        nn.init.xavier_normal_(module.weight, nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE))
    nn.init.xavier_normal_(weighted[-1].weight)


def resnet18_cbam(shape_hwc: tuple[int, int, int]) -> nn.Module:
    """The "WideResNet" of the paper's ImageNet experiments (Appendix F.2; Hendrycks et al. 2019b): ResNet-18 with CBAM
    (Woo et al. 2018) after each block's second batch norm, fully connected 512 → 256. Convolutions have no bias."""
    height, width, channels = shape_hwc
    if channels != 3 or min(height, width) < 32:
        raise FastadError(
            f"resnet18-cbam takes colour images of 32 px or more, found {height}×{width}×{channels}: choose another "
            "set or network"
        )
    blocks = [
        _Block(channels_in, channels_out, stride)
        for channels_in, channels_out, first_stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        for channels_in, stride in ((channels_in, first_stride), (channels_out, 1))
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        _MeanPool(),
        nn.Linear(512, 256),
    )


class _MeanPool(nn.Module):
    """[B, C, H, W] → [B, C]. As a mean, and below as amax: the compiler fuses these, and no pooling of such windows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Block(nn.Module):
    """ResNet's basic block (He et al. 2016) with CBAM."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.gates = nn.Sequential(_ChannelGate(channels_out), _SpatialGate())
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gates(self.convolutions(x)) + self.shortcut(x))


class _ChannelGate(nn.Module):
    """CBAM's gate of channels: one perceptron for their means and their maxima (Woo et al. 2018, equation 2)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.perceptron(x.mean((2, 3))) + self.perceptron(x.amax((2, 3)))
        return x * torch.sigmoid(gate)[:, :, None, None]


class _SpatialGate(nn.Module):
    """CBAM's gate of places: a convolution of the maximum and the mean over channels (Woo et al. 2018, equation 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        # Stacked behind the places: as channels, two maps would be copied into channels_last for the convolution.
        pooled = torch.stack((x.amax(1), x.mean(1)), dim=-1).permute(0, 3, 1, 2)
        return x * torch.sigmoid(self.norm(self.convolution(pooled)))


def _initialise_resnet(body: nn.Module) -> None:
    """Convolutions Kaiming-normal by fan-out, those of shortcuts PyTorch's default, as are the gates' perceptrons; the
    last layer Kaiming-normal by fan-in; biases 0, and the weight of the spatial gates' norms, which so begin half open.
    """
    shortcuts = {module for block in body.modules() if isinstance(block, _Block) for module in block.shortcut.modules()}
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module not in shortcuts:
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, _SpatialGate):
            nn.init.zeros_(module.norm.weight)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    last = [module for module in body.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.kaiming_normal_(last.weight)


def toy(shape_hwc: tuple[int, int, int]) -> nn.Module:
    """The network of the paper's Figure 1, for points of the plane, as images of one row and two columns: fully
    connected 2 → 256 → 128, each value of the representation a sigmoid less ½, between −½ and ½.

    The centre of a hypersphere is 0. At the sigmoid's own 0, which lies in the infinite, no region is compact: HSC then
    called as much of the far plane nominal as BCE did (README, Development).
    """
    _check_shape("toy", shape_hwc, (1, 2, 1))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(2, 256), nn.BatchNorm1d(256), nn.ELU(), nn.Linear(256, 128), _CentredSigmoid()
    )


class _CentredSigmoid(nn.Module):
    """A sigmoid less ½."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) - 0.5


NETWORKS = {
    "mnist-lenet": Network(mnist_lenet, 32, _initialise_lenet),
    "cifar-lenet": Network(cifar_lenet, 256, _initialise_lenet),
    "resnet18-cbam": Network(resnet18_cbam, 256, _initialise_resnet),
    "toy": Network(toy, 128, _initialise_lenet),
}


def find_network(name: str) -> Network:
    """The network of that name, or torchvision's for "torchvision:<name>"; else `FastadError`."""
    if name.startswith(PREFIX):
        check_backbone(name)
        return Network(partial(torchvision_body, name), REPRESENTATION_WIDTH, lambda body: None)
    if name not in NETWORKS:
        raise unknown("network", name, (*NETWORKS, f"{PREFIX}resnet50"))
    return NETWORKS[name]


def build(
    network: str,
    shape_hwc: tuple[int, int, int],
    output_width: int | None,
    seed: int,
    weights: str | None = None,
) -> Detector:
    """A detector on the CPU, channels_last, with parameters drawn from `seed` alone, or from the file `weights`, for
    torchvision's networks: then those of the body's last layer and of the head are drawn.

    `output_width` None: the output is the representation; else a further linear layer of PyTorch's default
    initialisation stands on it. The body's parameters do not depend on `output_width`. Raises `FastadError` for an
    unknown network, images that it does not take, or weights that are not its own.
    """
    body, representation_width, initialise = find_network(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sub_seed(seed, "initialise"))
        detector = Detector(body(shape_hwc), None)
        initialise(detector.body)
        if output_width is not None:
            detector.head = nn.Linear(representation_width, output_width)
    if weights is not None:
        load_weights(detector.body, network, Path(weights))
    return in_memory_format(detector, "channels_last")


def in_memory_format(detector: Detector, memory_format: str) -> Detector:
    """The same detector, its weights and what it makes of images in that format, one of `MEMORY_FORMATS`."""
    detector.memory_format = memory_format
    return detector.to(memory_format=MEMORY_FORMATS[memory_format])


def parameter_count(model: nn.Module) -> int:
    """The number of trainable numbers."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)

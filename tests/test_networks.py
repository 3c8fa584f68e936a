"""Networks: counts and initial statistics as PROTOCOL gives them, and the numbers of an independent construction."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastad.errors import FastadError
from fastad.networks import Detector, build, find_network, parameter_count

SHAPE = (28, 28, 1)


def layers(model: Detector, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_parameter_count_of_the_mnist_lenet() -> None:
    convolutions = (25 * 1 * 16 + 16) + (25 * 16 * 32 + 32)
    norms = 2 * 16 + 2 * 32 + 2 * 64
    linears = (1568 * 64 + 64) + (64 * 32 + 32)
    assert parameter_count(build("mnist-lenet", SHAPE, None, seed=1)) == convolutions + norms + linears == 115_968
    assert parameter_count(build("mnist-lenet", SHAPE, 1, seed=1)) == 115_968 + 33


@pytest.mark.parametrize(
    ("name", "shape_hwc", "fans", "seeds"),
    [
        ("mnist-lenet", SHAPE, [(25, 25 * 16), (25 * 16, 25 * 32), (1568, 64), (64, 32)], 200),
        (
            "cifar-lenet",
            (32, 32, 3),
            [(25 * 3, 25 * 32), (25 * 32, 25 * 64), (25 * 64, 25 * 128), (2048, 512), (512, 256)],
            20,
        ),
        ("toy", (1, 2, 1), [(2, 256), (256, 128)], 50),
    ],
)
def test_initial_statistics(
    name: str, shape_hwc: tuple[int, int, int], fans: list[tuple[int, int]], seeds: int
) -> None:
    """Standard deviations over the seeds within 1 % of √(2 / (fan in + fan out)) × gain; biases within ±1/√fan in."""
    gain = math.sqrt(2 / (1 + 0.01**2))
    weights: list[list[np.ndarray]] = [[] for _ in fans]
    biases: list[list[np.ndarray]] = [[] for _ in fans]
    for seed in range(seeds):
        model = build(name, shape_hwc, 1, seed=seed)
        modules = [*layers(model.body, nn.Conv2d), *layers(model.body, nn.Linear)]  # type: ignore[arg-type]
        for place, module in enumerate(modules):
            weights[place].append(module.weight.detach().numpy().ravel())  # type: ignore[union-attr,operator]
            biases[place].append(module.bias.detach().numpy())  # type: ignore[union-attr,operator]
    for place, (fan_in, fan_out) in enumerate(fans):
        values = np.concatenate(weights[place])
        expected = (1 if place == len(fans) - 1 else gain) * math.sqrt(2 / (fan_in + fan_out))
        assert values.std() == pytest.approx(expected, rel=0.01)
        assert abs(values.mean()) < 5 * expected / math.sqrt(values.size)
        bound, bias = 1 / math.sqrt(fan_in), np.concatenate(biases[place])
        assert np.abs(bias).max() <= bound
        assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for norm in layers(model, nn.BatchNorm2d) + layers(model, nn.BatchNorm1d):
        assert (norm.eps, norm.momentum) == (1e-5 if name == "toy" else 1e-4, 0.1)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))


Parameters = dict[str, torch.Tensor]


def normalised(x: torch.Tensor, p: Parameters, name: str, eps: float) -> torch.Tensor:
    """Batch norm of training, from its formula."""
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def plain_lenet(p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """PROTOCOL's LeNet of as many convolutions as there are parameters for."""
    place = 0
    while f"body.{place}.weight" in p:
        y = F.conv2d(x, p[f"body.{place}.weight"], p[f"body.{place}.bias"], padding=2)
        x = F.max_pool2d(F.leaky_relu(normalised(y, p, f"body.{place + 1}", 1e-4), 0.01), 2)
        place += 4
    place += 1
    x = x.reshape(len(x), -1) @ p[f"body.{place}.weight"].T + p[f"body.{place}.bias"]
    x = F.leaky_relu(normalised(x, p, f"body.{place + 1}", 1e-4), 0.01)
    return x @ p[f"body.{place + 3}.weight"].T + p[f"body.{place + 3}.bias"]


def plain_toy(p: Parameters, x: torch.Tensor) -> torch.Tensor:
    x = normalised(x.reshape(len(x), 2) @ p["body.1.weight"].T + p["body.1.bias"], p, "body.2", 1e-5)
    x = torch.where(x > 0, x, torch.exp(x) - 1)
    return 1 / (1 + torch.exp(-(x @ p["body.4.weight"].T + p["body.4.bias"]))) - 0.5


def plain_resnet(p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """ResNet-18 with CBAM after each block's second batch norm, with the pooling operators that CBAM's authors use."""
    x = F.relu(normalised(F.conv2d(x, p["body.0.weight"], stride=2, padding=3), p, "body.1", 1e-5))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for number in range(8):
        name, stride = f"body.{number + 4}", 2 if number in (2, 4, 6) else 1
        y = F.conv2d(x, p[f"{name}.convolutions.0.weight"], stride=stride, padding=1)
        y = F.relu(normalised(y, p, f"{name}.convolutions.1", 1e-5))
        y = F.conv2d(y, p[f"{name}.convolutions.3.weight"], padding=1)
        y = normalised(y, p, f"{name}.convolutions.4", 1e-5)

        def perceptron(pooled: torch.Tensor, name: str = f"{name}.gates.0.perceptron") -> torch.Tensor:
            hidden = F.relu(F.linear(pooled.flatten(1), p[f"{name}.0.weight"], p[f"{name}.0.bias"]))
            return F.linear(hidden, p[f"{name}.2.weight"], p[f"{name}.2.bias"])

        channel = perceptron(F.adaptive_avg_pool2d(y, 1)) + perceptron(F.adaptive_max_pool2d(y, 1))
        y = y * torch.sigmoid(channel).view(*channel.shape, 1, 1)
        place = torch.stack((y.max(dim=1).values, y.mean(dim=1)), dim=1)
        place = F.conv2d(place, p[f"{name}.gates.1.convolution.weight"], padding=3)
        y = y * torch.sigmoid(normalised(place, p, f"{name}.gates.1.norm", 1e-5))
        if f"{name}.shortcut.0.weight" in p:
            x = F.conv2d(x, p[f"{name}.shortcut.0.weight"], stride=stride)
            x = normalised(x, p, f"{name}.shortcut.1", 1e-5)
        x = F.relu(x + y)
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ p["body.13.weight"].T + p["body.13.bias"]


@pytest.mark.parametrize(
    ("name", "shape_hwc", "plain"),
    [
        ("mnist-lenet", SHAPE, plain_lenet),
        ("cifar-lenet", (32, 32, 3), plain_lenet),
        ("resnet18-cbam", (64, 64, 3), plain_resnet),
        ("toy", (1, 2, 1), plain_toy),
    ],
)
def test_outputs_equal_an_independent_construction(
    name: str, shape_hwc: tuple[int, int, int], plain: Callable[[Parameters, torch.Tensor], torch.Tensor]
) -> None:
    """Float32, sums in other orders: 1e-4 of the largest output. Norms and biases are drawn, as some begin at 0."""
    model = build(name, shape_hwc, 1, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5, generator=generator)
    p = {key: value.contiguous() for key, value in model.state_dict().items()}
    height, width, channels = shape_hwc
    x = torch.rand(16, channels, height, width, generator=generator)
    expected = plain(p, x) @ p["head.weight"].T + p["head.bias"]
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_parameter_count_of_the_toy_network() -> None:
    linears = (2 * 256 + 256) + (256 * 128 + 128)
    assert parameter_count(build("toy", (1, 2, 1), None, seed=1)) == linears + 2 * 256


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
    with pytest.raises(FastadError, match="mnist-lenet takes images of 28×28×1, found 32×32×3: choose another"):
        build("mnist-lenet", (32, 32, 3), None, seed=1)
    with pytest.raises(FastadError, match="unknown network 'lenet': did you mean mnist-lenet"):
        build("lenet", SHAPE, None, seed=1)
    with pytest.raises(FastadError, match="resnet18-cbam takes colour images of 32 px or more, found 28×28×1"):
        build("resnet18-cbam", SHAPE, None, seed=1)
    with pytest.raises(FastadError, match="toy takes images of 1×2×1, found 28×28×1: choose another"):
        build("toy", SHAPE, None, seed=1)


def test_parameter_count_of_the_cifar_lenet() -> None:
    convolutions = sum(25 * one * other + other for one, other in ((3, 32), (32, 64), (64, 128)))
    norms = 2 * (32 + 64 + 128 + 512)
    linears = (2048 * 512 + 512) + (512 * 256 + 256)
    assert parameter_count(build("cifar-lenet", (32, 32, 3), None, seed=1)) == convolutions + norms + linears


def test_the_resnet_is_torchvisions_with_gates_that_begin_half_open() -> None:
    """torchvision's ResNet-18 with the same weights gives the same numbers once every gate is a constant: channel gates
    of perceptrons without weights halve, and so do spatial gates, whose norms begin at 0."""
    from torchvision.models import resnet18

    model = build("resnet18-cbam", (64, 64, 3), None, seed=1)
    gates = [module for module in model.modules() if type(module).__name__ == "_ChannelGate"]
    perceptrons = sum(2 * c * (c // 16) + c // 16 + c for c in (64, 128, 256, 512))
    theirs = resnet18(num_classes=256)
    assert parameter_count(model) == parameter_count(theirs) + 2 * perceptrons + 8 * (2 * 49 + 2)
    for gate in gates:
        for parameter in gate.parameters():
            nn.init.zeros_(parameter)
    ours = {name: value for name, value in model.state_dict().items() if "gates" not in name}
    theirs.load_state_dict(dict(zip(theirs.state_dict(), _in_torchvisions_order(ours), strict=True)))
    for block in [*theirs.layer1, *theirs.layer2, *theirs.layer3, *theirs.layer4]:
        block.bn2.register_forward_hook(lambda _module, _inputs, output: output / 4)
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-4, rtol=1e-3)


def _in_torchvisions_order(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Convolution, norm, convolution, norm, shortcut: the same order but for names."""
    return list(state.values())


def test_initial_statistics_of_the_resnet() -> None:
    model = build("resnet18-cbam", (64, 64, 3), 1, seed=2)
    for block in [module for module in model.modules() if type(module).__name__ == "_Block"]:
        first, second = block.convolutions[0], block.convolutions[3]
        for convolution in (first, second):
            expected = math.sqrt(2 / (9 * convolution.out_channels))
            assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert convolution.bias is None
        for shortcut in layers(block.shortcut, nn.Conv2d):  # type: ignore[arg-type]
            bound = 1 / math.sqrt(shortcut.in_channels)  # PyTorch's default
            assert shortcut.weight.abs().max().item() <= bound  # type: ignore[union-attr,operator]
        gate = block.gates[1]
        assert gate.norm.weight.item() == 0
        assert (gate.norm.eps, gate.norm.momentum) == (1e-5, 0.01)
        assert gate.convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 49), rel=0.4)
        assert not any(linear.bias.any() for linear in layers(block.gates, nn.Linear))  # type: ignore[arg-type,union-attr,operator]
    last = model.body[-1]  # type: ignore[index]
    assert last.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not last.bias.any()


@pytest.mark.parametrize("name", ["cifar-lenet", "resnet18-cbam", "torchvision:resnet18"])
def test_colour_networks_learn_from_every_parameter(name: str) -> None:
    model = build(name, (32, 32, 3), None, seed=1)
    images = torch.rand(8, 3, 32, 32).to(memory_format=torch.channels_last)
    found = model(images)
    assert found.shape == (8, find_network(name).representation_width)
    found.square().sum().backward()
    still = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not still


SHAPES = {"mnist-lenet": SHAPE, "cifar-lenet": (32, 32, 3), "resnet18-cbam": (64, 64, 3)}


@pytest.mark.parametrize("name", ["mnist-lenet", "cifar-lenet"])
def test_pooling_before_leaky_relu_changes_no_number(name: str) -> None:
    """The paper's order, activation first, on images whose parts are alike: many windows have several maxima."""
    ours, theirs = build(name, SHAPES[name], 1, seed=1), build(name, SHAPES[name], 1, seed=1)
    for place, module in list(enumerate(theirs.body)):  # type: ignore[arg-type]
        if isinstance(module, nn.MaxPool2d):
            theirs.body[place], theirs.body[place + 1] = nn.LeakyReLU(0.01), module  # type: ignore[index]
    height, width, channels = SHAPES[name]
    images = (torch.rand(16, height, width, channels) > 0.9).float().permute(0, 3, 1, 2)
    for model in (ours, theirs):
        model(images).square().mean().backward()
    assert torch.equal(ours(images), theirs(images))
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=key)


def layout_copies(model: Detector, images: torch.Tensor) -> list[tuple[str, list[int]]]:
    """What a step copies into another order of memory, but for what is made flat."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if images.is_cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiled:
        model(images).square().mean().backward()
    found = []
    for event in profiled.events() or ():
        shape = event.input_shapes[0] if event.input_shapes else []
        parent = event.cpu_parent.name if event.cpu_parent else ""
        if event.name in ("aten::contiguous", "aten::clone") and len(shape) == 4 and parent != "aten::flatten":
            found.append((parent, shape))
        if "nchwToNhwc" in event.name or "nhwcToNchw" in event.name:
            found.append((event.name, []))
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_no_step_copies_into_another_layout(name: str) -> None:
    height, width, channels = SHAPES[name]
    model, planes = build(name, SHAPES[name], 1, seed=1), torch.rand(8, channels, height, width)
    images = planes.to(memory_format=torch.channels_last)
    assert layout_copies(model, images) == []
    if channels > 1:
        model.body[0] = nn.Sequential(model.body[0], Transposing())  # type: ignore[index]
        assert layout_copies(model, images), "the test sees what it looks for"


class Transposing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_no_step_on_a_gpu_copies_into_another_layout(name: str, compiled: bool) -> None:
    height, width, channels = SHAPES[name]
    model = build(name, SHAPES[name], 1, seed=1).cuda()
    model.autocast_dtype = torch.bfloat16
    images = torch.rand(64, channels, height, width, device="cuda").to(memory_format=torch.channels_last)
    stepped = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    stepped(images).square().mean().backward()  # compiles, and lets cuDNN choose
    assert layout_copies(stepped, images) == []  # type: ignore[arg-type]


def test_the_body_computes_in_bfloat16_and_all_that_is_kept_or_scored_in_float32() -> None:
    model = build("mnist-lenet", SHAPE, 1, seed=1)
    model.autocast_dtype = torch.bfloat16
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, inputs, output, name=name: seen.update({name: (inputs[0].dtype, output.dtype)})
        )
    out = model(torch.rand(8, 1, 28, 28))
    assert seen["body.0"][1] == seen["body.4"][1] == seen["body.12"][1] == torch.bfloat16
    assert seen["head"] == (torch.float32, torch.float32)
    assert out.dtype == torch.float32
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name  # type: ignore[union-attr]
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in model.buffers())

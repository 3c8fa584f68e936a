"""Networks: counts and initial statistics as PROTOCOL gives them, and the numbers of an independent construction."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastad.errors import FastadError
from fastad.networks import NETWORKS, Detector, build, parameter_count

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
    with pytest.raises(FastadError, match="mnist-lenet takes images of 28×28×1, found 32×32×3: choose another"):
        build("mnist-lenet", (32, 32, 3), None, seed=1)
    with pytest.raises(FastadError, match="unknown network 'lenet': did you mean mnist-lenet"):
        build("lenet", SHAPE, None, seed=1)
    with pytest.raises(FastadError, match="resnet18-cbam takes colour images of 32 px or more, found 28×28×1"):
        build("resnet18-cbam", SHAPE, None, seed=1)


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


@pytest.mark.parametrize("name", ["cifar-lenet", "resnet18-cbam"])
def test_colour_networks_learn_from_every_parameter(name: str) -> None:
    model = build(name, (32, 32, 3), None, seed=1)
    images = torch.rand(8, 3, 32, 32).to(memory_format=torch.channels_last)
    found = model(images)
    assert found.shape == (8, NETWORKS[name].representation_width)
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

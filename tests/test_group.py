"""Every network and objective is one graph of fixed shapes to the compiler, and the same in either memory format;
members take up what others left."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastad.errors import FastadError
from fastad.execution import Execution
from fastad.group import Member, Workbench, precision_on, step
from fastad.networks import MEMORY_FORMATS
from fastad.objectives import OBJECTIVES, find
from fastad.pipeline import Batch
from fastad.recipe import Recipe

CPU = torch.device("cpu")
SHAPES = {"mnist-lenet": (28, 28, 1), "cifar-lenet": (32, 32, 3), "resnet18-cbam": (32, 32, 3)}
PAIRS = [*(("mnist-lenet", name) for name in OBJECTIVES), ("cifar-lenet", "bce"), ("resnet18-cbam", "hsc")]


@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
@pytest.mark.parametrize(("network", "objective"), PAIRS)
def test_a_loss_is_traced_whole(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, network: str, objective: str) -> None:
    """Traced with its backward pass and run without generating code; it would raise where the graph breaks."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    data = replace(recipe.data, batch_nominal=4, batch_oe=4)
    workbench = Workbench(replace(recipe, network=network, data=data), SHAPES[network], CPU)
    images = torch.from_numpy(np.random.default_rng(0).random((8, *SHAPES[network]), dtype=np.float32))
    batch = Batch(images.permute(0, 3, 1, 2), (torch.arange(8) >= 4).float(), np.arange(8))
    parameters = []
    for compiled in (False, True):
        member = workbench.member(find(objective), 1, Execution(compiled))
        assert member.execution.compiled is compiled
        step([member], batch)
        parameters.append([parameter.detach().clone() for parameter in member.model.parameters()])
    moved = 0
    for eager, compiled_ in zip(*parameters, strict=True):
        # Adam's first step is the learning rate for every gradient, however small: signs of rounding errors differ.
        moved += int(((eager - compiled_).abs() > 1e-5).sum())
    assert moved < 0.05 * sum(map(torch.Tensor.numel, parameters[0]))


def test_contiguous_steps_are_those_of_channels_last_and_compute_so(recipe: Recipe) -> None:
    """Sums differ in their last bits; of images of one channel PyTorch takes either format for the other."""
    for network, shape in SHAPES.items():
        data = replace(recipe.data, batch_nominal=4, batch_oe=4)
        workbench = Workbench(replace(recipe, network=network, data=data), shape, CPU)
        images = torch.from_numpy(np.random.default_rng(0).random((8, *shape), dtype=np.float32)).permute(0, 3, 1, 2)
        batch, sums = Batch(images, (torch.arange(8) >= 4).float(), np.arange(8)), []
        for memory_format, layout in MEMORY_FORMATS.items():
            member = workbench.member(find("hsc"), 1, Execution(memory_format=memory_format))
            first = next(module for module in member.model.modules() if isinstance(module, torch.nn.Conv2d))
            seen: list[bool] = []
            first.register_forward_hook(
                lambda module, inputs, output, seen=seen, layout=layout: seen.append(
                    output.is_contiguous(memory_format=layout)
                )
            )
            step([member], batch)
            assert seen == [True], (network, memory_format)
            sums.append(member.sums[0].item())
        assert sums[1] == pytest.approx(sums[0], rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
def test_more_objectives_than_pytorch_keeps_variants_of_a_function_are_compiled_in_one_process(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sweep's worker: the ninth was an error."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    names = [*OBJECTIVES, "hsc:l1", "hsc:l2", "hsc:l2-squared", "focal:0", "focal:0.5", "focal:4"]
    assert len(names) > torch._dynamo.config.recompile_limit
    workbench = Workbench(replace(recipe, data=replace(recipe.data, batch_nominal=4)), (28, 28, 1), CPU)
    for name in names:
        member = workbench.member(find(name), 1, Execution(compiled=True))
        step([member], random_batch())
        assert member.sums[0] > 0


def random_batch() -> Batch:
    images = torch.rand(8, 28, 28, 1, generator=torch.Generator().manual_seed(1)).permute(0, 3, 1, 2)
    return Batch(images, (torch.arange(8) >= 4).float(), np.arange(8))


def test_how_the_optimiser_steps_stays_a_members_own(recipe: Recipe) -> None:
    """A run that was begun on a GPU goes on on a CPU, and the other way round."""
    member, other = (Workbench(recipe, (28, 28, 1), CPU).member(find("bce"), 1, Execution()) for _ in range(2))
    step([other], random_batch())
    state = other.state()
    (options,) = state["optimizer"]["param_groups"]
    options |= {"capturable": True, "fused": None, "lr": torch.tensor(0.25)}
    member.load(state)
    (found,) = member.optimizer.param_groups
    assert (found["capturable"], found["fused"], found["lr"]) == (False, True, 0.25)
    assert same_moments(member, other)


def same_moments(one: Member, other: Member) -> bool:
    states = [member.optimizer.state_dict()["state"] for member in (one, other)]
    return all(
        torch.equal(value, states[1][number][name])
        for number, values in states[0].items()
        for name, value in values.items()
    )


def test_bfloat16_is_for_gpus_that_have_it_and_do_not_emulate_it(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision_on("auto", torch.device("cuda")) == "float32"
    with pytest.raises(FastadError, match=r"train\.precision=bfloat16 needs a GPU that has it"):
        precision_on("bfloat16", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision_on("auto", torch.device("cuda")) == "bfloat16"
    assert precision_on("auto", CPU) == "float32"

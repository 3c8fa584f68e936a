"""Captured steps: the same numbers as plain ones, on memory that stays where it is."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastad.execution import Execution
from fastad.group import Member, Workbench, set_learning_rate, step
from fastad.objectives import find
from fastad.pipeline import Batch
from fastad.recipe import Recipe
from fastad.step_graph import WARM_UP, StaticStep, StepGraphs

OBJECTIVES = ("hsc", "deep-sad", "bce", "focal")


class Eager:
    """A capture that keeps the work as it is, and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        self.asked.append("warm up")
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.asked.append("capture")

        def replay() -> None:
            self.asked.append("replay")
            work()

        return replay


def batches(count: int, device: str = "cpu") -> list[Batch]:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((count, 32, 28, 28, 1), dtype=np.float32)).permute(0, 1, 4, 2, 3)
    target = (torch.arange(32) >= 16).float()
    return [Batch(each.to(device), target.to(device), np.arange(32)) for each in images]


def group(recipe: Recipe, graphs: StepGraphs | None, device: str = "cpu") -> list[Member]:
    workbench = Workbench(recipe, (28, 28, 1), torch.device(device))
    workbench.graphs = graphs
    return [workbench.member(find(name), 1, Execution()) for name in OBJECTIVES]


def assert_equal(one: list[Member], other: list[Member]) -> None:
    for member, another in zip(one, other, strict=True):
        states = zip(member.state()["model"].items(), another.state()["model"].values(), strict=True)
        for (name, value), theirs in states:
            assert torch.equal(value, theirs), name
        assert torch.equal(member.sums, another.sums)


def test_steps_on_static_memory_are_plain_steps_bit_for_bit(recipe: Recipe) -> None:
    capture = Eager()
    captured, plain = group(recipe, StepGraphs(capture)), group(recipe, None)
    for number, batch in enumerate(batches(6)):
        for member in (*captured, *plain):
            set_learning_rate(member, recipe.optim, number)  # a milestone after three
        step(captured, batch)
        step(plain, batch)
    assert capture.asked == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * (6 - WARM_UP)
    assert_equal(captured, plain)


def test_a_batch_is_copied_to_where_it_always_lies() -> None:
    one, other = batches(2)
    found = []
    static = StaticStep(lambda images, target: found.append((images.data_ptr(), target.data_ptr(), images.sum())), one)
    for batch in (one, other):
        static.take(batch)
        static()
    assert found[0][:2] == found[1][:2]
    assert [numbers[2] for numbers in found] == [one.images.sum(), other.images.sum()]
    assert static.images.stride() == one.images.stride()


def test_a_smaller_group_and_a_loaded_member_are_captured_anew(recipe: Recipe) -> None:
    capture = Eager()
    members = group(recipe, StepGraphs(capture))
    some = batches(WARM_UP + 1)
    for batch in some:
        step(members, batch)
    capture.asked.clear()
    step(members[:2], some[0])
    assert capture.asked == ["warm up"]
    for batch in some:
        step(members[:2], batch)
    capture.asked.clear()
    members[1].load(members[1].state())
    step(members[:2], some[0])
    assert capture.asked == ["warm up"]


def test_a_learning_rate_that_is_a_tensor_keeps_its_place(recipe: Recipe) -> None:
    (member, *_) = group(recipe, None)
    place = torch.tensor(1.0)
    for parameters in member.optimizer.param_groups:
        parameters["lr"] = place
    state = {**member.state(), "optimizer": {**member.optimizer.state_dict()}}
    state["optimizer"]["param_groups"] = [{**state["optimizer"]["param_groups"][0], "lr": 0.5}]
    member.load(state)
    assert member.optimizer.param_groups[0]["lr"] is place
    assert place.item() == 0.5
    assert set_learning_rate(member, recipe.optim, 3) == pytest.approx(recipe.optim.lr * 0.1)
    assert member.optimizer.param_groups[0]["lr"] is place
    assert place.item() == pytest.approx(recipe.optim.lr * 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_cuda_graph_gives_what_plain_steps_give(recipe: Recipe, precision: str) -> None:
    """Across a milestone, which needs no new capture. Within 1e-3 of a loss: kernels may be chosen otherwise."""
    recipe = replace(recipe, train=replace(recipe.train, precision=precision))
    workbench = Workbench(recipe, (28, 28, 1), torch.device("cuda"))
    assert workbench.graphs is not None
    captured = [workbench.member(find(name), 1, Execution()) for name in OBJECTIVES]
    plain = group(recipe, None, "cuda")
    for number, batch in enumerate(batches(12, "cuda")):
        for member in (*captured, *plain):
            set_learning_rate(member, recipe.optim, number // 2)
        step(captured, batch)
        step(plain, batch)
    for member, another in zip(captured, plain, strict=True):
        torch.testing.assert_close(member.sums, another.sums, rtol=1e-3, atol=1e-4)

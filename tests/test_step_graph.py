"""Captured steps: the same numbers as plain ones, on memory that stays where it is."""

import copy
import gc
import inspect
import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import after, assert_same_scores, scores_in

from fastad import verdict
from fastad.augment import AugmentSpec
from fastad.errors import Interrupted
from fastad.execution import Execution
from fastad.group import Member, Workbench, set_learning_rate, step
from fastad.objectives import Objective, find
from fastad.pipeline import Batch, Source, step_batches
from fastad.recipe import Recipe
from fastad.run import RunResult, deterministic
from fastad.sets import make_plan, open_sets, training_sources
from fastad.step_graph import WARM_UP, CudaCapture, StaticStep, StepGraphs
from fastad.train import never, train
from fastad.warm import Warm

CPU = torch.device("cpu")

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
    assert static.memory[0].stride() == one.images.stride()


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


# Trainings whose steps make their images themselves.


def captured(recipe: Recipe, capture: Eager) -> Warm:
    """What a training on a GPU has, with the eager capture."""
    warm = Warm()
    warm.workbench(recipe, (28, 28, 1), CPU).graphs = StepGraphs(capture)
    return warm


def run(recipe: Recipe, home: Path, out: Path, warm: Warm | None = None, **fields: object) -> list[RunResult]:
    arguments: dict[str, object] = {"classes": ["middle"], **fields}
    return train(recipe, shards=home, out=out, device=CPU, warm=warm, **arguments)  # type: ignore[arg-type]


AUGMENTED = AugmentSpec(crop_padding_px=3, flip_probability=0.5, contrast=0.1, oe_blur_sigma_px=1.0, noise_std=0.01)


@pytest.mark.parametrize("augment", [AugmentSpec(), AUGMENTED], ids=["plain", "augmented"])
def test_trainings_of_classes_in_turn_are_plain_ones_bit_for_bit(
    augment: AugmentSpec, recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    """Five epochs with a milestone, and a second class, which has other images; each is captured once."""
    recipe, capture = replace(recipe, augment=augment), Eager()
    run(recipe, home, tmp_path / "captured", captured(recipe, capture), classes=["middle", "high"])
    run(recipe, home, tmp_path / "plain", classes=["middle", "high"])
    once = ["warm up"] * WARM_UP + ["capture"] + ["replay"] * (10 - WARM_UP)
    assert capture.asked == 2 * once
    assert_same_scores(scores_in(tmp_path / "captured"), scores_in(tmp_path / "plain"))


@pytest.mark.parametrize("at", [1, 5])
def test_stopped_in_an_epoch_and_resumed_they_are_too(
    at: int, recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    capture = Eager()
    warm = captured(recipe, capture)
    with pytest.raises(Interrupted):
        run(recipe, home, tmp_path, warm, stop=after(at))
    run(recipe, home, tmp_path, warm)
    assert capture.asked.count("warm up") == min(at, WARM_UP) + WARM_UP
    assert_same_scores(scores_in(tmp_path), uninterrupted)


def test_a_member_that_is_frozen_leaves_a_group_that_is_captured_anew(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member_of = Workbench.member

    def member(self: Workbench, objective: Objective, seed: int, execution: Execution) -> Member:
        made = member_of(self, objective, seed, execution)
        if objective.name == "deep-svdd":
            with torch.no_grad():
                next(made.model.parameters()).fill_(float("nan"))
        return made

    monkeypatch.setattr(Workbench, "member", member)
    names, capture = ["hsc", "deep-svdd", "bce"], Eager()
    results = run(recipe, home, tmp_path / "captured", captured(recipe, capture), objectives=names)
    assert [result.counts["steps"] for result in results] == [10, 2, 10]
    assert capture.asked == ["warm up"] * (2 + WARM_UP) + ["capture"] + ["replay"] * (8 - WARM_UP)
    run(recipe, home, tmp_path / "plain", objectives=names)
    assert_same_scores(scores_in(tmp_path / "captured"), scores_in(tmp_path / "plain"))


def test_judging_replays_the_numbers_and_changes_nothing(recipe: Recipe, home: Path) -> None:
    sets = open_sets(recipe, home)
    plan = make_plan(recipe, sets, "middle", 1)
    sources = training_sources(recipe, sets, plan, CPU)
    capture = Eager()
    members = group(recipe, StepGraphs(capture))
    for batch in step_batches(plan, sources, recipe.augment, CPU):
        step(members, batch)
    before = [copy.deepcopy(member.state()) for member in members]
    # As if a stream were read each time: on a CPU, batches and steps would else be made in turn.
    found = verdict.judge(members, batch, verdict.Pace(10, 60.0, 0.0), [*sources, Source(sets.nominal)])
    assert "on a batch replayed" in found.line or "too busy" in found.line
    assert capture.asked[-verdict.ROUNDS :] == ["replay"] * verdict.ROUNDS
    for member, state in zip(members, before, strict=True):
        for name, value in member.state()["model"].items():
            assert torch.equal(value, state["model"][name]), name


def test_nothing_keeps_the_images_of_a_run_that_is_over(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    """Neither while it is well nor when it is stopped; sets keep them until others are needed."""
    for number, stop in enumerate((never, after(5))):
        warm = captured(recipe, Eager())
        with suppress(Interrupted):
            run(recipe, home, tmp_path / str(number), warm, stop=stop)
        sets = warm.sets(recipe, home, CPU)
        kept = [weakref.ref(source.held.pixels) for _, source in sets.held.values() if source.held is not None]
        assert len(kept) == (3 if stop is never else 2)
        assert all(reference() is not None for reference in kept)
        sets.held.clear()
        assert not [reference for reference in kept if reference() is not None]


def test_steps_that_warm_up_do_not_warn_of_not_being_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's optimisers do, once each; to pytest, which treats all others so, it would be an error."""
    message = "This instance was constructed with capturable=True"
    assert message in inspect.getsource(sys.modules[torch.optim.Optimizer.__module__])

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    for name, fake in (("Stream", Stream), ("current_stream", Stream), ("stream", nullcontext)):
        monkeypatch.setattr(torch.cuda, name, fake)
    CudaCapture().warm_up(lambda: warnings.warn(f"{message} or some of all", stacklevel=1))
    with pytest.raises(UserWarning, match="of something else"):
        CudaCapture().warm_up(lambda: warnings.warn("of something else", stacklevel=1))


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.gpu
@on_a_gpu
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


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
@pytest.mark.parametrize("augment", [AugmentSpec(), AUGMENTED], ids=["plain", "augmented"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_cuda_graph_that_makes_its_images_gives_what_plain_steps_give(
    compiled: bool, augment: AugmentSpec, recipe: Recipe, home: Path
) -> None:
    """Bit for bit where PyTorch is asked to be deterministic; no step after the capture waits for the device."""
    device, recipe = torch.device("cuda"), replace(recipe, augment=augment)
    sets = open_sets(recipe, home)
    plan = make_plan(recipe, sets, "middle", 1)
    sources = training_sources(recipe, sets, plan, device)
    workbench = Workbench(recipe, (28, 28, 1), device)
    found = []
    with deterministic(compiled):
        for graphs in (workbench.graphs, None):
            workbench.graphs = graphs
            members = [workbench.member(find(name), 1, Execution(compiled)) for name in OBJECTIVES]
            try:
                for number, batch in enumerate(workbench.batches(plan, sources, augment, device, compiled=compiled)):
                    for member in members:
                        set_learning_rate(member, recipe.optim, number // plan.steps_per_epoch)
                    step(members, batch)
                    if number > WARM_UP and graphs is not None:
                        torch.cuda.set_sync_debug_mode("error")
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found.append([copy.deepcopy(member.state()) for member in members])
    for one, other in zip(*found, strict=True):
        for name, value in one["model"].items():
            if compiled:
                assert torch.equal(value, other["model"][name]), name
            else:
                torch.testing.assert_close(value, other["model"][name], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(one["sums"], other["sums"], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
def test_on_a_gpu_classes_follow_each_other_and_a_resumed_training_is_an_uninterrupted_one(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    """Nor do graphs keep the memory of what they gathered from."""
    recipe = replace(recipe, augment=AUGMENTED, train=replace(recipe.train, deterministic=True))
    where = {"shards": home, "device": torch.device("cuda"), "classes": ["middle", "high"]}
    warm = Warm()
    train(recipe, out=tmp_path / "whole", warm=warm, **where)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "resumed", warm=warm, stop=after(5), **where)  # type: ignore[arg-type]
    train(recipe, out=tmp_path / "resumed", warm=warm, **where)  # type: ignore[arg-type]
    assert_same_scores(scores_in(tmp_path / "whole"), scores_in(tmp_path / "resumed"))
    held = warm.sets(recipe, home, torch.device("cuda")).held
    kept = [weakref.ref(source.held.pixels) for _, source in held.values() if source.held is not None]
    held.clear()
    gc.collect()
    assert kept
    assert not [reference for reference in kept if reference() is not None]

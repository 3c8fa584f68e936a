"""Health: what bounds a loss is counted, and a model that diverges neither ends its group nor passes for a result."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import after, assert_same_scores, scores_in
from torch import nn

from fastad.errors import FastadError, Interrupted
from fastad.execution import Execution
from fastad.group import Member, Workbench, step
from fastad.objectives import EPS, find
from fastad.pipeline import Batch
from fastad.recipe import Recipe
from fastad.results import results_json, results_table
from fastad.run import RunResult, deterministic, find_runs, read_result
from fastad.train import train
from fastad.training import largest_second_moment

CPU = torch.device("cpu")
GROUP = ["hsc", "deep-svdd", "bce"]


def run(recipe: Recipe, home: Path, out: Path, **fields: object) -> list[RunResult]:
    arguments: dict[str, object] = {"classes": ["middle"], "objectives": GROUP, **fields}
    return train(recipe, shards=home, out=out, device=CPU, **arguments)  # type: ignore[arg-type]


def last_layer(member: Member) -> nn.Linear:
    return [module for module in member.model.modules() if isinstance(module, nn.Linear)][-1]


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep SVDD begins with weights so large that ‖z‖² is infinite."""
    member_of = Workbench.member

    def member(self: Workbench, objective: Any, seed: int, execution: Execution) -> Member:
        made = member_of(self, objective, seed, execution)
        if objective.name == "deep-svdd":
            with torch.no_grad():
                last_layer(made).weight.mul_(1e30)
        return made

    monkeypatch.setattr(Workbench, "member", member)


def strict(path: Path) -> dict[str, Any]:
    """A JSON file that has neither NaN nor infinity, which JSON does not know."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


@pytest.mark.usefixtures("overflowing")
def test_a_model_that_diverges_is_frozen_and_reported_and_the_others_finish(
    recipe: Recipe, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(recipe, home, tmp_path / "together")
    told = capsys.readouterr().err
    assert "deep-svdd has diverged: its loss was not finite in 2 steps of epoch 0. It is left as it is" in told
    assert "60 of 60 scores of the diverged model are not finite: no metrics" in told
    run(recipe, home, tmp_path / "without", objectives=["hsc", "bce"])
    together = scores_in(tmp_path / "together")
    alone = {name: values for name, values in together.items() if "deep-svdd" not in name}
    assert_same_scores(alone, scores_in(tmp_path / "without"))

    by_name = {found.objective: found for found in find_runs([tmp_path / "together"])}
    for result in results:
        found = by_name[result.objective]
        value, lines = strict(found.result), [json.loads(line) for line in found.log.read_text().splitlines()]
        if result.objective == "deep-svdd":
            assert (result.diverged_at_epoch, result.counts["steps"]) == (0, 2)
            assert result.health["nonfinite_losses"] == 2
            assert result.health["largest_second_moment"] is None
            assert math.isnan(result.metrics["auroc"].value)
            assert value["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
            assert [(line["loss"], line["nonfinite_losses"]) for line in lines] == [(None, 2)]
            assert "left as it was when it diverged" in result.verdict
        else:
            assert (result.diverged_at_epoch, result.counts["steps"]) == (None, 10)
            assert result.health["nonfinite_losses"] == 0
            assert 0 < result.metrics["auroc"].value <= 1
            assert len(lines) == 5
    again = run(recipe, home, tmp_path / "together")
    assert [result.diverged_at_epoch for result in again] == [None, 0, None]
    assert math.isnan(again[1].metrics["auroc"].value)
    json.dumps(results_json(results), allow_nan=False)
    assert results_table(results).row_count


@pytest.mark.usefixtures("overflowing")
@pytest.mark.parametrize("at", [1, 2, 5])
def test_divergence_survives_an_interruption(at: int, recipe: Recipe, home: Path, tmp_path: Path) -> None:
    run(recipe, home, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, home, tmp_path / "resumed", stop=after(at))
    results = run(recipe, home, tmp_path / "resumed")
    assert [result.diverged_at_epoch for result in results] == [None, 0, None]
    assert [result.counts["steps"] for result in results] == [10, 2, 10]
    assert_same_scores(scores_in(tmp_path / "resumed"), scores_in(tmp_path / "whole"))


def test_a_training_whose_models_all_diverge_ends_at_once(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    wild = replace(recipe, optim=replace(recipe.optim, lr=1e30))
    results = run(wild, home, tmp_path, objectives=["hsc", "hsc:l2-squared"])
    assert [result.diverged_at_epoch for result in results] == [0, 0]
    assert [result.counts["steps"] for result in results] == [2, 2]


def test_results_of_before_there_was_health_are_read(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    run(recipe, home, tmp_path, objectives=["hsc"])
    (found,) = find_runs([tmp_path])
    value = strict(found.result)
    assert value.pop("health").keys() == {"guard_hits", "nonfinite_losses", "largest_second_moment"}
    assert value.pop("diverged_at_epoch") is None
    found.result.write_text(json.dumps(value))
    result = read_result(found)
    assert result is not None
    assert (result.health, result.diverged_at_epoch) == ({}, None)


def zero_batch() -> Batch:
    images = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(32).ge(16).float(), np.arange(32))


@pytest.mark.parametrize(("name", "hits"), [("deep-sad", 16), ("hsc", 16), ("hsc:l2", 16), ("bce", 0), ("focal", 0)])
def test_images_at_the_guard_are_counted(name: str, hits: int, recipe: Recipe) -> None:
    """A last layer of zeros puts every image on the centre, where nothing but 1e-9 bounds the loss of the OE half."""
    member = Workbench(recipe, (28, 28, 1), CPU).member(find(name), 1, Execution())
    nn.init.zeros_(last_layer(member).weight)
    nn.init.zeros_(last_layer(member).bias)
    step([member], zero_batch())
    loss, at_guard, nonfinite = member.sums.tolist()
    assert round(at_guard * 32) == hits
    assert nonfinite == 0 and math.isfinite(loss)


@pytest.mark.parametrize("name", ["deep-sad", "hsc", "hsc:l1"])
def test_the_guard_is_where_it_outweighs_what_it_guards(name: str) -> None:
    objective = find(name)
    for share, above in ((0.9, True), (1.1, False)):
        inside = share * EPS
        loss = 1 / (inside + EPS) if name == "deep-sad" else -math.log(inside + EPS)
        assert (loss > objective.guard_loss) == above


def test_a_second_moment_that_stops_the_weights_is_told(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deep SAD near its centre: gradients of 1 / ‖z‖² are huge, the loss stays finite, and Adam no longer moves."""
    member_of = Workbench.member

    def member(self: Workbench, objective: Any, seed: int, execution: Execution) -> Member:
        made = member_of(self, objective, seed, execution)
        with torch.no_grad():
            last_layer(made).weight.mul_(1e-4)
            last_layer(made).bias.mul_(1e-4)
        return made

    monkeypatch.setattr(Workbench, "member", member)
    (result,) = run(recipe, home, tmp_path, objectives=["deep-sad"])
    moment = result.health["largest_second_moment"]
    assert moment is not None and moment > 1e12
    assert result.diverged_at_epoch is None
    told = capsys.readouterr().err
    assert f"middle seed 1 deep-sad: Adam's second moment has come to {moment:.0e}" in told
    assert "some weights have stood still since then" in told


def test_the_largest_second_moment_is_adams(recipe: Recipe) -> None:
    member = Workbench(recipe, (28, 28, 1), CPU).member(find("hsc"), 1, Execution())
    assert largest_second_moment(member).item() == 0
    loss, _ = member.loss(*zero_batch()[:2])
    loss.backward()
    largest = max(
        (parameter.grad**2).max().item() for parameter in member.model.parameters() if parameter.grad is not None
    )
    member.optimizer.step()
    assert largest_second_moment(member).item() == pytest.approx(1e-3 * largest, rel=1e-3)


def test_deterministic_training_gives_the_same_scores_and_leaves_pytorch_as_it_was(
    recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU all algorithms are deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    asked = replace(recipe, train=replace(recipe.train, deterministic=True))
    run(asked, home, tmp_path, objectives=())
    assert_same_scores(scores_in(tmp_path), uninterrupted)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_cannot_be_deterministic_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = r"train\.deterministic=true: x_cuda does not have a deterministic implementation: set it to false"
    with pytest.raises(FastadError, match=told), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("x_cuda does not have a deterministic implementation. You can ...")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic(True):
        raise RuntimeError("something else")

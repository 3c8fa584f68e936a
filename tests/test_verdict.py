"""Verdicts: slow batches and slow steps are told apart, and judging changes no score."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastad import group as group_module
from fastad import train as train_module
from fastad import verdict as verdict_module
from fastad.evaluate import read_scores
from fastad.execution import Execution
from fastad.group import Workbench, step
from fastad.objectives import find
from fastad.pipeline import train_batches
from fastad.recipe import Recipe
from fastad.run import RunResult, find_runs
from fastad.sets import make_plan, open_sets, training_sources
from fastad.train import train
from fastad.verdict import Pace, judge

CPU = torch.device("cpu")


@pytest.fixture
def read_each_time(recipe: Recipe) -> Recipe:
    return replace(recipe, train=replace(recipe.train, resident="off"))


def run(recipe: Recipe, home: Path, out: Path) -> list[RunResult]:
    return train(recipe, shards=home, out=out, device=CPU, classes=["middle"])


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("loader_s", "step_s", "bound"), [(1.0, 0.25, "read-bound"), (0.25, 9.75, "trainer-bound")])
@pytest.mark.parametrize("replay_from_s", [0.0, 1e9])
def test_a_slow_loader_and_a_slow_step_are_told_apart_and_scores_stay(
    loader_s: float,
    step_s: float,
    bound: str,
    replay_from_s: float,
    read_each_time: Recipe,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = replace(read_each_time, optim=replace(read_each_time.optim, epochs=2))
    run(short, home, tmp_path / "as-it-is")
    capsys.readouterr()
    clock = Clock()

    def slow_batches(*arguments: Any, **fields: Any) -> Iterator[Any]:
        for batch in train_batches(*arguments, **fields):
            clock.now += loader_s
            yield batch

    def slow_step(*arguments: Any) -> None:
        clock.now += step_s
        step(*arguments)

    monkeypatch.setattr(verdict_module, "REPLAY_FROM_S", replay_from_s)
    monkeypatch.setattr(group_module, "train_batches", slow_batches)
    for module in (train_module, verdict_module):
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "step", slow_step)
    results = run(short, home, tmp_path / "slow")

    share = loader_s / (loader_s + step_s)
    assert [result.stall_share for result in results] == [pytest.approx(share)] * 2
    (verdict,) = {result.verdict for result in results}
    told = capsys.readouterr().err
    assert told.count(f"middle seed 1 hsc bce: {verdict}") == 1
    assert f"images/s, {100 * share:.1f} % of the time waiting for batches" in told
    assert verdict.startswith(f"{bound}: {100 * share:.1f} % of the time was spent waiting for batches")
    assert (f"{1e3 * step_s:.1f} ms on a batch replayed" in verdict) == (replay_from_s == 0)
    assert ("train.resident=on" in verdict) == (bound == "read-bound")
    scores = [[read_scores(found).score for found in find_runs([tmp_path / name])] for name in ("as-it-is", "slow")]
    np.testing.assert_array_equal(*scores)


def test_replaying_leaves_members_as_they_were(
    read_each_time: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def counted(*arguments: Any) -> None:
        steps.append(1)
        step(*arguments)

    monkeypatch.setattr(verdict_module, "step", counted)
    sets = open_sets(read_each_time, home)
    plan = make_plan(read_each_time, sets, "middle", 1)
    sources = training_sources(read_each_time, sets, plan, CPU)
    one, other, last = train_batches(plan, sources, read_each_time.augment, CPU), [], None
    members = [Workbench(read_each_time, (28, 28, 1), CPU).member(find("hsc"), 1, Execution()) for _ in range(2)]
    for batch in one:
        step(members, batch)
        last = batch
    assert last is not None
    for count, seconds, replayed in ((10, 60.0, 3), (200, 60.0, 3), (450, 60.0, 9), (10**6, 1e6, 99), (10, 1.9, 0)):
        steps.clear()
        judge(members[:1], last, Pace(count, seconds, 0.0), sources)
        assert len(steps) == replayed
    for member in members:
        step([member], last)
        other.append(member.model.state_dict())
    for name, values in other[0].items():
        assert torch.equal(values, other[1][name]), name


def test_where_images_are_held_on_the_cpu_or_the_machine_is_busy_the_hosts_clock_counts(
    recipe: Recipe, read_each_time: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, quiet, told in (
        (
            recipe,
            1e9,
            r"augment-bound: 10\.0 % .*\(200\.0 ms a step, by the host's clock\); the images are held already",
        ),
        (
            read_each_time,
            -1.0,
            r"read-bound: 10\.0 % .*by the host's clock: the machine is too busy to replay a batch\)",
        ),
    ):
        monkeypatch.setattr(verdict_module, "QUIET", quiet)
        sets = open_sets(asked, home)
        plan = make_plan(asked, sets, "middle", 1)
        sources = training_sources(asked, sets, plan, CPU)
        batch = next(train_batches(plan, sources, asked.augment, CPU))
        member = Workbench(asked, (28, 28, 1), CPU).member(find("hsc"), 1, Execution())
        found = judge([member], batch, Pace(100, 20.0, 2.0), sources)
        assert found.stall_share == 0.1
        assert re.match(told, found.line)

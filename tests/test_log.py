"""What a training tells: lines that survive cuts and full disks, the same figures in TensorBoard, a telling screen."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after

from fastad import log
from fastad.errors import FastadError, Interrupted
from fastad.files import Unwritable
from fastad.log import cut_log, read_log
from fastad.recipe import Recipe
from fastad.run import Run, RunResult, find_runs, locate
from fastad.train import train

CPU = torch.device("cpu")

# TensorBoard's dependencies warn, differently with every release.
quiet = pytest.mark.filterwarnings("ignore")


def run(recipe: Recipe, home: Path, out: Path, **fields: object) -> list[RunResult]:
    arguments: dict[str, object] = {"classes": ["middle"], "objectives": ["hsc"], **fields}
    return train(recipe, shards=home, out=out, device=CPU, **arguments)  # type: ignore[arg-type]


def with_tensorboard(recipe: Recipe) -> Recipe:
    return replace(recipe, train=replace(recipe.train, tensorboard=True))


def shown(found: Run) -> dict[str, list[tuple[int, float]]]:
    """The scalars in a run's event files, (step, value) each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(found.tensorboard))
    events.Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


@quiet
def test_tensorboard_shows_what_is_logged_also_after_an_interruption(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    for stop in (after(5), after(10_000)):
        try:
            run(with_tensorboard(recipe), home, tmp_path, stop=stop)
        except Interrupted:
            continue
    (found,) = find_runs([tmp_path])
    lines = read_log(found)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    figures = shown(found)
    assert figures.keys() == lines[0].keys() - {"step"}
    for name, values in figures.items():
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
        assert values == expected


def test_tensorboard_makes_it_no_other_run(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    results = run(recipe, home, tmp_path)
    assert run(with_tensorboard(recipe), home, tmp_path) == results


@quiet
def test_without_tensorboard_it_is_said(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FastadError, match=r"needs TensorBoard: pip install 'fastad\[tensorboard\]'"):
        run(with_tensorboard(recipe), home, tmp_path)
    assert not list(tmp_path.iterdir())


def test_lines_that_were_cut_and_those_that_come_again_are_left_out(recipe: Recipe, tmp_path: Path) -> None:
    found = locate(tmp_path, recipe, "middle", "hsc", 1)
    found.folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": None}) for step in (2, 4, 6)]
    found.log.write_text("\n".join((lines[0], '{"step": 3, "lo{"step": 4}', lines[1], lines[2], '{"ste')))
    assert [line["step"] for line in read_log(found)] == [2, 4, 6]
    cut_log(found, 4)
    assert found.log.read_text() == f"{lines[0]}\n{lines[1]}\n"


def test_a_full_disk_costs_the_log_and_not_the_training(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, line: str) -> None:
        raise Unwritable(f"cannot write {path}: No space left on device; free some space or choose another folder")

    monkeypatch.setattr(log, "append_line", full)
    (result,) = run(recipe, home, tmp_path)
    assert result.counts["steps"] == 10
    told = capsys.readouterr().err
    assert told.count("log.jsonl: No space left on device") == 1
    assert "choose another folder; training goes on without its log" in told


def test_the_screen_shows_the_loss_of_each_objective_rate_stall_and_time_left(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastad import progress

    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    run(recipe, home, tmp_path, objectives=["hsc", "bce"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "6/10 steps" in line]
    figures = r" s left, loss hsc \d\.\d{4}, bce \d\.\d{4}, [\d,]+ images/s, \d+\.\d % of the time waiting for batches"

    assert re.search(figures, lines[-1]), lines

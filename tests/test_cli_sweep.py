"""The command line of sweeps: dry runs, costs, and one line for each mistake."""

import json
from pathlib import Path

import pytest
from test_cli import Done, Shell
from test_sweep import LINES, written

from fastad.recipe import Recipe


@pytest.fixture
def fastad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_a_dry_run_prints_the_grid_and_writes_nothing(
    fastad: Shell, recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    toml, out = written(tmp_path / "e", recipe, *LINES), tmp_path / "out"
    command = ("sweep", toml, "--dry-run", "--shards", home, "--out", out, "--device", "cpu", "--workers", 1)
    shown = fastad(*command)
    assert (shown.code, shown.err) == (0, "")
    assert "2 points × 2 classes × 2 seeds × 2 objectives (hsc, bce)" in shown.out
    told = json.loads(fastad(*command, "--json").out)
    assert told["points"] == {"oe_size=8": [4, 0], "oe_size=32": [4, 0]}
    assert (told["workers"], told["missing"], told["seconds_left"]) == (1, {}, None)
    assert not out.exists()


def test_all_costs_are_printed(fastad: Shell, tmp_path: Path) -> None:
    command = ("sweep", "--all", "--dry-run", "--shards", tmp_path, "--out", tmp_path)
    assert "The paper's 20,100 trainings: " in fastad(*command).out
    assert sum(each["trainings"] for each in json.loads(fastad(*command, "--json").out)["experiments"]) == 20_100


def test_mistakes_are_told(fastad: Shell, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        found: Done = fastad("sweep", *arguments, "--shards", tmp_path, "--out", tmp_path)
        return found.error

    assert "name an experiment, one of cifar10-focal-gamma, " in error()
    assert "or give --all --dry-run" in error("--all")
    assert "or give --all --dry-run" in error("smoke", "--all", "--dry-run")
    assert "unknown experiment 'smok': did you mean smoke?" in error("smok")
    assert "the experiment smoke varies data.oe_size itself" in error("smoke", "--set", "data.oe_size=3")
    assert f"smoke needs sets that {tmp_path} lacks: fastad shard digits --out {tmp_path}" in error("smoke")


def test_the_benchmark_of_sweeps_tells_the_share_outside_steps_and_the_ratio(fastad: Shell) -> None:
    done = fastad("bench", "sweep", "--groups", 2, "--singles", 1, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert 0 < found["outside_share"] < 1
    assert found["warm_ratio"] == pytest.approx(
        found["warm_trainings_per_h"] / found["process_trainings_per_h"], rel=0.01
    )
    assert (found["groups"], found["objectives_a_group"], len(found["each_process_s"])) == (2, 2, 1)

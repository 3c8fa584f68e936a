"""What a training would be and take: its sizes, a sum that adds up, and nothing written."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastad import cli, tune
from fastad import estimate as estimate_module
from fastad import prepare as prepare_module
from fastad.errors import FastadError
from fastad.estimate import estimate
from fastad.progress import duration
from fastad.recipe import Recipe, dump
from fastad.run import Run, open_run
from fastad.sets import make_plan, open_sets
from fastad.train import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "MEASURED_S", 0.0)


def estimated(recipe: Recipe, home: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return estimate(recipe, shards=home, out=out, device=CPU, **fields)


def test_sizes_are_those_of_the_training_and_nothing_is_written(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "write_json", None)
    before = sorted(home.rglob("*"))
    found = estimated(recipe, home, tmp_path / "out", seeds=[1, 2])
    assert not (tmp_path / "out").exists() and sorted(home.rglob("*")) == before
    assert found == found | {
        **{"recipe": "tiny", "trainings": 12, "finished": 0, "groups": 6, "objectives": ["hsc", "bce"]},
        **{"epochs": 5, "steps_per_epoch": 2, "steps": 60, "batch": {"nominal": 16, "oe": 16}},
        **{"images": {"nominal": 40, "oe": 90, "test": 60}, "parameters": {"hsc": 115_968, "bce": 116_001}},
        "held_bytes": {"nominal": 40 * 784, "oe": 90 * 784, "test": 60 * 784},
        **{"precision": "float32", "compiled": False, "memory_format": "channels_last", "shape_hwc": [28, 28, 1]},
    }
    parts = found["seconds"]
    assert found["estimated_s"] == pytest.approx(sum(parts.values()), abs=0.2)
    assert parts["steps"] == pytest.approx(60 * found["step_ms"] / 1e3, abs=0.02)
    assert "3 steps of low/mid, seed 1, on no more than 1,024 images" in found["rests_on"]
    json.dumps(found, allow_nan=False)


def test_what_is_finished_is_not_counted_again(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    train(recipe, shards=home, out=tmp_path, device=CPU, classes=["middle"], objectives=["hsc"])
    found = estimated(recipe, home, tmp_path, classes=["middle", "high"])
    assert (found["trainings"], found["finished"], found["groups"], found["steps"]) == (3, 1, 2, 20)
    train(recipe, shards=home, out=tmp_path, device=CPU, classes=["high"], objectives=["hsc"])
    done = estimated(recipe, home, tmp_path, classes=["middle", "high"], objectives=["hsc"])
    assert (done["trainings"], done["finished"], done["steps"], done["estimated_s"]) == (0, 2, 0, 0.0)


def test_images_read_each_time_are_measured_so(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    found = estimated(replace(recipe, train=replace(recipe.train, resident="off")), home, tmp_path, classes=["middle"])
    assert found["held_bytes"] == {"nominal": 0, "oe": 0, "test": 0}
    assert found["seconds"]["holding"] == 0


def test_what_training_would_refuse_is_refused(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="unknown class of blobs 'midle': did you mean middle"):
        estimated(recipe, home, tmp_path, classes=["midle"])
    with pytest.raises(FastadError, match="mnist-lenet takes images|cifar-lenet takes images of 32×32×3"):
        estimated(replace(recipe, network="cifar-lenet"), home, tmp_path)


def test_training_and_its_estimate_say_and_refuse_the_same_and_write_nothing_before(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_run(tmp_path / "other", replace(recipe, optim=replace(recipe.optim, epochs=9)), "middle", "bce", 1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    boards = replace(recipe, train=replace(recipe.train, tensorboard=True))
    refused: list[tuple[Recipe, Path, dict[str, Any], str]] = [
        (recipe, tmp_path / "other", {"classes": ["middle"]}, "seed1 holds a run of another recipe"),
        (boards, tmp_path / "new", {}, "needs TensorBoard"),
        (recipe, tmp_path / "new", {"seeds": [1, 1], "classes": ["midle"]}, "unknown class of blobs 'midle'"),
    ]
    for asked, out, fields, message in refused:
        for work in (estimate, train):
            with pytest.raises(FastadError, match=message):
                work(asked, shards=home, out=out, device=CPU, **fields)
    assert [path.parent.parent.name for path in tmp_path.rglob("run.json")] == ["bce"]
    assert not (tmp_path / "new").exists()
    alone = replace(recipe, data=replace(recipe.data, oe=()), optim=replace(recipe.optim, epochs=1, milestones=()))
    for work in (estimate, train):
        work(alone, shards=home, out=tmp_path / "alone", device=CPU, classes=["middle"])
        assert "no OE set: hsc, bce will see nominal images only" in " ".join(capsys.readouterr().err.split())


def test_classes_of_one_folder_are_refused_before_either_is_trained(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "folder", recipe, "low/mid", "hsc", 1)
    with pytest.raises(FastadError, match="folder would hold the runs of low/mid and of low mid: choose another --out"):
        prepare_module._check_all([[run], [replace(run, class_name="low mid")]])


def test_images_are_finished_compiled_as_the_recipe_and_the_trainings_length_say(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is found for the network's steps: that is another matter."""
    sets = open_sets(recipe, home)
    plan = make_plan(recipe, sets, "middle", 1)
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(prepare_module, "repays_compiling", lambda *question: (seen.append(question), True)[1])
    for choice, compiled in (("auto", True), ("on", True), ("off", False)):
        asked = replace(recipe, train=replace(recipe.train, compile=choice))
        assert prepare_module.finishes_compiled(asked, sets, plan, CPU) is compiled
    assert seen == [(recipe.augment, (28, 28), CPU, 10 * 32)]


def test_the_command_prints_recipe_and_figures(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(dump(recipe))
    command = ["fastad", "train", path, "--class", "middle", "--shards", home, "--out", tmp_path / "runs", "--dry-run"]
    monkeypatch.setattr("sys.argv", [*map(str, command), "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr()
    assert not end.value.code
    assert json.loads(told.out)["trainings"] == 2
    assert 'network = "mnist-lenet"' in told.err
    assert not (tmp_path / "runs").exists()


def test_times_are_said_as_people_do() -> None:
    assert [duration(seconds) for seconds in (0.4, 95, 100, 720, 6_000, 12_240)] == [
        *("0 s", "95 s", "2 min", "12 min", "1.7 h", "3.4 h"),
    ]

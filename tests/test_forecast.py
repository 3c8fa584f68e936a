"""Forecasts and costs: counted from the experiments, and reckoned with what was measured."""

import json
from pathlib import Path

import pytest
from test_sweep import LINES, written

from fastad.experiment import find_experiment, point_recipe
from fastad.forecast import costs, costs_text, forecast, forecast_text, steps_of
from fastad.recipe import Recipe, load
from fastad.sweep import Room, folder_of, groups_of


def tell(folder: Path, name: str, *told: dict[str, object]) -> None:
    """What a worker would have told."""
    path = folder / "workers" / f"{name}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"at": 0.0} | each) + "\n" for each in told))


def test_a_forecast_counts_what_is_done_and_reckons_with_what_was_measured(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    experiment, out = find_experiment(str(written(tmp_path / "e", recipe, *LINES))), tmp_path / "out"
    before = forecast(experiment, shards=home, out=out, room=Room("cpu", workers=2))
    assert (before.groups, before.done, before.seconds_left, dict(before.missing)) == (8, 0, None, {})
    assert not out.exists()
    assert "16 trainings in 8 groups, 0 finished" in forecast_text(before)
    assert "estimate: none, no group of this experiment has been measured" in forecast_text(before)

    group = groups_of(experiment, home)[0]
    for run in group.runs(out):
        run.folder.mkdir(parents=True)
        run.result.write_text("{}")
    done = {"event": "done", "group": group.name, "seconds": 30.0, "train_s": 1.0, "trainings": 2, "steps": 10}
    tell(folder_of(experiment, out), "w", {"event": "ready", "device": "cpu"}, done)
    found = forecast(experiment, shards=home, out=out, room=Room("cpu", workers=2))
    assert dict(found.points) == {"oe_size=8": (4, 1), "oe_size=32": (4, 0)}
    assert (found.done, found.measured, found.seconds_left) == (1, 1, 4 * 30.0)
    text = forecast_text(found)
    assert "  oe_size=8: 4 groups, 1 finished" in text
    assert "estimate: 2 min for 7 groups on 2 workers, at 30.0 s a group (median of 1, on cpu)" in text


def test_missing_sets_come_with_the_command_that_makes_them(tmp_path: Path) -> None:
    found = forecast(find_experiment("cifar10-oe-classes"), shards=tmp_path, out=tmp_path, room=Room("cpu"))
    assert (found.groups, found.classes) == (800, 10)
    assert dict(found.missing) == {
        "cifar10": f"fastad shard cifar10 RAW --out {tmp_path}",
        "cifar100": f"fastad shard cifar100 RAW --out {tmp_path}",
    }
    assert "missing: cifar10; make it with fastad shard cifar10 RAW" in forecast_text(found)
    smoke = forecast(find_experiment("smoke"), shards=tmp_path, out=tmp_path, room=Room("cpu"))
    assert smoke.missing["letters"] == f"fastad shard letters --out {tmp_path}"


def test_costs_are_of_all_20100_trainings_and_say_what_they_rest_on(tmp_path: Path) -> None:
    found = {each.experiment: each for each in costs(tmp_path, tmp_path)}
    assert sum(each.trainings for each in found.values()) == 20_100
    table1 = found["cifar10-table1"]
    assert (table1.groups, table1.steps) == (100, 7_800)
    assert table1.hours == pytest.approx(100 * 7_800 * 4 * 0.28e-3 / 3600)
    assert "assumed: no such group was measured on an H100 yet" in table1.rests_on
    assert found["imagenet30-oe-size"].steps == 1_500

    experiment = find_experiment("cifar10-table1")
    done = {"event": "done", "seconds": 3.9, "train_s": 3.0, "trainings": 4, "steps": 7_800}
    names = [group.name for group in groups_of(experiment, tmp_path)[:3]]
    tell(
        folder_of(experiment, tmp_path),
        "w",
        {"event": "ready", "device": "NVIDIA H100 80GB HBM3"},
        *({"group": name} | done for name in names),
    )
    measured = {each.experiment: each for each in costs(tmp_path, tmp_path)}
    assert measured["cifar10-table1"].hours == pytest.approx(100 * 3.9 / 3600)
    assert measured["cifar10-hsc-norms"].hours == pytest.approx(200 * 3.9 / 3600)
    assert "0.50 ms a step, median of 3 groups on one H100" in measured["cifar10-table1"].rests_on
    assert measured["cifar10-oe-size"] == found["cifar10-oe-size"]
    text = costs_text(list(measured.values()))
    assert "The paper's 20,100 trainings: " in text and "on eight." in text


def test_steps_are_counted_from_the_set_or_from_what_is_published(home: Path, tmp_path: Path, recipe: Recipe) -> None:
    assert steps_of(recipe, home) == 5 * (120 // 3 // 16)
    experiment = find_experiment("mnist-oe-blur")
    assert steps_of(point_recipe(experiment, experiment.points()[0]), tmp_path) == 150 * 46
    assert steps_of(load("imagenet30"), tmp_path) == 1_500

"""Forecasts and costs: counted from the experiments, and reckoned with what was measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import ENVIRONMENT, make_result
from test_sweep import LINES, written

from fastad.experiment import find_experiment, point_recipe
from fastad.forecast import costs, costs_text, forecast, forecast_text, steps_of
from fastad.recipe import Recipe, load
from fastad.run import open_run, write_result
from fastad.sweep import Room, folder_of, groups_of
from fastad.sweep_queue import Group


def finish(group: Group, out: Path, device: str, **changes: Any) -> None:
    """The results of a group, as if it had been trained: of 300 s in all, 200 of them for training."""
    size = len(group.recipe.objectives)
    facts: dict[str, Any] = {
        "seconds": {"train": 200.0, "score": 80.0, "measure": 20.0 / size},
        "counts": {"steps": 7_800},
        "environment": ENVIRONMENT | {"device": device},
        "group_size": size,
    }
    for objective in group.recipe.objectives:
        run = open_run(out, group.recipe, group.class_name, objective, group.seed)
        result = make_result(group.class_name, objective, group.seed, 0.9, recipe=group.recipe.name)
        write_result(run, replace(result, **(facts | changes)))


def tell(folder: Path, name: str, *told: dict[str, object]) -> None:
    """What a worker would have told, and a line that a kill cut."""
    path = folder / "workers" / f"{name}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"at": 0.0} | each) + "\n" for each in told) + '{"at": 1.0, "ev')


def test_a_forecast_counts_what_is_done_and_reckons_with_what_was_measured(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    experiment, out = find_experiment(str(written(tmp_path / "e", recipe, *LINES))), tmp_path / "out"
    before = forecast(experiment, shards=home, out=out, room=Room("cpu", workers=2))
    assert (before.groups, before.done, before.seconds_left, dict(before.missing)) == (8, 0, None, {})
    assert not out.exists()
    assert "16 trainings in 8 groups, 0 finished" in forecast_text(before)
    assert "estimate: none, as no group of its network has been measured" in forecast_text(before)

    finish(groups_of(experiment, home)[0], out, "cpu")
    found = forecast(experiment, shards=home, out=out, room=Room("cpu", workers=2))
    assert dict(found.points) == {"oe_size=8": (4, 1), "oe_size=32": (4, 0)}
    assert (found.done, found.measured, found.seconds_left) == (1, 1, 4 * 300.0)
    text = forecast_text(found)
    assert "  oe_size=8: 4 groups, 1 finished" in text
    assert "estimate: 20 min for 7 groups on 2 workers, at 300.0 s a group (measured, median of 1 on cpu)" in text
    for group in groups_of(experiment, home):
        finish(group, out, "cpu")
    assert "nothing is left to do" in forecast_text(forecast(experiment, shards=home, out=out, room=Room("cpu")))


def test_a_forecast_rests_on_other_experiments_where_its_own_has_no_groups(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    experiment, out = find_experiment(str(written(tmp_path / "e", recipe, *LINES))), tmp_path / "out"
    other = replace(recipe, name="other", objectives=("hsc", "bce", "focal"))
    finish(Group(other, "high", 1), out, "cpu", counts={"steps": 100})
    found = forecast(experiment, shards=home, out=out, room=Room("cpu", workers=1))
    # Ten steps, of two thirds of 3 s.
    assert (found.measured, found.seconds_a_group) == (1, pytest.approx(20.0))
    assert "10 steps of 2000.00 ms, scaled on other experiments: median of 1 group of 3 in" in found.rests_on
    for device, network in (("NVIDIA H100", "mnist-lenet"), ("cpu", "cifar-lenet")):
        shutil.rmtree(out)
        finish(Group(replace(other, network=network), "high", 1), out, device)
        text = forecast_text(forecast(experiment, shards=home, out=out, room=Room("cpu", workers=1)))
        assert "estimate: none, as no group of its network has been measured in this folder yet; fastad train " in text


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
    told = costs(tmp_path, tmp_path)
    found = {each.experiment: each for each in told.experiments}
    assert (told.trainings, sum(each.trainings for each in found.values())) == (20_100, 20_100)
    table1 = found["cifar10-table1"]
    assert (table1.groups, table1.steps, table1.basis) == (100, 7_800, "assumed")
    assert table1.hours == pytest.approx(100 * 7_800 * 4 * 0.28e-3 / 3600)
    assert (
        "1.12 ms a step, assumed: 4 × 0.28 ms, the goal of fastad bench step on an H100; nothing measured on one"
        in (table1.rests_on)
    )
    assert found["imagenet30-oe-size"].steps == 1_500
    assert "; 0 % of that rests on groups measured on an H100, 100 % on assumed rates." in costs_text(told)
    assert "other devices" not in costs_text(told)


def test_costs_rest_on_what_was_measured_on_an_h100_and_show_what_was_elsewhere(tmp_path: Path) -> None:
    out, experiment = tmp_path / "out", find_experiment("cifar10-table1")
    before = {each.experiment: each for each in costs(tmp_path, out).experiments}
    groups = groups_of(experiment, tmp_path)
    for group in groups[:3]:
        finish(group, out, "NVIDIA H100 80GB HBM3")
    # What a worker tells counts loading, too; of a group that another had begun it tells a part.
    done = {"event": "done", "trainings": 4, "steps": 7_800}
    seconds = zip(groups[:3], (390.0, 390.0, 1.0), strict=True)
    tell(folder_of(experiment, out), "w", *(done | {"group": group.name, "seconds": each} for group, each in seconds))
    # Of no use: it was stopped when it diverged; one of its objectives has no result.
    finish(groups[3], out, "NVIDIA H100 80GB HBM3", diverged_at_epoch=1, seconds={"train": 1, "score": 0, "measure": 0})
    finish(groups[4], out, "NVIDIA H100 80GB HBM3", seconds={"train": 1, "score": 0, "measure": 0})
    groups[4].runs(out)[0].result.unlink()
    mnist = find_experiment("mnist-oe-blur")
    finish(groups_of(mnist, tmp_path)[0], out, "cpu")

    told = costs(tmp_path, out)
    after = {each.experiment: each for each in told.experiments}
    assert after["cifar10-table1"].hours == pytest.approx(100 * 390 / 3600)
    assert "50.00 ms a step, measured: median of 3 groups of 4 in" in after["cifar10-table1"].rests_on
    assert (after["cifar10-hsc-norms"].basis, after["cifar10-hsc-norms"].hours) == ("measured", 200 * 390 / 3600)
    assert (after["cifar10-oe-size"].basis, after["cifar10-oe-size"].hours) == ("scaled", 2_200 * 195 / 3600)
    assert "25.00 ms a step, scaled: median of 3 groups of 4 in" in after["cifar10-oe-size"].rests_on
    for name in ("mnist-oe-blur", "imagenet30-table2"):
        assert after[name] == before[name]
    text = costs_text(told)
    assert "Measured on other devices, and used for no figure above:" in text
    assert "mnist-lenet, groups of 2: 38.46 ms a step, measured: median of 1 group of 2 in" in text
    share = 100 * told.hours("assumed") / told.hours()
    assert f"{100 - share:.0f} % of that rests on groups measured on an H100, {share:.0f} % on assumed rates." in text


def test_steps_are_counted_from_the_set_or_from_what_is_published(home: Path, tmp_path: Path, recipe: Recipe) -> None:
    assert steps_of(recipe, home) == 5 * (120 // 3 // 16)
    experiment = find_experiment("mnist-oe-blur")
    assert steps_of(point_recipe(experiment, experiment.points()[0]), tmp_path) == 150 * 46
    assert steps_of(load("imagenet30"), tmp_path) == 1_500

"""Run directories: one place a run, never another's."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastad.dali import LoaderSpec
from fastad.errors import FastadError
from fastad.recipe import Recipe
from fastad.run import (
    Interval,
    RunResult,
    choose_device,
    environment,
    find_runs,
    open_run,
    read_result,
    slug,
    write_result,
)


def make_result(**fields: object) -> RunResult:
    values: dict[str, object] = {
        "recipe": "tiny",
        "class_name": "low/mid",
        "objective": "hsc:l1",
        "seed": 3,
        "metrics": {"auroc": Interval(0.9, 0.8, 0.95)},
        "counts": {"nominal": 40},
        "seconds": {"train": 1.5},
        "images_per_s": 1000.0,
        "stall_share": 0.01,
        "group_size": 2,
        "precision": "float32",
        "compiled": False,
        "environment": {"cores": 2},
    }
    return RunResult(**(values | fields))  # type: ignore[arg-type]


def test_the_folder_names_recipe_class_objective_and_seed(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "low/mid", "hsc:l1", 3)
    assert run.folder == tmp_path / "tiny" / "low-mid" / "hsc-l1" / "seed3"
    assert open_run(tmp_path, recipe, "low/mid", "hsc:l1", 3) == run
    assert find_runs([tmp_path]) == [run]
    assert slug("T-shirt/top") == "T-shirt-top"
    point = open_run(tmp_path, replace(recipe, name="sizes/oe_size=64,blur=2"), "low/mid", "hsc", 3)
    assert point.folder == tmp_path / "sizes" / "oe_size=64,blur=2" / "low-mid" / "hsc" / "seed3"


def test_another_recipes_run_is_refused_with_what_differs(recipe: Recipe, tmp_path: Path) -> None:
    open_run(tmp_path, recipe, "middle", "hsc", 1)
    other = replace(recipe, optim=replace(recipe.optim, epochs=6))
    with pytest.raises(
        FastadError, match=r"seed1 holds a run of another recipe \(epochs = 5 there\): choose another --out"
    ):
        open_run(tmp_path, other, "middle", "hsc", 1)


def test_the_objectives_that_a_recipe_lists_do_not_make_it_another(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "middle", "hsc", 1)
    assert open_run(tmp_path, replace(recipe, objectives=("bce",)), "middle", "hsc", 1).folder == run.folder


def test_how_images_are_read_and_held_makes_no_other_run(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "middle", "hsc", 1)
    other = replace(
        recipe,
        loader=LoaderSpec(threads=3, prefetch=5, hw_decoder_load=0.1, bad_images="stop"),
        train=replace(recipe.train, resident="off", checkpoint_every_s=1.0),
    )
    assert open_run(tmp_path, other, "middle", "hsc", 1).folder == run.folder
    with pytest.raises(FastadError, match="holds a run of another recipe"):
        open_run(tmp_path, replace(recipe, train=replace(recipe.train, compile="on")), "middle", "hsc", 1)


def test_classes_whose_names_give_one_folder_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    open_run(tmp_path, recipe, "low/mid", "hsc", 1)
    with pytest.raises(FastadError, match="holds the run of low/mid hsc: choose another --out"):
        open_run(tmp_path, recipe, "low mid", "hsc", 1)


def test_runs_are_found_in_the_order_a_reader_expects(recipe: Recipe, tmp_path: Path) -> None:
    for name, objective, seed in (
        ("10", "bce", 1),
        ("2", "bce", 10),
        ("2", "bce", 2),
        ("2", "hsc", 1),
        ("b", "hsc", 1),
    ):
        open_run(tmp_path, recipe, name, objective, seed)
    found = [(run.class_name, run.objective, run.seed) for run in find_runs([tmp_path])]
    assert found == [("2", "hsc", 1), ("2", "bce", 2), ("2", "bce", 10), ("10", "bce", 1), ("b", "hsc", 1)]


def test_results_survive_writing(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "low/mid", "hsc:l1", 3)
    assert read_result(run) is None
    result = make_result()
    write_result(run, result)
    assert read_result(run) == result
    run.result.write_text('{"metrics": {}}')
    with pytest.raises(FastadError, match=r"result\.json is not a result of this fastad"):
        read_result(run)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match=f"no run in {tmp_path}"):
        find_runs([tmp_path])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(FastadError, match="--device cuda asked, but PyTorch finds no CUDA GPU"):
        choose_device("cuda")
    with pytest.raises(FastadError, match="unknown device 'gpu': use auto, cpu or cuda"):
        choose_device("gpu")


def test_the_environment_names_versions_and_processor() -> None:
    found = environment(torch.device("cpu"))
    assert {"torch", "numpy", "fastad"} <= set(found["packages"])
    assert found["cores"] >= 1
    assert found["processor"]
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())

"""Results that no training made: the paper's experiments as folders of runs, drawn around the published figures.

Use: `make_experiment(out, "cifar10-oe-size", classes=3, seeds=2)`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastad.coverage import classes_of
from fastad.evaluate import STRIPS, Scores, write_scores
from fastad.experiment import Experiment, Point, find_experiment, point_recipe
from fastad.published import published
from fastad.recipe import Recipe, dump, parse
from fastad.run import Interval, Run, RunResult, locate, open_run, read_result, write_result

RECIPE = {
    "name": "clothes",
    "network": "mnist-lenet",
    "objectives": ["hsc", "bce"],
    "data": {"nominal": "fashion-mnist", "oe": "letters"},
    "optim": {"epochs": 3, "milestones": [2]},
}
AWKWARD = "T-shirt/top <b>"
AUROC = {
    (AWKWARD, "hsc"): (0.90, 0.94),
    (AWKWARD, "bce"): (0.95, 0.95),
    ("Bag", "hsc"): (0.80, 0.90),
    ("Bag", "bce"): (0.70, 0.80),
}

ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"torch": "2.11"},
    "processor": "A & B",
    "cores": 2,
    "device": "cpu",
}


def make_result(
    class_name: str, objective: str, seed: int, auroc: float, recipe: str = "clothes", **changes: Any
) -> RunResult:
    metrics = {
        "auroc": Interval(auroc, auroc - 0.02, auroc + 0.01),
        "average_precision": Interval(auroc + 0.03, auroc, auroc + 0.04),
        "fpr95": Interval(1 - auroc, 0.9 - auroc, 1.1 - auroc),
    }
    facts: dict[str, Any] = {
        "counts": {
            **{"nominal": 60, "oe": 1000, "test_nominal": 20, "test_anomalous": 30, "steps": 90, "parameters": 1234}
        },
        "seconds": {"train": 60.0, "score": 0.5, "measure": 0.1},
        "images_per_s": 1500.0,
        "stall_share": 0.012,
        "group_size": 2,
        "precision": "float32",
        "compiled": False,
        "environment": ENVIRONMENT,
    }
    return RunResult(recipe, class_name, objective, seed, metrics, **(facts | changes))


def make_results() -> list[RunResult]:
    return [
        make_result(class_name, objective, seed, value)
        for (class_name, objective), values in AUROC.items()
        for seed, value in enumerate(values, start=1)
    ]


def make_run(out: Path, recipe: Recipe, class_name: str, objective: str, seed: int, auroc: float) -> Run:
    """A finished run as training leaves it, with scores, log and examples of synthetic images."""
    run = open_run(out, recipe, class_name, objective, seed)
    rng = np.random.default_rng(seed)
    target = np.repeat(np.array([0, 1], np.int8), (20, 30))
    score = np.exp(rng.normal(size=50) + 2 * target).astype(np.float32)
    names = np.where(target == 1, "Trouser", class_name)
    write_scores(run, Scores(np.array([b"key"] * 50), names, target, score))
    columns: dict[str, Any] = {}
    for name in STRIPS:
        columns[f"{name}_images"] = rng.integers(0, 256, (4, 8, 8, 3 if seed == 2 else 1), dtype=np.uint8)
        columns[f"{name}_class"], columns[f"{name}_target"], columns[f"{name}_score"] = (
            names[18:22],
            target[18:22],
            score[18:22],
        )
    np.savez(run.examples, **columns)
    epochs = recipe.optim.epochs
    run.log.write_text("".join(json.dumps({"epoch": epoch, "loss": 1 / (epoch + 1)}) + "\n" for epoch in range(epochs)))
    write_result(run, make_result(class_name, objective, seed, auroc, run.recipe.name))
    return run


def diverged(run: Run) -> Run:
    """The run, its model diverged in the first epoch and not to be measured."""
    result = read_result(run)
    assert result is not None
    nothing = dict.fromkeys(result.metrics, Interval(math.nan, math.nan, math.nan))
    write_result(run, replace(result, metrics=nothing, diverged_at_epoch=0))
    return run


def make_clothes(out: Path) -> None:
    """The runs of `AUROC`: two classes, two objectives and two seeds of a recipe that is no named experiment."""
    for (class_name, objective), values in AUROC.items():
        for seed, value in enumerate(values, start=1):
            make_run(out, parse(RECIPE), class_name, objective, seed, value)


def published_auroc(experiment: Experiment, point: Point, class_name: str, objective: str) -> float:
    """About what the paper reports: the tables' figures, and curves that rise with OE and fall with blur."""
    table = published({"cifar10": 5, "imagenet30": 6}.get(experiment.recipe, 5))
    column = table.column(objective if objective in ("hsc", "bce", "deep-sad", "focal") else "hsc")
    level = table.rows.get(class_name, table.rows["mean"])[column].mean
    key, _, value = point.label.partition("=")
    if key in ("oe_size", "oe_classes"):
        level -= 25 / (1 + np.log2(float(value)) * (1.5 if objective == "bce" else 1.0))
    if key == "oe_blur_sigma_px":
        level -= (12 if objective == "bce" else 8) * float(np.log2(1 + float(value))) / 2
    if experiment.name == "cifar10-hsc-norms":
        norms = published(3)
        level = norms.rows["with" if value == "on" else "without"][norms.column(objective)].mean
    return level / 100


Auroc = Callable[[Experiment, Point, str, str], float]


def make_experiment(
    out: Path,
    name: str,
    *,
    classes: int | None = None,
    seeds: int | None = None,
    auroc: Auroc = published_auroc,
    std: float = 0.002,
    with_files: bool = False,
) -> int:
    """Results of an experiment (of its first classes and seeds alone, if told); returns how many.

    `std`: over seeds. `with_files`: with scores, log and examples, which takes longer.
    """
    experiment = find_experiment(name)
    count = 0
    for point in experiment.points():
        recipe = point_recipe(experiment, point)
        text = dump(recipe)
        for class_name in classes_of(experiment)[:classes]:
            for objective in experiment.objectives:
                level = auroc(experiment, point, class_name, objective)
                for seed in range(1, (seeds or experiment.seeds) + 1):
                    rng = np.random.default_rng([seed, *f"{recipe.name}{class_name}{objective}".encode()])
                    value = float(np.clip(level + std * rng.normal(), 0.01, 0.999))
                    if with_files:
                        make_run(out, recipe, class_name, objective, seed, value)
                    else:
                        _write_bare(out, recipe, text, class_name, objective, seed, value)
                    count += 1
    return count


def _write_bare(out: Path, recipe: Recipe, text: str, class_name: str, objective: str, seed: int, auroc: float) -> None:
    """As `open_run` and `write_result` do, without waiting for the disk each time: a sweep has thousands of runs."""
    folder = locate(out, recipe, class_name, objective, seed).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text)
    (folder / "run.json").write_text(json.dumps({"class": class_name, "objective": objective, "seed": seed}))
    result = make_result(class_name, objective, seed, auroc, recipe.name)
    metrics = {name: interval._asdict() for name, interval in result.metrics.items()}
    (folder / "result.json").write_text(json.dumps(asdict(result) | {"metrics": metrics}))

"""Finished runs, told on the command line: a table and JSON of their metrics.

Owns which runs count; figures over seeds and classes are `fastad.tables`', pages are `fastad.report`'s.
Use: `results_table(finished_results([Path("runs")]))`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich import box
from rich.text import Text

from fastad.dali import LoaderSpec
from fastad.errors import FastadError
from fastad.evaluate import METRICS
from fastad.progress import say
from fastad.recipe import Recipe, TrainSpec
from fastad.run import Run, RunResult, find_runs, read_result
from fastad.tables import distinct, diverged_note, group_runs, metric_over_classes, metric_over_seeds, tables

# In a table that would be wider than this, intervals stand under their figures.
TERMINAL_COLUMNS, PADDING = 80, 3

Finished = Sequence[tuple[Run, RunResult]]


def finished_results(folders: Iterable[Path]) -> list[RunResult]:
    """The result of every finished run in the folders or below them, in the order of their paths.

    Says how many are not finished. Raises `FastadError` if a folder has no finished run, and for runs that do not
    belong in one table.
    """
    return [result for _, result in finished_runs(folders)]


def finished_runs(folders: Iterable[Path]) -> Finished:
    """As `finished_results`, each result with its run."""
    finished: dict[Path, tuple[Run, RunResult]] = {}
    unfinished: dict[Path, Run] = {}
    for folder in folders:
        runs = {run.folder.resolve(): run for run in find_runs([folder])}
        done = {path: (run, result) for path, run in runs.items() if (result := read_result(run)) is not None}
        if not done:
            first = next(iter(runs.values())).folder
            raise FastadError(
                f"{first} is not finished, nor is any run in {folder}: run the same fastad train or sweep command again"
            )
        finished |= done
        unfinished |= {path: run for path, run in runs.items() if path not in done}
    if unfinished:
        first, total = next(iter(unfinished.values())).folder, len(finished) + len(unfinished)
        say(
            f"{len(unfinished)} of {total} runs are unfinished and left out, such as {first}: "
            "run the same fastad train or sweep command again"
        )
    _check_one_experiment([run for run, _ in finished.values()])
    return list(finished.values())


def _check_one_experiment(runs: Sequence[Run]) -> None:
    """One recipe behind each name, and each training once: else a mean would mix experiments or count a seed twice."""
    recipes: dict[str, Run] = {}
    trainings: dict[tuple[str, str, str, int], Run] = {}
    for run in runs:
        name = run.recipe.name
        other = recipes.setdefault(name, run)
        if other.recipe is not run.recipe and _experiment(other.recipe) != _experiment(run.recipe):
            raise FastadError(
                f"{other.folder} and {run.folder} hold different recipes, both named {name}: give them one at a time"
            )
        other = trainings.setdefault((name, run.class_name, run.objective, run.seed), run)
        if other is not run:
            raise FastadError(f"{other.folder} and {run.folder} hold the same training: give only one of them")


def _experiment(recipe: Recipe) -> Recipe:
    """What of a recipe bears on its scores, whichever objectives it lists and however the work was executed."""
    return dataclasses.replace(recipe, objectives=(), loader=LoaderSpec(), train=TrainSpec())


def results_table(results: Sequence[RunResult]) -> rich.table.Table:
    """AUROC of classes × objectives in %, with a mean row; of a single class, all metrics. It fits 80 columns."""
    shown = tables(group_runs(results))
    if not shown:
        raise FastadError(f"nothing to show: {diverged_note(results)} Lower optim.lr")
    first = shown[0]
    more = " Average precision and FPR at 95 % TPR: --json, or fastad report." if len(shown) > 1 else ""
    more += f" {note}" if (note := diverged_note(results)) else ""
    if replaced := sum(result.counts.get("replaced", 0) for result in results):
        more += f" {replaced:,} training images of these runs could not be decoded and were replaced: replaced.json."
    lines = [
        first.header,
        *((row.label, *(f"{cell.figure} {cell.interval}" for cell in row.cells)) for row in first.rows),
    ]
    width = sum(max(map(len, column)) + PADDING for column in zip(*lines, strict=True))
    between, padding = (" ", 1) if width <= TERMINAL_COLUMNS else ("\n", 0)
    table = rich.table.Table(
        title=Text(first.title, style="bold"),
        caption=Text(first.note + more, style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, padding),
        pad_edge=False,
    )
    for name in first.header:
        table.add_column(Text(name), justify="left" if name is first.header[0] else "right")
    for row, after in zip(first.rows, (*first.rows[1:], None), strict=True):
        cells = [
            Text(cell.figure, style="bold" if column in row.best else "") + Text(between + cell.interval, style="dim")
            for column, cell in enumerate(row.cells)
        ]
        table.add_row(Text(row.label), *cells, end_section=row.is_mean or (after is not None and after.is_mean))
    return table


def results_json(results: Sequence[RunResult]) -> dict[str, Any]:
    """Every run, every class over its seeds, and every objective over its classes, ready for JSON.

    Metrics are fractions; what does not exist (the interval of a single seed) is None. `spread` is the standard
    deviation over classes, the "±" of the paper's mean rows.
    """
    groups = group_runs(results)
    pairs = distinct((recipe, objective) for recipe, _, objective in groups.runs)
    value: dict[str, Any] = _without_nan(
        {
            "runs": [_run_json(result) for result in results],
            "over_seeds": [
                {"recipe": recipe, "class": class_name, "objective": objective} | _seeds_json(group)
                for (recipe, class_name, objective), group in groups.runs.items()
            ],
            "over_classes": [
                {"recipe": recipe, "objective": objective} | _classes_json(groups.of(recipe, objective))
                for recipe, objective in pairs
            ],
        }
    )
    return value


def _run_json(result: RunResult) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"metrics": {name: found._asdict() for name, found in result.metrics.items()}}


def _seeds_json(group: Sequence[RunResult]) -> dict[str, Any]:
    metrics = {metric: metric_over_seeds(group, metric)._asdict() for metric in METRICS}
    return {"seeds": [result.seed for result in group], "metrics": metrics}


def _classes_json(groups: Sequence[Sequence[RunResult]]) -> dict[str, Any]:
    means = {metric: metric_over_classes(groups, metric) for metric in METRICS}
    metrics = {metric: mean.over_seeds._asdict() | {"spread": mean.spread} for metric, mean in means.items()}
    return {"classes": len(groups), "metrics": metrics}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

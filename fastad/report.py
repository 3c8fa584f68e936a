"""What finished runs amount to, told from the files in their folders alone: tables, JSON, report.md and report.html.

Owns which runs count and the words of the report; figures over seeds and classes are `fastad.tables`', the HTML page is
`fastad.page`'s.
Use: `results_table(finished_results([Path("runs")]))`, `write_report([Path("runs")], Path("report"))`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from rich import box
from rich.text import Text

from fastad.dali import LoaderSpec
from fastad.errors import FastadError
from fastad.evaluate import METRICS
from fastad.files import write_text
from fastad.page import Report, Section, html
from fastad.progress import say
from fastad.recipe import DataSpec, Recipe, TrainSpec
from fastad.run import Run, RunResult, find_runs, read_result
from fastad.tables import (
    Groups,
    Table,
    class_means,
    cost_table,
    distinct,
    group_runs,
    metric_over_classes,
    metric_over_seeds,
    percent,
    tables,
)

# In a table that would be wider than this, intervals stand under their figures.
TERMINAL_COLUMNS, PADDING = 80, 3

Finished = Sequence[tuple[Run, RunResult]]


def finished_results(folders: Iterable[Path]) -> list[RunResult]:
    """The result of every finished run in the folders or below them, in the order of their paths.

    Says how many are not finished. Raises `FastadError` if a folder has no finished run, and for runs that do not
    belong in one table.
    """
    return [result for _, result in _finished(folders)]


def _finished(folders: Iterable[Path]) -> Finished:
    finished: dict[Path, tuple[Run, RunResult]] = {}
    unfinished: dict[Path, Run] = {}
    for folder in folders:
        runs = {run.folder.resolve(): run for run in find_runs([folder])}
        done = {path: (run, result) for path, run in runs.items() if (result := read_result(run)) is not None}
        if not done:
            first = next(iter(runs.values())).folder
            raise FastadError(
                f"{first} is not finished, nor is any run in {folder}: run the same fastad train command again"
            )
        finished |= done
        unfinished |= {path: run for path, run in runs.items() if path not in done}
    if unfinished:
        first, total = next(iter(unfinished.values())).folder, len(finished) + len(unfinished)
        say(
            f"{len(unfinished)} of {total} runs are unfinished and left out, such as {first}: "
            "run the same fastad train command again"
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
        if _experiment(other.recipe) != _experiment(run.recipe):
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
    first = shown[0]
    more = " Average precision and FPR at 95 % TPR: --json, or fastad report." if len(shown) > 1 else ""
    if replaced := sum(result.counts.get("replaced", 0) for result in results):
        more += f" {replaced:,} training images of these runs could not be decoded and were replaced: replaced.json."
    lines = [
        first.header,
        *((row.label, *(f"{figure} {interval}" for figure, interval in row.cells)) for row in first.rows),
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


def write_report(folders: Iterable[Path], out: Path) -> list[Path]:
    """Writes `report.md` and the self-contained `report.html` of the finished runs into `out`, and returns their paths.

    Raises `FastadError` as `finished_results` does, and where a file of a run cannot be read.
    """
    report = _report(_finished(folders))
    pages = {out / "report.md": _markdown(report), out / "report.html": html(report)}
    for path, text in pages.items():
        write_text(path, text)
    return list(pages)


def _report(found: Finished) -> Report:
    results = [result for _, result in found]
    groups = group_runs(results)
    data = {run.recipe.name: run.recipe.data for run, _ in found}
    return Report(
        title=f"Anomaly detection: {_listed(groups.classes)}",
        subtitle=f"One class against the rest. {' '.join(distinct(map(_sets, data.values())))}",
        tiles=_tiles(groups, results),
        summary=" ".join(_summary(groups, recipe, data[recipe]) for recipe in groups.classes),
        tables=tuple(tables(groups)),
        sections=_sections(groups, found),
        cost=cost_table(groups),
        environments=_environments(results),
    )


def _sets(data: DataSpec) -> str:
    return f"Nominal: {data.nominal}, outlier exposure (OE): {' and '.join(data.oe) or 'none'}."


def _tiles(groups: Groups, results: Sequence[RunResult]) -> tuple[tuple[str, str], ...]:
    """The figures that stand out: the best AUROC of each recipe, how much was trained, and what it took."""
    tiles = []
    for recipe, names in groups.classes.items():
        for best, mean in _ranking(groups, recipe)[:1]:
            over = f"mean of {len(names)} classes" if len(names) > 1 else f"class {names[0]}"
            tiles.append((f"{percent(mean)} %", f"{groups.label(recipe, 'AUROC')} of {best}, {over}"))
    classes, seeds = sum(map(len, groups.classes.values())), len({result.seed for result in results})
    sizes = f"classes: {classes}, objectives: {len(groups.objectives)}, seeds: {seeds}"
    # The objectives of a group share their batches and so their time.
    total_s = sum(sum(result.seconds.values()) / result.group_size for result in results)
    devices = _listed(distinct(_device(result.environment) for result in results))
    rate, stalled = np.median([(result.images_per_s, result.stall_share) for result in results], axis=0)
    return (
        *tiles,
        (f"{len(results):,} run{'s' * (len(results) > 1)}", sizes),
        (_duration(total_s), f"to train and test them all, on {devices}"),
        (f"{rate:,.0f} images/s", f"in training, {percent(stalled)} % of the time waiting for batches (medians)"),
    )


def _ranking(groups: Groups, recipe: str) -> list[tuple[str, float]]:
    """The objectives that have every class of the recipe, with their mean AUROC, best first."""
    means = {name: mean.over_seeds.mean for name, mean in class_means(groups, recipe, "auroc").items()}
    return sorted(means.items(), key=lambda item: -item[1])


def _device(environment: Mapping[str, Any]) -> str:
    return f"{environment['cores']} CPU cores" if environment["device"] == "cpu" else str(environment["device"])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _summary(groups: Groups, recipe: str, data: DataSpec) -> str:
    """A recipe's results in a few sentences."""
    names, ranking = groups.classes[recipe], _ranking(groups, recipe)
    several = len(names) > 1
    what = (
        f"Each of {len(names)} classes of {data.nominal} in turn" if several else f"Class {names[0]} of {data.nominal}"
    )
    oe = f"images of {' and '.join(data.oe)} as outlier exposure" if data.oe else "no outlier exposure"
    told = [f"{what} is nominal; detectors learn it with {oe} and have to find all other test images."]
    if not ranking:
        return f"{told[0]} No objective has been trained for every class yet."
    figures = _listed(f"{percent(mean)} % with {name}" for name, mean in ranking)
    told.append(f"The AUROC is {figures}{', on average over the classes' * several}.")
    best = ranking[0][0]
    if several:
        auroc = {name: metric_over_seeds(groups.runs[recipe, name, best], "auroc").mean for name in names}
        ends = max(names, key=auroc.__getitem__), min(names, key=auroc.__getitem__)
        easiest, hardest = (f"{name} ({percent(auroc[name])} %)" for name in ends)
        told.append(f"For {best} the easiest class is {easiest}, the hardest {hardest}.")
    flagged = percent(class_means(groups, recipe, "fpr95")[best].over_seeds.mean)
    told.append(f"Where {best} finds 95 % of the anomalous images, it also flags {flagged} % of the nominal ones.")
    return " ".join(told)


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _sections(groups: Groups, found: Finished) -> tuple[Section, ...]:
    runs = {(run.recipe.name, run.class_name, run.objective, run.seed): run for run, _ in found}
    sections = []
    for recipe, names in groups.classes.items():
        for name in names:
            objectives = {key[2]: group for key, group in groups.runs.items() if key[:2] == (recipe, name)}
            auroc = {objective: metric_over_seeds(group, "auroc").mean for objective, group in objectives.items()}
            counts = next(iter(objectives.values()))[0].counts
            sections.append(
                Section(
                    title=groups.label(recipe, name),
                    facts=", ".join(f"{what.replace('_', ' ')}: {count:,}" for what, count in counts.items()),
                    runs={
                        objective: [(runs[recipe, name, objective, result.seed], result) for result in group]
                        for objective, group in objectives.items()
                    },
                    best=max(auroc, key=auroc.__getitem__),
                )
            )
    return tuple(sections)


def _environments(results: Sequence[RunResult]) -> tuple[Mapping[str, str], ...]:
    """Each environment in which runs were made, with their number."""
    counts: dict[str, int] = {}
    for result in results:
        stamp = json.dumps(result.environment)
        counts[stamp] = counts.get(stamp, 0) + 1
    return tuple({"runs": f"{count:,}"} | _plain(json.loads(stamp)) for stamp, count in counts.items())


def _plain(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
        for name, value in environment.items()
    }


def _markdown(report: Report) -> str:
    parts = [f"# {_escaped(report.title)}", _escaped(report.subtitle), _escaped(report.summary)]
    for table in (*report.tables, report.cost):
        parts += [f"## {_escaped(table.title)}", _markdown_table(table), _escaped(table.note)]
    for environment in report.environments:
        parts.append("\n".join(f"- {name}: {_escaped(value)}" for name, value in environment.items()))

    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.header, ("---", *("---:" for _ in table.header[1:]))]
    for row in table.rows:
        shown = (f"**{cell.figure}**" if column in row.best else cell.figure for column, cell in enumerate(row.cells))
        lines.append(
            (row.label, *(f"{figure} {cell.interval}".strip() for figure, cell in zip(shown, row.cells, strict=True)))
        )
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")

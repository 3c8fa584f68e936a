"""What finished runs amount to, told from the files in their folders alone: report.md, report.html, tables and figures.

Owns what a report holds and its files; its sentences are `fastad.words`', figures over seeds and classes
`fastad.tables`', the paper's `fastad.paper_tables`' and `fastad.paper_figures`', the HTML page is `fastad.page`'s.
Use: `write_report([Path("runs")], Path("report"))`.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastad import paired
from fastad.coverage import Coverage, coverage, coverage_table, root_of
from fastad.drawing import save
from fastad.errors import FastadError
from fastad.files import write_text
from fastad.markup import escaped, latex, markdown
from fastad.measured import measured
from fastad.page import Report, Section, html
from fastad.paper_figures import FIGURES, ReportFigure, grid_figure, paper_figures
from fastad.paper_tables import READING, TABLES, ComparedTable, as_csv, compared_tables, shown
from fastad.progress import progress
from fastad.results import Finished, finished_runs
from fastad.run import RunResult
from fastad.tables import (
    Groups,
    cost_table,
    distinct,
    diverged_note,
    grid_table,
    group_runs,
    has_figures,
    metric_over_seeds,
    tables,
)
from fastad.toy_figure import EXPERIMENT as TOY
from fastad.toy_figure import far_shares, toy_figure
from fastad.words import (
    cost_tiles,
    listed,
    notices,
    paper_summary,
    paper_tiles,
    partial_note,
    recipe_summary,
    result_tiles,
    sets_line,
    toy_told,
)


def write_report(folders: Iterable[Path], out: Path) -> list[Path]:
    """Writes the report of the finished runs into `out`: `report.md`, the self-contained `report.html` and, where there
    are any, the paper's tables (`tables/`: Markdown, LaTeX, CSV) and figures (`figures/`: PNG, PDF).

    Returns the paths of the two pages and of the folders. Raises `FastadError` as `finished_results` does, and where a
    file of a run cannot be read; then nothing was written.
    """
    found = finished_runs(folders)
    compared = compared_tables(measured(result for _, result in found))
    if not any(has_figures(result) for _, result in found):
        raise FastadError(f"nothing to report: {diverged_note(result for _, result in found)} Lower optim.lr")
    report = _report(found, compared)
    pages = {out / "report.md": _markdown(report), out / "report.html": html(report)}
    written = list(pages)
    for path, text in pages.items():
        write_text(path, text)
    for table in compared:
        stem, paper = out / "tables" / f"table-{table.number}", shown(table)
        notes = f"{paper.note} {READING}"
        write_text(stem.with_suffix(".md"), f"{markdown(paper)}\n\n{escaped(notes)}\n")
        write_text(stem.with_suffix(".tex"), latex(paper, f"tab:{table.number}", f"{table.what}. {notes}"))
        write_text(stem.with_suffix(".csv"), as_csv(table))
    if report.figures:
        with progress("figures", len(report.figures), unit="figures") as advance:
            for figure in report.figures:
                save(figure.drawings, out / "figures" / figure.name, figure.columns)
                advance()
    return written + [out / "tables"] * bool(compared) + [out / "figures"] * bool(report.figures)


def _shows() -> dict[str, str]:
    """What of the paper each experiment is for."""
    found: dict[str, dict[str, list[str]]] = {TOY: {"Figure": ["1"]}}
    for number, table in TABLES.items():
        found.setdefault(table.experiment, {}).setdefault("Table", []).append(str(number))
    for number, figure in FIGURES.items():
        for panel in figure.panels:
            found.setdefault(panel.experiment, {}).setdefault("Figure", []).append(str(number))
    return {
        experiment: listed(f"{what}{'s' * (len(numbers) > 1)} {listed(numbers)}" for what, numbers in shows.items())
        for experiment, shows in found.items()
    }


def _report(found: Finished, compared: Sequence[ComparedTable]) -> Report:
    results = [result for _, result in found]
    runs = [run for run, result in found if has_figures(result)]
    values, shows = measured(results), _shows()
    others = [result for result in filter(has_figures, results) if result.recipe.partition("/")[0] not in shows]
    groups = group_runs(result for result in others if "/" not in result.recipe)
    gridded = distinct(result.recipe.partition("/")[0] for result in others if "/" in result.recipe)
    is_paper = any(result.recipe.partition("/")[0] in shows for result in results)
    covered = coverage([run for run, _ in found])
    diverged = diverged_note(results)
    begun = [each for name, each in covered.items() if each.found or (is_paper and name in shows)]
    data = {run.recipe.name: run.recipe.data for run in runs}
    grids = (grid_figure(values, name) for name in gridded)
    figures = (toy_figure(runs), *paper_figures(values, runs), *grids)
    points = group_runs(result for result in others if "/" in result.recipe)
    missing = coverage_table(begun, shows, root_of(runs[0]))
    names = [*groups.classes, *gridded]
    title = "the paper’s experiments, measured again" if is_paper else listed(names)
    return Report(
        title=f"Anomaly detection: {title}",
        subtitle=sets_line(data.values()),
        tiles=(*paper_tiles(compared), *result_tiles(groups), *cost_tiles(results)),
        summary=(
            *toy_told(far_shares(runs)),
            *paper_summary(compared, values),
            *(recipe_summary(groups, name, data[name]) for name in groups.classes),
        ),
        notices=(*notices(begun), *([diverged] if diverged else [])),
        paper=tuple(map(shown, compared)),
        figures=tuple(_with_partial_note(figure, covered) for figure in figures if figure is not None),
        missing=missing if missing.rows else None,
        tables=(*tables(groups), *(grid_table(points, name) for name in gridded)),
        sections=_sections(groups, found),
        paired=tuple(paired.paired_tables(values)),
        cost=cost_table(results),
        environments=_environments(results),
    )


def _with_partial_note(figure: ReportFigure, covered: Mapping[str, Coverage]) -> ReportFigure:
    parts = (covered[name] for name in figure.experiments if name in covered)
    note = partial_note(part for part in parts if not part.is_whole)
    return dataclasses.replace(figure, note=figure.note + note)


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
    parts = [f"# {escaped(report.title)}", *map(escaped, (report.subtitle, *report.notices, *report.summary))]
    parts += [escaped(READING)] * bool(report.paper)
    for table in (*report.paper, *report.tables):
        parts += [f"## {escaped(table.title)}", markdown(table), escaped(table.note)]
    for figure in report.figures:
        parts += [
            f"## {escaped(figure.title)}",
            f"![{escaped(figure.title)}](figures/{figure.name}.png)",
            escaped(figure.note),
        ]
    parts += ["## Objectives compared", escaped(paired.READING)] if report.paired else []
    for table in report.paired:
        parts += [f"### {escaped(table.title)}", markdown(table)]
    for table in (*([report.missing] if report.missing else []), report.cost):
        parts += [f"## {escaped(table.title)}", markdown(table), escaped(table.note)]
    for environment in report.environments:
        parts.append("\n".join(f"- {name}: {escaped(value)}" for name, value in environment.items()))
    return "\n\n".join(part for part in parts if part) + "\n"

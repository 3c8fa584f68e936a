"""The report as one HTML page that opens offline: inline style and pictures, no script, light or dark, wide or narrow.

Owns what a report is made of (`Report`), its layout, style and escaping; its words and figures are `fastad.report`'s,
its pictures `fastad.figures`'.
Use: `html(report)`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

import numpy as np

from fastad import __version__, figures, paired, paper_tables
from fastad.drawing import COLOURS, Drawing, svg
from fastad.evaluate import STRIPS, Strip, read_examples, read_scores
from fastad.log import read_log
from fastad.paper_figures import ReportFigure
from fastad.progress import progress
from fastad.run import Run, RunResult
from fastad.tables import Cell, Table, metric_over_seeds, percent, regime_spans

# Above this size an image is smoothed when shown, below it its pixels are.
PIXELATED_TO_PX = 64


@dataclass(frozen=True, slots=True)
class Section:
    """One nominal class: the runs of each objective, seeds ascending; `best`: whose examples are shown."""

    title: str
    facts: str
    runs: Mapping[str, Sequence[tuple[Run, RunResult]]]
    best: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report tells; `tiles`: a figure and what it is. Plain text throughout, not yet escaped.

    `paper`: its tables with our figures; `tables` and `sections`: all other experiments, by class; `paired`: objectives
    against each other; `missing`: what is still to be trained.
    """

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str], ...]
    summary: tuple[str, ...]
    notices: tuple[str, ...]
    paper: tuple[Table, ...]
    figures: tuple[ReportFigure, ...]
    tables: tuple[Table, ...]
    sections: tuple[Section, ...]
    paired: tuple[Table, ...]
    missing: Table | None
    cost: Table
    environments: tuple[Mapping[str, str], ...]


def html(report: Report) -> str:
    """The page. Raises `FastadError` where the scores or the examples of a run cannot be read."""
    tiles = "".join(f"<li><strong>{escape(figure)}</strong> {escape(what)}</li>" for figure, what in report.tiles)
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in report.notices)
    summary = "".join(f"<p>{escape(told)}</p>" for told in report.summary)
    parts = {title: part for title, part in _parts(report) if part}
    anchors = {title: f"part-{number}" for number, title in enumerate(parts)}
    links = "".join(f'<a href="#{anchors[title]}">{escape(title)}</a>' for title in parts)
    body = "".join(f'<h2 id="{anchors[title]}">{escape(title)}</h2>\n{part}\n' for title, part in parts.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)} – fastad report</title>
<style>{_style()}</style>
</head>
<body>
<header>
<p class="kicker">fastad report</p>
<h1>{escape(report.title)}</h1>
<p class="subtitle">{escape(report.subtitle)}</p>
{notices}
<ul class="tiles">{tiles}</ul>
<div class="summary">{summary}</div>
<nav>{links}</nav>
</header>
<main>
{body}
</main>
<footer>Written by fastad {__version__} from the files of the run folders alone.</footer>
</body>
</html>
"""


def _parts(report: Report) -> Iterator[tuple[str, str]]:
    """The parts of the page under their titles, empty ones too."""
    anchors = {section.title: f"class-{number}" for number, section in enumerate(report.sections)}
    yield "The paper’s tables", _paper_tables(report.paper)
    yield "Figures", "".join(map(_report_figure, report.figures))
    tables = _overview(report.sections) + "".join(_table(table, anchors) for table in report.tables)
    yield "Results", f'<div class="results">{tables}</div>{_legend(report.tables)}' if report.tables else ""
    yield "Classes", "".join(_sections(report.sections, anchors)) if report.sections else ""
    yield "Objectives compared", _paired(report.paired)
    yield "What is missing", _table(report.missing, {}, has_title=False) if report.missing else ""
    environments = "".join(_environment(found) for found in report.environments)
    yield "Cost and environment", _table(report.cost, {}, has_title=False) + environments


# Tables and figures of more rows or plots than this are folded.
FOLDED_FROM = 8


def _paper_tables(tables: Sequence[Table]) -> str:
    reading = f'<p class="note">{escape(paper_tables.READING)}</p>'
    short = "".join(_table(table, {}) for table in tables if len(table.rows) < FOLDED_FROM)
    long = "".join(
        _folded(table.title, _table(table, {}, has_title=False)) for table in tables if len(table.rows) >= FOLDED_FROM
    )
    return f"{reading}{short}{long}{_legend(tables)}" if tables else ""


def _folded(title: str, content: str, more: str = "") -> str:
    return f"<details><summary><b>{escape(title)}</b> <span>{escape(more)}</span></summary>{content}</details>\n"


def _report_figure(figure: ReportFigure) -> str:
    plots = "".join(_figure(drawing) for drawing in figure.drawings)
    note = f'<p class="note">{escape(figure.note)}</p>'
    if len(figure.drawings) >= FOLDED_FROM:
        return _folded(figure.title, f'{note}<div class="plots small">{plots}</div>', f"{len(figure.drawings)} plots")
    return f'<section><h3>{escape(figure.title)}</h3>{note}<div class="plots wide">{plots}</div></section>'


def _paired(tables: Sequence[Table]) -> str:
    reading = f'<p class="note">{escape(paired.READING)}</p>' if tables else ""
    if len(tables) == 1:
        return reading + _table(tables[0], {})
    return reading + "".join(
        _folded(
            table.title,
            _table(table, {}, has_title=False),
            f"comparisons: {len(table.rows)}, p below 0.05: {_significant(table)}",
        )
        for table in tables
    )


def _significant(table: Table) -> int:
    return sum(bool(row.best) for row in table.rows)


def _legend(tables: Iterable[Table]) -> str:
    has_best = any(row.best for table in tables for row in table.rows)
    return '<p class="note">★ the best figure of a row.</p>' if has_best else ""


def _overview(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    rows = {
        section.title: {name: [result.metrics["auroc"] for _, result in runs] for name, runs in section.runs.items()}
        for section in sections
    }
    sizes = {len(runs) for section in sections for runs in section.runs.values()}
    parts = ["One seed: with the 95 % bootstrap interval over test images."] if 1 in sizes else []
    note = " ".join(parts + ["Several seeds: mean, lowest and highest."] * (sizes != {1}))
    return f'<div class="overview">{_figure(figures.overview(rows), note)}</div>'


def _figure(drawing: Drawing, note: str = "") -> str:
    caption = f"<figcaption><b>{escape(drawing.title)}</b> {escape(note)}</figcaption>"
    return f'<figure class="plot">{caption}{svg(drawing)}</figure>'


def _table(table: Table, anchors: Mapping[str, str], *, has_title: bool = True) -> str:
    """A table that scrolls within its own container; labels that have an anchor link to it."""
    spans = "".join(f'<th colspan="{width}">{escape(name)}</th>' for name, width in regime_spans(table))
    regimes = f'<tr class="regimes"><th></th>{spans}</tr>' if spans else ""
    head = "".join(
        f'<th scope="col"{_WORDS * (column in table.words)}>{escape(name)}</th>'
        for column, name in enumerate(table.header, start=-1)
    )
    lines = []
    for row in table.rows:
        label = escape(row.label)
        if row.label in anchors and not row.is_mean:
            label = f'<a href="#{anchors[row.label]}">{label}</a>'
        cells = "".join(
            _cell(cell, is_best=column in row.best, is_words=column in table.words)
            for column, cell in enumerate(row.cells)
        )
        lines.append(f'<tr class="{"mean" if row.is_mean else "single"}"><th scope="row">{label}</th>{cells}</tr>')
    title = escape(table.title)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    caption = f"<figcaption><b>{title}</b></figcaption>" if has_title else ""
    return (
        f'<figure class="table">{caption}<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead>{regimes}<tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"{note}</figure>"
    )


_WORDS = ' class="words"'


def _cell(cell: Cell, *, is_best: bool, is_words: bool) -> str:
    lines = [f"<span>{escape(cell.figure)}</span> <small>{escape(cell.interval)}</small>"]
    for place, line in enumerate(cell.below, start=1):
        flagged = cell.flagged and place == len(cell.below)
        lines.append(f'<small class="{"flagged" if flagged else "below"}">{escape(line)}</small>')
    kind = "words" if is_words else "best" if is_best else "figure"
    return f'<td class="{kind}">{"".join(lines)}</td>'


def _sections(sections: Sequence[Section], anchors: Mapping[str, str]) -> Iterator[str]:
    with progress("report", len(sections), unit="classes") as advance:
        for number, section in enumerate(sections):
            yield _section(section, anchors[section.title], is_open=number == 0)
            advance()


def _section(section: Section, anchor: str, is_open: bool) -> str:
    scores = {name: [read_scores(run) for run, _ in runs] for name, runs in section.runs.items()}
    found = {name: [_losses(run) for run, _ in runs] for name, runs in section.runs.items()}
    first = next(iter(section.runs.values()))[0][0]
    band = "Band: lowest to highest seed." if any(len(runs) > 1 for runs in section.runs.values()) else ""
    milestones = first.recipe.optim.milestones
    steps = "Upright lines: the learning rate falls to a tenth." if milestones else ""
    plots = [
        _figure(figures.roc(scores, section.title), band),
    ]
    if np.isfinite([loss for seeds in found.values() for loss in seeds]).any():
        plots.append(_figure(figures.losses(found, milestones, section.title), steps))
    for name, runs in section.runs.items():
        drawing = figures.histogram(scores[name][0], name, section.title)
        plots.append(_figure(drawing, f"Test images, seed {runs[0][0].seed}."))
    means = [
        (name, metric_over_seeds([result for _, result in runs], "auroc").mean) for name, runs in section.runs.items()
    ]
    short = " · ".join(f"{escape(name)} {percent(mean)} %" for name, mean in means)
    return f"""<details{" open" if is_open else ""}>
<summary><b>{escape(section.title)}</b> <span>AUROC {short}</span></summary>
<p class="note" id="{anchor}">{escape(section.facts)}</p>
<div class="plots">{"".join(plots)}</div>
{_strips(section.runs[section.best][0][0])}
</details>
"""


def _losses(run: Run) -> np.ndarray:
    """The mean training loss of each epoch, from the log; NaN where a full disk left no line, or after divergence."""
    found = np.full(run.recipe.optim.epochs, np.nan)
    for line in read_log(run):
        found[line["epoch"]] = np.nan if line["loss"] is None else line["loss"]
    return found


def _strips(run: Run) -> str:
    strips = read_examples(run)
    parts = [
        f"<h4>{escape(title[0].upper() + title[1:])}</h4><div class=strip>{''.join(_thumbnails(strips[name]))}</div>"
        for name, title in STRIPS.items()
    ]
    return f"<h3>Test images by their score, {escape(run.objective)}, seed {run.seed}</h3>{''.join(parts)}"


def _thumbnails(strip: Strip) -> Iterable[str]:
    for image, name, target, score in zip(*strip, strict=True):
        kind = "anomalous" if target else "nominal"
        shown = "smooth" if max(image.shape) > PIXELATED_TO_PX else "pixels"
        name = escape(name)
        yield (
            f'<figure class="thumb {kind}"><img class="{shown}" src="{figures.thumbnail(image)}" '
            f'alt="{kind} test image of class {name}, score {score:#.3g}">'
            f'<figcaption><b title="{name}">{name}</b><i>{kind}</i>{score:#.3g}</figcaption></figure>'
        )


def _environment(found: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.items())
    return f"<dl>{items}</dl>"


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in COLOURS.items()) for side in (0, 1))
    rules = (resources.files("fastad.data") / "report.css").read_text(encoding="utf-8")
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"

"""The report as one HTML page that opens offline: inline style and pictures, no script, light or dark, wide or narrow.

Owns what a report is made of (`Report`), its layout, style and escaping; its words and figures are `fastad.report`'s,
its pictures `fastad.figures`'.
Use: `html(report)`.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from fastad import __version__, figures
from fastad.errors import FastadError
from fastad.evaluate import STRIPS, read_scores
from fastad.progress import progress
from fastad.run import Run, RunResult
from fastad.tables import Table, metric_over_seeds, percent

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
    """All that a report tells; `tiles`: a figure and what it is. Plain text throughout, not yet escaped."""

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str], ...]
    summary: str
    tables: tuple[Table, ...]
    sections: tuple[Section, ...]
    cost: Table
    environments: tuple[Mapping[str, str], ...]


def html(report: Report) -> str:
    """The page. Raises `FastadError` where the scores, the log or the examples of a run cannot be read."""
    anchors = {section.title: f"class-{number}" for number, section in enumerate(report.sections)}
    sections = []
    with progress("report", len(report.sections), unit="classes") as advance:
        for number, section in enumerate(report.sections):
            sections.append(_section(section, anchors[section.title], is_open=number == 0))
            advance()
    tiles = "".join(f"<li><strong>{escape(figure)}</strong> {escape(what)}</li>" for figure, what in report.tiles)
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
<ul class="tiles">{tiles}</ul>
<p class="summary">{escape(report.summary)}</p>
</header>
<main>
<h2>Results</h2>
<div class="results">
{_overview(report.sections)}
{"".join(_table(table, anchors) for table in report.tables)}
</div>
{_legend(report.tables)}
<h2>Classes</h2>
{"".join(sections)}
<h2>Cost and environment</h2>
{_table(report.cost, {})}
{"".join(_environment(found) for found in report.environments)}
</main>
<footer>Written by fastad {__version__} from the files of the run folders alone.</footer>
</body>
</html>
"""


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
    return f'<div class="overview">{_figure(figures.overview(rows), "AUROC by class", note)}</div>'


def _figure(picture: str, title: str, note: str = "") -> str:
    return f'<figure class="plot"><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>{picture}</figure>'


def _table(table: Table, anchors: Mapping[str, str]) -> str:
    """A table that scrolls within its own container; labels that have an anchor link to it."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    lines = []
    for row in table.rows:
        label = escape(row.label)
        if row.label in anchors and not row.is_mean:
            label = f'<a href="#{anchors[row.label]}">{label}</a>'
        cells = "".join(
            f'<td class="{"best" if column in row.best else "figure"}"><span>{escape(cell.figure)}</span> '
            f"<small>{escape(cell.interval)}</small></td>"
            for column, cell in enumerate(row.cells)
        )
        lines.append(f'<tr class="{"mean" if row.is_mean else "single"}"><th scope="row">{label}</th>{cells}</tr>')
    return (
        f'<figure class="table"><figcaption><b>{escape(table.title)}</b></figcaption><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note">{escape(table.note)}</p></figure>'
    )


def _section(section: Section, anchor: str, is_open: bool) -> str:
    scores = {name: [read_scores(run) for run, _ in runs] for name, runs in section.runs.items()}
    found = {name: [_losses(run) for run, _ in runs] for name, runs in section.runs.items()}
    first = next(iter(section.runs.values()))[0][0]
    band = "Band: lowest to highest seed." if any(len(runs) > 1 for runs in section.runs.values()) else ""
    milestones = first.recipe.optim.milestones
    steps = "Upright lines: the learning rate falls to a tenth." if milestones else ""
    plots = [
        _figure(figures.roc(scores, section.title), "ROC curves", band),
        _figure(figures.losses(found, milestones, section.title), "Training loss", steps),
    ]
    for name, runs in section.runs.items():
        picture = figures.histogram(scores[name][0], name, section.title)
        plots.append(_figure(picture, f"Scores of {name}", f"Test images, seed {runs[0][0].seed}."))
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
    """The mean training loss of each epoch, from the log."""
    try:
        with open(run.log) as lines:
            found = [json.loads(line)["loss"] for line in lines]
        if len(found) != run.recipe.optim.epochs:
            raise ValueError(f"{len(found)} of {run.recipe.optim.epochs} epochs")
        return np.array(found)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(run, run.log, error) from error


def _strips(run: Run) -> str:
    try:
        with open(run.examples, "rb") as file, np.load(file) as columns:
            strips = {
                name: {key: columns[f"{name}_{key}"] for key in ("images", "class", "target", "score")}
                for name in STRIPS
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(run, run.examples, error) from error
    parts = [
        f"<h4>{escape(title[0].upper() + title[1:])}</h4><div class=strip>{''.join(_thumbnails(strips[name]))}</div>"
        for name, title in STRIPS.items()
    ]
    return f"<h3>Test images by their score, {escape(run.objective)}, seed {run.seed}</h3>{''.join(parts)}"


def _thumbnails(strip: Mapping[str, np.ndarray]) -> Iterable[str]:
    for image, name, target, score in zip(*strip.values(), strict=True):
        kind = "anomalous" if target else "nominal"
        shown = "smooth" if max(image.shape) > PIXELATED_TO_PX else "pixels"
        name = escape(name)
        yield (
            f'<figure class="thumb {kind}"><img class="{shown}" src="{figures.thumbnail(image)}" '
            f'alt="{kind} test image of class {name}, score {score:#.3g}">'
            f'<figcaption><b title="{name}">{name}</b><i>{kind}</i>{score:#.3g}</figcaption></figure>'
        )


def _unreadable(run: Run, path: Path, error: Exception) -> FastadError:
    return FastadError(
        f"{path} cannot be read ({error}): remove {run.folder} and run the same fastad train command again"
    )


def _environment(found: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.items())
    return f"<dl>{items}</dl>"


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in figures.COLOURS.items()) for side in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}"


STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:0 20px 48px;background:var(--ground);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 -webkit-text-size-adjust:100%}
h1{font-size:clamp(1.7rem,5vw,2.5rem);line-height:1.15;margin:0;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:48px 0 14px;letter-spacing:-.01em}
h3{font-size:1rem;margin:26px 0 0}
h4{font-size:.875rem;font-weight:500;color:var(--muted);margin:14px 0 6px}
a{color:var(--accent)}
figure{margin:0}
header{padding-top:40px}
.kicker{margin:0 0 6px;font-size:.8rem;font-weight:600;letter-spacing:.08em;text-transform:uppercase;
 color:var(--accent)}
.subtitle{margin:8px 0 0;color:var(--muted)}
.summary{max-width:72ch;margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;list-style:none;
 margin:26px 0;padding:0}
.tiles li{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:14px 16px;font-size:.85rem;
 line-height:1.4;color:var(--muted);overflow-wrap:anywhere}
.tiles strong{display:block;font-size:1.5rem;line-height:1.3;color:var(--ink);font-weight:650;letter-spacing:-.02em}
figcaption b{color:var(--ink)}
.note,.plot figcaption{font-size:.85rem;color:var(--muted)}
.note{margin:8px 0 0;max-width:90ch}
.results{display:flex;flex-wrap:wrap;align-items:flex-start;gap:28px 32px}
.overview{flex:1 1 380px;max-width:520px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,255px),1fr));gap:12px;margin-top:14px}
.plot{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px 8px}
.plot{display:flex;flex-direction:column;justify-content:space-between}
.plot figcaption b{display:block}
.plot svg{display:block;width:100%;height:auto;margin-top:6px}
.table{flex:0 1 auto;min-width:0;max-width:100%}
.table .note{width:0;min-width:100%}
.scroll{overflow-x:auto;background:var(--panel);border:1px solid var(--line);border-radius:10px;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--muted);font-weight:600}
th:first-child{text-align:left;position:sticky;left:0;background:var(--panel)}
tbody th{font-weight:500}
td small{color:var(--muted);font-size:.82em;margin-left:.35em}
.results td small{display:inline-block;min-width:6.4em}
.best span{font-weight:700}
.best span::before{content:"\\2605";color:var(--accent);font-size:.75em;margin-right:.4em}
.mean th,.mean td{border-top:2px solid var(--muted)}
details{border-top:1px solid var(--line);padding:4px 0}
details[open]{padding-bottom:28px}
summary{cursor:pointer;padding:10px 0;overflow-wrap:anywhere}
summary b{font-size:1.05rem;margin-right:10px}
summary span{font-size:.88rem;color:var(--muted);font-variant-numeric:tabular-nums}
.strip{display:flex;flex-wrap:wrap;gap:10px 8px}
.thumb{width:78px;font-size:.72rem;line-height:1.35;color:var(--muted)}
.thumb img{display:block;width:78px;height:78px;object-fit:contain;border-radius:6px;border:3px solid var(--nominal)}
.thumb.anomalous img{border-style:dashed;border-color:var(--anomalous)}
.pixels{image-rendering:pixelated}
.thumb figcaption{padding-top:3px}
.thumb b,.thumb i{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-style:normal}
.thumb b{font-weight:600}
.nominal i{color:var(--nominal)}
.anomalous i{color:var(--anomalous)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;font-size:.9rem;margin:18px 0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
footer{margin-top:48px;padding-top:14px;border-top:1px solid var(--line);font-size:.85rem;color:var(--muted)}
@media(max-width:600px){body{padding:0 14px 40px}header{padding-top:26px}th,td{padding:8px 12px}
 .thumb,.thumb img{width:70px}.thumb img{height:70px}.results td small{display:block}
 dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}}
"""

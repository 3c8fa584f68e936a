"""The pictures of a report: plots as SVG that takes its colours from the page, and thumbnails as PNG data URIs.

Owns the palette and how curves, scores and images are drawn; what is drawn, and where it stands, is `fastad.page`'s.
Use: `roc({"hsc": [read_scores(run) for run in seeds]}, "class 3")`.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from sklearn.metrics import roc_curve

from fastad.evaluate import Scores
from fastad.run import Interval

# Light and dark. A plot is drawn in the light ones, which its SVG then names: no two may be equal.
COLOURS: Mapping[str, tuple[str, str]] = {
    "ground": ("#fbfbfa", "#14161a"),
    "panel": ("#ffffff", "#1c1f25"),
    "ink": ("#1c2024", "#e7e9ec"),
    "muted": ("#5c646d", "#9ba4ae"),
    "line": ("#dcdfe3", "#343a43"),
    "accent": ("#0b62a4", "#6cb6f5"),
    "nominal": ("#1b7f5c", "#4cc79a"),
    "anomalous": ("#c2461b", "#ff9061"),
    "series-0": ("#0072b2", "#56b4f0"),
    "series-1": ("#d55e00", "#ff9a52"),
    "series-2": ("#009e73", "#3ed1a6"),
    "series-3": ("#b4559a", "#e691c8"),
    "series-4": ("#a67c00", "#e8c04a"),
    "series-5": ("#6a51a3", "#a998ea"),
}
SERIES = [light for name, (light, _) in COLOURS.items() if name.startswith("series")]
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
STYLE: Any = {
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "svg.fonttype": "none",
    "svg.hashsalt": "fastad",
    "text.parse_math": False,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
}

FALSE_POSITIVE_RATES = np.linspace(0, 1, 201)
LOG_FROM_RATIO = 20
THUMBNAIL_PX = 96


def roc(scores: Mapping[str, Sequence[Scores]], about: str) -> str:
    """ROC curves, one line an objective: the mean over its seeds, in a band from the lowest to the highest of them."""

    def paint(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=LIGHT["line"], linewidth=1)
        for place, (objective, seeds) in enumerate(scores.items()):
            _curve(axes, FALSE_POSITIVE_RATES, [_true_positive_rates(found) for found in seeds], place, objective)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="lower right")

    return _svg(paint, f"ROC curves of {', '.join(scores)}: {about}")


def _true_positive_rates(scores: Scores) -> np.ndarray:
    """The highest true positive rate at or below each of `FALSE_POSITIVE_RATES`."""
    fpr, tpr, _ = roc_curve(scores.target, scores.score, drop_intermediate=False)
    return tpr[np.searchsorted(fpr, FALSE_POSITIVE_RATES, side="right") - 1]


def _curve(axes: Axes, x: np.ndarray, seeds: Sequence[np.ndarray], place: int, label: str) -> None:
    colour = SERIES[place % len(SERIES)]
    if len(seeds) > 1:
        axes.fill_between(x, np.min(seeds, axis=0), np.max(seeds, axis=0), color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        x, np.mean(seeds, axis=0), color=colour, linestyle=DASHES[place % len(DASHES)], linewidth=1.8, label=label
    )


def losses(found: Mapping[str, Sequence[np.ndarray]], milestones: Sequence[int], about: str) -> str:
    """Training losses, [epochs] for each seed of an objective, drawn as in `roc`; milestones are upright lines."""
    every = np.concatenate([loss for seeds in found.values() for loss in seeds])

    def paint(axes: Axes) -> None:
        for milestone in milestones:
            axes.axvline(milestone, color=LIGHT["line"], linewidth=1)
        for place, (objective, seeds) in enumerate(found.items()):
            _curve(axes, np.arange(1, len(seeds[0]) + 1), seeds, place, objective)
        if every.min() > 0 and every.max() > LOG_FROM_RATIO * every.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="epoch", ylabel="mean training loss")
        axes.legend(loc="best")

    return _svg(paint, f"Training loss of {', '.join(found)}: {about}")


def histogram(scores: Scores, objective: str, about: str) -> str:
    """Densities of the scores of nominal and of anomalous images; of their logarithm where all scores are positive."""
    positive = bool(scores.score.min() > 0)
    shown = scores.score.astype(np.float64)
    shown = np.log10(shown) if positive else shown
    edges = np.histogram_bin_edges(shown, bins=36).tolist()

    def paint(axes: Axes) -> None:
        for name, kind, dash in (("nominal", 0, "-"), ("anomalous", 1, "--")):
            chosen = shown[scores.target == kind]
            axes.hist(chosen, edges, density=True, histtype="stepfilled", color=LIGHT[name], alpha=0.25)
            axes.hist(
                chosen,
                edges,
                density=True,
                histtype="step",
                color=LIGHT[name],
                linestyle=dash,
                linewidth=1.6,
                label=name,
            )
        axes.set(xlabel=f"{'log₁₀ of the' if positive else ''} {objective} score", ylabel="density")
        axes.legend(loc="best", handlelength=2.5)

    return _svg(paint, f"Histogram of {objective} scores, nominal and anomalous test images: {about}")


def overview(rows: Mapping[str, Mapping[str, Sequence[Interval]]]) -> str:
    """AUROC by class and objective: one run with its interval; of several seeds the mean, lowest and highest.

    `rows`: for each class the runs of each objective, as fractions.
    """
    objectives = list(dict.fromkeys(name for row in rows.values() for name in row))

    def paint(axes: Axes) -> None:
        for place, objective in enumerate(objectives):
            offset = 0.5 * ((place + 0.5) / len(objectives) - 0.5)
            shown = {line + offset: row[objective] for line, row in enumerate(rows.values()) if objective in row}
            ends = [runs[0] if len(runs) == 1 else _span(runs) for runs in shown.values()]
            value, low, high = 100 * np.array(ends).T
            axes.errorbar(
                value,
                list(shown),
                # A bootstrap interval need not hold its value.
                xerr=np.maximum((value - low, high - value), 0),
                fmt=MARKERS[place % len(MARKERS)],
                color=SERIES[place % len(SERIES)],
                markersize=5,
                clip_on=False,
                linewidth=1.4,
                label=objective,
            )
        axes.set_yticks(range(len(rows)), list(rows), color=LIGHT["ink"])
        axes.set(xlabel="AUROC in %", ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlim(right=100)
        axes.grid(axis="x", color=LIGHT["line"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(objectives), 3), borderaxespad=0, handletextpad=0.2
        )

    return _svg(
        paint, f"AUROC by class of {', '.join(objectives)}", (4.6, 0.9 + len(rows) * max(0.26, 0.13 * len(objectives)))
    )


def _span(runs: Sequence[Interval]) -> Interval:
    values = [run.value for run in runs]
    return Interval(float(np.mean(values)), min(values), max(values))


def _svg(paint: Callable[[Axes], None], alt: str, size_in: tuple[float, float] = (3.3, 2.7)) -> str:
    """What `paint` draws, as an SVG element whose colours are the page's variables and whose ids are its own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(size_in, layout="constrained")
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    own = hashlib.sha256((alt + svg).encode()).hexdigest()[:10]
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>p{own}-", svg[svg.index("<svg") :])
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = svg.replace("font-family: 'DejaVu Sans', sans-serif", "font-family: inherit")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def thumbnail(image: np.ndarray) -> str:
    """An image, uint8 [H, W, C], as a PNG data URI: pixel for pixel, reduced only if larger than `THUMBNAIL_PX`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

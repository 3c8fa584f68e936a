"""The pictures of a report: curves, scores and images, as drawings, and thumbnails as PNG data URIs.

Owns what stands in a plot and how it is read; palette and file formats are `fastad.drawing`'s, the choice of plots is
`fastad.page`'s and `fastad.paper_figures`'.
Use: `svg(roc({"hsc": [read_scores(run) for run in seeds]}, "class 3"))`.
"""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from PIL import Image
from sklearn.metrics import roc_curve

from fastad.drawing import DASHES, LIGHT, MARKERS, SERIES, Drawing
from fastad.evaluate import Scores
from fastad.pixels import blur_matrix
from fastad.run import Interval

FALSE_POSITIVE_RATES = np.linspace(0, 1, 201)
LOG_FROM_RATIO = 20
THUMBNAIL_PX = 96


def roc(scores: Mapping[str, Sequence[Scores]], about: str) -> Drawing:
    """ROC curves, one line an objective: the mean over its seeds, in a band from the lowest to the highest of them."""

    def paint(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=LIGHT["line"], linewidth=1)
        for place, (objective, seeds) in enumerate(scores.items()):
            _curve(axes, FALSE_POSITIVE_RATES, [_true_positive_rates(found) for found in seeds], place, objective)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="lower right")

    return Drawing("ROC curves", f"ROC curves of {', '.join(scores)}: {about}", paint)


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


def losses(found: Mapping[str, Sequence[np.ndarray]], milestones: Sequence[int], about: str) -> Drawing:
    """Training losses, [epochs] for each seed of an objective, drawn as in `roc`; milestones are upright lines. Of
    the losses, those that are not known are NaN, but not all."""
    every = np.concatenate([loss for seeds in found.values() for loss in seeds])
    every = every[np.isfinite(every)]

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

    return Drawing("Training loss", f"Training loss of {', '.join(found)}: {about}", paint)


def histogram(scores: Scores, objective: str, about: str) -> Drawing:
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

    alt = f"Histogram of {objective} scores, nominal and anomalous test images: {about}"
    return Drawing(f"Scores of {objective}", alt, paint)


def overview(rows: Mapping[str, Mapping[str, Sequence[Interval]]]) -> Drawing:
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

    size_in = (4.6, 0.9 + len(rows) * max(0.26, 0.13 * len(objectives)))
    return Drawing("AUROC by class", f"AUROC by class of {', '.join(objectives)}", paint, size_in)


def _span(runs: Sequence[Interval]) -> Interval:
    values = [run.value for run in runs]
    return Interval(float(np.mean(values)), min(values), max(values))


TICKS_PER_IN = 1.9
# Percentage points of AUROC: what differs by less must not look steep.
LEAST_SPAN = 4.0


def curves(
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    values: Sequence[str],
    axis: str,
    title: str,
    references: Mapping[str, float],
    has_legend: bool,
    size_in: tuple[float, float],
) -> Drawing:
    """AUROC in % against a setting: for each line and value the mean over seeds, in a band from lowest to highest.

    `values`: all of the axis, evenly spaced and as they are written there; a line is broken where it lacks one.
    `references`: figures to compare with, as level lines.
    """

    def paint(axes: Axes) -> None:
        for name, level in references.items():
            axes.axhline(level, color=LIGHT["muted"], linewidth=1, linestyle=(0, (1, 2)), label=name)
        for place, (name, line) in enumerate(lines.items()):
            spans = [
                (np.mean(seeds), min(seeds), max(seeds)) if (seeds := line.get(value)) else (np.nan,) * 3
                for value in values
            ]
            means, low, high = np.array(spans).T
            colour, x = SERIES[place % len(SERIES)], np.arange(len(values))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                x, means, DASHES[place % 4] + MARKERS[place % len(MARKERS)], color=colour, markersize=3.2, label=name
            )
        every = -(-len(values) // round(TICKS_PER_IN * size_in[0]))
        axes.set_xticks(range(0, len(values), every), list(map(_tick, values))[::every])
        axes.set(xlabel=axis, ylabel="AUROC in %", xlim=(-0.3, len(values) - 0.7))
        low, high = axes.get_ylim()
        spare = max(0, LEAST_SPAN - (high - low)) / 2
        axes.set_ylim(low - spare, high + spare)
        axes.grid(axis="y", color=LIGHT["line"], linewidth=0.8)
        axes.set_axisbelow(True)
        if has_legend:
            axes.legend(loc="best", handlelength=2.6)

    return Drawing(title, f"{title}: AUROC of {', '.join(lines)} against {axis}", paint, size_in)


_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
POWERS_FROM = 1_000


def _tick(value: str) -> str:
    """A value of an axis; large powers of two as such."""
    number = int(value) if value.isdigit() else 0
    exponent = number.bit_length() - 1
    return f"2{str(exponent).translate(_RAISED)}" if POWERS_FROM < number == 1 << exponent else value


# Coordinates in a plane, [n, 2].
Points = np.ndarray


def region(height: np.ndarray | None, side: int, points: Mapping[str, Points], title: str) -> Drawing:
    """A decision region in a square plane, `side` wide, with points of the kinds "nominal" and "anomalous" on it.

    `height` [rows, columns], the lowest row first: below 0 a place counts as nominal; None for the points alone.
    """

    def paint(axes: Axes) -> None:
        across = np.arange(0, side, side // len(height) if height is not None else 1)
        if height is not None:
            axes.contourf(across, across, height < 0, levels=(0.5, 1.5), colors=LIGHT["nominal"], alpha=0.22)
            axes.contour(across, across, height, levels=(0,), colors=LIGHT["nominal"], linewidths=1.6)
        for kind, marker in (("anomalous", "x"), ("nominal", "o")):
            axes.plot(*points[kind].T, marker, color=LIGHT[kind], markersize=2, alpha=0.5, markeredgewidth=0.6)
        axes.set(xlim=(0, across[-1]), ylim=(0, across[-1]), xticks=(), yticks=(), aspect="equal")
        axes.spines[:].set_visible(True)

    return Drawing(title, f"Plane with nominal and OE points: {title}", paint, (2.7, 2.6))


def blurred(image: np.ndarray, sigmas_px: Mapping[str, float], title: str) -> Drawing:
    """An image, uint8 [H, W, C], blurred with Gaussians of those standard deviations (0: as it is), side by side, each
    under its name."""
    height, width, _ = image.shape
    step = width * 17 / 16

    def paint(axes: Axes) -> None:
        for place, sigma in enumerate(sigmas_px.values()):
            left = place * step
            pixels = _blur(image, sigma) if sigma else image
            axes.imshow(pixels, "gray", vmin=0, vmax=255, interpolation="none", extent=(left, left + width, height, 0))
        axes.set_xticks(width / 2 + step * np.arange(len(sigmas_px)), list(sigmas_px), color=LIGHT["ink"])
        axes.tick_params(length=0)
        axes.set(xlim=(0, step * len(sigmas_px)), yticks=(), xlabel="σ of the Gaussian in pixels")
        axes.spines[:].set_visible(False)

    return Drawing(title, f"{title}, σ = {', '.join(sigmas_px)} pixels", paint, (4.4, 1.2))


def _blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    rows, columns = (blur_matrix(side, sigma_px) for side in image.shape[:2])
    return np.einsum("ij,jkc,lk->ilc", rows, image, columns, optimize=True).round().astype(np.uint8)


def thumbnail(image: np.ndarray) -> str:
    """An image, uint8 [H, W, C], as a PNG data URI: pixel for pixel, reduced only if larger than `THUMBNAIL_PX`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

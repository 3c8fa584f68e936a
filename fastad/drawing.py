"""How a plot becomes a picture: one way of drawing, as SVG for pages, and as PNG and PDF for papers and slides.

Owns the palette and the style; what is drawn is `fastad.figures`'.
Use: `svg(Drawing("ROC curves", "ROC curves of hsc", paint))`, `save([drawing, other], Path("figure-2"), columns=2)`.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastad.files import write_bytes

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
    "pdf.fonttype": 42,  # text that can be searched and copied
    "svg.fonttype": "none",
    "svg.hashsalt": "fastad",
    "text.parse_math": False,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
}

FORMATS = ("png", "pdf")
DOTS_PER_INCH = 200
TITLE_IN = 0.3


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot. `title` stands above it, `alt` tells in words what it shows, `paint` draws it into axes."""

    title: str
    alt: str
    paint: Callable[[Axes], None]
    size_in: tuple[float, float] = (3.3, 2.7)


def svg(drawing: Drawing) -> str:
    """The plot as an SVG element whose colours are the page's variables and whose ids are its own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(drawing.size_in, layout="constrained")
        drawing.paint(figure.subplots())
        text = _saved(figure, "svg", dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True).decode()
    # Nothing refers to images, and equal ones would share an id.
    text = re.sub(r' id="image[^"]*"', "", text)
    own = hashlib.sha256((drawing.alt + text).encode()).hexdigest()[:10]
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>p{own}-", text[text.index("<svg") :])
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    text = text.replace("font-family: 'DejaVu Sans', sans-serif", "font-family: inherit")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(drawing.alt)}" ', 1)


def save(drawings: Sequence[Drawing], stem: Path, columns: int) -> list[Path]:
    """The plots in a grid, lettered if there are several, as `<stem>.png` and `<stem>.pdf`; always the same bytes."""
    width = max(drawing.size_in[0] for drawing in drawings)
    lines = [drawings[first : first + columns] for first in range(0, len(drawings), columns)]
    heights = [max(drawing.size_in[1] for drawing in line) + TITLE_IN for line in lines]
    with matplotlib.rc_context(STYLE):
        figure = Figure((width * columns, sum(heights)), layout="constrained")
        every = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).flatten()
        for axes in every[len(drawings) :]:
            axes.set_axis_off()
        for place, (axes, drawing) in enumerate(zip(every, drawings, strict=False)):
            drawing.paint(axes)
            letter = f"({chr(ord('a') + place)}) " if len(drawings) > 1 else ""
            axes.set_title(letter + drawing.title, fontsize=9, color=LIGHT["ink"])
        paths = []
        for kind, metadata in zip(FORMATS, ({"Software": None}, {"CreationDate": None}), strict=True):
            paths.append(stem.with_name(f"{stem.name}.{kind}"))
            write_bytes(paths[-1], _saved(figure, kind, metadata, dpi=DOTS_PER_INCH))
    return paths


def _saved(figure: Figure, kind: str, metadata: Mapping[str, None], **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=metadata, **options)
    return file.getvalue()

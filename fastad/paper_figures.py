"""The paper's Figures 1 to 12, drawn from what was measured.

Owns which experiment each figure shows, over which classes, and its words; how a plot looks is `fastad.figures`'.
Use: `for figure in paper_figures(measured(results), runs): save(figure.drawings, Path(figure.name), figure.columns)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastad.coverage import classes_of
from fastad.drawing import Drawing
from fastad.evaluate import read_examples, read_oe_image
from fastad.experiment import Experiment, find_experiment
from fastad.figures import blurred, curves
from fastad.measured import Measured, Place, Values, class_means
from fastad.published import published
from fastad.run import Run, natural, slug

NAMES = {"hsc": "HSC", "bce": "BCE", "focal": "Focal", "deep-sad": "DSAD", "deep-svdd": "Deep SVDD"}


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """Curves of one experiment. `zero`: the experiment and point that is σ = 0 of a blur; `references`: figures that
    the paper printed for other methods."""

    experiment: str
    about: str
    axis: str
    zero: tuple[str, str] | None = None
    references: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure of the paper. `classes`: a panel for each of these instead of one for their mean; `shows_blur`: a strip
    of blurred images as well."""

    title: str
    panels: tuple[PanelSpec, ...]
    classes: slice | None = None
    shows_blur: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A figure of one or more plots, `columns` beside each other; `name` is that of its files, `experiments` are those
    that it shows."""

    name: str
    title: str
    note: str
    drawings: tuple[Drawing, ...]
    columns: int
    experiments: tuple[str, ...]


SIZE, CLASSES, BLUR, GAMMA = "OE images", "OE classes", "σ of the OE blur in pixels", "γ of Focal"
CIFAR_SIZE = PanelSpec(
    "cifar10-oe-size", "CIFAR-10", SIZE, references={"GT+*, paper": published(4).rows["mean"][4].mean}
)
IMAGENET_SIZE = PanelSpec(
    "imagenet30-oe-size", "ImageNet-30", SIZE, references={"GT+*, paper": published(2).rows["mean"][0].mean}
)
MNIST_CLASSES = PanelSpec("mnist-oe-classes", "MNIST, OE EMNIST letters", CLASSES)
CIFAR_CLASSES = PanelSpec("cifar10-oe-classes", "CIFAR-10, OE CIFAR-100", CLASSES)
MEAN_IN, CLASS_IN = (4.4, 3.0), (2.6, 2.1)
BAND = "Mean over seeds, in a band from the lowest to the highest."
# The titles of blurred images, and notes.
OE_IMAGE = "an OE image, blurred", "The OE image is shown as the network gets it at each σ."
TEST_IMAGE = (
    "a test image, blurred",
    "The image is a test image: these results are older than those that keep an OE image.",
)

FIGURES: Mapping[int, FigureSpec] = {
    2: FigureSpec(
        "how many OE images it takes",
        (CIFAR_SIZE, IMAGENET_SIZE),
        note="Level lines: GT+ as published, without OE on CIFAR-10 (the best of the unsupervised methods), with OE on "
        "ImageNet (the best before the paper).",
    ),
    3: FigureSpec(
        "ImageNet-30 with 64 OE images, increasingly blurred",
        (PanelSpec("imagenet30-oe-blur", "ImageNet-30", BLUR, ("imagenet30-oe-size", "oe_size=64")),),
        shows_blur=True,
    ),
    4: FigureSpec("how many OE classes it takes", (MNIST_CLASSES, CIFAR_CLASSES)),
    5: FigureSpec(
        "MNIST with EMNIST letters as OE, increasingly blurred",
        (PanelSpec("mnist-oe-blur", "MNIST", BLUR, ("mnist-oe-classes", "oe_classes=26")),),
        shows_blur=True,
    ),
    6: FigureSpec(
        "CIFAR-10 with 128 OE images, increasingly blurred",
        (PanelSpec("cifar10-oe-blur", "CIFAR-10", BLUR, ("cifar10-oe-size", "oe_size=128")),),
        shows_blur=True,
    ),
    7: FigureSpec(
        "Focal with several γ",
        (
            PanelSpec("cifar10-focal-gamma", "CIFAR-10", GAMMA),
            PanelSpec("imagenet30-focal-gamma", "ImageNet-30, first ten classes", GAMMA),
        ),
        note="γ = 0 is BCE.",
    ),
    8: FigureSpec("how many OE images it takes, by class of CIFAR-10", (CIFAR_SIZE,), slice(None)),
    9: FigureSpec("how many OE images it takes, by class of ImageNet-30, 1 to 15", (IMAGENET_SIZE,), slice(15)),
    10: FigureSpec("how many OE images it takes, by class of ImageNet-30, 16 to 30", (IMAGENET_SIZE,), slice(15, None)),
    11: FigureSpec("how many OE classes it takes, by class of MNIST", (MNIST_CLASSES,), slice(None)),
    12: FigureSpec("how many OE classes it takes, by class of CIFAR-10", (CIFAR_CLASSES,), slice(None)),
}

# Lines of a plot: AUROC in % of each seed, by line and value of the axis.
Lines = dict[str, dict[str, Values]]


def paper_figures(found: Measured, runs: Sequence[Run]) -> list[ReportFigure]:
    """Those of Figures 1 to 12 for which there are results. Raises `FastadError` where a file of a run is damaged."""
    figures = (_figure(number, spec, found, runs) for number, spec in FIGURES.items())
    return [figure for figure in figures if figure.drawings]


def _figure(number: int, spec: FigureSpec, found: Measured, runs: Sequence[Run]) -> ReportFigure:
    drawings: list[Drawing] = []
    notes = [spec.note] if spec.note else []
    for panel in spec.panels:
        experiment = find_experiment(panel.experiment)
        if not any(place.experiment == panel.experiment for place in found):
            continue
        values, lines = _lines(panel, experiment, found)
        classes = classes_of(experiment)
        if spec.classes is None:
            chosen = widest([each for line in lines.values() for each in line.values()], classes)
            about = f"{panel.about}, {_mean_of(chosen, classes)}"
            drawings.append(_mean_panel(lines, chosen, values, panel, about))
        else:
            drawings += _class_panels(lines, classes[spec.classes], values, panel)
        if spec.shows_blur and (strip := _blur_strip(panel, values, runs)):
            drawings.append(strip.drawing)
            notes.append(strip.note)
    columns = 5 if spec.classes else 1 if spec.shows_blur else 2
    title, note = f"Figure {number}: {spec.title}", " ".join((BAND, *notes))
    experiments = tuple(panel.experiment for panel in spec.panels)
    return ReportFigure(f"figure-{number}", title, note, tuple(drawings), min(len(drawings), columns), experiments)


def _lines(panel: PanelSpec, experiment: Experiment, found: Measured) -> tuple[list[str], Lines]:
    """The values of the axis, and for each line what was measured at them."""
    lines: Lines = {}
    if panel.axis == GAMMA:
        places = {gamma_of(objective): Place(experiment.name, "", objective) for objective in experiment.objectives}
        return list(places), {"Focal": {gamma: found.get(place, {}) for gamma, place in places.items()}}
    (axis,) = experiment.grid
    values = list(axis.values)
    for objective in experiment.objectives:
        lines[NAMES[objective]] = {
            value: found.get(Place(experiment.name, f"{axis.name}={value}", objective), {}) for value in values
        }
        if panel.zero:
            lines[NAMES[objective]]["0"] = found.get(Place(*panel.zero, objective), {})
    return ["0"] * bool(panel.zero) + values, lines


def gamma_of(objective: str) -> str:
    """γ of an objective "focal" or "focal:γ"."""
    return objective.partition(":")[2] or "2"


def widest(each: Iterable[Values], classes: Sequence[str]) -> list[str]:
    """The classes to average over: those of the place that serves most, counting its classes times the places that have
    them all. So means at all places drawn are over the same classes."""
    held = [frozenset(values) & frozenset(classes) for values in each if values]
    best = max(set(held), key=lambda some: (len(some) * sum(some <= other for other in held), sorted(some)), default=())
    return [name for name in classes if name in best]


def _mean_of(chosen: Sequence[str], classes: Sequence[str]) -> str:
    if len(chosen) == 1:
        return f"class {chosen[0]} alone"
    return f"mean of {len(chosen)}{f' of {len(classes)}' * (len(chosen) < len(classes))} classes"


def _mean_panel(lines: Lines, classes: Sequence[str], values: Sequence[str], panel: PanelSpec, about: str) -> Drawing:
    shown = {name: {value: class_means(each, classes) for value, each in line.items()} for name, line in lines.items()}
    return curves(shown, values, panel.axis, about, panel.references or {}, has_legend=True, size_in=MEAN_IN)


def _class_panels(lines: Lines, classes: Sequence[str], values: Sequence[str], panel: PanelSpec) -> list[Drawing]:
    drawings: list[Drawing] = []
    for name in classes:
        shown = {
            line: {value: list(each.get(name, {}).values()) for value, each in found.items()}
            for line, found in lines.items()
        }
        if any(seeds for line in shown.values() for seeds in line.values()):
            drawings.append(
                curves(shown, values, panel.axis, name.replace("_", " "), {}, has_legend=not drawings, size_in=CLASS_IN)
            )
    return drawings


class _Strip(NamedTuple):
    """A drawing, and what it shows."""

    drawing: Drawing
    note: str


def _blur_strip(panel: PanelSpec, values: Sequence[str], runs: Sequence[Run]) -> _Strip | None:
    """An OE image at every σ, in pixels of what the network gets."""
    run = next((run for run in runs if run.recipe.name.startswith(f"{panel.experiment}/")), None)
    if run is None or not run.examples.is_file():
        return None
    spec, (title, note), image = run.recipe.augment, OE_IMAGE, read_oe_image(run)
    seen_px = spec.crop_px
    if image is None:
        title, note = TEST_IMAGE
        image, seen_px = read_examples(run)["lowest"].images[0], spec.resize_px
    # Examples of photographs are smaller than what the network gets.
    scale = image.shape[0] / (seen_px or image.shape[0])
    return _Strip(blurred(image, {value: scale * float(value) for value in values}, title), note)


def grid_figure(found: Measured, experiment: str) -> ReportFigure | None:
    """The same for any other experiment: means over classes against the points of its grid, if there are several."""
    labels = sorted({place.label for place in found if place.experiment == experiment}, key=natural)
    if len(labels) < 2:
        return None
    keys = {label.partition("=")[0] for label in labels}
    axis = keys.pop().replace("_", " ") if len(keys) == 1 and not any("," in label for label in labels) else ""
    names = {label: label.partition("=")[2] if axis else label for label in labels}
    lines: Lines = {}
    for place, values in found.items():
        if place.experiment == experiment:
            lines.setdefault(place.objective, {})[names[place.label]] = values
    every = [each for line in lines.values() for each in line.values()]
    classes = sorted({name for values in every for name in values}, key=natural)
    chosen = widest(every, classes)
    panel = PanelSpec(experiment, experiment, axis)
    drawing = _mean_panel(lines, chosen, list(names.values()), panel, f"{experiment}, {_mean_of(chosen, classes)}")
    return ReportFigure(
        slug(f"grid-{experiment}"), f"{experiment}: AUROC against its grid", BAND, (drawing,), 1, (experiment,)
    )

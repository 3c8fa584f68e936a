"""Figure 1: the decision regions of the toy experiment, from the scores of its runs, with the points they learnt from.

Owns its panels; the plane and its far field are `fastad.toy`'s.
Use: `toy_figure(finished_runs([Path("runs")]))`.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fastad.drawing import Drawing
from fastad.evaluate import read_scores
from fastad.figures import Points, region
from fastad.listing import find_converter
from fastad.paper_figures import NAMES, ReportFigure
from fastad.run import Run
from fastad.toy import BOUNDARY, FAR, SIDE, far_field_nominal_share, plane

EXPERIMENT = "toy"
SHOWN_POINTS = 250

# In the paper's order; of a run more seeds than the first are not shown.
OBJECTIVES = ("bce", "hsc")

NOTE = (
    "Of each setting the training points, nominal ones as circles and OE as crosses, then the decision regions that "
    "were learnt: within the line a point counts as nominal. In the titles, the share of the far field (beyond "
    f"{FAR:g} standard deviations of the nominal points) that counts as nominal, too: nearly 0 where the region is "
    "compact. The authors' points were not published; these follow their description."
)


def toy_figure(runs: Iterable[Run]) -> ReportFigure | None:
    """The figure, of the settings that were trained; None if there are none.

    Raises `FastadError` where scores cannot be read or are not of the toy set.
    """
    found = _settings(runs)
    if not found:
        return None
    drawings = [drawing for setting, members in found.items() for drawing in _panels(setting, members)]
    title = "Figure 1: what a toy detector learns of a plane"
    return ReportFigure("figure-1", title, NOTE, tuple(drawings), 1 + max(map(len, found.values())), (EXPERIMENT,))


def _settings(runs: Iterable[Run]) -> dict[str, dict[str, Run]]:
    """The runs of each setting, by objective."""
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        experiment, _, label = run.recipe.name.partition("/")
        if experiment == EXPERIMENT and run.objective in OBJECTIVES:
            found.setdefault(label.partition("=")[2], {}).setdefault(run.objective, run)
    return dict(sorted(found.items()))


def far_shares(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """For each setting and objective by its name, the share of the far field that counts as nominal."""
    return {
        setting: {NAMES[name]: _far_share(members[name]) for name in OBJECTIVES if name in members}
        for setting, members in _settings(runs).items()
    }


def _far_share(run: Run) -> float:
    scores = read_scores(run)
    return far_field_nominal_share(scores.key, scores.score, run.objective)


def _panels(setting: str, members: dict[str, Run]) -> list[Drawing]:
    points = _points(next(iter(members.values())))
    drawings = [region(None, SIDE, points, setting)]
    for objective in OBJECTIVES:
        if objective in members:
            scores = read_scores(members[objective])
            # The boundary comes to 0, whatever the objective's scores are.
            height = plane(scores.key, scores.score) - BOUNDARY[objective]
            title = f"{setting}, {NAMES[objective]}: far field {100 * _far_share(members[objective]):.1f} %"
            drawings.append(region(height, SIDE, points, title))
    return drawings


def _points(run: Run) -> dict[str, Points]:
    """Some of the training points, as the set's converter draws them: nominal, and the OE that the run was given."""
    drawn = itertools.takewhile(lambda sample: sample.split == "train", find_converter(EXPERIMENT).samples())
    by_class: dict[str, list[np.ndarray]] = {}
    for sample in drawn:
        by_class.setdefault(str(sample.class_name), []).append(np.array(sample.pixels).ravel())
    oe = [name for name in by_class if name not in (*run.recipe.data.oe_exclude_classes, run.class_name)]
    return {
        "nominal": _some(by_class[run.class_name]),
        "anomalous": _some([point for name in oe for point in by_class[name]]),
    }


def _some(points: Sequence[np.ndarray]) -> Points:
    return np.array(points)[:: max(1, len(points) // SHOWN_POINTS)].astype(np.float64)

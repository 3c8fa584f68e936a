"""Figure 1: its panels show the regions that the scores tell, beside the points that the set's converter draws."""

from pathlib import Path

import numpy as np
from made_runs import make_result
from matplotlib.figure import Figure

from fastad.evaluate import Scores, write_scores
from fastad.experiment import find_experiment, point_recipe
from fastad.run import Run, open_run, write_result
from fastad.toy import BOUNDARY, MIDDLE, places
from fastad.toy_figure import far_shares, toy_figure
from fastad.words import toy_told


def make_toy(out: Path, setting: str, objective: str) -> Run:
    """A run whose region is a disc of radius 30 for HSC, and all that is right of the middle for BCE."""
    experiment = find_experiment("toy")
    (point,) = (point for point in experiment.points() if point.label == f"setting={setting}")
    run = open_run(out, point_recipe(experiment, point), "nominal", objective, 1)
    x, y = np.array(list(places())).T
    height = np.hypot(x - MIDDLE, y - MIDDLE) - 30 if objective == "hsc" else MIDDLE - x
    keys = np.array([f"test-{a:03d}-{b:03d}".encode() for a, b in zip(x, y, strict=True)])
    target = (np.hypot(x - MIDDLE, y - MIDDLE) > 36).astype(np.int8)
    score = (height + BOUNDARY[objective]).astype(np.float32)
    write_scores(run, Scores(keys, np.where(target == 1, "elsewhere", "nominal"), target, score))
    write_result(run, make_result("nominal", objective, 1, 0.9, run.recipe.name))
    return run


def test_panels_are_the_points_then_the_regions_of_bce_and_hsc(tmp_path: Path) -> None:
    runs = [make_toy(tmp_path, setting, name) for setting in ("skewed", "ideal") for name in ("hsc", "bce")]
    figure = toy_figure(runs)
    assert figure is not None and figure.columns == 3
    titles = [drawing.title for drawing in figure.drawings]
    assert (
        titles[0] == "ideal" and titles[1].startswith("ideal, BCE: far field 4") and titles[2].endswith("field 0.0 %")
    )
    assert titles[3] == "skewed"


def test_the_line_is_drawn_where_nominal_and_anomalous_are_even(tmp_path: Path) -> None:
    figure = toy_figure([make_toy(tmp_path, "ideal", "hsc")])
    assert figure is not None
    axes = Figure().subplots()
    figure.drawings[1].paint(axes)
    line = np.concatenate([path.vertices for path in axes.collections[1].get_paths()])
    assert np.abs(np.hypot(*(line - MIDDLE).T) - 30).max() < 0.5


def test_the_points_are_the_settings_own(tmp_path: Path) -> None:
    figure = toy_figure([make_toy(tmp_path, name, "hsc") for name in ("ideal", "skewed")])
    assert figure is not None
    oe = {}
    for drawing in (figure.drawings[0], figure.drawings[2]):
        axes = Figure().subplots()
        drawing.paint(axes)
        anomalous, nominal = (np.array(line.get_data()).T for line in axes.get_lines())
        assert np.abs(nominal.mean(axis=0) - MIDDLE).max() < 5
        oe[drawing.title] = anomalous
    # Skewed has none in the upper half but its left cluster; ideal has them all over.
    assert np.mean((oe["skewed"][:, 0] > 150) & (oe["skewed"][:, 1] > 100)) == 0
    assert np.mean((oe["ideal"][:, 0] > 150) & (oe["ideal"][:, 1] > 100)) > 0.1


def test_the_share_of_the_far_field_is_told(tmp_path: Path) -> None:
    shares = far_shares([make_toy(tmp_path, "skewed", name) for name in ("hsc", "bce")])
    assert shares["skewed"]["HSC"] == 0 and 0.4 < shares["skewed"]["BCE"] < 0.5
    (told,) = toy_told(shares)
    assert "“skewed”, 4" in told and "% of the far field by BCE and 0.0 % of the far field by HSC" in told


def test_without_toy_runs_there_is_no_figure() -> None:
    assert toy_figure([]) is None

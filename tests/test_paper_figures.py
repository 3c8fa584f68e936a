"""The paper's figures: drawn from what there is, over the classes and seeds that there are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_experiment
from matplotlib.figure import Figure

from fastad.drawing import Drawing
from fastad.measured import Place, measured
from fastad.paper_figures import FIGURES, ReportFigure, gamma_of, grid_figure, paper_figures, widest
from fastad.pixels import blur_matrix
from fastad.results import Finished, finished_runs


def figures(found: Finished) -> dict[str, ReportFigure]:
    drawn = paper_figures(measured(result for _, result in found), [run for run, _ in found])
    return {figure.name: figure for figure in drawn}


def lines(drawing: Drawing) -> dict[str, Sequence[float]]:
    """What is drawn, by the names in the legend."""
    axes = Figure().subplots()
    drawing.paint(axes)
    return {str(line.get_label()): line.get_ydata() for line in axes.get_lines()}  # type: ignore[misc]


@pytest.fixture(scope="module")
def all_experiments(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Every experiment of Figures 2 to 12, two classes and two seeds each."""
    out = tmp_path_factory.mktemp("runs")
    for name in {panel.experiment for figure in FIGURES.values() for panel in figure.panels}:
        make_experiment(out, name, classes=2, seeds=2)
    make_experiment(out, "imagenet30-oe-size", seeds=1)
    return finished_runs([out])


def test_every_figure_is_drawn(all_experiments: Finished) -> None:
    drawn = figures(all_experiments)
    assert list(drawn) == [f"figure-{number}" for number in FIGURES]
    panels = {name: len(figure.drawings) for name, figure in drawn.items()}
    assert panels["figure-2"] == panels["figure-4"] == panels["figure-7"] == 2
    assert panels["figure-8"] == panels["figure-11"] == panels["figure-12"] == 2
    assert panels["figure-9"] == panels["figure-10"] == 15
    assert [drawing.title for drawing in drawn["figure-9"].drawings[2:4]] == ["ambulance", "american alligator"]
    assert drawn["figure-10"].drawings[0].title == "manhole cover"
    assert all("AUROC of" in drawing.alt for figure in drawn.values() for drawing in figure.drawings)


def test_a_mean_panel_shows_class_means_over_seeds(all_experiments: Finished) -> None:
    values = measured(result for _, result in all_experiments)
    panel = figures(all_experiments)["figure-4"].drawings[0]
    assert "mean of 2 of 10 classes" in panel.title
    ours = values[Place("mnist-oe-classes", "oe_classes=5", "bce")]
    assert lines(panel)["BCE"][3] == pytest.approx(np.mean([list(seeds.values()) for seeds in ours.values()]))


def test_the_unblurred_point_comes_from_the_other_experiment(all_experiments: Finished) -> None:
    values = measured(result for _, result in all_experiments)
    panel = figures(all_experiments)["figure-6"].drawings[0]
    ours = values[Place("cifar10-oe-size", "oe_size=128", "hsc")]
    assert lines(panel)["HSC"][0] == pytest.approx(np.mean([list(seeds.values()) for seeds in ours.values()]))
    assert len(lines(panel)["HSC"]) == 7


def test_the_axis_of_focal_is_its_gamma(all_experiments: Finished) -> None:
    assert [gamma_of(name) for name in ("focal:0", "focal", "focal:4")] == ["0", "2", "4"]
    panel = figures(all_experiments)["figure-7"].drawings[0]
    assert list(lines(panel)) == ["Focal"] and len(lines(panel)["Focal"]) == 4


def test_published_levels_of_other_methods_stand_in_figure_2(all_experiments: Finished) -> None:
    a, b = figures(all_experiments)["figure-2"].drawings
    assert set(lines(a)["GT+*, paper"]) == {90.1} and set(lines(b)["GT+*, paper"]) == {85.7}


def test_without_results_there_is_no_figure_and_a_partial_one_shows_what_there_is(tmp_path: Path) -> None:
    assert paper_figures({}, []) == []
    make_experiment(tmp_path, "mnist-oe-blur", seeds=1)
    for objective in ("hsc", "bce"):
        for path in (tmp_path / "mnist-oe-blur" / "oe_blur_sigma_px=8").glob(f"*/{objective}/seed1/result.json"):
            path.unlink()
    drawn = figures(finished_runs([tmp_path]))
    assert list(drawn) == ["figure-5"]
    # Neither σ = 0, which another experiment has, nor σ = 8.
    missing = np.isnan(lines(drawn["figure-5"].drawings[0])["HSC"])
    assert missing.tolist() == [True, False, False, False, True, False, False]


@pytest.mark.parametrize(
    # Of ImageNet's crops of 224 px, 128 are shown.
    ("experiment", "name", "side", "sigma_px"),
    [("cifar10-oe-blur", "figure-6", 32, 4.0), ("imagenet30-oe-blur", "figure-3", 128, 4.0 * 128 / 224)],
)
def test_the_blur_is_shown_on_an_oe_image_or_on_a_test_image_where_results_hold_none(
    experiment: str, name: str, side: int, sigma_px: float, tmp_path: Path
) -> None:
    make_experiment(tmp_path, experiment, classes=1, seeds=1, with_files=True)
    runs = finished_runs([tmp_path])
    figure = figures(runs)[name]
    assert figure.drawings[1].title == "a test image, blurred" and "these results are older" in figure.note
    half = np.zeros((side, side, 1), np.uint8)
    half[:, side // 2 :] = 255
    for run, _ in runs:
        with np.load(run.examples) as columns:
            np.savez(run.examples, **dict(columns), oe_image=half)
    figure = figures(runs)[name]
    assert figure.drawings[1].title == "an OE image, blurred"
    assert "as the network gets it at each σ" in figure.note and "test image" not in figure.note
    axes = Figure().subplots()
    figure.drawings[1].paint(axes)
    shown = [image.get_array() for image in axes.images]
    assert len(shown) == 7
    np.testing.assert_array_equal(shown[0], half[..., 0])
    weights = blur_matrix(side, sigma_px)
    np.testing.assert_array_equal(shown[3][5], (weights[:, side // 2 :].sum(axis=1) * 255).round())


def test_means_are_over_the_classes_that_serve_most_places() -> None:
    one, both, all_three = ({name: {1: 1.0} for name in names} for names in ("a", "ab", "abc"))
    assert widest([both, both, all_three], "abc") == ["a", "b"]
    assert widest([one, all_three], "abc") == ["a", "b", "c"]
    assert widest([{}, {}], "abc") == []


def test_any_other_experiment_is_drawn_against_its_grid(tmp_path: Path) -> None:
    make_experiment(tmp_path, "smoke")
    found = measured(result for _, result in finished_runs([tmp_path]))
    figure = grid_figure(found, "smoke")
    assert figure is not None and figure.drawings[0].title == "smoke, mean of 3 classes"
    assert list(lines(figure.drawings[0])) == ["hsc", "bce"]
    assert grid_figure(found, "other") is None

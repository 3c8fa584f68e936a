"""Pictures: SVG takes its colours from the page and shares no id; PNG and PDF are the same bytes each time."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastad.drawing import COLOURS, LIGHT, Drawing, save, svg
from fastad.figures import blurred, curves
from fastad.pixels import blur_matrix


def drawing(title: str = "title", colour: str = LIGHT["series-0"]) -> Drawing:
    return Drawing(title, "a <plot>", lambda axes: axes.plot([0, 1], [0, 1], color=colour))


def ids(text: str) -> set[str]:
    return set(re.findall(r' id="([^"]+)"', text))


def size_px(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_svg_names_the_pages_colours_and_no_others() -> None:
    text = svg(drawing())
    assert "var(--series-0)" in text and "var(--muted)" in text
    assert not any(light in text for light, _ in COLOURS.values())
    assert 'aria-label="a &lt;plot&gt;"' in text and text.startswith("<svg role")


def test_two_plots_on_a_page_share_no_id_and_one_comes_out_the_same() -> None:
    one, other = svg(drawing()), svg(drawing(colour=LIGHT["series-1"]))
    assert ids(one) and not ids(one) & ids(other)
    assert one == svg(drawing())


def test_files_are_lettered_grids_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in save([drawing(), drawing("b")], tmp_path / "one", columns=2)]
    again = [path.read_bytes() for path in save([drawing(), drawing("b")], tmp_path / "one", columns=2)]
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pdf", "one.png"]
    wide, tall = (size_px(save([drawing()] * 2, tmp_path / name, columns)[0]) for name, columns in (("w", 2), ("t", 1)))
    assert wide == (2 * tall[0], tall[1] // 2)


def test_curves_break_where_a_value_is_missing() -> None:
    lines = {"HSC": {"1": [90.0, 92.0], "4": [95.0]}}
    plot = curves(lines, ["1", "2", "4"], "OE images", "about", {"GT+": 80.0}, has_legend=True, size_in=(3, 2))
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plot.paint(axes)
    reference, line = axes.get_lines()
    assert np.array_equal(line.get_ydata(), [91, np.nan, 95], equal_nan=True)
    assert set(np.atleast_1d(reference.get_ydata())) == {80.0}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    band = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert {90.0, 92.0} <= set(band[:, 1])


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_blur_shown_is_the_trainings(sigma: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 10, 1), dtype=np.uint8)
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    blurred(image, {"0": 0.0, "σ": sigma}, "blur").paint(axes)
    as_it_is, shown = (np.asarray(found.get_array()) for found in axes.get_images())
    expected = blur_matrix(12, sigma) @ image[..., 0].astype(float) @ blur_matrix(10, sigma).T
    assert np.array_equal(as_it_is, image[..., 0]) and np.abs(shown - expected).max() <= 0.5 + 1e-3


def test_svg_is_parsable() -> None:
    from xml.etree import ElementTree

    ElementTree.parse(io.StringIO(svg(drawing())))


def test_what_hardly_differs_does_not_look_steep() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curves({"Focal": {"0": [95.9], "2": [96.0]}}, ["0", "2"], "γ", "about", {}, has_legend=False, size_in=(3, 2)).paint(
        axes
    )
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(4) and (low + high) / 2 == pytest.approx(95.95)

"""Reports: pages stand on their own and show what was measured; the paper's tables and figures stand beside them."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import AWKWARD, RECIPE, make_clothes, make_run

from fastad.errors import FastadError
from fastad.evaluate import STRIPS
from fastad.recipe import parse
from fastad.report import write_report
from fastad.results import finished_results, results_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    make_clothes(out)
    return out


@pytest.fixture(scope="module")
def pages(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report([runs], tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """What a page refers to, what its pictures are called, its text, and whether its tags are balanced."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.alts: list[str | None] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.references += [found[name] or "" for name in ("src", "href", "xlink:href") if name in found]
        self.alts += [found.get("alt")] if tag == "img" else []
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_refers_to_nothing_outside(pages: list[Path]) -> None:
    text = pages[1].read_text()
    page = Page(text)
    assert not page.open
    assert page.references and all(reference.startswith(("data:", "#")) for reference in page.references)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert not page.tags & {"script", "link", "iframe"} and "@import" not in text and "url(http" not in text


def test_the_page_shows_classes_objectives_and_figures_escaped(pages: list[Path]) -> None:
    text = pages[1].read_text()
    page = Page(text)
    assert AWKWARD not in text and escape(AWKWARD) in text
    for word in (AWKWARD, "Bag", "hsc", "bce", "92.0 ± 2.83", "A & B", "letters", "fashion-mnist"):
        assert word in page.words
    # Two classes, four strips of four images, each with what it is in words.
    assert len(page.alts) == 2 * len(STRIPS) * 4
    assert all(re.match("(nominal|anomalous) test image of class", alt or "") for alt in page.alts)


def test_the_same_runs_give_the_same_report(runs: Path, pages: list[Path], tmp_path: Path) -> None:
    assert [path.read_bytes() for path in write_report([runs], tmp_path)] == [path.read_bytes() for path in pages]


def test_markdown_tables_equal_the_results(runs: Path, pages: list[Path]) -> None:
    text = pages[0].read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    header, _, *body = rows[:5]
    assert header == ["class", "hsc", "bce"]
    by_class = {label: cells for label, *cells in body}
    assert list(by_class) == ["Bag", escape(AWKWARD), "mean"]
    found = {
        (entry["class"], entry["objective"]): entry["metrics"]["auroc"]
        for entry in results_json(finished_results([runs]))["over_seeds"]
    }
    for name, best in (("Bag", "hsc"), (AWKWARD, "bce")):
        for objective, cell in zip(header[1:], by_class[escape(name)], strict=True):
            mean, std, low, high = (100 * found[name, objective][key] for key in ("mean", "std", "low", "high"))
            figure = f"{mean:.1f} ± {std:.2f}"
            assert cell == f"{f'**{figure}**' if objective == best else figure} [{low:.1f}, {high:.1f}]"


def test_in_markdown_a_bar_in_a_name_does_not_end_its_cell(tmp_path: Path) -> None:
    for name in ("a|b", "c"):
        make_run(tmp_path / "runs", parse(RECIPE), name, "hsc", 1, 0.9)
    text = write_report([tmp_path / "runs"], tmp_path / "report")[0].read_text()
    assert "| a\\|b | 90.0 [88.0, 91.0] |" in text


@pytest.mark.parametrize("name", ["scores", "examples", "log"])
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "runs", parse(RECIPE), "Bag", "hsc", 1, 0.9)
    path: Path = getattr(run, name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FastadError, match=re.escape(str(path))) as error:
        write_report([tmp_path / "runs"], tmp_path / "report")
    assert "fastad train" in str(error.value)
    assert not list((tmp_path / "report").glob("*"))

"""Reports: pages stand on their own and show what was measured; the paper's tables and figures stand beside them."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import AWKWARD, RECIPE, diverged, make_clothes, make_experiment, make_run, published_auroc

from fastad.errors import FastadError
from fastad.evaluate import STRIPS
from fastad.experiment import Experiment, Point, find_experiment, point_recipe
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


@pytest.mark.parametrize("name", ["scores", "examples"])
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "runs", parse(RECIPE), "Bag", "hsc", 1, 0.9)
    path: Path = getattr(run, name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FastadError, match=re.escape(str(path))) as error:
        write_report([tmp_path / "runs"], tmp_path / "report")
    assert "fastad train" in str(error.value)
    assert not list((tmp_path / "report").glob("*"))


def test_a_cut_or_missing_log_leaves_a_gap_in_the_losses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", parse(RECIPE), "Bag", "hsc", 1, 0.9)
    run.log.write_text(run.log.read_text()[:-5])
    assert "Training loss" in write_report([tmp_path / "runs"], tmp_path / "report")[1].read_text()
    run.log.unlink()
    assert "Training loss" not in write_report([tmp_path / "runs"], tmp_path / "report")[1].read_text()


def test_models_that_diverged_are_told_of_and_left_out(tmp_path: Path) -> None:
    make_clothes(tmp_path / "runs")
    lost = diverged(make_run(tmp_path / "runs", parse(RECIPE), "Bag", "hsc", 3, 0.9))
    text = write_report([tmp_path / "runs"], tmp_path / "report")[0].read_text()
    assert "1 model diverged" in text and "clothes, Bag, hsc, seed 3; 1 of them could not be measured" in text
    assert "**85.0 ± 7.07**" in text and "nan" not in text
    with pytest.raises(FastadError, match="nothing to report: 1 model diverged.*Lower optim.lr"):
        write_report([lost.folder], tmp_path / "other")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of some of the paper's experiments, of a small sweep and of a plain recipe."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    make_experiment(runs, "cifar10-table1", seeds=2)
    make_experiment(runs, "cifar10-oe-size", seeds=2, classes=1)
    make_experiment(runs, "smoke")
    make_clothes(runs)
    experiment = find_experiment("mnist-oe-blur")
    recipe = point_recipe(experiment, experiment.points()[0], ["optim.epochs=3", "optim.milestones=[2]"])
    make_run(runs, recipe, "0", "hsc", 1, 0.9)
    write_report([runs], out)
    return out


def test_the_papers_tables_and_figures_stand_beside_the_pages(paper: Path) -> None:
    tables = {path.name for path in (paper / "tables").iterdir()}
    assert tables == {f"table-{number}.{kind}" for number in (1, 4, 5) for kind in ("md", "tex", "csv")}
    figures = {path.name for path in (paper / "figures").iterdir()}
    drawn = ("figure-2", "figure-5", "figure-8", "grid-smoke")
    assert figures == {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")}
    assert (paper / "figures" / "figure-2.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_of_the_paper_is_whole_and_shows_every_part(paper: Path) -> None:
    text = (paper / "report.html").read_text()
    page = Page(text)
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    parts = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert parts == [
        *("The paper’s tables", "Figures", "Results", "Classes", "Objectives compared", "What is missing"),
        "Cost and environment",
    ]
    assert page.words.count("paper 95.9") >= 2  # HSC's mean in Tables 1, 4 and 5
    assert "mean AUROC of" in page.words and "published figures that ours agree with" in page.words
    # The classes shown one by one are those of the recipe that is no experiment of the paper, and of no grid.
    assert re.findall(r"<summary><b>(Bag|airplane|3)</b>", text) == ["Bag"]


def test_what_is_missing_or_changed_is_said(paper: Path) -> None:
    text = (paper / "report.md").read_text()
    assert "mnist-oe-blur was run with optim.epochs=3, optim.milestones=[2]" in text
    assert "Partial: 88 of 4,400 trainings of cifar10-oe-size and 0 of 5,700 trainings of imagenet30-oe-size." in text
    missing = text[text.index("## What is missing") :]
    assert re.search(
        r"\| cifar10-oe-size \| Figures 2 and 8 \| 88 of 4,400 \| fastad sweep cifar10-oe-size --out \S+ \|", missing
    )
    assert re.search(r"\| imagenet30-table2 \| Tables 2 and 6 \| 0 of 1,200 \|", missing)
    assert re.search(r"fastad sweep mnist-oe-blur --out \S+ --set optim\.epochs=3", missing)
    assert "| smoke |" not in missing


def test_markdown_shows_the_figures_files(paper: Path) -> None:
    text = (paper / "report.md").read_text()
    names = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert names == [f"figures/{name}.png" for name in ("figure-2", "figure-5", "figure-8", "grid-smoke")]
    assert all((paper / name).is_file() for name in names)


def test_a_report_without_the_paper_says_nothing_of_it(pages: list[Path]) -> None:
    assert "paper’s" not in pages[1].read_text() and "What is missing" not in pages[1].read_text()
    assert sorted(path.name for path in pages[0].parent.iterdir()) == ["report.html", "report.md"]


def test_disagreements_are_flagged_in_words_and_in_the_table(tmp_path: Path) -> None:
    def auroc(experiment: Experiment, point: Point, class_name: str, objective: str) -> float:
        wrong = (class_name, objective) == ("cat", "bce")
        return published_auroc(experiment, point, class_name, objective) - 0.05 * wrong

    make_experiment(tmp_path / "runs", "cifar10-table1", seeds=3, auroc=auroc)
    write_report([tmp_path / "runs"], tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert re.search(r"Beyond noise, ours differ from the paper&#x27;s in BCE of “cat” \(−[45]\.\d, Table 5\)", text)
    assert re.search(r'<small class="flagged">−[45]\.\d† \[', text)
    assert re.search(r"\d+ of 44</strong> published figures", text)

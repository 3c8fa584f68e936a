"""Reports: figures equal those computed by hand, pages stand on their own, messages name the next step."""

import json
import re
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fastad.errors import FastadError
from fastad.evaluate import METRICS, STRIPS, Scores, write_scores
from fastad.recipe import Recipe, parse
from fastad.report import finished_results, results_json, results_table, write_report
from fastad.run import Interval, Run, RunResult, open_run, write_result

RECIPE = {
    "name": "clothes",
    "network": "mnist-lenet",
    "objectives": ["hsc", "bce"],
    "data": {"nominal": "fashion-mnist", "oe": "letters"},
    "optim": {"epochs": 3, "milestones": [2]},
}
AWKWARD = "T-shirt/top <b>"
AUROC = {
    (AWKWARD, "hsc"): (0.90, 0.94),
    (AWKWARD, "bce"): (0.95, 0.95),
    ("Bag", "hsc"): (0.80, 0.90),
    ("Bag", "bce"): (0.70, 0.80),
}
# Student's t for 95 % and one degree of freedom, over the square root of two seeds.
HALF_WIDTH_OF_TWO = 12.7062047 / 2**0.5


def make_result(class_name: str, objective: str, seed: int, auroc: float, recipe: str = "clothes") -> RunResult:
    metrics = {
        "auroc": Interval(auroc, auroc - 0.02, auroc + 0.01),
        "average_precision": Interval(auroc + 0.03, auroc, auroc + 0.04),
        "fpr95": Interval(1 - auroc, 0.9 - auroc, 1.1 - auroc),
    }
    return RunResult(
        recipe=recipe,
        class_name=class_name,
        objective=objective,
        seed=seed,
        metrics=metrics,
        counts={"nominal": 60, "oe": 1000, "test_nominal": 20, "test_anomalous": 30, "steps": 90, "parameters": 1234},
        seconds={"train": 60.0, "score": 0.5, "measure": 0.1},
        images_per_s=1500.0,
        stall_share=0.012,
        group_size=2,
        precision="float32",
        compiled=False,
        environment={
            "python": "3.11.7",
            "packages": {"torch": "2.11"},
            "processor": "A & B",
            "cores": 2,
            "device": "cpu",
        },
    )


def make_results() -> list[RunResult]:
    return [
        make_result(class_name, objective, seed, value)
        for (class_name, objective), values in AUROC.items()
        for seed, value in enumerate(values, start=1)
    ]


def make_run(out: Path, class_name: str, objective: str, seed: int, auroc: float, recipe: Recipe | None = None) -> Run:
    """A finished run as training leaves it, with scores, log and examples of synthetic images."""
    run = open_run(out, recipe or parse(RECIPE), class_name, objective, seed)
    rng = np.random.default_rng(seed)
    target = np.repeat(np.array([0, 1], np.int8), (20, 30))
    score = np.exp(rng.normal(size=50) + 2 * target).astype(np.float32)
    names = np.where(target == 1, "Trouser", class_name)
    write_scores(run, Scores(np.array([b"key"] * 50), names, target, score))
    columns: dict[str, Any] = {}
    for name in STRIPS:
        columns[f"{name}_images"] = rng.integers(0, 256, (4, 8, 8, 3 if seed == 2 else 1), dtype=np.uint8)
        columns[f"{name}_class"], columns[f"{name}_target"], columns[f"{name}_score"] = (
            names[18:22],
            target[18:22],
            score[18:22],
        )
    np.savez(run.examples, **columns)
    run.log.write_text("".join(json.dumps({"epoch": epoch, "loss": 1 / (epoch + 1)}) + "\n" for epoch in range(3)))
    write_result(run, make_result(class_name, objective, seed, auroc, run.recipe.name))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for (class_name, objective), values in AUROC.items():
        for seed, value in enumerate(values, start=1):
            make_run(out, class_name, objective, seed, value)
    return out


@pytest.fixture(scope="module")
def pages(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report([runs], tmp_path_factory.mktemp("report"))


def shown(results: Sequence[RunResult], width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def row(text: str, label: str) -> str:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(label))
    return " ".join(line.split())


def test_a_class_row_is_mean_std_and_students_interval_over_seeds() -> None:
    text = shown(make_results())
    half = HALF_WIDTH_OF_TWO * 2.828427
    assert row(text, "T-shirt") == f"{AWKWARD} 92.0 ± 2.83 [{92 - half:.1f}, 100.0] 95.0 ± 0.00 [95.0, 95.0]"


def test_the_mean_row_is_of_the_seeds_class_means_and_the_caption_has_the_spread_over_classes() -> None:
    text = shown(make_results())
    # Class means of the seeds: hsc 85 and 92, bce 82.5 and 87.5; of the classes: hsc 92 and 85, bce 95 and 75.
    hsc, bce = HALF_WIDTH_OF_TWO * 7 / 2**0.5, HALF_WIDTH_OF_TWO * 5 / 2**0.5
    assert row(text, "mean ") == (f"mean 88.5 ± 4.95 [{88.5 - hsc:.1f}, 100.0] 85.0 ± 3.54 [{85 - bce:.1f}, 100.0]")
    assert "rows: hsc 3.50, bce 10.00." in " ".join(text.split())


def test_a_single_seed_shows_the_runs_own_interval_and_a_mean_without_one() -> None:
    text = shown([result for result in make_results() if result.seed == 1])
    assert row(text, "Bag") == "Bag 80.0 [78.0, 81.0] 70.0 [68.0, 71.0]"
    assert row(text, "mean") == "mean 85.0 82.5"
    assert "bootstrap" in text and "Student" not in text


def test_a_single_class_shows_every_metric() -> None:
    text = shown([result for result in make_results() if result.class_name == "Bag" and result.seed == 1])
    assert row(text, "AUROC") == "AUROC 80.0 [78.0, 81.0] 70.0 [68.0, 71.0]"
    assert row(text, "Average precision") == "Average precision 83.0 [80.0, 84.0] 73.0 [70.0, 74.0]"
    assert row(text, "FPR at 95 % TPR") == "FPR at 95 % TPR 20.0 [10.0, 30.0] 30.0 [20.0, 40.0]"


def test_five_objectives_fit_eighty_columns() -> None:
    names = ("hsc", "bce", "focal", "deep-sad", "deep-svdd")
    text = shown(
        [make_result(name, objective, 1, 0.95) for name in ("T-shirt/top", "Ankle boot") for objective in names]
    )
    assert "…" not in text
    assert row(text, "T-shirt/top") == "T-shirt/top" + " 95.0" * 5
    assert text.count("[93.0, 96.0]") == 10


def test_an_objective_without_every_class_has_no_mean() -> None:
    results = [result for result in make_results() if (result.class_name, result.objective) != ("Bag", "bce")]
    text = shown(results)
    assert row(text, "Bag").endswith("–")
    assert row(text, "mean ").endswith("–")
    assert "rows: hsc 3.50." in " ".join(text.split())


def test_several_recipes_are_told_apart() -> None:
    results = [make_result(name, "hsc", 1, 0.9, recipe) for recipe in ("a", "b") for name in ("0", "1")]
    text = shown(results)
    assert [row(text, label) for label in ("a / 0", "b / mean")] == ["a / 0 90.0 [88.0, 91.0]", "b / mean 90.0"]


def test_json_has_every_field_and_no_nan() -> None:
    results = make_results()
    found = json.loads(json.dumps(results_json(results), allow_nan=False))
    assert found["runs"][0]["metrics"]["auroc"] == {"value": 0.9, "low": 0.88, "high": 0.91}
    assert set(found["runs"][0]) == set(RunResult.__dataclass_fields__)
    assert len(found["runs"]) == len(results)
    bag = found["over_seeds"][2]
    assert (bag["recipe"], bag["class"], bag["objective"], bag["seeds"]) == ("clothes", "Bag", "hsc", [1, 2])
    half = HALF_WIDTH_OF_TWO * 0.1 / 2**0.5
    expected = {"mean": 0.85, "std": 0.1 / 2**0.5, "low": 0.85 - half, "high": 1.0}
    assert bag["metrics"]["auroc"] == pytest.approx(expected)
    hsc, bce = found["over_classes"]
    assert (hsc["objective"], hsc["classes"], bce["objective"], bce["classes"]) == ("hsc", 2, "bce", 2)
    assert hsc["metrics"]["auroc"]["mean"] == pytest.approx(0.885)
    assert bce["metrics"]["auroc"]["spread"] == pytest.approx(0.1)
    assert set(bce["metrics"]) == set(METRICS)


def test_json_of_a_single_seed_has_null_for_what_does_not_exist() -> None:
    found = json.loads(json.dumps(results_json(make_results()[:1]), allow_nan=False))
    nothing = {"std": None, "low": None, "high": None}
    assert found["over_seeds"][0]["metrics"]["auroc"] == {"mean": 0.9} | nothing
    assert found["over_classes"][0]["metrics"]["auroc"] == {"mean": 0.9, "spread": 0} | nothing


def identity(result: RunResult) -> tuple[str, str, int]:
    return result.class_name, result.objective, result.seed


def test_finished_results_reads_back_what_runs_wrote(runs: Path) -> None:
    found = finished_results([runs, runs / "clothes" / "Bag"])
    assert sorted(found, key=identity) == sorted(make_results(), key=identity)


def test_unfinished_runs_alone_are_an_error(tmp_path: Path) -> None:
    run = open_run(tmp_path, parse(RECIPE), "Bag", "hsc", 1)
    with pytest.raises(FastadError) as error:
        finished_results([tmp_path])
    message = str(error.value)
    assert str(run.folder) in message and "run the same fastad train command again" in message and "\n" not in message


def test_unfinished_runs_beside_finished_ones_are_counted_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "Bag", "hsc", 1, 0.9)
    unfinished = open_run(tmp_path, parse(RECIPE), "Bag", "bce", 1)
    assert [result.objective for result in finished_results([tmp_path])] == ["hsc"]
    said = capsys.readouterr().err
    assert said.startswith("1 of 2 runs") and str(unfinished.folder) in said


def test_the_same_training_in_two_folders_is_an_error(tmp_path: Path) -> None:
    for out in ("a", "b"):
        make_run(tmp_path / out, "Bag", "hsc", 1, 0.9)
    with pytest.raises(
        FastadError, match=r"a/clothes/Bag/hsc/seed1 and .*b/clothes/Bag/hsc/seed1 hold the same training"
    ):
        finished_results([tmp_path])


def test_different_recipes_of_one_name_are_an_error_unless_they_differ_in_execution_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "Bag", "hsc", 1, 0.9)
    make_run(tmp_path / "b", "Bag", "hsc", 2, 0.9, parse(RECIPE | {"train": {"compile": "off"}, "objectives": ["hsc"]}))
    assert len(finished_results([tmp_path])) == 2
    make_run(tmp_path / "c", "Bag", "hsc", 3, 0.9, parse(RECIPE | {"optim": {"epochs": 4}}))
    with pytest.raises(FastadError, match="hold different recipes, both named clothes: give them one at a time"):
        finished_results([tmp_path])


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
        make_run(tmp_path / "runs", name, "hsc", 1, 0.9)
    text = write_report([tmp_path / "runs"], tmp_path / "report")[0].read_text()
    assert "| a\\|b | 90.0 [88.0, 91.0] |" in text


@pytest.mark.parametrize("name", ["scores", "examples", "log"])
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "runs", "Bag", "hsc", 1, 0.9)
    path: Path = getattr(run, name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FastadError, match=re.escape(str(path))) as error:
        write_report([tmp_path / "runs"], tmp_path / "report")
    assert "fastad train" in str(error.value)
    assert not list((tmp_path / "report").glob("*"))

"""What finished runs say on the command line: figures equal those computed by hand, messages name the next step."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_runs import AWKWARD, RECIPE, diverged, make_clothes, make_result, make_results, make_run
from rich.console import Console

from fastad.errors import FastadError
from fastad.evaluate import METRICS
from fastad.recipe import parse
from fastad.results import finished_results, results_json, results_table
from fastad.run import RunResult, open_run

# Student's t for 95 % and one degree of freedom, over the square root of two seeds.
HALF_WIDTH_OF_TWO = 12.7062047 / 2**0.5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    make_clothes(out)
    return out


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


def test_a_model_that_diverged_is_told_of_and_left_out(tmp_path: Path) -> None:
    make_clothes(tmp_path)
    lost = diverged(make_run(tmp_path, parse(RECIPE), "Bag", "hsc", 3, 0.9))
    results = finished_results([tmp_path])
    text = shown(results)
    assert row(text, "Bag").startswith("Bag 85.0 ± 7.07") and "1 model diverged" in " ".join(text.split())
    assert json.loads(json.dumps(results_json(results), allow_nan=False))["over_seeds"][0]["seeds"] == [1, 2]
    with pytest.raises(FastadError, match="nothing to show: 1 model diverged"):
        results_table(finished_results([lost.folder]))


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
    assert (
        str(run.folder) in message
        and "run the same fastad train or sweep command again" in message
        and "\n" not in message
    )


def test_unfinished_runs_beside_finished_ones_are_counted_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, parse(RECIPE), "Bag", "hsc", 1, 0.9)
    unfinished = open_run(tmp_path, parse(RECIPE), "Bag", "bce", 1)
    assert [result.objective for result in finished_results([tmp_path])] == ["hsc"]
    said = capsys.readouterr().err
    assert said.startswith("1 of 2 runs") and str(unfinished.folder) in said


def test_the_same_training_in_two_folders_is_an_error(tmp_path: Path) -> None:
    for out in ("a", "b"):
        make_run(tmp_path / out, parse(RECIPE), "Bag", "hsc", 1, 0.9)
    with pytest.raises(
        FastadError, match=r"a/clothes/Bag/hsc/seed1 and .*b/clothes/Bag/hsc/seed1 hold the same training"
    ):
        finished_results([tmp_path])


def test_different_recipes_of_one_name_are_an_error_unless_they_differ_in_execution_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "a", parse(RECIPE), "Bag", "hsc", 1, 0.9)
    make_run(tmp_path / "b", parse(RECIPE | {"train": {"compile": "off"}, "objectives": ["hsc"]}), "Bag", "hsc", 2, 0.9)
    assert len(finished_results([tmp_path])) == 2
    make_run(tmp_path / "c", parse(RECIPE | {"optim": {"epochs": 4}}), "Bag", "hsc", 3, 0.9)
    with pytest.raises(FastadError, match="hold different recipes, both named clothes: give them one at a time"):
        finished_results([tmp_path])

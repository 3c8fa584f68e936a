"""What the results hold of the named experiments, what is missing, and which command trains it."""

from pathlib import Path

import pytest
from made_runs import make_experiment, make_run

from fastad.coverage import classes_of, command, coverage, coverage_table, root_of
from fastad.experiment import find_experiment, point_recipe
from fastad.markup import markdown
from fastad.recipe import load
from fastad.results import finished_runs


def test_the_paper_is_20100_trainings_and_nothing_of_it_is_there() -> None:
    paper = {name: found for name, found in coverage([]).items() if name.startswith(("cifar", "imagenet", "mnist"))}
    assert sum(found.expected for found in paper.values()) == 20_100
    assert not any(found.found for found in paper.values())


def test_classes_are_the_experiments_or_the_sets() -> None:
    assert classes_of(find_experiment("cifar10-table1"))[2] == "bird"
    assert classes_of(find_experiment("imagenet30-focal-gamma"))[-1] == "dumbbell"
    assert classes_of(find_experiment("smoke")) == ("0", "3", "8")


def test_what_is_missing_is_counted_with_the_command_that_trains_it(tmp_path: Path) -> None:
    make_experiment(tmp_path / "my runs", "smoke", seeds=1)
    runs = [run for run, _ in finished_runs([tmp_path])]
    found = coverage(runs)["smoke"]
    assert (found.found, found.expected, found.is_whole, found.changes) == (18, 36, False, ())
    assert found.root == tmp_path / "my runs"
    assert command(found, Path("elsewhere")) == f"fastad sweep smoke --out '{tmp_path}/my runs'"
    (row,) = coverage_table([found], {"smoke": "Figure 0"}, Path("elsewhere")).rows
    assert [cell.figure for cell in row.cells[:2]] == ["Figure 0", "18 of 36"]


def test_a_whole_experiment_is_not_listed_and_one_not_begun_goes_where_runs_are(tmp_path: Path) -> None:
    make_experiment(tmp_path, "smoke")
    covered = coverage([run for run, _ in finished_runs([tmp_path])])
    table = coverage_table([covered["smoke"], covered["mnist-oe-blur"]], {}, Path("runs"))
    assert [row.label for row in table.rows] == ["mnist-oe-blur"]
    assert table.rows[0].cells[-1].figure == "fastad sweep mnist-oe-blur --out runs"


def test_changes_are_named_and_come_again_in_the_command(tmp_path: Path) -> None:
    experiment = find_experiment("smoke")
    recipe = point_recipe(experiment, experiment.points()[0], ["optim.epochs=7", "optim.milestones=[3, 5]"])
    run = make_run(tmp_path, recipe, "3", "hsc", 1, 0.9)
    found = coverage([run])["smoke"]
    assert found.changes == ("optim.epochs=7", "optim.milestones=[3, 5]")
    assert command(found, tmp_path).endswith("--set optim.epochs=7 --set 'optim.milestones=[3, 5]'")


def test_how_the_work_was_executed_is_no_change(tmp_path: Path) -> None:
    experiment = find_experiment("smoke")
    recipe = point_recipe(experiment, experiment.points()[0], ["train.compile=off", "loader.threads=3"])
    assert coverage([make_run(tmp_path, recipe, "3", "hsc", 1, 0.9)])["smoke"].changes == ()


@pytest.mark.parametrize("inside", [False, True])
def test_the_root_is_the_folder_that_a_sweep_writes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    make_experiment(tmp_path / "runs", "smoke", seeds=1, classes=1)
    monkeypatch.chdir(tmp_path / "runs" / "smoke" if inside else tmp_path)
    runs = [run for run, _ in finished_runs([Path("oe_size=1") if inside else Path("runs")])]
    assert root_of(runs[0]).resolve() == tmp_path / "runs"
    if not inside:
        assert root_of(runs[0]) == Path("runs")


def test_a_recipe_that_is_no_experiment_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, load("digits"), "3", "hsc", 1, 0.9)
    assert not any(found.found for found in coverage([run]).values())


def test_words_stand_at_the_left_of_their_columns(tmp_path: Path) -> None:
    make_experiment(tmp_path, "smoke", classes=1)
    table = coverage_table(coverage([run for run, _ in finished_runs([tmp_path])]).values(), {}, tmp_path)
    assert markdown(table).splitlines()[1] == "| --- | --- | ---: | --- |"

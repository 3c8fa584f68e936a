"""Experiments: the paper's table as files, and one line for each mistake in one."""

from pathlib import Path

import pytest

from fastad.errors import FastadError
from fastad.experiment import class_names, experiment_names, find_experiment, point_recipe
from fastad.listing import find_converter

# PROTOCOL's table: objectives, points of the grid, seeds, classes.
PAPER = {
    "cifar10-table1": (4, 1, 10, 10),
    "cifar10-oe-size": (2, 22, 10, 10),
    "cifar10-oe-blur": (2, 6, 10, 10),
    "cifar10-hsc-norms": (4, 2, 10, 10),
    "cifar10-focal-gamma": (4, 1, 10, 10),
    "cifar10-oe-classes": (2, 8, 10, 10),
    "imagenet30-table2": (4, 1, 10, 30),
    "imagenet30-oe-size": (2, 19, 5, 30),
    "imagenet30-oe-blur": (2, 6, 5, 30),
    "imagenet30-focal-gamma": (4, 1, 10, 10),
    "mnist-oe-classes": (2, 8, 10, 10),
    "mnist-oe-blur": (2, 6, 5, 10),
}


def counted(name: str) -> tuple[int, int, int, int]:
    experiment = find_experiment(name)
    points = experiment.points()
    known = find_converter(point_recipe(experiment, points[0]).data.nominal).classes
    assert known is not None
    return len(experiment.objectives), len(points), experiment.seeds, len(class_names(experiment, known))


def test_the_paper_s_experiments_are_those_of_its_table_and_come_to_20100_trainings() -> None:
    found = {name: counted(name) for name in PAPER}
    assert found == PAPER
    assert sum(a * b * c * d for a, b, c, d in found.values()) == 20_100
    assert counted("toy") == (2, 2, 1, 1)
    assert set(experiment_names()) - set(PAPER) == {"fashion-mnist", "smoke", "toy"}


def test_points_are_recipes_of_their_own_names() -> None:
    experiment = find_experiment("cifar10-oe-size")
    points = experiment.points()
    assert [point.label for point in points] == [f"oe_size={2**power}" for power in range(22)]
    recipe = point_recipe(experiment, points[6], ["optim.epochs=3"])
    assert (recipe.name, recipe.data.oe_size, recipe.optim.epochs) == ("cifar10-oe-size/oe_size=64", 64, 3)
    table = find_experiment("cifar10-table1")
    assert [point.label for point in table.points()] == [""]
    assert point_recipe(table, table.points()[0]).name == "cifar10-table1"


def test_blurred_experiments_keep_their_other_overrides() -> None:
    experiment = find_experiment("imagenet30-oe-blur")
    recipe = point_recipe(experiment, experiment.points()[-1])
    assert (recipe.name, recipe.data.oe_size) == ("imagenet30-oe-blur/oe_blur_sigma_px=32", 64)
    assert (recipe.augment.oe_blur_sigma_px, recipe.data.oe_exclude_synsets) == (32.0, ("imagenet30",))


def test_without_augmentation_means_normalisation_alone() -> None:
    experiment = find_experiment("cifar10-hsc-norms")
    on, off = (point_recipe(experiment, point) for point in experiment.points())
    assert (on.name, off.name) == ("cifar10-hsc-norms/augmentation=on", "cifar10-hsc-norms/augmentation=off")
    assert on.augment.jitters and on.augment.crop_padding_px == 4 and on.augment.noise_std > 0
    assert not off.augment.jitters
    assert (off.augment.crop_padding_px, off.augment.flip_probability, off.augment.noise_std) == (0, 0.0, 0.0)
    assert off.augment.mean == on.augment.mean and off.augment.std == on.augment.std


def test_classes_are_named_counted_or_all(tmp_path: Path) -> None:
    known = ("a", "b", "c")
    for classes, expected in (("[]", known), ("2", ("a", "b")), ('["c"]', ("c",))):
        assert class_names(find_experiment(str(written(tmp_path, f"classes = {classes}"))), known) == expected
    with pytest.raises(FastadError, match="unknown class 'd'"):
        class_names(find_experiment(str(written(tmp_path, 'classes = ["d"]'))), known)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "mine.toml"
    path.write_text("\n".join(('recipe = "digits"', 'objectives = ["hsc"]', "seeds = 1", *lines)))
    return path


def test_axes_multiply_and_named_values_stand_for_overrides(tmp_path: Path) -> None:
    grid = ["[grid]", "data.oe_size = [1, 2]", "[grid.noise.none]", "[grid.noise.much]", "augment.noise_std = 0.1"]
    experiment = find_experiment(str(written(tmp_path, *grid)))
    points = experiment.points()
    assert [point.label for point in points] == [f"oe_size={m},noise={n}" for m in (1, 2) for n in ("none", "much")]
    recipe = point_recipe(experiment, points[3])
    assert (recipe.name, recipe.data.oe_size, recipe.augment.noise_std) == ("mine/oe_size=2,noise=much", 2, 0.1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["seed = 3"], "unknown experiment key 'seed': did you mean seeds"),
        (["classes = 1.5"], "experiment mine: classes cannot be 1.5"),
        (["[grid]", "data.oe_sise = [1]"], "unknown recipe key 'data.oe_sise': did you mean data.oe_size"),
        (["[grid]", "data.oe_size = 3"], "grid key data.oe_size must be a list of values, found 3"),
        (["[grid]", "oe_size = [1]"], "unknown recipe key 'oe_size': did you mean"),
        (["[grid]", "data.oe_size = [0]"], "recipe key data.oe_size must be at least 1, found 0"),
        (["[overrides]", "optim.epochs = 'x'"], "recipe key optim.epochs must be of type int, found 'x'"),
        (["["], "experiment .*mine.toml is not valid TOML"),
    ],
)
def test_mistakes_in_an_experiment_are_told(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(FastadError, match=message):
        find_experiment(str(written(tmp_path, *lines)))


def test_mistakes_in_asking_for_an_experiment_are_told(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="unknown experiment 'cifar10-table': did you mean cifar10-table1"):
        find_experiment("cifar10-table")
    with pytest.raises(FastadError, match=r"no experiment file .*none.toml: give an existing .toml file, or one"):
        find_experiment(str(tmp_path / "none.toml"))
    (tmp_path / "empty.toml").write_text('recipe = "digits"\nobjectives = []\nseeds = 1')
    with pytest.raises(FastadError, match="experiment empty: objectives is missing or empty"):
        find_experiment(str(tmp_path / "empty.toml"))
    experiment = find_experiment("smoke")
    with pytest.raises(FastadError, match="--set data.oe_size=2: the experiment smoke varies data.oe_size itself"):
        point_recipe(experiment, experiment.points()[0], ["data.oe_size=2"])

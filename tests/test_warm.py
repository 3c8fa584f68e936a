"""What is kept warm: made once for all that may share it, for nothing else, and of no effect on any score."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same_scores, scores_in

from fastad import resident
from fastad import sets as sets_module
from fastad import warm as warm_module
from fastad.errors import FastadError
from fastad.recipe import Recipe
from fastad.resident import Held
from fastad.train import train
from fastad.warm import Warm

CPU = torch.device("cpu")


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """What the function or class of that name in `fastad.warm` returns from now on, call by call."""
    made: list[Any] = []
    original: Callable[..., Any] = getattr(warm_module, name)

    def make(*arguments: Any, **keywords: Any) -> Any:
        made.append(original(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(warm_module, name, make)
    return made


def variants(recipe: Recipe) -> list[Recipe]:
    """As in a sweep: OE sizes, blurs, another learning rate and another crop."""
    short = replace(recipe, optim=replace(recipe.optim, epochs=2, milestones=(1,)))
    data, augment = recipe.data, recipe.augment
    return [
        short,
        replace(short, name="m", data=replace(data, oe_size=8)),
        replace(short, name="sigma", augment=replace(augment, oe_blur_sigma_px=2.0)),
        replace(short, name="lr", optim=replace(short.optim, lr=1e-2)),
        replace(short, name="crop", augment=replace(augment, crop_px=28, crop_padding_px=2)),
    ]


def test_scores_are_the_same_with_and_without_it_in_any_order(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    tasks = [(each, name, seed) for each in variants(recipe) for name, seed in (("middle", 1), ("high", 2))]
    warm = Warm(groups=len(tasks))
    for out, kept, ordered in ((tmp_path / "cold", None, tasks), (tmp_path / "warm", warm, tasks[::-1])):
        for each, name, seed in ordered:
            train(each, shards=home, out=out, device=CPU, classes=[name], seeds=[seed], warm=kept)
    cold = scores_in(tmp_path / "cold")
    assert len(cold) == 20
    assert_same_scores(cold, scores_in(tmp_path / "warm"))


def test_things_are_made_once_for_all_that_may_share_them(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, benches, tuners = (counted(monkeypatch, name) for name in ("open_sets", "Workbench", "Tuner"))
    warm, short = Warm(groups=7), variants(recipe)
    for name in ("middle", "high"):
        for each in short:
            train(each, shards=home, out=tmp_path, device=CPU, classes=[name], objectives=["bce"], warm=warm)
    # Another learning rate needs other models, and another crop other images.
    assert (len(opened), len(benches), len(tuners)) == (2, 2, 2)
    assert all(tuner.runs == 7 for tuner in tuners)
    assert all([name for name, _ in bench._models] == ["bce"] for bench in benches)
    before, after = opened
    assert not before.held, "the images of sets used earlier are held"
    assert set(after.held) == {"nominal", "oe", "test"}


def test_other_shards_devices_and_ways_to_hold_are_not_shared(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(home)
    warm = Warm()
    sets = warm.sets(recipe, home, CPU)
    assert warm.sets(recipe, tmp_path / "home", CPU) is sets
    for other in (
        replace(recipe, data=replace(recipe.data, oe_transpose=True)),
        replace(recipe, data=replace(recipe.data, oe=())),
        replace(recipe, data=replace(recipe.data, oe_exclude_duplicates_of="blobs")),
        replace(recipe, train=replace(recipe.train, resident="off")),
        replace(recipe, loader=replace(recipe.loader, bad_images="stop")),
    ):
        assert warm.sets(other, home, CPU) is not sets
    bench = warm.workbench(recipe, (28, 28, 1), CPU)
    assert warm.workbench(replace(recipe, name="other", objectives=("focal",)), (28, 28, 1), CPU) is bench
    for changed in (
        replace(recipe, train=replace(recipe.train, compile="off")),
        replace(recipe, data=replace(recipe.data, batch_nominal=8)),
    ):
        assert warm.workbench(changed, (28, 28, 1), CPU) is not bench
    colour = replace(recipe, network="torchvision:resnet18")
    assert warm.workbench(colour, (32, 32, 3), CPU) is not warm.workbench(colour, (40, 40, 3), CPU)
    with pytest.raises(FastadError, match="resnet18 takes colour images, found 28×28×1"):
        warm.workbench(colour, (28, 28, 1), CPU)


def test_the_images_of_a_class_make_room_for_the_next_ones_before_these_are_held(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref] = []
    alive_before = []

    def hold(*arguments: Any) -> Held:
        alive_before.append(sum(reference() is not None for reference in held))
        made = resident.hold(*arguments)
        held.append(weakref.ref(made.pixels))
        return made

    monkeypatch.setattr(sets_module, "hold", hold)
    short = replace(recipe, optim=replace(recipe.optim, epochs=1))
    train(short, shards=home, out=tmp_path, device=CPU, classes=["middle", "high"], objectives=["bce"])
    assert alive_before == [0, 1, 2, 2]  # nominal, OE, test; then another class's, beside OE and test

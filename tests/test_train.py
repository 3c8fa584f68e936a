"""Training: exact resuming, groups that change nothing, and the numbers of a plain PyTorch loop."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import after, assert_same_scores, scores_in
from PIL import Image

from fastad import sets as sets_module
from fastad.errors import FastadError, Interrupted
from fastad.execution import Execution
from fastad.group import Workbench, step
from fastad.manifest import Manifest
from fastad.networks import MEMORY_FORMATS
from fastad.objectives import find
from fastad.pipeline import Batch, train_batches
from fastad.plan import Plan, Share
from fastad.recipe import Recipe
from fastad.run import RunResult, find_runs
from fastad.sets import Sets, make_plan, oe_batches, one_vs_rest, open_sets, training_sources
from fastad.shard import convert
from fastad.train import stop_on_signals, train

CPU = torch.device("cpu")
STEPS = 10


def run(recipe: Recipe, home: Path, out: Path, **fields: object) -> list[RunResult]:
    arguments: dict[str, object] = {"classes": ["middle"], **fields}
    return train(recipe, shards=home, out=out, device=CPU, **arguments)  # type: ignore[arg-type]


def batches_of(recipe: Recipe, sets: Sets, plan: Plan) -> Iterator[Batch]:
    return train_batches(plan, training_sources(recipe, sets, plan, CPU), recipe.augment, CPU)


def test_the_same_command_gives_the_same_scores(
    recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    run(recipe, home, tmp_path)
    assert_same_scores(scores_in(tmp_path), uninterrupted)


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_interrupted_at_any_step_and_resumed_the_scores_are_the_same(
    at: int, recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM; the same command continues"):
        run(recipe, home, tmp_path, stop=after(at))
    run(recipe, home, tmp_path)
    assert_same_scores(scores_in(tmp_path), uninterrupted)
    for found in find_runs([tmp_path]):
        lines = [json.loads(line) for line in found.log.read_text().splitlines()]
        assert [(line["epoch"], line["step"]) for line in lines] == [(epoch, 2 * epoch + 2) for epoch in range(5)]
        assert [line["lr"] for line in lines] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4])
        assert not found.checkpoint.exists()


def test_members_left_at_different_steps_are_finished_one_by_one(
    recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    with pytest.raises(Interrupted):
        run(recipe, home, tmp_path, objectives=["hsc"], stop=after(3))
    with pytest.raises(Interrupted):
        run(recipe, home, tmp_path, objectives=["bce"], stop=after(6))
    results = run(recipe, home, tmp_path)
    assert [result.group_size for result in results] == [1, 1]
    assert_same_scores(scores_in(tmp_path), uninterrupted)


def test_a_group_gives_what_separate_runs_give(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    names = ["hsc", "hsc:l1", "deep-svdd", "deep-sad", "bce", "focal"]
    together = run(recipe, home, tmp_path / "together", objectives=names)
    assert [result.objective for result in together] == names
    for name in names:
        (alone,) = run(recipe, home, tmp_path / "alone", objectives=[name])
        assert alone.group_size == 1
        assert alone.counts["oe"] == (0 if name == "deep-svdd" else 90)
    assert_same_scores(scores_in(tmp_path / "alone"), scores_in(tmp_path / "together"))


def test_finished_runs_are_left_alone(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    first = run(recipe, home, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = run(recipe, home, tmp_path)
    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_all_classes_and_seeds_are_trained_and_their_order_changes_nothing(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    short = replace(recipe, optim=replace(recipe.optim, epochs=1))
    results = train(short, shards=home, out=tmp_path / "a", device=CPU, seeds=[1, 2], objectives=["bce"])
    assert [(result.class_name, result.seed) for result in results] == [
        (name, seed) for seed in (1, 2) for name in ("low/mid", "middle", "high")
    ]
    train(
        short,
        shards=home,
        out=tmp_path / "b",
        device=CPU,
        seeds=[2, 1],
        classes=["high", "low/mid", "middle"],
        objectives=["bce"],
    )
    assert_same_scores(scores_in(tmp_path / "a"), scores_in(tmp_path / "b"))


def test_a_few_epochs_tell_the_classes_apart(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    longer = replace(recipe, optim=replace(recipe.optim, epochs=25))
    for result in run(longer, home, tmp_path, objectives=["hsc", "bce"]):
        assert result.metrics["auroc"].value > 0.9
        assert result.counts == {
            **{"nominal": 40, "oe": 90, "test_nominal": 20, "test_anomalous": 40},
            **{"replaced": 0, "steps": 50, "parameters": 115_968 + (33 if result.objective == "bce" else 0)},
        }
        assert 0 <= result.stall_share < 1
        assert result.images_per_s > 0


@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
def test_compiled_training_follows_eager_training(recipe: Recipe, home: Path) -> None:
    import shutil

    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    sets = open_sets(recipe, home)
    batches = list(batches_of(recipe, sets, make_plan(recipe, sets, "middle", 1)))
    sums = []
    for compiled in (False, True):
        member = Workbench(recipe, (28, 28, 1), CPU).member(find("hsc"), 1, Execution(compiled))
        for batch in batches:
            step([member], batch)
        sums.append(member.sums[0].item())
    assert sums[1] == pytest.approx(sums[0], rel=1e-2)


def test_how_steps_are_executed_is_measured_once_and_for_long_runs_only(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastad import group

    asked: list[tuple[Any, ...]] = []
    found = Execution(True, "contiguous")
    monkeypatch.setattr(group, "chosen", lambda *question: (asked.append(question), found)[1])
    workbench = Workbench(recipe, (28, 28, 1), CPU)
    for steps in (1, group.MEASURED_FROM_STEPS - 1, group.MEASURED_FROM_STEPS, group.MEASURED_FROM_STEPS + 1):
        assert workbench.execution(steps) == found
    (_, _, short, _), (spec, device, key, make) = asked
    assert short is None
    assert (spec, device, key["network"], key["images"]) == (recipe.train, CPU, "mnist-lenet", [32, 28, 28, 1])
    for memory_format in MEMORY_FORMATS:
        make(Execution(memory_format=memory_format))()
    monkeypatch.setattr(group, "share", lambda: Share(0, 2))
    Workbench(recipe, (28, 28, 1), CPU).execution(group.MEASURED_FROM_STEPS)
    assert asked[-1][2] is None, "several processes do not measure"


def test_one_vs_rest_targets(recipe: Recipe, home: Path, blobs: Manifest) -> None:
    rows, target = one_vs_rest(open_sets(recipe, home), "high")
    np.testing.assert_array_equal(np.sort(rows), np.arange(120, 180))
    np.testing.assert_array_equal(target == 0, blobs.class_index[rows] == 2)


def test_good_images_of_a_category_are_tested_against_its_own_defects(recipe: Recipe, tmp_path: Path) -> None:
    """As MVTec AD is: a set of several categories, of whose defects none is trained on."""
    raw, home = tmp_path / "raw", tmp_path / "home"
    rng = np.random.default_rng(0)
    for category in ("bolt", "nut"):
        for place, count in (("train/good", 20), ("test/good", 3), ("test/bent", 2)):
            folder = raw / category / place
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    convert("mvtec", raw, home)
    colour = replace(recipe.augment, mean=(0.0,) * 3, std=(1.0,) * 3)
    alone = replace(
        recipe,
        network="cifar-lenet",
        data=replace(recipe.data, nominal="mvtec", oe=()),
        objectives=("deep-svdd",),
        augment=colour,
    )
    sets = open_sets(alone, home)
    rows, target = one_vs_rest(sets, "nut/good")
    manifest = sets.nominal.manifest
    assert {manifest.classes[index] for index in manifest.class_index[rows]} == {"nut/good", "nut/bent"}
    assert (target.sum(), len(target)) == (2, 5)
    results = run(alone, home, tmp_path / "runs", classes=[])
    assert [result.class_name for result in results] == ["bolt/good", "nut/good"]
    with pytest.raises(FastadError, match="has no train images of classes nut/bent"):
        run(alone, home, tmp_path / "runs", classes=["nut/bent"])


def test_the_oe_of_a_seed_is_shared_by_classes_and_small_draws_of_classes_are_read_with_replacement(
    recipe: Recipe, home: Path
) -> None:
    small = replace(recipe, data=replace(recipe.data, oe_size=8))
    sets = open_sets(small, home)
    plans = [make_plan(small, sets, name, seed=4) for name in ("middle", "high")]
    (one,), (other,) = (plan.oe for plan in plans)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert len(one.rows) == 8
    for count, order in ((1, "with-replacement"), (4, "cyclic")):
        few = replace(recipe, data=replace(recipe.data, oe_classes=count))
        assert make_plan(few, sets, "middle", seed=1).oe[0].order == order
    window = replace(recipe, data=replace(recipe.data, oe_order="window"))
    (oe,) = make_plan(window, sets, "middle", seed=1).oe
    np.testing.assert_array_equal(sets.oe[0].manifest.source_index[oe.rows], np.arange(90))


def test_several_oe_sets_have_their_weights_in_every_batch(recipe: Recipe, home: Path) -> None:
    data = replace(recipe.data, oe=("extras", "blobs"), oe_weights=(3.0, 1.0), oe_size=20)
    mixed = replace(recipe, data=data)
    plan = make_plan(mixed, open_sets(mixed, home), "middle", seed=1)
    assert [(stream.name, stream.batch, len(stream.rows)) for stream in plan.oe] == [("oe", 12, 20), ("oe-2", 4, 20)]
    for weights, batch, batches in (((), 7, [4, 3]), ((1.0, 2.0), 10, [3, 7]), ((1.0, 1.0), 2, [1, 1])):
        assert oe_batches(replace(mixed, data=replace(data, oe_weights=weights, batch_oe=batch))) == batches
    with pytest.raises(FastadError, match=r"data\.batch_oe=3 leaves no image to blobs"):
        oe_batches(replace(mixed, data=replace(data, oe_weights=(20.0, 1.0), batch_oe=3)))


@pytest.mark.parametrize(
    ("choice", "limit", "held"), [("auto", 1.0, True), ("off", 1.0, False), ("on", 1.0, True), ("auto", 0.0, False)]
)
def test_what_fits_is_held_and_gives_the_same_batches(
    choice: str, limit: float, held: bool, recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "RESIDENT_SHARE", limit)
    asked = replace(recipe, train=replace(recipe.train, resident=choice))
    sets = open_sets(asked, home)
    plan = make_plan(asked, sets, "middle", 1)
    sources = training_sources(asked, sets, plan, CPU)
    assert [source.held is not None for source in sources] == [held, held]
    reference = batches_of(recipe, open_sets(recipe, home), plan)
    for one, other in zip(train_batches(plan, sources, asked.augment, CPU), reference, strict=True):
        assert torch.equal(one.images, other.images)


def test_what_is_to_be_held_and_does_not_fit_is_said(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "free_bytes", lambda device: 1_000)
    asked = replace(recipe, train=replace(recipe.train, resident="on"))
    sets = open_sets(asked, home)
    with pytest.raises(FastadError, match=r"train\.resident=on: the 40 nominal images need 31,360 bytes, more"):
        training_sources(asked, sets, make_plan(asked, sets, "middle", 1), CPU)


def test_oe_images_that_stand_in_the_test_split_can_be_left_out(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    """The OE set is the nominal set with its own test split as its train split, so that nothing is left of it."""
    (tmp_path / "twins.py").write_text(
        (home / "blobs.py")
        .read_text()
        .replace(
            'Sample(f"{split}-{index:04d}", image, CLASSES[label], split)',
            'Sample(f"{split}-{index:04d}", image, CLASSES[label], {"test": "train", "train": "other"}[split])',
        )
    )
    from fastad.shard import convert

    convert(str(tmp_path / "twins.py"), None, tmp_path, workers=1)
    (tmp_path / "blobs").symlink_to(home / "blobs")
    data = replace(recipe.data, oe=("twins",))
    sets = open_sets(replace(recipe, data=data), tmp_path)
    (oe,) = make_plan(replace(recipe, data=data), sets, "middle", seed=1).oe
    assert len(oe.rows) == 60
    without = replace(recipe, data=replace(data, oe_exclude_duplicates_of="blobs"))
    with pytest.raises(FastadError, match="twins has no train images"):
        make_plan(without, open_sets(without, tmp_path), "middle", seed=1)


def test_synsets_of_a_list_are_left_out_of_oe_and_counted(
    recipe: Recipe, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_converter

    from fastad.shard import convert

    # Tench and acorn, and two synsets that are of no challenge.
    synsets = ("n01440764", "n12267677", "n00000001", "n15075142")
    convert(str(write_converter(tmp_path / "all22k.py", classes=synsets, counts={"train": 80}, seed=4)), None, tmp_path)
    (tmp_path / "blobs").symlink_to(home / "blobs")
    for names, left, said in (
        (("imagenet1k",), {2, 3}, "all22k holds 2 of the 1,000 synsets of imagenet1k: their images are never OE"),
        (("imagenet30",), {0, 2, 3}, "all22k holds 1 of the 30 synsets of imagenet30: their images are never OE"),
        ((), {0, 1, 2, 3}, ""),
    ):
        asked = replace(recipe, data=replace(recipe.data, oe=("all22k",), oe_exclude_synsets=names))
        capsys.readouterr()
        sets = open_sets(asked, tmp_path)
        (oe,) = make_plan(asked, sets, "middle", seed=1).oe
        assert set(sets.oe[0].manifest.class_index[oe.rows]) == left
        found = capsys.readouterr().err
        assert said in found if said else "never OE" not in found
    open_sets(recipe, home)
    assert "never OE" not in capsys.readouterr().err


def test_checkpoints_know_the_set_whose_test_images_were_left_out(recipe: Recipe, home: Path) -> None:
    without = replace(recipe, data=replace(recipe.data, oe_exclude_duplicates_of="blobs"))
    sets, plain = open_sets(without, home), open_sets(recipe, home)
    assert sets.never_oe is not None
    assert sets.fingerprint() == [*plain.fingerprint(), sets.never_oe.fingerprint]
    changed = replace(sets, never_oe=replace(sets.never_oe, fingerprint="other"))
    assert changed.fingerprint() != sets.fingerprint()


def test_transposed_oe_is_trained_on_transposed(recipe: Recipe, home: Path) -> None:
    turned = replace(recipe, data=replace(recipe.data, oe_transpose=True))
    batches = []
    for asked in (recipe, turned):
        sets = open_sets(asked, home)
        batches.append(next(batches_of(asked, sets, make_plan(asked, sets, "middle", 1))))
    upright, other = (batch.images for batch in batches)
    assert torch.equal(upright[:16], other[:16])
    assert torch.equal(upright[16:].transpose(2, 3), other[16:])
    assert not torch.equal(upright[16:], other[16:])


def test_wrong_requests_are_said_before_anything_is_written(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = [
        ({"classes": ["midle"]}, recipe, "unknown class of blobs 'midle': did you mean middle"),
        ({"classes": ["middle", "midle"]}, recipe, "unknown class of blobs 'midle'"),
        ({"objectives": ["bcd"]}, recipe, "unknown objective 'bcd': did you mean bce"),
        ({}, replace(recipe, data=replace(recipe.data, nominal="nothing")), "nothing is not a shard set"),
        ({}, replace(recipe, data=replace(recipe.data, oe_size=91)), "91 images asked of .*extras, which has 90"),
        (
            {},
            replace(recipe, data=replace(recipe.data, batch_nominal=64)),
            "40 nominal images do not fill one batch of 64",
        ),
        ({}, replace(recipe, train=replace(recipe.train, precision="bfloat16")), "needs a GPU"),
        ({}, replace(recipe, data=replace(recipe.data, nominal="extras")), "extras has no split 'test'"),
    ]
    for fields, asked, message in cases:
        with pytest.raises(FastadError, match=message):
            run(asked, home, out, **({"classes": ["a"]} if asked.data.nominal == "extras" else {}) | fields)
    assert not out.exists()


def test_oe_of_another_size_is_refused(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    from conftest import write_converter

    from fastad.shard import convert

    wide = write_converter(tmp_path / "wide.py", classes=("a",), counts={"train": 40}, seed=1, size=32)
    convert(str(wide), None, tmp_path, workers=1)
    (tmp_path / "blobs").symlink_to(home / "blobs")
    with pytest.raises(FastadError, match="hold images of 28×28×1 and 32×32×1: choose an OE set of the same size"):
        run(replace(recipe, data=replace(recipe.data, oe=("wide",))), tmp_path, tmp_path / "out")


def test_another_recipe_in_the_same_folder_is_refused(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(recipe, home, tmp_path, stop=after(1))
    with pytest.raises(FastadError, match="holds a run of another recipe"):
        run(replace(recipe, optim=replace(recipe.optim, lr=0.5)), home, tmp_path)


def test_the_first_signal_asks_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert stop() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before

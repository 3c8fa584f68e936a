"""Tuning: measured once a machine and recipe, never where it does not pay, and without a trace in the scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from fastad import networks, shard, tune
from fastad import outcome as outcome_module
from fastad.augment import AugmentSpec
from fastad.dali import LoaderSpec
from fastad.evaluate import read_scores
from fastad.listing import Converter
from fastad.manifest import Sample
from fastad.networks import Network
from fastad.plan import Plan
from fastad.recipe import CHOICES, DataSpec, OptimSpec, Recipe, TrainSpec
from fastad.run import find_runs
from fastad.sets import Sets, make_plan, open_sets, training_sources
from fastad.train import train
from fastad.tune import Tuner, cache_home

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard home with JPEGs of several sizes, short side 40 to 59: 32 train and 16 test images, in two classes."""
    home = tmp_path_factory.mktemp("photos")
    rng, sources = np.random.default_rng(0), load_sample_images().images
    for index in range(48):
        (height, width), (top, left) = rng.integers(40, 60, size=2), rng.integers(0, 300, size=2)
        crop = Image.fromarray(sources[index % 2][top : top + height, left : left + width])
        crop.save(home / f"{index:02d}.jpg", quality=92)

    def samples() -> object:
        for index, path in enumerate(sorted(home.glob("*.jpg"))):
            yield Sample(path.stem, path, ("china", "flower")[index % 2], "train" if index < 32 else "test")

    converter = Converter("photos", samples, "tests", "CC0", None, "")  # type: ignore[arg-type]
    assert shard.convert_with(converter, None, home, workers=1) is not None
    return home


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    """Two steps an epoch of crops that DALI decodes, with a network of one layer; everything found is kept apart."""
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    body = Network(lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * 3, 8)), 8, lambda _: None)
    monkeypatch.setitem(networks.NETWORKS, "one-layer", body)
    monkeypatch.setitem(CHOICES, "network", ("one-layer",))
    return Recipe(
        name="photos",
        network="one-layer",
        objectives=("hsc",),
        data=DataSpec(nominal="photos", oe=("photos",), batch_nominal=8, batch_oe=8),
        optim=OptimSpec(epochs=2),
        augment=AugmentSpec(resize_px=36, crop_px=32, flip_probability=0.5),
        train=TrainSpec(resident="off"),
    )


Measured = list[LoaderSpec]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What was measured on a machine of 8 cores: more threads than 4 are within the noise, a share of 0.8 is best."""
    calls: Measured = []

    def images_per_s(*arguments: object) -> float:
        loader = next(argument for argument in arguments if isinstance(argument, LoaderSpec))
        calls.append(loader)
        by_threads = {1: 1000.0, 2: 1900.0, 4: 3000.0, 8: 3100.0}[loader.threads]
        return by_threads * (1.2 if loader.hw_decoder_load == 0.8 else 1.0) * (1.0 + 0.1 * (loader.prefetch == 4))

    def machine(device: torch.device) -> dict[str, object]:
        return {"processor": "one", "cores": 8, "device": device.type, "dali": ["2"]}

    monkeypatch.setattr(tune, "_images_per_s", images_per_s)
    monkeypatch.setattr(tune, "_machine", machine)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return calls


Choose = Callable[..., LoaderSpec]


@pytest.fixture
def choose(photos: Path) -> Choose:
    """The settings that a new process chooses for a recipe."""

    def chosen(recipe: Recipe, device: torch.device = CPU, runs: int = 1_000_000) -> LoaderSpec:
        sets, plan = opened(recipe, photos)
        return Tuner(recipe, device, runs=runs).loader(plan, training_sources(recipe, sets, plan, CPU))

    return chosen


def opened(recipe: Recipe, home: Path) -> tuple[Sets, Plan]:
    sets = open_sets(recipe, home)
    return sets, make_plan(recipe, sets, "china", 1)


def test_the_smallest_setting_within_the_noise_is_chosen_and_kept(
    streamed: Recipe, measured: Measured, choose: Choose, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(streamed) == LoaderSpec(4, 1, 0.65)
    assert [loader.threads for loader in measured] == [8, 1, 2, 4, 8]
    assert "loader: threads 4, prefetch 1; tuned now: 3,000 images/s decoded alone" in capsys.readouterr().err
    (path,) = cache_home().glob("*.json")
    kept = json.loads(path.read_bytes())
    assert kept["loader"] == {"threads": 4}
    assert len(kept["rates"]) == 4
    measured.clear()
    assert choose(streamed, runs=1) == LoaderSpec(4, 1, 0.65)
    assert not measured
    assert f"loader: threads 4, prefetch 1; cached in {path}" in capsys.readouterr().err


def test_other_work_or_another_machine_is_measured_anew(
    streamed: Recipe, measured: Measured, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(streamed)
    others = [
        replace(streamed, data=replace(streamed.data, batch_oe=7)),
        replace(streamed, augment=replace(streamed.augment, crop_px=28)),
        replace(streamed, loader=replace(streamed.loader, prefetch=3)),
    ]
    for other in others:
        measured.clear()
        choose(other)
        assert measured
    monkeypatch.setattr(
        tune, "_machine", lambda device: {"processor": "one", "cores": 8, "device": "cpu", "dali": ["3"]}
    )
    measured.clear()
    choose(streamed)
    assert measured


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"key": 1}', "threads"])
def test_a_damaged_cache_is_said_and_measured_anew(
    damage: str, streamed: Recipe, measured: Measured, choose: Choose, capsys: pytest.CaptureFixture[str]
) -> None:
    first = choose(streamed)
    (path,) = cache_home().glob("*.json")
    whole = path.read_text()
    path.write_text(whole.replace('"threads": 4', '"threads": -4') if damage == "threads" else damage)
    measured.clear()
    capsys.readouterr()
    assert choose(streamed) == first
    assert measured
    assert f"{path} is damaged: its settings are not used" in capsys.readouterr().err
    assert path.read_text() == whole


def test_values_of_the_recipe_win_and_are_not_measured(
    streamed: Recipe, measured: Measured, choose: Choose, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(replace(streamed, loader=LoaderSpec(threads=2)), GPU) == LoaderSpec(2, 4, 0.8)
    assert {loader.threads for loader in measured} == {2}
    assert (
        "loader: threads 2 (the recipe’s), hardware decode share 0.8, prefetch 4; tuned now" in capsys.readouterr().err
    )
    measured.clear()
    assert choose(replace(streamed, loader=LoaderSpec(2, 3, 0.0)), GPU) == LoaderSpec(2, 3, 0.0)
    assert not measured
    assert "hardware decode share 0.0 (the recipe’s)" in capsys.readouterr().err


def test_the_hardware_decoders_share_is_tuned_on_gpus_only(
    streamed: Recipe, measured: Measured, choose: Choose
) -> None:
    assert choose(streamed, GPU) == LoaderSpec(4, 4, 0.8)
    assert {loader.hw_decoder_load for loader in measured} == {0.0, 0.5, 0.65, 0.8, 1.0}
    measured.clear()
    choose(streamed)
    assert {loader.hw_decoder_load for loader in measured} == {0.65}


def test_nothing_is_measured_where_that_does_not_pay(
    streamed: Recipe, measured: Measured, choose: Choose, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(streamed, runs=100) == LoaderSpec(8, 1, 0.65)
    assert not measured
    assert "too few images to tune for" in capsys.readouterr().err
    # 4 settings of a second, against 72 s of decoding at the 3,100 images/s that are measured first.
    assert choose(streamed, runs=3_500) == LoaderSpec(8, 1, 0.65)
    assert len(measured) == 1
    measured.clear()
    assert choose(replace(streamed, train=TrainSpec(resident="on"))) == LoaderSpec()
    assert not measured
    assert not cache_home().exists()


def test_a_cache_that_cannot_be_written_is_said(
    streamed: Recipe,
    measured: Measured,
    choose: Choose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "file"))
    assert choose(streamed) == LoaderSpec(4, 1, 0.65)
    assert "what was tuned is not kept: cannot write" in capsys.readouterr().err


def test_ranks_share_a_machines_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [tune._machine(CPU)["cores"], tune._values("threads", 6)] == [8, [1, 2, 4, 6]]
    assert LoaderSpec().settled(GPU).threads == 1
    for ranks, cores in (("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert tune._machine(CPU)["cores"] == cores
        assert LoaderSpec().settled(GPU).threads == cores, "torchrun leaves PyTorch one thread, but cores to DALI"
        assert LoaderSpec().settled(CPU).threads == 1


def test_scores_are_the_same_whatever_the_settings_tuned_or_not(
    streamed: Recipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "SECONDS_A_SETTING", 0.01)
    monkeypatch.setattr(outcome_module, "write_examples", lambda *_: None)
    found = []
    settings = (LoaderSpec(1, 1), LoaderSpec(3, 4), LoaderSpec())
    for number, loader in enumerate(settings):
        if loader == LoaderSpec():
            monkeypatch.setattr(tune, "FROM_IMAGES", 0)
            monkeypatch.setattr(tune, "MOST_SHARE", 1e9)
        out, recipe = tmp_path / str(number), replace(streamed, loader=loader)
        results = train(recipe, shards=photos, out=out, device=CPU, classes=["china"])
        # The settings make no other run of it.
        again = replace(recipe, loader=LoaderSpec(threads=2))
        assert train(again, shards=photos, out=out, device=CPU, classes=["china"]) == results
        found.append(read_scores(find_runs([out])[0]).score)
    assert "; tuned now: " in capsys.readouterr().err
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])

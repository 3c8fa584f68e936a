"""Scoring: a run's model gives its own test images their scores again, and refuses what it was not made for."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastad.errors import FastadError
from fastad.evaluate import read_scores
from fastad.manifest import open_set
from fastad.recipe import Recipe
from fastad.run import Run, find_runs
from fastad.score import csv_of, score_set
from fastad.shard import convert
from fastad.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(recipe: Recipe, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    train(recipe, shards=home, out=out, device=CPU, classes=["middle"], objectives=["bce"])
    (run,) = find_runs([out])
    return run


def test_the_runs_own_test_images_have_the_scores_of_its_evaluation(run: Run, home: Path) -> None:
    own = read_scores(run)
    expected = dict(zip(own.key.tolist(), own.score.tolist(), strict=True))
    found = score_set(run, home / "blobs", CPU, "test")
    assert {key.encode(): score for key, score in zip(found.key, found.score.tolist(), strict=True)} == expected
    assert set(found.class_name) == {"low/mid", "middle", "high"} and set(found.split) == {"test"}


def test_a_whole_set_comes_in_the_order_of_its_source(run: Run, home: Path) -> None:
    found = score_set(run, home / "blobs", CPU)
    keys = [f"{split}-{number:04d}" for split, count in (("train", 120), ("test", 60)) for number in range(count)]
    assert found.key.tolist() == keys
    assert found.split.tolist() == [key.partition("-")[0] for key in keys]
    lines = list(csv.DictReader(io.StringIO(csv_of(found))))
    assert [line["key"] for line in lines] == keys
    np.testing.assert_array_equal(np.float32([line["score"] for line in lines]), found.score)


def test_other_images_unfinished_runs_and_damaged_models_are_refused(run: Run, home: Path, tmp_path: Path) -> None:
    assert open_set(home / "extras").shape_hwc == (28, 28, 1)
    assert len(score_set(run, home / "extras", CPU).score) == 90
    with pytest.raises(FastadError, match="has no split 'val': it has train, test"):
        score_set(run, home / "blobs", CPU, "val")
    convert("toy", None, tmp_path)
    with pytest.raises(FastadError, match="mnist-lenet takes images of 28×28×1"):
        score_set(run, tmp_path / "toy", CPU)
    copied = tmp_path / "runs"
    shutil.copytree(run.folder, copied)
    (copy,) = find_runs([copied])
    data = copy.model.read_bytes()
    copy.model.write_bytes(data[: len(data) // 2])
    with pytest.raises(FastadError, match=r"model\.pt cannot be read: remove .* and train it again"):
        score_set(copy, home / "blobs", CPU)
    torch.save({"body.weight": torch.zeros(3)}, copy.model)
    with pytest.raises(FastadError, match="was trained on other images than of 28×28×1"):
        score_set(copy, home / "blobs", CPU)
    copy.model.unlink()
    with pytest.raises(FastadError, match="is not finished"):
        score_set(copy, home / "blobs", CPU)

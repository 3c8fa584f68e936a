"""The toy experiment: the paper's Figure 1 as a number, from nothing but what `fastad sweep toy` writes."""

import threading
from pathlib import Path

import numpy as np
import pytest

from fastad.errors import FastadError
from fastad.evaluate import read_scores
from fastad.experiment import find_experiment
from fastad.manifest import open_set
from fastad.run import find_runs
from fastad.shard import convert
from fastad.sweep import folder_of, groups_of
from fastad.sweep_worker import Work, work_on
from fastad.toy import BOUNDARY, MIDDLE, NOMINAL_STD, far_field_nominal_share, places, plane


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toy")
    convert("toy", None, home, workers=1)
    return home


def test_the_plane_is_tested_whole_and_clusters_lie_to_one_side(home: Path) -> None:
    manifest = open_set(home / "toy")
    assert manifest.shape_hwc == (1, 2, 1)
    assert (len(manifest.split_rows("test")), len(list(places()))) == (128 * 128, 128 * 128)
    train = np.asarray(manifest.split_rows("train"))
    counts = np.bincount(manifest.class_index[train], minlength=4).tolist()
    assert dict(zip(manifest.classes, counts, strict=True)) == {
        "nominal": 2048,
        "uniform": 2048,
        "clusters": 3 * 2048,
        "elsewhere": 0,
    }


def test_bce_calls_the_uncovered_side_nominal_and_hsc_does_not(home: Path, tmp_path: Path) -> None:
    experiment = find_experiment("toy")
    work = Work(tuple(groups_of(experiment, home)), home, tmp_path, folder_of(experiment, tmp_path), "cpu", 1)
    work_on(work, "here", threading.Event())
    share, near = {}, {}
    for run in find_runs([tmp_path]):
        scores = read_scores(run)
        key = run.recipe.name.partition("=")[2], run.objective
        share[key] = far_field_nominal_share(scores.key, scores.score, run.objective)
        near[key] = np.mean(scores.score[scores.target == 0] < BOUNDARY[run.objective])
    assert share["skewed", "bce"] > 0.25
    assert max(share["skewed", "hsc"], share["ideal", "hsc"], share["ideal", "bce"]) < 0.02
    assert min(near.values()) > 0.9


def test_the_plane_is_drawn_from_keys_and_the_far_field_is_far() -> None:
    points = np.array(list(places()))
    key = np.array([f"test-{x:03d}-{y:03d}".encode() for x, y in points])
    x, y = points.T
    assert plane(key, x.astype(np.float32))[0, :2].tolist() == [0.0, 2.0]
    assert plane(key, y.astype(np.float32))[1, :2].tolist() == [2.0, 2.0]
    distance = np.hypot(x - MIDDLE, y - MIDDLE)
    assert far_field_nominal_share(key, distance - 5 * NOMINAL_STD, "bce") == 0
    assert far_field_nominal_share(key, np.full(len(key), -1.0), "bce") == 1
    with pytest.raises(FastadError, match="not scores of the whole plane"):
        plane(key[1:], x[1:])
    with pytest.raises(FastadError, match="not scores of the toy set"):
        plane(np.array([b"digit-0001"]), x[:1])

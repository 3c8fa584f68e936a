"""Metrics against scikit-learn, intervals against simulation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from test_faults import make_set

from fastad import evaluate
from fastad.augment import AugmentSpec
from fastad.errors import FastadError
from fastad.evaluate import (
    METRICS,
    Scores,
    measure,
    over_seeds,
    read_oe_image,
    read_scores,
    score_batches,
    write_examples,
    write_scores,
)
from fastad.manifest import Manifest
from fastad.objectives import find
from fastad.pipeline import Batch, Source, evaluation_batches
from fastad.reader import ShardReader
from fastad.recipe import Recipe
from fastad.run import open_run

CPU = torch.device("cpu")


def sample(rng: np.random.Generator, nominal: int, anomalous: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    target = np.repeat([0.0, 1.0], [nominal, anomalous])
    return target, rng.normal(size=nominal + anomalous) + shift * target


def sklearn_metrics(target: np.ndarray, score: np.ndarray) -> list[float]:
    fpr, tpr, _ = roc_curve(target, score, drop_intermediate=False)
    return [roc_auc_score(target, score), average_precision_score(target, score), float(fpr[tpr >= 0.95][0])]


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_values_and_every_resample_equal_scikit_learn_also_with_ties(
    decimals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, score = sample(np.random.default_rng(1), 150, 80, 1.0)
    score = score.round(decimals)
    found = measure(target, score)
    np.testing.assert_allclose([found[name].value for name in METRICS], sklearn_metrics(target, score), atol=1e-12)

    thresholds, place = np.unique(-score, return_inverse=True)
    rng = np.random.default_rng(2)
    for _ in range(20):
        chosen = np.concatenate([rng.choice(np.flatnonzero(target == kind), size=60) for kind in (0, 1)])
        counts = [np.bincount(place[chosen][target[chosen] == kind], minlength=len(thresholds)) for kind in (1, 0)]
        (found_of_counts,) = evaluate._metrics_of_counts(counts[0][None], counts[1][None])
        np.testing.assert_allclose(found_of_counts, sklearn_metrics(target[chosen], score[chosen]), atol=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """60 samples of normals one apart (true AUROC Φ(1/√2) = 0.7602): 95 % intervals miss it 0 to 9 times."""
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(60):
        interval = measure(*sample(rng, 100, 100, 1.0))["auroc"]
        assert interval.low <= interval.value <= interval.high
        missed += not interval.low <= 0.76025 <= interval.high
    assert missed <= 9


def test_a_perfect_detector() -> None:
    found = measure(np.repeat([0.0, 1.0], 20), np.arange(40.0))
    assert [found[name].value for name in METRICS] == [1, 1, 0]


def test_equal_seeds_give_equal_intervals() -> None:
    data = sample(np.random.default_rng(4), 50, 50, 1.0)
    assert measure(*data) == measure(*data)
    assert measure(*data) != measure(*data, seed=1)


def test_what_cannot_be_ranked_is_said() -> None:
    with pytest.raises(FastadError, match="2 of 4 scores are not finite: the model diverged"):
        measure(np.array([0, 0, 1, 1]), np.array([0, np.nan, np.inf, 1]))
    with pytest.raises(FastadError, match="all test images are of one kind"):
        measure(np.zeros(4), np.arange(4.0))


def test_over_seeds_is_students_interval() -> None:
    found = over_seeds([0.80, 0.82, 0.87])
    # s = 0.0360555, t(0.975, 2) = 4.302653
    assert found.value == pytest.approx(0.83)
    assert found.high - found.value == pytest.approx(4.302653 * 0.0360555 / 3**0.5, rel=1e-5)
    assert over_seeds([0.1, 0.9])[1:] == (0, 1)
    assert np.isnan(over_seeds([0.9])[1:]).all()


def test_scores_and_examples_survive_writing(blobs: Manifest, recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "middle", "hsc", 1)
    rows = np.asarray(blobs.split_rows("test"))
    target = (blobs.class_index[rows] != 1).astype(np.float32)
    score = np.random.default_rng(0).normal(size=60).astype(np.float32)
    scores = evaluate.describe(blobs, rows, target, score)
    write_scores(run, scores)
    for one, other in zip(read_scores(run), scores, strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(scores.class_name[target == 0]) == {"middle"}

    write_examples(run, ShardReader(blobs), rows, scores)
    with np.load(run.examples) as found:
        for name in evaluate.STRIPS:
            assert found[f"{name}_images"].shape == (12, 28, 28, 1)
        np.testing.assert_array_equal(found["highest_score"], np.sort(score)[::-1][:12])
        np.testing.assert_array_equal(found["lowest_score"], np.sort(score)[:12])
        assert (found["nominal_highest_target"] == 0).all()
        assert (found["anomalous_lowest_target"] == 1).all()
        best = ShardReader(blobs).pixels(rows[[score.argmax()]])
        np.testing.assert_array_equal(found["highest_images"][:1], best)
    assert read_oe_image(run) is None
    write_examples(run, ShardReader(blobs), rows, scores, best[0])
    np.testing.assert_array_equal(read_oe_image(run), best[0])
    assert set(evaluate.read_examples(run)) == set(evaluate.STRIPS)
    run.examples.write_bytes(run.examples.read_bytes()[:100])
    with pytest.raises(FastadError, match=r"examples\.npz cannot be read"):
        read_oe_image(run)


def test_a_network_view_is_what_evaluation_makes_of_an_image(
    blobs: Manifest, tmp_path: Path, cpu: torch.device
) -> None:
    photographs = make_set(tmp_path, "photographs", {})
    spec = AugmentSpec(resize_px=72, crop_px=64, crop_padding_px=2, flip_probability=0.5, brightness=0.3)
    padded = AugmentSpec(crop_px=24)
    for manifest, how, tolerance in ((photographs, spec, 1), (blobs, padded, 0), (blobs, AugmentSpec(), 0)):
        rows = np.asarray(manifest.split_rows("train"))[:4]
        reader = ShardReader(manifest, transpose=manifest is blobs)
        (batch,) = evaluation_batches(Source(reader), rows, np.zeros(4, np.float32), how, cpu)
        for row, expected in zip(rows.tolist(), (batch.images * 255).permute(0, 2, 3, 1).numpy(), strict=True):
            seen = evaluate.network_view(reader, row, how)
            assert seen.dtype == np.uint8
            np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance + 1e-3)
    large = evaluate.network_view(ShardReader(photographs), rows[0], AugmentSpec(resize_px=400, crop_px=300))
    assert large.shape == (evaluate.SHOWN_PX, evaluate.SHOWN_PX, 3)


def test_missing_or_damaged_scores_are_said(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path, recipe, "middle", "hsc", 1)
    with pytest.raises(FastadError, match=r"scores\.npz cannot be read .*remove .*seed1 and run fastad train or"):
        read_scores(run)
    write_scores(run, Scores(*[np.arange(3)] * 4))
    run.scores.write_bytes(run.scores.read_bytes()[:100])
    with pytest.raises(FastadError, match=r"scores\.npz cannot be read"):
        read_scores(run)


class Doubled(torch.nn.Module):
    """Stands in for a detector: tells in which mode it was called."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training and torch.is_inference_mode_enabled()
        return 2 * images[:, 0, 0, :1]


def batches_for_scoring(device: torch.device) -> Iterator[Batch]:
    images = torch.arange(7.0, device=device).view(7, 1, 1, 1)
    for part in images.split(3):  # the last one is smaller
        yield Batch(part, torch.zeros(len(part), device=device), np.arange(len(part)))


def test_every_image_is_scored_by_every_model_in_one_pass() -> None:
    found = score_batches([(Doubled(), find("bce")), (Doubled(), find("hsc:l2-squared"))], batches_for_scoring(CPU))
    assert (found.dtype, found.shape) == (np.float32, (2, 7))
    np.testing.assert_array_equal(found, [2.0 * np.arange(7), 4.0 * np.arange(7) ** 2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_host_waits_for_a_gpus_scores_at_their_end_only() -> None:
    def watched() -> Iterator[Batch]:
        try:
            for batch in batches_for_scoring(torch.device("cuda")):
                torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")

    (found,) = score_batches([(Doubled(), find("bce"))], watched())
    np.testing.assert_array_equal(found, 2.0 * np.arange(7))

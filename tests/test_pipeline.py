"""Batches: the plan's rows, the draws' pixels, against a slow reference written here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d

from fastad.augment import AugmentSpec, draw
from fastad.manifest import Manifest
from fastad.pipeline import Batch, evaluation_batches, train_batches
from fastad.plan import Plan
from fastad.reader import ShardReader

CPU = torch.device("cpu")


def make_plan(blobs: Manifest, extras: Manifest | None, epochs: int = 2) -> Plan:
    oe = None if extras is None else np.arange(len(extras.key))
    return Plan(np.arange(0, 50), oe, seed=5, epochs=epochs, batch_nominal=16, batch_oe=16)


def run(plan: Plan, blobs: Manifest, extras: Manifest, spec: AugmentSpec, start_step: int = 0) -> list[Batch]:
    batches = train_batches(plan, ShardReader(blobs), ShardReader(extras), spec, CPU, start_step=start_step)
    return [Batch(batch.images.clone(), batch.target, batch.row) for batch in batches]


def npy(manifest: Manifest, row: int) -> np.ndarray:
    """A row's image read anew with tarfile, [H, W, C]."""
    import io
    import tarfile

    with tarfile.open(manifest.folder / manifest.shards[manifest.shard[row]].name) as tar:
        member = tar.extractfile(f"{manifest.key[row].decode()}.npy")
        assert member is not None
        return np.load(io.BytesIO(member.read()))


def test_batches_hold_the_plans_rows_in_order_nominal_first(blobs: Manifest, extras: Manifest) -> None:
    plan = make_plan(blobs, extras)
    batches = run(plan, blobs, extras, AugmentSpec())
    assert len(batches) == plan.steps == 6
    for step, batch in enumerate(batches):
        rows = plan.epoch(step // 3)
        np.testing.assert_array_equal(batch.row, np.concatenate([rows.nominal[step % 3], rows.oe[step % 3]]))
        assert batch.target.tolist() == [0.0] * 16 + [1.0] * 16
        assert batch.images.shape == (32, 1, 28, 28)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([npy(blobs if place < 16 else extras, row) for place, row in enumerate(batches[4].row)])
    np.testing.assert_allclose(batches[4].images.permute(0, 2, 3, 1).numpy(), expected / 255, atol=1e-7)


@pytest.mark.parametrize("start_step", [1, 2, 3, 5])
def test_a_resumed_stream_is_the_rest_of_the_uninterrupted_one(
    start_step: int, blobs: Manifest, extras: Manifest
) -> None:
    spec = AugmentSpec(flip_probability=0.5, crop_padding_px=3, oe_blur_sigma_px=1.0)
    plan = make_plan(blobs, extras)
    whole, rest = run(plan, blobs, extras, spec), run(plan, blobs, extras, spec, start_step)
    assert len(rest) == len(whole) - start_step
    for one, other in zip(whole[start_step:], rest, strict=True):
        np.testing.assert_array_equal(one.row, other.row)
        assert torch.equal(one.images, other.images)


def reference(image: np.ndarray, flip: int, start: np.ndarray, sigma: float, padding: int) -> np.ndarray:
    """Flip, crop, blur of one uint8 [H, W, C] image, step by step, as float."""
    height, width, _ = image.shape
    if flip:
        image = image[:, ::-1]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = start + padding
    image = padded[top : top + height, left : left + width].astype(np.float64)
    if sigma > 0:
        radius = int(np.ceil(3 * sigma))
        window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        for axis in (0, 1):
            image = convolve1d(image, window / window.sum(), axis=axis, mode="mirror")
    return image


@pytest.mark.parametrize(
    ("spec", "tolerance"),
    [
        (AugmentSpec(flip_probability=0.5), 0),
        (AugmentSpec(crop_padding_px=4), 0),
        # DALI rounds the blurred image to uint8: half a level, and rounding errors on top.
        (AugmentSpec(oe_blur_sigma_px=1.0), 0.51),
        (AugmentSpec(oe_blur_sigma_px=8.0), 0.51),
        (AugmentSpec(flip_probability=0.5, crop_padding_px=4, oe_blur_sigma_px=2.0), 0.51),
    ],
)
def test_pixels_are_those_of_the_reference(
    spec: AugmentSpec, tolerance: float, blobs: Manifest, extras: Manifest
) -> None:
    plan = make_plan(blobs, extras, epochs=1)
    draws = [draw(spec, plan.seed, stream, 0, 48) for stream in ("nominal", "oe")]
    for step, batch in enumerate(run(plan, blobs, extras, spec)):
        found = batch.images.permute(0, 2, 3, 1).numpy() * 255
        for place, row in enumerate(batch.row):
            mine, position = draws[place // 16], step * 16 + place % 16
            sigma = float(mine.blur_sigma_px[position])
            assert (sigma > 0) == (place >= 16 and spec.oe_blur_sigma_px > 0)
            image = npy(blobs if place < 16 else extras, row)
            expected = reference(image, mine.flip[position], mine.crop_start_px[position], sigma, spec.crop_padding_px)
            assert np.abs(found[place] - expected).max() <= tolerance + 1e-4


def test_normalisation_is_mean_and_std_of_pixels_in_0_to_1(blobs: Manifest, extras: Manifest) -> None:
    plan = make_plan(blobs, extras, epochs=1)
    plain = run(plan, blobs, extras, AugmentSpec())
    normalised = run(plan, blobs, extras, AugmentSpec(mean=(0.4,), std=(0.25,)))
    for one, other in zip(plain, normalised, strict=True):
        torch.testing.assert_close(other.images, (one.images - 0.4) / 0.25, atol=1e-5, rtol=1e-5)


def test_without_oe_batches_are_nominal_only(blobs: Manifest) -> None:
    batches = list(train_batches(make_plan(blobs, None), ShardReader(blobs), None, AugmentSpec(), CPU))
    assert {len(batch.row) for batch in batches} == {16}
    assert not any(batch.target.any() for batch in batches)


def test_evaluation_keeps_order_and_drops_nothing(blobs: Manifest) -> None:
    rows = np.asarray(blobs.split_rows("test"))[::-1].copy()
    target = (np.arange(60) % 2).astype(np.float32)
    spec = AugmentSpec(flip_probability=1.0, crop_padding_px=4, mean=(0.5,))
    batches = list(evaluation_batches(ShardReader(blobs), rows, target, spec, CPU, size=25))
    assert [len(batch.row) for batch in batches] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate([batch.row for batch in batches]), rows)
    np.testing.assert_array_equal(torch.cat([batch.target for batch in batches]).numpy(), target)
    found = batches[2].images[-1].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, npy(blobs, rows[-1]) / 255 - 0.5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_gpu_gives_the_cpus_pixels(blobs: Manifest, extras: Manifest, tmp_path: Path) -> None:
    spec = AugmentSpec(flip_probability=0.5, crop_padding_px=4, oe_blur_sigma_px=2.0)
    plan = make_plan(blobs, extras)
    on_gpu = train_batches(plan, ShardReader(blobs), ShardReader(extras), spec, torch.device("cuda"))
    for one, other in zip(run(plan, blobs, extras, spec), on_gpu, strict=True):
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(one.row, other.row)
        torch.testing.assert_close(one.images, other.images.cpu(), atol=1.01 / 255, rtol=0)

"""Batches: the plan's rows and the draws' pixels, from every executor, against a slow reference written here."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from fastad import shard
from fastad.augment import AugmentSpec, draw
from fastad.dali import Decoding, LoaderSpec
from fastad.encode import Encoding
from fastad.errors import FastadError
from fastad.faults import Faults, Origin
from fastad.listing import Converter
from fastad.manifest import Manifest, Sample
from fastad.pipeline import Batch, Source, Unmade, evaluation_batches, out_hw, step_batches, train_batches
from fastad.plan import WHOLE_BATCH, Plan, Share, Stream
from fastad.reader import ShardReader
from fastad.resident import hold

CPU = torch.device("cpu")

Sources = Callable[[Plan, list[ShardReader], AugmentSpec], list[Source]]


def make_plan(extras: Manifest | None, epochs: int = 2, batch: int = 16) -> Plan:
    streams = [Stream("nominal", np.arange(0, 50), batch)]
    if extras is not None:
        streams.append(Stream("oe", np.arange(len(extras.key)), batch, "cyclic"))
    return Plan(tuple(streams), seed=5, epochs=epochs)


def by_dali(plan: Plan, readers: list[ShardReader], spec: AugmentSpec) -> list[Source]:
    return [Source(reader) for reader in readers]


def resident(plan: Plan, readers: list[ShardReader], spec: AugmentSpec) -> list[Source]:
    return [
        Source(reader, hold(Origin(reader, Faults()), stream.rows, Decoding(spec, CPU, LoaderSpec())))
        for stream, reader in zip(plan.streams, readers, strict=True)
    ]


EXECUTORS: dict[str, Sources] = {"dali": by_dali, "resident": resident}


def run(
    plan: Plan,
    manifests: list[Manifest],
    spec: AugmentSpec,
    executor: str = "dali",
    start_step: int = 0,
    share: Share = WHOLE_BATCH,
) -> list[Batch]:
    sources = EXECUTORS[executor](plan, [ShardReader(manifest) for manifest in manifests], spec)
    batches = train_batches(plan, sources, spec, CPU, start_step=start_step, share=share)
    return [Batch(batch.images.clone(), batch.target, batch.row) for batch in batches]


def stored(manifest: Manifest, row: int) -> np.ndarray:
    """A row's image read anew with tarfile, [H, W, C]."""
    extension = manifest.extension[row].decode()
    with tarfile.open(manifest.shard_path(int(manifest.shard[row]))) as tar:
        member = tar.extractfile(f"{manifest.key[row].decode()}.{extension}")
        assert member is not None
        data = io.BytesIO(member.read())
    return np.load(data) if extension == "npy" else np.asarray(Image.open(data).convert("RGB"))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_batches_hold_the_plans_rows_in_order_nominal_first(executor: str, blobs: Manifest, extras: Manifest) -> None:
    plan = make_plan(extras)
    batches = run(plan, [blobs, extras], AugmentSpec(), executor)
    assert len(batches) == plan.steps == 6
    for step, batch in enumerate(batches):
        rows = [stream[step % 3] for stream in plan.epoch(step // 3)]
        np.testing.assert_array_equal(batch.row, np.concatenate(rows))
        assert batch.target.tolist() == [0.0] * 16 + [1.0] * 16
        assert batch.images.shape == (32, 1, 28, 28)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([stored(blobs if place < 16 else extras, row) for place, row in enumerate(batches[4].row)])
    np.testing.assert_allclose(batches[4].images.permute(0, 2, 3, 1).numpy(), expected / 255, atol=1e-7)


WHOLE = AugmentSpec(
    crop_padding_px=3,
    flip_probability=0.5,
    brightness=0.1,
    contrast=0.1,
    oe_blur_sigma_px=1.0,
    noise_std=0.01,
    mean=(0.4,),
    std=(0.25,),
)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("start_step", [1, 2, 3, 5])
def test_a_resumed_stream_is_the_rest_of_the_uninterrupted_one(
    start_step: int, executor: str, blobs: Manifest, extras: Manifest
) -> None:
    plan, manifests = make_plan(extras), [blobs, extras]
    whole, rest = run(plan, manifests, WHOLE, executor), run(plan, manifests, WHOLE, executor, start_step)
    assert len(rest) == len(whole) - start_step
    for one, other in zip(whole[start_step:], rest, strict=True):
        np.testing.assert_array_equal(one.row, other.row)
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_have_together_what_one_process_has(ranks: int, executor: str, blobs: Manifest, extras: Manifest) -> None:
    plan, manifests = make_plan(extras), [blobs, extras]
    shares = [run(plan, manifests, WHOLE, executor, share=Share(rank, ranks)) for rank in range(ranks)]
    for step, whole in enumerate(run(plan, manifests, WHOLE, executor)):
        parts = [share[step] for share in shares]
        half = 16 // ranks
        assert all(part.target.tolist() == [0.0] * half + [1.0] * half for part in parts)
        for stream in (slice(0, half), slice(half, 2 * half)):
            together = slice(0, 16) if stream.start == 0 else slice(16, 32)
            np.testing.assert_array_equal(np.concatenate([part.row[stream] for part in parts]), whole.row[together])
            torch.testing.assert_close(
                torch.cat([part.images[stream] for part in parts]), whole.images[together], atol=1e-6, rtol=0
            )


def reference(image: np.ndarray, draws: tuple[bool, np.ndarray], spec: AugmentSpec, sigma: float) -> np.ndarray:
    """Flip, crop, blur of one uint8 [H, W, C] image, step by step, in [0, 1]."""
    flip, (top, left) = draws
    height, width, _ = image.shape
    padding = spec.crop_padding_px
    image = image[:, ::-1] if flip else image
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    side = (spec.crop_px, spec.crop_px) if spec.crop_px else (height, width)
    start = [
        int(u * (full + 2 * padding - part + 1))
        for u, full, part in zip((top, left), (height, width), side, strict=True)
    ]
    image = padded[start[0] : start[0] + side[0], start[1] : start[1] + side[1]] / 255
    if sigma > 0:
        radius = int(np.ceil(3 * sigma))
        window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        for axis in (0, 1):
            image = convolve1d(image, window / window.sum(), axis=axis, mode="mirror")
    return image


SPECS = [
    AugmentSpec(flip_probability=0.5),
    AugmentSpec(crop_padding_px=4),
    AugmentSpec(crop_px=20),
    AugmentSpec(crop_px=24, crop_padding_px=2, flip_probability=0.5, oe_blur_sigma_px=2.0),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("spec", SPECS)
def test_pixels_are_those_of_the_reference(spec: AugmentSpec, executor: str, blobs: Manifest, extras: Manifest) -> None:
    plan = make_plan(extras, epochs=1)
    draws = [draw(spec, plan.seed, stream, 0, 0, 48) for stream in ("nominal", "oe")]
    for step, batch in enumerate(run(plan, [blobs, extras], spec, executor)):
        found = batch.images.permute(0, 2, 3, 1).numpy()
        for place, row in enumerate(batch.row):
            mine, position = draws[place // 16], step * 16 + place % 16
            sigma = spec.oe_blur_sigma_px if place >= 16 else 0
            image = stored(blobs if place < 16 else extras, row)
            expected = reference(image, (mine.flip[position], mine.crop[position]), spec, sigma)
            np.testing.assert_allclose(found[place], expected, atol=1e-5)


def test_both_executors_give_the_same_bits(blobs: Manifest, extras: Manifest) -> None:
    plan, manifests = make_plan(extras), [blobs, extras]
    for one, other in zip(*(run(plan, manifests, WHOLE, executor) for executor in EXECUTORS), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("streamed", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_streams_of_several_kinds_and_executors_make_the_same_batches(
    streamed: tuple[int, ...], blobs: Manifest, extras: Manifest
) -> None:
    streams = (*make_plan(extras).streams, Stream("oe-2", np.arange(60, 120), 4, "cyclic"))
    plan, readers = Plan(streams, seed=5, epochs=1), [ShardReader(manifest) for manifest in (blobs, extras, blobs)]
    one, other = by_dali(plan, readers, WHOLE), resident(plan, readers, WHOLE)
    mixed = [(one if number in streamed else other)[number] for number in range(3)]
    for found, expected in zip(
        train_batches(plan, mixed, WHOLE, CPU), train_batches(plan, other, WHOLE, CPU), strict=True
    ):
        np.testing.assert_array_equal(found.row, expected.row)
        assert torch.equal(found.images, expected.images)


def test_photographs_and_arrays_are_streamed_side_by_side(photos: Manifest, tmp_path: Path) -> None:
    """They share no pipeline, and each has the crops that it has alone."""
    squares = [load_sample_images().images[0][top : top + 32, :32] for top in range(64)]
    samples = [
        Sample(f"{number:02d}", np.ascontiguousarray(each), None, "train") for number, each in enumerate(squares)
    ]
    arrays = shard.convert_with(Converter("arrays", lambda: iter(samples), "tests", "CC0", None, ""), None, tmp_path)
    assert arrays is not None
    spec = AugmentSpec(crop_px=24, flip_probability=0.5)
    streams = [Stream(name, np.arange(len(each.key)), 8) for name, each in (("nominal", photos), ("oe", arrays))]
    together = run(Plan(tuple(streams), 5, 1), [photos, arrays], spec)
    for place, (stream, manifest) in enumerate(zip(streams, (photos, arrays), strict=True)):
        alone = run(Plan((stream,), 5, 1), [manifest], spec)
        for both, apart in zip(together, alone, strict=False):
            np.testing.assert_array_equal(both.row[8 * place :][:8], apart.row)
            assert torch.equal(both.images[8 * place :][:8], apart.images)


NOT_PADDED = AugmentSpec(crop_px=20, flip_probability=0.5, contrast=0.2, noise_std=0.01)


@pytest.mark.parametrize("spec", [AugmentSpec(), WHOLE, NOT_PADDED], ids=["plain", "whole", "not padded"])
@pytest.mark.parametrize("share", [WHOLE_BATCH, Share(1, 4)])
def test_batches_made_of_their_numbers_in_the_same_memory_are_those_of_dali(
    share: Share, spec: AugmentSpec, blobs: Manifest, extras: Manifest
) -> None:
    """All numbers first, as a host does that runs ahead of its device."""
    plan, manifests = make_plan(extras), [blobs, extras]
    readers = [ShardReader(manifest) for manifest in manifests]
    unmade = list(step_batches(plan, resident(plan, readers, spec), spec, CPU, start_step=2, share=share))
    memory, expected = None, run(plan, manifests, spec, "dali", start_step=2, share=share)
    assert len(unmade) == len(expected) == 4
    for found, other in zip(unmade, expected, strict=True):
        assert isinstance(found, Unmade)
        assert found.maker is unmade[0].maker
        memory = torch.empty_like(found.packed) if memory is None else memory
        memory.copy_(found.packed)
        assert torch.equal(found.maker(memory), other.images)
        assert torch.equal(found.target, other.target)
        np.testing.assert_array_equal(found.row, other.row)


def test_steps_get_made_batches_where_a_stream_is_not_held(blobs: Manifest, extras: Manifest) -> None:
    plan, readers = make_plan(extras), [ShardReader(blobs), ShardReader(extras)]
    mixed = [by_dali(plan, readers, WHOLE)[0], resident(plan, readers, WHOLE)[1]]
    for found, expected in zip(step_batches(plan, mixed, WHOLE, CPU), run(plan, [blobs, extras], WHOLE), strict=True):
        assert isinstance(found, Batch)
        assert torch.equal(found.images, expected.images)


def test_without_oe_batches_are_nominal_only(blobs: Manifest) -> None:
    batches = run(make_plan(None), [blobs], AugmentSpec())
    assert {len(batch.row) for batch in batches} == {16}
    assert not any(batch.target.any() for batch in batches)


def test_several_oe_sets_share_a_batch(blobs: Manifest, extras: Manifest) -> None:
    streams = (*make_plan(extras).streams, Stream("oe-2", np.arange(60, 120), 4, "cyclic"))
    batches = run(Plan(streams, seed=5, epochs=1), [blobs, extras, blobs], WHOLE)
    assert all(batch.target.tolist() == [0.0] * 16 + [1.0] * 20 for batch in batches)
    assert all(np.isin(batch.row[32:], np.arange(60, 120)).all() for batch in batches)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_evaluation_keeps_order_and_drops_nothing(executor: str, blobs: Manifest) -> None:
    rows = np.asarray(blobs.split_rows("test"))[::-1].copy()
    target = (np.arange(60) % 2).astype(np.float32)
    spec = replace(WHOLE, mean=(0.5,), std=(1.0,))
    reader = ShardReader(blobs)
    held = hold(Origin(reader, Faults()), rows, Decoding(spec, CPU, LoaderSpec())) if executor == "resident" else None
    batches = list(evaluation_batches(Source(reader, held), rows, target, spec, CPU, size=25))
    assert [len(batch.row) for batch in batches] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate([batch.row for batch in batches]), rows)
    np.testing.assert_array_equal(torch.cat([batch.target for batch in batches]).numpy(), target)
    found = batches[2].images[-1].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, stored(blobs, rows[-1]) / 255 - 0.5, atol=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 JPEGs of several sizes, short side 70 to 119, some of them grey."""
    home = tmp_path_factory.mktemp("photos")
    rng, sources = np.random.default_rng(0), load_sample_images().images
    for index in range(60):
        height, width = rng.integers(70, 120, size=2)
        top, left = rng.integers(0, 250, size=2)
        crop = Image.fromarray(sources[index % 2][top : top + height, left : left + width])
        (crop.convert("L") if index % 7 == 0 else crop).save(home / f"{index:02d}.jpg", quality=92)

    def samples() -> object:
        for path in sorted(home.glob("*.jpg")):
            yield Sample(path.stem, path, str(int(path.stem) % 2), "train")

    converter = Converter("photos", samples, "tests", "CC0", None, "")  # type: ignore[arg-type]
    manifest = shard.convert_with(converter, None, home, workers=1, shard_samples=25)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "spec",
    [AugmentSpec(crop_px=64), AugmentSpec(crop_px=80, crop_padding_px=6, flip_probability=0.5, oe_blur_sigma_px=1)],
)
def test_crops_of_jpegs_are_those_of_the_reference(spec: AugmentSpec, executor: str, photos: Manifest) -> None:
    plan = Plan((Stream("nominal", np.arange(30), 10), Stream("oe", np.arange(30, 60), 10, "cyclic")), seed=3, epochs=1)
    draws = [draw(spec, plan.seed, stream, 0, 0, 30) for stream in ("nominal", "oe")]
    for step, batch in enumerate(run(plan, [photos, photos], spec, executor)):
        found = batch.images.permute(0, 2, 3, 1).numpy()
        for place, row in enumerate(batch.row):
            mine, position = draws[place // 10], step * 10 + place % 10
            sigma = spec.oe_blur_sigma_px if place >= 10 else 0
            expected = reference(stored(photos, row), (mine.flip[position], mine.crop[position]), spec, sigma)
            np.testing.assert_allclose(found[place], expected, atol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_resizing_and_the_central_crop_are_torchvisions_but_for_a_level(executor: str, photos: Manifest) -> None:
    spec, rows = AugmentSpec(resize_px=56, crop_px=48), np.arange(60)
    reader = ShardReader(photos)
    held = hold(Origin(reader, Faults()), rows, Decoding(spec, CPU, LoaderSpec())) if executor == "resident" else None
    found = torch.cat(
        [
            batch.images.clone()
            for batch in evaluation_batches(Source(reader, held), rows, np.zeros(60, np.float32), spec, CPU)
        ]
    )
    for row in rows:
        image = v2.functional.resize(Image.fromarray(stored(photos, row)), [56], antialias=True)
        expected = np.asarray(v2.functional.center_crop(image, [48]))
        difference = np.abs(found[row].permute(1, 2, 0).numpy() * 255 - expected)
        assert difference.max() <= 2.01
        assert difference.mean() < 0.3


def test_images_that_are_too_small_or_of_no_common_size_are_said(photos: Manifest) -> None:
    rows = np.arange(60)
    with pytest.raises(FastadError, match=r"image \S+ is \d+ px high or wide, too little for augment.crop_px=110"):
        out_hw(rows, ShardReader(photos), AugmentSpec(crop_px=110))
    with pytest.raises(FastadError, match="of which batches are made by cropping only"):
        out_hw(rows, ShardReader(photos), AugmentSpec())


def test_arrays_of_several_sizes_are_cropped_too(tmp_path: Path) -> None:
    """What --resize 32 makes of JPEGs: short sides of 32, long ones that differ."""
    rng = np.random.default_rng(0)

    def samples() -> object:
        for index in range(20):
            yield Sample(f"{index}", rng.integers(0, 256, (40, 40 + index, 3), dtype=np.uint8), None, "train")

    converter = Converter("arrays", samples, "tests", "CC0", None, "")  # type: ignore[arg-type]
    manifest = shard.convert_with(converter, None, tmp_path, encoding=Encoding(resize_px=32), workers=1)
    assert manifest is not None
    assert manifest.common_shape_hwc is None
    plan = Plan((Stream("nominal", np.arange(20), 10),), seed=1, epochs=1)
    spec = AugmentSpec(crop_px=32, flip_probability=0.5)
    for one, other in zip(*(run(plan, [manifest], spec, executor) for executor in EXECUTORS), strict=True):
        assert one.images.shape == (10, 3, 32, 32)
        assert torch.equal(one.images, other.images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_gpu_gives_the_cpus_pixels(executor: str, blobs: Manifest, extras: Manifest) -> None:
    plan, readers, gpu = make_plan(extras), [ShardReader(blobs), ShardReader(extras)], torch.device("cuda")
    held = [
        hold(Origin(reader, Faults()), stream.rows, Decoding(WHOLE, gpu, LoaderSpec()))
        if executor == "resident"
        else None
        for stream, reader in zip(plan.streams, readers, strict=True)
    ]
    sources = [Source(reader, each) for reader, each in zip(readers, held, strict=True)]
    on_gpu = train_batches(plan, sources, WHOLE, gpu)
    for one, other in zip(run(plan, [blobs, extras], WHOLE), on_gpu, strict=True):
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(one.row, other.row)
        torch.testing.assert_close(one.images, other.images.cpu(), atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_host_does_not_wait_for_a_gpu_between_batches_of_a_test(blobs: Manifest) -> None:
    gpu, reader, rows = torch.device("cuda"), ShardReader(blobs), np.asarray(blobs.split_rows("test"))
    source = Source(reader, hold(Origin(reader, Faults()), rows, Decoding(WHOLE, gpu, LoaderSpec())))
    try:
        for batch in evaluation_batches(source, rows, (rows % 2).astype(np.float32), WHOLE, gpu, size=7):
            torch.cuda.set_sync_debug_mode("error")
            assert batch.target.device.type == "cuda"
    finally:
        torch.cuda.set_sync_debug_mode("default")

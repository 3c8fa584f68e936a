"""What DALI makes on a GPU: the CPU's pixels, handed over without waiting, and never overwritten before they are read.

A GPU decodes by another inverse DCT, chroma upsampling and colour conversion, each of which may round to another level:
(1 of luma, 2 of chroma × 1.772, 1 of the sum) come to less than 6 levels, and to less than half a level on average.
Without fancy upsampling edges would be tens of levels off.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastad import shard
from fastad.augment import AugmentSpec
from fastad.dali import Decoding, LoaderSpec, dali_crops, whole_images
from fastad.encode import Encoding
from fastad.faults import Faults, Origin
from fastad.feed import planned
from fastad.listing import Converter
from fastad.manifest import Manifest, Sample
from fastad.pipeline import Source, train_batches
from fastad.plan import WHOLE_BATCH, Plan, Stream
from fastad.reader import ShardReader

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MOST_LEVELS, MEAN_LEVELS = 6, 0.5

CROPPED = AugmentSpec(crop_px=96, flip_probability=0.5)
SPECS = {
    "region": CROPPED,
    "resized": AugmentSpec(resize_px=112, crop_px=96, flip_probability=0.5),
    "padded": AugmentSpec(crop_px=128, crop_padding_px=16),
}
COUNT, BATCH = 96, 16
BAD = 5

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """JPEGs of 4:2:0, 128 to 160 px a side; number `BAD` is cut."""
    home = tmp_path_factory.mktemp("photos")
    rng, sources = np.random.default_rng(0), load_sample_images().images

    def samples() -> Iterator[Sample]:
        for index in range(COUNT):
            height, width = rng.integers(128, 160, size=2)
            top, left = rng.integers(0, 250, size=2)
            crop = Image.fromarray(sources[index % 2][top : top + height, left : left + width])
            buffer, path = io.BytesIO(), Path(home) / f"{index:03d}.jpg"
            crop.save(buffer, "JPEG", quality=92, subsampling="4:2:0")
            path.write_bytes(buffer.getvalue()[: 2_000 if index == BAD else None])
            yield Sample(path.stem, path, None, "train")

    converter = Converter("photos", samples, "tests", "CC BY 2.0", None, "")
    manifest = shard.convert_with(converter, None, home, encoding=Encoding(checked=False), workers=1)
    assert manifest is not None
    return manifest


def make_plan(manifest: Manifest, epochs: int = 2) -> Plan:
    rows = np.arange(len(manifest.key))
    return Plan((Stream("nominal", rows[::2], BATCH), Stream("oe", rows[1::2], BATCH)), 1, epochs)


def crops_of(
    manifest: Manifest, spec: AugmentSpec, device: torch.device, loader: LoaderSpec
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The crops of each stream of each batch, as DALI hands them over."""
    plan, reader = make_plan(manifest), ShardReader(manifest)
    wanted = [planned(plan, stream, spec, start_step=0, share=WHOLE_BATCH) for stream in plan.streams]
    origins = [Origin(reader, Faults(stream.rows)) for stream in plan.streams]
    for parts in dali_crops(origins, wanted, Decoding(spec, device, loader)):
        yield tuple(part.pixels for part in parts)


def assert_near(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        difference = (one.cpu().int() - other.int()).abs().double()
        assert difference.max() < MOST_LEVELS
        assert difference.mean() < MEAN_LEVELS


def test_a_gpu_is_told_by_its_number() -> None:
    assert Decoding(CROPPED, CPU, LoaderSpec()).device_id is None
    assert Decoding(CROPPED, torch.device("cuda", 3), LoaderSpec()).device_id == 3


@pytest.mark.parametrize("prefetch", [1, 3])
def test_crops_that_are_kept_stay_as_they_were(prefetch: int, photos: Manifest) -> None:
    """Their memory is DALI's, which must not use it again while a tensor shares it."""
    kept = [(crops, crops.clone()) for crops, _ in crops_of(photos, CROPPED, CPU, LoaderSpec(prefetch=prefetch))]
    assert len(kept) == 6
    for crops, before in kept:
        assert torch.equal(crops, before)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("spec", SPECS)
def test_a_gpu_decodes_to_the_cpus_pixels(spec: str, hw_decoder_load: float, photos: Manifest) -> None:
    """By CUDA, by the hardware decoder and by both, and where a cut image is replaced."""
    loader = LoaderSpec(hw_decoder_load=hw_decoder_load)
    on_cpu = list(crops_of(photos, SPECS[spec], CPU, loader))
    on_gpu = list(crops_of(photos, SPECS[spec], GPU, loader))
    assert len(on_cpu) == len(on_gpu) == 6
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert {crops.device.type for crops in found} == {"cuda"}
        assert_near(found, expected)


@pytest.mark.gpu
@needs_gpu
def test_whole_images_of_a_gpu_are_the_cpus(photos: Manifest) -> None:
    rows = np.flatnonzero(photos.key != f"{BAD:03d}".encode())
    spec, origin = AugmentSpec(resize_px=112), Origin(ShardReader(photos), Faults())
    on_cpu, on_gpu = (
        [image.clone() for images in whole_images(origin, rows, how, batch=20) for image in images]
        for how in (Decoding(spec, device, LoaderSpec()) for device in (CPU, GPU))
    )
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert expected.shape == found.shape
        assert_near([found], [expected])


@pytest.mark.gpu
@needs_gpu
def test_the_host_does_not_wait_for_a_gpu_and_crops_last_until_they_are_read(photos: Manifest) -> None:
    """The device is kept busy on the consumer's stream, so that it reads each batch long after the host has let it go
    and asked for others; it still reads that batch's own pixels."""
    loader = LoaderSpec(prefetch=2)
    expected = list(crops_of(photos, CROPPED, CPU, loader))
    copies = [[part.clone() for part in crops] for crops in crops_of(photos, CROPPED, GPU, loader)]
    del copies  # PyTorch keeps their memory: asking for more would wait for the device
    batches, busy = crops_of(photos, CROPPED, GPU, loader), torch.cuda.Event()
    found = [[part.clone() for part in next(batches)]]  # so does building a pipeline
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy.record()
    for crops in batches:
        found.append([part.clone() for part in crops])
        del crops
    assert not busy.query(), "the host has waited for the device"
    for one, other in zip(expected, found, strict=True):
        assert_near(other, one)


@pytest.mark.gpu
@needs_gpu
def test_batches_of_a_gpu_lie_as_networks_want_them(photos: Manifest) -> None:
    plan, reader = make_plan(photos), ShardReader(photos)
    sources = [Source(reader, faults=Faults(stream.rows)) for stream in plan.streams]
    for batch in train_batches(plan, sources, CROPPED, GPU):
        assert batch.images.device.type == batch.target.device.type == "cuda"
        assert batch.images.shape == (2 * BATCH, 3, 96, 96)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert len(batch.row) == 2 * BATCH
    assert sum(len(source.faults.reason) for source in sources) == 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_images_come_to_the_gpu_that_is_named(photos: Manifest) -> None:
    """Also where another is the current one."""
    other = torch.device("cuda", 1)
    for expected, found in zip(
        crops_of(photos, CROPPED, CPU, LoaderSpec()), crops_of(photos, CROPPED, other, LoaderSpec()), strict=True
    ):
        assert {crops.device for crops in found} == {other}
        assert_near(found, expected)

"""Speed of batches as ratios to plain loaders of the same shards: photographs, small colour images, digits' size.

Owns the sets, cases and plain loaders of `fastad bench loader` without a recipe; a recipe's own are `fastad.bench`'s,
what is measured beside them on a GPU is `fastad.bench_gpu`'s.
Use: `measure_cases(device, repeats=5)["photographs_ratio"]`.
"""

import functools
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from fastad import shard
from fastad.augment import AugmentSpec
from fastad.bench import WARM_UP_BATCHES, plain_transforms, rate
from fastad.bench_gpu import Streamed, Work, captured, decoders_differ, fastest_loader, gpu_figures, gpu_works
from fastad.dali import Decoding, LoaderSpec
from fastad.errors import unknown
from fastad.listing import Converter
from fastad.manifest import Manifest, Sample, open_set
from fastad.pipeline import Source, Unmade, step_batches
from fastad.plan import ENDLESS_EPOCHS, Plan, Stream
from fastad.progress import progress
from fastad.reader import ShardReader
from fastad.resident import hold
from fastad.run import environment
from fastad.seeds import generator
from fastad.step_graph import CudaCapture

BATCH = 128
PHOTOGRAPHS, SMALL_IMAGES = 2_048, 20_000

# Batches after which the process's memory is read: once all is warm, and much later.
MEMORY_BATCHES = (200, 2_200)

JITTER: dict[str, Any] = {"brightness": 0.01, "contrast": 0.01, "saturation": 0.01, "hue_turns": 0.01}
IMAGENET = AugmentSpec(
    crop_px=224, flip_probability=0.5, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)  # fmt: skip
CIFAR = AugmentSpec(
    crop_px=32, crop_padding_px=4, flip_probability=0.5, noise_std=0.001, **JITTER,
    mean=(0.491373, 0.482353, 0.446667), std=(0.247059, 0.243529, 0.261569),
)  # fmt: skip


Decode = str | Callable[[str, bytes], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: batches of a set, half of them as OE, augmented as `spec` says, `resident` or made by DALI.

    `decode`: how webdataset decodes the same for the plain loader; `plain_batch`: how many images of it are a batch;
    `network`: what is trained on the batches, on a GPU.
    """

    set_name: str
    spec: AugmentSpec
    decode: Decode
    resident: bool = False
    plain_batch: int = 2 * BATCH
    network: str = ""


def measure_cases(device: torch.device, repeats: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Ratios of images per second to those of webdataset and torchvision in a `DataLoader` with a worker for each core,
    from the same shards, medians of `repeats` measured in turns; with each its rates beside it. `names`: of `CASES`,
    all where there are none.

    - `photographs_ratio`: JPEGs of 341×256 px, the paper's whole augmentation in its order, against Pillow's decoder;
      `photographs_to_crop_first_ratio`: against the same that crops before it jitters.
    - `decode_ratio`: the same JPEGs, only cropped, flipped and normalised, against torchvision's decoder.
    - `small_ratio`: 32 px colour images, augmented as the paper's CIFAR-10.
    - `grey_ratio`: 28 px grey images, not augmented; `grey_to_reader_ratio`: the same to bare reads of the shards.
    - `small_resident_to_dali_ratio`, `grey_resident_to_dali_ratio`: images that are held, to those that DALI streams.
    - `resident_mib`: the process's memory after some batches of 32 px by DALI, and after many more; `device_mib`: a
      GPU's.

    On a GPU, of JPEGs also (`fastad.bench_gpu`), with the loader settings that were found fastest (`…_loader`):
    - `…_to_hardware_ratio`: the share of what the hardware decoder does alone, of whole images
      (`…_whole_by_hardware_images_per_s`); `…_decoders_differ_levels`: by how much its pixels differ from CUDA's.
    - `photographs_stall_share`: of the time of training the paper's network for 224 px on these batches.
    """
    for name in names:
        if name not in CASES:
            raise unknown("case", name, CASES)
    found: dict[str, Any] = {}
    each: dict[str, list[float]] = {}
    cases = {name: case for name, case in CASES.items() if not names or name in names}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        (raw := home / "raw").mkdir()
        for set_name in dict.fromkeys(case.set_name for case in cases.values()):
            _convert(set_name, SETS[set_name](raw), home)
        for name, case in cases.items():
            manifest = open_set(home / case.set_name)
            loader, on_gpu = LoaderSpec(), dict[str, Work]()
            if device.type == "cuda" and manifest.common_shape_hwc is None:
                streamed = _streamed(case, manifest, device)
                loader = fastest_loader(streamed)
                on_gpu = gpu_works(name, case.network, streamed, loader)
                found[f"{name}_loader"] = asdict(loader)
                found[f"{name}_decoders_differ_levels"] = decoders_differ(streamed, loader)
            works = _works(name, case, manifest, device, loader) | on_gpu
            each |= (rates := _in_turns(name, works, repeats, device))
            medians = {key: median(values) for key, values in rates.items()}
            found |= gpu_figures(name, medians) if on_gpu else {}
            ratios = {ratio: under for ratio, under in _ratios(name).items() if under in medians}
            found |= {ratio: round(medians[name] / medians[under], 2) for ratio, under in ratios.items()}
            found |= {f"{key}_images_per_s": round(value, 1) for key, value in medians.items()}
            if name == "small":
                found |= _memory(replace(case, resident=False), manifest, device)
    return found | {
        "each_images_per_s": {name: [round(value, 1) for value in values] for name, values in each.items()},
        "repeats": repeats,
        "batch_size": 2 * BATCH,
        "threads": torch.get_num_threads(),
        "plain_workers": _cores(),
        "environment": environment(device),
    }


def _works(name: str, case: Case, manifest: Manifest, device: torch.device, loader: LoaderSpec) -> dict[str, Work]:
    """What is measured for a case, in turns, by what its rates are called."""
    works: dict[str, Work] = {
        name: functools.partial(_batches, case, manifest, device, loader),
        f"plain_{name}": functools.partial(_plain_batches, case, manifest, device),
    }
    if case.spec.jitters and case.spec.crop_px and not case.resident:
        works[f"plain_{name}_crop_first"] = functools.partial(_plain_batches, case, manifest, device, crop_first=True)
    if case.resident:
        works[f"{name}_by_dali"] = functools.partial(_batches, replace(case, resident=False), manifest, device, loader)
    if manifest.common_shape_hwc is not None:
        works[f"{name}_reader"] = functools.partial(_reads, manifest)
    return works


def _ratios(name: str) -> dict[str, str]:
    """The ratios that a case may have, and which rate its own is divided by."""
    return {
        f"{name}_ratio": f"plain_{name}",
        f"{name}_to_crop_first_ratio": f"plain_{name}_crop_first",
        f"{name}_resident_to_dali_ratio": f"{name}_by_dali",
        f"{name}_to_reader_ratio": f"{name}_reader",
    }


def _in_turns(what: str, works: dict[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Images per second of each work, `repeats` times; each is closed before the next begins, as workers that fill
    their queues would take the cores from it."""
    rates: dict[str, list[float]] = {key: [] for key in works}
    with progress(f"bench {what}", repeats * len(works), unit="measurements") as advance:
        for _ in range(repeats):
            for key, work in works.items():
                with closing(work()) as batches:
                    for _ in range(WARM_UP_BATCHES):
                        next(batches)
                    rates[key].append(rate(functools.partial(next, batches), device))
                advance()
    return rates


def _photographs(raw: Path) -> Iterator[Sample]:
    """Parts of scikit-learn's two photographs, of half to all of their height, resized to 341×256 px."""
    rng, photos = generator(0, "bench", "photographs"), [Image.fromarray(p) for p in load_sample_images().images]
    for index in range(PHOTOGRAPHS):
        photo = photos[index % len(photos)]
        height = int(rng.integers(photo.height // 2, photo.height, endpoint=True))
        width = height * 341 // 256
        left, top = (int(rng.integers(room + 1)) for room in (photo.width - width, photo.height - height))
        path = raw / f"{index:05d}.jpg"
        part = photo.resize((341, 256), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        part.save(path, quality=95)
        yield Sample(path.stem, path, None, "train")


def _arrays(side_px: int, channels: int) -> Iterator[Sample]:
    """Squares of the same photographs."""
    rng, photos = generator(0, "bench", "arrays"), load_sample_images().images
    for index in range(SMALL_IMAGES):
        photo = photos[index % len(photos)]
        top, left = (int(rng.integers(side - side_px + 1)) for side in photo.shape[:2])
        square = photo[top : top + side_px, left : left + side_px, :channels]
        yield Sample(f"{index:05d}", np.ascontiguousarray(square), None, "train")


SETS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "photographs": _photographs,
    "small": lambda _: _arrays(32, 3),
    "grey": lambda _: _arrays(28, 1),
}


def _convert(name: str, samples: Iterator[Sample], home: Path) -> None:
    converter = Converter(name, lambda: samples, "scikit-learn's sample photographs", "CC BY 2.0", None, "")
    shard.convert_with(converter, None, home)


def _streamed(case: Case, manifest: Manifest, device: torch.device) -> Streamed:
    """Batches without end, every second image as OE."""
    reader, rows = ShardReader(manifest), np.arange(len(manifest.key))
    plan = Plan((Stream("nominal", rows[::2], BATCH), Stream("oe", rows[1::2], BATCH)), 1, ENDLESS_EPOCHS)
    return Streamed(plan, (Source(reader), Source(reader)), case.spec, device)


def _batches(case: Case, manifest: Manifest, device: torch.device, loader: LoaderSpec) -> Generator[int, None, None]:
    """fastad's batches, without end; their sizes. Those of images that a GPU holds are made as in its training."""
    streamed = _streamed(case, manifest, device)
    plan, sources = streamed.plan, streamed.sources
    if case.resident:
        decoding = Decoding(case.spec, device, loader)
        sources = tuple(
            Source(source.reader, hold(source.origin, stream.rows, decoding))
            for stream, source in zip(plan.streams, sources, strict=True)
        )
    with closing(step_batches(plan, sources, case.spec, device, loader=loader)) as batches:
        if case.resident and device.type == "cuda":
            yield from captured(batches, CudaCapture())
        for batch in batches:
            yield len(batch.made().row if isinstance(batch, Unmade) else batch.row)


def _reads(manifest: Manifest) -> Generator[int, None, None]:
    """Bare reads of as many random rows as a batch has."""
    reader = ShardReader(manifest)
    order = generator(0, "bench", "reads").permutation(len(manifest.key))
    for part in itertools.cycle(np.array_split(order, len(order) // (2 * BATCH))):
        yield len(reader.pixels(part))


def _torchvision(key: str, data: bytes) -> torch.Tensor | None:
    if not key.endswith("jpg"):
        return None
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


CASES = {
    # A plain batch of 256 augmented photographs is 0.8 s of two workers' time, too coarse to measure.
    "photographs": Case(
        "photographs", replace(IMAGENET, noise_std=0.001, **JITTER), "pil", plain_batch=32, network="resnet18-cbam"
    ),
    "decode": Case("photographs", IMAGENET, _torchvision),
    "small": Case("small", CIFAR, "pil", resident=True),
    "grey": Case("grey", AugmentSpec(), "pil", resident=True),
}


def _plain_batches(
    case: Case, manifest: Manifest, device: torch.device, *, crop_first: bool = False
) -> Generator[int, None, None]:
    """The same work as webdataset's and torchvision's guides do it, images joined by a `DataLoader`; without end."""
    extension = manifest.extension[0].decode()
    transforms = plain_transforms(case.spec, case.spec.crop_px, oe=False, crop_first=crop_first)
    shards = [str(manifest.shard_path(number)) for number in range(len(manifest.shards))]
    with warnings.catch_warnings():
        # It warns of workers beyond the number of cores, and of forking what has threads.
        warnings.simplefilter("ignore")
        images = (
            webdataset.WebDataset(shards, resampled=True, shardshuffle=False, empty_check=False)
            .shuffle(1_000)
            .decode(case.decode)
            .to_tuple(extension)
            .map_tuple(v2.Compose([v2.ToImage(), *transforms]))
        )
        on_gpu = device.type == "cuda"
        loader = DataLoader(images, batch_size=case.plain_batch, num_workers=_cores(), pin_memory=on_gpu)
        for (batch,) in loader:
            yield len(batch.to(device, non_blocking=on_gpu))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory(case: Case, manifest: Manifest, device: torch.device) -> dict[str, dict[str, float]]:
    """The process's resident memory in MiB after as many batches as the names say, and a GPU's, DALI's included."""
    found: dict[str, dict[str, float]] = {"resident_mib": {}, **({"device_mib": {}} if device.type == "cuda" else {})}
    with closing(_batches(case, manifest, device, LoaderSpec())) as batches:
        for number in range(1, MEMORY_BATCHES[-1] + 1):
            next(batches)
            if number in MEMORY_BATCHES:
                after, pages = f"after_{number}_batches", int(Path("/proc/self/statm").read_text().split()[1])
                found["resident_mib"][after] = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
                if device.type == "cuda":
                    free, total = torch.cuda.mem_get_info(device)
                    found["device_mib"][after] = round((total - free) / 2**20, 1)
    return found

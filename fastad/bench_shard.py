"""Speed of sharding as ratios to plain work on the same bytes, and what a set of 14.2 million images costs to open.

Owns the measurements of `fastad bench shard`; those of training are `fastad.bench`'s.
Use: `measure_shard(workers=2, repeats=3)["small_arrays_ratio"]`.
"""

import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastad.encode import QUALITY, content_hash
from fastad.listing import Converter
from fastad.manifest import COLUMNS, Manifest, Sample
from fastad.progress import progress
from fastad.seeds import generator
from fastad.shard import SHARD_SAMPLES, convert_with
from fastad.synsets import synsets
from fastad.tar import index_text
from fastad.view import View, select

# So many images that the start of worker processes counts for little; slower plain loops do a part of them.
SMALL_IMAGES, PLAIN_SMALL_IMAGES = 400_000, 20_000
PHOTOS, PASSED, RESIZED, RESIZE_PX = 2_000, 60_000, 200_000, 256
SIMULATED_ROWS, SIMULATED_CLASSES, TEST_IMAGES, SUBSET = 14_200_000, 20_000, 10_000, 2**18


def measure_shard(workers: int | None, repeats: int) -> dict[str, Any]:
    """Ratios of the images a second of converting to those of plain loops, each measured in turns.

    - `small_arrays_ratio`: 28 px arrays, against `webdataset.ShardWriter`.
    - `pass_through_ratio`: JPEGs that `fastad shard` decodes and hashes on the way, against a copy of the same files
      into one, synced at its end; `unchecked_ratio`: the same JPEGs, neither decoded nor their pixels hashed;
      `unhashed_ratio`: nor is there a SHA-256 of the shards, which no command leaves out. What each of these costs one
      core stands in `us_an_image`.
    - `resize_ratio`: JPEGs that `fastad shard` resizes, against as many loops as there are workers of the fastest
      libraries on one core (simplejpeg, PyTorch's resizing of 8-bit images, Pillow's encoder); that of Pillow
      alone stands beside it. The command is timed from its start to its end.
    - `simulated_set`: seconds and peak memory of opening and selecting among 14.2 million rows.
    """
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = _write_photos(folder / "raw")
        files = [path.read_bytes() for path in photos]
        pixels = [simplejpeg.decode_jpeg(file) for file in files[:100]]

        passed = _link(photos, PASSED, folder / "passed")
        _link(photos, RESIZED, folder / "resized")

        def convert(images: int, raw: str, *options: str, hashed: bool = True) -> _Work:
            home = folder / "photos"
            return _Work(images, lambda: _shard(folder / raw, home, workers, *options, hashed=hashed), home)

        rates = _rates(
            {
                "small_arrays": _Work(
                    SMALL_IMAGES, lambda: _convert_arrays(folder / "small", workers), folder / "small"
                ),
                "plain_small_arrays": _Work(
                    PLAIN_SMALL_IMAGES, lambda: _shard_writer(folder / "plain"), folder / "plain"
                ),
                "pass_through": convert(PASSED, "passed"),
                "unchecked": convert(PASSED, "passed", "--unchecked"),
                "unhashed": convert(PASSED, "passed", "--unchecked", hashed=False),
                "plain_copy": _Work(PASSED, lambda: _copy(passed, folder / "copy"), folder / "copy"),
                "resize": convert(RESIZED, "resized", "--resize", str(RESIZE_PX)),
                "plain_resize": _each(files, _resize),
                "pillow_resize": _each(files, _resize_by_pillow),
                "decode": _each(files, simplejpeg.decode_jpeg),
                "content_hash": _each(pixels, content_hash),
                "sha256": _each(files, lambda file: hashlib.sha256(file).digest()),
            },
            repeats,
        )
    costs = ("decode", "content_hash", "sha256")
    return {
        "small_arrays_ratio": round(rates["small_arrays"] / rates["plain_small_arrays"], 2),
        "pass_through_ratio": round(rates["pass_through"] / rates["plain_copy"], 2),
        "unchecked_ratio": round(rates["unchecked"] / rates["plain_copy"], 2),
        "unhashed_ratio": round(rates["unhashed"] / rates["plain_copy"], 2),
        "resize_ratio": round(rates["resize"] / (workers * rates["plain_resize"]), 2),
        **{f"{name}_images_per_s": round(rate) for name, rate in rates.items() if name not in costs},
        "us_an_image": {name: round(1e6 / rates[name], 1) for name in costs},
        "workers": workers,
        "repeats": repeats,
        "simulated_set": _simulate_apart(),
    }


class _Work(NamedTuple):
    """Something to measure, the images that one call of it takes, and the folder that it makes, if it makes one."""

    images: int
    call: Callable[[], None]
    output: Path | None = None


def _each(items: list[Any], function: Callable[[Any], object]) -> _Work:
    def call() -> None:
        for item in items:
            function(item)

    return _Work(len(items), call)


def _rates(works: dict[str, _Work], repeats: int) -> dict[str, float]:
    """Images a second of each work, the median of `repeats`, on one thread where a library would use more.

    What it made before is away, and the disk has nothing left to do, when its time begins.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with progress("bench", repeats * len(works), unit="measurements") as advance:
            for _ in range(repeats):
                for name, work in works.items():
                    if work.output:
                        shutil.rmtree(work.output, ignore_errors=True)
                        os.sync()
                    started = time.perf_counter()
                    work.call()
                    rates[name].append(work.images / (time.perf_counter() - started))
                    advance()
    finally:
        torch.set_num_threads(threads)
    return {name: median(values) for name, values in rates.items()}


def _write_photos(folder: Path) -> list[Path]:
    """JPEGs of 500×375 px, as ImageNet's are on average, cut from scikit-learn's two photographs."""
    rng, photos = generator(0, "bench", "photos"), load_sample_images().images
    paths = []
    folder.mkdir()
    for index in range(PHOTOS):
        top, left = rng.integers(0, 52), rng.integers(0, 140)
        paths.append(folder / f"{index:04d}.jpg")
        Image.fromarray(photos[index % 2][top : top + 375, left : left + 500]).save(paths[-1], quality=90)
    return paths


def _link(photos: list[Path], count: int, folder: Path) -> list[Path]:
    """A folder of that many images, in which the photographs come again and again."""
    folder.mkdir()
    links = [folder / f"{index:06d}.jpg" for index in range(count)]
    for link, path in zip(links, itertools.cycle(photos), strict=False):
        os.link(path, link)
    return links


def _shard(raw: Path, home: Path, workers: int, *options: str, hashed: bool) -> None:
    """The command that users give, or, without hashing, the same with one argument that no option stands for."""
    start = ["-m", "fastad"] if hashed else ["-c", _UNHASHED]
    command = [sys.executable, *start, "shard", "folder", str(raw), "--out", str(home), "--workers", str(workers)]
    subprocess.run([*command, *options], check=True, capture_output=True)


_UNHASHED = """
import functools
from fastad import shard
from fastad.cli import main
shard.convert = functools.partial(shard.convert, hashed=False)
main()
"""


def _convert_arrays(home: Path, workers: int) -> None:
    convert_with(Converter("bench", _arrays, "fastad bench shard", "none", None, ""), None, home, workers=workers)


def _arrays() -> Iterator[Sample]:
    images = generator(0, "bench", "small").integers(0, 256, (1_000, 28, 28), dtype=np.uint8)
    for index in range(SMALL_IMAGES):
        yield Sample(f"{index:06d}", images[index % 1_000], str(index % 10), "train")


def _shard_writer(folder: Path) -> None:
    import webdataset

    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=SHARD_SAMPLES, verbose=0) as writer:
            for sample in itertools.islice(_arrays(), PLAIN_SMALL_IMAGES):
                writer.write({"__key__": sample.key, "npy": sample.pixels, "cls": int(sample.class_name or 0)})


def _copy(paths: list[Path], folder: Path) -> None:
    """All bytes into one file, synced, as a shard is."""
    folder.mkdir()
    with open(folder / "all", "wb") as file:
        for path in paths:
            file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _resize(file: bytes) -> None:
    image = torch.from_numpy(simplejpeg.decode_jpeg(file)).unsqueeze(0).permute(0, 3, 1, 2)
    size = (RESIZE_PX, int(image.shape[3] * RESIZE_PX / image.shape[2]))
    smaller = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    _encode(Image.fromarray(smaller.permute(0, 2, 3, 1)[0].numpy()))


def _resize_by_pillow(file: bytes) -> None:
    with Image.open(io.BytesIO(file)) as image:
        _encode(image.resize((int(image.width * RESIZE_PX / image.height), RESIZE_PX), Image.Resampling.BILINEAR))


def _encode(image: Image.Image) -> None:
    image.save(io.BytesIO(), "JPEG", quality=QUALITY)


def _simulate_apart() -> dict[str, float]:
    """The simulation in a process of its own, so that its peak memory is its own."""
    code = "import json; from fastad.bench_shard import simulate; print(json.dumps(simulate()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def simulate() -> dict[str, float]:
    """Opens columns of 14.2 million rows in 20,000 classes, selects all but ImageNet-1K's synsets, then all but
    10,000 test images as well, draws 2^18 rows and writes their index; seconds of each and peak memory in GiB."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rng = generator(0, "bench", "simulation")
        for name, kind in COLUMNS.items():
            values: Any = rng.integers(0, SIMULATED_CLASSES, SIMULATED_ROWS, dtype=np.int32)
            if name == "key":
                values = np.full(SIMULATED_ROWS, b"n00000000/n00000000_00000", dtype="S25")
            if name == "content_hash":
                values = rng.integers(0, 2**64, SIMULATED_ROWS, dtype=np.uint64)
            np.save(folder / f"{name}.npy", values.astype(kind) if kind else values)
            del values
        seconds = {}
        started = time.perf_counter()
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        made_up = (f"n{index:08d}" for index in range(SIMULATED_CLASSES - len(synsets("imagenet1k"))))
        manifest = Manifest(
            folder=folder,
            name="simulated",
            facts={},
            classes=(*made_up, *synsets("imagenet1k")),
            splits={"train": range(SIMULATED_ROWS)},
            shards=(),
            common_shape_hwc=None,
            fingerprint="",
            **columns,
        )
        seconds["open_s"] = time.perf_counter() - started
        started = time.perf_counter()
        rows = select(View(exclude_synsets=("imagenet1k",)), manifest)
        seconds["select_s"] = time.perf_counter() - started
        test_hashes = manifest.content_hash[:: SIMULATED_ROWS // TEST_IMAGES]
        started = time.perf_counter()
        select(View(exclude_synsets=("imagenet1k",)), manifest, test_hashes)
        seconds["select_without_duplicates_s"] = time.perf_counter() - started
        started = time.perf_counter()
        subset = select(View(exclude_synsets=("imagenet1k",), size=SUBSET, seed=1), manifest)
        seconds["subset_s"] = time.perf_counter() - started
        started = time.perf_counter()
        (folder / "subset.idx").write_text(
            index_text([b"jpg"] * SUBSET, manifest.offset[subset], manifest.size[subset])
        )
        seconds["index_s"] = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {name: round(value, 3) for name, value in seconds.items()}
    return found | {"rows_selected": len(rows), "peak_gib": round(peak_kib / 2**20, 2)}

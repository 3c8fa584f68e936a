"""Speed of sharding as ratios to plain work on the same bytes, and what a set of 14.2 million images costs to open.

Owns the measurements of `fastad bench shard`; those of training are `fastad.bench`'s.
Use: `measure_shard(workers=2, repeats=3)["small_arrays_ratio"]`.
"""

import io
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
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from fastad import shard
from fastad.encode import Encoding, content_hash
from fastad.files import sha256
from fastad.listing import Converter
from fastad.manifest import COLUMNS, Manifest, Sample
from fastad.seeds import generator
from fastad.synsets import synsets
from fastad.tar import index_text
from fastad.view import View, select

SMALL_IMAGES = 100_000
PHOTOS, PHOTOS_A_SHARD = 4_000, 1_000
RESIZE_PX = 128
SIMULATED_ROWS, SIMULATED_CLASSES, TEST_IMAGES, SUBSET = 14_200_000, 20_000, 10_000, 2**18


def measure_shard(workers: int | None, repeats: int) -> dict[str, Any]:
    """Ratios of `fastad.shard.convert` to plain loops over the same images, each side measured in turns.

    - `small_arrays_ratio`: 28 px arrays a second, against `webdataset.ShardWriter`.
    - `pass_through_ratio`: JPEGs a second, less the time that decoding and hashing them takes (`decode_s`, `hash_s`: of
      one process; the workers share it), against a plain copy of their bytes.
    - `resize_ratio`: resized JPEGs a second, against as many times one core's Pillow loop as there are workers.
    - `simulated_set`: seconds and peak memory of opening and selecting among 14.2 million rows.
    """
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = _write_photos(folder / "raw")
        times = _in_turns(
            {
                "small_arrays": lambda: _convert(_small_arrays, folder / "small", workers),
                "plain_small_arrays": lambda: _shard_writer(folder / "plain"),
                "pass_through": lambda: _convert(lambda: _files(photos), folder / "pass", workers),
                "plain_copy": lambda: _copy(photos, folder / "copy"),
                "decode": lambda: _decode(photos),
                "hash": lambda: _hash(photos),
                "resize": lambda: _convert(lambda: _files(photos), folder / "resize", workers, Encoding(RESIZE_PX)),
                "plain_resize": lambda: _resize(photos),
            },
            repeats,
        )
    checks_s = (times["decode"] + times["hash"]) / workers
    return {
        "small_arrays_ratio": round(times["plain_small_arrays"] / times["small_arrays"], 2),
        "small_arrays_per_s": round(SMALL_IMAGES / times["small_arrays"]),
        "plain_small_arrays_per_s": round(SMALL_IMAGES / times["plain_small_arrays"]),
        "pass_through_ratio": round(times["plain_copy"] / max(times["pass_through"] - checks_s, 1e-9), 2),
        "pass_through_images_per_s": round(PHOTOS / times["pass_through"]),
        "plain_copy_images_per_s": round(PHOTOS / times["plain_copy"]),
        "decode_s": round(times["decode"], 3),
        "hash_s": round(times["hash"], 3),
        "resize_ratio": round(times["plain_resize"] / workers / times["resize"], 2),
        "resize_images_per_s": round(PHOTOS / times["resize"]),
        "plain_resize_images_per_s_and_core": round(PHOTOS / times["plain_resize"]),
        "workers": workers,
        "repeats": repeats,
        "simulated_set": _simulate_apart(),
    }


def _in_turns(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each work."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def _write_photos(folder: Path) -> list[Path]:
    """JPEGs of 400×300 px cut from scikit-learn's two photographs."""
    rng, photos = generator(0, "bench", "photos"), load_sample_images().images
    paths = []
    folder.mkdir()
    for index in range(PHOTOS):
        top, left = rng.integers(0, 127), rng.integers(0, 240)
        paths.append(folder / f"{index:04d}.jpg")
        Image.fromarray(photos[index % 2][top : top + 300, left : left + 400]).save(paths[-1], quality=90)
    return paths


def _convert(
    samples: Callable[[], Iterator[Sample]], home: Path, workers: int, encoding: Encoding = shard.AS_IT_IS
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    converter = Converter("bench", samples, "fastad bench shard", "none", None, "")
    shard_samples = PHOTOS_A_SHARD if samples is not _small_arrays else None
    shard.convert_with(converter, None, home, encoding=encoding, shard_samples=shard_samples, workers=workers)


def _small_arrays() -> Iterator[Sample]:
    images = generator(0, "bench", "small").integers(0, 256, (1_000, 28, 28), dtype=np.uint8)
    for index in range(SMALL_IMAGES):
        yield Sample(f"{index:06d}", images[index % 1_000], str(index % 10), "train")


def _files(photos: list[Path]) -> Iterator[Sample]:
    for path in photos:
        yield Sample(path.stem, path, None, "train")


def _shard_writer(folder: Path) -> None:
    import webdataset

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=shard.SHARD_SAMPLES, verbose=0) as writer:
            for sample in _small_arrays():
                writer.write({"__key__": sample.key, "npy": sample.pixels, "cls": int(sample.class_name or 0)})


def _copy(photos: list[Path], folder: Path) -> None:
    """All bytes into one file, synced, as a shard is."""
    folder.mkdir(exist_ok=True)
    with open(folder / "all", "wb") as file:
        for path in photos:
            file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _decode(photos: list[Path]) -> None:
    for path in photos:
        with Image.open(path) as image:
            content_hash(np.asarray(image))


def _hash(photos: list[Path]) -> None:
    for path in photos:
        sha256(path)


def _resize(photos: list[Path]) -> None:
    for path in photos:
        with Image.open(path) as image:
            size = (int(image.width * RESIZE_PX / image.height), RESIZE_PX)
            image.resize(size, Image.Resampling.BILINEAR).save(io.BytesIO(), "JPEG", quality=95)


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

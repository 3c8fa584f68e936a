"""What all tests share: tiny synthetic sets, converted once by fastad itself, and a recipe for them."""

import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastad.evaluate import read_scores
from fastad.manifest import Manifest
from fastad.recipe import Recipe, parse
from fastad.run import find_runs
from fastad.shard import convert

CONVERTER = '''
"""Blobs: one bright square a class, on noise."""
import numpy as np
from fastad.manifest import Sample

CLASSES = {classes!r}
SOURCE = "made by the tests"
LICENCE = "CC0"

def samples():
    rng = np.random.default_rng({seed})
    for split, count in {counts!r}.items():
        for index in range(count):
            label = index % len(CLASSES)
            image = rng.integers(0, 60, ({size}, {size}), dtype=np.uint8)
            image[2 + 6 * label : 8 + 6 * label, 4:20] += 150
            yield Sample(f"{{split}}-{{index:04d}}", image, CLASSES[label], split)
'''


# Twelve photographs in Debian's package mate-backgrounds.
PHOTOGRAPHS = Path("/usr/share/backgrounds/mate/nature")
CROP_FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("jpg", {"quality": 92}),
    ("png", {}),
    ("webp", {"lossless": True, "method": 0}),
)


def write_converter(path: Path, *, classes: tuple[str, ...], counts: dict[str, int], seed: int, size: int = 28) -> Path:
    path.write_text(CONVERTER.format(classes=classes, counts=counts, seed=seed, size=size))
    return path


def rewrite_column(folder: Path, name: str, values: np.ndarray) -> None:
    """Puts other values into a set's column, as if it had been converted to them."""
    path, manifest_path = folder / "samples" / f"{name}.npy", folder / "manifest.json"
    np.save(path, values)
    facts = json.loads(manifest_path.read_bytes())
    facts["columns_sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest_path.write_text(json.dumps(facts))


def write_idx(path: Path, array: np.ndarray) -> bytes:
    """Writes a uint8 array in the IDX format, put together here from its description; returns the bytes."""
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(data)
    return data


def write_crops(photographs: Path, raw: Path, *, counts: dict[str, int], side_px: tuple[int, int] = (200, 380)) -> None:
    """Crops of photographs as a tree `<split>/<class>/<number>.<suffix>`, a class a photograph, the same every time.

    Sides are drawn from `side_px`. Splits do not overlap: the first is cut from the left seven tenths of a photograph,
    the second from what is right of them. JPEG, PNG and lossless WebP take turns.
    """
    for number, path in enumerate(sorted(photographs.glob("*.jpg"))):
        with Image.open(path) as photograph:
            pixels = np.asarray(photograph.convert("RGB"))
        border = pixels.shape[1] * 7 // 10
        for split, part in zip(counts, (pixels[:, :border], pixels[:, border:]), strict=False):
            folder = raw / split / path.stem
            folder.mkdir(parents=True)
            rng = np.random.default_rng([number, len(split)])
            for index in range(counts[split]):
                height, width = rng.integers(side_px[0], side_px[1], 2, endpoint=True)
                top, left = (
                    rng.integers(whole - side + 1) for whole, side in zip(part.shape, (height, width), strict=False)
                )
                crop = Image.fromarray(part[top : top + height, left : left + width])
                suffix, options = CROP_FILES[index % len(CROP_FILES)]
                crop.save(folder / f"{index:04d}.{suffix}", **options)


def run_with_small_files(limit_bytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`fastad …` in a process that may write no file larger than that, which to it looks like a full disk."""
    return subprocess.run(
        [sys.executable, "-m", "fastad", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        # Python itself would cut its caches short.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )


def scores_in(out: Path) -> dict[str, np.ndarray]:
    """The scores of every run in a folder, by the run's own folder."""
    return {str(run.folder.relative_to(out)): read_scores(run).score for run in find_runs([out])}


def assert_same_scores(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def after(calls: int) -> Callable[[], int]:
    """A `stop` that asks at the end of the step of that number."""
    left = calls

    def stop() -> int:
        nonlocal left
        left -= 1
        return signal.SIGTERM if left == 0 else 0

    return stop


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Natural photographs to convert: 12 classes, 6 train and 3 test images each, of 200 to 380 px a side."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("needs Debian's package mate-backgrounds")
    raw = tmp_path_factory.mktemp("crops")
    write_crops(PHOTOGRAPHS, raw, counts={"train": 6, "test": 3})
    return raw


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard home with "blobs" (low/mid, middle and high; 120 train, 60 test) and "extras" (4 classes, 90 train)."""
    home = tmp_path_factory.mktemp("home")
    blobs = write_converter(
        home / "blobs.py", classes=("low/mid", "middle", "high"), counts={"train": 120, "test": 60}, seed=1
    )
    extras = write_converter(home / "extras.py", classes=("a", "b", "c", "d"), counts={"train": 90}, seed=2)
    for converter in (blobs, extras):
        convert(str(converter), None, home, workers=1)
    return home


@pytest.fixture
def blobs(home: Path) -> Manifest:
    from fastad.manifest import open_set

    return open_set(home / "blobs")


@pytest.fixture
def extras(home: Path) -> Manifest:
    from fastad.manifest import open_set

    return open_set(home / "extras")


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Five epochs of two steps on the synthetic sets."""
    return parse(
        {
            "name": "tiny",
            "network": "mnist-lenet",
            "objectives": ["hsc", "bce"],
            "data": {"nominal": "blobs", "oe": "extras", "batch_nominal": 16, "batch_oe": 16},
            "optim": {"epochs": 5, "milestones": [3]},
        }
    )


@pytest.fixture(scope="session")
def uninterrupted(recipe: Recipe, home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The scores of the recipe's class "middle", trained in one go."""
    from fastad.train import train

    out = tmp_path_factory.mktemp("uninterrupted")
    train(recipe, shards=home, out=out, device=torch.device("cpu"), classes=["middle"])
    return scores_in(out)


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    """A sweep's worker that a test runs in this process sets PyTorch's threads, on which last bits depend."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(threads_as_they_were: None) -> None:
    """Sums are in the same order on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")

"""What all tests share: tiny synthetic sets, converted once by fastad itself, and a recipe for them."""

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastad.manifest import Manifest
from fastad.recipe import Recipe, parse
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


def write_converter(path: Path, *, classes: tuple[str, ...], counts: dict[str, int], seed: int, size: int = 28) -> Path:
    path.write_text(CONVERTER.format(classes=classes, counts=counts, seed=seed, size=size))
    return path


def write_idx(path: Path, array: np.ndarray) -> bytes:
    """Writes a uint8 array in the IDX format, put together here from its description; returns the bytes."""
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(data)
    return data


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


@pytest.fixture
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


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")

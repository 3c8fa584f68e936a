"""80 Million Tiny Images: 79,302,017 pictures from the web, 32×32 colour, no labels (Torralba et al. 2008; 244 GB).

Expected as raw data: `tiny_images.bin`, whole or its first part, or the folder that holds it. Each image is 3,072
bytes: red, green, blue, each plane column by column. As C-ordered [3, 32, 32] that is (channel, x, y), so the image
[H, W, C] is its transpose: the same as the usual `reshape(32, 32, 3, order="F")`. With `--in-place` no pixel is copied.

`--limit N` takes the first N images only. Images that also stand in CIFAR-10 or CIFAR-100 (132,409 of the whole set,
`data/README.md`) go into the split "lookalikes", all others into "train", so that training on "train" leaves them out.
The number in a key is the image's 0-based position in the file.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from fastad.errors import FastadError
from fastad.manifest import PixelRange, Sample

SOURCE = "80 Million Tiny Images (Torralba, Fergus and Freeman 2008), tiny_images.bin; withdrawn by its authors in 2020"
LICENCE = "none: withdrawn by its authors in 2020"
NOTICE = (
    "80 Million Tiny Images was withdrawn by its authors in 2020, because it holds offensive images and labels; they "
    "asked that it be used no longer. It is read here only so that published results can be checked. Substitutes: "
    "CIFAR-100 (`cifar100`), the 300K random images (`tinyimages300k`), or ImageNet-22K at 32 px."
)
PUBLISHED_COUNTS = {"80 Million Tiny Images": {"train": 79_169_608, "lookalikes": 132_409}}

SHAPE_HWC, ORDER = (32, 32, 3), "cwh"
IMAGE_BYTES = 32 * 32 * 3


def samples(raw: Path, *, limit: int | None = None) -> Iterator[Sample]:
    path = raw / "tiny_images.bin" if raw.is_dir() else raw
    count = _count(path)
    if limit is not None and not 0 < limit <= count:
        raise FastadError(f"--limit {limit}: {raw} holds {count:,} images; give a number from 1 to that")
    apart = set(cifar_lookalikes().tolist())
    for index in range(limit or count):
        split = "lookalikes" if index in apart else "train"
        yield Sample(f"{split}-{index:08d}", PixelRange(path, index * IMAGE_BYTES, SHAPE_HWC, ORDER), None, split)


def _count(path: Path) -> int:
    """The number of images in the file."""
    if not path.is_file():
        raise FastadError(f"no {path}: give tiny_images.bin or the folder that holds it")
    size = path.stat().st_size
    if size == 0 or size % IMAGE_BYTES:
        raise FastadError(
            f"{path} has {size:,} bytes, not a multiple of {IMAGE_BYTES:,} (one image): "
            f"fetch it again, or cut it after a whole image"
        )
    return size // IMAGE_BYTES


def cifar_lookalikes() -> np.ndarray:
    """The 0-based positions of the images that also stand in CIFAR-10 or CIFAR-100: int64, ascending."""
    file = resources.files("fastad_tools").joinpath("data", "tinyimages_cifar_lookalikes.npz")
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
        return np.cumsum(stored["differences"], dtype=np.int64) - 1

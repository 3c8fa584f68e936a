"""The 300K random images: 300,000 pictures from the web, 32×32 colour, no labels (Hendrycks et al. 2019; 922 MB).

The part of 80 Million Tiny Images that the authors of Outlier Exposure published as its substitute: pictures of CIFAR,
Places or LSUN classes, and those with divisive metadata, were taken out.

Expected as raw data: `300K_random_images.npy` (uint8 [N, 32, 32, 3]), or the folder that holds it, from
https://github.com/hendrycks/outlier-exposure
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastad.errors import FastadError
from fastad.manifest import PixelRange, Sample

SOURCE = "300K Random Images (Hendrycks, Mazeika and Dietterich 2019), https://github.com/hendrycks/outlier-exposure"
LICENCE = "not stated by its authors"
PUBLISHED_COUNTS = {"300K Random Images": {"train": 300_000}}

FILE = "300K_random_images.npy"


def samples(raw: Path) -> Iterator[Sample]:
    path = raw / FILE if raw.is_dir() else raw
    if not path.is_file():
        raise FastadError(f"no {path}: give {FILE} or the folder that holds it")
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise FastadError(f"{path} is not a whole .npy file ({error}): fetch {FILE} again") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise FastadError(f"{path} holds {images.dtype} {images.shape}, not uint8 (N, 32, 32, 3): give {FILE}")
    if not images.flags.c_contiguous:
        raise FastadError(f"{path} holds its images in Fortran's order, unlike the published: fetch {FILE} again")
    for index in range(len(images)):
        yield Sample(f"train-{index:06d}", PixelRange(path, images.offset + index * 3072, (32, 32, 3)), None, "train")

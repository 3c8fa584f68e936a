"""Reading IDX files (the format of MNIST and its relatives), gzipped or not.

The format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit number, then the values, last dimension fastest.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastad.errors import FastadError
from fastad.manifest import Sample


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array in `folder/name` or `folder/name.gz`; raises `FastadError` if it is missing or not whole."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise FastadError(f"no {name} or {name}.gz in {folder}: give the folder that holds the IDX files")
    try:
        data = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FastadError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise FastadError(f"{path} cannot be read: {error.strerror}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise FastadError(f"{path} is not an IDX file of {dimensions} dimensions of bytes: fetch it again")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    if len(data) != header + math.prod(shape):
        raise FastadError(
            f"{path} has {len(data):,} bytes, its header says {header + math.prod(shape):,}: fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def mnist_samples(raw: Path, classes: tuple[str, ...]) -> Iterator[Sample]:
    """The samples of a set that is laid out as MNIST is: 60,000 train and 10,000 t10k images with a label each."""
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = read_idx(raw, f"{stem}-images-idx3-ubyte", 3)
        labels = read_idx(raw, f"{stem}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise FastadError(f"{raw} holds {len(images)} {stem} images and {len(labels)} labels: fetch them again")
        if labels.size and labels.max() >= len(classes):
            raise FastadError(f"{raw} holds {stem} label {labels.max()}: labels must be below {len(classes)}")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield Sample(f"{split}-{index:05d}", image, classes[label], split)

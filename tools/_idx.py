"""Reading IDX files (the format of MNIST and its relatives), gzipped or not.

The format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit number, then the values, last dimension fastest.
"""

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastad.errors import FastadError
from fastad.manifest import Sample


def mnist_samples(raw: Path, classes: tuple[str, ...]) -> Iterator[Sample]:
    """The samples of a set that is laid out as MNIST is: 60,000 train and 10,000 t10k images with a label each."""
    for split, stem in (("train", "train"), ("test", "t10k")):
        for index, (image, label) in enumerate(labelled_images(raw, stem, range(len(classes)))):
            yield Sample(f"{split}-{index:05d}", image, classes[label], split)


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array in `folder/name` or `folder/name.gz`, or with `.idx` for `-idx`, as some unpackers name them;
    raises `FastadError` if it is missing or not whole."""
    named = [folder / f"{stem}{suffix}" for stem in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    path = next((path for path in named if path.is_file()), None)
    if path is None:
        raise FastadError(f"no {name} or {name}.gz in {folder}: give the folder that holds the IDX files")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FastadError(f"{path} cannot be read: {error.strerror}") from error
    return _parsed(data, path, dimensions)


def read_zipped_idx(archive: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array in the zip's member `name` or `name.gz`, in whatever folder; raises as `read_idx` does."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {Path(member).name: member for member in opened.namelist()}
            member = members.get(name) or members.get(f"{name}.gz")
            if member is None:
                raise FastadError(f"no {name} or {name}.gz in {archive}: give the zip that holds the IDX files")
            data = opened.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FastadError(f"{archive} is not a whole zip file ({error}): fetch it again") from error
    except OSError as error:
        raise FastadError(f"{archive} cannot be read: {error.strerror}") from error
    return _parsed(data, archive / member, dimensions)


def _parsed(data: bytes, path: Path, dimensions: int) -> np.ndarray:
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FastadError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise FastadError(f"{path} is not an IDX file of {dimensions} dimensions of bytes: fetch it again")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    if len(data) != header + math.prod(shape):
        raise FastadError(
            f"{path} has {len(data):,} bytes, its header says {header + math.prod(shape):,}: fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def labelled_images(
    raw: Path, stem: str, known: range, read: Callable[[Path, str, int], np.ndarray] = read_idx
) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs of a uint8 [H, W] image and its label from `<stem>-images-…` and `<stem>-labels-…`.

    Raises `FastadError` if there are not as many labels as images, or if a label is not one of `known`.
    """
    images = read(raw, f"{stem}-images-idx3-ubyte", 3)
    labels = read(raw, f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise FastadError(f"{raw} holds {len(images)} {stem} images and {len(labels)} labels: fetch them again")
    strange = labels[(labels < known.start) | (labels >= known.stop)]
    if strange.size:
        least = f"at least {known.start} and " if known.start else ""
        raise FastadError(f"{raw} holds {stem} label {strange.max()}: labels must be {least}below {known.stop}")
    yield from zip(images, labels.tolist(), strict=True)

"""Bytes of rows, in any order, by positional reads from a set's shards.

Owns the open files and asking ahead for what will be read; decoding and augmenting are the executors'.
Use: `ShardReader(manifest).pixels(rows)`.
"""

import math
import os
from pathlib import Path

import numpy as np

from fastad.encode import arranged, decode
from fastad.errors import FastadError
from fastad.files import read_into
from fastad.manifest import Manifest

# ImageNet-22K has thousands of shards, and a process may usually open 1,024 files.
MOST_OPEN = 256


class ShardReader:
    """Positional reads from the shards of one set; a shard is opened when it is first needed.

    `transpose`: `pixels` exchanges rows and columns, as EMNIST is distributed and as the paper's code trained on it.
    Reading raises `FastadError` naming a shard that has vanished, or is no longer the file that it was when the reader
    was made.
    """

    def __init__(self, manifest: Manifest, *, transpose: bool = False) -> None:
        self.manifest = manifest
        self.transpose = transpose
        self._holds_arrays = bool(np.isin(manifest.extension, (b"npy", b"bin")).any())
        self._descriptors: dict[int, int] = {}
        self._found = [_identity(manifest.shard_path(shard)) for shard in range(len(manifest.shards))]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The images of `rows` [n], uint8 [n, H, W, C], for sets of arrays of one size.

        Raises `FastadError` for rows that are not among those arrays, as masks are not.
        """
        manifest = self.manifest
        if manifest.facts.get("exact") and (manifest.extension[rows] == b"png").any():
            raise FastadError(
                f"{manifest.folder}: exact images, such as masks, are no arrays of one size: leave them out"
            )
        images = np.empty((len(rows), math.prod(manifest.shape_hwc)), dtype=np.uint8)
        # An npy member ends with its pixels; what stands before them is its own header.
        starts = manifest.offset[rows] + manifest.size[rows] - images.shape[1]
        for image, shard, start in zip(images, manifest.shard[rows].tolist(), starts.tolist(), strict=True):
            self._read_into(image, shard, start)
        self._check_unchanged(rows)
        shaped = arranged(images, manifest.shape_hwc, manifest.pixel_order)
        return np.ascontiguousarray(shaped.swapaxes(1, 2)) if self.transpose else shaped

    def files(self, rows: np.ndarray) -> list[np.ndarray]:
        """The encoded images of `rows`, as they stand in the shards: uint8 [size] each."""
        manifest = self.manifest
        sizes = manifest.size[rows].tolist()
        found = [np.empty(size, dtype=np.uint8) for size in sizes]
        places = zip(found, manifest.shard[rows].tolist(), manifest.offset[rows].tolist(), strict=True)
        for data, shard, offset in places:
            self._read_into(data, shard, offset)
        self._check_unchanged(rows)
        return found

    def arrays(self, rows: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """The images of `rows` as uint8 [n, H, W, C], or one by one where they are of several sizes."""
        if self.manifest.common_shape_hwc is not None:
            return self.pixels(rows)
        return [self.image(row) for row in rows.tolist()]

    @property
    def is_encoded(self) -> bool:
        """Whether DALI decodes the images; sets that hold any arrays are decoded here."""
        return self.manifest.common_shape_hwc is None and not self._holds_arrays

    def has_short_side_other_than(self, side_px: int) -> bool:
        """Whether there is an image whose short side is of another length."""
        return bool((np.minimum(self.manifest.height, self.manifest.width) != side_px).any())

    def ask_ahead(self, rows: np.ndarray) -> None:
        """Tells the system that these rows will be read soon, so that a cold disk fetches them side by side."""
        manifest = self.manifest
        places = zip(
            manifest.shard[rows].tolist(), manifest.offset[rows].tolist(), manifest.size[rows].tolist(), strict=True
        )
        for shard, offset, size in places:
            os.posix_fadvise(self._descriptor(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def image(self, row: int) -> np.ndarray:
        """One image, decoded whatever its format, uint8 [H, W, C]; of an exact 16-bit PNG as it is."""
        manifest = self.manifest
        extension = manifest.extension[row].decode()
        (data,) = self.files(np.array([row]))
        if extension == "bin":
            return arranged(data, manifest.shape_hwc, manifest.pixel_order)
        pixels = decode(data.tobytes(), extension)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def _read_into(self, array: np.ndarray, shard: int, offset: int) -> None:
        read_into(self._descriptor(shard), array, offset, self.manifest.shard_path(shard))

    def _check_unchanged(self, rows: np.ndarray) -> None:
        """Raises `FastadError` if a shard of these rows was written since the reader was made: what was read before
        and after may not be one set."""
        for shard in set(self.manifest.shard[rows].tolist()):
            if _identity(self._descriptor(shard)) != self._found[shard]:
                raise FastadError(
                    f"{self.manifest.shard_path(shard)} has changed while it was read: restore it, or remove "
                    f"{self.manifest.folder} and convert again"
                )

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            path = self.manifest.shard_path(shard)
            if len(self._descriptors) >= MOST_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                self._descriptors[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise FastadError(f"{path} cannot be read: {error.strerror}") from error
        return self._descriptors[shard]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _identity(file: Path | int) -> tuple[int, int, int] | None:
    """What tells a file from another or from itself before it was written; None where there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116 (of a descriptor, too)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

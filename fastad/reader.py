"""Bytes of rows, in any order, from memory-mapped shards.

Owns the open shards; decoding and augmenting are the executors'.
Use: `ShardReader(manifest).pixels(rows)`.
"""

import math

import numpy as np

from fastad.encode import arranged, decode
from fastad.errors import FastadError
from fastad.manifest import Manifest


class ShardReader:
    """Positional reads from the shards of one set; a shard is mapped when it is first needed.

    `transpose`: `pixels` exchanges rows and columns, as EMNIST is distributed and as the paper's code trained on it.
    """

    def __init__(self, manifest: Manifest, *, transpose: bool = False) -> None:
        self.manifest = manifest
        self.transpose = transpose
        self._shards: dict[int, np.ndarray] = {}

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The images of `rows` [n], uint8 [n, H, W, C], for sets of arrays of one size.

        Raises `FastadError` for rows that are not among those arrays, as masks are not.
        """
        manifest = self.manifest
        if manifest.facts.get("exact") and (manifest.extension[rows] == b"png").any():
            raise FastadError(
                f"{manifest.folder}: exact images, such as masks, are no arrays of one size: leave them out"
            )
        image_bytes = math.prod(manifest.shape_hwc)
        # An npy member ends with its pixels; what stands before them is its own header.
        starts = (manifest.offset[rows] + manifest.size[rows] - image_bytes).tolist()
        images = np.empty((len(rows), image_bytes), dtype=np.uint8)
        for place, (shard, start) in enumerate(zip(manifest.shard[rows].tolist(), starts, strict=True)):
            images[place] = self._shard(shard)[start : start + image_bytes]
        shaped = arranged(images, manifest.shape_hwc, manifest.pixel_order)
        return shaped.swapaxes(1, 2) if self.transpose else shaped

    def image(self, row: int) -> np.ndarray:
        """One image, decoded whatever its format, [H, W, C]: uint8, but of an exact 16-bit PNG as it is."""
        manifest = self.manifest
        start, size = int(manifest.offset[row]), int(manifest.size[row])
        data = self._shard(int(manifest.shard[row]))[start : start + size]
        extension = manifest.extension[row].decode()
        if extension == "bin":
            return arranged(data, manifest.shape_hwc, manifest.pixel_order)
        pixels = decode(data.tobytes(), extension)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._shards:
            path = self.manifest.folder / self.manifest.shards[shard].name
            self._shards[shard] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        return self._shards[shard]

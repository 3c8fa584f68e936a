"""Bytes of rows, in any order, from memory-mapped shards.

Owns the open tars; decoding and augmenting are the executors'.
Use: `ShardReader(manifest).pixels(rows)`.
"""

import math

import numpy as np

from fastad.encode import decode
from fastad.manifest import Manifest


class ShardReader:
    """Positional reads from the tars of one set; a tar is mapped when it is first needed.

    `transpose`: `pixels` exchanges rows and columns, as EMNIST is distributed and as the paper's code trained on it.
    """

    def __init__(self, manifest: Manifest, *, transpose: bool = False) -> None:
        self.manifest = manifest
        self.transpose = transpose
        self._tars: dict[int, np.ndarray] = {}

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The images of `rows` [n], uint8 [n, H, W, C], for sets of arrays of one size."""
        manifest = self.manifest
        image_bytes = math.prod(manifest.shape_hwc)
        # An npy member ends with its pixels; what stands before them is its own header.
        starts = (manifest.offset[rows] + manifest.size[rows] - image_bytes).tolist()
        images = np.empty((len(rows), image_bytes), dtype=np.uint8)
        for place, (shard, start) in enumerate(zip(manifest.shard[rows].tolist(), starts, strict=True)):
            images[place] = self._tar(shard)[start : start + image_bytes]
        shaped = images.reshape(len(rows), *manifest.shape_hwc)
        return shaped.swapaxes(1, 2) if self.transpose else shaped

    def image(self, row: int) -> np.ndarray:
        """One image, decoded whatever its format, uint8 [H, W, C]."""
        manifest = self.manifest
        start, size = int(manifest.offset[row]), int(manifest.size[row])
        data = self._tar(int(manifest.shard[row]))[start : start + size].tobytes()
        pixels = decode(data, manifest.extension[row].decode())
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def _tar(self, shard: int) -> np.ndarray:
        if shard not in self._tars:
            path = self.manifest.folder / self.manifest.shards[shard].name
            self._tars[shard] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        return self._tars[shard]

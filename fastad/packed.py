"""A batch's numbers as one piece of memory: a device is told of a batch by one copy, into memory that stays.

Owns the layout and pinned memory; which numbers these are is `fastad.resident`'s and `fastad.pixels`'.
Use: `layout = Layout.of(arrays)`, then `layout.unpacked(layout.packed(arrays, device).to(device))["noise"]`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

# Every array begins at a multiple of these bytes, and so of its numbers' size.
ALIGNED = 16


class Place(NamedTuple):
    """Where an array lies: from byte `start` to `stop`."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Layout(NamedTuple):
    """Where arrays of these names, shapes and types lie in `size` bytes; it is the same for all batches of a run."""

    places: Mapping[str, Place]
    size: int

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The layout of arrays like these."""
        places, at = {}, 0
        for name, array in arrays.items():
            places[name] = Place(at, at + array.nbytes, array.shape, array.dtype)
            at += -(-array.nbytes // ALIGNED) * ALIGNED
        return cls(places, at)

    def packed(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> Tensor:
        """The arrays on the host, uint8 [size]: for a GPU in pinned memory, of which a copy does not make the host
        wait, and which PyTorch does not give away again before such a copy is done."""
        packed = torch.empty(self.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        memory = packed.numpy()
        for name, (start, stop, shape, dtype) in self.places.items():
            if (array := arrays[name]).shape != shape:
                raise ValueError(f"{name} is {array.shape}, and in the batches before it {shape}")
            memory[start:stop].view(dtype).reshape(shape)[...] = array
        return packed

    def unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """The arrays as tensors that share the memory of `packed`, wherever that is."""
        return {
            name: packed[start:stop].view(_TYPES[dtype]).view(shape)
            for name, (start, stop, shape, dtype) in self.places.items()
        }


_TYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}

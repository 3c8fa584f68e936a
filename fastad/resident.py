"""Images that fit in a device's memory: held as uint8, decoded and resized once, gathered and cropped there.

Owns what is held and the gathering; values of pixels are `fastad.pixels`'.
Use: `held = hold(Origin(reader, faults), rows, decoding)`, then `resident_crops(held, wanted, spec, faults)`.
"""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastad.augment import AugmentSpec, Geometry, place
from fastad.dali import Crops, Decoding, whole_images
from fastad.faults import Faults, Origin
from fastad.feed import Wanted
from fastad.pixels import moved
from fastad.progress import progress
from fastad.reader import ShardReader

HOLD_BATCH = 256


@dataclass(frozen=True, eq=False)
class Held:
    """Images on a device: `pixels` uint8 [pixels, C] of all, `first` int64 [n] the place of each image's first pixel,
    `size_hw` int32 [n, 2] after resizing; `rows` int64 [n], ascending, are those they came from."""

    rows: np.ndarray
    pixels: Tensor
    first: np.ndarray
    size_hw: np.ndarray

    @property
    def common_hw(self) -> tuple[int, int] | None:
        """The size of all images, None where they differ."""
        return tuple(self.size_hw[0].tolist()) if (self.size_hw == self.size_hw[0]).all() else None


def bytes_held(reader: ShardReader, rows: np.ndarray, spec: AugmentSpec) -> int:
    """What holding these rows would take."""
    size = place(spec, None, reader.manifest.height[rows], reader.manifest.width[rows]).size_hw
    return int(size.astype(np.int64).prod(axis=1).sum()) * reader.manifest.channels


def hold(origin: Origin, rows: np.ndarray, decoding: Decoding, into: Tensor | None = None) -> Held:
    """Reads, decodes and resizes the images of `rows` and holds them on the device: in `into`, uint8 [pixels, C], if
    that is given and they turn out to be no larger than `bytes_held`.

    In the place of an image that cannot be decoded stands another's, as `dali_crops` does it.
    """
    reader, device = origin.reader, decoding.device
    rows, channels = np.unique(rows), reader.manifest.channels
    pixels = into
    if pixels is None:
        needed = bytes_held(reader, rows, decoding.spec)
        pixels = torch.empty((needed // channels, channels), dtype=torch.uint8, device=device)
    first, size, at = [], [], 0
    # Arrays take no time worth showing.
    shown = progress(f"hold {reader.manifest.name}", len(rows), unit="images") if reader.is_encoded else nullcontext()
    with shown as advance:
        for images in whole_images(origin, rows, decoding, batch=HOLD_BATCH):
            for image in images:
                stop = at + image.shape[0] * image.shape[1]
                if stop > len(pixels):  # what stands in for an image may be larger
                    pixels = torch.cat([pixels, pixels.new_empty((stop - len(pixels), channels))])
                pixels[at:stop] = image.reshape(-1, channels)
                first.append(at)
                size.append(image.shape[:2])
                at = stop
            if advance is not None:
                advance(len(images))
    return Held(rows, pixels[:at], np.array(first, dtype=np.int64), np.array(size, dtype=np.int32))


def resident_crops(
    held: Held, wanted: Iterator[Wanted], spec: AugmentSpec, faults: Faults
) -> Generator[Crops, None, None]:
    """The crops of what is wanted, in order, uint8 [b, H, W, C] on the device that holds the images."""
    for part in wanted:
        rows = faults.sound(part.rows)
        slots = np.searchsorted(held.rows, rows)
        size = held.size_hw[slots]
        geometry = place(spec, part.draws, size[:, 0], size[:, 1])
        yield Crops(_gathered(held, slots, geometry), rows, part.draws, geometry.inside())


def _gathered(held: Held, slots: np.ndarray, geometry: Geometry) -> Tensor:
    height, width = geometry.out_hw
    device, channels = held.pixels.device, held.pixels.shape[1]
    if held.common_hw == geometry.out_hw and not geometry.start.any() and not geometry.flip.any():
        return held.pixels.view(-1, height, width, channels)[moved(slots, device)]
    numbers = np.column_stack([held.first[slots], geometry.start, geometry.size_hw, geometry.flip])
    first, top, left, rows, columns, flip = moved(numbers, device)[:, :, None].unbind(1)
    y = top + torch.arange(height, device=device)
    x = torch.arange(width, device=device)
    x = left + torch.where(flip.bool(), width - 1 - x, x)
    if not geometry.padded:
        return held.pixels[first[:, :, None] + (y * columns)[:, :, None] + x[:, None, :]]
    inside = ((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None, :]
    y, x = y.clamp(0).minimum(rows - 1), x.clamp(0).minimum(columns - 1)
    return held.pixels[first[:, :, None] + (y * columns)[:, :, None] + x[:, None, :]] * inside[..., None]

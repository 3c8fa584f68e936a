"""Images that fit in a device's memory: held as uint8, decoded and resized once, gathered and cropped there.

Owns what is held and the gathering; values of pixels are `fastad.pixels`'.
Use: `held = hold(Origin(reader, faults), rows, decoding)`, then `gather = Gather(held, spec, drawn=True)` and
`places, inside = gather.numbers(rows, draws)`, of which `gather(moved(places, device))` makes crops.
"""

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastad.augment import AugmentSpec, Draws, place
from fastad.compiled import compiled_apart
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


def hold(origin: Origin, rows: np.ndarray, decoding: Decoding) -> Held:
    """Reads, decodes and resizes the images of `rows` and holds them on the device.

    In the place of an image that cannot be decoded stands another's, as `dali_crops` does it.
    """
    reader, device = origin.reader, decoding.device
    rows, channels = np.unique(rows), reader.manifest.channels
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


class Gather:
    """Crops of held images by where they lie, in work of the device's that is the same for every batch: it depends on
    the recipe and on what is held, never on what was drawn. `drawn` False: as in testing."""

    def __init__(self, held: Held, spec: AugmentSpec, *, drawn: bool, compiled: bool = False) -> None:
        self.held, self.spec = held, spec
        middle = place(spec, None, held.size_hw[:, 0], held.size_hw[:, 1])
        self.out_hw = middle.out_hw
        padded = spec.crop_padding_px > 0 if drawn else middle.padded
        moves = drawn and (spec.crop_padding_px > 0 or spec.flip_probability > 0)
        self.takes_whole = held.common_hw == self.out_hw and not moves
        # As tens of small kernels, finding pixels would take a GPU longer than copying them.
        compiles = compiled and held.pixels.device.type == "cuda"
        self.gathered = (compiled_gathered if compiles else gathered)(self.out_hw, padded)

    def numbers(self, rows: np.ndarray, draws: Draws | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Where the crops of rows lie, and which part of each is image (`Geometry.inside`). Places are int64 [b, 1] or
        [b, 6]: the image's number, where all of it is taken as it is, or (first pixel, top, left, height, width,
        flip)."""
        held = self.held
        slots = np.searchsorted(held.rows, rows)
        if self.takes_whole:
            return slots[:, None], None
        size = held.size_hw[slots]
        geometry = place(self.spec, draws, size[:, 0], size[:, 1])
        return np.column_stack([held.first[slots], geometry.start, size, geometry.flip]), geometry.inside()

    def __call__(self, places: Tensor) -> Tensor:
        """The crops, uint8 [b, H, W, C]; `places` on the device."""
        pixels = self.held.pixels
        if self.takes_whole:
            return pixels.view(-1, *self.out_hw, pixels.shape[1])[places[:, 0]]
        return self.gathered(pixels, places)


Gathered = Callable[[Tensor, Tensor], Tensor]


def gathered(out_hw: tuple[int, int], padded: bool) -> Gathered:
    """What takes crops of that size out of pixels [n, C], at places [b, 6]; black where it pads."""
    height, width = out_hw

    def crops(pixels: Tensor, places: Tensor) -> Tensor:
        first, top, left, rows, columns, flip = places[:, :, None].unbind(1)
        y = top + torch.arange(height, device=places.device)
        x = torch.arange(width, device=places.device)
        x = left + torch.where(flip.bool(), width - 1 - x, x)
        if not padded:
            return pixels[first[:, :, None] + (y * columns)[:, :, None] + x[:, None, :]]
        inside = ((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None, :]
        y, x = y.clamp(0).minimum(rows - 1), x.clamp(0).minimum(columns - 1)
        return pixels[first[:, :, None] + (y * columns)[:, :, None] + x[:, None, :]] * inside[..., None]

    return crops


@functools.cache
def compiled_gathered(out_hw: tuple[int, int], padded: bool) -> Gathered:
    """The same as one kernel for whatever number of pixels is held, which differs from class to class."""
    compiled = compiled_apart(gathered(out_hw, padded), fullgraph=True)

    def crops(pixels: Tensor, places: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(pixels, 0)
        return compiled(pixels, places)

    return crops


def resident_crops(
    held: Held, wanted: Iterator[Wanted], spec: AugmentSpec, faults: Faults, *, drawn: bool
) -> Generator[Crops, None, None]:
    """The crops of what is wanted, in order, uint8 [b, H, W, C] on the device that holds the images."""
    gather = Gather(held, spec, drawn=drawn)
    for part in wanted:
        rows = faults.sound(part.rows)
        places, inside = gather.numbers(rows, part.draws)
        yield Crops(gather(moved(places, held.pixels.device)), rows, part.draws, inside)

"""What is done to pixels, as data: the ranges of a recipe, the numbers drawn from them, and where a crop lies.

Owns `AugmentSpec`, its draws and the geometry that follows from them; moving pixels is `fastad.dali`'s and
`fastad.resident`'s, changing their values `fastad.pixels`'.
Use: `draws = draw(spec, seed, "nominal", epoch, start, count)`.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from fastad.seeds import generator


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """Training augmentation in its order: resize, jitter, flip, crop, blur (OE images only), [0, 1], noise, normalise
    (Appendix F; PROTOCOL, Preprocessing). Testing resizes, crops from the middle and normalises.

    `resize_px`: short side to which every image comes, 0 to leave it. `crop_px`: side of the square crop, 0 for the
    image's own size; `crop_padding_px`: black around the image before it is cropped. `brightness`, `contrast`,
    `saturation`: half the range of their factors around 1; `hue_turns`: largest shift of the hue. `noise_std` is of
    pixels in [0, 1]. `mean` and `std`: one number for all channels or one each, of pixels in [0, 1].
    """

    resize_px: int = 0
    crop_px: int = 0
    crop_padding_px: int = 0
    flip_probability: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue_turns: float = 0.0
    oe_blur_sigma_px: float = 0.0
    noise_std: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def jitters(self) -> bool:
        """Whether colours are changed at all."""
        return any((self.brightness, self.contrast, self.saturation, self.hue_turns))


class Draws(NamedTuple):
    """What happens to each of n images.

    `flip`: bool [n]. `crop`: where the crop lies in the room it has, (y, x) in [0, 1), float64 [n, 2]. `colour`:
    factors of brightness, contrast and saturation, and the shift of the hue in turns, float32 [n, 4]. `noise`: where in
    a bank of `NOISE_BANK` normals the image's noise begins, int64 [n].
    """

    flip: np.ndarray
    crop: np.ndarray
    colour: np.ndarray
    noise: np.ndarray

    def part(self, places: slice) -> Self:
        """Those of some images only."""
        return type(self)(*(numbers[places] for numbers in self))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """One after the other."""
        return cls(*(np.concatenate(numbers) for numbers in zip(*parts, strict=True)))


NOISE_BANK = 2**24

# Positions that are drawn at once, and kept for the batches that follow: any of them costs as much as all.
_BLOCK = 4096
_FLIP, _CROP, _COLOUR, _NOISE = 0, slice(1, 3), slice(3, 7), 7


def draw(spec: AugmentSpec, seed: int, stream: str, epoch: int, start: int, count: int) -> Draws:
    """The draws of `count` positions of a stream ("nominal" or "oe") in one epoch, from position `start`.

    Position p's draws depend on (seed, stream, epoch, p) alone: not on the batch, the rank, the executor or a resume.
    """
    first, last = start // _BLOCK, -(-(start + count) // _BLOCK)
    parts = []
    for block in range(first, max(last, first + 1)):
        at = block * _BLOCK
        part = slice(max(0, start - at), start + count - at)
        parts.append(_draw_block(spec, seed, stream, epoch, block).part(part))
    return Draws.joined(parts)


# A block serves 32 batches of 128; of each of a few streams one is in use.
@functools.lru_cache(maxsize=8)
def _draw_block(spec: AugmentSpec, seed: int, stream: str, epoch: int, block: int) -> Draws:
    uniform = generator(seed, "augment", stream, epoch, block).random((_BLOCK, _NOISE + 1))
    around_one = np.array([spec.brightness, spec.contrast, spec.saturation, 0.0])
    reach = around_one + np.array([0.0, 0.0, 0.0, spec.hue_turns])
    return Draws(
        flip=uniform[:, _FLIP] < spec.flip_probability,
        crop=uniform[:, _CROP],
        colour=(np.array([1.0, 1.0, 1.0, 0.0]) + reach * (2 * uniform[:, _COLOUR] - 1)).astype(np.float32),
        noise=(uniform[:, _NOISE] * NOISE_BANK).astype(np.int64),
    )


class Geometry(NamedTuple):
    """How pixels are moved: images [n] are resized to `size_hw` int32 [n, 2], then the part of `out_hw` that begins at
    `start` int32 [n, 2] (negative where black is padded) is taken, then mirrored where `flip` bool [n]. `padded`:
    whether crops may reach beyond their images; of drawn ones the recipe tells, not what was drawn."""

    size_hw: np.ndarray
    start: np.ndarray
    flip: np.ndarray
    out_hw: tuple[int, int]
    padded: bool

    def inside(self) -> np.ndarray | None:
        """The part of each crop that is image and not padding: (top, bottom, left, right), int32 [n, 4]; None where
        none may be padded."""
        if not self.padded:
            return None
        out = np.array(self.out_hw, dtype=np.int32)
        first = np.maximum(-self.start, 0)
        last = np.minimum(self.size_hw - self.start, out)
        left = np.where(self.flip, out[1] - last[:, 1], first[:, 1])
        right = np.where(self.flip, out[1] - first[:, 1], last[:, 1])
        return np.stack([first[:, 0], last[:, 0], left, right], axis=1).astype(np.int32)


def place(spec: AugmentSpec, draws: Draws | None, height: np.ndarray, width: np.ndarray) -> Geometry:
    """How images of those sizes [n] are moved: as drawn; without draws, as in testing, cropped from the middle."""
    size, out_hw = _sizes(spec, height, width)
    out = np.array(out_hw, dtype=np.int32)
    if draws is None:
        # As torchvision rounds it.
        start, flip = np.round((size - out) / 2).astype(np.int32), np.zeros(len(size), dtype=bool)
        return Geometry(size, start, flip, out_hw, padded=bool((size < out).any()))
    room = size + 2 * spec.crop_padding_px - out
    start = np.floor(draws.crop * (room + 1)).astype(np.int32)
    # Cropping a mirrored image is mirroring the crop from the other side.
    start[:, 1] = np.where(draws.flip, room[:, 1] - start[:, 1], start[:, 1])
    start -= np.int32(spec.crop_padding_px)
    return Geometry(size, start, draws.flip, out_hw, padded=spec.crop_padding_px > 0)


def _sizes(spec: AugmentSpec, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Sizes (height, width) after resizing, the long side cut to a whole number as torchvision does; and the crop's."""
    size = np.stack([height, width], axis=1).astype(np.int64)
    if spec.resize_px:
        size = size * spec.resize_px // size.min(axis=1, keepdims=True)
    out_hw = (spec.crop_px, spec.crop_px) if spec.crop_px else (int(size[0, 0]), int(size[0, 1]))
    return size.astype(np.int32), out_hw

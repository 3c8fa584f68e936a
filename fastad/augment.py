"""What is done to pixels, as data: the ranges of a recipe and the numbers drawn from them.

Owns `AugmentSpec` and its draws; applying them is the executors' (`fastad.pipeline`).
Use: `draws = draw(spec, seed, "nominal", epoch, count)`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastad.seeds import generator


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """Training augmentation in its order: flip, crop, blur (OE images only), [0, 1], normalise (Appendix F).

    `crop_padding_px`: a crop of the image's own size from the image with that much black around it. `mean` and `std`:
    one number for all channels or one each, of pixels in [0, 1].
    """

    flip_probability: float = 0.0
    crop_padding_px: int = 0
    oe_blur_sigma_px: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Draws(NamedTuple):
    """What happens to each of n images.

    `flip`: 0 or 1, int32 [n]. `crop_start_px`: the crop's top-left corner (y, x), from −padding to +padding, int32
    [n, 2]. `blur_sigma_px`: standard deviation, 0 for none, float32 [n].
    """

    flip: np.ndarray
    crop_start_px: np.ndarray
    blur_sigma_px: np.ndarray


def draw(spec: AugmentSpec, seed: int, stream: str, epoch: int, count: int) -> Draws:
    """The draws of the first `count` positions of a stream ("nominal" or "oe") in one epoch.

    Position p's draws depend on (seed, stream, epoch, p) alone: not on the batch, the executor or a resume.
    """
    rng = generator(seed, "augment", stream, epoch)
    padding = spec.crop_padding_px
    return Draws(
        flip=(rng.random(count) < spec.flip_probability).astype(np.int32),
        crop_start_px=rng.integers(-padding, padding, size=(count, 2), endpoint=True, dtype=np.int32),
        blur_sigma_px=np.full(count, spec.oe_blur_sigma_px if stream == "oe" else 0.0, dtype=np.float32),
    )


def no_draws(count: int) -> Draws:
    """The draws that leave images as they are, as testing does."""
    return Draws(np.zeros(count, np.int32), np.zeros((count, 2), np.int32), np.zeros(count, np.float32))

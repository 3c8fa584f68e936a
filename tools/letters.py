"""Letters: printed letters A–Z and a–z, rendered at 28×28 from the fonts that matplotlib ships; needs no raw data.

A stand-in for EMNIST letters where that set is not at hand: 26 classes, capital and small letters together, white on
black, 20 pixels high in a 28×28 frame as in MNIST. They are printed, not handwritten: each is slanted, turned, scaled,
shifted and thickened a little at random, from one fixed seed. All are in the split "train".
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastad.manifest import Sample
from fastad.seeds import generator

SOURCE = "letters rendered from the DejaVu, STIX and Computer Modern fonts of matplotlib"
LICENCE = "images: CC0; fonts: DejaVu and STIX licences, Computer Modern (Knuth)"
CLASSES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmtt10"),
)
VARIANTS = 25
FRAME_PX, LETTER_PX, DRAWN_PX = 28, 20, 112


def samples() -> Iterator[Sample]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for font_name in FONTS:
        font = ImageFont.truetype(folder / f"{font_name}.ttf", 96)
        for capital in CLASSES:
            for letter in (capital, capital.lower()):
                rng = generator(0, "letters", font_name, letter)
                for variant in range(VARIANTS):
                    yield Sample(f"{font_name}-{letter}-{variant:02d}", _render(font, letter, rng), capital, "train")


def _render(font: ImageFont.FreeTypeFont, letter: str, rng: np.random.Generator) -> np.ndarray:
    """One letter, drawn large, cut to its ink, distorted and reduced to uint8 [28, 28]."""
    left, top, right, bottom = font.getbbox(letter)
    weight = int(rng.integers(0, 4))
    large = Image.new("L", (int(right - left) + 2 * weight, int(bottom - top) + 2 * weight))
    ImageDraw.Draw(large).text((weight - left, weight - top), letter, fill=255, font=font, stroke_width=weight)
    turn, slant = rng.normal(0, 0.12), rng.normal(0, 0.15)
    distortion = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array(
        [[1, slant], [0, 1]]
    )
    extent = np.abs(distortion) @ large.size
    scale = LETTER_PX / FRAME_PX * DRAWN_PX / max(extent) * rng.uniform(0.85, 1.1)
    to_large = np.linalg.inv(scale * distortion)
    shift = np.array(large.size) / 2 - to_large @ (DRAWN_PX / 2 + rng.uniform(-6, 6, size=2))
    coefficients = (*to_large[0], shift[0], *to_large[1], shift[1])
    drawn = large.transform((DRAWN_PX, DRAWN_PX), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(drawn.resize((FRAME_PX, FRAME_PX), Image.Resampling.BOX))

"""One source image → what a shard holds of it, or the reason why it holds nothing.

Owns decoding, its checks, and the rules for images that are not plain RGB JPEGs:

- A JPEG that is grey or RGB passes byte for byte, unless a smaller size or a quality is asked for.
- Everything else is converted as torchvision's `ImageFolder` does it, to RGB: palettes are looked up, alpha is dropped,
  CMYK is converted, of an animation the first frame is taken. 16-bit grey keeps its upper 8 bits. The result is an npy
  up to 64 px, else a JPEG.
- EXIF orientation is never applied, as in `fastad.pipeline`.
- What does not decode completely, or has more than `LARGEST_PIXELS` pixels, is refused.

Plain JPEGs are decoded and encoded by libjpeg-turbo itself (simplejpeg), to the same pixels as by Pillow in three
quarters of the time; whatever that refuses or does not know, Pillow judges. PyTorch resizes 8-bit images to within one
level of Pillow in a quarter of its time (README, Development).
Use: `encode(path.read_bytes(), Encoding(resize_px=256)).data`.
"""

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
import xxhash
from PIL import Image, UnidentifiedImageError

from fastad.tar import npy_bytes

LARGEST_NPY_PX = 64
LARGEST_PIXELS = 100_000_000
QUALITY = 95


@dataclass(frozen=True, slots=True)
class Encoding:
    """What is asked of all images of a set.

    `resize_px`: short side of images that are larger (bilinear, antialiased). `quality`: of JPEGs that are written (1
    to 100), None for 95 and no re-encoding of those that need not be. `checked` False: JPEGs that pass as they are were
    checked before; their size is read from their header, and they are neither decoded nor hashed.
    """

    resize_px: int | None = None
    quality: int | None = None
    checked: bool = True

    def makes_smaller(self, height: int, width: int) -> bool:
        """Whether an image of that size is resized."""
        return self.resize_px is not None and min(height, width) > self.resize_px


class Encoded(NamedTuple):
    """A member of a shard. `change`: what was done to the source, "" if it passed byte for byte or pixel for pixel;
    `content_hash` 0: not known."""

    extension: str
    data: bytes
    width: int
    height: int
    content_hash: int
    change: str


class BadImage(Exception):
    """An image that cannot be used; the message is the reason."""


def encode(source: bytes | np.ndarray, encoding: Encoding) -> Encoded:
    """The member for an encoded image, or for uint8 pixels [H, W, C]; raises `BadImage`."""
    if isinstance(source, np.ndarray):
        return _of_array(source, encoding)
    may_pass = encoding.quality is None
    if may_pass and not encoding.checked and (size := _jpeg_size(source)) and not encoding.makes_smaller(*size):
        return Encoded("jpg", source, size[1], size[0], 0, "")
    pixels, change = _decoded(source)
    height, width, _ = pixels.shape
    if encoding.makes_smaller(height, width):
        return _written(_resized(pixels, encoding), encoding, f"{change}, resized" if change else "resized")
    if may_pass and not change:
        return Encoded("jpg", source, width, height, content_hash(pixels), "")
    return _written(pixels, encoding, change or "re-encoded")


def passes_as_array(shape: Sequence[int], encoding: Encoding) -> bool:
    """Whether uint8 pixels of that shape [H, W, C] become an npy as they are."""
    height, width, _ = shape
    return 0 < max(height, width) <= LARGEST_NPY_PX and not encoding.makes_smaller(height, width)


def _of_array(pixels: np.ndarray, encoding: Encoding) -> Encoded:
    if passes_as_array(pixels.shape, encoding):
        return _npy(pixels, "")
    height, width, channels = pixels.shape
    smaller = encoding.makes_smaller(height, width)
    if channels not in (1, 3):
        raise BadImage(f"{channels} channels: only npy images, up to {LARGEST_NPY_PX} px, may have other than 1 or 3")
    return _written(_resized(pixels, encoding) if smaller else pixels, encoding, "resized" if smaller else "to JPEG")


# What libjpeg-turbo calls the colours of plain JPEGs, and what they are decoded to.
_PLAIN = {"YCbCr": "RGB", "Gray": "GRAY"}


def _jpeg_size(source: bytes) -> tuple[int, int] | None:
    """(height, width) of a plain JPEG by its header, None for other files; raises `BadImage` if it is too large."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(source)
    except ValueError:
        return None
    _refuse_bomb(width, height)
    return (height, width) if colours in _PLAIN else None


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS:
        raise BadImage(f"{width}×{height} pixels, more than {LARGEST_PIXELS:,}")


def _decoded(source: bytes) -> tuple[np.ndarray, str]:
    """The pixels [H, W, C] of a file as a shard holds them, and the conversion that this took, "" for plain JPEGs."""
    if _jpeg_size(source):
        try:
            return _jpeg_pixels(source), ""
        except ValueError:
            pass  # libjpeg-turbo warns of harmless damage too, such as bytes too many: Pillow tells which it is
    try:
        with _opened(source) as image:
            _refuse_bomb(*image.size)
            image.load()
            is_plain = image.format == "JPEG" and image.mode in ("L", "RGB")
            pixels = np.asarray(image if is_plain else _rgb(image))
            return pixels.reshape(*pixels.shape[:2], -1), "" if is_plain else f"{image.format} {image.mode} to RGB"
    except UnidentifiedImageError:
        raise BadImage("not an image" if source else "empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(str(error) or type(error).__name__) from error


def _opened(source: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow's own limit of pixels is a little lower.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(source))


def _jpeg_pixels(source: bytes) -> np.ndarray:
    colours = simplejpeg.decode_jpeg_header(source)[2]
    pixels: np.ndarray = simplejpeg.decode_jpeg(source, colorspace=_PLAIN[colours])
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    # Pillow would warn of what is meant: transparency is dropped.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _resized(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The long side is cut to a whole number, as torchvision does it."""
    import torch  # takes seconds to import: for conversions that resize only

    short = min(pixels.shape[:2])
    wanted = encoding.resize_px or short
    size = [wanted if side == short else int(side * wanted / short) for side in pixels.shape[:2]]
    # pixels[None] would have a stride of 0, by which torch does not know the layout as channels_last.
    image = torch.from_numpy(np.require(pixels, requirements="W")).reshape(1, *pixels.shape).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    return smaller.permute(0, 2, 3, 1)[0].contiguous().numpy()


def _written(pixels: np.ndarray, encoding: Encoding, change: str) -> Encoded:
    """As npy where that is small, else as a JPEG, whose hash is that of the pixels before they were encoded."""
    height, width, channels = pixels.shape
    if max(height, width) <= LARGEST_NPY_PX:
        return _npy(pixels, change)
    colours, halved = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), encoding.quality or QUALITY, colorspace=colours, colorsubsampling=halved
    )
    return Encoded("jpg", data, width, height, content_hash(pixels), change)


def _npy(pixels: np.ndarray, change: str) -> Encoded:
    return Encoded("npy", npy_bytes(pixels), pixels.shape[1], pixels.shape[0], content_hash(pixels), change)


def content_hash(pixels: np.ndarray) -> int:
    """64 bits (XXH3) of decoded pixels and their shape: equal images have equal hashes in every set and format."""
    seed = _shape_seed(pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1))
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels).data, seed)


@functools.lru_cache(maxsize=1024)
def _shape_seed(shape: tuple[int, ...]) -> int:
    return xxhash.xxh3_64_intdigest(repr(tuple(map(int, shape))).encode())


def decode(data: bytes, extension: str) -> np.ndarray:
    """A member's pixels, uint8 [H, W] or [H, W, C]."""
    if extension == "npy":
        return np.load(io.BytesIO(data))
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)

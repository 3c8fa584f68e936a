"""One source image → what a shard holds of it, or the reason why it holds nothing.

Owns decoding, its checks, and the rules for images that are not plain RGB JPEGs:

- A JPEG that is grey or RGB passes byte for byte, unless a smaller size or a quality is asked for.
- Everything else is converted as torchvision's `ImageFolder` does it, to RGB: palettes are looked up, alpha is dropped,
  CMYK is converted, of an animation the first frame is taken. 16-bit grey keeps its upper 8 bits. The result is an npy
  up to 64 px, else a JPEG.
- An exact image (a mask) is a PNG: one that is a PNG passes byte for byte, others keep their pixels; to a smaller size
  it comes by nearest neighbours.
- EXIF orientation is never applied, as in `fastad.pipeline`.
- What does not decode completely, or has more than `LARGEST_PIXELS` pixels, is refused.
Use: `encode(path.read_bytes(), Encoding(resize_px=256)).data`.
"""

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastad.tar import npy_bytes

LARGEST_NPY_PX = 64
LARGEST_PIXELS = 100_000_000

# How the axes of raw pixels may lie, the slowest first.
AXIS_ORDERS = ("hwc", "hcw", "whc", "wch", "chw", "cwh")


@dataclass(frozen=True, slots=True)
class Encoding:
    """What is asked of all images of a set. `resize_px`: short side of images that are larger (bilinear, antialiased);
    `quality`: of JPEGs that are written (1 to 100), None for 95 and no re-encoding of those that need not be."""

    resize_px: int | None = None
    quality: int | None = None


class Encoded(NamedTuple):
    """A member of a shard. `change`: what was done to the source, "" if it passed byte for byte or pixel for pixel."""

    extension: str
    data: bytes
    width: int
    height: int
    content_hash: int
    change: str


class BadImage(Exception):
    """An image that cannot be used; the message is the reason."""


def encode(source: bytes | np.ndarray, encoding: Encoding, *, exact: bool = False) -> Encoded:
    """The member for an encoded image, or for uint8 pixels [H, W, C]; raises `BadImage`."""
    if isinstance(source, np.ndarray):
        return _exact_pixels(source, encoding) if exact else _of_pixels(source, encoding)
    try:
        with Image.open(io.BytesIO(source)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise BadImage(f"{image.width}×{image.height} pixels, more than {LARGEST_PIXELS:,}")
            image.load()
            return _exact(image, source, encoding) if exact else _of_image(image, source, encoding)
    except UnidentifiedImageError:
        raise BadImage("not an image" if source else "empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(str(error) or type(error).__name__) from error


def _of_pixels(pixels: np.ndarray, encoding: Encoding) -> Encoded:
    height, width, channels = pixels.shape
    smaller = encoding.resize_px is not None and min(height, width) > encoding.resize_px
    if not smaller and max(height, width) <= LARGEST_NPY_PX:
        return _npy(pixels, "")
    if channels not in (1, 3):
        raise BadImage(f"{channels} channels: only npy images, up to {LARGEST_NPY_PX} px, may have other than 1 or 3")
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return _written(_resized(image, encoding), encoding, "resized") if smaller else _written(image, encoding, "to JPEG")


def _of_image(image: Image.Image, source: bytes, encoding: Encoding) -> Encoded:
    is_plain = image.format == "JPEG" and image.mode in ("L", "RGB")
    smaller = encoding.resize_px is not None and min(image.size) > encoding.resize_px
    if is_plain and not smaller and encoding.quality is None:
        return Encoded("jpg", source, image.width, image.height, content_hash(np.asarray(image)), "")
    changes = [] if is_plain else [f"{image.format} {image.mode} to RGB"]
    changes += ["resized"] if smaller else []
    plain = image if is_plain else _rgb(image)
    return _written(_resized(plain, encoding) if smaller else plain, encoding, ", ".join(changes) or "re-encoded")


def _exact_pixels(pixels: np.ndarray, encoding: Encoding) -> Encoded:
    if pixels.shape[-1] > 4:
        raise BadImage(f"{pixels.shape[-1]} channels: exact images may have up to 4")
    return _exact(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), b"", encoding)


def _exact(image: Image.Image, source: bytes, encoding: Encoding) -> Encoded:
    smaller = encoding.resize_px is not None and min(image.size) > encoding.resize_px
    if image.format == "PNG" and not smaller:
        return Encoded("png", source, image.width, image.height, content_hash(_pixels(image)), "")
    buffer = io.BytesIO()
    kept = _resized(image, encoding, Image.Resampling.NEAREST) if smaller else image
    kept.save(buffer, "PNG")
    change = "resized" if smaller else f"{image.format or 'array'} to PNG"
    return Encoded("png", buffer.getvalue(), *kept.size, content_hash(_pixels(kept)), change)


def _written(image: Image.Image, encoding: Encoding, change: str) -> Encoded:
    """As npy where that is small, else as a JPEG."""
    if max(image.size) <= LARGEST_NPY_PX:
        pixels = np.asarray(image)
        return _npy(pixels if pixels.ndim == 3 else pixels[..., None], change)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.quality or 95)
    with Image.open(buffer) as stored:
        return Encoded("jpg", buffer.getvalue(), *image.size, content_hash(np.asarray(stored)), change)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _resized(
    image: Image.Image, encoding: Encoding, resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """The long side is cut to a whole number, as torchvision does it."""
    short, wanted = min(image.size), encoding.resize_px or min(image.size)
    width, height = (wanted if side == short else int(side * wanted / short) for side in image.size)
    return image.resize((width, height), resampling)


def _npy(pixels: np.ndarray, change: str) -> Encoded:
    return Encoded("npy", npy_bytes(pixels), pixels.shape[1], pixels.shape[0], content_hash(pixels), change)


def content_hash(pixels: np.ndarray) -> int:
    """64 bits of BLAKE2 over decoded pixels and their shape: equal images have equal hashes in every set and format."""
    digest = _shape_hash(pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)).copy()
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


@functools.lru_cache(maxsize=1024)
def _shape_hash(shape: tuple[int, ...]) -> "hashlib.blake2b":
    return hashlib.blake2b(repr(tuple(map(int, shape))).encode(), digest_size=8)


def decode(data: bytes, extension: str) -> np.ndarray:
    """A member's pixels, [H, W] or [H, W, C]: uint8, but of an exact 16-bit PNG as they are."""
    if extension == "npy":
        return np.load(io.BytesIO(data))
    with Image.open(io.BytesIO(data)) as image:
        return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    """The image's own values, of a palette the indices; black and white are 0 and 255."""
    return np.asarray(image.convert("L") if image.mode == "1" else image)


def arranged(data: np.ndarray, shape_hwc: Sequence[int], order: str) -> np.ndarray:
    """Raw pixels [..., bytes], whose axes lie in `order`, as dense [..., H, W, C]."""
    lying = data.reshape(*data.shape[:-1], *(shape_hwc["hwc".index(axis)] for axis in order))
    leading = data.ndim - 1
    pixels = lying.transpose(*range(leading), *(leading + order.index(axis) for axis in "hwc"))
    if order == "hwc":
        return pixels
    dense = np.empty(pixels.shape, dtype=np.uint8)
    # In one copy, whose innermost axis is as short as the channels, this takes three times as long.
    for channel in range(pixels.shape[-1]):
        dense[..., channel] = pixels[..., channel]
    return dense

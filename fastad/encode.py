"""One source image → what a shard holds of it, or the reason why it holds nothing.

Owns decoding, its checks, and the rules for images that are not plain RGB JPEGs:

- A JPEG that is grey or RGB passes byte for byte, unless a smaller size or a quality is asked for.
- Everything else is converted as torchvision's `ImageFolder` does it, to RGB: palettes are looked up, alpha is dropped,
  CMYK is converted, of an animation the first frame is taken. 16-bit grey keeps its upper 8 bits. The result is an npy
  up to 64 px, else a JPEG.
- An exact image (a mask) is a PNG: one that is a PNG passes byte for byte, others keep their pixels; to a smaller size
  it comes by nearest neighbours.
- EXIF orientation is never applied, as in `fastad.dali`.
- What does not decode completely, or has more than `LARGEST_PIXELS` pixels, is refused.

Plain JPEGs are decoded by libjpeg-turbo itself (simplejpeg), to the same pixels as by Pillow in three quarters of the
time; whatever that refuses or does not know, Pillow judges. PyTorch resizes 8-bit images to within one level of Pillow
in a quarter of its time. Pillow encodes: simplejpeg does so with a coarser transform (README, Development).
Use: `encode(path.read_bytes(), Encoding(resize_px=256)).data`.
"""

import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
import xxhash
from PIL import Image, UnidentifiedImageError

from fastad.tar import npy_bytes

LARGEST_NPY_PX = 64
LARGEST_JPEG_PX = 65_500
LARGEST_PIXELS = 100_000_000
QUALITY = 95

# How the axes of raw pixels may lie, the slowest first.
AXIS_ORDERS = ("hwc", "hcw", "whc", "wch", "chw", "cwh")


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

    @property
    def imports(self) -> list[str]:
        """What takes seconds to import and will be needed."""
        return [] if self.resize_px is None else ["torch"]

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


def encode(source: bytes | np.ndarray, encoding: Encoding, *, exact: bool = False) -> Encoded:
    """The member for an encoded image, or for uint8 pixels [H, W, C]; raises `BadImage`."""
    if exact:
        return _exact(source, encoding)
    if isinstance(source, np.ndarray):
        return _of_array(source, encoding)
    may_pass, header = encoding.quality is None, _jpeg_header(source)
    if may_pass and header and not encoding.checked and not encoding.makes_smaller(header.height, header.width):
        return Encoded("jpg", source, header.width, header.height, 0, "")
    pixels, change = _decoded(source, header)
    height, width, _ = pixels.shape
    if encoding.makes_smaller(height, width):
        return _written(_resized(pixels, encoding), encoding, f"{change}, resized" if change else "resized")
    if may_pass and not change:
        return Encoded("jpg", source, width, height, content_hash(pixels), "")
    return _written(pixels, encoding, change or "re-encoded")


def check(source: bytes) -> None:
    """Decodes an encoded image; raises `BadImage` with the reason where that is not possible."""
    _decoded(source, _jpeg_header(source))


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


class _Header(NamedTuple):
    """What the header of a plain JPEG says; `colours` as simplejpeg names what it is decoded to."""

    height: int
    width: int
    colours: str


# What libjpeg-turbo calls the colours of plain JPEGs, and what they are decoded to.
_PLAIN = {"YCbCr": "RGB", "Gray": "GRAY"}


def _jpeg_header(source: bytes) -> _Header | None:
    """The header of a plain JPEG, None for other files; raises `BadImage` if the image is too large."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(source)
    except ValueError:
        return None
    _refuse_bomb(width, height)
    return _Header(height, width, _PLAIN[colours]) if colours in _PLAIN else None


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS:
        raise BadImage(f"{width}×{height} pixels, more than {LARGEST_PIXELS:,}")


def _decoded(source: bytes, header: _Header | None) -> tuple[np.ndarray, str]:
    """The pixels [H, W, C] of a file as a shard holds them, and the conversion that this took, "" for plain JPEGs."""
    if header:
        try:
            return simplejpeg.decode_jpeg(source, header.colours), ""
        except ValueError:
            pass  # libjpeg-turbo warns of harmless damage too, such as bytes too many: Pillow tells which it is
    with _opened(source) as image:
        is_plain = image.format == "JPEG" and image.mode in ("L", "RGB")
        pixels = np.asarray(image if is_plain else _rgb(image))
        return pixels.reshape(*pixels.shape[:2], -1), "" if is_plain else f"{image.format} {image.mode} to RGB"


@contextmanager
def _opened(source: bytes) -> Iterator[Image.Image]:
    """An image that Pillow has loaded; what goes wrong with it is a `BadImage`."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit of pixels is a little lower.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source))
        with image:
            _refuse_bomb(*image.size)
            image.load()
            yield image
    except UnidentifiedImageError:
        raise BadImage("not an image" if source else "empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    # Pillow would warn of what is meant: transparency is dropped.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _exact(source: bytes | np.ndarray, encoding: Encoding) -> Encoded:
    if isinstance(source, bytes):
        with _opened(source) as image:
            return _as_png(image, source, encoding)
    if source.shape[-1] > 4:
        raise BadImage(f"{source.shape[-1]} channels: exact images may have up to 4")
    return _as_png(Image.fromarray(source[..., 0] if source.shape[-1] == 1 else source), b"", encoding)


def _as_png(image: Image.Image, source: bytes, encoding: Encoding) -> Encoded:
    smaller = encoding.makes_smaller(image.height, image.width)
    if image.format == "PNG" and not smaller:
        return Encoded("png", source, image.width, image.height, content_hash(_pixels(image)), "")
    kept = image.resize(_smaller_size(image.size, encoding), Image.Resampling.NEAREST) if smaller else image
    buffer = io.BytesIO()
    kept.save(buffer, "PNG")
    change = "resized" if smaller else f"{image.format or 'array'} to PNG"
    return Encoded("png", buffer.getvalue(), *kept.size, content_hash(_pixels(kept)), change)


def _resized(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    import torch  # not above: `Encoding.imports`

    size = _smaller_size(pixels.shape[:2], encoding)
    # pixels[None] would have a stride of 0, by which torch does not know the layout as channels_last.
    image = torch.from_numpy(np.require(pixels, requirements="W")).reshape(1, *pixels.shape).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    return smaller.permute(0, 2, 3, 1)[0].contiguous().numpy()


def _smaller_size(sides: Sequence[int], encoding: Encoding) -> tuple[int, int]:
    """Both sides, in their order; the long one is cut to a whole number, as torchvision does it."""
    short = min(sides)
    wanted = encoding.resize_px or short
    one, other = (wanted if side == short else int(side * wanted / short) for side in sides)
    return one, other


def _written(pixels: np.ndarray, encoding: Encoding, change: str) -> Encoded:
    """As npy where that is small, else as a JPEG, whose hash is that of the pixels before they were encoded."""
    height, width, channels = pixels.shape
    if max(height, width) <= LARGEST_NPY_PX:
        return _npy(pixels, change)
    if max(height, width) > LARGEST_JPEG_PX:
        raise BadImage(f"{width}×{height} pixels: a JPEG has up to {LARGEST_JPEG_PX:,} a side")
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
        buffer, "JPEG", quality=encoding.quality or QUALITY
    )
    return Encoded("jpg", buffer.getvalue(), width, height, content_hash(pixels), change)


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

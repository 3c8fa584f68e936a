"""What a shard holds of an image: each kind of file has an answer, and every answer is tested."""

import io
import resource
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from fastad import encode as encode_module
from fastad.encode import BadImage, Encoding, content_hash, decode, encode

PHOTO: np.ndarray = load_sample_image("china.jpg")[100:300, 200:500]
GREY = PHOTO.mean(axis=2).astype(np.uint8)
AS_IT_IS = Encoding()

# Levels, on average: a JPEG of best quality still halves the resolution of colours.
CHROMA_LOSS = 2.5


def file_of(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("pixels", [PHOTO, GREY])
@pytest.mark.parametrize("options", [{}, {"quality": 30, "subsampling": 2}, {"progressive": True}])
def test_jpegs_pass_byte_for_byte(pixels: np.ndarray, options: dict[str, object]) -> None:
    source = file_of(pixels, "JPEG", **options)
    found = encode(source, AS_IT_IS)
    assert (found.data, found.extension, found.change) == (source, "jpg", "")
    assert (found.width, found.height) == (300, 200)
    assert found.content_hash == content_hash(pixels_of(source))
    np.testing.assert_array_equal(decode(found.data, "jpg"), pixels_of(source))


def test_jpegs_no_larger_than_asked_pass_and_larger_ones_are_resized_as_torchvision_does() -> None:
    from torchvision.transforms import v2

    source = file_of(PHOTO, "JPEG", quality=95)
    assert encode(source, Encoding(resize_px=200)).data == source
    found = encode(source, Encoding(resize_px=64, quality=100))
    assert (found.width, found.height, found.change) == (96, 64, "resized")
    expected = v2.functional.resize(Image.fromarray(pixels_of(source)), [64], antialias=True)
    assert np.abs(decode(found.data, "jpg").astype(int) - np.asarray(expected)).mean() < CHROMA_LOSS


def test_a_quality_alone_re_encodes() -> None:
    source = file_of(PHOTO, "JPEG", quality=95)
    found = encode(source, Encoding(quality=40))
    assert found.change == "re-encoded"
    assert len(found.data) < len(source) / 2


KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray, str]] = {
    "png": (lambda: file_of(PHOTO, "PNG"), PHOTO, "PNG RGB to RGB"),
    "webp": (lambda: file_of(PHOTO, "WEBP", lossless=True), PHOTO, "WEBP RGB to RGB"),
    "bmp": (lambda: file_of(PHOTO, "BMP"), PHOTO, "BMP RGB to RGB"),
    "tiff": (lambda: file_of(PHOTO, "TIFF"), PHOTO, "TIFF RGB to RGB"),
    "grey": (lambda: file_of(GREY, "PNG"), np.dstack([GREY] * 3), "PNG L to RGB"),
    "alpha is dropped": (
        lambda: file_of(np.dstack([PHOTO, np.full((200, 300), 7, np.uint8)]), "PNG"),
        PHOTO,
        "PNG RGBA to RGB",
    ),
    "16-bit grey keeps its upper bits": (
        lambda: file_of(Image.fromarray(GREY.astype(np.uint16) * 256 + 99), "PNG"),
        np.dstack([GREY] * 3),
        "PNG I;16 to RGB",
    ),
    "of an animation the first frame": (
        lambda: file_of(PHOTO, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - PHOTO)]),
        PHOTO,
        "WEBP RGB to RGB",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_become_jpegs(kind: str) -> None:
    make, expected, change = KINDS[kind]
    found = encode(make(), Encoding(quality=100))
    assert (found.extension, found.change) == ("jpg", change)
    assert np.abs(decode(found.data, "jpg").astype(int) - expected).mean() < CHROMA_LOSS


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_48_bits(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colour, which Pillow reads but does not write; the lower bits are 77."""
    deep = (pixels.astype(np.uint16) * 256 + 77).astype(">u2")
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in deep))
    chunks = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks)


SMALL, SMALL_GREY = PHOTO[100:140, 100:160], GREY[100:140, 100:160]
SMALL_RGB = np.dstack([SMALL_GREY] * 3)
ALPHA = np.arange(40 * 60).reshape(40, 60).astype(np.uint8)
NEGATIVE = Image.fromarray(255 - SMALL)
DEEP = SMALL_GREY.astype(np.uint16) * 256 + 99
BIG_ENDIAN = Image.frombytes("I;16B", (60, 40), DEEP.astype(">u2").tobytes())
PALETTE = Image.fromarray(SMALL).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
LOOKED_UP = np.array(PALETTE.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(PALETTE)]
BILEVEL = Image.fromarray(SMALL_GREY).convert("1")
BLACK_AND_WHITE = np.dstack([np.asarray(BILEVEL).astype(np.uint8) * 255] * 3)
CMYK = np.dstack([255 - SMALL, np.full_like(SMALL_GREY, 60)])
PRINTED = ((255 - CMYK[..., :3].astype(float)) * (255 - 60) / 255).round()
FRAMES = {"save_all": True, "append_images": [NEGATIVE]}

# Name → format, what is written, options, expected pixels, change.
SMALL_FILES: dict[str, tuple[str, np.ndarray | Image.Image, dict[str, object], np.ndarray, str]] = {
    "png": ("PNG", SMALL, {}, SMALL, "PNG RGB to RGB"),
    "png, bilevel": ("PNG", BILEVEL, {}, BLACK_AND_WHITE, "PNG 1 to RGB"),
    "png, grey": ("PNG", SMALL_GREY, {}, SMALL_RGB, "PNG L to RGB"),
    "png, grey with alpha": ("PNG", np.dstack([SMALL_GREY, ALPHA]), {}, SMALL_RGB, "PNG LA to RGB"),
    "png, alpha": ("PNG", np.dstack([SMALL, ALPHA]), {}, SMALL, "PNG RGBA to RGB"),
    "png, palette": ("PNG", PALETTE, {}, LOOKED_UP, "PNG P to RGB"),
    "png, transparent palette": ("PNG", PALETTE, {"transparency": bytes(range(16))}, LOOKED_UP, "PNG P to RGB"),
    "png, transparent colour": ("PNG", SMALL, {"transparency": (1, 2, 3)}, SMALL, "PNG RGB to RGB"),
    "png, 16-bit grey": ("PNG", DEEP, {}, SMALL_RGB, "PNG I;16 to RGB"),
    "png, animated": ("PNG", SMALL, FRAMES, SMALL, "PNG RGB to RGB"),
    "webp": ("WEBP", SMALL, {"lossless": True}, SMALL, "WEBP RGB to RGB"),
    "webp, alpha": (
        *("WEBP", np.dstack([SMALL, ALPHA]), {"lossless": True, "exact": True}),
        *(SMALL, "WEBP RGBA to RGB"),
    ),
    "webp, animated": ("WEBP", SMALL, FRAMES | {"lossless": True}, SMALL, "WEBP RGB to RGB"),
    "bmp": ("BMP", SMALL, {}, SMALL, "BMP RGB to RGB"),
    "bmp, bilevel": ("BMP", BILEVEL, {}, BLACK_AND_WHITE, "BMP 1 to RGB"),
    "bmp, grey": ("BMP", SMALL_GREY, {}, SMALL_RGB, "BMP L to RGB"),
    "bmp, palette": ("BMP", PALETTE, {}, LOOKED_UP, "BMP P to RGB"),
    "bmp, 32 bits a pixel": ("BMP", np.dstack([SMALL, ALPHA]), {}, SMALL, "BMP RGB to RGB"),
    "tiff": ("TIFF", SMALL, {}, SMALL, "TIFF RGB to RGB"),
    "tiff, bilevel": ("TIFF", BILEVEL, {}, BLACK_AND_WHITE, "TIFF 1 to RGB"),
    "tiff, grey": ("TIFF", SMALL_GREY, {}, SMALL_RGB, "TIFF L to RGB"),
    "tiff, alpha": ("TIFF", np.dstack([SMALL, ALPHA]), {}, SMALL, "TIFF RGBA to RGB"),
    "tiff, palette": ("TIFF", PALETTE, {}, LOOKED_UP, "TIFF P to RGB"),
    "tiff, 16-bit grey": ("TIFF", DEEP, {}, SMALL_RGB, "TIFF I;16 to RGB"),
    "tiff, 16-bit grey of the other byte order": ("TIFF", BIG_ENDIAN, {}, SMALL_RGB, "TIFF I;16B to RGB"),
    "tiff, cmyk": ("TIFF", Image.frombytes("CMYK", (60, 40), CMYK.tobytes()), {}, PRINTED, "TIFF CMYK to RGB"),
    "tiff, many pages": ("TIFF", SMALL, FRAMES, SMALL, "TIFF RGB to RGB"),
    "gif, grey": ("GIF", ALPHA, {}, np.dstack([ALPHA] * 3), "GIF L to RGB"),
    "gif, palette": ("GIF", PALETTE, {}, LOOKED_UP, "GIF P to RGB"),
    "gif, transparent palette": ("GIF", PALETTE, {"transparency": 3}, LOOKED_UP, "GIF P to RGB"),
    "gif, animated": ("GIF", PALETTE, FRAMES, LOOKED_UP, "GIF P to RGB"),
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_small_files_become_exact_arrays(kind: str) -> None:
    form, pixels, options, expected, change = SMALL_FILES[kind]
    found = encode(file_of(pixels, form, **options), AS_IT_IS)
    assert (found.extension, found.change) == ("npy", change)
    # Pillow's product of ink and black is a level off the formula at most.
    np.testing.assert_allclose(decode(found.data, "npy"), expected, rtol=0, atol=1 if "CMYK" in change else 0)


def test_16_bit_colours_keep_their_upper_bits() -> None:
    found = encode(png_of_48_bits(SMALL), AS_IT_IS)
    np.testing.assert_array_equal(decode(found.data, "npy"), SMALL)


def test_of_a_jpeg_of_several_pictures_the_first_is_taken() -> None:
    source = file_of(PHOTO, "MPO", save_all=True, append_images=[Image.fromarray(255 - PHOTO)])
    found = encode(source, AS_IT_IS)
    # To every decoder of JPEGs it is one, whose first picture is all there is.
    assert (found.data, found.change) == (source, "")
    assert np.abs(decode(found.data, "jpg").astype(int) - PHOTO).mean() < 8


SIDE = 60_000


def bomb(form: str) -> bytes:
    """A small file whose header promises 3.6 thousand million pixels (WebP: as many as it can)."""
    data = bytearray(file_of(SMALL, form, **({"lossless": True} if form == "WEBP" else {})))
    match form:
        case "JPEG":
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = struct.pack(">HH", SIDE, SIDE)
        case "PNG":
            data[8:33] = png_chunk(b"IHDR", struct.pack(">II", SIDE, SIDE) + data[24:29])
        case "WEBP":
            (bits,) = struct.unpack("<I", data[21:25])
            data[21:25] = struct.pack("<I", bits | (1 << 28) - 1)
        case "BMP":
            data[18:26] = struct.pack("<ii", SIDE, SIDE)
        case "GIF":
            data[6:10] = struct.pack("<HH", SIDE, SIDE)
        case "TIFF":
            (directory,) = struct.unpack("<I", data[4:8])
            (count,) = struct.unpack("<H", data[directory : directory + 2])
            for at in range(directory + 2, directory + 2 + 12 * count, 12):
                if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):
                    data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, SIDE)
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_bombs_are_refused_before_they_are_decoded(form: str) -> None:
    pixels = 2**28 if form == "WEBP" else SIDE**2
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match=rf"{pixels} pixels\) exceeds limit|60000×60000 pixels, more than"):
        encode(bomb(form), AS_IT_IS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100_000


def test_palettes_are_looked_up() -> None:
    image = Image.fromarray(PHOTO).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    found = encode(file_of(image, "PNG"), Encoding(quality=100))
    assert found.change == "PNG P to RGB"
    assert np.abs(decode(found.data, "jpg").astype(int) - np.asarray(image.convert("RGB"))).mean() < 3


def test_cmyk_jpegs_become_rgb() -> None:
    source = file_of(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)
    found = encode(source, AS_IT_IS)
    assert found.change == "JPEG CMYK to RGB"
    assert decode(found.data, "jpg").shape == (200, 300, 3)
    assert np.abs(decode(found.data, "jpg").astype(int) - PHOTO).mean() < 8


def test_exif_orientation_is_never_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = file_of(PHOTO, "JPEG", exif=exif)
    assert encode(turned, AS_IT_IS).data == turned
    assert (encode(turned, Encoding(resize_px=100)).width, encode(turned, AS_IT_IS).width) == (150, 300)


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Possibly corrupt EXIF data")
@pytest.mark.parametrize("cut", [100, 2_000, -200])
def test_truncated_files_are_refused(cut: int) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        with pytest.raises(BadImage):
            encode(file_of(PHOTO, kind)[:cut], AS_IT_IS)


def test_what_is_no_image_and_what_is_too_large_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage, match="not an image"):
        encode(b"<html>404</html>", AS_IT_IS)
    with pytest.raises(BadImage, match="empty"):
        encode(b"", AS_IT_IS)
    monkeypatch.setattr(encode_module, "LARGEST_PIXELS", 50_000)
    with pytest.raises(BadImage, match="300×200 pixels, more than 50,000"):
        encode(file_of(PHOTO, "PNG"), AS_IT_IS)


def test_what_no_jpeg_holds_is_refused() -> None:
    with pytest.raises(BadImage, match="65600×1 pixels: a JPEG has up to 65,500 a side"):
        encode(np.zeros((1, 65_600, 3), dtype=np.uint8), Encoding())


def test_arrays_stay_exact_up_to_64_px_and_become_jpegs_beyond() -> None:
    small = PHOTO[:64, :50]
    np.testing.assert_array_equal(decode(encode(small, AS_IT_IS).data, "npy"), small)
    assert encode(PHOTO, AS_IT_IS).extension == "jpg"
    resized = encode(PHOTO, Encoding(resize_px=32))
    assert (resized.extension, resized.width, resized.height) == ("npy", 48, 32)
    five = np.zeros((20, 20, 5), np.uint8)
    assert decode(encode(five, AS_IT_IS).data, "npy").shape == (20, 20, 5)
    with pytest.raises(BadImage, match="5 channels"):
        encode(np.zeros((80, 80, 5), np.uint8), AS_IT_IS)


def test_content_hashes_tell_pixels_and_shapes_but_not_formats_apart() -> None:
    png, array = encode(file_of(PHOTO[:40, :40], "PNG"), AS_IT_IS), encode(PHOTO[:40, :40], AS_IT_IS)
    assert png.content_hash == array.content_hash
    assert content_hash(np.zeros((2, 8), np.uint8)) != content_hash(np.zeros((4, 4), np.uint8))
    assert content_hash(np.zeros((4, 4), np.uint8)) == content_hash(np.zeros((4, 4, 1), np.uint8))


def test_unchecked_jpegs_pass_by_their_header_and_are_not_hashed() -> None:
    source, unchecked = file_of(PHOTO, "JPEG"), Encoding(checked=False)
    for whole in (source, source[:-3_000]):
        found = encode(whole, unchecked)
        assert (found.data, found.width, found.height, found.content_hash) == (whole, 300, 200, 0)
    # What is changed, or is no plain JPEG, is decoded all the same.
    assert encode(source, Encoding(resize_px=100, checked=False)).content_hash
    assert encode(file_of(PHOTO, "PNG"), unchecked).content_hash
    with pytest.raises(BadImage, match="not an image"):
        encode(b"<html>404</html>", unchecked)


def test_what_libjpeg_turbo_warns_of_and_pillow_reads_is_kept() -> None:
    source = file_of(PHOTO, "JPEG")
    odd = source[:5_000] + b"\xff\x00\x11" + source[5_000:]
    assert encode(odd, AS_IT_IS).data == odd


def test_a_large_photograph_below_the_limit_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    assert encode(file_of(PHOTO, "PNG"), AS_IT_IS).width == 300


MASK = np.where(GREY > 128, 255, 0).astype(np.uint8)


def test_exact_images_that_are_pngs_pass_byte_for_byte() -> None:
    palette = Image.fromarray(PHOTO).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    indices = np.asarray(palette)
    deep = GREY.astype(np.uint16) * 256 + 99
    for image, expected in (
        (MASK, MASK),
        (MASK[:20, :30], MASK[:20, :30]),
        (PHOTO, PHOTO),
        (palette, indices),
        (Image.fromarray(MASK).convert("1", dither=Image.Dither.NONE), MASK),
        (Image.fromarray(deep), deep),
    ):
        source = file_of(image, "PNG")
        found = encode(source, Encoding(quality=50), exact=True)
        assert (found.extension, found.data, found.change) == ("png", source, "")
        assert (found.height, found.width) == expected.shape[:2]
        np.testing.assert_array_equal(decode(found.data, "png"), expected)
        assert found.content_hash == content_hash(decode(found.data, "png"))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "JPEG"])
def test_other_exact_images_keep_their_pixels(kind: str) -> None:
    source = file_of(MASK, kind)
    found = encode(source, AS_IT_IS, exact=True)
    assert (found.extension, found.change) == ("png", f"{kind} to PNG")
    np.testing.assert_array_equal(decode(found.data, "png"), pixels_of(source))
    assert found.content_hash == content_hash(pixels_of(source))


def test_exact_images_get_the_size_of_their_photograph_and_no_new_values() -> None:
    photo = encode(file_of(PHOTO, "PNG"), Encoding(resize_px=77))
    for source in (file_of(MASK, "PNG"), MASK[..., None]):
        mask = encode(source, Encoding(resize_px=77), exact=True)
        assert (mask.extension, mask.change) == ("png", "resized")
        assert (mask.width, mask.height) == (photo.width, photo.height)
        assert set(np.unique(decode(mask.data, "png"))) == {0, 255}
        assert mask.content_hash == content_hash(decode(mask.data, "png"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_exact_arrays_become_pngs(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, channels), dtype=np.uint8)
    found = encode(pixels, AS_IT_IS, exact=True)
    assert (found.extension, found.change) == ("png", "array to PNG")
    np.testing.assert_array_equal(decode(found.data, "png").reshape(pixels.shape), pixels)


def test_what_no_png_holds_is_refused_as_exact() -> None:
    with pytest.raises(BadImage, match="5 channels: exact images may have up to 4"):
        encode(np.zeros((9, 9, 5), np.uint8), AS_IT_IS, exact=True)
    with pytest.raises(BadImage, match="cannot write mode CMYK as PNG"):
        encode(file_of(Image.fromarray(PHOTO).convert("CMYK"), "TIFF"), AS_IT_IS, exact=True)
    with pytest.raises(BadImage):
        encode(file_of(MASK, "PNG")[:-200], AS_IT_IS, exact=True)

"""What a shard holds of an image: each kind of file has an answer, and every answer is tested."""

import io
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
def test_other_files_become_jpegs_or_where_they_are_small_exact_arrays(kind: str) -> None:
    make, expected, change = KINDS[kind]
    found = encode(make(), Encoding(quality=100))
    assert (found.extension, found.change) == ("jpg", change)
    assert np.abs(decode(found.data, "jpg").astype(int) - expected).mean() < CHROMA_LOSS
    with Image.open(io.BytesIO(make())) as image:
        small = image.crop((0, 0, 60, 40))
    exact = encode(file_of(small, image.format or ""), AS_IT_IS) if "anim" not in kind else None
    if exact is not None and kind != "webp":
        assert exact.extension == "npy"
        np.testing.assert_array_equal(decode(exact.data, "npy"), expected[:40, :60])


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


@pytest.mark.parametrize("cut", [100, 2_000, -200])
def test_truncated_files_are_refused(cut: int) -> None:
    for kind in ("JPEG", "PNG"):
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

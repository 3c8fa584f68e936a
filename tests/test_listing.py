"""Listing: what converters may say and yield, keys that stand twice, and notices of what was not published so."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastad import text_column
from fastad.errors import FastadError
from fastad.listing import Converter, Listing, list_samples
from fastad.manifest import PixelRange, Sample

COUNTS = {
    "first": {"train": 4, "test": 2},
    "second": {"train": 3, "test": 2},
}


def plain(keys: list[str], /) -> Iterator[Sample]:
    for key in keys:
        yield Sample(key, np.zeros((2, 2), np.uint8), None, "train")


def listed(samples: object, folder: Path, **arguments: object) -> Listing:
    converter = Converter("some", samples, "tests", "CC0", None, "", **arguments)  # type: ignore[arg-type]
    return list_samples(converter, None, {}, folder)


@pytest.mark.parametrize("colliding", [False, True])
def test_a_key_that_stands_twice_is_named_wherever_it_stands(
    colliding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_column, "_CHUNK", 7)
    if colliding:
        monkeypatch.setattr(text_column, "_hashes", lambda keys: np.full(len(keys), 5, dtype=np.uint64))
    keys = [f"key-{index}" for index in range(30)] + ["x" * 90, "x" * 89]
    found = listed(partial(plain, keys), tmp_path)
    assert found.key.tolist() == [key.encode() for key in keys]
    for twice in ("key-3", "key-29", "x" * 90):
        with pytest.raises(FastadError, match=f"yields two samples of one key, {twice}: keys must be unique"):
            listed(partial(plain, [*keys, twice]), tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("hwc", (4, 4, 3), 953), r"sample raw is 48 bytes at 953 of .*file, which has 1,000: fetch that file again"),
        (("hwc", (4, 4, 3), -1), r"sample raw is 48 bytes at -1 of"),
        (("wh", (4, 4, 3), 0), r"raw pixels of shape \(4, 4, 3\) in order 'wh': give \[H, W, C\] and one of hwc, "),
        (("hwc", (4, 0, 3), 0), r"raw pixels of shape \(4, 0, 3\)"),
        (("hwc", (4, 4), 0), r"raw pixels of shape \(4, 4\)"),
    ],
)
def test_raw_pixels_must_lie_in_their_file(place: tuple, message: str, tmp_path: Path) -> None:
    order, shape, offset = place
    (tmp_path / "file").write_bytes(bytes(1000))
    with pytest.raises(FastadError, match=message):
        listed(
            lambda: iter([Sample("raw", PixelRange(tmp_path / "file", offset, shape, order), None, "train")]), tmp_path
        )


def counted(train: int) -> Iterator[Sample]:
    for split, count in (("train", train), ("test", 2)):
        for index in range(count):
            yield Sample(f"{split}-{index}", np.zeros((2, 2), np.uint8), None, split)


def test_other_counts_than_the_published_are_noted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for train in (3, 4):
        assert listed(partial(counted, train), tmp_path, published_counts=COUNTS).notices == ()
    (notice,) = listed(partial(counted, 5), tmp_path, published_counts=COUNTS).notices
    assert notice == (
        "its counts are not the published ones: here 5 train and 2 test images; "
        "published 4 train and 2 test (first) or 3 train and 2 test (second)"
    )
    assert f"note: {notice}" in capsys.readouterr().err


def test_an_option_chooses_what_must_be_whole_and_a_limit_is_named(tmp_path: Path) -> None:
    def samples(*, split: str = "first", limit: int = 4) -> Iterator[Sample]:
        yield from counted(limit)

    converter = Converter("some", samples, "tests", "CC0", None, "", published_counts=COUNTS)
    assert list_samples(converter, None, {}, tmp_path).notices == ()
    (notice,) = list_samples(converter, None, {"split": "second"}, tmp_path).notices
    assert notice == (
        "its counts are not the published ones: here 4 train and 2 test images; published 3 train and 2 test (second)"
    )
    (notice,) = list_samples(converter, None, {"limit": 3}, tmp_path).notices
    assert "3 train and 2 test images, by --limit 3; published 4 train and 2 test (first)" in notice


def test_a_converters_own_notice_comes_first(tmp_path: Path) -> None:
    found = listed(partial(counted, 1), tmp_path, notice="withdrawn", published_counts=COUNTS)
    assert found.notices[0] == "withdrawn"
    assert len(found.notices) == 2

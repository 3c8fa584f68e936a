"""Sets in place: equal to converted ones, read by DALI where they lie, and watched for changes of the source's file."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rewrite_column

from fastad import in_place, shard
from fastad.augment import AugmentSpec
from fastad.encode import AXIS_ORDERS, Encoding, arranged
from fastad.errors import FastadError
from fastad.inspect import facts, grid
from fastad.listing import Converter
from fastad.manifest import FileRange, Manifest, PixelRange, Sample, open_set
from fastad.pipeline import Source, evaluation_batches
from fastad.reader import ShardReader
from fastad.shard import Part, convert, convert_with
from fastad.verify import verify
from fastad_tools import tinyimages

COUNT = 90
APART = (3, 40, 41)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first images of a `tiny_images.bin`, three of which stand in CIFAR; hashed in five chunks."""
    monkeypatch.setattr(tinyimages, "cifar_lookalikes", lambda: np.array(APART))
    monkeypatch.setattr(in_place, "CHUNK_ROWS", 20)
    (tmp_path / "raw").mkdir()
    data = np.random.default_rng(0).integers(0, 256, COUNT * 3072, dtype=np.uint8)
    (tmp_path / "raw" / "tiny_images.bin").write_bytes(data.tobytes())
    return tmp_path / "raw" / "tiny_images.bin"


def done(manifest: Manifest | None) -> Manifest:
    assert manifest is not None
    return manifest


def linked(raw: Path, home: Path, workers: int = 1) -> Manifest:
    return done(convert("tinyimages", raw, home, in_place=True, workers=workers))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_key(manifest: Manifest, split: str) -> np.ndarray:
    rows = np.asarray(manifest.split_rows(split))
    return rows[np.argsort(manifest.key[rows])]


def test_a_set_in_place_is_the_converted_one_row_by_key(raw: Path, tmp_path: Path, cpu: torch.device) -> None:
    converted = done(convert("tinyimages", raw, tmp_path / "converted", workers=1))
    placed = linked(raw, tmp_path / "placed")
    assert placed.shape_hwc == converted.shape_hwc == (32, 32, 3)
    assert {split: len(rows) for split, rows in placed.splits.items()} == {"train": COUNT - 3, "lookalikes": 3}
    for split in placed.splits:
        here, there = by_key(placed, split), by_key(converted, split)
        assert placed.key[here].tolist() == converted.key[there].tolist()
        for name in ("content_hash", "class_index", "width", "height", "source_index"):
            np.testing.assert_array_equal(getattr(placed, name)[here], getattr(converted, name)[there])
        for transpose in (False, True):
            one, other = (ShardReader(manifest, transpose=transpose) for manifest in (placed, converted))
            np.testing.assert_array_equal(one.pixels(here), other.pixels(there))
        np.testing.assert_array_equal(
            [ShardReader(placed).image(row) for row in here], [ShardReader(converted).image(row) for row in there]
        )
        target = np.zeros(len(here), np.float32)
        batches = [
            next(evaluation_batches(Source(ShardReader(manifest)), rows, target, AugmentSpec(), cpu))
            for manifest, rows in ((placed, here), (converted, there))
        ]
        assert torch.equal(batches[0].images, batches[1].images)
    fortran = raw.read_bytes()[5 * 3072 : 6 * 3072]
    np.testing.assert_array_equal(
        ShardReader(placed).image(placed.key.tolist().index(b"train-00000005")),
        np.frombuffer(fortran, np.uint8).reshape(32, 32, 3, order="F"),
    )


def test_nothing_is_copied_and_rows_stand_in_the_sources_order(raw: Path, tmp_path: Path) -> None:
    folder = linked(raw, tmp_path / "home").folder
    for name, count in (("train-00000", COUNT - 3), ("lookalikes-00000", 3)):
        assert (folder / f"{name}.bin").readlink() == raw
        lines = (folder / f"{name}.idx").read_text().splitlines()
        assert lines[0] == f"v1.1 {count}"
        assert lines[1:] == sorted(lines[1:], key=lambda line: int(line.split()[1]))
    assert (folder / "lookalikes-00000.idx").read_text().splitlines()[1:] == [f"bin {i * 3072} 3072" for i in APART]
    assert not (folder / ".partial").exists()


@pytest.mark.parametrize("level", ["size", "hash", "decode"])
def test_it_verifies_and_can_be_inspected(level: str, raw: Path, tmp_path: Path) -> None:
    manifest = linked(raw, tmp_path)
    assert len(verify(manifest.folder, level).key) == COUNT
    found = facts(manifest)
    assert (found["bytes"], found["shards"], found["duplicates"]) == (COUNT * 3072, 2, 0)
    assert grid(manifest).width > 300


def test_dalis_webdataset_reader_finds_images_in_place_by_the_index(raw: Path, tmp_path: Path) -> None:
    """DALI documents no such thing: with an index it looks at no tar header, and reads in the index's order."""
    from nvidia.dali import fn, pipeline_def

    manifest = linked(raw, tmp_path / "home")
    mine = tmp_path / "mine.idx"
    mine.write_text("v1.1 3\n" + "".join(f"bin {index * 3072} 3072\n" for index in (80, 2, 80)))

    @pipeline_def(batch_size=COUNT, num_threads=1, device_id=None)
    def read(index: Path):  # type: ignore[no-untyped-def]
        paths = [str(manifest.folder / "train-00000.bin")]
        data = fn.readers.webdataset(paths=paths, index_paths=[str(index)], ext=["bin"])
        return fn.transpose(fn.reshape(data, shape=[3, 32, 32]), perm=[2, 1, 0])

    (whole,) = read(manifest.folder / "train-00000.idx").run()
    rows = np.asarray(manifest.split_rows("train"))
    expected = ShardReader(manifest).pixels(rows)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in whole])[: len(rows)], expected)
    (chosen,) = read(mine).run()
    images = np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, 3, 32, 32).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in chosen])[:3], images[[80, 2, 80]])


def test_a_source_that_changed_or_vanished_is_said_at_opening(raw: Path, tmp_path: Path) -> None:
    manifest = linked(raw, tmp_path / "home")
    whole = raw.read_bytes()
    raw.write_bytes(whole[:-3072])
    with pytest.raises(
        FastadError, match=r"bin, a link to .*tiny_images\.bin, has changed: 273408 bytes, the manifest"
    ):
        open_set(manifest.folder)
    raw.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    later = (manifest.folder / "manifest.json").stat().st_mtime_ns + 10**9
    os.utime(raw, ns=(later, later))
    with pytest.raises(FastadError, match=r"a link to .*tiny_images\.bin, has changed: its SHA-256"):
        open_set(manifest.folder)
    raw.unlink()
    with pytest.raises(FastadError, match=r"train-00000\.bin, a link to .*tiny_images\.bin, is missing: restore it"):
        open_set(manifest.folder)


def test_a_file_with_two_links_is_hashed_once(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastad import manifest as manifest_module

    folder, hashed, real = linked(raw, tmp_path).folder, [], manifest_module.sha256
    monkeypatch.setattr(manifest_module, "sha256", lambda path: (hashed.append(path.name), real(path))[1])
    verify(folder, "hash")
    assert len(hashed) == 1


def test_verify_finds_an_image_that_columns_misplace(raw: Path, tmp_path: Path) -> None:
    folder = linked(raw, tmp_path).folder
    rewrite_column(folder, "content_hash", np.roll(np.load(folder / "samples" / "content_hash.npy"), 1))
    verify(folder, "hash")
    with pytest.raises(FastadError, match=r"where the manifest says train-00000000: convert again"):
        verify(folder, "decode")


def test_an_interrupted_conversion_continues_to_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(linked(raw, tmp_path / "whole", workers=2).folder)
    real, hashed = in_place.content_hash, []

    def stop_in_the_third_chunk(pixels: np.ndarray) -> int:
        if len(hashed) == 45:
            raise KeyboardInterrupt
        hashed.append(pixels)
        return real(pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(in_place, "content_hash", stop_in_the_third_chunk)
        linked(raw, tmp_path / "home")
    folder = tmp_path / "home" / "tinyimages"
    assert [path.name for path in folder.iterdir()] == [".partial"]
    hashed.clear()
    monkeypatch.setattr(in_place, "content_hash", lambda pixels: (hashed.append(pixels), real(pixels))[1])
    assert contents(linked(raw, tmp_path / "home").folder) == whole
    assert len(hashed) == COUNT - 40


def test_a_folder_is_held_to_one_way(raw: Path, tmp_path: Path) -> None:
    linked(raw, tmp_path)
    with pytest.raises(
        FastadError, match="is a conversion with in_place = True, now it is False: choose another --out"
    ):
        convert("tinyimages", raw, tmp_path, workers=1)
    with pytest.raises(FastadError, match="is a conversion with limit = None, now it is 9: choose another --out"):
        convert("tinyimages", raw, tmp_path, in_place=True, options={"limit": 9}, workers=1)
    done(convert("tinyimages", raw, tmp_path / "other", workers=1))
    with pytest.raises(
        FastadError, match="is a conversion with in_place = False, now it is True: choose another --out"
    ):
        linked(raw, tmp_path / "other")


def several(folder: Path, order: str, shape_hwc: tuple[int, int, int]) -> Iterator[Sample]:
    """Images of 512 bytes in three files, of two splits and classes."""
    for number in range(3):
        data = np.random.default_rng(number).integers(0, 256, 4 * 512, dtype=np.uint8)
        path = folder / f"{number}.raw"
        if not path.exists():
            path.write_bytes(data.tobytes())
        for index in range(4):
            place = PixelRange(path, index * 512, shape_hwc, order)
            yield Sample(f"{number}-{index}", place, "xy"[index % 2], "test" if index == 3 else "train")


@pytest.mark.parametrize("order", AXIS_ORDERS)
def test_several_files_are_several_shards_in_any_order_of_axes(order: str, tmp_path: Path) -> None:
    shape = (8, 16, 4)
    converter = Converter("several", lambda: several(tmp_path, order, shape), "tests", "CC0", None, "")
    placed = done(convert_with(converter, None, tmp_path / "placed", in_place=True, workers=2))
    converted = done(convert_with(converter, None, tmp_path / "converted", workers=1))
    assert [shard.name for shard in placed.shards] == [f"{s}-0000{n}.bin" for s in ("train", "test") for n in range(3)]
    assert len(verify(placed.folder, "decode").key) == 12
    for split in ("train", "test"):
        here, there = by_key(placed, split), by_key(converted, split)
        np.testing.assert_array_equal(ShardReader(placed).pixels(here), ShardReader(converted).pixels(there))
        np.testing.assert_array_equal(placed.class_index[here], converted.class_index[there])
    image = ShardReader(placed).image(0)
    lying = np.frombuffer((tmp_path / "0.raw").read_bytes()[:512], np.uint8)
    sizes = dict(zip("hwc", shape, strict=True))
    for h, w, c in ((0, 0, 0), (7, 3, 2), (2, 15, 3)):
        place = dict(zip("hwc", (h, w, c), strict=True))
        at = 0
        for axis in order:
            at = at * sizes[axis] + place[axis]
        assert image[h, w, c] == lying[at]
    np.testing.assert_array_equal(arranged(lying, shape, order), image)
    assert image.flags.c_contiguous


def unfit(case: str, folder: Path) -> Iterator[Sample]:
    path = folder / "file"
    path.write_bytes(bytes(4096))
    image = PixelRange(path, 512, (8, 8, 4))
    yield Sample("first", image, None, "train")
    yield {
        "array": Sample("second", np.zeros((8, 8, 4), np.uint8), None, "train"),
        "encoded": Sample("second", FileRange(path, 0, 100), None, "train"),
        "file": Sample("second", path, None, "train"),
        "shape": Sample("second", PixelRange(path, 512, (4, 8, 4)), None, "train"),
        "order": Sample("second", PixelRange(path, 512, (8, 8, 4), "chw"), None, "train"),
        "offset": Sample("second", PixelRange(path, 600, (8, 8, 4)), None, "train"),
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        *((case, "sample second is not raw pixels in a file") for case in ("array", "encoded", "file")),
        *((case, "its images are not of one shape and order") for case in ("shape", "order")),
        ("offset", r"file has an image at byte 600, and DALI reads from multiples of 512 only"),
    ],
)
def test_what_cannot_stay_in_place_is_one_line(case: str, message: str, tmp_path: Path) -> None:
    converter = Converter("unfit", lambda: unfit(case, tmp_path), "tests", "CC0", None, "")
    with pytest.raises(FastadError, match=rf"unfit cannot stay in place: .*{message}.*; leave out --in-place"):
        convert_with(converter, None, tmp_path / "home", in_place=True)
    assert not list((tmp_path / "home").iterdir())


def test_images_in_place_are_left_as_they_are_by_one_process(raw: Path, tmp_path: Path) -> None:
    for arguments in ({"encoding": Encoding(16)}, {"encoding": Encoding(quality=9)}, {"part": Part(1, 2)}):
        with pytest.raises(FastadError, match="leave out --resize, --quality, --part and --ray"):
            convert("tinyimages", raw, tmp_path / "home", in_place=True, **arguments)
    assert not (tmp_path / "home").exists()


def test_a_file_that_shrinks_while_it_is_read_is_said(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shard.hash_in_place

    def shrunk(*arguments: object) -> object:
        os.truncate(raw, 3072)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "hash_in_place", shrunk)
    with pytest.raises(FastadError, match=r"tiny_images\.bin cannot be read to its end: restore it"):
        linked(raw, tmp_path / "home")
    assert not (tmp_path / "home" / "tinyimages" / "manifest.json").exists()

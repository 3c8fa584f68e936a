"""Conversions of encoded images: real photographs as files and as ranges of a tar, good and bad, in parts."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import write_converter
from PIL import Image
from sklearn.datasets import load_sample_images

from fastad import shard, write
from fastad.encode import Encoding
from fastad.errors import FastadError
from fastad.inspect import facts, grid, summary
from fastad.listing import Converter
from fastad.manifest import FileRange, Manifest, Sample, open_set
from fastad.reader import ShardReader
from fastad.shard import Part, convert
from fastad.verify import verify
from fastad.view import View, select
from fastad.write import Job, write_shard

COUNT = 40


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Crops of scikit-learn's two photographs: 40 JPEGs of different sizes in two folders."""
    raw = tmp_path / "raw"
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (raw / name).mkdir(parents=True)
        for index in range(COUNT // 2):
            height, width = rng.integers(70, 200, size=2)
            top, left = rng.integers(0, 200, size=2)
            crop = Image.fromarray(photo[top : top + height, left : left + width])
            crop.save(raw / name / f"{index:02d}.jpg", quality=90)
    return raw


@pytest.fixture(autouse=True)
def photo_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(raw: Path, *, limit: int = COUNT) -> object:
        for index, path in enumerate(sorted(raw.glob("*/*"))):
            if index < limit:
                yield Sample(f"{path.parent.name}/{path.stem}", path, path.parent.name, "train")

    converter = Converter("photos", samples, "tests", "CC0", None, "Photographs.")  # type: ignore[arg-type]
    monkeypatch.setattr(shard, "find_converter", lambda name: converter)
    monkeypatch.setattr(shard, "SHARD_SAMPLES", 8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def done(manifest: Manifest | None) -> Manifest:
    assert manifest is not None
    return manifest


def test_the_bytes_are_the_same_however_many_samples_are_written_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "china" / "03.jpg").write_bytes(b"no image")
    at_once = convert("photos", photos, tmp_path / "a", workers=1, max_bad=0.1)
    monkeypatch.setattr(write, "_CHUNK_BYTES", 1)
    one_by_one = convert("photos", photos, tmp_path / "b", workers=1, max_bad=0.1)
    assert contents(done(one_by_one).folder) == contents(done(at_once).folder)


def test_leaving_the_hash_out_leaves_all_else_as_it_is(photos: Path, tmp_path: Path) -> None:
    hashed = done(convert("photos", photos, tmp_path / "a", workers=1)).folder
    unhashed = done(convert("photos", photos, tmp_path / "b", workers=1, hashed=False))
    assert {shard.sha256 for shard in unhashed.shards} == {""}
    different = {name for name, data in contents(hashed).items() if contents(unhashed.folder)[name] != data}
    assert different <= {"manifest.json", "README.md"}
    with pytest.raises(FastadError, match="choose another --out"):
        convert("photos", photos, tmp_path / "a", workers=1, hashed=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
def test_jpegs_pass_byte_for_byte_and_decode_through_webdataset(photos: Path, tmp_path: Path) -> None:
    manifest = done(convert("photos", photos, tmp_path, workers=1))
    tars = sorted(map(str, manifest.folder.glob("*.tar")))
    assert len(tars) == 5
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        assert sample["jpg"] == (photos / f"{sample['__key__']}.jpg").read_bytes()
        assert manifest.classes[int(sample["cls"])] == sample["__key__"].split("/")[0]
    decoded = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert len(decoded) == COUNT
    for sample in decoded:
        with Image.open(photos / f"{sample['__key__']}.jpg") as source:
            np.testing.assert_array_equal(np.asarray(sample["jpg"]), np.asarray(source))
    assert len(verify(manifest.folder, "decode").key) == COUNT
    for row in range(COUNT):
        image = ShardReader(manifest).image(row)
        assert image.shape == (manifest.height[row], manifest.width[row], 3)
    with pytest.raises(FastadError, match="holds JPEGs or images of several sizes"):
        _ = manifest.shape_hwc


# webdataset's reader leaves its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_reads_jpegs_and_arrays(
    streaming: bool, photos: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    for manifest in (done(convert("photos", photos, tmp_path, workers=1)), open_set(home / "blobs")):
        tars = sorted(map(str, manifest.folder.glob("train-*.tar")))
        found = load_dataset(
            "webdataset", data_files={"train": tars}, split="train", streaming=streaming, cache_dir=tmp_path / "cache"
        )
        rows = manifest.split_rows("train")
        reader = ShardReader(manifest)
        for row, sample in zip(rows, found, strict=True):
            assert sample["__key__"] == manifest.key[row].decode()
            assert sample["cls"] == manifest.class_index[row]
            pixels = np.asarray(sample["jpg"] if "jpg" in sample else sample["npy"])
            np.testing.assert_array_equal(pixels, reader.image(row))


def test_inspect_shows_sizes_and_duplicates(photos: Path, tmp_path: Path) -> None:
    (photos / "china" / "copy.jpg").write_bytes((photos / "china" / "00.jpg").read_bytes())
    manifest = done(convert("photos", photos, tmp_path, options={"limit": 41}, workers=1))
    found = facts(manifest)
    assert found["duplicates"] == 1
    assert found["classes"]["train"] == {"china": 21, "flower": 20}
    low, high = found["width_px"]
    assert 70 <= low < high < 200
    assert grid(manifest).width > 500


def test_inspect_names_what_was_left_out_and_what_also_stands_in_another_set(photos: Path, tmp_path: Path) -> None:
    first = done(convert("photos", photos, tmp_path / "first", options={"limit": 25}, workers=1))
    spoil(photos)
    second = done(convert("photos", photos, tmp_path / "second", max_bad=0.1, workers=1))
    assert facts(second)["duplicates_in"] == {}
    # The first set holds 25 of the 40, of which one was spoilt since.
    assert facts(second, first)["duplicates_in"] == {"photos": {"train": {"train": 24}}}
    text = summary(second, first)
    for line in ("2 left out as unusable, 0 duplicates", "  china/05: empty", "  flower/07: image file is truncated"):
        assert line in text
    assert "train: 38 images\n  24 stand, pixel for pixel, in photos's train\n  china: 19\n  flower: 19" in text
    many = replace(second, facts=second.facts | {"rejects": [{"key": f"{n}", "reason": "empty"} for n in range(25)]})
    assert "  19: empty\n  …\n" in summary(many) and "20: empty" not in summary(many)


def test_inspect_counts_the_synsets_of_each_list(photos: Path, tmp_path: Path) -> None:
    photographs = done(convert("photos", photos, tmp_path, workers=1))
    assert facts(photographs)["synsets"] == {}
    # Tench and acorn.
    ours = replace(photographs, classes=("n01440764", "n12267677"))
    assert facts(ours)["synsets"] == {
        "imagenet30": {"listed": 30, "held": 1, "images": 20},
        "imagenet1k": {"listed": 1_000, "held": 2, "images": 40},
    }
    assert "holds 2 of the 1,000 synsets of imagenet1k: 40 images" in summary(ours)


def test_a_range_of_a_tar_is_read_in_place(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as tar:
        for path in sorted(photos.glob("*/*")):
            tar.add(path, f"{path.parent.name}/{path.stem}")

    def samples(raw: Path) -> object:
        with tarfile.open(raw) as tar:
            for info in tar:
                place = FileRange(raw, info.offset_data, info.size)
                yield Sample(info.name, place, info.name.split("/")[0], "train")

    of_files = contents(done(convert("photos", photos, tmp_path / "a", workers=1)).folder)
    converter = Converter("photos", samples, "tests", "CC0", None, "Photographs.")  # type: ignore[arg-type]
    monkeypatch.setattr(shard, "find_converter", lambda name: converter)
    of_tar = contents(done(convert("photos", tmp_path / "raw.tar", tmp_path / "b", workers=2)).folder)
    for name, data in of_files.items():
        if name not in ("manifest.json", "README.md"):
            assert of_tar[name] == data


def test_halves_give_the_bytes_of_the_whole(photos: Path, tmp_path: Path) -> None:
    whole = contents(done(convert("photos", photos, tmp_path / "whole", workers=1)).folder)
    assert convert("photos", photos, tmp_path / "parts", part=Part(2, 2), workers=1) is None
    assert not (tmp_path / "parts" / "photos" / "manifest.json").exists()
    assert len(list((tmp_path / "parts" / "photos").glob("*.tar"))) == 2
    assert convert("photos", photos, tmp_path / "parts", part=Part(1, 2), workers=2) is not None
    assert contents(tmp_path / "parts" / "photos") == whole


def test_parts_may_start_together(photos: Path, tmp_path: Path) -> None:
    """As a Slurm array starts them; of arrays, whose spools must not meet."""
    script = write_converter(tmp_path / "many.py", classes=("x", "y"), counts={"train": 30_000}, seed=3)
    command = [sys.executable, "-m", "fastad", "shard", script, "--workers", "1", "--out"]
    assert subprocess.run([*command, tmp_path / "whole"], capture_output=True).returncode == 0
    together = [
        subprocess.Popen([*command, tmp_path / "parts", "--part", f"{index}/2"], stderr=subprocess.PIPE, text=True)
        for index in (1, 2)
    ]
    for process in together:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert contents(tmp_path / "parts" / "many") == contents(tmp_path / "whole" / "many")


def test_what_cannot_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "china" / "20.jpg").mkdir()
    manifest = done(convert("photos", photos, tmp_path, options={"limit": 41}, max_bad=0.1, workers=1))
    assert manifest.facts["rejects"] == [{"key": "china/20", "reason": "cannot be read: Is a directory"}]


def test_resizing_and_its_arguments_are_recorded_and_held_to(photos: Path, tmp_path: Path) -> None:
    manifest = done(convert("photos", photos, tmp_path, encoding=Encoding(resize_px=80), workers=1))
    assert np.minimum(manifest.width, manifest.height).max() == 80
    assert sum(manifest.facts["changes"].values()) == manifest.facts["changes"]["resized"] > 10
    assert '"resize_px": 80' in (manifest.folder / "README.md").read_text()
    with pytest.raises(FastadError, match="is a conversion with resize_px = 80, now it is None: choose another --out"):
        convert("photos", photos, tmp_path, workers=1)
    assert len(verify(manifest.folder, "decode").key) == COUNT


def test_a_changed_file_is_noticed(photos: Path, tmp_path: Path) -> None:
    convert("photos", photos, tmp_path, workers=1)
    path = photos / "china" / "03.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FastadError, match="is a conversion with another source"):
        convert("photos", photos, tmp_path, workers=1)


def spoil(photos: Path) -> None:
    (photos / "china" / "05.jpg").write_bytes(b"")
    half = photos / "flower" / "07.jpg"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])


def test_bad_images_are_left_out_with_their_reason(photos: Path, tmp_path: Path) -> None:
    spoil(photos)
    manifest = done(convert("photos", photos, tmp_path, max_bad=0.1, workers=2))
    rejects = {reject["key"]: reject["reason"] for reject in manifest.facts["rejects"]}
    assert rejects.keys() == {"china/05", "flower/07"}
    assert rejects["china/05"] == "empty"
    assert "truncated" in rejects["flower/07"]
    assert len(verify(manifest.folder, "decode").key) == COUNT - 2
    assert json.loads((manifest.folder / "manifest.json").read_bytes())["splits"] == {"train": COUNT - 2}


def test_too_many_bad_images_stop_and_more_may_be_allowed_later(photos: Path, tmp_path: Path) -> None:
    spoil(photos)
    with pytest.raises(FastadError, match=r"[12] of 40 images cannot be used, the first is .*with --max-bad"):
        convert("photos", photos, tmp_path, workers=1)
    assert not (tmp_path / "photos" / "manifest.json").exists()
    assert len(done(convert("photos", photos, tmp_path, max_bad=0.05, workers=1)).key) == COUNT - 2


def test_options_reach_the_converter_or_are_refused(photos: Path, tmp_path: Path) -> None:
    assert len(done(convert("photos", photos, tmp_path, options={"limit": 12}, workers=1)).key) == 12
    with pytest.raises(FastadError, match="is a conversion with limit = 12, now it is 13"):
        convert("photos", photos, tmp_path, options={"limit": 13}, workers=1)
    with pytest.raises(FastadError, match="photos takes no --split: it takes --limit"):
        convert("photos", photos, tmp_path / "other", options={"split": "x"}, workers=1)


def test_the_index_drives_dali_through_jpegs(photos: Path, tmp_path: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    manifest = done(convert("photos", photos, tmp_path, workers=1))
    tar = manifest.folder / "train-00000.tar"

    @pipeline_def(batch_size=8, num_threads=1, device_id=None)
    def read():  # type: ignore[no-untyped-def]
        data = fn.readers.webdataset(paths=[str(tar)], index_paths=[str(tar.with_suffix(".idx"))], ext=["jpg"])
        return fn.decoders.image(data, adjust_orientation=False)

    (found,) = read().run()
    for row, image in enumerate(found):
        with Image.open(io.BytesIO((photos / f"{manifest.key[row].decode()}.jpg").read_bytes())) as expected:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_an_unchecked_set_verifies_and_says_that_its_duplicates_are_unknown(photos: Path, tmp_path: Path) -> None:
    manifest = done(convert("photos", photos, tmp_path, encoding=Encoding(checked=False), workers=1))
    assert len(verify(manifest.folder, "decode").key) == COUNT
    assert facts(manifest)["duplicates"] is None
    assert "duplicates not known" in summary(manifest)
    with pytest.raises(FastadError, match="was converted with --unchecked, so its duplicates are not known"):
        select(View(), manifest, exclude_hashes=np.ones(1, np.uint64))


def test_a_damaged_image_of_an_unchecked_set_is_found_by_verify(photos: Path, tmp_path: Path) -> None:
    path = photos / "china" / "03.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    manifest = done(convert("photos", photos, tmp_path, encoding=Encoding(checked=False), workers=1))
    with pytest.raises(FastadError, match="sample china/03 does not decode"):
        verify(manifest.folder, "decode")


def test_arrays_that_vanish_while_they_are_written_are_named(tmp_path: Path) -> None:
    job = Job(
        folder=tmp_path,
        name="train-00000",
        encoding=Encoding(),
        files=np.array([str(tmp_path / "spool.bin")]),
        file=np.zeros(3, np.int32),
        offset=np.arange(3) * 16,
        size=np.full(3, 16),
        shape=np.tile([4, 4, 1], (3, 1)),
        order=np.zeros(3, np.int8),
        exact=np.zeros(3, bool),
        class_index=np.zeros(3, np.int32),
        key=np.array([b"a", b"b", b"c"]),
        hashed=True,
    )
    (tmp_path / "spool.bin").write_bytes(bytes(40))
    with pytest.raises(FastadError, match=r"spool\.bin cannot be read to its end"):
        write_shard(job)
    assert not list(tmp_path.glob("*.tar"))

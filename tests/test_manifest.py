"""Opening a set: what is there is found, what is not is said."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastad import manifest as manifest_module
from fastad.errors import FastadError
from fastad.manifest import SCHEMA_VERSION, Manifest, open_set, shard_home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "blobs", tmp_path / "blobs")
    return tmp_path / "blobs"


def test_columns_describe_every_sample(blobs: Manifest) -> None:
    assert {split: len(rows) for split, rows in blobs.splits.items()} == {"train": 120, "test": 60}
    assert blobs.classes == ("low/mid", "middle", "high")
    assert blobs.shape_hwc == (28, 28, 1)
    assert set(blobs.key.tolist()) == {
        f"{s}-{i:04d}".encode() for s, n in (("train", 120), ("test", 60)) for i in range(n)
    }
    np.testing.assert_array_equal(np.sort(blobs.source_index), np.arange(180))
    assert isinstance(blobs.offset, np.memmap)


def test_unknown_split_names_the_known_ones(blobs: Manifest) -> None:
    with pytest.raises(FastadError, match="no split 'val': it has train, test"):
        blobs.split_rows("val")


def test_a_folder_without_manifest_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match=f"{tmp_path} is not a shard set: found no manifest.json"):
        open_set(tmp_path)
    (tmp_path / ".partial").mkdir()
    with pytest.raises(FastadError, match="an unfinished one: run its command again"):
        open_set(tmp_path)


def test_a_damaged_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text(f'{{"schema_version": {SCHEMA_VERSION}}}')
    with pytest.raises(FastadError, match="damaged manifest"):
        open_set(copy)


def test_a_missing_column_is_refused(copy: Path) -> None:
    (copy / "samples" / "offset.npy").unlink()
    with pytest.raises(FastadError, match=r"damaged manifest.*offset\.npy"):
        open_set(copy)


def test_a_missing_tar_is_named(copy: Path) -> None:
    (copy / "test-00000.tar").unlink()
    with pytest.raises(FastadError, match=r"test-00000\.tar is missing"):
        open_set(copy)


def test_a_shortened_tar_is_named(copy: Path) -> None:
    tar = copy / "train-00000.tar"
    os.truncate(tar, tar.stat().st_size - 512)
    with pytest.raises(FastadError, match=r"train-00000\.tar has changed: \d+ bytes, the manifest says \d+"):
        open_set(copy)


def test_a_tar_changed_in_place_is_found_by_its_time(copy: Path) -> None:
    with open(copy / "train-00000.tar", "r+b") as tar:
        tar.seek(5000)
        tar.write(b"changed")
    later = (copy / "manifest.json").stat().st_mtime_ns + 10**9
    os.utime(copy / "train-00000.tar", ns=(later, later))
    with pytest.raises(FastadError, match=r"train-00000\.tar has changed: its SHA-256"):
        open_set(copy)


def test_a_touched_but_unchanged_tar_is_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = manifest_module.sha256
    monkeypatch.setattr(manifest_module, "sha256", lambda path: (hashed.append(path.name), real(path))[1])
    os.utime(copy / "manifest.json", ns=(0, 0))
    open_set(copy)
    assert sorted(hashed) == ["test-00000.tar", "train-00000.tar"]
    open_set(copy)
    assert len(hashed) == 2


def test_shard_home_prefers_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAD_SHARDS", "/data/shards")
    assert shard_home(Path("here")) == Path("here")
    assert shard_home() == Path("/data/shards")
    monkeypatch.delenv("FASTAD_SHARDS")
    assert shard_home() == Path("shards")

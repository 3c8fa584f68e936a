"""Shards: exact bytes, whatever the workers and the interruptions; and refusals that leave nothing behind."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import rewrite_column, run_with_small_files, write_converter

from fastad import shard, write
from fastad.errors import FastadError
from fastad.listing import Converter, find_converter
from fastad.manifest import Sample, open_set
from fastad.shard import convert
from fastad.tar import member, members, text_members
from fastad.verify import verify

COUNTS = {"train": 500, "test": 40}


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    return write_converter(tmp_path / "many.py", classes=("x", "y"), counts=COUNTS, seed=3)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "SHARD_SAMPLES", 60)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source_samples(converter: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in find_converter(str(converter)).samples()}


@pytest.mark.usefixtures("small_shards")
def test_bytes_are_the_same_for_any_number_of_workers(converter: Path, tmp_path: Path) -> None:
    sets = {}
    for workers in (1, 2, 3):
        convert(str(converter), None, tmp_path / str(workers), workers=workers)
        sets[workers] = contents(tmp_path / str(workers) / "many")
    assert len([name for name in sets[1] if name.endswith(".tar")]) == 10
    assert sets[1] == sets[2] == sets[3]


def test_a_set_may_have_another_name_than_its_converter(converter: Path, tmp_path: Path) -> None:
    own = convert(str(converter), None, tmp_path, workers=1)
    other = convert(str(converter), None, tmp_path, name="Parts-2", workers=1)
    assert (other.name, other.folder) == ("Parts-2", tmp_path / "Parts-2")
    assert [shard.sha256 for shard in other.shards] == [shard.sha256 for shard in own.shards]
    for name in ("", "../parts", "a/b", ".hidden", "parts.py"):
        with pytest.raises(FastadError, match="--name must be letters, digits, - and _"):
            convert(str(converter), None, tmp_path, name=name)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {own.name, "Parts-2"}


# webdataset 1.0 leaves its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("small_shards")
def test_every_sample_comes_back_byte_exact_through_tarfile_and_webdataset(converter: Path, tmp_path: Path) -> None:
    manifest = convert(str(converter), None, tmp_path, workers=1)
    expected = source_samples(converter)
    seen = set()
    tars = sorted(str(path) for path in manifest.folder.glob("*.tar"))
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        source = expected[sample["__key__"]]
        np.testing.assert_array_equal(sample["npy"], source.pixels[..., None])
        assert manifest.classes[sample["cls"]] == source.class_name
        seen.add(sample["__key__"])
    assert seen == set(expected)
    with tarfile.open(tars[0]) as tar:
        for member in tar.getmembers():
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)


def test_samples_lie_in_a_permutation_not_in_source_order(converter: Path, tmp_path: Path) -> None:
    manifest = convert(str(converter), None, tmp_path, workers=1)
    train = manifest.source_index[: COUNTS["train"]]
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.15
    assert sorted(train) == list(range(COUNTS["train"]))


def test_the_index_drives_dalis_webdataset_reader(converter: Path, tmp_path: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    manifest = convert(str(converter), None, tmp_path, workers=1)
    tar = manifest.folder / "test-00000.tar"

    @pipeline_def(batch_size=COUNTS["test"], num_threads=1, device_id=None)
    def read():  # type: ignore[no-untyped-def]
        return fn.readers.webdataset(paths=[str(tar)], index_paths=[str(tar.with_suffix(".idx"))], ext=["npy"])

    (found,) = read().run()
    rows = manifest.split_rows("test")
    expected = source_samples(converter)
    for row, data in zip(rows, found, strict=True):
        image = np.load(io.BytesIO(np.asarray(data).tobytes()))
        np.testing.assert_array_equal(image[..., 0], expected[manifest.key[row].decode()].pixels)


def test_a_tar_member_has_the_header_that_tarfile_writes() -> None:
    info = tarfile.TarInfo("a/b-1.npy")
    info.size = 700
    expected, found = info.tobuf(tarfile.USTAR_FORMAT), b"".join(member("a/b-1.npy", bytes(700)))
    assert len(found) == 512 + 1024
    read = tarfile.TarInfo.frombuf(found[:512], "utf-8", "strict")
    assert (read.name, read.size, read.type) == ("a/b-1.npy", 700, tarfile.REGTYPE)
    # Up to the checksum, byte for byte; tarfile leaves the device numbers of plain files empty, which changes the sum.
    assert found[:148] == expected[:148]
    assert found[156:329] == expected[156:329]


def test_a_finished_set_is_left_alone(converter: Path, tmp_path: Path) -> None:
    convert(str(converter), None, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("*.tar")}
    convert(str(converter), None, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("*.tar")}
    assert not (tmp_path / "many" / ".partial").exists()


def test_another_source_is_refused_and_the_set_stays_whole(converter: Path, tmp_path: Path) -> None:
    convert(str(converter), None, tmp_path)
    before = contents(tmp_path / "many")
    write_converter(converter, classes=("x", "y"), counts=COUNTS, seed=4)
    with pytest.raises(FastadError, match="is a conversion with another source: choose another --out or remove it"):
        convert(str(converter), None, tmp_path)
    assert contents(tmp_path / "many") == before


SCRIPT = """
import sys
from pathlib import Path
from fastad import shard, write
shard.SHARD_SAMPLES = 60
if __name__ == "__main__":
    shard.convert(sys.argv[1], None, Path(sys.argv[2]), workers=2)
"""
KILLS = 20


@pytest.mark.usefixtures("small_shards")
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Each kill ends the whole process group, a random part of a shard's time after so many new shards stand."""
    converter = write_converter(tmp_path / "many.py", classes=("x", "y"), counts={"train": 60 * 12 * KILLS}, seed=3)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    convert(str(converter), None, tmp_path / "whole", workers=1)
    whole = contents(tmp_path / "whole" / "many")
    folder = tmp_path / "killed" / "many"
    command = [sys.executable, script, converter, tmp_path / "killed"]
    rng, left = np.random.default_rng(0), set()
    # A few while it starts and lists, the others while it writes.
    moments = [*np.full(4, -1), *rng.integers(0, 3, KILLS - 4)]
    for new in moments:
        before = len(list(folder.glob("*.tar")))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and new >= 0 and len(list(folder.glob("*.tar"))) <= before + new:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.4 if new < 0 else 0.005))
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in (*folder.glob("*.tar"), *folder.glob("*.idx")):
            assert path.read_bytes() == whole[path.name]
        assert not (folder / "manifest.json").exists()
        left |= {path.name for path in folder.rglob(".*.tmp")}
    assert left
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert contents(folder) == whole


@pytest.mark.usefixtures("small_shards")
def test_a_kill_after_the_manifest_leaves_nothing_partial(
    converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", interrupt)
        convert(str(converter), None, tmp_path, workers=1)
    assert (tmp_path / "many" / "manifest.json").is_file()
    assert (tmp_path / "many" / ".partial").is_dir()
    convert(str(converter), None, tmp_path, workers=1)
    assert not (tmp_path / "many" / ".partial").exists()


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_conversion_of_another_source_is_refused(
    converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(shard, "write_shard", broken)
    with pytest.raises(KeyboardInterrupt):
        convert(str(converter), None, tmp_path, workers=1)
    write_converter(converter, classes=("x", "y"), counts=COUNTS, seed=4)
    with pytest.raises(FastadError, match="was begun with another source: choose another --out or remove it"):
        convert(str(converter), None, tmp_path, workers=1)


def test_too_small_a_disk_is_said_before_anything_is_written(
    converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FastadError, match="bytes, 1,000 are free: free some or choose another --out"):
        convert(str(converter), None, tmp_path)
    assert not (tmp_path / "many").exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_final_name(converter: Path, tmp_path: Path) -> None:
    done = run_with_small_files(200_000, "shard", converter, "--out", tmp_path / "small", "--workers", 1)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("fastad: cannot write ")
    assert not [path for path in (tmp_path / "small").rglob("*") if path.is_file()]


def bad_samples(case: str) -> Iterator[Sample]:
    image = np.zeros((28, 28), dtype=np.uint8)
    yield Sample("first", image, "x", "train")
    yield {
        "float": Sample("second", image.astype(np.float32), "x", "train"),
        "bad key": Sample("second.jpg", image, "x", "train"),
        "same key": Sample("first", image, "x", "train"),
        "no class": Sample("second", image, "z", "train"),
        "number as class": Sample("second", image, 3, "train"),  # type: ignore[arg-type]
        "odd split": Sample("second", image, "x", "hold out"),
        "no sample": ("second", image, "x", "train"),
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("float", "sample second is float32"),
        ("bad key", "sample key 'second"),
        ("same key", "two samples of one key"),
        ("no class", "class 'z', which is not in its CLASSES"),
        ("number as class", "sample second is of class 3: a class is a name as text"),
        ("odd split", "sample second is of split 'hold out': use letters"),
        ("no sample", r"must yield fastad\.manifest\.Sample, found \('second'"),
    ],
)
def test_what_a_converter_may_not_yield(
    case: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Converter("bad", lambda: bad_samples(case), "tests", "CC0", ("x",), "")
    monkeypatch.setattr(shard, "find_converter", lambda name: bad)
    with pytest.raises(FastadError, match=message):
        convert("bad", None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_sets_and_wrong_raw_arguments_are_said(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="unknown set 'fashionmnist': did you mean fashion-mnist"):
        convert("fashionmnist", None, tmp_path)
    with pytest.raises(FastadError, match="mnist needs the path of its raw data"):
        convert("mnist", None, tmp_path)
    with pytest.raises(FastadError, match="digits makes its own images and takes no raw data"):
        convert("digits", tmp_path, tmp_path)
    with pytest.raises(FastadError, match=r"no raw data at .*nowhere"):
        convert("mnist", tmp_path / "nowhere", tmp_path)
    with pytest.raises(FastadError, match=r"no converter file .*nothing\.py"):
        convert(str(tmp_path / "nothing.py"), None, tmp_path)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(FastadError, match="has no function samples"):
        convert(str(tmp_path / "empty.py"), None, tmp_path)
    for text, message in (
        ("import nothing_such", "ModuleNotFoundError in line 1"),
        ("\nx = (", "SyntaxError in line 2"),
    ):
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(FastadError, match=rf"broken\.py does not run: {message}"):
            convert(str(tmp_path / "broken.py"), None, tmp_path)


@pytest.mark.parametrize("level", ["size", "hash", "decode"])
def test_a_whole_set_verifies(level: str, home: Path) -> None:
    assert len(verify(home / "blobs", level).key) == 180


def test_verify_finds_one_changed_byte_by_hash_and_not_by_size(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "blobs", tmp_path / "blobs")
    tar = folder / "train-00000.tar"
    before = tar.stat()
    with open(tar, "r+b") as file:
        file.seek(int(open_set(folder).offset[7]) + 200)
        file.write(b"\xff\x00\xff")
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(folder / "manifest.json")
    verify(folder, "size")
    with pytest.raises(FastadError, match=r"train-00000\.tar has changed: its SHA-256"):
        verify(folder, "hash")


def test_verify_finds_a_changed_index(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "blobs", tmp_path / "blobs")
    index = folder / "test-00000.idx"
    index.write_text(index.read_text().replace("npy 512 ", "npy 1024 "))
    with pytest.raises(FastadError, match=r"test-00000\.idx is missing or changed"):
        verify(folder, "hash")


def test_verify_finds_a_changed_column(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "blobs", tmp_path / "blobs")
    keys = np.load(folder / "samples" / "key.npy")
    np.save(folder / "samples" / "key.npy", np.roll(keys, 1))
    verify(folder, "size")
    with pytest.raises(FastadError, match=r"samples/key\.npy has changed"):
        verify(folder, "hash")


@pytest.mark.parametrize("column", ["key", "offset", "height", "content_hash"])
def test_verify_decode_finds_columns_that_were_written_wrong(column: str, home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "blobs", tmp_path / "blobs")
    values = np.load(folder / "samples" / f"{column}.npy")
    rewrite_column(folder, column, values + 1 if column == "height" else np.roll(values, 1))
    with pytest.raises(FastadError, match=r"where the manifest says|\.idx is missing or changed"):
        verify(folder, "decode")


def test_an_unknown_level_shows_the_nearest(home: Path) -> None:
    with pytest.raises(FastadError, match="unknown level 'sizes': did you mean size"):
        verify(home / "blobs", "sizes")


def test_members_made_at_once_are_those_made_one_by_one() -> None:
    rng = np.random.default_rng(0)
    names = [f"k{'x' * int(length)}-{index}" for index, length in enumerate(rng.integers(0, 90, 40))]
    data = rng.integers(0, 256, (40, 700), dtype=np.uint8)
    texts = [str(10 ** (index % 5)) for index in range(40)]
    large = members(np.array(names, "S"), data)
    small = text_members(np.array(names, "S"), np.array(texts, "S"))
    for index, name in enumerate(names):
        assert large[index].tobytes() == b"".join(member(name, data[index].tobytes()))
        assert small[index].tobytes() == b"".join(member(name, texts[index].encode()))


@pytest.mark.parametrize("classes", ["all", "none", "some"])
def test_arrays_written_at_once_are_as_those_written_one_by_one(
    classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples() -> Iterator[Sample]:
        rng = np.random.default_rng(5)
        for index in range(1_234):
            named = classes == "all" or (classes == "some" and index % 3 == 0)
            image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            yield Sample(f"image-{index}", image, f"c{index % 12}" if named else None, "train")

    converter = Converter("arrays", samples, "tests", "CC0", None, "")
    monkeypatch.setattr(shard, "find_converter", lambda name: converter)
    convert("arrays", None, tmp_path / "at-once", workers=1)
    monkeypatch.setattr(write, "_is_uniform", lambda job: False)
    convert("arrays", None, tmp_path / "one-by-one", workers=1)
    assert contents(tmp_path / "at-once" / "arrays") == contents(tmp_path / "one-by-one" / "arrays")

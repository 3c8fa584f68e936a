"""EMNIST, CIFAR and Tiny Images: equality with torchvision on files laid out as the published ones, and refusals."""

import gzip
import io
import math
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torchvision
from conftest import write_idx

from fastad.encode import arranged
from fastad.errors import FastadError
from fastad.listing import find_converter, list_samples
from fastad.manifest import PixelRange, Sample
from fastad.shard import convert_with
from fastad_tools import cifar10, cifar100, emnist, tinyimages, tinyimages300k

LOOKALIKES_TXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "80mn_cifar_idxs.txt"


def split_of(samples: list[Sample], split: str) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]


def pixels_of(samples: list[Sample]) -> np.ndarray:
    return np.stack([_pixels(sample.pixels) for sample in samples])


def _pixels(place: np.ndarray | PixelRange) -> np.ndarray:
    """An array as it is, or what stands at its place in a file."""
    if isinstance(place, np.ndarray):
        return place
    data = np.fromfile(place.path, np.uint8, math.prod(place.shape_hwc), offset=place.offset)
    return arranged(data, place.shape_hwc, place.order)


def assert_same(ones: list[Sample], others: list[Sample]) -> None:
    assert [(one.key, one.class_name, one.split) for one in ones] == [
        (other.key, other.class_name, other.split) for other in others
    ]
    np.testing.assert_array_equal(pixels_of(ones), pixels_of(others))


# EMNIST


def write_emnist(folder: Path, split: str) -> None:
    rng = np.random.default_rng(len(split))
    first = 1 if split == "letters" else 0
    count = len(emnist.CHARACTERS[split])
    folder.mkdir(parents=True, exist_ok=True)
    for part, repeats in (("train", 2), ("test", 1)):
        labels = rng.permutation(np.tile(np.arange(first, first + count), repeats))
        write_idx(folder / f"emnist-{split}-{part}-images-idx3-ubyte", rng.integers(0, 256, (len(labels), 28, 28)))
        write_idx(folder / f"emnist-{split}-{part}-labels-idx1-ubyte", labels)


def gzipped(folder: Path, into: Path) -> Path:
    into.mkdir(parents=True)
    for path in folder.iterdir():
        (into / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return into


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in folder.iterdir():
            opened.writestr(f"gzip/{path.name}.gz", gzip.compress(path.read_bytes(), mtime=0))
    return archive


@pytest.mark.parametrize("split", emnist.CHARACTERS)
def test_emnist_is_what_torchvision_reads_but_upright(split: str, tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    write_emnist(raw, split)
    samples = list(emnist.samples(raw, split=split))
    for part in ("train", "test"):
        expected = torchvision.datasets.EMNIST(tmp_path, split, train=part == "train")
        ours = split_of(samples, part)
        np.testing.assert_array_equal(pixels_of(ours), expected.data.numpy().transpose(0, 2, 1))
        names = [expected.classes[target] for target in expected.targets]
        assert [sample.class_name for sample in ours] == [
            name.upper() if split == "letters" else name for name in names
        ]
    # Classes come from the samples, sorted: they must stand in the published labels' order.
    assert sorted({str(sample.class_name) for sample in samples}) == list(emnist.CHARACTERS[split])


def test_emnist_reads_every_packing_alike(tmp_path: Path) -> None:
    write_emnist(plain := tmp_path / "plain", "letters")
    packed = gzipped(plain, tmp_path / "packed" / "gzip")
    expected = list(emnist.samples(plain))
    for raw in (packed, packed.parent, zipped(plain, tmp_path / "gzip.zip")):
        assert_same(list(emnist.samples(raw)), expected)


def test_emnist_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    write_emnist(plain := tmp_path / "plain", "letters")
    with pytest.raises(FastadError, match=r"unknown EMNIST split 'letter': did you mean letters\?"):
        next(emnist.samples(plain, split="letter"))
    with pytest.raises(FastadError, match=r"no emnist-digits-… files in .*plain or .*plain/gzip: give the folder"):
        next(emnist.samples(plain, split="digits"))
    archive = zipped(plain, tmp_path / "gzip.zip")
    with pytest.raises(FastadError, match=r"no emnist-digits-train-images-idx3-ubyte or .*\.gz in .*gzip\.zip"):
        next(emnist.samples(archive, split="digits"))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(FastadError, match=r"gzip\.zip is not a whole zip file .*: fetch it again"):
        next(emnist.samples(archive))
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("gzip/emnist-letters-train-images-idx3-ubyte.gz", b"<html>")
    with pytest.raises(FastadError, match=r"gzip\.zip/gzip/emnist-letters-train-images-idx3-ubyte\.gz is not a whole"):
        next(emnist.samples(archive))
    write_idx(plain / "emnist-letters-train-labels-idx1-ubyte", np.arange(52) % 26)
    with pytest.raises(FastadError, match="emnist-letters-train label 0: labels must be at least 1 and below 27"):
        next(emnist.samples(plain))
    write_idx(plain / "emnist-letters-train-labels-idx1-ubyte", np.arange(51) % 26 + 1)
    with pytest.raises(FastadError, match="52 emnist-letters-train images and 51 labels"):
        next(emnist.samples(plain))


# CIFAR

CIFARS = [cifar10, cifar100]


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle wrote with protocol 2 and the numpy of its time, as the published files have it."""

    def dump(value: Any) -> bytes:
        match value:
            case str():
                data = value.encode("latin1")
                return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data
            case int():
                return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
            case list():
                return b"](" + b"".join(map(dump, value)) + b"e"
            case dict():
                return b"}(" + b"".join(dump(part) for pair in value.items() for part in pair) + b"u"
            case np.ndarray():
                shape = b"".join(map(dump, value.shape)) + b"\x86"
                dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
                state = b"(K\x01" + shape + dtype + b"\x89" + dump(value.tobytes().decode("latin1")) + b"t"
                return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"
        raise AssertionError(type(value))

    return b"\x80\x02" + dump(value) + b"."


def cifar_batches(module: ModuleType) -> dict[str, tuple[np.ndarray, list[int]]]:
    """A few images and labels for each batch file; the last class is among them."""
    rng = np.random.default_rng(1)
    count = len(module.CLASSES)
    names = [name for batch in module.LAYOUT.batches.values() for name in batch]
    return {
        name: (
            rng.integers(0, 256, (4, 3072), dtype=np.uint8),
            [count - 1, *map(int, rng.integers(0, count, 3))],
        )
        for name in names
    }


def write_python_version(module: ModuleType, parent: Path) -> Path:
    folder = parent / module.LAYOUT.folders[0]
    folder.mkdir(parents=True)
    for name, (data, labels) in cifar_batches(module).items():
        batch: dict[str, Any] = {"batch_label": f"{name} of few", module.LAYOUT.label_key: labels, "data": data}
        batch["filenames"] = [f"image_{index}.png" for index in range(len(labels))]
        if module is cifar100:
            batch["coarse_labels"] = [label % 20 for label in labels]
        (folder / name).write_bytes(python2_pickle(batch))
    meta, key = ("batches.meta", "label_names") if module is cifar10 else ("meta", "fine_label_names")
    (folder / meta).write_bytes(python2_pickle({key: list(module.CLASSES)}))
    return folder


def write_binary_version(module: ModuleType, parent: Path) -> Path:
    folder = parent / module.LAYOUT.folders[1]
    folder.mkdir(parents=True)
    for name, (data, labels) in cifar_batches(module).items():
        coarse = [bytes([label % 20]) if module is cifar100 else b"" for label in labels]
        records = zip(coarse, labels, data, strict=True)
        (folder / f"{name}.bin").write_bytes(b"".join(c + bytes([label]) + row.tobytes() for c, label, row in records))
    return folder


def tarred(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as opened:
        # The published archive is not in the batches' order either.
        for path in sorted(folder.iterdir(), reverse=True):
            opened.add(path, f"{folder.name}/{path.name}")
    return archive


def torchvision_cifar(module: ModuleType, root: Path, *, train: bool) -> Any:
    """torchvision's own reading, but without its check that the files are the published ones."""
    base = torchvision.datasets.CIFAR10 if module is cifar10 else torchvision.datasets.CIFAR100

    class Unchecked(base):  # type: ignore[misc, valid-type]
        train_list = [[name, None] for name, _ in base.train_list]  # noqa: RUF012
        test_list = [[name, None] for name, _ in base.test_list]  # noqa: RUF012
        meta = base.meta | {"md5": None}

    return Unchecked(root, train=train)


@pytest.mark.filterwarnings("ignore:dtype.*align should be passed")  # numpy 2.4.0 to 2.4.4, in torchvision's reading
@pytest.mark.parametrize("module", CIFARS)
def test_cifar_is_what_torchvision_reads_in_every_packing(module: ModuleType, tmp_path: Path) -> None:
    python = write_python_version(module, tmp_path / "python")
    binary = write_binary_version(module, tmp_path / "binary")
    packings = [python, python.parent, binary, binary.parent]
    packings += [tarred(python, tmp_path / "python.tar.gz"), tarred(binary, tmp_path / "binary.tar.gz")]
    first = list(module.samples(python))
    for raw in packings:
        assert_same(list(module.samples(raw)), first)
    for split in ("train", "test"):
        expected = torchvision_cifar(module, python.parent, train=split == "train")
        ours = split_of(first, split)
        np.testing.assert_array_equal(pixels_of(ours), expected.data)
        assert [sample.class_name for sample in ours] == [expected.classes[target] for target in expected.targets]
    assert first[0].key == "train-00000" and first[-1].key == "test-00003"
    assert len({sample.key for sample in first}) == len(first)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_pickles_that_python_3_wrote_are_read(protocol: int, tmp_path: Path) -> None:
    folder = write_python_version(cifar10, tmp_path)
    expected = list(cifar10.samples(folder))
    for name, (data, labels) in cifar_batches(cifar10).items():
        batch = {b"data": data, b"labels": labels, b"filenames": [b"a.png"] * 4, b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    assert_same(list(cifar10.samples(folder)), expected)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_that_would_run_code_is_refused_unrun(protocol: int, packed: bool, tmp_path: Path) -> None:
    folder, marker = write_python_version(cifar10, tmp_path), tmp_path / "ran"
    harm = pickle.dumps({b"data": [1, {"deep": Malicious(marker)}], b"labels": []}, protocol)
    pickle.loads(harm)
    assert marker.is_file(), "the pickle must be one that works"
    marker.unlink()
    (folder / "data_batch_2").write_bytes(harm)
    raw = tarred(folder, tmp_path / "cifar.tar.gz") if packed else folder
    with pytest.raises(FastadError, match=r"data_batch_2 would run code: it asks for \w+\.system, which no data file"):
        list(cifar10.samples(raw))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("_codecs", "decode"),
        ("copyreg", "_reconstructor"),
    ],
)
def test_no_other_name_is_found(name: tuple[str, str], tmp_path: Path) -> None:
    folder = write_python_version(cifar10, tmp_path)
    (folder / "data_batch_1").write_bytes(b"\x80\x02c%s\n%s\n." % (name[0].encode(), name[1].encode()))
    with pytest.raises(FastadError, match=f"would run code: it asks for {name[0]}.{name[1]}"):
        next(cifar10.samples(folder))


@pytest.mark.parametrize(
    "body",
    [
        # The stand-ins are reached, and set or called in ways that no writer of arrays uses.
        b"cnumpy.core.multiarray\n_reconstruct\n(NU\x01x}U\x08__code__Nstb.",
        b"cnumpy.core.multiarray\n_reconstruct\n)RNb.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
        b"c_codecs\nencode\nU\x01aU\x03hex\x86R.",
        b"U\x01aQ.",
        b"]U\x01a\x82\x01.",
        b"K\x01.",
        b"}U\x04datacnumpy.core.multiarray\n_reconstruct\n)RsU\x06labels]s.",
    ],
)
def test_an_odd_pickle_is_one_line(body: bytes, tmp_path: Path) -> None:
    folder = write_python_version(cifar10, tmp_path)
    (folder / "data_batch_1").write_bytes(b"\x80\x02" + body)
    with pytest.raises(FastadError, match=r"data_batch_1 (is not a whole pickle|holds no data|holds data)"):
        next(cifar10.samples(folder))


def test_a_pickle_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    folder = write_python_version(cifar100, tmp_path)
    data = (folder / "train").read_bytes()
    for keep in [*range(0, 400, 7), *range(400, len(data) - 1, 997), len(data) - 1]:
        (folder / "train").write_bytes(data[:keep])
        with pytest.raises(FastadError, match="train is not a whole pickle of uint8 data"):
            next(cifar100.samples(folder))


def test_cifar_batches_that_do_not_fit_are_said(tmp_path: Path) -> None:
    folder = write_python_version(cifar10, tmp_path)
    images = np.zeros((2, 3072), dtype=np.uint8)
    for batch, message in [
        ({"data": images, "fine_labels": [1, 2]}, "holds no data and labels of CIFAR-10"),
        ({"data": images, "labels": [1, "x"]}, "holds no data and labels of CIFAR-10"),
        ({"data": images, "labels": [1]}, r"holds data \(2, 3072\) and 1 labels, not \(1, 3072\)"),
        ({"data": images[:, :1024], "labels": [1, 2]}, r"holds data \(2, 1024\) and 2 labels"),
        ({"data": images, "labels": [1, 10]}, "holds label 10: labels must be 0 to 9"),
        ({"data": images, "labels": [1, -1]}, "holds label -1: labels must be 0 to 9"),
    ]:
        (folder / "data_batch_1").write_bytes(python2_pickle(batch))
        with pytest.raises(FastadError, match=f"data_batch_1 {message}"):
            next(cifar10.samples(folder))


def test_missing_and_damaged_cifar_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match=r"no batch files of CIFAR-10 in .*: give its tar\.gz .*cifar-10-batches-py"):
        next(cifar10.samples(tmp_path))
    python = write_python_version(cifar10, tmp_path)
    (python / "data_batch_3").unlink()
    with pytest.raises(FastadError, match=r"no data_batch_3 in .*cifar-10-batches-py: fetch CIFAR-10 again"):
        next(cifar10.samples(tmp_path))
    with pytest.raises(FastadError, match=r"no data_batch_3 in .*cifar\.tar\.gz"):
        next(cifar10.samples(tarred(python, tmp_path / "cifar.tar.gz")))
    with pytest.raises(FastadError, match=r"no train\.bin, test\.bin in .*cifar\.tar\.gz: fetch CIFAR-100 again"):
        next(cifar100.samples(tmp_path / "cifar.tar.gz"))
    binary = write_binary_version(cifar100, tmp_path)
    (binary / "train.bin").write_bytes(bytes(3000))
    with pytest.raises(FastadError, match=r"train\.bin has 3,000 bytes, not a multiple of 3074"):
        next(cifar100.samples(binary))


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    archive = tarred(write_python_version(cifar10, tmp_path), tmp_path / "cifar.tar.gz")
    whole = archive.read_bytes()
    flipped = whole[:9000] + bytes(byte ^ 0xFF for byte in whole[9000:9100]) + whole[9100:]
    for data in (whole[:-4000], whole[:5], flipped, b"", b"<html>"):
        archive.write_bytes(data)
        # tarfile takes a spoilt header for the end of the archive, so that a file is then missing.
        with pytest.raises(FastadError, match=r"cifar\.tar\.gz.*fetch CIFAR-10 again$") as error:
            next(cifar10.samples(archive))
        assert "\n" not in str(error.value)


# Tiny Images


def write_tiny_images(path: Path, count: int) -> np.ndarray:
    """Random images, written as the published file is: channel by channel, each column by column; [N, 32, 32, 3]."""
    images = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    with path.open("wb") as file:
        for image in images:
            for channel in range(3):
                for column in range(32):
                    file.write(image[:, column, channel].tobytes())
    return images


def test_tiny_images_are_read_column_by_column(tmp_path: Path) -> None:
    path = tmp_path / "tiny_images.bin"
    images = write_tiny_images(path, 7)
    for raw in (path, tmp_path):
        samples = list(tinyimages.samples(raw))
        np.testing.assert_array_equal(pixels_of(samples), images)
        assert [sample.key for sample in samples] == [f"train-{index:08d}" for index in range(7)]
        assert {(sample.split, sample.class_name) for sample in samples} == {("train", None)}
    second = np.frombuffer(path.read_bytes()[3072:6144], dtype=np.uint8)
    np.testing.assert_array_equal(images[1], second.reshape(32, 32, 3, order="F"))
    assert_same(list(tinyimages.samples(path, limit=3)), samples[:3])


def test_images_that_stand_in_cifar_are_set_apart(tmp_path: Path) -> None:
    path = tmp_path / "tiny_images.bin"
    with path.open("wb") as file:
        file.truncate(69_340 * 3072)
    samples = list(tinyimages.samples(path))
    assert [sample.key for sample in split_of(samples, "lookalikes")] == [
        f"lookalikes-{position:08d}" for position in tinyimages.cifar_lookalikes() if position < 69_340
    ]
    # The first three lines of the published list, 1-based.
    assert {samples[line - 1].split for line in (35_607, 69_318, 69_337)} == {"lookalikes"}
    assert samples[35_607].key == "train-00035607"
    assert len(samples) == 69_340


def test_the_carried_list_is_the_published_one() -> None:
    lookalikes = tinyimages.cifar_lookalikes()
    assert lookalikes.dtype == np.int64 and len(lookalikes) == 132_409
    assert (lookalikes[0] + 1, lookalikes[-1] + 1) == (35_607, 79_257_073)
    assert (np.diff(lookalikes) > 0).all()


@pytest.mark.skipif(not LOOKALIKES_TXT.is_file(), reason=f"needs {LOOKALIKES_TXT}")
def test_the_carried_list_is_the_text_file() -> None:
    lines = [int(line) for line in LOOKALIKES_TXT.read_text().split()]
    assert len(lines) == 132_416
    assert (tinyimages.cifar_lookalikes() + 1).tolist() == sorted(set(lines))


def test_tiny_images_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny_images.bin"
    with pytest.raises(FastadError, match=r"no .*tiny_images\.bin: give tiny_images\.bin or the folder that holds it"):
        next(tinyimages.samples(tmp_path))
    for size in (0, 3071, 6145):
        path.write_bytes(bytes(size))
        with pytest.raises(FastadError, match=rf"tiny_images\.bin has {size:,} bytes, not a multiple of 3,072"):
            next(tinyimages.samples(path))
    path.write_bytes(bytes(2 * 3072))
    for limit in (0, -1, 3):
        with pytest.raises(FastadError, match=rf"--limit {limit}: .* holds 2 images; give a number from 1 to that"):
            next(tinyimages.samples(path, limit=limit))


def test_the_300k_random_images_are_read_in_place(tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "300K_random_images.npy", images)
    for raw in (tmp_path, tmp_path / "300K_random_images.npy"):
        samples = list(tinyimages300k.samples(raw))
        np.testing.assert_array_equal(pixels_of(samples), images)
        assert [(sample.key, sample.class_name, sample.split) for sample in samples] == [
            (f"train-{index:06d}", None, "train") for index in range(9)
        ]


@pytest.mark.parametrize("name", ["tinyimages", "tinyimages300k"])
def test_raw_pixels_become_the_same_shards_as_arrays_do(name: str, tmp_path: Path) -> None:
    """Straight from their file: the spool is empty."""
    if name == "tinyimages":
        write_tiny_images(raw := tmp_path / "tiny_images.bin", 9)
    else:
        raw = tmp_path / "300K_random_images.npy"
        np.save(raw, np.random.default_rng(3).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    converter = find_converter(name)
    listing = list_samples(converter, raw, {}, tmp_path / "partial")
    assert (tmp_path / "partial" / "spool.bin").stat().st_size == 0
    assert listing.size.tolist() == [3072] * 9

    def as_arrays(raw: Path) -> Iterator[Sample]:
        for sample in converter.samples(raw):
            yield replace(sample, pixels=_pixels(sample.pixels))

    ranges = convert_with(converter, raw, tmp_path / "ranges", workers=1)
    arrays = convert_with(replace(converter, samples=as_arrays), raw, tmp_path / "arrays", workers=1)
    assert ranges is not None and arrays is not None
    assert ranges.shards == arrays.shards
    (note, *_) = ranges.facts["notices"]
    assert ("withdrawn by its authors" in note) == (name == "tinyimages")
    assert f"**Note:** {note}" in (ranges.folder / "README.md").read_text()


def test_another_npy_is_not_the_300k_random_images(tmp_path: Path) -> None:
    path = tmp_path / "300K_random_images.npy"
    with pytest.raises(FastadError, match=r"no .*300K_random_images\.npy: give"):
        next(tinyimages300k.samples(tmp_path))
    np.save(path, np.zeros((3, 32, 32, 3), dtype=np.uint8))
    whole = path.read_bytes()
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object))
    for data in (whole[:-1], whole[:50], b"", b"<html>", objects.getvalue(), pickle.dumps(1)):
        path.write_bytes(data)
        with pytest.raises(FastadError, match=r"300K_random_images\.npy is not a whole \.npy file .*: fetch"):
            next(tinyimages300k.samples(path))
    for array, found in (
        (np.zeros((3, 32, 32, 3), dtype=np.float32), r"float32 \(3, 32, 32, 3\)"),
        (np.zeros((3, 3, 32, 32), dtype=np.uint8), r"uint8 \(3, 3, 32, 32\)"),
        (np.zeros((), dtype=np.uint8), r"uint8 \(\)"),
    ):
        np.save(path, array)
        with pytest.raises(FastadError, match=rf"holds {found}, not uint8 \(N, 32, 32, 3\)"):
            next(tinyimages300k.samples(path))
    np.save(path, np.asfortranarray(np.zeros((3, 32, 32, 3), dtype=np.uint8)))
    with pytest.raises(FastadError, match=r"holds its images in Fortran's order, unlike the published: fetch 300K"):
        next(tinyimages300k.samples(path))
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(FastadError, match="is not a whole .npy file"):
        next(tinyimages300k.samples(path))

"""Converters: what they accept, what they refuse, and equality with the libraries that read the same files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torchvision
from conftest import write_idx

from fastad.errors import FastadError
from fastad.listing import converter_names, find_converter
from fastad.manifest import Manifest
from fastad.reader import ShardReader
from fastad.shard import convert
from fastad_tools import digits, letters
from fastad_tools._idx import read_idx

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder laid out as MNIST and its relatives are, with few images."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    for stem, count in (("train", 50), ("t10k", 20)):
        write_idx(raw / f"{stem}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10)
    return raw


def in_source_order(manifest: Manifest, split: str) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(manifest.split_rows(split))
    rows = rows[np.argsort(manifest.source_index[rows])]
    return ShardReader(manifest).pixels(rows)[..., 0], manifest.class_index[rows]


def assert_equal_to_torchvision(manifest: Manifest, raw: Path, root: Path, kind: type) -> None:
    folder = root / kind.__name__ / "raw"
    folder.mkdir(parents=True)
    for path in raw.iterdir():
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (folder / path.name.removesuffix(".gz")).write_bytes(data)
    for split in ("train", "test"):
        expected = kind(root, train=split == "train")
        images, labels = in_source_order(manifest, split)
        np.testing.assert_array_equal(images, expected.data.numpy())
        np.testing.assert_array_equal(labels, expected.targets.numpy())
        assert list(manifest.classes) == [name.split(" - ")[0] for name in expected.classes]


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_what_torchvision_reads(name: str, kind: str, packed: bool, raw: Path, tmp_path: Path) -> None:
    if packed:
        for path in list(raw.iterdir()):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    manifest = convert(name, raw, tmp_path / "shards", workers=1)
    assert_equal_to_torchvision(manifest, raw, tmp_path / "torchvision", getattr(torchvision.datasets, kind))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_may_have_a_dot_before_idx_beside_folders_of_the_usual_names(suffix: str, raw: Path) -> None:
    """As unpackers on Windows name them, and the copy on Kaggle has them."""
    name = "train-labels-idx1-ubyte"
    whole = (raw / name).read_bytes()
    (raw / name).unlink()
    (raw / name).mkdir()
    (raw / f"train-labels.idx1-ubyte{suffix}").write_bytes(gzip.compress(whole) if suffix else whole)
    np.testing.assert_array_equal(read_idx(raw, name, 1), np.arange(50) % 10)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_mnist_is_what_torchvision_reads(tmp_path: Path) -> None:
    manifest = convert("fashion-mnist", DEBIAN_FASHION_MNIST, tmp_path / "shards", workers=2)
    assert_equal_to_torchvision(manifest, DEBIAN_FASHION_MNIST, tmp_path / "tv", torchvision.datasets.FashionMNIST)


def test_digits_are_scikit_learns_with_a_black_frame() -> None:
    samples, source = list(digits.samples()), sklearn.datasets.load_digits()
    assert [int(sample.class_name or -1) for sample in samples] == source.target.tolist()
    assert {sample.split for sample in samples[: digits.TRAIN_SIZE]} == {"train"}
    assert {sample.split for sample in samples[digits.TRAIN_SIZE :]} == {"test"}
    # Lanczos' kernel over three pixels a side, for 20 pixels out of 8; Pillow rounds after each direction.
    distance = (np.arange(20)[:, None] + 0.5) * 8 / 20 - (np.arange(8) + 0.5)
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    for sample, small in zip(samples, source.images, strict=True):
        assert sample.pixels[4:24, 4:24].sum() == sample.pixels.sum()
        wide = ((small * 255 / 16).round() @ weights.T).round().clip(0, 255)
        np.testing.assert_allclose(sample.pixels[4:24, 4:24], (weights @ wide).round().clip(0, 255), rtol=0, atol=2)


def test_letters_are_26_distinct_classes_rendered_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "FONTS", ("DejaVuSans", "STIXGeneral"))
    monkeypatch.setattr(letters, "VARIANTS", 2)
    first, again = list(letters.samples()), list(letters.samples())
    assert len(first) == len({sample.key for sample in first}) == 2 * 52 * 2
    assert len({sample.class_name for sample in first}) == 26
    assert len({sample.pixels.tobytes() for sample in first}) == len(first)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert 20 < (one.pixels > 128).sum() < 400
        assert max(one.pixels[[0, -1]].max(), one.pixels[:, [0, -1]].max()) < 64


def test_every_converter_says_what_it_reads_and_under_what_licence() -> None:
    assert {"digits", "fashion-mnist", "letters", "mnist"} <= set(converter_names())
    for name in converter_names():
        converter = find_converter(name)
        assert "unknown" not in (converter.source, converter.licence)


def test_a_missing_idx_file_is_named(raw: Path, tmp_path: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FastadError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in "):
        convert("mnist", raw, tmp_path / "shards")
    assert not (tmp_path / "shards" / "mnist").exists()


@pytest.mark.parametrize("keep", [0, 3, 10, 16, 1000])
def test_a_truncated_idx_file_is_named_and_leaves_nothing(keep: int, raw: Path, tmp_path: Path) -> None:
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        FastadError, match=r"train-images-idx3-ubyte (is not an IDX file|has [\d,]+ bytes, its header says)"
    ):
        convert("mnist", raw, tmp_path / "shards")
    assert not (tmp_path / "shards" / "mnist").exists()


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_a_damaged_gzip_file_is_named(damage: str, raw: Path) -> None:
    path = raw / "train-images-idx3-ubyte"
    data = gzip.compress(path.read_bytes())
    flipped = data[:2000] + bytes([data[2000] ^ 0xFF]) + data[2001:]
    path.unlink()
    Path(f"{path}.gz").write_bytes({"cut": data[:-100], "not gzip": b"<html>", "flipped": flipped}[damage])
    with pytest.raises(FastadError, match=r"train-images-idx3-ubyte\.gz is not a whole gzip file"):
        read_idx(raw, "train-images-idx3-ubyte", 3)


def test_counts_and_labels_that_do_not_fit_are_said(raw: Path, tmp_path: Path) -> None:
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(49) % 10)
    with pytest.raises(FastadError, match="50 train images and 49 labels"):
        convert("mnist", raw, tmp_path / "shards")
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(50))
    with pytest.raises(FastadError, match="train label 49: labels must be below 10"):
        convert("mnist", raw, tmp_path / "shards")

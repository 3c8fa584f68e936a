"""Converters of image files: what they list, in place and in order, and what they refuse."""

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
import webdataset
from PIL import Image

from fastad.encode import Encoding
from fastad.errors import FastadError
from fastad.inspect import grid
from fastad.manifest import FileRange, Manifest, Sample
from fastad.reader import ShardReader
from fastad.shard import convert
from fastad.verify import verify
from fastad_tools import folder, imagenet1k, imagenet22k, imagenet30, mvtec
from fastad_tools._files import images, loose_images, sample_keys
from fastad_tools._tar import tar_files

WNIDS = ("n01440764", "n02119789", "n12267677")


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bytes_of(sample: Sample) -> bytes:
    if isinstance(sample.pixels, FileRange):
        with open(sample.pixels.path, "rb") as file:
            file.seek(sample.pixels.offset)
            return file.read(sample.pixels.size)
    assert isinstance(sample.pixels, str)
    return Path(sample.pixels).read_bytes()


def listed(samples: Iterator[Sample]) -> dict[str, tuple[str | None, str, bytes]]:
    found = list(samples)
    keys = [sample.key for sample in found]
    assert len(set(keys)) == len(keys)
    return {sample.key: (sample.class_name, sample.split, bytes_of(sample)) for sample in found}


def synset_images(wnid: str) -> dict[str, bytes]:
    return {f"{wnid}_{index}.JPEG": jpeg(hash((int(wnid[1:]), index)) % 1000) for index in range(3)}


def test_folder_lists_what_torchvision_lists(tmp_path: Path) -> None:
    for name in ("b c", "a"):
        for index, suffix in enumerate(("jpg", "PNG", "tiff")):
            write(tmp_path / name / f"{index}.{suffix}", jpeg(index))
        write(tmp_path / name / "deep" / "more.jpeg", jpeg(9))
        write(tmp_path / name / "._0.jpg", b"AppleDouble")
        write(tmp_path / name / "notes.txt", b"")
    found = list(folder.samples(tmp_path))
    expected = torchvision.datasets.ImageFolder(
        str(tmp_path), is_valid_file=lambda path: not Path(path).name.startswith(".") and not path.endswith("txt")
    )
    classes = sorted({sample.class_name or "" for sample in found})
    assert classes == expected.classes
    assert {(str(sample.pixels), classes.index(sample.class_name or "")) for sample in found} == set(expected.samples)
    assert {sample.split for sample in found} == {"train"}


def test_folder_takes_splits_and_a_flat_directory(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "split" / split / "cat" / "1.jpg", jpeg(1))
    found = listed(folder.samples(tmp_path / "split"))
    assert {key: value[:2] for key, value in found.items()} == {
        "train/cat/1": ("cat", "train"),
        "test/cat/1": ("cat", "test"),
    }
    write(tmp_path / "flat" / "x.webp", jpeg(2))
    assert listed(folder.samples(tmp_path / "flat"))["nominal/x"][:2] == ("nominal", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastadError, match="no images in .*empty: expected"):
        list(folder.samples(tmp_path / "empty"))


def test_keys_tell_files_apart_whatever_their_names() -> None:
    names = [
        "a/x.jpg",
        "a/x.png",
        "a/b c.jpg",
        "a/b_c.jpg",
        f"a/{'long' * 40}1.jpg",
        f"a/{'long' * 40}2.jpg",
        "ä/x.jpg",
    ]
    keys = sample_keys(names)
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 90 and key.replace("/", "").replace("-", "").replace("_", "").isalnum() for key in keys)
    assert all(key.isascii() for key in keys)
    assert keys[3] == "a/b_c"
    assert sample_keys(names) == keys


def test_a_folder_of_photographs_becomes_shards(tmp_path: Path) -> None:
    for index in range(6):
        write(tmp_path / "raw" / "train" / "ab"[index % 2] / f"{index}.jpg", jpeg(index))
    manifest = convert("folder", tmp_path / "raw", tmp_path / "shards", workers=1)
    assert manifest is not None
    assert manifest.classes == ("a", "b")
    assert len(manifest.key) == 6
    assert_same_images(manifest, "train", torchvision.datasets.ImageFolder(str(tmp_path / "raw" / "train")))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_read_in_place_also_with_long_names(form: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 4] * 5) + "/image.JPEG"
    members = {"a.JPEG": jpeg(1), long: jpeg(2), "empty.JPEG": b""}
    tar = write_tar(tmp_path / "x.tar", members, form)
    for name, place in tar_files(tar).items():
        assert bytes_of(Sample("key", place, None, "train")) == members[name]
    assert set(tar_files(tar)) == set(members)


@pytest.mark.parametrize("cut", [300, 700, -6_000])
def test_a_truncated_tar_is_named(cut: int, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "n01440764.tar", synset_images("n01440764"))
    tar.write_bytes(tar.read_bytes().rstrip(b"\0")[:cut])
    with pytest.raises(FastadError, match=r"n01440764\.tar is not a whole tar"):
        list(imagenet22k.samples(tmp_path))


def imagenet(form: str, root: Path) -> Path:
    """The same three synsets as folders, tars, or tars in one tar."""
    if form == "folders":
        for wnid in WNIDS:
            for name, data in synset_images(wnid).items():
                write(root / wnid / name, data)
        return root
    tars = {f"{wnid}.tar": write_tar(root / f"{wnid}.tar", synset_images(wnid)) for wnid in WNIDS}
    if form == "tars":
        return root
    return write_tar(root / "whole" / "fall11_whole.tar", {name: path.read_bytes() for name, path in tars.items()})


@pytest.mark.parametrize("form", ["folders", "tars", "tar of tars"])
def test_imagenet22k_is_the_same_however_it_is_packed(form: str, tmp_path: Path) -> None:
    expected = {
        f"{wnid}/{name.removesuffix('.JPEG')}": (wnid, "train", data)
        for wnid in WNIDS
        for name, data in synset_images(wnid).items()
    }
    assert listed(imagenet22k.samples(imagenet(form, tmp_path))) == expected


def test_what_holds_no_synsets_or_cannot_be_read_in_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastadError, match="no synsets in .*empty"):
        list(imagenet22k.samples(tmp_path / "empty"))
    write(tmp_path / "packed" / "n01440764.tar.gz", b"\x1f\x8b" + bytes(600))
    with pytest.raises(FastadError, match="gzipped, and cannot be read in place: gunzip it first"):
        list(imagenet22k.samples(tmp_path / "packed"))


DEVKIT_FIELDS = (
    *("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"),
)


def write_devkit(raw: Path, wnids: tuple[str, ...], labels: list[int]) -> Path:
    """The devkit's folder; after the classes comes a parent of the first two, as parents do in the published table."""
    rows = [
        (index, wnid, f"{wnid}, a synset", "what it is", 0, np.zeros(0), 0, 1_300)
        for index, wnid in enumerate(wnids, start=1)
    ]
    rows.append((len(wnids) + 1, "n00001740", "parent", "of two", 2, np.array([1, 2]), 1, 0))
    table = np.empty((len(rows), 1), dtype=[(name, "O") for name in DEVKIT_FIELDS])
    table[:, 0] = rows
    data = raw / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    scipy.io.savemat(data / "meta.mat", {"synsets": table})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{label}\n" for label in labels))
    return data.parent


def assert_same_images(manifest: Manifest | None, split: str, expected: torchvision.datasets.ImageFolder) -> None:
    """The split holds the pixels and labels that torchvision reads, in its order."""
    assert manifest is not None
    rows = np.asarray(manifest.split_rows(split))
    rows = rows[np.argsort(manifest.source_index[rows])]
    assert manifest.class_index[rows].tolist() == expected.targets
    for row, (image, _) in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(ShardReader(manifest).image(row), np.asarray(image))


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # of how torchvision extracts
def test_imagenet1k_is_what_torchvision_reads_of_the_published_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [2, 1, 3, 1, 3]
    raw, parts = tmp_path / "raw", tmp_path / "parts"
    raw.mkdir()
    imagenet("tar of tars", parts).rename(raw / "ILSVRC2012_img_train.tar")
    images = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(200 + number) for number in range(1, len(labels) + 1)}
    write_tar(raw / "ILSVRC2012_img_val.tar", images)
    with tarfile.open(raw / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        # The classes' numbers are not in the order of their ids.
        tar.add(write_devkit(parts, (WNIDS[2], WNIDS[0], WNIDS[1]), labels), "ILSVRC2012_devkit_t12")
    manifest = convert("imagenet1k", raw, tmp_path / "shards", workers=1)
    shutil.copytree(raw, tmp_path / "unpacked")
    for part, (name, _) in torchvision.datasets.imagenet.ARCHIVE_META.items():
        monkeypatch.setitem(torchvision.datasets.imagenet.ARCHIVE_META, part, (name, None))
    for split, part in (("train", "train"), ("test", "val")):
        expected = torchvision.datasets.ImageNet(tmp_path / "unpacked", part)
        assert manifest is not None and list(manifest.classes) == expected.wnids
        assert_same_images(manifest, split, expected)


def test_imagenet22k_is_what_torchvision_reads(tmp_path: Path) -> None:
    imagenet("tars", tmp_path / "tars")
    manifest = convert("imagenet22k", tmp_path / "tars", tmp_path / "shards", workers=1)
    assert manifest is not None
    expected = torchvision.datasets.ImageFolder(str(imagenet("folders", tmp_path / "folders")))
    assert list(manifest.classes) == expected.classes
    assert_same_images(manifest, "train", expected)


@pytest.mark.parametrize("form", ["folders", "flat", "flat tar"])
def test_imagenet1k_labels_its_validation_images(form: str, tmp_path: Path) -> None:
    labels = [2, 1, 3, 1]
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
    images = {name: jpeg(100 + number) for number, name in enumerate(names)}
    imagenet("folders", tmp_path / "train")
    if form == "folders":
        for name, label in zip(names, labels, strict=True):
            write(tmp_path / "val" / WNIDS[label - 1] / name, images[name])
    elif form == "flat":
        for name in names:
            write(tmp_path / "val" / name, images[name])
    else:
        write_tar(tmp_path / "ILSVRC2012_img_val.tar", images)
    if form != "folders":
        with pytest.raises(FastadError, match=r"no .*ground_truth\.txt .*: flat validation images need the devkit"):
            list(imagenet1k.samples(tmp_path))
        write_devkit(tmp_path, WNIDS, labels)
    found = listed(imagenet1k.samples(tmp_path))
    assert sum(split == "train" for _, split, _ in found.values()) == 9
    for name, label in zip(names, labels, strict=True):
        wnid = WNIDS[label - 1]
        assert found[f"test/{wnid}/{name.removesuffix('.JPEG')}"] == (wnid, "test", images[name])


def test_imagenet1k_train_may_be_a_tar_of_tars_and_stand_alone(tmp_path: Path) -> None:
    whole = imagenet("tar of tars", tmp_path / "parts")
    (tmp_path / "raw").mkdir()
    whole.rename(tmp_path / "raw" / "ILSVRC2012_img_train.tar")
    assert {value[0] for value in listed(imagenet1k.samples(tmp_path / "raw")).values()} == set(WNIDS)
    (tmp_path / "none").mkdir()
    with pytest.raises(FastadError, match="no ImageNet-1K in .*none: it should hold train/"):
        list(imagenet1k.samples(tmp_path / "none"))


def test_labels_that_do_not_fit_are_said(tmp_path: Path) -> None:
    write(tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG", jpeg(1))
    write_devkit(tmp_path, WNIDS, [1, 2])
    with pytest.raises(FastadError, match=r"holds ILSVRC2012_val_00000003\.JPEG, for which the devkit has no label"):
        list(imagenet1k.samples(tmp_path))


def test_flat_validation_images_are_labelled_by_their_number_also_from_a_packed_devkit(tmp_path: Path) -> None:
    write(tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG", jpeg(1))
    write_devkit(tmp_path, WNIDS, [1, 3])
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    (tmp_path / "ILSVRC2012_devkit_t12").rename(tmp_path / "elsewhere")
    (sample,) = imagenet1k.samples(tmp_path)
    assert (sample.key, sample.class_name) == (f"test/{WNIDS[2]}/ILSVRC2012_val_00000002", WNIDS[2])


def test_imagenet30_says_what_it_takes_where_it_finds_none_of_it(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="no ImageNet-30 in .*: it should hold one_class_train/ and one_class_test/"):
        list(imagenet30.samples(tmp_path))


def test_imagenet30_is_the_benchmarks_release_without_its_stray_file(tmp_path: Path) -> None:
    assert list(imagenet30.CLASSES) == sorted(imagenet30.CLASSES)
    assert len(set(imagenet30.CLASS_OF)) == 30
    for split in ("train", "test"):
        for number, name in enumerate(imagenet30.CLASSES):
            write(tmp_path / f"one_class_{split}" / name / "images" / "0.JPEG", jpeg(number))
    write(tmp_path / "one_class_train" / "airliner" / "._1.JPEG", b"AppleDouble")
    found = listed(imagenet30.samples(tmp_path))
    assert len(found) == 60
    assert found["test/volcano/images/0"] == ("volcano", "test", jpeg(29))
    manifest = convert("imagenet30", tmp_path, tmp_path / "shards", workers=1)
    for split in ("train", "test"):
        expected = torchvision.datasets.ImageFolder(
            str(tmp_path / f"one_class_{split}"), is_valid_file=lambda path: "._" not in path
        )
        assert expected.classes == list(imagenet30.CLASSES)
        assert_same_images(manifest, split, expected)
    (tmp_path / "one_class_test" / "acorn").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FastadError, match="no folder .*one_class_test/acorn: give the folder that holds the whole release"
    ):
        list(imagenet30.samples(tmp_path))


def test_imagenet30_is_also_a_part_of_an_imagenet1k_tree(tmp_path: Path) -> None:
    for number, wnid in enumerate((*imagenet30.CLASS_OF, "n01440764")):
        write(tmp_path / "train" / wnid / f"{wnid}_1.JPEG", jpeg(number))
        write(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(number))
    found = listed(imagenet30.samples(tmp_path))
    assert len(found) == 60
    assert {value[0] for value in found.values()} == set(imagenet30.CLASSES)
    assert found["train/n12267677/n12267677_1"] == ("acorn", "train", jpeg(0))
    convert("imagenet1k", tmp_path, tmp_path / "shards", workers=1)
    assert listed(imagenet30.samples(tmp_path / "shards" / "imagenet1k")) == found
    (tmp_path / "train" / "n12267677" / "n12267677_1.JPEG").rename(tmp_path / "x.JPEG")
    (tmp_path / "train" / "n12267677").rmdir()
    with pytest.raises(FastadError, match="holds no train images of acorn: ImageNet-30 needs"):
        list(imagenet30.samples(tmp_path))


@pytest.mark.parametrize("category_only", [False, True])
def test_mvtec_keeps_defects_apart_and_masks_beside_their_images(category_only: bool, tmp_path: Path) -> None:
    for place in ("train/good/000", "test/good/000", "test/hole/000", "ground_truth/hole/000_mask"):
        write(tmp_path / "mvtec" / "carpet" / f"{place}.png", jpeg(len(place)))
    raw = tmp_path / "mvtec" / "carpet" if category_only else tmp_path / "mvtec"
    found = {key: value[:2] for key, value in listed(mvtec.samples(raw)).items()}
    assert found == {
        "carpet/train/good/000": ("carpet/good", "train"),
        "carpet/test/good/000": ("carpet/good", "test"),
        "carpet/test/hole/000": ("carpet/hole", "test"),
        "carpet/test/hole/000_mask": ("carpet/hole", "masks"),
    }
    with pytest.raises(FastadError, match="no MVTec AD in "):
        list(mvtec.samples(tmp_path))


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        (("cat/1.jpg", "loose.jpg"), r"holds loose\.jpg beside cat/: put it in a class's folder"),
        (("train/1.jpg", "plane/1.jpg"), r"holds plane/1\.jpg beside train/: put it in a split's folder"),
        (("train/1.jpg", "test/2.jpg"), r"test holds 2\.jpg without a class: put it in a class's folder"),
    ],
)
def test_folder_refuses_to_leave_images_out_or_to_guess_their_class(
    paths: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    for path in paths:
        write(tmp_path / path, jpeg(1))
    with pytest.raises(FastadError, match=match):
        list(folder.samples(tmp_path))


def test_files_are_sorted_by_the_parts_of_their_paths(tmp_path: Path) -> None:
    for name in ("a!/1.jpg", "a/z.jpg", "a.jpg", "b.jpg", ".hidden.jpg", "note.txt"):
        write(tmp_path / name, b"")
    assert list(images(tmp_path)) == ["a/z.jpg", "a!/1.jpg", "a.jpg", "b.jpg"]
    assert loose_images(tmp_path) == {name: str(tmp_path / name) for name in ("a.jpg", "b.jpg")}


def test_a_flat_folder_may_hold_folders_without_images(tmp_path: Path) -> None:
    write(tmp_path / "1.jpg", jpeg(1))
    write(tmp_path / "notes" / "read.txt", b"")
    assert set(listed(folder.samples(tmp_path))) == {"nominal/1"}


def mvtec_category(raw: Path, defect: str) -> Path:
    for place in ("train/good/000", "test/good/000", f"test/{defect}/000", f"ground_truth/{defect}/000_mask"):
        write(raw / f"{place}.png", jpeg(len(place)))
    return raw


def test_mvtec_masks_follow_their_images_whatever_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for defect in ("a hole", "x" * 90):
        monkeypatch.chdir(mvtec_category(tmp_path / defect[0] / "carpet", defect))
        found = {key: value[:2] for key, value in listed(mvtec.samples(Path())).items()}
        (mask,) = (key for key in found if found[key][1] == "masks")
        assert found[mask.removesuffix("_mask")] == (f"carpet/{defect}", "test")
        assert len(mask) <= 90


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
@pytest.mark.parametrize("resize_px", [None, 100, 50])
def test_mvtec_masks_stay_exact_beside_their_photographs(resize_px: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.where(rng.random((150, 150)) < 0.5, 255, 0).astype(np.uint8)
    for place in ("train/good/000", "test/good/000", "test/hole/000", "ground_truth/hole/000_mask"):
        path = tmp_path / "carpet" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(mask if place.endswith("mask") else noise).save(path)
    manifest = convert(
        "mvtec", tmp_path / "carpet", tmp_path / "home", encoding=Encoding(resize_px=resize_px), workers=1
    )
    assert manifest is not None
    (row,) = manifest.split_rows("masks")
    (photo,) = (row for row in manifest.split_rows("test") if manifest.key[row].endswith(b"hole/000"))
    assert manifest.extension[row] == b"png"
    assert (manifest.width[row], manifest.height[row]) == (manifest.width[photo], manifest.height[photo])
    found = ShardReader(manifest).image(row)[..., 0]
    if resize_px is None:
        np.testing.assert_array_equal(found, mask)
    assert set(np.unique(found)) == {0, 255}
    verify(manifest.folder, "decode")
    assert grid(manifest).width > 300
    (sample,) = webdataset.WebDataset(str(manifest.folder / "masks-00000.tar"), shardshuffle=False).decode("pil")
    np.testing.assert_array_equal(np.asarray(sample["png"].convert("L")), found)
    index = (manifest.folder / "masks-00000.idx").read_text().split()
    assert index[2:] == ["png", str(manifest.offset[row]), str(manifest.size[row])]
    # Small photographs are arrays of one size still; masks are none of them.
    assert manifest.common_shape_hwc == ((50, 50, 3) if resize_px == 50 else None)
    if resize_px == 50:
        ShardReader(manifest).pixels(np.array([photo]))
        with pytest.raises(FastadError, match="exact images, such as masks, are no arrays of one size: leave them out"):
            ShardReader(manifest).pixels(np.array([photo, row]))


def test_mvtec_that_is_not_whole_is_said(tmp_path: Path) -> None:
    carpet = mvtec_category(tmp_path / "carpet", "hole")
    write(carpet / "test" / "hole" / "001.png", jpeg(1))
    with pytest.raises(FastadError, match=r"hole/001\.png has no mask: extract .*carpet again"):
        list(mvtec.samples(tmp_path))
    (carpet / "test" / "hole" / "001.png").rename(carpet / "ground_truth" / "hole" / "002_mask.png")
    with pytest.raises(FastadError, match=r"002_mask\.png masks no test image: extract .*carpet again"):
        list(mvtec.samples(tmp_path))
    write(tmp_path / "tile" / "test" / "good" / "000.png", jpeg(1))
    (carpet / "ground_truth" / "hole" / "002_mask.png").unlink()
    with pytest.raises(FastadError, match="no .*tile/train/good: extract that category again"):
        list(mvtec.samples(tmp_path))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_at_any_block_is_refused(form: int, tmp_path: Path) -> None:
    """Also where a member ends, which the standard library takes for the end of the archive."""
    data = write_tar(tmp_path / "x.tar", {"a.JPEG": b"a" * 600, f"{'b' * 80}/{'b' * 80}.JPEG": b"b"}, form).read_bytes()
    for blocks in range(len(data.rstrip(b"\0")) // 512 + 1):
        (tmp_path / "cut.tar").write_bytes(data[: 512 * blocks])
        with pytest.raises(FastadError, match=r"cut\.tar is not a whole tar"):
            tar_files(tmp_path / "cut.tar")

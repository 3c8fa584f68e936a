"""ImageNet-1K (ILSVRC 2012): 1,281,167 train images of 1,000 synsets (138 GB), and 50,000 validation images (6.7 GB).

Classes are WordNet ids; the validation images are the split "test". The raw folder holds one or both of
    train  train/n01440764/*.JPEG …, or train/n01440764.tar …, or ILSVRC2012_img_train.tar (tars are never unpacked)
    val    val/n01440764/*.JPEG …, or flat: val/ILSVRC2012_val_00000001.JPEG …, or ILSVRC2012_img_val.tar
and, for the labels of flat validation images, the devkit: ILSVRC2012_devkit_t12/ or ILSVRC2012_devkit_t12.tar.gz.
Where there is a folder and a tar of the same images, the folder is read.
"""

import re
from collections.abc import Container, Iterator
from importlib import resources
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import FileRange, Sample
from fastad_tools._devkit import validation_wnids
from fastad_tools._files import images, is_image, subfolders
from fastad_tools._imagenet import Places, synset_samples, synsets
from fastad_tools._tar import tar_files

SOURCE = "ImageNet Large Scale Visual Recognition Challenge 2012 (Russakovsky et al. 2015), https://image-net.org"
LICENCE = "ImageNet terms of access: non-commercial research and education; the images are their owners'"
PUBLISHED_COUNTS = {"ILSVRC 2012": {"train": 1_281_167, "test": 50_000}}

_VAL_NAME = re.compile(r"(?:.*/)?(ILSVRC2012_val_(\d{8})\.JPEG)")


def samples(raw: Path) -> Iterator[Sample]:
    yield from synsets_of(raw)


def synsets_of(raw: Path, only: Container[str] | None = None) -> Iterator[Sample]:
    """The samples of an ImageNet-1K tree, or of the wanted synsets of it: the others are not looked into."""
    train, val = _folder_or_tar(raw, "train"), _folder_or_tar(raw, "val")
    if train is None and val is None:
        raise FastadError(
            f"no ImageNet-1K in {raw}: it should hold train/, val/ or ILSVRC2012_img_train.tar, …_val.tar"
        )
    sources = {"train": {} if train is None else synsets(train), "test": {} if val is None else _validation(raw, val)}
    for split, found in sources.items():
        kept = {wnid: source for wnid, source in found.items() if only is None or wnid in only}
        yield from synset_samples(kept, split, f"{split}/")


def holds_imagenet1k(raw: Path) -> bool:
    """Whether there is a part of an ImageNet-1K tree."""
    return any(_folder_or_tar(raw, part) for part in ("train", "val"))


def wnids() -> tuple[str, ...]:
    """The WordNet ids of the challenge's 1,000 synsets, sorted, which is the usual order of its classes."""
    return tuple(resources.files("fastad_tools").joinpath("data", "imagenet1k_synsets.txt").read_text().split())


def _folder_or_tar(raw: Path, part: str) -> Path | None:
    tar = raw / f"ILSVRC2012_img_{part}.tar"
    return raw / part if (raw / part).is_dir() else tar if tar.is_file() else None


def _validation(raw: Path, place: Path) -> dict[str, Path | FileRange | Places]:
    """The validation images by synset; flat ones by the devkit's labels, each by the number in its name."""
    if place.is_dir() and subfolders(place):
        return dict(synsets(place))
    flat: Places = images(place) if place.is_dir() else tar_files(place)
    wnids = validation_wnids(raw)
    found: dict[str, dict[str, Path | str | FileRange]] = {}
    for name, image in flat.items():
        if not is_image(name):
            continue
        match = _VAL_NAME.fullmatch(name)
        if match is None or not 0 < int(match[2]) <= len(wnids):
            raise FastadError(
                f"{place} holds {name}, for which the devkit has no label: "
                f"names should be ILSVRC2012_val_00000001.JPEG to {len(wnids):08d}"
            )
        found.setdefault(wnids[int(match[2]) - 1], {})[match[1]] = image
    if not found:
        raise FastadError(f"no images in {place}: it should hold ILSVRC2012_val_00000001.JPEG …")
    return dict(found)

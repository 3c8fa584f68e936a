"""ImageNet-1K (ILSVRC 2012): 1,281,167 train images of 1,000 synsets (138 GB), and 50,000 validation images (6.7 GB).

Classes are WordNet ids; the validation images are the split "test". The raw folder holds one or both of
    train   train/n01440764/*.JPEG, or train/n01440764.tar …, or ILSVRC2012_img_train.tar (tars are not unpacked)
    val     val/n01440764/*.JPEG, or flat: val/ILSVRC2012_val_00000001.JPEG …, or ILSVRC2012_img_val.tar
and for flat validation images the devkit with their labels: ILSVRC2012_devkit_t12/data/meta.mat and
ILSVRC2012_validation_ground_truth.txt. Where there are a folder and a tar, the folder is read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import scipy.io

from fastad.errors import FastadError
from fastad.manifest import FileRange, Sample
from fastad_tools._files import images, is_image, subfolders
from fastad_tools._imagenet import Places, synset_samples, synsets
from fastad_tools._tar import tar_files

SOURCE = "ImageNet Large Scale Visual Recognition Challenge 2012 (Russakovsky et al. 2015), https://image-net.org"
LICENCE = "ImageNet terms of access: non-commercial research and education; the images are their owners'"

DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"


def samples(raw: Path) -> Iterator[Sample]:
    found = sources(raw)
    for split, synsets_of_split in found.items():
        yield from synset_samples(synsets_of_split, split, f"{split}/" if len(found) > 1 else "")


def sources(raw: Path) -> dict[str, Mapping[str, Path | FileRange | Places]]:
    """Where the images of each synset are, for the splits that are there."""
    train, val = (_first(raw, name) for name in ("train", "val"))
    if train is None and val is None:
        raise FastadError(f"no ImageNet-1K in {raw}: it should hold train/, val/ or ILSVRC2012_img_train.tar, _val.tar")
    found: dict[str, Mapping[str, Path | FileRange | Places]] = {}
    if train is not None:
        found["train"] = synsets(train)
    if val is not None:
        found["test"] = synsets(val) if val.is_dir() and subfolders(val) else _flat(raw, val)
    return found


def _first(raw: Path, name: str) -> Path | None:
    places = (raw / name, raw / f"ILSVRC2012_img_{name}", raw / f"ILSVRC2012_img_{name}.tar")
    return next((place for place in places if place.exists()), None)


def _flat(raw: Path, val: Path) -> dict[str, Places]:
    """The validation images by synset: the n-th image in the order of names has the n-th label of the devkit."""
    found = images(val) if val.is_dir() else {n: place for n, place in tar_files(val).items() if is_image(n)}
    truth, meta = raw / DEVKIT / "ILSVRC2012_validation_ground_truth.txt", raw / DEVKIT / "meta.mat"
    for path in (truth, meta):
        if not path.is_file():
            raise FastadError(f"{val} is flat, so its labels are needed, but there is no {path}: add the devkit")
    try:
        table = scipy.io.loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
        labels = [wnid_of[int(line)] for line in truth.read_text().split()]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FastadError(f"{raw / DEVKIT} is not the devkit of ILSVRC 2012 ({error}): fetch it again") from error
    if len(labels) != len(found):
        raise FastadError(f"{val} holds {len(found):,} images, {truth} {len(labels):,} labels: fetch them again")
    by_synset: dict[str, dict[str, Path | FileRange]] = {}
    for (name, place), wnid in zip(found.items(), labels, strict=True):
        by_synset.setdefault(wnid, {})[name] = place
    return dict(by_synset)

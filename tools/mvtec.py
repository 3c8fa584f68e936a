"""MVTec AD: 5,354 photographs of 15 objects and textures, with and without defects (Bergmann et al. 2019; 4.9 GB).

Expected as raw data: the root of the set, or one category's folder:
    bottle/train/good/000.png …   bottle/test/good/000.png …   bottle/test/broken_large/000.png …
    bottle/ground_truth/broken_large/000_mask.png …

A class is a category with a defect, such as `bottle/broken_large`, or `bottle/good`. Masks are kept as samples of the
split "masks", exact to the pixel; a mask's key is its image's with `_mask` after it.
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import Sample
from fastad_tools._files import LONGEST_KEY, images, sample_keys, subfolders

SOURCE = "MVTec AD (Bergmann, Fauser, Sattlegger and Steger 2019)"
LICENCE = "CC BY-NC-SA 4.0"

MASK = "_mask"


def samples(raw: Path) -> Iterator[Sample]:
    if not raw.is_dir():
        raise FastadError(f"{raw} is not a folder: give the root of MVTec AD or one category's folder")
    categories = [raw] if (raw / "train" / "good").is_dir() else subfolders(raw)
    if not any((category / "train" / "good").is_dir() for category in categories):
        raise FastadError(f"no MVTec AD in {raw}: it should hold bottle/train/good/ …, or train/good/ itself")
    for category in categories:
        if not (category / "train" / "good").is_dir():
            raise FastadError(f"no {category}/train/good: extract that category again, or move its folder away")
        yield from _of_category(category, category.resolve().name)


def _of_category(folder: Path, category: str) -> Iterator[Sample]:
    masks = images(folder / "ground_truth") if (folder / "ground_truth").is_dir() else {}
    kept, without = [], None
    for split in ("train", "test"):
        for defect in subfolders(folder / split):
            found, class_name = images(defect), f"{category}/{defect.name}"
            keys = sample_keys([f"{category}/{split}/{defect.name}/{name}" for name in found], LONGEST_KEY - len(MASK))
            for key, (name, path) in zip(keys, found.items(), strict=True):
                yield Sample(key, path, class_name, split)
                if split == "test" and (mask := masks.pop(f"{defect.name}/{Path(name).stem}{MASK}.png", None)):
                    kept.append(Sample(f"{key}{MASK}", mask, class_name, "masks", exact=True))
                elif split == "test" and defect.name != "good":
                    without = path
    if masks or (kept and without):
        odd = f"{next(iter(masks.values()))} masks no test image" if masks else f"{without} has no mask"
        raise FastadError(f"{odd}: extract {folder} again")
    yield from kept

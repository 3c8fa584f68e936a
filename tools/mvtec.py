"""MVTec AD: 5,354 photographs of 15 objects and textures, with and without defects (Bergmann et al. 2019; 4.9 GB).

Expected as raw data: the root of the set, or one category's folder:
    bottle/train/good/000.png …   bottle/test/good/000.png …   bottle/test/broken_large/000.png …
    bottle/ground_truth/broken_large/000_mask.png …

A class is a category with a defect, such as `bottle/broken_large`, or `bottle/good`. Masks are kept as samples of the
split "masks"; a mask's key is its image's with `_mask` after it.
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import Sample
from fastad_tools._files import images, sample_keys, subfolders

SOURCE = "MVTec AD (Bergmann, Fauser, Sattlegger and Steger 2019)"
LICENCE = "CC BY-NC-SA 4.0"

# Split → its folder in a category, and the name of its part of a key: masks share that of their images.
PARTS = {"train": ("train", "train"), "test": ("test", "test"), "masks": ("ground_truth", "test")}


def samples(raw: Path) -> Iterator[Sample]:
    if not raw.is_dir():
        raise FastadError(f"{raw} is not a folder: give the root of MVTec AD or one category's folder")
    categories = [raw] if (raw / "train" / "good").is_dir() else subfolders(raw)
    categories = [category for category in categories if (category / "train" / "good").is_dir()]
    if not categories:
        raise FastadError(f"no MVTec AD in {raw}: it should hold bottle/train/good/ …, or train/good/ itself")
    for category in categories:
        for split, (folder, part) in PARTS.items():
            for defect in subfolders(category / folder) if (category / folder).is_dir() else []:
                found = images(defect)
                keys = sample_keys([f"{category.name}/{part}/{defect.name}/{name}" for name in found])
                for key, path in zip(keys, found.values(), strict=True):
                    yield Sample(key, path, f"{category.name}/{defect.name}", split)

"""Your own images: a folder for each class, or one folder of images that are all nominal.

Expected in the raw folder, JPEG, PNG, WebP, BMP and TIFF mixed as they come (other and hidden files are left out):
    train/<class>/**/*.jpg   test/<class>/**/*.jpg   (or val/)      each becomes a split
    <class>/**/*.jpg                                                all in the split "train"
    *.jpg                                                           class "nominal", split "train"
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import Sample
from fastad_tools._files import images, loose_images, sample_keys, subfolders

SOURCE = "a folder of images"
LICENCE = "that of the images"

SPLITS = ("train", "val", "test")


def samples(raw: Path) -> Iterator[Sample]:
    if not raw.is_dir():
        raise FastadError(f"{raw} is not a folder: give the folder that holds the images or their classes")
    splits = {name: raw / name for name in SPLITS if (raw / name).is_dir()}
    if splits and (beside := next(_beside(raw, splits), None)):
        raise FastadError(
            f"{raw} holds {beside} beside {next(iter(splits))}/: put it in a split's folder, or move it away"
        )
    empty = True
    for split, folder in (splits or {"train": raw}).items():
        prefix = f"{split}/" if len(splits) > 1 else ""
        for class_name, found in _classes(folder, split):
            keys = sample_keys([f"{prefix}{class_name}/{name}" for name in found])
            for key, path in zip(keys, found.values(), strict=True):
                empty = False
                yield Sample(key, path, class_name, split)
    if empty:
        raise FastadError(
            f"no images in {raw}: expected <class>/*.jpg, train/<class>/*.jpg or *.jpg (also PNG, TIFF …)"
        )


def _beside(raw: Path, splits: Collection[str]) -> Iterator[str]:
    """The images that lie in no split's folder."""
    yield from loose_images(raw)
    for folder in subfolders(raw):
        if folder.name not in splits:
            yield from (f"{folder.name}/{name}" for name in images(folder))


def _classes(folder: Path, split: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The images of each class folder by their paths in it, or, where there are none, those of a flat folder."""
    classes = [(path.name, found) for path in subfolders(folder) if (found := images(path))]
    loose = loose_images(folder)
    if loose and (classes or split != "train"):
        beside = f"beside {classes[0][0]}/" if classes else "without a class"
        raise FastadError(f"{folder} holds {next(iter(loose))} {beside}: put it in a class's folder, or move it away")
    return iter(classes or [("nominal", loose)])

"""Which samples of a set, in which role: a view is a list of manifest rows.

Owns selection by split, class, number and seed; reads no images and writes nothing.
Use: `rows = select(View("train", classes=("Trouser",)), manifest)`.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.manifest import Manifest
from fastad.seeds import generator
from fastad.synsets import synsets


@dataclass(frozen=True, slots=True)
class View:
    """A selection of one split. `classes` empty means all; less `exclude_classes`, and less the classes on the lists
    `exclude_synsets` (`fastad.synsets`), of which the set may lack any. `class_count` and `size` are drawn by `seed`,
    and nested: a larger draw begins with the smaller one."""

    split: str = "train"
    classes: tuple[str, ...] = ()
    exclude_classes: tuple[str, ...] = ()
    exclude_synsets: tuple[str, ...] = ()
    class_count: int | None = None
    size: int | None = None
    seed: int = 0


def select(view: View, manifest: Manifest, exclude_hashes: np.ndarray | None = None) -> np.ndarray:
    """The view's rows, int64 [n]: ascending, or in the order drawn where `size` is given.

    Images whose `content_hash` is among `exclude_hashes` are left out before anything is drawn.

    Raises `FastadError` for an unknown split or class, for more images or classes than there are, and for a view that
    is empty.
    """
    split = manifest.split_rows(view.split)
    rows = np.arange(split.start, split.stop, dtype=np.int64)
    wanted = _wanted_classes(view, manifest)
    if wanted is not None:
        rows = rows[wanted[manifest.class_index[split.start : split.stop]]]
    if exclude_hashes is not None:
        rows = rows[~stand_in(content_hashes(manifest, rows), exclude_hashes)]
    if not len(rows):
        chosen = f"classes {', '.join(view.classes)}" if view.classes else "this split"
        excludes = view.exclude_classes or view.exclude_synsets or exclude_hashes is not None
        raise FastadError(
            f"{manifest.folder} has no {view.split} images of {chosen}{' but excluded ones' if excludes else ''}: "
            f"choose another class, set or split{', or exclude less' if excludes else ''}"
        )
    if view.size is None:
        return rows
    if not 1 <= view.size <= len(rows):
        raise FastadError(
            f"{view.size} images asked of {manifest.folder}, which has {len(rows)}: ask for 1 to {len(rows)}"
        )
    return rows[generator(view.seed, "view", "rows").permutation(len(rows))[: view.size]]


def classes_in(split: str, manifest: Manifest) -> tuple[str, ...]:
    """The classes that have images in the split, in the set's order."""
    rows = manifest.split_rows(split)
    found = np.bincount(manifest.class_index[rows.start : rows.stop] + 1, minlength=len(manifest.classes) + 1)[1:]
    return tuple(name for name, count in zip(manifest.classes, found, strict=True) if count)


def content_hashes(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """The rows' hashes, uint64 [n]; raises `FastadError` where the set was converted without them."""
    hashes = manifest.content_hash[rows]
    if not hashes.all():
        raise FastadError(
            f"{manifest.folder} was converted with --unchecked, so its duplicates are not known: "
            "convert it without, or exclude none"
        )
    return hashes


def stand_in(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each content hash is among the others, bool [n]; for millions faster than `np.isin`."""
    if not len(others):
        return np.zeros(len(hashes), dtype=bool)
    others = np.sort(others)
    return others.take(np.searchsorted(others, hashes), mode="clip") == hashes


def _wanted_classes(view: View, manifest: Manifest) -> np.ndarray | None:
    """Whether each class index is wanted, bool [classes + 1], the last for "no class"; None for all samples alike."""
    known = set(manifest.classes)
    for name in (*view.classes, *view.exclude_classes):
        if name not in known:
            raise unknown(f"class of {manifest.name}", name, manifest.classes)
    excluded = known & {*view.exclude_classes, *chain.from_iterable(map(synsets, view.exclude_synsets))}
    if not (view.classes or excluded or view.class_count is not None):
        return None
    named = set(view.classes or manifest.classes) - excluded
    chosen = [index for index, name in enumerate(manifest.classes) if name in named]
    if chosen and view.class_count is not None:
        if not 1 <= view.class_count <= len(chosen):
            raise FastadError(f"{view.class_count} classes asked of {manifest.folder}: ask for 1 to {len(chosen)}")
        chosen = generator(view.seed, "view", "classes").permutation(chosen)[: view.class_count].tolist()
    wanted = np.zeros(len(manifest.classes) + 1, dtype=bool)
    wanted[chosen] = True
    wanted[-1] = not view.classes and view.class_count is None
    return wanted

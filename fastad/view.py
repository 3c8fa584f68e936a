"""Which samples of a set, in which role: a view is a list of manifest rows.

Owns selection by split, class, number and seed; reads no images and writes nothing.
Use: `rows = select(View("train", classes=("Trouser",)), manifest)`.
"""

from dataclasses import dataclass

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.manifest import Manifest
from fastad.seeds import generator


@dataclass(frozen=True, slots=True)
class View:
    """A selection of one split. `classes` empty means all; `class_count` and `size` are drawn by `seed`, and nested:
    a larger draw begins with the smaller one."""

    split: str = "train"
    classes: tuple[str, ...] = ()
    class_count: int | None = None
    size: int | None = None
    seed: int = 0


def select(view: View, manifest: Manifest) -> np.ndarray:
    """The view's rows, int64 [n]: ascending, or in the order drawn where `size` is given.

    Raises `FastadError` for an unknown split or class, for more images or classes than there are, and for a view that
    is empty.
    """
    split = manifest.split_rows(view.split)
    rows = np.arange(split.start, split.stop, dtype=np.int64)
    wanted = _wanted_classes(view, manifest)
    if wanted is not None:
        rows = rows[np.isin(manifest.class_index[split.start : split.stop], wanted)]
    if not len(rows):
        chosen = f"classes {', '.join(view.classes)}" if view.classes else "this split"
        raise FastadError(
            f"{manifest.folder} has no {view.split} images of {chosen}: choose another class, set or split"
        )
    if view.size is None:
        return rows
    if not 1 <= view.size <= len(rows):
        raise FastadError(
            f"{view.size} images asked of {manifest.folder}, which has {len(rows)}: ask for 1 to {len(rows)}"
        )
    return rows[generator(view.seed, "view", "rows").permutation(len(rows))[: view.size]]


def _wanted_classes(view: View, manifest: Manifest) -> list[int] | None:
    """Class indices, or None for every sample, of a class or not."""
    for name in view.classes:
        if name not in manifest.classes:
            raise unknown(f"class of {manifest.name}", name, manifest.classes)
    chosen = [manifest.classes.index(name) for name in view.classes] or list(range(len(manifest.classes)))
    if view.class_count is None:
        return chosen if view.classes else None
    if not 1 <= view.class_count <= len(chosen):
        raise FastadError(f"{view.class_count} classes asked of {manifest.folder}: ask for 1 to {len(chosen)}")
    return [
        chosen[place] for place in generator(view.seed, "view", "classes").permutation(len(chosen))[: view.class_count]
    ]

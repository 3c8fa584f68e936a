"""What a shard set holds, as columns.

Owns the set's files beside its shards: `manifest.json` and the memory-mapped columns in `samples/`. Writing tars is
`fastad.write`'s, choosing rows is `fastad.view`'s; neither torch nor DALI is needed here.
Use: `manifest = open_set(Path("shards/digits"))`, then `manifest.class_index[rows]`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastad.errors import FastadError
from fastad.files import sha256

SCHEMA_VERSION = 3

# The file whose presence means that a set is whole.
MANIFEST = "manifest.json"

# Column → its type; "" is bytes of the length of the longest.
COLUMNS = {
    "shard": "int32",
    "offset": "int64",
    "size": "int64",
    "extension": "S3",
    "class_index": "int32",
    "width": "int32",
    "height": "int32",
    "content_hash": "uint64",
    "source_index": "int64",
    "key": "",
}


@dataclass(frozen=True, slots=True)
class FileRange:
    """`size` bytes at `offset` of a file, such as a member of a tar that is read in place."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PixelRange:
    """An image's raw uint8 pixels, from `offset` of a file on.

    `order` names their axes as they lie in the file, the slowest first: "hwc", or "cwh" for planes column by column.
    """

    path: Path
    offset: int
    shape_hwc: tuple[int, int, int]
    order: str = "hwc"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into shards, as a converter yields it.

    `pixels` is uint8, [H, W] or [H, W, C], or where such pixels lie in a file, or an encoded image: a whole file or a
    range of one. A path may be text, where there are millions. `key` is unique in its set and made of letters, digits,
    `_`, `-` and `/`. `exact`: each pixel is kept, as a mask's must be, so that no size makes it a JPEG
    (`fastad.encode`).
    """

    key: str
    pixels: np.ndarray | Path | str | FileRange | PixelRange
    class_name: str | None
    split: str
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a set, or a file of raw pixels that it links to, as it was when the set was made."""

    name: str
    split: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """A whole shard set: its facts, its shards, and one row per sample in columns [rows].

    A row's image is the `size` bytes at `offset` of file `shards[shard]`, encoded as its `extension` says ("npy",
    "jpg", "png" if it is exact, or "bin": raw pixels in place). `content_hash` is of its pixels (before they were
    encoded, where fastad did that), 0 where not known. `common_shape_hwc` is None where images, other than exact ones,
    are not arrays of one size. Rows of one split are contiguous and in the shards' order. `source_index` is the
    sample's place in the converter's listing, `class_index` is −1 where unknown.
    """

    folder: Path
    name: str
    facts: Mapping[str, Any]
    classes: tuple[str, ...]
    splits: Mapping[str, range]
    shards: tuple[Shard, ...]
    common_shape_hwc: tuple[int, int, int] | None
    fingerprint: str
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    extension: np.ndarray
    class_index: np.ndarray
    width: np.ndarray
    height: np.ndarray
    content_hash: np.ndarray
    source_index: np.ndarray
    key: np.ndarray

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        """The shape of all images; raises `FastadError` for sets that are not arrays of one size."""
        if self.common_shape_hwc is None:
            raise FastadError(
                f"{self.folder} holds JPEGs or images of several sizes, of which batches are made by cropping only: "
                "--set augment.resize_px=256 --set augment.crop_px=224, say"
            )
        return self.common_shape_hwc

    @property
    def channels(self) -> int:
        """The channels that images are trained on with: those of arrays of one size, else 3."""
        return 3 if self.common_shape_hwc is None else self.common_shape_hwc[2]

    def shard_path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / self.shards[shard].name

    @property
    def pixel_order(self) -> str:
        """How the axes of an array lie in its bytes, the slowest first."""
        return self.facts.get("pixel_order", "hwc")

    def split_rows(self, split: str) -> range:
        """The rows of a split; an unknown split raises `FastadError`."""
        if split not in self.splits:
            raise FastadError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits)}")
        return self.splits[split]


def column_path(folder: Path, name: str) -> Path:
    """The file of a set's column."""
    return folder / "samples" / f"{name}.npy"


def open_set(folder: Path) -> Manifest:
    """Opens a shard set without reading its images.

    Every shard must have the size that the manifest records; one that was touched after the manifest was written is
    hashed again, and the manifest's time renewed if it is unchanged. Raises `FastadError` naming what is missing or
    changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FastadError(f"{folder} is not a shard set: {_instead_of_set(folder)}")
    try:
        facts = json.loads(path.read_bytes())
        if facts["schema_version"] != SCHEMA_VERSION:
            raise FastadError(
                f"{path} has schema {facts['schema_version']}, this fastad reads {SCHEMA_VERSION}: convert again"
            )
        shards = tuple(Shard(**shard) for shard in facts["shards"])
        check_shards(folder, shards)
        columns = {name: np.load(column_path(folder, name), mmap_mode="r") for name in COLUMNS}
        splits, start = {}, 0
        for split, count in facts["splits"].items():
            splits[split] = range(start, start := start + count)
        if any(len(column) != start for column in columns.values()):
            raise ValueError(f"columns do not have {start} rows")
        return Manifest(
            folder=folder,
            name=facts["name"],
            facts=facts,
            classes=tuple(facts["classes"]),
            splits=splits,
            shards=shards,
            common_shape_hwc=None if facts["shape_hwc"] is None else (*facts["shape_hwc"],),
            fingerprint=facts["fingerprint"],
            **columns,
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FastadError(f"{folder} has a damaged manifest ({error}): remove the folder and convert again") from error


def _instead_of_set(folder: Path) -> str:
    """What is found where a set was expected, and what to do."""
    if (folder / ".partial").is_dir():
        return "found an unfinished one: run its command again"
    if sets := sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")):
        return f"found the sets {', '.join(sets)} in it: name one, such as {folder / sets[0]}"
    return f"found no {MANIFEST}: run fastad shard"


def check_shards(folder: Path, shards: tuple[Shard, ...], *, hash_all: bool = False) -> None:
    """Compares shards with what the manifest says: sizes always, hashes where one is newer than the manifest or asked.

    Raises `FastadError` naming the first shard that is missing or changed. When every hash that was due agrees, the
    manifest's time is renewed, so that a copied set is hashed once and not at every opening.
    """
    manifest_path = folder / MANIFEST
    written_ns = manifest_path.stat().st_mtime_ns
    hashed: dict[tuple[int, int], str] = {}
    for shard in shards:
        path = folder / shard.name
        named = f"{path}, a link to {path.readlink()}," if path.is_symlink() else f"{path}"
        if not path.is_file():
            raise FastadError(f"{named} is missing: restore it, or remove {folder} and convert again")
        found = path.stat()
        if found.st_size != shard.bytes:
            raise FastadError(
                f"{named} has changed: {found.st_size} bytes, the manifest says {shard.bytes}; "
                f"restore it, or remove {folder} and convert again"
            )
        if hash_all or found.st_mtime_ns > written_ns:
            # Several shards may be links to one file.
            file = (found.st_dev, found.st_ino)
            hashed[file] = hashed.get(file) or sha256(path)
            if hashed[file] != shard.sha256:
                raise FastadError(
                    f"{named} has changed: its SHA-256 is not the manifest's; "
                    f"restore it, or remove {folder} and convert again"
                )
    if hashed and os.access(manifest_path, os.W_OK):
        os.utime(manifest_path)


def shard_home(chosen: Path | None = None) -> Path:
    """Where shard sets live: the folder chosen, else `$FASTAD_SHARDS`, else `./shards`; an address raises."""
    home = chosen or Path(os.environ.get("FASTAD_SHARDS") or "shards")
    if address := re.match(r"(\w+:/)(.*)", str(home)):  # a Path makes one slash of two
        raise FastadError(
            f"{address[1]}/{address[2]} is an address, and shards are written to folders: choose one with --out"
        )
    return home

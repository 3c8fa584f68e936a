"""What a shard set holds, as columns.

Owns the set's files beside its tars: `manifest.json` and the memory-mapped columns in `samples/`. Writing tars is
`fastad.shard`'s, choosing rows is `fastad.view`'s; neither torch nor DALI is needed here.
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

SCHEMA_VERSION = 2

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
class Sample:
    """One image on its way into shards, as a converter yields it.

    `pixels` is uint8, [H, W] or [H, W, C], or an encoded image: a whole file or a range of one. `key` is unique in its
    set and made of letters, digits, `_`, `-` and `/`.
    """

    key: str
    pixels: np.ndarray | Path | FileRange
    class_name: str | None
    split: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a set, as it was when it was written."""

    name: str
    split: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """A whole shard set: its facts, its shards, and one row per sample in columns [rows].

    A row's image is the `size` bytes at `offset` of tar `shards[shard]`, encoded as its `extension` says ("npy" or
    "jpg"); `content_hash` is of its decoded pixels. `common_shape_hwc` is None where images are not arrays of one size.
    Rows of one split are contiguous and in the shards' order. `source_index` is the sample's place in the converter's
    listing, `class_index` is −1 where unknown.
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
                f"{self.folder} holds JPEGs or images of several sizes, which this fastad shards but does not train on "
                "yet: choose a set of arrays of one size"
            )
        return self.common_shape_hwc

    def split_rows(self, split: str) -> range:
        """The rows of a split; an unknown split raises `FastadError`."""
        if split not in self.splits:
            raise FastadError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits)}")
        return self.splits[split]


def open_set(folder: Path) -> Manifest:
    """Opens a shard set without reading its tars.

    Every tar must have the size that the manifest records; one that was touched after the manifest was written is
    hashed again, and the manifest's time renewed if it is unchanged. Raises `FastadError` naming what is missing or
    changed.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        begun = (folder / ".partial").is_dir()
        found = "an unfinished one: run its command again" if begun else "no manifest.json: run fastad shard"
        raise FastadError(f"{folder} is not a shard set: found {found}")
    try:
        facts = json.loads(path.read_bytes())
        if facts["schema_version"] != SCHEMA_VERSION:
            raise FastadError(
                f"{path} has schema {facts['schema_version']}, this fastad reads {SCHEMA_VERSION}: convert again"
            )
        shards = tuple(Shard(**shard) for shard in facts["shards"])
        check_shards(folder, shards)
        columns = {name: np.load(folder / "samples" / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
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


def check_shards(folder: Path, shards: tuple[Shard, ...], *, hash_all: bool = False) -> None:
    """Compares tars with what the manifest says: sizes always, hashes where a tar is newer than the manifest or asked.

    Raises `FastadError` naming the first shard that is missing or changed. When every hash that was due agrees, the
    manifest's time is renewed, so that a copied set is hashed once and not at every opening.
    """
    manifest_path = folder / "manifest.json"
    written_ns = manifest_path.stat().st_mtime_ns
    renewed = False
    for shard in shards:
        path = folder / shard.name
        if not path.is_file():
            raise FastadError(f"{path} is missing: restore it, or remove {folder} and convert again")
        found = path.stat()
        if found.st_size != shard.bytes:
            raise FastadError(
                f"{path} has changed: {found.st_size} bytes, the manifest says {shard.bytes}; "
                f"restore it, or remove {folder} and convert again"
            )
        if hash_all or found.st_mtime_ns > written_ns:
            if sha256(path) != shard.sha256:
                raise FastadError(
                    f"{path} has changed: its SHA-256 is not the manifest's; "
                    f"restore it, or remove {folder} and convert again"
                )
            renewed = True
    if renewed and os.access(manifest_path, os.W_OK):
        os.utime(manifest_path)


def shard_home(chosen: Path | None = None) -> Path:
    """Where shard sets live: the folder chosen, else `$FASTAD_SHARDS`, else `./shards`; an address raises."""
    home = chosen or Path(os.environ.get("FASTAD_SHARDS") or "shards")
    if re.match(r"\w+:/", str(home)):  # a Path makes one slash of two
        raise FastadError(f"{home} is an address, and shards are written to folders: choose one with --out")
    return home

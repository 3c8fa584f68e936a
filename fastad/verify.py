"""Whether a shard set is still what was written.

Owns `fastad verify`; opening a set checks sizes already (`fastad.manifest`).
Use: `verify(Path("shards/digits"), "decode")`.
"""

from pathlib import Path

import numpy as np

from fastad.encode import content_hash
from fastad.errors import FastadError, unknown
from fastad.files import sha256
from fastad.manifest import Manifest, check_shards, column_path, open_set
from fastad.progress import progress
from fastad.reader import ShardReader
from fastad.tar import BLOCK, index_parts

LEVELS = ("size", "hash", "decode")
CHUNK_ROWS = 10_000


def verify(folder: Path, level: str = "hash") -> Manifest:
    """Checks a set against its manifest: sizes of shards; and hashes and indices; and that images decode to their size.

    Raises `FastadError` naming the first file, and for "decode" the first sample, that is not as it was written.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    manifest = open_set(folder)
    if level == "size":
        return manifest
    check_shards(folder, manifest.shards, hash_all=True)
    for name, expected in manifest.facts["columns_sha256"].items():
        if sha256(column_path(folder, name)) != expected:
            raise FastadError(
                f"{column_path(folder, name)} has changed: restore it, or remove {folder} and convert again"
            )
    reader = ShardReader(manifest)
    with progress(f"verify {manifest.name}", len(manifest.key), unit="images") as advance:
        stop = 0
        for shard in manifest.shards:
            start, stop = stop, stop + shard.samples
            _verify_index(folder / Path(shard.name).with_suffix(".idx"), manifest, slice(start, stop))
            for first in range(start, stop, CHUNK_ROWS):
                rows = range(first, min(first + CHUNK_ROWS, stop))
                if level == "decode":
                    _verify_members(folder / shard.name, reader, rows)
                advance(len(rows))
    return manifest


def _verify_index(index: Path, manifest: Manifest, rows: slice) -> None:
    parts = index_parts(manifest.extension[rows], manifest.offset[rows], manifest.size[rows])
    if index.is_file():
        with open(index, "rb") as file:
            if all(file.read(len(part)) == part.encode() for part in parts) and not file.read(1):
                return
    raise FastadError(f"{index} is missing or changed: restore it, or remove {manifest.folder} and convert again")


def _verify_members(path: Path, reader: ShardReader, rows: range) -> None:
    manifest = reader.manifest
    file = np.memmap(path, dtype=np.uint8, mode="r")
    for row in rows:
        offset, key, extension = int(manifest.offset[row]), manifest.key[row].decode(), manifest.extension[row].decode()
        name = f"{key}.{extension}"
        if path.suffix == ".tar":
            name = bytes(file[offset - BLOCK : offset - BLOCK + 100]).rstrip(b"\0").decode(errors="replace")
        try:
            image = reader.image(row)
        except (ValueError, OSError) as error:
            raise FastadError(f"{path}: sample {key} does not decode ({error}): convert the set again") from error
        size_hw = (int(manifest.height[row]), int(manifest.width[row]))
        # A JPEG that fastad has written decodes to other pixels than those it was made of.
        differs = extension != "jpg" and content_hash(image) != int(manifest.content_hash[row])
        if name != f"{key}.{extension}" or image.shape[:2] != size_hw or differs:
            raise FastadError(f"{path}: found {name} {image.shape} where the manifest says {key}: convert again")

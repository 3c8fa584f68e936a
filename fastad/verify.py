"""Whether a shard set is still what was written.

Owns `fastad verify`; opening a set checks sizes already (`fastad.manifest`).
Use: `verify(Path("shards/digits"), "decode")`.
"""

from pathlib import Path

import numpy as np

from fastad.encode import content_hash, decode
from fastad.errors import FastadError, unknown
from fastad.files import sha256
from fastad.manifest import Manifest, check_shards, column_path, open_set
from fastad.progress import progress
from fastad.tar import BLOCK, index_text

LEVELS = ("size", "hash", "decode")


def verify(folder: Path, level: str = "hash") -> Manifest:
    """Checks a set against its manifest: tar sizes; and hashes and indices; and that every image decodes, to its size.

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
    with progress(f"verify {manifest.name}", len(manifest.key), unit="images") as advance:
        stop = 0
        for shard in manifest.shards:
            start, stop = stop, stop + shard.samples
            rows = np.arange(start, stop)
            index = folder / Path(shard.name).with_suffix(".idx")
            text = index_text(manifest.extension[rows], manifest.offset[rows], manifest.size[rows])
            if not index.is_file() or index.read_text() != text:
                raise FastadError(f"{index} is missing or changed: restore it, or remove {folder} and convert again")
            if level == "decode":
                _verify_members(folder / shard.name, manifest, rows)
            advance(len(rows))
    return manifest


def _verify_members(path: Path, manifest: Manifest, rows: np.ndarray) -> None:
    tar = np.memmap(path, dtype=np.uint8, mode="r")
    for row in rows:
        offset, size, key = int(manifest.offset[row]), int(manifest.size[row]), manifest.key[row].decode()
        extension = manifest.extension[row].decode()
        name = bytes(tar[offset - BLOCK : offset - BLOCK + 100]).rstrip(b"\0").decode(errors="replace")
        try:
            image = decode(bytes(tar[offset : offset + size]), extension)
        except (ValueError, OSError) as error:
            raise FastadError(f"{path}: sample {key} does not decode ({error}): convert the set again") from error
        size_hw = (int(manifest.height[row]), int(manifest.width[row]))
        # A JPEG that fastad has written decodes to other pixels than those it was made of.
        differs = extension == "npy" and content_hash(image) != int(manifest.content_hash[row])
        if name != f"{key}.{extension}" or image.shape[:2] != size_hw or differs:
            raise FastadError(f"{path}: found {name} {image.shape} where the manifest says {key}: convert again")

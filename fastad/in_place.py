"""Sets whose images stay where they are: raw pixels, read through links, indices and columns.

Owns what such a set has in place of tars; the life of a conversion is `fastad.shard`'s. The images of one split in one
file are a shard: a link to the file, and a DALI index that lists them in the source's order.
Use: `hashed = hash_in_place(folder, listing, workers)`, then `link_in_place(folder, listing, hashed)`.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.encode import AXIS_ORDERS, arranged, content_hash
from fastad.errors import FastadError
from fastad.files import atomic, link, read_into
from fastad.listing import Listing
from fastad.manifest import Shard
from fastad.progress import progress
from fastad.tar import BLOCK, index_parts
from fastad.workers import over_processes

CHUNK_ROWS, BATCH_ROWS = 2**16, 2**8
READ_BYTES = 2**22


class Contents(NamedTuple):
    """What a set holds: its shards, its columns one after the other, and the facts that depend on how they came."""

    shards: list[Shard]
    columns: Iterable[tuple[str, np.ndarray]]
    facts: dict[str, Any]


class Hashed(NamedTuple):
    """What reading the images has told: `content_hash` [rows], and the SHA-256 of each of the listing's files."""

    content_hash: np.ndarray
    sha256: dict[int, str]


def refuse_unfit(name: str, listing: Listing) -> None:
    """Raises `FastadError` where images differ in shape or order, or do not begin where DALI can read."""
    if (listing.shape != listing.shape[0]).any() or (listing.order != listing.order[0]).any():
        raise FastadError(
            f"{name} cannot stay in place: its images are not of one shape and order; leave out --in-place"
        )
    astray = listing.offset % BLOCK != 0
    if astray.any():
        row = int(np.argmax(astray))
        raise FastadError(
            f"{name} cannot stay in place: {listing.files[listing.file[row]].decode()} has an image at byte "
            f"{listing.offset[row]:,}, and DALI reads from multiples of {BLOCK} only; leave out --in-place"
        )


def bytes_in_place(listing: Listing) -> int:
    """About what indices and columns take on the disk."""
    return len(listing) * (80 + listing.key.dtype.itemsize)


def hash_in_place(folder: Path, listing: Listing, workers: int) -> Hashed:
    """Reads all files once; content hashes that an interrupted conversion left in `folder` are not computed again."""
    digests = {number: _Digest(_path(listing.files[number])) for number in np.unique(listing.file).tolist()}
    chunks = [slice(start, start + CHUNK_ROWS) for start in range(0, len(listing), CHUNK_ROWS)]
    jobs = (_job(folder, listing, rows) for rows in chunks)
    total = sum(digest.path.stat().st_size for digest in digests.values())
    with (
        progress(f"read {folder.name}", total, unit="bytes") as advance,
        closing(over_processes(_hash, jobs, min(workers, len(chunks)))) as done,
    ):
        # SHA-256 cannot be shared out: this process follows the workers, and finds what they read in memory.
        for rows in _in_order(chunks, done):
            file, offset = listing.file[rows], listing.offset[rows]
            for number in np.unique(file).tolist():
                digests[number].read_to(int(offset[file == number].max()), advance)
        for digest in digests.values():
            digest.read_to(digest.path.stat().st_size, advance)
    hashes = np.concatenate([np.load(_record(folder, rows)) for rows in chunks])
    return Hashed(hashes, {number: digest.sha256.hexdigest() for number, digest in digests.items()})


class _Digest:
    """A SHA-256 that goes forward through its file as it is told."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.sha256 = path, 0, hashlib.sha256()

    def read_to(self, end: int, advance: Callable[[int], None]) -> None:
        with _reading(self.path) as file:
            file.seek(self.position)
            while self.position < end and (data := file.read(min(READ_BYTES, end - self.position))):
                self.sha256.update(data)
                self.position += len(data)
                advance(len(data))


@dataclass(frozen=True, eq=False)
class _Job:
    """What a worker process needs to hash the images of some rows, and where it leaves the hashes."""

    start: int
    record: Path
    files: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    shape_hwc: tuple[int, ...]
    order: str


def _job(folder: Path, listing: Listing, rows: slice) -> _Job:
    used, file = np.unique(listing.file[rows], return_inverse=True)
    shape_hwc, order = tuple(listing.shape[0].tolist()), AXIS_ORDERS[listing.order[0]]
    return _Job(rows.start, _record(folder, rows), listing.files[used], file, listing.offset[rows], shape_hwc, order)


def _record(folder: Path, rows: slice) -> Path:
    return folder / ".partial" / f"hashes-{rows.start:010d}.npy"


def _in_order(chunks: list[slice], done: Iterable[int]) -> Iterator[slice]:
    """The chunks from the first to the last, each once it is done; `done` tells their first rows as they come."""
    known: set[int] = set()
    waiting = iter(chunks)
    rows = next(waiting, None)
    for start in done:
        known.add(start)
        while rows is not None and rows.start in known:
            yield rows
            rows = next(waiting, None)


def _hash(job: _Job) -> int:
    """Writes the content hashes of a job's images, if they do not stand already; returns its first row."""
    if job.record.is_file():
        return job.start
    hashes: list[int] = []
    edges = np.flatnonzero(np.diff(job.file)) + 1
    for file, offset in zip(np.split(job.file, edges), np.split(job.offset, edges), strict=True):
        with _reading(_path(job.files[file[0]])) as opened:
            for start in range(0, len(offset), BATCH_ROWS):
                raw = _read(opened, offset[start : start + BATCH_ROWS].tolist(), math.prod(job.shape_hwc))
                hashes += map(content_hash, arranged(raw, job.shape_hwc, job.order))
    with atomic(job.record) as record:
        np.save(record, np.array(hashes, dtype=np.uint64))
    return job.start


def _read(file: FileIO, offsets: list[int], size: int) -> np.ndarray:
    """The images that begin at `offsets`, as raw bytes [n, size]."""
    raw = np.empty((len(offsets), size), dtype=np.uint8)
    for image, offset in zip(raw, offsets, strict=True):
        read_into(file.fileno(), image, offset, file.name)
    return raw


def _path(listed: bytes) -> Path:
    return Path(os.fsdecode(listed))


def _reading(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise FastadError(f"{path} cannot be read: {error.strerror}") from error


def link_in_place(folder: Path, listing: Listing, hashed: Hashed) -> Contents:
    """Makes links and indices; of several files each split gets a shard for each, in the order of the listing."""
    rows = np.lexsort((listing.file, listing.split))
    edges = np.flatnonzero((np.diff(listing.split[rows]) != 0) | (np.diff(listing.file[rows]) != 0)) + 1
    bounds = [0, *edges.tolist(), len(rows)]
    numbers: Counter[str] = Counter()
    shards = []
    for start, stop in pairwise(bounds):
        split, file = listing.splits[listing.split[rows[start]]], int(listing.file[rows[start]])
        name, target = f"{split}-{numbers[split]:05d}", _path(listing.files[file])
        numbers[split] += 1
        link(folder / f"{name}.bin", target)
        part = rows[start:stop]
        extension, size = np.broadcast_to(np.bytes_(b"bin"), len(part)), listing.size[part]
        with atomic(folder / f"{name}.idx") as index:
            for text in index_parts(extension, listing.offset[part], size):
                index.write(text.encode())
        shards.append(Shard(f"{name}.bin", split, target.stat().st_size, len(part), hashed.sha256[file]))
    # The files alone do not tell which of their images are meant, and as what.
    fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())
    for column in (listing.offset, listing.class_index):
        fingerprint.update(column[rows].data)
    facts = {
        "fingerprint": fingerprint.hexdigest(),
        "shape_hwc": listing.shape[0].tolist(),
        "pixel_order": AXIS_ORDERS[listing.order[0]],
        "changes": {},
        "rejects": [],
    }
    return Contents(shards, _columns(listing, hashed, shards, rows), facts)


def _columns(
    listing: Listing, hashed: Hashed, shards: list[Shard], rows: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """The manifest's columns; one at a time is in memory."""
    height, width, _ = listing.shape[0].tolist()
    yield "shard", np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    yield "offset", listing.offset[rows]
    yield "size", listing.size[rows]
    yield "extension", np.broadcast_to(np.bytes_(b"bin"), len(rows))
    yield "class_index", listing.class_index[rows]
    yield "width", np.broadcast_to(width, len(rows))
    yield "height", np.broadcast_to(height, len(rows))
    yield "content_hash", hashed.content_hash[rows]
    yield "source_index", rows
    yield "key", listing.key[rows]

"""One shard: from its rows of a listing to a tar, an index, columns and a record, each whole or not there.

Owns what a worker does, in whatever process or on whatever machine; which rows stand in which shard is
`fastad.shard`'s, what becomes of an image `fastad.encode`'s.
Use: `written = write_shard(job)`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.encode import AXIS_ORDERS, BadImage, Encoded, Encoding, arranged, content_hash, encode, passes_as_array
from fastad.files import atomic, read_into, syncing_early, write_json, write_text
from fastad.manifest import COLUMNS, Shard
from fastad.tar import BLOCK, END, index_text, member, members, npy_rows, text_members

Reject = dict[str, str]


@dataclass(frozen=True, eq=False)
class Job:
    """What a worker process needs to write one shard, with the shard's own rows only."""

    folder: Path
    name: str
    encoding: Encoding
    files: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    shape: np.ndarray
    order: np.ndarray
    exact: np.ndarray
    class_index: np.ndarray
    key: np.ndarray
    hashed: bool


class Written(NamedTuple):
    """How many samples a job had, and which of them were left out, each by its key and the reason."""

    samples: int
    rejects: Sequence[Reject]


def write_shard(job: Job) -> Written:
    """Writes one tar, its index, its columns and its record; what is bad is left out."""
    rows: list[_Row] = []
    rejects: list[Reject] = []
    changes: Counter[str] = Counter()
    digest = hashlib.sha256() if job.hashed else None
    at = 0
    with atomic(job.folder / f"{job.name}.tar") as tar, syncing_early(tar) as written:
        for chunk in _array_chunks(job) if _is_uniform(job) else _encoded_chunks(job):
            tar.write(chunk.data)
            if digest:
                digest.update(chunk.data)
            rows += [row._replace(offset=at + row.offset) for row in chunk.rows]
            rejects += chunk.rejects
            changes.update(chunk.changes)
            at += len(chunk.data)
            written()
        tar.write(END)
        if digest:
            digest.update(END)
    columns = np.array(rows, dtype=_ROW)
    text = index_text(columns["extension"].tolist(), columns["offset"], columns["size"])
    write_text(job.folder / f"{job.name}.idx", text)
    with atomic(job.folder / ".partial" / f"{job.name}.npy") as file:
        np.save(file, columns)
    sha256 = digest.hexdigest() if digest else ""
    shard = Shard(f"{job.name}.tar", job.name.rpartition("-")[0], at + len(END), len(rows), sha256)
    record = {"shard": asdict(shard), "rejects": rejects, "changes": dict(changes)}
    write_json(job.folder / ".partial" / f"{job.name}.json", record)
    return Written(len(job.key), rejects)


class _Row(NamedTuple):
    """What is known of a sample once it is written; `place` is among the shard's own rows."""

    place: int
    offset: int
    size: int
    extension: bytes
    width: int
    height: int
    content_hash: int


WRITTEN = _Row._fields[1:]
_ROW = np.dtype([("place", "int64"), *((name, COLUMNS[name]) for name in WRITTEN)])


class _Chunk(NamedTuple):
    """Some members on their way into a tar, with offsets from the chunk's own start, and what was not used."""

    data: bytes | memoryview
    rows: Sequence[_Row]
    rejects: Sequence[Reject] = ()
    changes: Sequence[str] = ()


def _encoded_chunks(job: Job) -> Iterator[_Chunk]:
    """Chunks of samples that are encoded one by one."""
    pieces: list[bytes] = []
    rows: list[_Row] = []
    rejects: list[Reject] = []
    changes: list[str] = []
    at = 0
    named = zip(job.key.tolist(), job.class_index.tolist(), _encoded(job), strict=True)
    for place, (encoded_key, class_index, found) in enumerate(named):
        key = encoded_key.decode()
        if isinstance(found, BadImage):
            rejects.append({"key": key, "reason": str(found)})
            continue
        size = len(found.data)
        rows.append(
            _Row(place, at + BLOCK, size, found.extension.encode(), found.width, found.height, found.content_hash)
        )
        if found.change:
            changes.append(found.change)
        some = member(f"{key}.{found.extension}", found.data)
        if class_index >= 0:
            some += member(f"{key}.cls", str(class_index).encode())
        pieces += some
        at += sum(map(len, some))
        if at >= _CHUNK_BYTES:
            yield _Chunk(b"".join(pieces), rows, rejects, changes)
            pieces, rows, rejects, changes, at = [], [], [], [], 0
    yield _Chunk(b"".join(pieces), rows, rejects, changes)


# What is hashed and written at once: it should lie in the processor's cache.
_CHUNK_BYTES = 2**19


def _encoded(job: Job) -> Iterator[Encoded | BadImage]:
    """What a shard holds of each sample of a job, or why it holds nothing."""
    columns = (job.file, job.offset, job.size, job.shape, job.order, job.exact)
    with _opened(job.files) as descriptor:
        for number, offset, size, shape, order, exact in zip(*(column.tolist() for column in columns), strict=True):
            try:
                source: bytes | np.ndarray = os.pread(descriptor(number), size, offset)
                if shape[0]:
                    if len(source) < size:
                        raise BadImage("its file ends before it")
                    source = arranged(np.frombuffer(source, dtype=np.uint8), shape, AXIS_ORDERS[order])
                yield encode(source, job.encoding, exact=exact)
            except BadImage as bad:
                yield bad
            except OSError as error:
                yield BadImage(f"cannot be read: {error.strerror}")


def _is_uniform(job: Job) -> bool:
    """Whether the samples are arrays of one shape that pass as they are, all with or all without a class."""
    if any((column != column[0]).any() for column in (job.shape, job.order, job.class_index >= 0)):
        return False
    return not job.exact.any() and passes_as_array(job.shape[0], job.encoding)


def _array_chunks(job: Job) -> Iterator[_Chunk]:
    """Chunks of many samples whose members are made at once, in a fifth of the time that one by one takes."""
    height, width, _ = job.shape[0].tolist()
    for start in range(0, len(job.key), _ARRAYS_A_CHUNK):
        some = slice(start, start + _ARRAYS_A_CHUNK)
        pixels, keys = _pixels(job, some), job.key[some]
        data = npy_rows(pixels)
        parts = [members(np.char.add(keys, b".npy"), data)]
        if job.class_index[start] >= 0:
            parts.append(text_members(np.char.add(keys, b".cls"), job.class_index[some].astype("S")))
        pieces = np.concatenate(parts, axis=1)
        offsets = range(BLOCK, pieces.size, pieces.shape[1])
        rows = [
            _Row(place, offset, data.shape[1], b"npy", width, height, content_hash(image))
            for place, (offset, image) in enumerate(zip(offsets, pixels, strict=True), start=start)
        ]
        yield _Chunk(pieces.data.cast("B"), rows)


_ARRAYS_A_CHUNK = 500


def _pixels(job: Job, some: slice) -> np.ndarray:
    """The pixels of samples of one shape and order, uint8 [n, H, W, C]."""
    raw = np.empty((len(job.key[some]), int(job.size[0])), dtype=np.uint8)
    with _opened(job.files) as descriptor:
        for image, number, offset in zip(raw, job.file[some].tolist(), job.offset[some].tolist(), strict=True):
            read_into(descriptor(number), image, offset, job.files[number])
    return arranged(raw, job.shape[0].tolist(), AXIS_ORDERS[job.order[0]])


@contextmanager
def _opened(paths: np.ndarray) -> Iterator[Any]:
    """Gives descriptors of files by their number; few are open at once, since a shard may come from 10,000 files."""
    descriptors: dict[int, int] = {}

    def descriptor(number: int) -> int:
        if number not in descriptors:
            if len(descriptors) >= 64:
                os.close(descriptors.pop(next(iter(descriptors))))
            descriptors[number] = os.open(paths[number], os.O_RDONLY)
        return descriptors[number]

    try:
        yield descriptor
    finally:
        for found in descriptors.values():
            os.close(found)

"""Samples → seeded, hashed, atomic shards, in parallel and resumable.

Owns the order of samples, the cut into shards and the life of a conversion. What the samples are is
`fastad.listing`'s, what becomes of an image `fastad.encode`'s, how images stay in place `fastad.in_place`'s, what a
finished set looks like `fastad.manifest`'s.

A conversion has three stages, and each survives being killed:
1. list: the converter's samples, in its order, become columns; arrays go into a spool in `<set>/.partial/<part>/`,
   which no other part touches, so that parts may start together;
2. write: each shard's rows of the seeded permutation become one tar (temporary name, sync, rename, record), or, where
   images stay in place, they are read and hashed;
3. finish: columns and card, then `manifest.json`, whose presence means that the set is whole.
Use: `convert("digits", raw=None, home=Path("shards"))`.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.card import card
from fastad.encode import AXIS_ORDERS, BadImage, Encoded, Encoding, arranged, content_hash, encode, passes_as_array
from fastad.errors import FastadError
from fastad.files import atomic, read_into, sha256, write_json, write_text
from fastad.in_place import Contents, bytes_in_place, hash_in_place, link_in_place, refuse_unfit
from fastad.listing import Converter, Listing, find_converter, list_samples
from fastad.manifest import COLUMNS, SCHEMA_VERSION, Manifest, Shard, column_path, open_set
from fastad.progress import progress, say
from fastad.seeds import generator
from fastad.tar import BLOCK, END, NPY_HEADER_BYTES, index_text, member, members, npy_rows, text_members

PERMUTATION_SEED = 0
SHARD_BYTES = 256 * 2**20
SHARD_SAMPLES = 10_000
MAX_BAD = 0.005
AS_IT_IS = Encoding()


@dataclass(frozen=True, slots=True)
class Part:
    """This process's share of the shards where several machines convert one set: `index` (from 1) of `count`."""

    index: int
    count: int


WHOLE = Part(1, 1)


def convert(name: str, raw: Path | None, home: Path, **arguments: Any) -> Manifest | None:
    """`convert_with` the converter of that name, or of the file at that path if it ends in `.py`."""
    return convert_with(find_converter(name), raw, home, **arguments)


def convert_with(
    converter: Converter,
    raw: Path | None,
    home: Path,
    *,
    encoding: Encoding = AS_IT_IS,
    in_place: bool = False,
    options: Mapping[str, Any] | None = None,
    max_bad: float = MAX_BAD,
    part: Part = WHOLE,
    shard_samples: int | None = None,
    workers: int | None = None,
) -> Manifest | None:
    """Converts a set into `home/<set>` and returns its manifest; continues an interrupted conversion.

    The same source gives the same bytes whatever `workers` and `part` are. With `in_place` no pixel is copied: the set
    links to the source's files, which must hold raw pixels. `options` are the converter's own. Returns None if this
    part is done and others are not. Images that cannot be used are left out and recorded, up to the share `max_bad`.
    Raises `FastadError` if the source is missing or broken, if it or an argument is not what the folder was begun with,
    or if the disk is too small; nothing is then left under a final name.
    """
    folder = home / converter.name
    shard_samples = shard_samples or SHARD_SAMPLES
    if in_place and (encoding != AS_IT_IS or part != WHOLE):
        raise FastadError("--in-place leaves images as they are, in one pass: leave out --resize, --quality and --part")
    treatment = {} if in_place else asdict(encoding) | {"shard_samples": shard_samples}
    arguments = {"in_place": in_place} | treatment | dict(options or {})
    partial = folder / ".partial" / f"part-{part.index}-of-{part.count}"
    begun = (partial / "begun.json").is_file()
    try:
        listing = list_samples(converter, raw, options or {}, partial, in_place=in_place)
        identity = {"source_fingerprint": listing.fingerprint, "arguments": arguments}
        if (folder / "manifest.json").is_file():
            return _finished(folder, identity)
        for path in sorted((folder / ".partial").glob("*/begun.json")):
            _refuse_other("was begun with", path, identity, folder)
        if in_place:
            refuse_unfit(converter.name, listing)
            needed = bytes_in_place(listing)
        else:
            cuts = _cut(listing, shard_samples)
            due = [cut for cut in cuts if not _record(folder, cut).is_file()]
            needed = sum(int(_member_bytes(listing.size[cut.rows]).sum()) for cut in due)
        _refuse_small_disk(folder, needed)
    except BaseException:
        if not begun:
            _remove_traces(partial)
        raise
    write_json(partial / "begun.json", identity)
    workers = workers or len(os.sched_getaffinity(0))
    if in_place:
        hashed = hash_in_place(folder, listing, workers)
        return _finish(folder, converter, listing, identity, lambda: link_in_place(folder, listing, hashed))
    mine = cuts[part.index - 1 :: part.count]
    _write_shards(folder, listing, mine, len(listing), encoding, max_bad, workers)
    if left := [cut.name for cut in cuts if not _record(folder, cut).is_file()]:
        say(f"part {part.index} of {part.count} is done; {len(left)} shards are left to the other parts")
        return None
    return _finish(folder, converter, listing, identity, lambda: _of_tars(folder, listing, cuts, max_bad))


def _finished(folder: Path, identity: Mapping[str, Any]) -> Manifest:
    """The set that stands in the folder, if it is the one that source and arguments would give."""
    # What is partial now is of no more use to any part: a kill may have come between the manifest and its removal.
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    _refuse_other("is a conversion with", folder / "manifest.json", identity, folder)
    say(f"{folder} is complete already")
    return open_set(folder)


def _refuse_other(what: str, path: Path, identity: Mapping[str, Any], folder: Path) -> None:
    """Compares what a folder was made of, as `path` records it, with what is asked now."""
    found = json.loads(path.read_bytes())
    for key in identity["arguments"] | found["arguments"]:
        before, asked = (arguments.get(key) for arguments in (found["arguments"], identity["arguments"]))
        if before != asked:
            raise FastadError(f"{folder} {what} {key} = {before}, now it is {asked}: choose another --out or remove it")
    if found["source_fingerprint"] != identity["source_fingerprint"]:
        raise FastadError(f"{folder} {what} another source: choose another --out or remove it")


def _remove_traces(partial: Path) -> None:
    """Takes away what this part wrote, and the folders above it that hold nothing else."""
    shutil.rmtree(partial, ignore_errors=True)
    for folder in (partial.parent, partial.parent.parent):
        with suppress(OSError):
            folder.rmdir()


class _Cut(NamedTuple):
    """One shard to be: its split, its name, and its rows of the listing in the order of the seeded permutation."""

    split: str
    name: str
    rows: np.ndarray


def _cut(listing: Listing, shard_samples: int) -> list[_Cut]:
    """Every split's permutation, cut where a shard would grow beyond `shard_samples` or about `SHARD_BYTES`."""
    cuts: list[_Cut] = []
    for number, split in enumerate(listing.splits):
        rows = np.flatnonzero(listing.split == number)
        rows = rows[generator(PERMUTATION_SEED, "shard", split).permutation(len(rows))]
        ends = np.cumsum(_member_bytes(listing.size[rows]))
        start = shard = 0
        while start < len(rows):
            before = ends[start - 1] if start else 0
            stop = min(int(np.searchsorted(ends, before + SHARD_BYTES, side="right")), start + shard_samples)
            stop = max(stop, start + 1)
            cuts.append(_Cut(split, f"{split}-{shard:05d}", rows[start:stop]))
            start, shard = stop, shard + 1
    return cuts


def _member_bytes(size: np.ndarray) -> np.ndarray:
    """About what samples take in a tar: image and class members with their headers."""
    return 4 * BLOCK + size


def _record(folder: Path, cut: _Cut) -> Path:
    return folder / ".partial" / f"{cut.name}.json"


def _refuse_small_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FastadError(f"{folder} needs {needed:,} bytes, {free:,} are free: free some or choose another --out")


@dataclass(frozen=True, eq=False)
class _Job:
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


def _job(folder: Path, listing: Listing, cut: _Cut, encoding: Encoding) -> _Job:
    rows = cut.rows
    used, file = np.unique(listing.file[rows], return_inverse=True)
    return _Job(
        *(folder, cut.name, encoding, listing.files[used], file),
        *(listing.offset[rows], listing.size[rows], listing.shape[rows], listing.order[rows], listing.exact[rows]),
        *(listing.class_index[rows], listing.key[rows]),
    )


def _write_shards(
    folder: Path, listing: Listing, cuts: list[_Cut], total: int, encoding: Encoding, max_bad: float, workers: int
) -> None:
    """Stage 2: every shard that has no record yet, each by one worker process (or here, if one is enough).

    Stops as soon as more of these images are bad than may be of all.
    """
    due = [cut for cut in cuts if not _record(folder, cut).is_file()]
    jobs = (_job(folder, listing, cut, encoding) for cut in due)
    samples = sum(len(cut.rows) for cut in cuts)
    done = samples - sum(len(cut.rows) for cut in due)
    rejects: list[dict[str, str]] = []
    with progress(f"shard {folder.name}", samples, unit="images", done=done) as advance:
        for written, bad in _run(jobs, min(workers, len(due))):
            advance(written)
            rejects += bad
            _refuse_bad(folder, rejects, total, max_bad)


def _run(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[int, list[dict[str, str]]]]:
    if workers <= 1:
        yield from map(_write_shard, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_write_shard, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _refuse_bad(folder: Path, rejects: list[dict[str, str]], total: int, max_bad: float) -> None:
    if len(rejects) > max_bad * total:
        first = rejects[0]
        raise FastadError(
            f"{folder}: {len(rejects)} of {total:,} images cannot be used, the first is {first['key']} "
            f"({first['reason']}): repair the source, or allow more with --max-bad"
        )


def _write_shard(job: _Job) -> tuple[int, list[dict[str, str]]]:
    """Writes one tar, its index, its columns and its record; returns the number of samples given, and the rejects."""
    rows: list[_Row] = []
    rejects: list[dict[str, str]] = []
    changes: Counter[str] = Counter()
    digest = hashlib.sha256()
    at = 0
    with atomic(job.folder / f"{job.name}.tar") as tar:
        for chunk in _array_chunks(job) if _is_uniform(job) else _encoded_chunks(job):
            for piece in chunk.pieces:
                tar.write(piece)
                digest.update(piece)
            rows += [row._replace(offset=at + row.offset) for row in chunk.rows]
            rejects += chunk.rejects
            changes.update(chunk.changes)
            at += sum(map(len, chunk.pieces))
        tar.write(END)
        digest.update(END)
    columns = np.array(rows, dtype=_ROW)
    text = index_text(columns["extension"].tolist(), columns["offset"], columns["size"])
    write_text(job.folder / f"{job.name}.idx", text)
    with atomic(job.folder / ".partial" / f"{job.name}.npy") as file:
        np.save(file, columns)
    shard = Shard(f"{job.name}.tar", job.name.rpartition("-")[0], at + len(END), len(rows), digest.hexdigest())
    record = {"shard": asdict(shard), "rejects": rejects, "changes": dict(changes)}
    write_json(job.folder / ".partial" / f"{job.name}.json", record)
    return len(job.key), rejects


class _Row(NamedTuple):
    """What is known of a sample once it is written; `place` is among the shard's own rows."""

    place: int
    offset: int
    size: int
    extension: bytes
    width: int
    height: int
    content_hash: int


_WRITTEN = _Row._fields[1:]
_ROW = np.dtype([("place", "int64"), *((name, COLUMNS[name]) for name in _WRITTEN)])


class _Chunk(NamedTuple):
    """Some members on their way into a tar, with offsets from the chunk's own start, and what was not used."""

    pieces: Sequence[bytes | memoryview]
    rows: Sequence[_Row]
    rejects: Sequence[dict[str, str]] = ()
    changes: Sequence[str] = ()


def _encoded_chunks(job: _Job) -> Iterator[_Chunk]:
    """A chunk for each sample, encoded one by one."""
    named = zip(job.key.tolist(), job.class_index.tolist(), _encoded(job), strict=True)
    for place, (encoded_key, class_index, found) in enumerate(named):
        key = encoded_key.decode()
        if isinstance(found, BadImage):
            yield _Chunk((), (), ({"key": key, "reason": str(found)},))
            continue
        pieces = [*member(f"{key}.{found.extension}", found.data)]
        if class_index >= 0:
            pieces += member(f"{key}.cls", str(class_index).encode())
        size = len(found.data)
        row = _Row(place, BLOCK, size, found.extension.encode(), found.width, found.height, found.content_hash)
        yield _Chunk(pieces, (row,), changes=(found.change,) if found.change else ())


def _encoded(job: _Job) -> Iterator[Encoded | BadImage]:
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


def _is_uniform(job: _Job) -> bool:
    """Whether the samples are arrays of one shape that pass as they are, all with or all without a class."""
    if any((column != column[0]).any() for column in (job.shape, job.order, job.class_index >= 0)):
        return False
    return not job.exact.any() and passes_as_array(job.shape[0], job.encoding)


def _array_chunks(job: _Job) -> Iterator[_Chunk]:
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
        yield _Chunk((pieces.data.cast("B"),), rows)


_ARRAYS_A_CHUNK = 500


def _pixels(job: _Job, some: slice) -> np.ndarray:
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


def _finish(
    folder: Path,
    converter: Converter,
    listing: Listing,
    identity: Mapping[str, Any],
    contents: Callable[[], Contents],
) -> Manifest:
    """Stage 3: columns and card, then the manifest, then away with what was partial. One process at a time does it."""
    with _alone(folder):
        if (folder / "manifest.json").is_file():
            return open_set(folder)  # another part was faster
        shards, columns, of_contents = contents()
        for name, column in columns:
            with atomic(column_path(folder, name)) as file:
                np.save(file, column.astype(COLUMNS[name], copy=False) if COLUMNS[name] else column)
        facts = {
            "schema_version": SCHEMA_VERSION,
            "name": converter.name,
            "about": converter.about,
            "source": converter.source,
            "licence": converter.licence,
            "notices": listing.notices,
            **identity,
            **of_contents,
            "classes": listing.classes,
            "splits": {split: sum(part.samples for part in shards if part.split == split) for split in listing.splits},
            "columns_sha256": {name: sha256(column_path(folder, name)) for name in COLUMNS},
            "shards": [asdict(shard) for shard in shards],
        }
        write_text(folder / "README.md", card(facts))
        write_json(folder / "manifest.json", facts)
        shutil.rmtree(folder / ".partial")
        return open_set(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder against other parts that finish the same set; where one has just done so, there is no lock."""
    try:
        lock = open(folder / ".partial" / "lock", "w")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _of_tars(folder: Path, listing: Listing, cuts: list[_Cut], max_bad: float) -> Contents:
    """What the shards' workers have written."""
    records = [json.loads(_record(folder, cut).read_bytes()) for cut in cuts]
    rejects = [reject for record in records for reject in record["rejects"]]
    _refuse_bad(folder, rejects, len(listing), max_bad)
    columns = _columns(folder, listing, cuts)
    shards = [Shard(**record["shard"]) for record in records]
    facts = {
        "fingerprint": hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        "permutation_seed": PERMUTATION_SEED,
        "shape_hwc": _common_shape(columns),
        "exact": int((columns["extension"] == b"png").sum()),
        "changes": dict(sum((Counter(record["changes"]) for record in records), Counter())),
        "rejects": rejects,
    }
    return Contents(shards, columns.items(), facts)


def _columns(folder: Path, listing: Listing, cuts: list[_Cut]) -> dict[str, np.ndarray]:
    """The manifest's columns, from what the shards' workers left and from the listing."""
    written = [np.load(folder / ".partial" / f"{cut.name}.npy") for cut in cuts]
    rows = np.concatenate([cut.rows[found["place"]] for cut, found in zip(cuts, written, strict=True)])
    columns = {name: np.concatenate([found[name] for found in written]) for name in _WRITTEN}
    return columns | {
        "shard": np.repeat(np.arange(len(cuts), dtype=np.int32), [len(found) for found in written]),
        "class_index": listing.class_index[rows],
        "source_index": rows,
        "key": listing.key[rows],
    }


def _common_shape(columns: Mapping[str, np.ndarray]) -> list[int] | None:
    """[H, W, C] of all images but exact ones where all are arrays of one size, else None."""
    kept = columns["extension"] != b"png"
    sizes = [columns[name][kept] for name in ("height", "width", "size")]
    if not kept.any() or (columns["extension"][kept] != b"npy").any():
        return None
    if any((size != size[0]).any() for size in sizes):
        return None
    height, width, size = (int(size[0]) for size in sizes)
    return [height, width, (size - NPY_HEADER_BYTES) // (height * width)]

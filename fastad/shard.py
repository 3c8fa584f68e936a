"""Samples → seeded, hashed, atomic shards, in parallel and resumable.

Owns the order of samples, the cut into shards and the life of a conversion. What the samples are is
`fastad.listing`'s, what becomes of an image `fastad.encode`'s, what a finished set looks like `fastad.manifest`'s.

A conversion has three stages, and each survives being killed:
1. list: the converter's samples, in its order, become columns; arrays go into a spool in `<set>/.partial/<part>/`,
   which no other part touches, so that parts may start together;
2. write: each shard's rows of the seeded permutation become one tar (temporary name, sync, rename, record);
3. finish: columns and card, then `manifest.json`, whose presence means that the set is whole.
Use: `convert("digits", raw=None, home=Path("shards"))`.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.card import card
from fastad.encode import BadImage, Encoded, Encoding, encode
from fastad.errors import FastadError
from fastad.files import atomic, locked, write_json, write_text
from fastad.listing import Converter, Listing, find_converter, list_samples
from fastad.manifest import COLUMNS, SCHEMA_VERSION, Manifest, Shard, open_set
from fastad.progress import progress, say
from fastad.seeds import generator
from fastad.tar import BLOCK, END, NPY_HEADER_BYTES, index_text, member
from fastad.workers import over_processes, over_ray, ray_cluster

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
    options: Mapping[str, Any] | None = None,
    max_bad: float = MAX_BAD,
    part: Part = WHOLE,
    shard_samples: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> Manifest | None:
    """Converts a set into `home/<set>` and returns its manifest; continues an interrupted conversion.

    The same source gives the same bytes whatever `workers`, `part` and `ray` are. With `ray`, tasks of the Ray cluster
    at that address write the shards; its nodes must share the folder and the raw data. `options` are the converter's
    own. Returns None if this part is done and others are not. Images that cannot be used are left out and recorded, up
    to the share `max_bad`. Raises `FastadError` if the source is missing or broken, if it or an argument is not what
    the folder was begun with, if the disk is too small, or if another process is at the same part; nothing is then left
    under a final name.
    """
    if ray is not None and part != WHOLE:
        raise FastadError("--ray already shares the shards out: leave out --part")
    folder = home.absolute() / converter.name if ray else home / converter.name
    lock = folder / ".partial" / f"part-{part.index}-of-{part.count}" / "lock"
    refusal = f"{folder} is being converted by another process: wait for it, or choose another --out or --part"
    with ray_cluster(ray) if ray else nullcontext(), locked(lock, refusal):
        return _convert(converter, raw, folder, encoding, options, max_bad, part, shard_samples, workers, ray)


def _convert(
    converter: Converter,
    raw: Path | None,
    folder: Path,
    encoding: Encoding,
    options: Mapping[str, Any] | None,
    max_bad: float,
    part: Part,
    shard_samples: int | None,
    workers: int | None,
    ray: str | None,
) -> Manifest | None:
    """The three stages, by the one process that holds the part."""
    shard_samples = shard_samples or SHARD_SAMPLES
    arguments = asdict(encoding) | {"shard_samples": shard_samples} | dict(options or {})
    partial = folder / ".partial" / f"part-{part.index}-of-{part.count}"
    begun = (partial / "begun.json").is_file()
    try:
        listing = list_samples(converter, raw, options or {}, partial)
        identity = {"source_fingerprint": listing.fingerprint, "arguments": arguments}
        if (folder / "manifest.json").is_file():
            return _finished(folder, identity)
        for path in sorted((folder / ".partial").glob("*/begun.json")):
            _refuse_other("was begun with", path, identity, folder)
        cuts = _cut(listing, shard_samples)
        _refuse_small_disk(folder, listing, [cut for cut in cuts if not _record(folder, cut).is_file()])
    except BaseException:
        if not begun:
            _remove_traces(partial)
        raise
    write_json(partial / "begun.json", identity)
    mine = cuts[part.index - 1 :: part.count]
    _write_shards(folder, listing, mine, len(listing), encoding, max_bad, workers, ray)
    if left := [cut.name for cut in cuts if not _record(folder, cut).is_file()]:
        say(f"part {part.index} of {part.count} is done; {len(left)} shards are left to the other parts")
        return None
    return _finish(folder, converter, listing, cuts, identity, max_bad)


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
    for key, asked in identity["arguments"].items():
        if found["arguments"].get(key) != asked:
            raise FastadError(
                f"{folder} {what} {key} = {found['arguments'].get(key)}, now it is {asked}: "
                "choose another --out or remove it"
            )
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


def _refuse_small_disk(folder: Path, listing: Listing, due: list[_Cut]) -> None:
    needed = sum(int(_member_bytes(listing.size[cut.rows]).sum()) for cut in due)
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
    class_index: np.ndarray
    key: np.ndarray


def _job(folder: Path, listing: Listing, cut: _Cut, encoding: Encoding) -> _Job:
    rows = cut.rows
    used, file = np.unique(listing.file[rows], return_inverse=True)
    return _Job(
        *(folder, cut.name, encoding, listing.files[used], file),
        *(listing.offset[rows], listing.size[rows], listing.shape[rows], listing.class_index[rows], listing.key[rows]),
    )


def _write_shards(
    folder: Path,
    listing: Listing,
    cuts: list[_Cut],
    total: int,
    encoding: Encoding,
    max_bad: float,
    workers: int | None,
    ray: str | None,
) -> None:
    """Stage 2: every shard that has no record yet, each by one worker process (or here, if one is enough) or Ray task.

    Stops as soon as more of these images are bad than may be of all.
    """
    due = [cut for cut in cuts if not _record(folder, cut).is_file()]
    jobs = (_job(folder, listing, cut, encoding) for cut in due)
    samples = sum(len(cut.rows) for cut in cuts)
    done = samples - sum(len(cut.rows) for cut in due)
    rejects: list[dict[str, str]] = []
    with (
        progress(f"shard {folder.name}", samples, unit="images", done=done) as advance,
        # Closed here, so that no worker goes on while an exception is on its way.
        closing(_run(jobs, len(due), workers, ray)) as results,
    ):
        for written, bad in results:
            advance(written)
            rejects += bad
            _refuse_bad(folder, rejects, total, max_bad)


def _run(
    jobs: Iterator[_Job], count: int, workers: int | None, ray: str | None
) -> Generator[tuple[int, list[dict[str, str]]], None, None]:
    processes = min(workers or len(os.sched_getaffinity(0)), count)
    if ray is not None:
        yield from over_ray(_write_shard, jobs, workers)
    elif processes > 1:
        yield from over_processes(_write_shard, jobs, processes)
    else:
        yield from map(_write_shard, jobs)


def _refuse_bad(folder: Path, rejects: list[dict[str, str]], total: int, max_bad: float) -> None:
    if len(rejects) > max_bad * total:
        first = rejects[0]
        raise FastadError(
            f"{folder}: {len(rejects)} of {total:,} images cannot be used, the first is {first['key']} "
            f"({first['reason']}): repair the source, or allow more with --max-bad"
        )


def _write_shard(job: _Job) -> tuple[int, list[dict[str, str]]]:
    """Writes one tar, its index, its columns and its record; returns the number of samples given, and the rejects."""
    rows: list[tuple[int, int, int, bytes, int, int, int]] = []
    rejects: list[dict[str, str]] = []
    changes: Counter[str] = Counter()
    digest = hashlib.sha256()
    at = 0
    with atomic(job.folder / f"{job.name}.tar") as tar:
        named = zip(job.key.tolist(), job.class_index.tolist(), _encoded(job), strict=True)
        for place, (encoded_key, class_index, found) in enumerate(named):
            key = encoded_key.decode()
            if isinstance(found, BadImage):
                rejects.append({"key": key, "reason": str(found)})
                continue
            chunk = member(f"{key}.{found.extension}", found.data)
            if class_index >= 0:
                chunk += member(f"{key}.cls", str(class_index).encode())
            tar.write(chunk)
            digest.update(chunk)
            extension = found.extension.encode()
            rows.append((place, at + BLOCK, len(found.data), extension, found.width, found.height, found.content_hash))
            changes[found.change] += 1
            at += len(chunk)
        tar.write(END)
        digest.update(END)
    del changes[""]
    columns = np.array(rows, dtype=_ROW)
    text = index_text(columns["extension"].tolist(), columns["offset"], columns["size"])
    write_text(job.folder / f"{job.name}.idx", text)
    with atomic(job.folder / ".partial" / f"{job.name}.npy") as file:
        np.save(file, columns)
    shard = Shard(f"{job.name}.tar", job.name.rpartition("-")[0], at + len(END), len(rows), digest.hexdigest())
    record = {"shard": asdict(shard), "rejects": rejects, "changes": dict(changes)}
    write_json(job.folder / ".partial" / f"{job.name}.json", record)
    return len(job.key), rejects


# What a worker knows of each sample that it has written; `place` is among the shard's own rows.
_WRITTEN = ("offset", "size", "extension", "width", "height", "content_hash")
_ROW = np.dtype([("place", "int64"), *((name, COLUMNS[name]) for name in _WRITTEN)])


def _encoded(job: _Job) -> Iterator[Encoded | BadImage]:
    """What a shard holds of each sample of a job, or why it holds nothing."""
    places = zip(job.file.tolist(), job.offset.tolist(), job.size.tolist(), job.shape.tolist(), strict=True)
    with _opened(job.files) as descriptor:
        for number, offset, size, shape in places:
            try:
                source: bytes | np.ndarray = os.pread(descriptor(number), size, offset)
                if shape[0]:
                    source = np.frombuffer(source, dtype=np.uint8).reshape(shape)
                yield encode(source, job.encoding)
            except BadImage as bad:
                yield bad
            except OSError as error:
                yield BadImage(f"cannot be read: {error.strerror}")


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
    cuts: list[_Cut],
    identity: Mapping[str, Any],
    max_bad: float,
) -> Manifest:
    """Stage 3: columns and card, then the manifest, then away with what was partial. One process at a time does it."""
    with _alone(folder):
        if (folder / "manifest.json").is_file():
            return open_set(folder)  # another part was faster
        records = [json.loads(_record(folder, cut).read_bytes()) for cut in cuts]
        rejects = [reject for record in records for reject in record["rejects"]]
        _refuse_bad(folder, rejects, len(listing), max_bad)
        columns = _columns(folder, listing, cuts)
        for name in COLUMNS:
            with atomic(folder / "samples" / f"{name}.npy") as file:
                np.save(file, columns[name])
        shards = [Shard(**record["shard"]) for record in records]
        facts = {
            "schema_version": SCHEMA_VERSION,
            "name": converter.name,
            "about": converter.about,
            "source": converter.source,
            "licence": converter.licence,
            **identity,
            "fingerprint": hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
            "permutation_seed": PERMUTATION_SEED,
            "shape_hwc": _common_shape(columns),
            "classes": listing.classes,
            "splits": {split: sum(part.samples for part in shards if part.split == split) for split in listing.splits},
            "changes": dict(sum((Counter(record["changes"]) for record in records), Counter())),
            "rejects": rejects,
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
    """[H, W, C] of all images where all are arrays of one size, else None."""
    same = all(len(columns[name]) and (columns[name] == columns[name][0]).all() for name in ("height", "width", "size"))
    if not same or (columns["extension"] != b"npy").any():
        return None
    height, width, size = (int(columns[name][0]) for name in ("height", "width", "size"))
    return [height, width, (size - NPY_HEADER_BYTES) // (height * width)]

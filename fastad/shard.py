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

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.card import card
from fastad.cuts import PERMUTATION_SEED, Cut, cut_listing, member_bytes
from fastad.encode import Encoding
from fastad.errors import FastadError
from fastad.files import alone, atomic, locked, sha256, write_json, write_text
from fastad.in_place import Contents, bytes_in_place, hash_in_place, link_in_place, refuse_unfit
from fastad.listing import Converter, Listing, find_converter, list_samples
from fastad.manifest import COLUMNS, MANIFEST, SCHEMA_VERSION, Manifest, Shard, column_path, open_set
from fastad.progress import progress, say
from fastad.tar import NPY_HEADER_BYTES
from fastad.workers import import_ahead, over_processes, over_ray, ray_cluster
from fastad.write import WRITTEN, Job, Reject, Written, write_shard

SHARD_SAMPLES = 10_000
MAX_BAD = 0.005
AS_IT_IS = Encoding()


@dataclass(frozen=True, slots=True)
class Part:
    """This process's share of the shards where several machines convert one set: `index` (from 1) of `count`."""

    index: int
    count: int


WHOLE = Part(1, 1)

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")


def convert(converter: str, raw: Path | None, home: Path, **arguments: Any) -> Manifest | None:
    """`convert_with` the converter of that name, or of the file at that path if it ends in `.py`."""
    return convert_with(find_converter(converter), raw, home, **arguments)


def convert_with(
    converter: Converter,
    raw: Path | None,
    home: Path,
    *,
    name: str | None = None,
    encoding: Encoding = AS_IT_IS,
    in_place: bool = False,
    options: Mapping[str, Any] | None = None,
    max_bad: float = MAX_BAD,
    part: Part = WHOLE,
    shard_samples: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    hashed: bool = True,
) -> Manifest | None:
    """Converts a set into `home/<name>` and returns its manifest; continues an interrupted conversion.

    The name is the converter's unless another is given. The same source gives the same bytes whatever `workers`,
    `part` and `ray` are. With `ray`, tasks of the Ray cluster at that address write the shards; its nodes must
    share the folder and the raw data. With `in_place` no pixel is copied: the set links to the source's files,
    which must hold raw pixels. `options` are the converter's own. Returns None if this part is done and others are
    not. With `hashed` False, the shards' SHA-256 is left out, without which the set can be neither verified nor told
    from others: only to measure what it costs. Images that cannot be used are left out and recorded, up to the share
    `max_bad`. Raises `FastadError` if the source is missing or broken, if it or an argument is not what the folder was
    begun with, if the disk is too small, or if another process is at the same part; nothing is then left under a final
    name.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise FastadError(
            f"--name must be letters, digits, - and _, as the name of a folder and of a set, found {name!r}"
        )
    if in_place and (encoding != AS_IT_IS or part != WHOLE or ray):
        raise FastadError(
            "--in-place leaves images as they are, in one pass: leave out --resize, --quality, --part and --ray"
        )
    if ray and (workers or part != WHOLE):
        raise FastadError("--ray shares the shards out among all CPUs of its cluster: leave out --part and --workers")
    # Elsewhere in a cluster, another folder is the current one.
    folder = (home.absolute() if ray else home) / (name or converter.name)
    treatment = {} if in_place else asdict(encoding) | {"shard_samples": shard_samples or SHARD_SAMPLES}
    treatment |= {} if hashed else {"hashed": False}
    arguments = {"in_place": in_place} | treatment | dict(options or {})
    workers = workers or len(os.sched_getaffinity(0))
    with ray_cluster(ray) if ray else nullcontext(), _alone_at(folder, part):
        if workers > 1 and not ray and not (folder / MANIFEST).is_file():
            import_ahead([write_shard.__module__, *encoding.imports])
        begun = _begin(converter, raw, folder, options or {}, arguments, part)
        if isinstance(begun, Manifest):
            return begun
        listing, identity, cuts = begun
        if in_place:
            contents = hash_in_place(folder, listing, workers)
            return _finish(folder, converter, listing, identity, lambda: link_in_place(folder, listing, contents))
        mine = cuts[part.index - 1 :: part.count]
        due = [cut for cut in mine if not _record(folder, cut).is_file()]
        jobs = (_job(folder, listing, cut, encoding, hashed) for cut in due)
        results = over_ray(write_shard, jobs) if ray else over_processes(write_shard, jobs, min(workers, len(due)))
        samples = sum(len(cut.rows) for cut in mine)
        _follow(folder, results, samples, samples - sum(len(cut.rows) for cut in due), len(listing), max_bad)
        if left := [cut.name for cut in cuts if not _record(folder, cut).is_file()]:
            say(f"part {part.index} of {part.count} is done; {len(left)} shards are left to the other parts")
            return None
        return _finish(folder, converter, listing, identity, lambda: _of_tars(folder, listing, cuts, max_bad))


@contextmanager
def _alone_at(folder: Path, part: Part) -> Iterator[None]:
    """Holds a part of the set, for as long as this process lives; `FastadError` if another process is at it, or shares
    the set out otherwise."""
    place = _partial(folder, part)
    refusal = f"{folder} is being converted by another process: wait for it, or choose another --out or --part"
    with locked(place / "lock", refusal):
        for lock in (folder / ".partial").glob("*/lock"):
            if not lock.parent.name.endswith(f"-of-{part.count}"):
                with locked(lock, refusal):
                    pass
        yield


def _partial(folder: Path, part: Part) -> Path:
    return folder / ".partial" / f"part-{part.index}-of-{part.count}"


class _Begun(NamedTuple):
    """A conversion that may go on: what is converted, what it is held to, and the shards to be (none in place)."""

    listing: Listing
    identity: Mapping[str, Any]
    cuts: list[Cut]


def _begin(
    converter: Converter,
    raw: Path | None,
    folder: Path,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    part: Part,
) -> _Begun | Manifest:
    """Stage 1: lists the source and holds it against what the folder has; the set itself where it is whole."""
    partial, in_place = _partial(folder, part), arguments["in_place"]
    begun = (partial / "begun.json").is_file()
    try:
        listing = list_samples(converter, raw, options, partial, in_place=in_place)
        identity = {"source_fingerprint": listing.fingerprint, "arguments": arguments}
        if (folder / MANIFEST).is_file():
            return _finished(folder, identity)
        for path in sorted((folder / ".partial").glob("*/begun.json")):
            _refuse_other("was begun with", path, identity, folder)
        cuts = [] if in_place else cut_listing(listing, arguments["shard_samples"])
        if in_place:
            refuse_unfit(converter.name, listing)
            needed = bytes_in_place(listing)
        else:
            due = [cut for cut in cuts if not _record(folder, cut).is_file()]
            needed = sum(int(member_bytes(listing.size[cut.rows]).sum()) for cut in due)
        _refuse_small_disk(folder, needed)
    except BaseException:
        if not begun:
            _remove_traces(partial)
        raise
    write_json(partial / "begun.json", identity)
    return _Begun(listing, identity, cuts)


def _finished(folder: Path, identity: Mapping[str, Any]) -> Manifest:
    """The set that stands in the folder, if it is the one that source and arguments would give."""
    # What is partial now is of no more use to any part: a kill may have come between the manifest and its removal.
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    _refuse_other("is a conversion with", folder / MANIFEST, identity, folder)
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


def _record(folder: Path, cut: Cut) -> Path:
    return folder / ".partial" / f"{cut.name}.json"


def _refuse_small_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FastadError(f"{folder} needs {needed:,} bytes, {free:,} are free: free some or choose another --out")


def _job(folder: Path, listing: Listing, cut: Cut, encoding: Encoding, hashed: bool) -> Job:
    rows = cut.rows
    used, file = np.unique(listing.file[rows], return_inverse=True)
    return Job(
        *(folder, cut.name, encoding, listing.files[used], file),
        *(listing.offset[rows], listing.size[rows], listing.shape[rows], listing.order[rows], listing.exact[rows]),
        *(listing.class_index[rows], listing.key[rows], hashed),
    )


def _follow(
    folder: Path, results: Generator[Written, None, None], samples: int, done: int, total: int, max_bad: float
) -> None:
    """Stage 2, as it goes on elsewhere: stops as soon as more of these images are bad than may be of all."""
    rejects: list[Reject] = []
    # Closed here, so that no worker goes on while an exception is on its way.
    with progress(f"shard {folder.name}", samples, unit="images", done=done) as advance, closing(results):
        for written in results:
            advance(written.samples)
            rejects += written.rejects
            _refuse_bad(folder, rejects, total, max_bad)


def _refuse_bad(folder: Path, rejects: list[Reject], total: int, max_bad: float) -> None:
    if len(rejects) > max_bad * total:
        first = rejects[0]
        raise FastadError(
            f"{folder}: {len(rejects)} of {total:,} images cannot be used, the first is {first['key']} "
            f"({first['reason']}): repair the source, or allow more with --max-bad"
        )


def _finish(
    folder: Path,
    converter: Converter,
    listing: Listing,
    identity: Mapping[str, Any],
    contents: Callable[[], Contents],
) -> Manifest:
    """Stage 3: columns and card, then the manifest, then away with what was partial. One process at a time does it."""
    with alone(folder / ".partial" / "lock"):
        if (folder / MANIFEST).is_file():
            return open_set(folder)  # another part was faster
        shards, columns, of_contents = contents()
        for name, column in columns:
            with atomic(column_path(folder, name)) as file:
                np.save(file, column.astype(COLUMNS[name], copy=False) if COLUMNS[name] else column)
        facts = {
            "schema_version": SCHEMA_VERSION,
            "name": folder.name,
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
        write_json(folder / MANIFEST, facts)
        shutil.rmtree(folder / ".partial")
        return open_set(folder)


def _of_tars(folder: Path, listing: Listing, cuts: list[Cut], max_bad: float) -> Contents:
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


def _columns(folder: Path, listing: Listing, cuts: list[Cut]) -> dict[str, np.ndarray]:
    """The manifest's columns, from what the shards' workers left and from the listing."""
    written = [np.load(folder / ".partial" / f"{cut.name}.npy") for cut in cuts]
    rows = np.concatenate([cut.rows[found["place"]] for cut, found in zip(cuts, written, strict=True)])
    columns = {name: np.concatenate([found[name] for found in written]) for name in WRITTEN}
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

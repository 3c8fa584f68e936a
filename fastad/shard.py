"""Samples → seeded, hashed, atomic shards, in parallel and resumable; and their verification.

Owns the bytes of tars and indices and the order of samples in them. Converters (`tools/`) say what the samples are,
`fastad.manifest` what a finished set looks like.

A conversion has three stages, and each survives being killed:
1. list: the converter's samples go, in its order, into columns and one spool of raw pixels in `<set>/.partial/`;
2. write: each shard's rows of the seeded permutation become one tar (temporary name, sync, rename, record);
3. finish: columns, then `manifest.json`, whose presence means that the set is whole.
Use: `convert("digits", raw=None, home=Path("shards"))`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import pkgutil
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.files import atomic, write_json, write_text
from fastad.manifest import COLUMNS, SCHEMA_VERSION, Manifest, Sample, Shard, check_shards, open_set
from fastad.progress import progress, say
from fastad.seeds import generator

BLOCK = 512
LARGEST_NPY_PX = 64
PERMUTATION_SEED = 0
SHARD_BYTES = 256 * 2**20
SHARD_SAMPLES = 10_000

_KEY = re.compile(r"[A-Za-z0-9_\-/]{1,90}")


@dataclass(frozen=True, slots=True)
class Converter:
    """A module of `tools/`, or a user's own file: what it yields and what is to be said of it."""

    name: str
    samples: Callable[..., Iterator[Sample]]
    source: str
    licence: str
    classes: tuple[str, ...] | None


def converter_names() -> list[str]:
    """The names that `fastad shard` knows."""
    import fastad_tools

    names = (module.name for module in pkgutil.iter_modules(fastad_tools.__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load_converter(name: str) -> Converter:
    """The converter of that name, or of the file at that path if it ends in `.py`; `FastadError` if there is none."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise FastadError(f"no converter file {path}: give the path of an existing .py file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        name = path.stem.replace("_", "-")
    elif name in (known := converter_names()):
        module = importlib.import_module(f"fastad_tools.{name.replace('-', '_')}")
    else:
        raise unknown("set", name, known)
    if not callable(getattr(module, "samples", None)):
        raise FastadError(f"{module.__file__} is not a converter: it has no function samples(raw) that yields Samples")
    return Converter(
        name=name,
        samples=module.samples,
        source=getattr(module, "SOURCE", "unknown"),
        licence=getattr(module, "LICENCE", "unknown"),
        classes=getattr(module, "CLASSES", None),
    )


def convert(name: str, raw: Path | None, home: Path, *, workers: int | None = None) -> Manifest:
    """Converts a set into `home/<set>` and returns its manifest; continues an interrupted conversion.

    The same source gives the same bytes whatever `workers` is (default: every core of this process). A finished set
    whose source has not changed is left as it is. Raises `FastadError` if the source is missing or broken, if it is not
    the one that the folder was begun with, or if the disk is too small; nothing is then left under a final name.
    """
    converter = load_converter(name)
    takes_raw = bool(inspect.signature(converter.samples).parameters)
    if takes_raw and raw is None:
        raise FastadError(f"{name} needs the path of its raw data: fastad shard {name} RAW")
    if not takes_raw and raw is not None:
        raise FastadError(f"{name} makes its own images and takes no raw data: leave out {raw}")
    if raw is not None and not raw.exists():
        raise FastadError(f"no raw data at {raw}: give the folder that holds the files of {name}")
    folder = home / converter.name
    partial = folder / ".partial"
    begun = (partial / "fingerprint").is_file()
    try:
        listing = _list_samples(converter, raw, partial)
        if (folder / "manifest.json").is_file():
            return _finished(folder, converter, listing)
        _refuse_another_source(partial, listing.fingerprint)
        _refuse_small_disk(folder, listing)
    except BaseException:
        if not begun:
            _remove_traces(folder)
        raise
    write_text(partial / "fingerprint", listing.fingerprint)
    _write_shards(folder, listing, workers or len(os.sched_getaffinity(0)))
    return _finish(folder, converter, listing)


def _finished(folder: Path, converter: Converter, listing: "_Listing") -> Manifest:
    """The set that stands in the folder, if it is the one that the source would give."""
    shutil.rmtree(folder / ".partial")
    manifest = open_set(folder)
    if manifest.fingerprint != listing.fingerprint:
        raise FastadError(f"{folder} holds another conversion of {converter.name}: choose another --out or remove it")
    say(f"{folder} is complete already")
    return manifest


def _remove_traces(folder: Path) -> None:
    """Takes away what a conversion that could not even list its source left behind."""
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class _Cut(NamedTuple):
    """One shard to be: samples `start` to `stop` of its split's permutation."""

    split: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class _Listing:
    """What a converter yielded, as columns in the converter's order, and how it is cut into shards."""

    classes: tuple[str, ...]
    shape_hwc: tuple[int, int, int]
    keys: np.ndarray
    class_index: np.ndarray
    order: dict[str, np.ndarray]
    cuts: list[_Cut]
    fingerprint: str


def _list_samples(converter: Converter, raw: Path | None, partial: Path) -> _Listing:
    """Stage 1. Refuses a source that is not the one a conversion in this folder was begun with."""
    keys: list[str] = []
    names: list[str | None] = []
    splits: list[str] = []
    shape: tuple[int, int, int] | None = None
    digest = hashlib.sha256()
    yielded = converter.samples(raw) if raw is not None else converter.samples()
    with atomic(partial / "spool.bin") as spool, progress(f"read {converter.name}", unit="images") as advance:
        for sample in yielded:
            pixels = _checked_pixels(sample, shape)
            shape = pixels.shape
            data = pixels.tobytes()
            spool.write(data)
            digest.update(data)
            keys.append(sample.key)
            names.append(sample.class_name)
            splits.append(sample.split)
            advance()
    if shape is None:
        raise FastadError(f"{converter.name} found no images in {raw}: check the path")
    if len(set(keys)) != len(keys):
        raise FastadError(f"{converter.name} yields two samples of one key: keys must be unique in a set")
    classes = converter.classes or tuple(sorted({name for name in names if name is not None}))
    index_of: dict[str | None, int] = {None: -1} | {name: index for index, name in enumerate(classes)}
    if strange := set(names) - set(index_of):
        raise FastadError(f"{converter.name} yields class {min(map(str, strange))!r}, which is not in its CLASSES")
    class_index = np.array([index_of[name] for name in names], dtype=np.int32)
    per_shard = max(1, min(SHARD_SAMPLES, SHARD_BYTES // _sample_bytes(shape)))
    digest.update(repr((SCHEMA_VERSION, PERMUTATION_SEED, per_shard, converter.source, shape, classes)).encode())
    digest.update(repr((keys, splits, names)).encode())

    split_of = np.array(splits)
    order, cuts = {}, []
    for split in dict.fromkeys(splits):
        rows = np.flatnonzero(split_of == split)
        order[split] = rows[generator(PERMUTATION_SEED, "shard", split).permutation(len(rows))]
        for number, start in enumerate(range(0, len(rows), per_shard)):
            cuts.append(_Cut(split, f"{split}-{number:05d}", start, min(start + per_shard, len(rows))))
    return _Listing(classes, shape, np.array(keys, dtype="S"), class_index, order, cuts, digest.hexdigest())


def _checked_pixels(sample: Sample, shape: tuple[int, int, int] | None) -> np.ndarray:
    """The sample's pixels as [H, W, C]; the boundary at which a converter's output is checked."""
    pixels = sample.pixels[..., None] if sample.pixels.ndim == 2 else sample.pixels
    if not _KEY.fullmatch(sample.key):
        raise FastadError(f"sample key {sample.key!r}: use 1 to 90 of letters, digits, '_', '-' and '/'")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 0 < max(pixels.shape[:2]) <= LARGEST_NPY_PX:
        raise FastadError(
            f"sample {sample.key} is {pixels.dtype} {sample.pixels.shape}: "
            f"images must be uint8 [H, W] or [H, W, C] of at most {LARGEST_NPY_PX} px"
        )
    if shape is not None and pixels.shape != shape:
        raise FastadError(f"sample {sample.key} is {pixels.shape}, those before it are {shape}: one size a set")
    return pixels


def _refuse_another_source(partial: Path, fingerprint: str) -> None:
    begun = partial / "fingerprint"
    if begun.is_file() and begun.read_text() != fingerprint:
        raise FastadError(f"{partial.parent} was begun from another source: remove it to start anew")


def _refuse_small_disk(folder: Path, listing: _Listing) -> None:
    due = sum(cut.stop - cut.start for cut in _due(folder, listing))
    needed, free = due * _sample_bytes(listing.shape_hwc), shutil.disk_usage(folder).free
    if free < needed:
        raise FastadError(f"{folder} needs {needed:,} bytes, {free:,} are free: free some or choose another --out")


def _due(folder: Path, listing: _Listing) -> list[_Cut]:
    """The shards that have no completion record yet."""
    return [cut for cut in listing.cuts if not (folder / ".partial" / f"{cut.name}.json").is_file()]


def _write_shards(folder: Path, listing: _Listing, workers: int) -> None:
    """Stage 2: every shard that has no record yet, each by one worker process (or here, if one is enough)."""
    due = _due(folder, listing)
    samples = sum(cut.stop - cut.start for cut in due)
    jobs = [_job(folder, listing, cut) for cut in due]
    total = sum(len(order) for order in listing.order.values())
    with progress(f"shard {folder.name}", total, unit="images", done=total - samples) as advance:
        if min(workers, len(jobs)) <= 1:
            for job in jobs:
                advance(_write_shard(job))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            try:
                for future in as_completed([pool.submit(_write_shard, job) for job in jobs]):
                    advance(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@dataclass(frozen=True, eq=False)
class _ShardJob:
    """What a worker process needs to write one shard, with the shard's own rows only."""

    folder: Path
    cut: _Cut
    rows: np.ndarray
    shape_hwc: tuple[int, int, int]
    keys: np.ndarray
    class_index: np.ndarray


def _job(folder: Path, listing: _Listing, cut: _Cut) -> _ShardJob:
    rows = listing.order[cut.split][cut.start : cut.stop]
    return _ShardJob(folder, cut, rows, listing.shape_hwc, listing.keys[rows], listing.class_index[rows])


def _write_shard(job: _ShardJob) -> int:
    """Writes one tar, its index and its completion record; returns the number of samples."""
    image_bytes = int(np.prod(job.shape_hwc))
    npy_header = _npy_header(job.shape_hwc)
    size = len(npy_header) + image_bytes
    spool = np.memmap(job.folder / ".partial" / "spool.bin", dtype=np.uint8, mode="r").reshape(-1, image_bytes)
    offsets = np.empty(len(job.rows), dtype=np.int64)
    digest = hashlib.sha256()
    with atomic(job.folder / f"{job.cut.name}.tar") as tar:
        at = 0
        for place, row in enumerate(job.rows):
            key = job.keys[place].decode()
            offsets[place] = at + BLOCK
            chunk = tar_member(f"{key}.npy", npy_header + spool[row].tobytes())
            if job.class_index[place] >= 0:
                chunk += tar_member(f"{key}.cls", str(job.class_index[place]).encode())
            tar.write(chunk)
            digest.update(chunk)
            at += len(chunk)
        end = bytes(2 * BLOCK)
        tar.write(end)
        digest.update(end)
    write_text(job.folder / f"{job.cut.name}.idx", index_text(offsets, np.full(len(offsets), size)))
    with atomic(job.folder / ".partial" / f"{job.cut.name}.npy") as file:
        np.save(file, offsets)
    record = Shard(f"{job.cut.name}.tar", job.cut.split, at + 2 * BLOCK, len(job.rows), digest.hexdigest())
    write_json(job.folder / ".partial" / f"{job.cut.name}.json", asdict(record))
    return len(job.rows)


def tar_member(name: str, data: bytes) -> bytes:
    """One USTAR member with zeroed metadata: header block, data, padding to whole blocks (POSIX.1-2017, pax, ustar)."""
    header = bytearray(_MEMBER_HEADER)
    encoded = name.encode()
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % len(data)
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


_MEMBER_HEADER = struct.pack(
    "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s167x",
    *(b"", b"0000644", b"0000000", b"0000000", b"00000000000", b"00000000000"),
    # The checksum is summed with its own field as spaces.
    *(b" " * 8, b"0", b"", b"ustar\0", b"00", b"", b"", b"0000000", b"0000000"),
)


def _npy_header(shape_hwc: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape_hwc))}
    )
    return buffer.getvalue()


def _sample_bytes(shape_hwc: tuple[int, int, int]) -> int:
    image = len(tar_member("", _npy_header(shape_hwc) + bytes(int(np.prod(shape_hwc)))))
    return image + len(tar_member("", b"0"))


def index_text(offset: np.ndarray, size: np.ndarray) -> str:
    """A DALI webdataset index (v1.1) with one component, the image, a line: enough for `fn.readers.webdataset`."""
    lines = [f"npy {at} {length}" for at, length in zip(offset.tolist(), size.tolist(), strict=True)]
    return "\n".join((f"v1.1 {len(lines)}", *lines)) + "\n"


def _finish(folder: Path, converter: Converter, listing: _Listing) -> Manifest:
    """Stage 3: columns, then the manifest, then away with what was partial."""
    partial = folder / ".partial"
    shards = [Shard(**json.loads((partial / f"{cut.name}.json").read_bytes())) for cut in listing.cuts]
    rows = np.concatenate(list(listing.order.values()))
    height, width, _ = listing.shape_hwc
    size = len(_npy_header(listing.shape_hwc)) + int(np.prod(listing.shape_hwc))
    columns = {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [shard.samples for shard in shards]),
        "offset": np.concatenate([np.load(partial / f"{cut.name}.npy") for cut in listing.cuts]),
        "size": np.full(len(rows), size, dtype=np.int64),
        "class_index": listing.class_index[rows],
        "width": np.full(len(rows), width, dtype=np.int32),
        "height": np.full(len(rows), height, dtype=np.int32),
        "source_index": rows.astype(np.int64),
        "key": listing.keys[rows],
    }
    for name in COLUMNS:
        with atomic(folder / "samples" / f"{name}.npy") as file:
            np.save(file, columns[name])
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": converter.name,
        "source": converter.source,
        "licence": converter.licence,
        "fingerprint": listing.fingerprint,
        "permutation_seed": PERMUTATION_SEED,
        "shape_hwc": listing.shape_hwc,
        "classes": listing.classes,
        "splits": {split: len(order) for split, order in listing.order.items()},
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / "manifest.json", facts)
    shutil.rmtree(partial)
    return open_set(folder)


LEVELS = ("size", "hash", "decode")


def verify(folder: Path, level: str = "hash") -> Manifest:
    """Checks a set against its manifest: tar sizes; and hashes and indices; and every header, key and image.

    Raises `FastadError` naming the first file, and for "decode" the first sample, that is not as it was written.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    manifest = open_set(folder)
    if level == "size":
        return manifest
    check_shards(folder, manifest.shards, hash_all=True)
    for number, shard in enumerate(manifest.shards):
        rows = np.flatnonzero(manifest.shard == number)
        index = folder / Path(shard.name).with_suffix(".idx")
        if not index.is_file() or index.read_text() != index_text(manifest.offset[rows], manifest.size[rows]):
            raise FastadError(f"{index} is missing or changed: restore it, or remove {folder} and convert again")
        if level == "decode":
            _verify_members(folder / shard.name, manifest, rows)
    return manifest


def _verify_members(path: Path, manifest: Manifest, rows: np.ndarray) -> None:
    tar = np.memmap(path, dtype=np.uint8, mode="r")
    for row in rows:
        offset, size, key = int(manifest.offset[row]), int(manifest.size[row]), manifest.key[row].decode()
        name = bytes(tar[offset - BLOCK : offset - BLOCK + 100]).rstrip(b"\0").decode(errors="replace")
        try:
            image = np.load(io.BytesIO(bytes(tar[offset : offset + size])))
        except ValueError as error:
            raise FastadError(f"{path}: sample {key} does not decode ({error}): convert the set again") from error
        if name != f"{key}.npy" or image.dtype != np.uint8 or image.shape != manifest.shape_hwc:
            raise FastadError(f"{path}: found {name} {image.shape} where the manifest says {key}: convert again")

"""Remote shard sets → verified copies on the local disk.

Owns the cache and the life of a staging; reading remote files is `fastad.remote`'s, what a set looks like is
`fastad.manifest`'s. All other modules see local folders only: no step of a training waits for a network.

The manifest, the columns and the tars are fetched; a tar is hashed while it is written, and stands under its name only
if it is the manifest's. Indices and card are made anew. The manifest is written last, as everywhere. A staging that was
killed keeps the files that it has finished.
Use: `folder = stage("s3://bucket/shards/digits")`, then `open_set(folder)`.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastad.card import card
from fastad.errors import FastadError
from fastad.files import alone, atomic, cache_home, make_folder, write_bytes, write_text
from fastad.manifest import COLUMNS, MANIFEST, SCHEMA_VERSION, Shard, shard_home
from fastad.progress import progress, say
from fastad.remote import Damaged, Remote, checked, connect, in_one_line, is_url, with_retries
from fastad.tar import index_text

CONNECTIONS = 8
PAUSES_S = (0.5, 2.0, 8.0)  # before the second, third and fourth try of a file
ELSEWHERE = "choose another folder with $FASTAD_CACHE, or fastad stage --to"


def local_home(chosen: str | None, names: Iterable[str]) -> Path:
    """The shard home chosen, else `$FASTAD_SHARDS`, else `./shards`; of a remote one, the sets `names` are staged."""
    place = chosen or os.environ.get("FASTAD_SHARDS") or ""
    if not is_url(place):
        return shard_home(Path(chosen) if chosen else None)
    folders = [stage(f"{place.rstrip('/')}/{name}") for name in dict.fromkeys(names)]
    return folders[0].parent


def local_set(place: str) -> Path:
    """The folder of a set; a remote set is staged first."""
    return stage(place) if is_url(place) else Path(place)


def stage(url: str, home: Path | None = None) -> Path:
    """Copies the set at `url` into `home/<set>` and returns that folder; files that stand there are not fetched again.

    Without `home`, that is a folder for this address in the cache, `$FASTAD_CACHE` or `~/.cache/fastad`. Processes that
    stage the same set wait for each other. A whole copy is used, and that is said, where the remote set cannot be read.
    Raises `FastadError` for what cannot be read, is damaged, or is no longer what the folder holds.
    """
    url = checked(url)
    folder = (home or _cache(url)) / url.rpartition("/")[2]
    copied = (folder / MANIFEST).is_file()
    try:
        remote = connect(url)
        data = _manifest_bytes(remote, () if copied else PAUSES_S)
    except FastadError as error:
        if not copied:
            raise
        say(f"{error}. Going on with the copy in {folder}")
        return folder
    if _is_copy(folder, url, data):
        return folder
    facts, shards = _parse(url, data)
    make_folder(folder.parent)
    with alone(folder.parent / f".{folder.name}.lock", f"another process is staging {folder}: waiting for it"):
        if not _is_copy(folder, url, data):  # another process may have been faster
            files = _files(facts, shards)
            _begin(folder, url, data, files)
            _fetch_all(remote, folder, files)
            _finish(folder, facts, shards, data)
    return folder


def _cache(url: str) -> Path:
    """Where the cache keeps the sets that lie beside the one at `url`."""
    scheme, _, place = url.partition("://")
    return cache_home() / scheme / place.rpartition("/")[0]


def _manifest_bytes(remote: Remote, pauses_s: tuple[float, ...]) -> bytes:
    name = MANIFEST
    try:
        return with_retries(
            f"{remote.url}/{name}", lambda: b"".join(remote.chunks(name)), pauses_s, stopped=threading.Event()
        )
    except FastadError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise FastadError(
            f"{remote.url} is not a shard set: found no {name} there ({in_one_line(error.__cause__)}); check the "
            "address, or upload the whole set"
        ) from error


def _is_copy(folder: Path, url: str, data: bytes) -> bool:
    """Whether the folder holds the set whose manifest is `data`; raises `FastadError` where it holds another one."""
    path = folder / MANIFEST
    if not path.is_file():
        return False
    if path.read_bytes() != data:
        raise FastadError(
            f"{url} is not the set that was staged to {folder}: its manifest has changed. Remove that folder to stage "
            f"it anew, or go on with the copy: --shards {folder.parent}"
        )
    return True


def _parse(url: str, data: bytes) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    try:
        facts = json.loads(data)
        if facts["schema_version"] != SCHEMA_VERSION:
            raise FastadError(
                f"{url} has schema {facts['schema_version']}, this fastad reads {SCHEMA_VERSION}: convert it again"
            )
        shards = tuple(Shard(**shard) for shard in facts["shards"])
        if wrong := [shard.name for shard in shards if not re.fullmatch(r"[^./][^/]*\.(tar|bin)", shard.name)]:
            raise ValueError(f"a shard is called {wrong[0]!r}")  # it would be written elsewhere
        return facts, shards
    except (ValueError, KeyError, TypeError) as error:
        raise FastadError(
            f"{url}/manifest.json is not a manifest of fastad ({in_one_line(error)}): check the address, or upload the "
            "set again"
        ) from error


def _begin(folder: Path, url: str, data: bytes, files: Iterable[str]) -> None:
    """Records which set is being staged. Files that stand from now on are this set's: others are taken away first."""
    begun = folder / ".partial" / "remote.json"
    if begun.is_file():
        if begun.read_bytes() == data:
            return
        say(f"{url} has changed since its staging began: starting anew")
    elif begun.parent.is_dir():
        raise FastadError(f"{folder} holds an unfinished conversion: finish or remove it, or {ELSEWHERE}")
    for name in files:
        (folder / name).unlink(missing_ok=True)
    write_bytes(begun, data)


class _Due(NamedTuple):
    """What a file to fetch must be; the sizes of columns are not known before."""

    sha256: str
    bytes: int = 0


def _files(facts: Mapping[str, Any], shards: tuple[Shard, ...]) -> dict[str, _Due]:
    """The files to fetch: columns, then shards."""
    columns = {f"samples/{name}.npy": _Due(facts["columns_sha256"][name]) for name in COLUMNS}
    return columns | {shard.name: _Due(shard.sha256, shard.bytes) for shard in shards}


def _fetch_all(remote: Remote, folder: Path, files: Mapping[str, _Due]) -> None:
    """Every file that does not stand yet, several at a time; the first that fails stops the others."""
    due = {name: file for name, file in files.items() if not (folder / name).is_file()}
    total, needed = (sum(file.bytes for file in some.values()) for some in (files, due))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FastadError(f"{folder} needs {needed:,} bytes, {free:,} are free: free some, or {ELSEWHERE}")
    stopped, counting = threading.Event(), threading.Lock()
    with progress(f"stage {folder.name}", total, unit="bytes", done=total - needed) as advance:

        def fetch(name: str, file: _Due) -> None:
            def count(size: int) -> None:
                if file.bytes:
                    with counting:
                        advance(size)

            def read() -> None:
                _fetch(remote, folder, name, file, count, stopped)

            with_retries(f"{remote.url}/{name}", read, PAUSES_S, stopped)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                for done in as_completed([pool.submit(fetch, name, file) for name, file in due.items()]):
                    done.result()
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise


def _fetch(
    remote: Remote, folder: Path, name: str, due: _Due, count: Callable[[int], None], stopped: threading.Event
) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with atomic(folder / name) as file:
            for chunk in remote.chunks(name):
                if stopped.is_set():
                    raise CancelledError
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                count(len(chunk))
            if due.bytes and size != due.bytes:
                raise Damaged(f"{size:,} bytes arrived, the manifest says {due.bytes:,}")
            if digest.hexdigest() != due.sha256:
                raise Damaged("its SHA-256 is not the manifest's")
    except BaseException:
        count(-size)
        raise


def _finish(folder: Path, facts: dict[str, Any], shards: tuple[Shard, ...], data: bytes) -> None:
    """What can be made of what was fetched; then the manifest, then away with what was partial."""
    extension, offset, size = (
        np.load(folder / "samples" / f"{name}.npy", mmap_mode="r") for name in ("extension", "offset", "size")
    )
    stop = 0
    for shard in shards:
        rows = slice(stop, stop := stop + shard.samples)
        text = index_text(extension[rows].tolist(), offset[rows], size[rows])
        write_text((folder / shard.name).with_suffix(".idx"), text)
    write_text(folder / "README.md", card(facts))
    write_bytes(folder / MANIFEST, data)
    shutil.rmtree(folder / ".partial")

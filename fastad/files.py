"""Writing files so that a final name always holds a whole file.

Owns temporary names, syncing, renaming, locks and positional reading, and the one-line messages for a disk that refuses
and a file that was cut; and where the cache is. Knows no format.
Use: `with atomic(path) as file: file.write(...)`.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastad.errors import FastadError
from fastad.progress import say


class Unwritable(FastadError):
    """A file that cannot be written, as the disk is full or the folder may not be written."""


DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic(path: Path, *, kept: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that stands under `path` only once it is whole and on disk; on any error nothing of it remains.

    What `path` was before stands under `kept` then, if that is given. Raises `Unwritable` where the disk is full or the
    folder may not be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if path.is_dir():
        raise Unwritable(f"cannot write {path}: it is a folder; name a file")
    make_folder(path.parent)
    with _telling(path):
        file = open(temporary, "wb")  # noqa: SIM115 (closed below)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if kept is not None and path.exists():
            os.replace(path, kept)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise  # the caller's own, such as an input that cannot be read
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def syncing_early(file: IO[bytes]) -> Iterator[Callable[[], None]]:
    """Gives what is called after each write to a long file: what was written is synced while more is, so that little is
    left to the end. Only a thread of its own waits for the disk; its errors are raised by the next call, or the end."""
    start = 0
    syncing: Future[None] | None = None

    def written() -> None:
        nonlocal start, syncing
        if (end := file.tell()) - start < _SYNC_BYTES or (syncing and not syncing.done()):
            return
        if syncing:
            syncing.result()  # an error is told to one sync only: the last one would know nothing of it
        file.flush()
        start, syncing = end, thread.submit(os.fdatasync, file.fileno())

    with ThreadPoolExecutor(1) as thread:
        yield written
        if syncing:
            syncing.result()


# To sync 256 MB at the end takes 0.2 s, in which a worker does nothing else; that of 8 to 32 MB at a time takes none.
_SYNC_BYTES = 16 * 2**20


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Holds a lock file, which is free again when this process ends, however it ends.

    Raises `FastadError(refusal)` if another process holds it.
    """
    make_folder(path.parent)
    with _telling(path):
        lock = open(path, "w")  # noqa: SIM115 (closed below)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FastadError(refusal) from error
        yield


@contextmanager
def alone(path: Path, waiting: str = "") -> Iterator[None]:
    """Holds a lock file as `locked` does, but waits for it, and says `waiting` then; look again at what it guards.

    Where its folder is gone, so is what it guards: nothing is held.
    """
    lock = None
    with _telling(path), suppress(FileNotFoundError):
        lock = open(path, "w")  # noqa: SIM115 (closed below)
    if lock is None:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder(path: Path) -> None:
    """Makes the folder and those above it, where they are not there yet; raises `Unwritable`."""
    with _telling(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Around what writes to `path`: an error of the system's is told of it."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> Unwritable:
    free = "free some space or " if error.errno in DISK_IS_FULL else ""
    return Unwritable(f"cannot write {path}: {error.strerror}; {free}choose another folder")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes | memoryview, *, kept: Path | None = None) -> None:
    """Writes `data`, atomically, as `atomic` does it."""
    with atomic(path, kept=kept) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def link(path: Path, target: Path) -> None:
    """Makes `path` a symbolic link to `target`, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _telling(path):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, path)
        _sync_folder(path.parent)


def read_into(descriptor: int, array: np.ndarray, offset: int, path: str | bytes | Path) -> None:
    """Fills a dense array from an open file, `path` in messages; raises `FastadError` if the file ends before that.

    Not through a memory map: reading beyond the end of a file that was cut would kill the process.
    """
    try:
        whole = os.preadv(descriptor, [array.data], offset) == array.nbytes
    except OSError:
        whole = False
    if not whole:
        raise FastadError(f"{os.fsdecode(path)} cannot be read to its end: restore it and run the same command again")


def cache_home() -> Path:
    """Where copies of remote sets and findings about this machine are kept: `$FASTAD_CACHE`, else ~/.cache/fastad."""
    return Path(os.environ.get("FASTAD_CACHE") or Path.home() / ".cache" / "fastad")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file; raises `Unwritable` where the disk is full. A kill may leave the last line cut."""
    try:
        with open(path, "a") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Held images that the processes of a machine share: decoded once and, on the CPU, in memory once.

Owns the memory they lie in, how it is found, and its end; what is held is `fastad.resident`'s, whether it is to be held
`fastad.sets`'.
Use: `with sharing(): held = hold_together(Origin(reader, faults), rows, decoding, room=lambda: 2**30)`.

Images lie in a memfd: memory without a name in any file system, which the kernel frees once the last process that has
it is gone, however it went. A file in /dev/shm would outlive kill -9, and containers often have 64 MB there. Others
open it as /proc/<pid>/fd/<number>, which a small file for these images tells, a line for each process that has them.
That file is the lock, too: held alone by the process that decodes, shared by those that use what it made. Workers on
one GPU do not share what CUDA holds: it goes with the process that made it, whoever else still reads it.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastad.dali import Decoding
from fastad.faults import Origin
from fastad.progress import say
from fastad.resident import Held, bytes_held, hold

# Where the small files may lie, which two commands must look for in the same place.
HOMES = (Path("/dev/shm"), Path(tempfile.gettempdir()))
LOOK_EVERY_S = 0.02
SAY_AFTER_S = 1.0
# Processes have images for so long, but theirs cannot be opened: /proc is closed to us.
GIVE_UP_AFTER_S = 5.0

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LENGTH_BYTES = 8

# What this process uses: the small file of each, open and locked, with its memory. They end with the process, as locks
# and memory do.
_used: dict[int, tuple[int, Path]] = {}


def hold_together(origin: Origin, rows: np.ndarray, decoding: Decoding, room: Callable[[], float]) -> Held | None:
    """As `fastad.resident.hold`, by whichever process comes first; the others wait for it and take what it made, also
    which images do not decode. What they have is read-only, and theirs as long as the `Held` lives.

    `room()`: the bytes of memory that new images may take; asked, and taken, by one process at a time. None, and it is
    said why, where they take more, or where nothing can be shared.
    """
    rows, name = np.unique(rows), origin.reader.manifest.name
    try:
        path = _folder() / _key(origin, rows, decoding)
        entry, memory = _enter(path, name)
    except OSError as error:
        _say_why(name, error)
        return None
    made = None
    try:
        if memory is None:
            memory, made = _made(path, origin, rows, decoding, room)
            fcntl.flock(entry, fcntl.LOCK_SH)
        os.write(entry, f"{os.getpid()} {memory}\n".encode())
    except BaseException as error:
        _remove_unused(entry, path)
        os.close(entry)
        if memory is not None:
            os.close(memory)
        if not isinstance(error, OSError):
            raise
        _say_why(name, error)
        return None
    _used[entry] = memory, path
    held = made or _taken(origin, rows, decoding.device, memory)
    weakref.finalize(held, _leave, entry)
    return held


def _say_why(name: str, error: OSError) -> None:
    where = f": {error.filename}" if error.filename else ""
    say(f"hold {name}: not shared with the other processes of this machine ({error.strerror}{where})")


@contextmanager
def sharing() -> Iterator[None]:
    """Around the work of a process that shares images: removes the small files of those that were killed, whose memory
    is free already, and at the end gives up its own."""
    with suppress(OSError):
        for path in _folder().iterdir():
            with suppress(FileNotFoundError):
                entry = os.open(path, os.O_RDWR)
                _remove_unused(entry, path)
                os.close(entry)
    try:
        yield
    finally:
        leave_all()


def leave_all() -> None:
    """Gives up all that this process shares, and removes what nobody else uses; for a process that is about to end."""
    for entry in list(_used):
        _leave(entry)


def _folder() -> Path:
    """Where processes of this user find each other; those of another container have other numbers.

    Raises `OSError` where there is no such place.
    """
    container = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    for home in HOMES:
        folder = home / f"fastad-{os.getuid()}-{container}"
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.lstat().st_uid == os.getuid() and os.access(folder, os.W_OK):
                return folder
    raise FileNotFoundError(0, "no folder of one's own can be made", " or ".join(map(str, HOMES)))


def _key(origin: Origin, rows: np.ndarray, decoding: Decoding) -> str:
    """What the held pixels and what stands in for bad images depend on: also on the packages that decode."""
    (reader, faults), device = origin, decoding.device
    facts = [
        *(sys.prefix, str(reader.manifest.folder.resolve()), reader.manifest.fingerprint, reader.transpose),
        *(decoding.spec.resize_px, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(rows.astype(np.int64).data)
    digest.update(np.ascontiguousarray(faults.others, dtype=np.int64).data)
    return digest.hexdigest()


def _enter(path: Path, name: str) -> tuple[int, int | None]:
    """The small file, opened, and the memory that it leads to; None if this process is to make that, alone.

    Raises `OSError` where others have it and this process cannot.
    """
    began, said, unreachable_since = time.monotonic(), False, None
    # Several that look at the same moments would hinder each other for ever.
    pause_s = LOOK_EVERY_S * (1 + os.getpid() % 16 / 16)
    while True:
        entry = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if is_shared := _locked(entry, fcntl.LOCK_SH):
            if _is_at(path, entry) and (memory := _memory_of(entry, path)) is not None:
                return entry, memory
            if _locked(entry, fcntl.LOCK_EX) and _is_at(path, entry):
                os.ftruncate(entry, 0)
                return entry, None
        os.close(entry)
        now = time.monotonic()
        unreachable_since = (unreachable_since or now) if is_shared else None
        if unreachable_since is not None and now - unreachable_since > GIVE_UP_AFTER_S:
            raise PermissionError(errno.EACCES, "what others have cannot be opened", str(path))
        if not said and now - began > SAY_AFTER_S:
            say(f"hold {name}: another process decodes these images, this one waits for it")
            said = True
        time.sleep(pause_s)


def _locked(entry: int, how: int) -> bool:
    """Whether the lock could be had, in the place of one that this process may have had."""
    try:
        fcntl.flock(entry, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, entry: int) -> bool:
    """Whether the open file still stands there: who used it last removes it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(entry))
    return False


def _memory_of(entry: int, path: Path) -> int | None:
    """The images' memory, opened from any process that has it."""
    for line in os.pread(entry, os.fstat(entry).st_size, 0).decode().splitlines():
        pid, number = line.split()
        place = Path(f"/proc/{pid}/fd/{number}")
        with suppress(OSError):
            # The process may be gone, and its numbers be another's: what they mean then must not be opened, nor taken.
            if _is_memory(place, path):
                memory = os.open(place, os.O_RDONLY)
                if _is_memory(Path(f"/proc/self/fd/{memory}"), path):
                    return memory
                os.close(memory)
    return None


def _is_memory(place: Path, path: Path) -> bool:
    return str(place.readlink()) == f"/memfd:{path.name} (deleted)"


def _made(
    path: Path, origin: Origin, rows: np.ndarray, decoding: Decoding, room: Callable[[], float]
) -> tuple[int, Held | None]:
    """Decodes the images; returns their memory, which nobody can write to any more, and what a GPU holds of them."""
    memory = _allocated(path, bytes_held(origin.reader, rows, decoding.spec), room)
    try:
        held = _filled(memory, origin, rows, decoding)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        # What is sealed can be mapped on every kernel only if it was opened to be read.
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY), held
    finally:
        os.close(memory)


def _allocated(path: Path, needed: int, room: Callable[[], float]) -> int:
    """So many bytes of memory, taken now and not when they are first written, for others to see what is left."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if needed > room():
            raise OSError(errno.ENOMEM, f"there is no room for their {needed:,} bytes")
        memory = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(memory, 0, needed)
        except OSError:
            os.close(memory)
            raise
        return memory
    finally:
        os.close(folder)


def _filled(memory: int, origin: Origin, rows: np.ndarray, decoding: Decoding) -> Held | None:
    """Holds the images, in that memory or copied to it from a GPU, and writes after them what `_taken` reads."""
    on_gpu = decoding.device.type == "cuda"
    into = _mapped(memory, mmap.PROT_READ | mmap.PROT_WRITE).view(-1, origin.reader.manifest.channels)
    held = hold(origin, rows, decoding, None if on_gpu else into)
    size = held.pixels.numel()
    if on_gpu or held.pixels.data_ptr() != into.data_ptr():  # what stands in for an image may be larger
        os.posix_fallocate(memory, 0, size)
        _mapped(memory, mmap.PROT_READ | mmap.PROT_WRITE)[:size].copy_(held.pixels.reshape(-1))
    facts = json.dumps({"pixel_bytes": size, "bad": list(origin.faults.reason.items())}).encode()
    os.ftruncate(memory, size)
    sizes = held.size_hw.astype(np.int32).tobytes()
    os.pwrite(memory, sizes + facts + len(facts).to_bytes(_LENGTH_BYTES), size)
    return held if on_gpu else None


def _mapped(memory: int, protection: int) -> Tensor:
    """All of a memory, uint8 [bytes]; mapped as long as any tensor of it lives."""
    with warnings.catch_warnings():
        # PyTorch knows no tensors that must not be written to; whoever tries ends at once.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(mmap.mmap(memory, 0, prot=protection), dtype=np.uint8))


def _taken(origin: Origin, rows: np.ndarray, device: torch.device, memory: int) -> Held:
    """What another process, or this one, has made."""
    (reader, faults), whole = origin, _mapped(memory, mmap.PROT_READ)
    tail_at = len(whole) - _LENGTH_BYTES
    facts_at = tail_at - int.from_bytes(whole[tail_at:].numpy().tobytes())
    facts = json.loads(whole[facts_at:tail_at].numpy().tobytes())
    if new := [(row, reason) for row, reason in facts["bad"] if row not in faults.reason]:
        for row, reason in new:
            faults.note(row, reason)
        say(f"hold {reader.manifest.name}: {len(new):,} images cannot be decoded, as the process says that tried")
    sizes = whole[facts["pixel_bytes"] : facts_at].numpy().tobytes()
    size_hw = np.frombuffer(sizes, dtype=np.int32).reshape(-1, 2)
    areas = size_hw.astype(np.int64).prod(axis=1)
    pixels = whole[: facts["pixel_bytes"]].view(-1, reader.manifest.channels)
    return Held(rows, pixels.to(device), np.cumsum(areas) - areas, size_hw)


def _leave(entry: int) -> None:
    """Gives up images; the last to have them removes the small file."""
    if entry in _used:
        memory, path = _used.pop(entry)
        _remove_unused(entry, path)
        os.close(entry)
        os.close(memory)


def _remove_unused(entry: int, path: Path) -> None:
    if _locked(entry, fcntl.LOCK_EX) and _is_at(path, entry):
        path.unlink()

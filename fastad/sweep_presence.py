"""That a sweep's folder carries locks between the machines that share it, on which claims rest.

Owns `.sweep/drivers/`: a file for each driver, which it holds locked and writes to again and again. Where a driver of
another machine writes although its lock can be had, locks do not reach other machines.
Use: `with present(folder, driver_name()) as beat: beat()` now and then.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastad.errors import FastadError

BEAT_S = 2.0


def driver_name() -> str:
    """This process among all that may share a folder."""
    return f"{socket.gethostname()}.{os.getpid()}"


@contextmanager
def present(folder: Path, name: str) -> Iterator[Callable[[], None]]:
    """While it lasts, this driver is known to those of other machines; yields what must be called every `BEAT_S` or so.

    Raises `FastadError` where another machine works on the folder and locks do not reach it.
    """
    folder = folder / "drivers"
    folder.mkdir(parents=True, exist_ok=True)
    _check_locks(folder, name.rpartition(".")[0])
    path, temporary = folder / name, folder / f".{name}"
    # Under its name only once it is locked.
    with open(temporary, "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.replace(temporary, path)

        def beat() -> None:
            file.seek(0)
            file.write(f"{time.time():.3f}\n")
            file.flush()

        beat()
        try:
            yield beat
        finally:
            path.unlink(missing_ok=True)


def _check_locks(folder: Path, host: str) -> None:
    """Looks at the drivers that left a file; those whose lock can be had must be dead, and their files are removed."""
    unlocked: dict[Path, str] = {}
    for path in folder.iterdir():
        with suppress(BlockingIOError, PermissionError, FileNotFoundError), open(path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked[path] = file.read()
    if not all(path.name.rpartition(".")[0] == host for path in unlocked):
        time.sleep(2.5 * BEAT_S)
    for path, before in unlocked.items():
        with suppress(FileNotFoundError):
            if path.read_text() != before:
                raise FastadError(
                    f"{path.name} works on {folder.parent.parent}, whose file system keeps locks to each machine: "
                    "mount it so that it shares them (Lustre: -o flock), work on one machine, or use --ray"
                )
            path.unlink()

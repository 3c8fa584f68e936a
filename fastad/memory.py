"""Main memory: how much a program can have, and that the C library keeps what is freed for the next step.

Owns one setting of the process, and the reading of the system's figures. Use: `keep_freed_memory()`, before training on
a CPU; `available_bytes()`.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# From <malloc.h>. Older releases of glibc refuse a threshold above 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
THRESHOLDS = (2**30, 2**25)


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, where it is the C library; this process then stays as large as it once was.

    Otherwise it gives the activations of each step back to the system, and every page of the next step's is fetched and
    zeroed anew: up to 18,000 page faults and 12 of 46 ms a step of the MNIST LeNet (README, Development).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_TRIM_THRESHOLD, -1)
    for threshold in THRESHOLDS:
        if mallopt(M_MMAP_THRESHOLD, threshold):
            return


def available_bytes(root: Path = Path("/")) -> int:
    """What programs can have of main memory: what is free, and what the system only caches files in, of which a machine
    that has read shards is full; no more than the limits of this process's control groups leave (Docker, Slurm)."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    available = next(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
    return max(0, min([available, *_left_by_control_groups(root)]))


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What the limit of each group leaves, of this process's own and those above it, of either version."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        limit, used, cached = _V1 if controllers else _V2
        for folder in (group, *group.parents[: len(group.relative_to(top).parts)]):
            with suppress(OSError, ValueError):  # "max", where there is no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                words = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield left + sum(int(size) for name, size in words if name in cached)


# The files of a limit, of what is used, and in memory.stat the cached files, which are used and yet make room.
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
_V2 = "memory.max", "memory.current", ("inactive_file", "active_file")

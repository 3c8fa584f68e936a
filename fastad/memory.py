"""The C library's memory on the CPU: kept for the next step once it is free.

Owns one setting of the process. Use: `keep_freed_memory()`, before training on a CPU.
"""

import ctypes

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

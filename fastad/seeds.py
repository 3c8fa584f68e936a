"""Named random generators derived from the one seed of a run.

Owns the derivation, so that no draw depends on the order of other draws, on the number of workers or on global state.
Use: `generator(seed, "oe-subset")` or `generator(seed, "nominal", epoch)`.
"""

import hashlib

import numpy as np


def sub_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every name, and on nothing else."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A fresh numpy generator for one named purpose; equal arguments give equal draws on every machine."""
    return np.random.Generator(np.random.PCG64(sub_seed(seed, *names)))

"""Which samples stand in which shard, and in what order: decided for the whole set before any is written.

Owns the seeded permutation and where it is cut; what a listing is, is `fastad.listing`'s.
Use: `cuts = cut_listing(listing, shard_samples=10_000)`.
"""

from typing import NamedTuple

import numpy as np

from fastad.listing import Listing
from fastad.seeds import generator
from fastad.tar import BLOCK

PERMUTATION_SEED = 0
SHARD_BYTES = 256 * 2**20


class Cut(NamedTuple):
    """One shard to be: its split, its name, and its rows of the listing in the order of the seeded permutation."""

    split: str
    name: str
    rows: np.ndarray


def cut_listing(listing: Listing, shard_samples: int) -> list[Cut]:
    """Every split's permutation, cut where a shard would grow beyond `shard_samples` or about `SHARD_BYTES`."""
    cuts: list[Cut] = []
    for number, split in enumerate(listing.splits):
        rows = np.flatnonzero(listing.split == number)
        rows = rows[generator(PERMUTATION_SEED, "shard", split).permutation(len(rows))]
        ends = np.cumsum(member_bytes(listing.size[rows]))
        start = shard = 0
        while start < len(rows):
            before = ends[start - 1] if start else 0
            stop = min(int(np.searchsorted(ends, before + SHARD_BYTES, side="right")), start + shard_samples)
            stop = max(stop, start + 1)
            cuts.append(Cut(split, f"{split}-{shard:05d}", rows[start:stop]))
            start, shard = stop, shard + 1
    return cuts


def member_bytes(size: np.ndarray) -> np.ndarray:
    """About what samples take in a tar: image and class members with their headers."""
    return 4 * BLOCK + size

"""The order of a run: which row stands at which place of which batch, decided before training, by numpy alone.

Owns balance, permutations, cycles, ranks and resuming; knows rows only, neither images nor networks.
Use: `plan = Plan((Stream("nominal", rows, 128), Stream("oe", oe_rows, 128, "cyclic")), seed=1, epochs=150)`.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.seeds import generator


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows of one set, of which each batch takes `batch`, in an order of `ORDERS`.

    `name` is what its draws are keyed by: "nominal", "oe", or "oe-2" … for further OE sets. `shard` [rows] tells the
    shard of each row, for the order "shards".
    """

    name: str
    rows: np.ndarray
    batch: int
    order: str = "permutation"
    shard: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown("OE order", self.order, ORDERS)


@dataclass(frozen=True, slots=True)
class Share:
    """What a process has of every batch: the `rank`th of `ranks` equal parts of each stream's."""

    rank: int
    ranks: int

    def columns(self, batch: int) -> slice:
        """Its columns among the `batch` of a stream."""
        return slice(self.rank * batch // self.ranks, (self.rank + 1) * batch // self.ranks)


WHOLE_BATCH = Share(0, 1)

# Of what is measured, and ends before its plan does.
ENDLESS_EPOCHS = 1_000_000


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of every stream's images, nominal ones first, for `epochs` epochs.

    The nominal stream sets the epoch: ⌊n / batch⌋ steps, the rest dropped. Every epoch is drawn from (seed, stream,
    epoch) alone, so a run can start at any step, and any epoch can be made anywhere: no more than one is ever held.
    """

    streams: tuple[Stream, ...]
    seed: int
    epochs: int

    def __post_init__(self) -> None:
        nominal = self.streams[0]
        if len(nominal.rows) < nominal.batch:
            raise FastadError(
                f"{len(nominal.rows)} nominal images do not fill one batch of {nominal.batch}: "
                f"lower it with --set data.batch_nominal={len(nominal.rows)} or less"
            )

    @functools.cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """A hash of each stream that tells every batch of it, or resuming would not be exact: its rows, how many stand
        in a batch, and, as they may change with NumPy, the first epoch's places. Ranks do not enter."""
        found = []
        for stream in self.streams:
            told = f"{self.seed} {self.steps} {stream.name} {stream.order} {stream.batch}"
            digest = hashlib.sha256(told.encode())
            for rows in (stream.rows, self.stream_epoch(stream, 0)):
                digest.update(np.ascontiguousarray(rows, dtype=np.int64).data)
            found.append(digest.hexdigest())
        return tuple(found)

    @property
    def nominal(self) -> Stream:
        return self.streams[0]

    @property
    def oe(self) -> tuple[Stream, ...]:
        return self.streams[1:]

    @property
    def batch_size(self) -> int:
        """Images a batch, all streams together."""
        return sum(stream.batch for stream in self.streams)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.nominal.rows) // self.nominal.batch

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def epoch(self, epoch: int) -> tuple[np.ndarray, ...]:
        """The rows of one epoch, int64 [steps, batch] for each stream, as they would be in an uninterrupted run."""
        return tuple(self.stream_epoch(stream, epoch) for stream in self.streams)

    def stream_epoch(self, stream: Stream, epoch: int) -> np.ndarray:
        """The same for one stream."""
        steps = self.steps_per_epoch
        places = ORDERS[stream.order](generator(self.seed, stream.name, epoch), stream, steps * stream.batch)
        return stream.rows[places].reshape(steps, stream.batch)

    def check_share(self, share: Share) -> None:
        """Raises `FastadError` where a stream's part of the batch cannot be shared out equally."""
        for stream in self.streams:
            if stream.batch % share.ranks:
                raise FastadError(
                    f"{share.ranks} processes cannot share {stream.batch} {stream.name} images a batch equally: "
                    f"choose a batch that is a multiple of {share.ranks}"
                )


def permutation(rng: np.random.Generator, stream: Stream, count: int) -> np.ndarray:
    """The first `count` places of a uniform permutation."""
    return rng.permutation(len(stream.rows))[:count]


def cyclic(rng: np.random.Generator, stream: Stream, count: int) -> np.ndarray:
    """`count` places: without replacement while there are enough, else one permutation read over and over.

    With fewer rows than a batch has images, each comes batch/rows times in a batch: what the paper's code does.
    """
    available = len(stream.rows)
    if count <= available:
        return rng.choice(available, size=count, replace=False)
    return np.resize(rng.permutation(available), count)


def with_replacement(rng: np.random.Generator, stream: Stream, count: int) -> np.ndarray:
    """`count` independent uniform places (what the paper's text says of subsets smaller than a batch)."""
    return rng.integers(len(stream.rows), size=count)


def window(rng: np.random.Generator, stream: Stream, count: int) -> np.ndarray:
    """`count` neighbouring places from a random offset, wrapping around, as in an early version of the authors' code;
    rows must come in source order for this to mean what it meant there."""
    available = len(stream.rows)
    return (rng.integers(available) + np.arange(count)) % available


# Shards whose rows are mixed with each other: their pages are what a node must hold at once.
SHARDS_AT_ONCE = 4


def shards(rng: np.random.Generator, stream: Stream, count: int) -> np.ndarray:
    """`count` places that read few shards at a time, for storage that hates random reads: shards in a permutation, the
    rows of `SHARDS_AT_ONCE` of them shuffled together, over and over. Rows must be in the shards' order.

    Shards hold a uniform permutation of their set, so a batch is as mixed as any other (README, Performance); but
    images of one shard come in the same part of every epoch.
    """
    shard = np.zeros(len(stream.rows), dtype=np.int64) if stream.shard is None else stream.shard
    starts = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]])
    pieces = np.split(np.arange(len(shard)), starts[1:])
    places: list[np.ndarray] = []
    found = 0
    while found < count:
        order = rng.permutation(len(pieces))
        for first in range(0, len(order), SHARDS_AT_ONCE):
            together = np.concatenate([pieces[piece] for piece in order[first : first + SHARDS_AT_ONCE]])
            places.append(rng.permutation(together))
            found += len(together)
            if found >= count:
                break
    return np.concatenate(places)[:count]


ORDERS: dict[str, Callable[[np.random.Generator, Stream, int], np.ndarray]] = {
    "permutation": permutation,
    "cyclic": cyclic,
    "with-replacement": with_replacement,
    "window": window,
    "shards": shards,
}

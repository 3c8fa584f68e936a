"""The order of a run: which row stands at which place of which batch, decided before training, by numpy alone.

Owns balance, permutations, cycles and resuming; knows rows only, neither images nor networks.
Use: `plan = Plan(nominal, oe, seed=1, epochs=150)`, then `plan.epoch(3)`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.seeds import generator


class EpochRows(NamedTuple):
    """The rows of one epoch: nominal [steps, batch_nominal], OE [steps, batch_oe] (batch_oe = 0 without OE)."""

    nominal: np.ndarray
    oe: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of `batch_nominal` nominal and `batch_oe` OE rows for `epochs` epochs; `oe` None means no OE at all.

    The nominal rows set the epoch: ⌊n / batch_nominal⌋ steps over a fresh uniform permutation, the rest dropped. Every
    epoch is drawn from (seed, stream, epoch) alone, so a run can start at any step, and any epoch can be made anywhere.
    """

    nominal: np.ndarray
    oe: np.ndarray | None
    seed: int
    epochs: int
    batch_nominal: int = 128
    batch_oe: int = 128
    oe_order: str = "cyclic"

    def __post_init__(self) -> None:
        if self.oe_order not in OE_ORDERS:
            raise unknown("OE order", self.oe_order, OE_ORDERS)
        if len(self.nominal) < self.batch_nominal:
            raise FastadError(
                f"{len(self.nominal)} nominal images do not fill one batch of {self.batch_nominal}: "
                f"lower it with --set data.batch_nominal={len(self.nominal)} or less"
            )

    @property
    def batch_size(self) -> int:
        """Images a batch, both streams together."""
        return self.batch_nominal + (0 if self.oe is None else self.batch_oe)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.nominal) // self.batch_nominal

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def epoch(self, epoch: int) -> EpochRows:
        """The rows of one epoch, as they would be in an uninterrupted run."""
        steps = self.steps_per_epoch
        drawn = generator(self.seed, "nominal", epoch).permutation(self.nominal)[: steps * self.batch_nominal]
        nominal = drawn.reshape(steps, self.batch_nominal)
        if self.oe is None:
            return EpochRows(nominal, np.empty((steps, 0), dtype=np.int64))
        places = OE_ORDERS[self.oe_order](generator(self.seed, "oe", epoch), len(self.oe), steps * self.batch_oe)
        return EpochRows(nominal, self.oe[places].reshape(steps, self.batch_oe))


def cyclic(rng: np.random.Generator, available: int, count: int) -> np.ndarray:
    """`count` places: without replacement while there are enough, else one permutation read over and over.

    With `available` < batch, each place comes batch/available times in a batch: what the paper's code does.
    """
    if count <= available:
        return rng.choice(available, size=count, replace=False)
    return np.resize(rng.permutation(available), count)


def with_replacement(rng: np.random.Generator, available: int, count: int) -> np.ndarray:
    """`count` independent uniform places (what the paper's text says of subsets smaller than a batch)."""
    return rng.integers(available, size=count)


def window(rng: np.random.Generator, available: int, count: int) -> np.ndarray:
    """`count` neighbouring places from a random offset, wrapping around, as in an early version of the authors' code;
    rows must come in source order for this to mean what it meant there."""
    return (rng.integers(available) + np.arange(count)) % available


OE_ORDERS = {"cyclic": cyclic, "with-replacement": with_replacement, "window": window}

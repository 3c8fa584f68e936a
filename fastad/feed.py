"""From a plan to what an executor needs for each batch: rows, and what is drawn for them.

Owns the walk through a plan's epochs from any step, for one stream and one rank; reads no image.
Use: `for wanted in planned(plan, plan.nominal, spec, start_step=0, share=WHOLE_BATCH): ...`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastad.augment import AugmentSpec, Draws, draw
from fastad.plan import Plan, Share, Stream


class Wanted(NamedTuple):
    """A stream's part of one batch: `rows` int64 [b], and `draws` for each, None as in testing."""

    rows: np.ndarray
    draws: Draws | None


def planned(plan: Plan, stream: Stream, spec: AugmentSpec, *, start_step: int, share: Share) -> Iterator[Wanted]:
    """What is wanted of a stream of the plan, from a step to the end."""
    steps, columns = plan.steps_per_epoch, share.columns(stream.batch)
    for epoch in range(start_step // steps, plan.epochs):
        rows = plan.stream_epoch(stream, epoch)
        for step in range(start_step % steps if epoch == start_step // steps else 0, steps):
            draws = draw(spec, plan.seed, stream.name, epoch, step * stream.batch, stream.batch)
            yield Wanted(rows[step, columns], draws.part(columns))


def in_order(rows: np.ndarray, size: int) -> Iterator[Wanted]:
    """All rows in batches of `size`, the last one smaller, as in testing."""
    for first in range(0, len(rows), size):
        yield Wanted(rows[first : first + size], None)

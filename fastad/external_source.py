"""What DALI is fed: images or pixels in the order in which they are wanted, and how each of them is moved.

Owns reading for DALI, ahead of the disk, and what is under way in a pipeline; bytes are `fastad.reader`'s, which image
stands in for a bad one `fastad.faults`', what becomes of them `fastad.dali`'s.
Use: `source = ExternalSource(read_in_order(origins, wanted, spec))`, given to `fn.external_source`.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from fastad.augment import AugmentSpec, Geometry, place
from fastad.faults import Origin, note_cut
from fastad.feed import Wanted


class Read(NamedTuple):
    """What DALI gets of an origin's part of a batch: encoded images or pixels, and how they are moved."""

    wanted: Wanted
    images: "list[np.ndarray] | np.ndarray"
    geometry: Geometry


ReadBatch = tuple[Read, ...]


def read_in_order(
    origins: Sequence[Origin], wanted: Iterator[tuple[Wanted, ...]], spec: AugmentSpec
) -> Iterator[ReadBatch]:
    """Reads in order, asking the system for one batch more than is read."""
    coming = deque(itertools.islice(wanted, 1))
    while coming:
        for following in itertools.islice(wanted, 1):
            for origin, part in zip(origins, following, strict=True):
                origin.reader.ask_ahead(part.rows)
            coming.append(following)
        yield tuple(_read_part(*each, spec) for each in zip(origins, coming.popleft(), strict=True))


def _read_part(origin: Origin, part: Wanted, spec: AugmentSpec) -> Read:
    (reader, faults), manifest = origin, origin.reader.manifest
    rows = faults.sound(part.rows)
    images = reader.files(rows) if reader.is_encoded else reader.arrays(rows)
    while reader.is_encoded and note_cut(origin, rows, images):
        rows = faults.sound(part.rows)
        images = reader.files(rows)
    geometry = place(spec, part.draws, manifest.height[rows], manifest.width[rows])
    return Read(part._replace(rows=rows), images, geometry)


class ExternalSource:
    """Gives DALI its inputs and remembers, in the same order, what is under way."""

    def __init__(self, read: Iterator[ReadBatch]) -> None:
        self.read = read
        self.again: deque[ReadBatch] = deque()
        self.under_way: deque[ReadBatch] = deque()

    def first(self) -> ReadBatch | None:
        """What DALI will get next, None at the end."""
        if not self.again:
            self.again.extend(itertools.islice(self.read, 1))
        return self.again[0] if self.again else None

    def take_back(self, instead: Iterable[ReadBatch]) -> None:
        """Puts others in the place of what is under way, to be given again."""
        self.under_way.clear()
        self.again.extendleft(reversed(list(instead)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, ...]:
        taken = self.again.popleft() if self.again else next(self.read)
        self.under_way.append(taken)
        size, start, flip = (
            np.concatenate([getattr(part.geometry, name) for part in taken]) for name in ("size_hw", "start", "flip")
        )
        return _joined([part.images for part in taken]), size.astype(np.float32), start, flip.astype(np.int32)


def _joined(images: "Sequence[list[np.ndarray] | np.ndarray]") -> "list[np.ndarray] | np.ndarray":
    """All parts' images: one array where they are arrays of one size, which DALI takes as a whole."""
    if len(images) == 1:
        return images[0]
    arrays = [each for each in images if isinstance(each, np.ndarray)]
    if len(arrays) == len(images) and len({each.shape[1:] for each in arrays}) == 1:
        return np.concatenate(arrays)
    return list(itertools.chain.from_iterable(images))

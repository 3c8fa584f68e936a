"""Images that cannot be decoded: how they are known, what stands in for them, what is said of them.

Owns `Faults`, and the check of JPEGs before a decoder gets them; decoding is `fastad.dali`'s.
Use: `while note_cut(origin, rows, origin.reader.files(rows)): rows = origin.faults.sound(rows)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastad.encode import BadImage, check
from fastad.errors import FastadError
from fastad.progress import say
from fastad.reader import ShardReader


@dataclass(eq=False)
class Faults:
    """The images of a stream that cannot be decoded. `others` [n]: the stream's rows, of which each may stand in for
    the one before it, the first for the last; empty: none may, as in testing.

    `stand_in`: bad row → the row after it, which may be bad itself; `reason`: bad row → what is wrong with it;
    `checked`: bool for each row of the set, those whose bytes were looked at and passed. Which row stands in depends on
    `others` and the images alone, so that it is the same for every executor, rank and resume.
    """

    others: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    stand_in: dict[int, int] = field(default_factory=dict)
    reason: dict[int, str] = field(default_factory=dict)
    checked: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """The rows, others for those that are known to be bad."""
        return np.array([self.replaced(row) for row in rows.tolist()], dtype=np.int64) if self.stand_in else rows

    def note(self, row: int, reason: str) -> int | None:
        """Notes a bad row and returns the one that stands in for it; None, and nothing is noted, where none can."""
        places = np.flatnonzero(self.others == row)
        following = int(self.others[(places[0] + 1) % len(self.others)]) if len(places) else row
        if (stand_in := self.replaced(following)) == row:
            return None
        self.reason[row], self.stand_in[row] = reason, following
        return stand_in

    def replaced(self, row: int) -> int:
        """The row, or what stands in for it."""
        while row in self.stand_in:
            row = self.stand_in[row]
        return row


class Origin(NamedTuple):
    """Where the images of a stream come from, and what becomes of those that cannot be decoded."""

    reader: ShardReader
    faults: Faults


JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"


def note_cut(origin: Origin, rows: np.ndarray, images: Sequence[np.ndarray] | np.ndarray) -> bool:
    """Notes JPEGs that DALI must not get, and returns whether there are any: those that lack their end and do not
    decode, as it finds no fault with a crop that lies above the cut; and those whose headers are broken, at which
    DALI 2.4 crashes if other images are decoded at the same time. Of what is damaged further inside no decoder
    complains.

    Each row is looked at once: the reader sees to it that its bytes stay the same.
    """
    faults = origin.faults
    if not len(faults.checked):
        faults.checked = np.zeros(len(origin.reader.manifest.key), dtype=bool)
    noted = False
    for place in np.flatnonzero(~faults.checked[rows]).tolist():
        row, source = int(rows[place]), images[place].tobytes()
        if row in faults.stand_in:
            continue  # more than once in a batch
        if source.startswith(JPEG_BEGINS):
            sound = _has_headers(source)
            whole = sound and source.endswith(JPEG_ENDS)
            if not whole and (found := reason(images[place]) or ("" if sound else "its headers are broken")):
                note_bad(origin, row, found)
                noted = True
                continue
        faults.checked[row] = True
    return noted


def _has_headers(source: bytes) -> bool:
    """Whether a JPEG's segments follow one another as far as its pixels (ITU-T T.81, B.1.1.4)."""
    place = 2
    while place + 1 < len(source) and source[place] == 0xFF:
        if (marker := source[place + 1]) == 0xDA:
            return True
        # A marker may be preceded by any number of 0xFF.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(source[place + 2 : place + 4])
    return False


def note_bad(origin: Origin, row: int, why_bad: str) -> None:
    """Notes and says that an image cannot be decoded; raises `FastadError` where none may or can stand in for it."""
    (reader, faults), manifest = origin, origin.reader.manifest
    bad = f"{manifest.shard_path(int(manifest.shard[row]))}: image {manifest.key[row].decode()} cannot be decoded"
    bad += f" ({why_bad})"
    if (stand_in := faults.note(row, why_bad)) is None:
        why = (
            f"nor can any of the {len(faults.others):,} images that might stand in for it"
            if len(faults.others)
            else "and none may stand in for it in a test, or with loader.bad_images=stop"
        )
        raise FastadError(f"{bad}, {why}: convert {reader.manifest.name} again, without --unchecked")
    say(f"{bad}; {manifest.key[stand_in].decode()} stands in for it")


def reason(data: np.ndarray) -> str | None:
    """Why an image cannot be decoded, None where Pillow can."""
    try:
        check(data.tobytes())
    except BadImage as bad:
        return str(bad)
    return None

"""The plane of the toy experiment (Figure 1), and what its claim is measured by.

Owns where the plane's places and its far field are; the data are `fastad_tools.toy`'s, the picture is a report's.
Use: `far_field_nominal_share(read_scores(run), "bce")`.
"""

import math
from collections.abc import Iterator

import numpy as np

from fastad.errors import FastadError

SIDE, STEP = 256, 2
MIDDLE, NOMINAL_STD = 128.0, 12.0

# From the middle, in standard deviations of the nominal points: the far field begins here.
FAR = 5.0

# The score at which a point is as probably anomalous as nominal: h = ln 2 for HSC, whose l(z) is exp(−h), and the
# logit 0 for BCE.
BOUNDARY = {"hsc": math.log(2), "bce": 0.0}


def places() -> Iterator[tuple[int, int]]:
    """The places (x, y) of the plane that are tested, row by row from the lower left."""
    return ((x, y) for y in range(0, SIDE, STEP) for x in range(0, SIDE, STEP))


def plane(key: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The scores of a run as a picture [rows, columns], the lowest row first; `key` as in its `scores.npz`.

    Raises `FastadError` for scores that are not of the toy set's test split.
    """
    side = SIDE // STEP
    found = np.full((side, side), np.nan, dtype=np.float32)
    try:
        x, y = (np.array([int(name.split(b"-")[part]) for name in key.tolist()]) for part in (1, 2))
        found[y // STEP, x // STEP] = score
    except (ValueError, IndexError) as error:
        raise FastadError(f"these are not scores of the toy set ({error}): train fastad sweep toy") from error
    if np.isnan(found).any():
        raise FastadError(
            "these are not scores of the whole plane: convert the toy set and train fastad sweep toy again"
        )
    return found


def far_field_nominal_share(key: np.ndarray, score: np.ndarray, objective: str) -> float:
    """The share of the far field that is called nominal: nearly 0 where the decision region is compact."""
    rows, columns = np.mgrid[0:SIDE:STEP, 0:SIDE:STEP]
    far = np.hypot(columns - MIDDLE, rows - MIDDLE) > FAR * NOMINAL_STD
    return float(np.mean(plane(key, score)[far] < BOUNDARY[objective]))

"""Toy: points of a plane, for the paper's Figure 1; needs no raw data.

A point is an image of one row and two columns, its coordinates x and y from 0 to 255. The authors' data were never
published; these follow their description. In the split "train": "nominal", one tight Gaussian in the middle; "uniform",
all over the plane but where nominal points lie, the OE of the setting *ideal*; and "clusters", Gaussians left, lower
left and lower right of the middle, the OE of *skewed*. In the split "test": every second place of the plane in either
direction, "nominal" within three standard deviations of the middle and "elsewhere" beyond, so that the scores of a test
are a picture of the plane. Its keys hold the places: "test-<x>-<y>", the lower left being 0, 0.
"""

from collections.abc import Iterator

import numpy as np

from fastad.manifest import Sample
from fastad.seeds import generator
from fastad.toy import MIDDLE, NOMINAL_STD, places

SOURCE = "drawn from Gaussians and a uniform distribution, after Figure 1 of Ruff et al. 2021"
LICENCE = "CC0"
CLASSES = ("nominal", "uniform", "clusters", "elsewhere")

CLUSTERS = ((50, 128), (50, 50), (206, 50))
CLUSTER_STD = 10.0
COUNT = 2_048


def samples() -> Iterator[Sample]:
    drawn = {
        "nominal": _gaussian("nominal", (MIDDLE, MIDDLE), NOMINAL_STD, COUNT),
        "uniform": _uniform(COUNT),
        "clusters": np.concatenate(
            [_gaussian(f"cluster {number}", place, CLUSTER_STD, COUNT) for number, place in enumerate(CLUSTERS)]
        ),
    }
    for name, points in drawn.items():
        for index, point in enumerate(points):
            yield Sample(f"train-{name}-{index:04d}", _image(point), name, "train")
    for x, y in places():
        near = np.hypot(x - MIDDLE, y - MIDDLE) <= 3 * NOMINAL_STD
        yield Sample(f"test-{x:03d}-{y:03d}", _image((x, y)), "nominal" if near else "elsewhere", "test")


def _gaussian(name: str, middle: tuple[float, float], std: float, count: int) -> np.ndarray:
    return generator(0, "toy", name).normal(middle, std, (count, 2))


def _uniform(count: int) -> np.ndarray:
    points = generator(0, "toy", "uniform").uniform(0, 256, (2 * count, 2))
    return points[np.hypot(*(points - MIDDLE).T) > 3 * NOMINAL_STD][:count]


def _image(point: np.ndarray | tuple[int, int]) -> np.ndarray:
    return np.clip(np.rint(point), 0, 255).astype(np.uint8).reshape(1, 2, 1)

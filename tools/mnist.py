"""MNIST: 70,000 handwritten digits, 28×28 grey, 10 classes (LeCun, Cortes and Burges; about 11 MB gzipped).

Expected in the raw folder, each gzipped (`.gz`) or not, and with `-idx` or `.idx`:
    train-images-idx3-ubyte   train-labels-idx1-ubyte   t10k-images-idx3-ubyte   t10k-labels-idx1-ubyte
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.manifest import Sample
from fastad_tools._idx import mnist_samples

SOURCE = "MNIST (LeCun, Cortes and Burges), IDX files"
LICENCE = "not stated by its authors; CC BY-SA 3.0 according to the documentation of Keras"
PUBLISHED_COUNTS = {"MNIST": {"train": 60_000, "test": 10_000}}
CLASSES = tuple(str(digit) for digit in range(10))


def samples(raw: Path) -> Iterator[Sample]:
    yield from mnist_samples(raw, CLASSES)

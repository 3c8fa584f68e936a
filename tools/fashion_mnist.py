"""Fashion-MNIST: 70,000 pictures of clothes, 28×28 grey, 10 classes (Xiao, Rasul and Vollgraf 2017; about 31 MB).

Expected in the raw folder (Debian's package dataset-fashion-mnist has them), each gzipped (`.gz`) or not:
    train-images-idx3-ubyte   train-labels-idx1-ubyte   t10k-images-idx3-ubyte   t10k-labels-idx1-ubyte
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.manifest import Sample
from fastad_tools._idx import mnist_samples

SOURCE = "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), IDX files"
LICENCE = "MIT"
PUBLISHED_COUNTS = {"Fashion-MNIST": {"train": 60_000, "test": 10_000}}
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def samples(raw: Path) -> Iterator[Sample]:
    yield from mnist_samples(raw, CLASSES)

"""CIFAR-10: 60,000 photographs, 32×32 colour, 10 classes (Krizhevsky 2009; about 170 MB).

Expected as raw data, from https://www.cs.toronto.edu/~kriz/cifar.html, one of:
    cifar-10-python.tar.gz   or what it extracts to:  cifar-10-batches-py/data_batch_1 … data_batch_5, test_batch
    cifar-10-binary.tar.gz   or what it extracts to:  cifar-10-batches-bin/data_batch_1.bin … test_batch.bin
A folder may be the extracted one or the one that holds it. The python version's pickles are read without running code.
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.manifest import Sample
from fastad_tools._cifar import Layout, cifar_samples

SOURCE = "CIFAR-10 (Krizhevsky 2009), https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCE = "not stated by its authors"
PUBLISHED_COUNTS = {"CIFAR-10": {"train": 50_000, "test": 10_000}}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

LAYOUT = Layout(
    name="CIFAR-10",
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    batches={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
    label_bytes=1,
)


def samples(raw: Path) -> Iterator[Sample]:
    yield from cifar_samples(raw, LAYOUT, CLASSES)

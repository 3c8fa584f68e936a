"""CIFAR-100: 60,000 photographs, 32×32 colour, 100 classes, the "fine" labels (Krizhevsky 2009; about 170 MB).

Expected as raw data, from https://www.cs.toronto.edu/~kriz/cifar.html, one of:
    cifar-100-python.tar.gz   or what it extracts to:  cifar-100-python/train, test
    cifar-100-binary.tar.gz   or what it extracts to:  cifar-100-binary/train.bin, test.bin
A folder may be the extracted one or the one that holds it. The python version's pickles are read without running code.
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.manifest import Sample
from fastad_tools._cifar import Layout, cifar_samples

SOURCE = "CIFAR-100 (Krizhevsky 2009), https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCE = "not stated by its authors"
PUBLISHED_COUNTS = {"CIFAR-100": {"train": 50_000, "test": 10_000}}
CLASSES = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle"),
    *("bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle"),
    *("chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur"),
    *("dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard"),
    *("lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain"),
    *("mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree"),
    *("plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket"),
    *("rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider"),
    *("squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger"),
    *("tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
)

LAYOUT = Layout(
    name="CIFAR-100",
    folders=("cifar-100-python", "cifar-100-binary"),
    batches={"train": ("train",), "test": ("test",)},
    label_key="fine_labels",
    label_bytes=2,
)


def samples(raw: Path) -> Iterator[Sample]:
    yield from cifar_samples(raw, LAYOUT, CLASSES)

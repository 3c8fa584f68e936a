"""Digits: scikit-learn's 1,797 handwritten digits, 8×8 grey, drawn at 28×28; needs no raw data.

The images are the test part of UCI's "Optical Recognition of Handwritten Digits". They come in the writers' order, so
the first 1,347 (train) and the last 450 (test) are mostly by different hands. Each is enlarged to 20×20 with Lanczos
resampling and set in the middle of a black 28×28 frame, as MNIST's are.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fastad.manifest import Sample

SOURCE = "scikit-learn's load_digits (UCI Optical Recognition of Handwritten Digits, test part), enlarged to 28×28"
LICENCE = "CC BY 4.0"
CLASSES = tuple(str(digit) for digit in range(10))

TRAIN_SIZE = 1_347


def samples() -> Iterator[Sample]:
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        small = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
        frame = np.zeros((28, 28), dtype=np.uint8)
        frame[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.LANCZOS))
        yield Sample(f"digit-{index:04d}", frame, CLASSES[label], "train" if index < TRAIN_SIZE else "test")

"""EMNIST: handwritten letters and digits, 28×28 grey, in six splits (Cohen et al. 2017; the zip is about 560 MB).

Expected as raw data: the published `gzip.zip` itself, or a folder that holds, directly or in its subfolder `gzip/`,
the files of the split asked for, each gzipped (`.gz`) or not:
    emnist-letters-train-images-idx3-ubyte   emnist-letters-train-labels-idx1-ubyte
    emnist-letters-test-images-idx3-ubyte    emnist-letters-test-labels-idx1-ubyte

`--split letters` (the default: 124,800 train and 20,800 test images of A–Z, capital and small together), `balanced` or
`bymerge` (47 classes: small letters merged into capitals that look alike), `byclass` (62 classes), `digits`, `mnist`.
As distributed each image is transposed relative to MNIST; here it is stored upright.
"""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

from fastad.errors import FastadError, unknown
from fastad.manifest import Sample
from fastad_tools._idx import labelled_images, read_idx, read_zipped_idx

SOURCE = "EMNIST (Cohen, Afshar, Tapson and van Schaik 2017), IDX files"
LICENCE = "not stated; made from NIST Special Database 19, a work of the US government"
# Of each `--split`, as its files hold them; of letters the paper counts fewer (88,800 and 14,800).
PUBLISHED_COUNTS = {
    "letters": {"train": 124_800, "test": 20_800},
    "balanced": {"train": 112_800, "test": 18_800},
    "bymerge": {"train": 697_932, "test": 116_323},
    "byclass": {"train": 697_932, "test": 116_323},
    "digits": {"train": 240_000, "test": 40_000},
    "mnist": {"train": 60_000, "test": 10_000},
}


def samples(raw: Path, *, split: str = "letters") -> Iterator[Sample]:
    if split not in CHARACTERS:
        raise unknown("EMNIST split", split, CHARACTERS)
    # The published mapping of letters starts at 1, all others start at 0.
    first = 1 if split == "letters" else 0
    characters = CHARACTERS[split]
    folder, read = (raw, read_zipped_idx) if raw.is_file() else (_folder(raw, split), read_idx)
    for part in ("train", "test"):
        pairs = labelled_images(folder, f"emnist-{split}-{part}", range(first, first + len(characters)), read)
        for index, (image, label) in enumerate(pairs):
            yield Sample(f"{part}-{index:06d}", image.T, characters[label - first], part)


def _folder(raw: Path, split: str) -> Path:
    """The folder itself or its subfolder `gzip`, whichever holds files of the split."""
    for folder in (raw, raw / "gzip"):
        if any(folder.glob(f"emnist-{split}-*-ubyte*")):
            return folder
    raise FastadError(
        f"no emnist-{split}-… files in {raw} or {raw / 'gzip'}: give the folder that holds them, or gzip.zip itself"
    )


_MERGED = digits + ascii_uppercase + "abdefghnqrt"

# The character of each label, in the labels' order, which is also that of the sorted class names.
CHARACTERS = {
    "letters": ascii_uppercase,
    "balanced": _MERGED,
    "bymerge": _MERGED,
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "digits": digits,
    "mnist": digits,
}

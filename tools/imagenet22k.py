"""ImageNet-22K, the whole of ImageNet: one class a synset, all in the split "train" (Deng et al. 2009).

Fall 2011: 14,197,122 images in 21,841 synsets, about 1.3 TB. Winter 2021: 13,153,500 in 19,167 (most of the
person subtree is gone). Give one of
    a folder of tars      n00004475.tar  n00005787.tar  …       (members n00004475_10026.JPEG …)
    a folder of folders   n00004475/n00004475_10026.JPEG …
    one tar of such tars  fall11_whole.tar, or winter21_whole.tar after gunzip
Tars are read where they are, and never unpacked; a gzipped one cannot be. Some images do not decode: they are set
aside when the shards are written.
"""

from collections.abc import Iterator
from pathlib import Path

from fastad.manifest import Sample
from fastad_tools._imagenet import synset_samples, synsets

SOURCE = "ImageNet, the whole release (Deng et al. 2009), https://image-net.org"
LICENCE = "ImageNet terms of access: non-commercial research and education; the images are their owners'"
PUBLISHED_COUNTS = {"Fall 2011": {"train": 14_197_122}, "Winter 2021": {"train": 13_153_500}}


def samples(raw: Path) -> Iterator[Sample]:
    yield from synset_samples(synsets(raw), "train", "")

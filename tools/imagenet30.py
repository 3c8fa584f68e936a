"""ImageNet-30: 30 classes of ImageNet-1K, 1,300 train and 100 test images each (Hendrycks et al. 2019; about 5 GB).

Expected in the raw folder, the benchmark's own release, in which images may lie deeper than shown:
    one_class_train/acorn/*.JPEG   …   one_class_train/volcano/*.JPEG
    one_class_test/acorn/*.JPEG    …   one_class_test/volcano/*.JPEG
or ImageNet-1K, train and val, of which the 30 synsets are read, as `imagenet1k` takes it or as the shard set that it
made: then there are 50 test images a class, and they are not those of the release. The release's stray
`airliner/._1.JPEG` is no image, and left out.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import MANIFEST, FileRange, Sample, open_set
from fastad_tools._files import images, sample_keys
from fastad_tools.imagenet1k import holds_imagenet1k, synsets_of

SOURCE = "ImageNet-30 (Hendrycks, Mazeika, Kadavath and Song 2019), classes of ImageNet-1K"
LICENCE = "ImageNet terms of access: non-commercial research and education; the images are their owners'"
PUBLISHED_COUNTS = {"the benchmark's release": {"train": 39_000, "test": 3_000}}

CLASS_OF = {
    **{"n12267677": "acorn", "n02690373": "airliner", "n02701002": "ambulance", "n01698640": "american_alligator"},
    **{"n02787622": "banjo", "n02793495": "barn", "n02837789": "bikini", "n03196217": "digital_clock"},
    **{"n02268443": "dragonfly", "n03255030": "dumbbell", "n03384352": "forklift", "n03443371": "goblet"},
    **{"n03452741": "grand_piano", "n07697537": "hotdog", "n03544143": "hourglass", "n03717622": "manhole_cover"},
    **{"n03788195": "mosque", "n03804744": "nail", "n03891332": "parking_meter", "n03938244": "pillow"},
    **{"n04086273": "revolver", "n03187595": "rotary_dial_telephone", "n04147183": "schooner"},
    **{"n04252077": "snowmobile", "n04254680": "soccer_ball", "n01498041": "stingray", "n07745940": "strawberry"},
    **{"n04389033": "tank", "n04442312": "toaster", "n09472597": "volcano"},
}
CLASSES = tuple(CLASS_OF.values())

RELEASE_FOLDERS = {"train": "one_class_train", "test": "one_class_test"}


def samples(raw: Path) -> Iterator[Sample]:
    missing = {(split, name) for split in RELEASE_FOLDERS for name in CLASSES}
    for sample in _found(raw):
        missing.discard((sample.split, str(sample.class_name)))
        yield sample
    if missing:
        split, name = min(missing)
        raise FastadError(f"{raw} holds no {split} images of {name}: ImageNet-30 needs train and test images of all 30")


def _found(raw: Path) -> Iterator[Sample]:
    if any((raw / folder).is_dir() for folder in RELEASE_FOLDERS.values()):
        return _of_release(raw)
    if (raw / MANIFEST).is_file():
        return _of_shards(raw)
    if holds_imagenet1k(raw):
        return (replace(each, class_name=CLASS_OF[str(each.class_name)]) for each in synsets_of(raw, CLASS_OF))
    raise FastadError(f"no ImageNet-30 in {raw}: it should hold one_class_train/ and one_class_test/, or ImageNet-1K")


def _of_release(raw: Path) -> Iterator[Sample]:
    for split, folder in RELEASE_FOLDERS.items():
        for name in CLASSES:
            if not (raw / folder / name).is_dir():
                raise FastadError(f"no folder {raw / folder / name}: give the folder that holds the whole release")
            found = images(raw / folder / name)
            keys = sample_keys([f"{split}/{name}/{path}" for path in found])
            for key, path in zip(keys, found.values(), strict=True):
                yield Sample(key, path, name, split)


def _of_shards(raw: Path) -> Iterator[Sample]:
    converted = open_set(raw)
    for split, rows in converted.splits.items():
        for row in rows:
            wnid = converted.classes[converted.class_index[row]]
            if wnid in CLASS_OF:
                path = converted.shard_path(int(converted.shard[row]))
                place = FileRange(path, int(converted.offset[row]), int(converted.size[row]))
                yield Sample(converted.key[row].decode(), place, CLASS_OF[wnid], split)

"""ImageNet-30: 30 classes of ImageNet-1K, 39,000 train and 3,000 test images (Hendrycks et al. 2019b).

Expected in the raw folder, one of
    one_class_train/acorn/**/*.JPEG … and one_class_test/acorn/**/*.JPEG …     (the benchmark's own release)
    an ImageNet-1K tree as `imagenet1k` takes it, of which the 30 synsets are taken; its "test" is their validation part
The release's stray `airliner/._1.JPEG` is hidden, and left out as all hidden files are.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import Sample
from fastad_tools._files import images, sample_keys
from fastad_tools._imagenet import synset_samples
from fastad_tools.imagenet1k import sources

SOURCE = "ImageNet-30, 30 classes of ImageNet-1K (Hendrycks, Mazeika, Kadavath and Song 2019)"
LICENCE = "ImageNet terms of access: non-commercial research and education; the images are their owners'"

WNIDS = {
    **{"acorn": "n12267677", "airliner": "n02690373", "ambulance": "n02701002", "american_alligator": "n01698640"},
    **{"banjo": "n02787622", "barn": "n02793495", "bikini": "n02837789", "digital_clock": "n03196217"},
    **{"dragonfly": "n02268443", "dumbbell": "n03255030", "forklift": "n03384352", "goblet": "n03443371"},
    **{"grand_piano": "n03452741", "hotdog": "n07697537", "hourglass": "n03544143", "manhole_cover": "n03717622"},
    **{"mosque": "n03788195", "nail": "n03804744", "parking_meter": "n03891332", "pillow": "n03938244"},
    **{"revolver": "n04086273", "rotary_dial_telephone": "n03187595", "schooner": "n04147183"},
    **{"snowmobile": "n04252077", "soccer_ball": "n04254680", "stingray": "n01498041", "strawberry": "n07745940"},
    **{"tank": "n04389033", "toaster": "n04442312", "volcano": "n09472597"},
}
CLASSES = tuple(WNIDS)


def samples(raw: Path) -> Iterator[Sample]:
    folders = {split: raw / f"one_class_{split}" for split in ("train", "test")}
    if not any(folder.is_dir() for folder in folders.values()):
        yield from _of_imagenet1k(raw)
        return
    for split, folder in folders.items():
        for name in CLASSES:
            if not (folder / name).is_dir():
                raise FastadError(f"no {folder / name}: {raw} should hold all 30 classes for train and test")
            found = images(folder / name)
            keys = sample_keys([f"{split}/{name}/{path}" for path in found])
            for key, path in zip(keys, found.values(), strict=True):
                yield Sample(key, path, name, split)


def _of_imagenet1k(raw: Path) -> Iterator[Sample]:
    names = {wnid: name for name, wnid in WNIDS.items()}
    for split, places in sources(raw).items():
        if missing := sorted(set(names) - set(places)):
            raise FastadError(f"{raw} lacks {len(missing)} of the 30 synsets in {split}, such as {missing[0]}")
        wanted = {wnid: places[wnid] for wnid in names}
        for sample in synset_samples(wanted, split, f"{split}/"):
            yield replace(sample, class_name=names[sample.class_name or ""])

"""ImageNet's synsets, however they are packed: folders, tars, or tars inside one tar; shared by its converters."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import FileRange, Sample
from fastad.progress import say
from fastad_tools._files import images, is_image, sample_keys, subfolders
from fastad_tools._tar import tar_files

Places = Mapping[str, Path | str | FileRange]

_SYNSET_FOLDER = re.compile(r"(n\d{8})")
_SYNSET_TAR = re.compile(r"(?:.*/)?(n\d{8})\.(?:tar|tar\.gz|tgz)")


def synsets(place: Path) -> dict[str, Path | FileRange]:
    """Where each synset is, by its WordNet id: its folder, its tar, or its tar in the tar `place`.

    Raises `FastadError` if there is none, if one is there twice, or if images lie beside them.
    """
    folders = {} if place.is_file() else {path.name: path for path in subfolders(place)}
    files = tar_files(place) if place.is_file() else {path.name: path for path in place.iterdir() if path.is_file()}
    found: dict[str, Path | FileRange] = {}
    for pattern, entries in ((_SYNSET_FOLDER, folders), (_SYNSET_TAR, files)):
        for name, entry in sorted(entries.items()):
            if match := pattern.fullmatch(name):
                if match[1] in found:
                    raise FastadError(f"{place} holds {match[1]} twice, the second time as {name}: remove one of them")
                found[match[1]] = entry
    if not found:
        raise FastadError(f"no synsets in {place}: it should hold folders n01440764/ … or tars n01440764.tar …")
    if loose := next((name for name in files if is_image(name)), None):
        raise FastadError(f"{place} holds {loose} beside its synsets: move it into the folder of its synset")
    return found


def synset_samples(sources: Mapping[str, Path | FileRange | Places], split: str, prefix: str) -> Iterator[Sample]:
    """The samples of synsets, each a folder, a tar, or images by name already; keys are `<prefix><wnid>/<name>`."""
    for wnid, source in sorted(sources.items()):
        found = source if isinstance(source, Mapping) else _listed(source, wnid)
        if not found:
            say(f"{split} synset {wnid} holds no images: it is left out")
        keys = sample_keys([f"{prefix}{wnid}/{name}" for name in found])
        for key, place in zip(keys, found.values(), strict=True):
            yield Sample(key, place, wnid, split)


def _listed(source: Path | FileRange, wnid: str) -> Places:
    if isinstance(source, Path) and source.is_dir():
        return images(source)
    return {name.removeprefix(f"{wnid}/"): place for name, place in tar_files(source).items() if is_image(name)}

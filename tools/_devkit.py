"""The labels of ImageNet-1K's validation images, from the challenge's development kit, extracted or packed."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import scipy.io

from fastad.errors import FastadError

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


def validation_wnids(raw: Path) -> list[str]:
    """The WordNet id of each validation image, in the order of their numbers (the first is image 1).

    `raw` holds the devkit's folder or its tar.gz. `FastadError` names what is missing or cannot be read.
    """
    truth, wnid_of = _read(raw, TRUTH).split(), _wnid_of(raw)
    try:
        return [wnid_of[int(number)] for number in truth]
    except (ValueError, KeyError) as error:
        raise FastadError(
            f"{TRUTH} of {raw / DEVKIT} holds {error}, no class of {META}: fetch the devkit again"
        ) from error


def _wnid_of(raw: Path) -> dict[int, str]:
    """WordNet ids by ILSVRC2012_ID: 1 to 1,000 are the classes, the ids above that are their parents."""
    try:
        synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(_read(raw, META)), squeeze_me=True)["synsets"])
        return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except (scipy.io.matlab.MatReadError, ValueError, LookupError, TypeError, OSError, zlib.error) as error:
        raise FastadError(f"{META} of {raw / DEVKIT} cannot be read ({error}): fetch the devkit again") from error


def _read(raw: Path, name: str) -> bytes:
    """A file of the devkit, from its folder or else from its tar."""
    folder, packed = raw / DEVKIT, raw / f"{DEVKIT}.tar.gz"
    try:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
        if packed.is_file():
            with tarfile.open(packed) as tar, tar.extractfile(f"{DEVKIT}/{name}") or io.BytesIO() as file:
                return file.read()
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as error:
        raise FastadError(f"{name} of {DEVKIT} in {raw} cannot be read ({error}): fetch the devkit again") from error
    raise FastadError(f"no {folder / name} (or {packed.name}): flat validation images need the devkit for their labels")

"""Lists of ImageNet synsets that an OE set is cut by.

Owns the lists' names; their WordNet ids stand where their sets are converted, in `fastad_tools`. A list does not name
the child synsets of those that it names.
Use: `synsets("imagenet1k")`.
"""

import re
from collections.abc import Callable
from functools import cache

from fastad.errors import unknown
from fastad.manifest import Manifest

_WNID = re.compile(r"n\d{8}")


@cache
def synsets(name: str) -> tuple[str, ...]:
    """The WordNet ids of a list, in their usual order; raises `FastadError` for an unknown list."""
    if name not in SYNSETS:
        raise unknown("list of synsets", name, SYNSETS)
    return SYNSETS[name]()


def holds_synsets(manifest: Manifest) -> bool:
    """Whether a set's classes are WordNet ids, as those of ImageNet are."""
    return any(_WNID.fullmatch(name) for name in manifest.classes)


def _imagenet30() -> tuple[str, ...]:
    from fastad_tools.imagenet30 import CLASS_OF

    return tuple(CLASS_OF)


def _imagenet1k() -> tuple[str, ...]:
    from fastad_tools.imagenet1k import wnids

    return wnids()


SYNSETS: dict[str, Callable[[], tuple[str, ...]]] = {"imagenet30": _imagenet30, "imagenet1k": _imagenet1k}

"""Lists of synsets: they are the published ones, in the usual order."""

import hashlib
import re

import pytest
from torchvision.models import ResNet50_Weights

from fastad.errors import FastadError
from fastad.synsets import SYNSETS, synsets
from fastad_tools.imagenet30 import CLASS_OF


def test_the_carried_list_is_the_challenges() -> None:
    wnids = synsets("imagenet1k")
    assert len(set(wnids)) == 1_000
    assert list(wnids) == sorted(wnids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    digest = hashlib.sha256("\n".join(wnids).encode()).hexdigest()
    assert digest == "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


def test_the_order_is_that_of_torchvisions_classes() -> None:
    """ImageNet-30's classes are found, by name, at the places of their synsets."""
    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert len(names) == len(synsets("imagenet1k"))
    for wnid, name in CLASS_OF.items():
        found = names[synsets("imagenet1k").index(wnid)]
        assert name.replace("rotary_", "") == found.lower().replace(" ", "_")


def test_imagenet30_is_a_part_of_imagenet1k() -> None:
    assert len(synsets("imagenet30")) == 30
    assert set(synsets("imagenet30")) < set(synsets("imagenet1k"))


def test_an_unknown_list_names_the_known_ones() -> None:
    assert list(SYNSETS) == ["imagenet30", "imagenet1k"]
    with pytest.raises(FastadError, match="unknown list of synsets 'imagenet22k': did you mean imagenet"):
        synsets("imagenet22k")

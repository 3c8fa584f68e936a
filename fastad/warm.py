"""What outlives a call of `fastad.train.train`: open sets with the images that a device holds, compiled models, and
loader settings.

Owns which of them may serve another recipe; each is made where it is defined. No number of a training depends on it.
Use: `warm = Warm(groups=64)`, then `train(recipe, ..., warm=warm)` for each of the 64 groups, in any order.
"""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import torch

from fastad.augment import AugmentSpec
from fastad.dali import LoaderSpec
from fastad.group import Workbench
from fastad.networks import build
from fastad.recipe import DataSpec, Recipe
from fastad.sets import Sets, open_sets
from fastad.tune import Tuner


class Warm:
    """Keeps what is made for a recipe for all that differ in nothing it depends on. `groups`: how many pairs of class
    and seed it is to serve in all, as what is done once, such as tuning, must repay itself over them.

    Of several sets' images only those of the sets used last stay on the device. `shares`: with the other processes of
    the machine, as the workers of a sweep do.
    """

    def __init__(self, groups: int = 1, *, shares: bool = False) -> None:
        self.groups = groups
        self.shares = shares
        self._sets: dict[Hashable, Sets] = {}
        self._workbenches: dict[Hashable, Workbench] = {}
        self._tuners: dict[Hashable, Tuner] = {}

    def sets(self, recipe: Recipe, shards: Path, device: torch.device) -> Sets:
        """The recipe's sets, as `open_sets` returns them; those that are open already are not looked at again."""
        key = _sets_key(recipe, shards, device)
        for other, sets in self._sets.items():
            if other != key:
                sets.held.clear()
        if key not in self._sets:
            self._sets[key] = open_sets(recipe, shards, shares=self.shares)
        return self._sets[key]

    def workbench(self, recipe: Recipe, shape_hwc: tuple[int, int, int], device: torch.device) -> Workbench:
        """A workbench for the recipe's models; it is given nothing of the recipe that it must not depend on.

        Raises `FastadError` if the network does not take such images, or its weights are not its own.
        """
        data = DataSpec("", batch_nominal=recipe.data.batch_nominal, batch_oe=recipe.data.batch_oe)
        needed = replace(recipe, name="", objectives=(), data=data, augment=AugmentSpec(), loader=LoaderSpec())
        key = needed, shape_hwc, str(device)
        if key not in self._workbenches:
            build(recipe.network, shape_hwc, None, seed=0, weights=recipe.network_weights)
            self._workbenches[key] = Workbench(needed, shape_hwc, device)
        return self._workbenches[key]

    def tuner(self, recipe: Recipe, shards: Path, device: torch.device, *, groups: int) -> Tuner:
        """The chooser of loader settings for at least so many groups."""
        data = recipe.data
        key = _sets_key(recipe, shards, device), recipe.loader, data.batch_nominal, data.batch_oe, data.oe_weights
        if key not in self._tuners:
            self._tuners[key] = Tuner(recipe, device, runs=max(groups, self.groups))
        return self._tuners[key]


def _sets_key(recipe: Recipe, shards: Path, device: torch.device) -> Hashable:
    """What open sets, the size of images in batches and the images held depend on."""
    data, spec = recipe.data, recipe.augment
    px = spec.resize_px, spec.crop_px, spec.crop_padding_px
    excluded = data.oe_exclude_duplicates_of, data.oe_exclude_synsets
    how = recipe.train.resident, recipe.loader.bad_images, str(device)
    return shards.resolve(), data.nominal, data.oe, data.oe_transpose, excluded, px, how

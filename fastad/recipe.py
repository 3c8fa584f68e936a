"""Everything that defines a run, as frozen dataclasses read from TOML.

Owns the fields, their defaults and their bounds; what the fields mean to a step of the work is said where that step is.
Class, objective and seed are not in a recipe: a recipe is trained for many of them.
Use: `recipe = load("fashion-mnist", ["optim.epochs=10"])`.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastad.augment import AugmentSpec
from fastad.backbones import PREFIX
from fastad.dali import BAD_IMAGES, LoaderSpec
from fastad.errors import FastadError, unknown
from fastad.named import read_named, shipped
from fastad.networks import MEMORY_FORMATS, find_network
from fastad.objectives import find
from fastad.plan import ORDERS
from fastad.synsets import SYNSETS


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which sets, and how batches are made of them (PROTOCOL, Batches).

    `oe` empty: no outlier exposure; of several OE sets each batch has parts as `oe_weights` says, equal ones if that is
    empty. `oe_size`: images of the OE subset, of each set, None for all; `oe_classes`: number of OE classes drawn, None
    for all. Never OE are: the OE set's classes `oe_exclude_classes`; if its classes are ImageNet's synsets,
    those on the lists `oe_exclude_synsets` (the paper's runs: imagenet30), but not their child synsets; and images that
    stand, pixel for pixel, in the test split of the set `oe_exclude_duplicates_of`. `oe_transpose`: OE images have rows
    and columns exchanged in training.
    """

    nominal: str
    oe: tuple[str, ...] = ()
    oe_weights: tuple[float, ...] = ()
    oe_size: int | None = None
    oe_classes: int | None = None
    oe_order: str = "cyclic"
    oe_exclude_classes: tuple[str, ...] = ()
    oe_exclude_synsets: tuple[str, ...] = ("imagenet1k",)
    oe_exclude_duplicates_of: str | None = None
    oe_transpose: bool = False
    batch_nominal: int = 128
    batch_oe: int = 128

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of all sets that a run reads."""
        other = self.oe_exclude_duplicates_of
        return self.nominal, *self.oe, *(() if other is None else (other,))


@dataclass(frozen=True, slots=True)
class OptimSpec:
    """Adam: the learning rate `lr` falls to a tenth at each milestone (an epoch); `weight_decay` is coupled L2."""

    epochs: int
    milestones: tuple[int, ...] = ()
    lr: float = 1e-3
    weight_decay: float = 0.5e-6


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How the work is executed. `resident`: "auto" holds images on the device where they fit, and are small or come
    again; "off" reads and decodes them for every batch. `precision`: "auto" is bfloat16 autocast on GPUs that have it,
    else float32. `compile`: "auto" is on for CUDA, where steps become CUDA graphs, too; on the CPU it is on for a long
    run of one process, if that is found faster on this machine. `memory_format`: "auto" is channels_last, in such a run
    the faster one. `deterministic`: the same bits every time also on a GPU, where that is slower. A checkpoint is
    written once `checkpoint_every_s` have passed, and after every `checkpoint_every_epochs` if that is not 0.
    `tensorboard`: what is logged is also written to the run's folder "tensorboard".
    """

    resident: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    memory_format: str = "auto"
    deterministic: bool = False
    checkpoint_every_s: float = 60.0
    checkpoint_every_epochs: int = 0
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """A resolved recipe; equal recipes with equal class, objective and seed are the same run. `network`: a name of
    `fastad.networks`, or "torchvision:<name>", for which `network_weights` may be the path of its state dict."""

    name: str
    network: str
    objectives: tuple[str, ...]
    data: DataSpec
    optim: OptimSpec
    network_weights: str | None = None
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    loader: LoaderSpec = field(default_factory=LoaderSpec)
    train: TrainSpec = field(default_factory=TrainSpec)


# The orders that OE images may come in; nominal images come in permutations.
OE_ORDERS = tuple(name for name in ORDERS if name != "permutation")

CHOICES = {
    "data.oe_order": OE_ORDERS,
    "data.oe_exclude_synsets": tuple(SYNSETS),
    "loader.bad_images": BAD_IMAGES,
    "train.resident": ("auto", "on", "off"),
    "train.precision": ("auto", "bfloat16", "float32"),
    "train.compile": ("auto", "on", "off"),
    "train.memory_format": ("auto", *MEMORY_FORMATS),
}

BOUNDS = {
    "data.oe_size": (1, math.inf),
    "data.oe_classes": (1, math.inf),
    "data.batch_nominal": (2, math.inf),
    "data.batch_oe": (1, math.inf),
    "optim.epochs": (1, math.inf),
    "optim.milestones": (0, math.inf),
    "optim.lr": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "data.oe_weights": (1e-6, math.inf),
    "augment.resize_px": (0, math.inf),
    "augment.crop_px": (0, math.inf),
    "augment.crop_padding_px": (0, math.inf),
    "augment.flip_probability": (0, 1),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.saturation": (0, 1),
    "augment.hue_turns": (0, 0.5),
    "augment.noise_std": (0, math.inf),
    "augment.oe_blur_sigma_px": (0, math.inf),
    "augment.std": (1e-6, math.inf),
    "loader.threads": (0, math.inf),
    "loader.prefetch": (0, math.inf),
    "loader.hw_decoder_load": (0, 1),
    "train.checkpoint_every_s": (0, math.inf),
    "train.checkpoint_every_epochs": (0, math.inf),
}


def recipe_names() -> list[str]:
    """The recipes that fastad ships."""
    return shipped("recipe")


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name, or of the TOML file at that path, with `key=value` overrides applied.

    Raises `FastadError` for an unknown recipe, an unknown key (with the nearest known ones), a value of the wrong type
    or out of its bounds.
    """
    stem, table = read_named("recipe", name)
    table = {"name": stem} | table
    for override in overrides:
        _override(table, override)
    return parse(table)


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise FastadError(f"--set takes key=value, found {override!r}: write --set optim.epochs=10, say")
    if key not in (keys := known_keys()):
        raise unknown("recipe key", key, keys)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text == "none" else text
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
    table[last] = value


def parse(table: Mapping[str, Any]) -> Recipe:
    """A recipe from a table as TOML gives it, every field checked."""
    recipe: Recipe = _parse(Recipe, table, "")
    find_network(recipe.network)
    if recipe.network_weights is not None and not recipe.network.startswith(PREFIX):
        raise FastadError(f"recipe key network_weights is for torchvision's networks, and {recipe.network} is none")
    for objective in recipe.objectives:
        find(objective)
    weights, sets = recipe.data.oe_weights, recipe.data.oe
    if weights and len(weights) != len(sets):
        raise FastadError(
            f"recipe key data.oe_weights has {len(weights)} numbers for {len(sets)} OE sets: give one each"
        )
    if recipe.data.oe_classes is not None and len(sets) > 1:
        raise FastadError("recipe key data.oe_classes draws classes of one OE set: name one in data.oe")
    if not recipe.objectives:
        raise FastadError("recipe key objectives is empty: name at least one, such as hsc")
    return recipe


def known_keys(kind: Any = Recipe, prefix: str = "") -> list[str]:
    """Every key of a recipe, dotted, in order."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        keys += known_keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]
    return keys


def _parse(kind: Any, table: Any, prefix: str) -> Any:
    """A dataclass from a table; `prefix` is its dotted place, ending in a dot."""
    if not isinstance(table, Mapping):
        raise FastadError(f"recipe key {prefix.rstrip('.')} must be a table, found {table!r}")
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise unknown("recipe key", prefix + key, known_keys())
    values = {}
    for spec in dataclasses.fields(kind):
        place = prefix + spec.name
        if dataclasses.is_dataclass(hints[spec.name]) and (
            spec.name in table or spec.default_factory is dataclasses.MISSING
        ):
            values[spec.name] = _parse(hints[spec.name], table.get(spec.name, {}), place + ".")
        elif spec.name in table:
            values[spec.name] = _checked(hints[spec.name], table[spec.name], place)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise FastadError(f"recipe key {place} is missing: add it, or --set {place}=…")
    return kind(**values)


def _checked(hint: Any, value: Any, place: str) -> Any:
    """The value as its field's type, within its choices or bounds."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        value = () if value is None else value
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(typing.get_args(hint)[0], item, place) for item in items)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise FastadError(f"recipe key {place} must be of type {hint.__name__}, found {value!r}")
    if place in CHOICES and value not in CHOICES[place]:
        raise unknown(place, value, CHOICES[place])
    if place in BOUNDS:
        low, high = BOUNDS[place]
        if not low <= value <= high:
            upper = "" if high == math.inf else f" and at most {high}"
            raise FastadError(f"recipe key {place} must be at least {low}{upper}, found {value}")
    return value


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every field written out except those that are None."""
    plain: list[str] = []
    sections: list[str] = []
    for spec in dataclasses.fields(recipe):
        value = getattr(recipe, spec.name)
        if dataclasses.is_dataclass(value):
            lines = [_line(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
            sections.append("\n".join((f"\n[{spec.name}]", *(line for line in lines if line))))
        else:
            plain.append(_line(spec.name, value))
    return "\n".join((*plain, *sections)) + "\n"


def _line(key: str, value: Any) -> str:
    return "" if value is None else f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)

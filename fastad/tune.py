"""How a machine decodes a recipe's images fastest: threads, the hardware decoder's share, batches made ahead.

Owns the measuring, when it pays, and the cache of what was found; the settings are `fastad.dali`'s and change no score.
Use: `loader = Tuner(recipe, device, runs=30).loader(plan, sources)`.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastad.augment import AugmentSpec
from fastad.dali import TUNED, Decoding, LoaderSpec, cores_here, dali_crops
from fastad.errors import FastadError
from fastad.feed import planned
from fastad.files import cache_home, locked, write_json
from fastad.pipeline import Source
from fastad.plan import ENDLESS_EPOCHS, WHOLE_BATCH, Plan, Stream
from fastad.progress import say
from fastad.recipe import Recipe
from fastad.run import environment

SECONDS_A_SETTING = 1.0

# Tuning may take this share of the time that decoding takes without it. For fewer images than these it never keeps to
# that: it took 8.6 s on two busy cores, where they were decoded in 80 s (README, Development).
MOST_SHARE = 0.05
FROM_IMAGES = 100_000

# Of settings whose rates differ by less than this, the first is chosen; on two busy cores one setting's own rates lay 1
# to 12 % apart.
NOISE = 0.05

WORDS = {"threads": "threads", "hw_decoder_load": "hardware decode share", "prefetch": "prefetch"}

Decoded = Sequence[tuple[Stream, Source]]


class Tuner:
    """Chooses the loader settings of a command's `runs`, once: for the first of them for which DALI decodes."""

    def __init__(self, recipe: Recipe, device: torch.device, *, runs: int) -> None:
        self.recipe = recipe
        self.device = device
        self.runs = runs
        self._chosen: LoaderSpec | None = None

    def loader(self, plan: Plan, sources: Sequence[Source]) -> LoaderSpec:
        """The settings for a plan's batches: the recipe's, else those found on this machine, now or earlier."""
        streams = zip(plan.streams, sources, strict=True)
        decoded = [(stream, source) for stream, source in streams if source.held is None and source.reader.is_encoded]
        if not decoded:
            return self.recipe.loader
        if self._chosen is None:
            self._chosen = _choose(self.recipe, plan, decoded, self.device, self.runs)
        return self._chosen


def _choose(recipe: Recipe, plan: Plan, decoded: Decoded, device: torch.device, runs: int) -> LoaderSpec:
    given, values = recipe.loader, values_to_try(recipe.loader, device)
    key = _machine(device) | _work(recipe, decoded) | {"given": {name: getattr(given, name) for name in TUNED}}
    path = cache_home() / f"loader-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    found, why = _kept(path, key, values), f"cached in {path}"
    if values and found is None:
        images = runs * plan.steps * sum(stream.batch for stream, _ in decoded)
        why = "too few images to tune for"
        if _pays(recipe, plan, decoded, device, values, images):
            best, rates = fastest(recipe.augment, plan, decoded, device, given.settled(device), values)
            found = {name: getattr(best, name) for name in values}
            why = f"tuned now: {rates[best]:,.0f} images/s decoded alone"
            told = [
                {name: getattr(loader, name) for name in values} | {"images_per_s": round(rates[loader], 1)}
                for loader in rates
            ]
            _keep(path, {"key": key, "loader": found, "rates": told})
    chosen = replace(given.settled(device), **(found or {}))
    names = [name for name in TUNED if name != "hw_decoder_load" or device.type == "cuda"]
    settings = ", ".join(
        f"{WORDS[name]} {getattr(chosen, name)}{'' if name in given.left_open() else ' (the recipe’s)'}"
        for name in names
    )
    say(f"loader: {settings}{f'; {why}' if values else ''}")
    return chosen


def _machine(device: torch.device) -> dict[str, Any]:
    """What decodes."""
    found = environment(device)
    return {
        "processor": found["processor"],
        "cores": cores_here(),
        "device": found["device"],
        "dali": [version for name, version in found["packages"].items() if name.startswith("nvidia-dali")],
    }


def _work(recipe: Recipe, decoded: Decoded) -> dict[str, Any]:
    """What is decoded: the sets, how many images of each stand in a batch, and what is made of their sizes."""
    spec = recipe.augment
    return {
        "sets": [[source.reader.manifest.fingerprint, stream.batch] for stream, source in decoded],
        "px": [spec.resize_px, spec.crop_px, spec.crop_padding_px],
    }


def values_to_try(given: LoaderSpec, device: torch.device) -> dict[str, list[Any]]:
    """What is tried of each setting that is left open, the preferred values first."""
    # A CPU has no decoder beside its cores, and decoding alone does not show what batches ahead cost there.
    tuned = TUNED if device.type == "cuda" else ("threads",)
    cores = _machine(device)["cores"]
    return {name: _values(name, cores) for name in given.left_open() if name in tuned}


def _values(name: str, cores: int) -> list[Any]:
    if name == "threads":
        return sorted({cores, *(2**power for power in range(cores.bit_length()))})
    # DALI's default comes first of the shares, and of two batches ahead fewer would leave it idle between requests.
    return [0.65, 0.5, 0.8, 1.0, 0.0] if name == "hw_decoder_load" else [2, 4]


def _pays(
    recipe: Recipe,
    plan: Plan,
    decoded: Decoded,
    device: torch.device,
    values: Mapping[str, Sequence[Any]],
    images: int,
) -> bool:
    """Whether trying these values repays itself over so many images, by how fast they are decoded untuned."""
    if images < FROM_IMAGES:
        return False
    # This also brings what the first batches are read from into memory, for all that are compared.
    started = time.perf_counter()
    rate = _images_per_s(recipe.augment, plan, decoded, device, recipe.loader.settled(device))
    setting_s = max(SECONDS_A_SETTING, time.perf_counter() - started)
    return sum(map(len, values.values())) * setting_s <= MOST_SHARE * images / rate


def fastest(
    spec: AugmentSpec,
    plan: Plan,
    decoded: Decoded,
    device: torch.device,
    start: LoaderSpec,
    values: Mapping[str, Sequence[Any]],
) -> tuple[LoaderSpec, dict[LoaderSpec, float]]:
    """The settings with which a plan's images are decoded fastest, one found after another from those of `start` on;
    and the images per second of all that were measured."""
    best, rates = start, dict[LoaderSpec, float]()
    for name in (name for name in TUNED if name in values):
        settings = [replace(best, **{name: value}) for value in values[name]]
        rates |= {
            loader: _images_per_s(spec, plan, decoded, device, loader) for loader in settings if loader not in rates
        }
        enough = max(rates[loader] for loader in settings) / (1 + NOISE)
        best = next(loader for loader in settings if rates[loader] >= enough)
    return best, rates


def _images_per_s(spec: AugmentSpec, plan: Plan, decoded: Decoded, device: torch.device, loader: LoaderSpec) -> float:
    """How fast the plan's first batches are decoded, with the draws of its training; a short plan goes on beyond its
    end."""
    plan = replace(plan, epochs=ENDLESS_EPOCHS)
    wanted = [planned(plan, stream, spec, start_step=0, share=WHOLE_BATCH) for stream, _ in decoded]
    crops = dali_crops([source.origin for _, source in decoded], wanted, Decoding(spec, device, loader))
    with closing(crops) as batches:
        # What was made ahead while nobody asked is not counted.
        for _ in itertools.islice(batches, loader.prefetch + 1):
            pass
        images, started = 0, time.perf_counter()
        for parts in batches:
            images += sum(len(part.rows) for part in parts)
            if time.perf_counter() - started >= SECONDS_A_SETTING:
                break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images / (time.perf_counter() - started)


def _kept(path: Path, key: Mapping[str, Any], values: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """The settings that were found earlier for the same key, None if there are none."""
    if not values or not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["key"] == key and all(found["loader"][name] in values[name] for name in values):
            return {name: found["loader"][name] for name in values}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    say(f"{path} is damaged: its settings are not used")
    return None


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    try:
        with locked(path.with_suffix(".lock"), f"another process is writing {path}"):
            write_json(path, found)
    except FastadError as error:
        say(f"what was tuned is not kept: {error}")

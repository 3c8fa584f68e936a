"""Speed as a ratio to plain PyTorch and torchvision, both measured in turns in the same run: a recipe's batches.

Owns what benchmarks share: rates, and the plain batches they are compared with, from a data set of per-image
torchvision transforms in a `DataLoader` with as many workers as there are cores. Steps are `fastad.bench_step`'s.
Use: `measure_loader(load("digits"), shards, device, repeats=5)["loader_ratio"]`.
"""

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastad.augment import AugmentSpec
from fastad.pipeline import Batch, train_batches
from fastad.plan import ENDLESS_EPOCHS, Plan
from fastad.progress import progress
from fastad.recipe import Recipe
from fastad.run import environment
from fastad.sets import Sets, make_plan, open_sets, training_sources
from fastad.view import classes_in

WARM_UP_BATCHES, WARM_UP_S = 5, 1.0
SECONDS_A_MEASUREMENT = 3.0

# The plain loaders hold no more images of a stream than these, decoded.
PLAIN_IMAGES = 8_192

Rates = dict[str, list[float]]


def measure_loader(recipe: Recipe, shards: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """Images per second of `train_batches` and of the plain loader, for the recipe's first class and augmentation.

    Returns `loader_ratio` with both rates (median of n), each measurement, and the rate of bare positional reads.
    """
    sets, plan = sets_and_plan(recipe, shards)
    batches = batches_of(recipe, sets, plan, device)
    plain = plain_batches(plan, sets, recipe, device)
    rows = itertools.cycle(plan.epoch(0)[0])
    rates = _in_turns(
        {
            "fastad": lambda: len(next(batches).row),
            "plain": lambda: len(next(plain)[1]),
            "reader": lambda: len(sets.nominal.pixels(next(rows))),
        },
        repeats,
        device,
    )
    return _report(recipe, plan, device, rates, {"loader_ratio": ("fastad", "plain")})


def sets_and_plan(recipe: Recipe, shards: Path) -> tuple[Sets, Plan]:
    """The recipe's sets and an endless plan for its first class."""
    sets = open_sets(recipe, shards)
    plan = make_plan(recipe, sets, classes_in("train", sets.nominal.manifest)[0], seed=1)
    return sets, replace(plan, epochs=ENDLESS_EPOCHS)


def batches_of(
    recipe: Recipe, sets: Sets, plan: Plan, device: torch.device, *, compiled: bool | None = None
) -> Iterator[Batch]:
    sources = training_sources(recipe, sets, plan, device)
    return train_batches(plan, sources, recipe.augment, device, loader=recipe.loader, compiled=compiled)


def _in_turns(works: dict[str, Callable[[], int]], repeats: int, device: torch.device) -> Rates:
    """Images per second of each work, `repeats` times, in turns so that a noisy machine is noisy for all of them."""
    for work in works.values():
        warm_up(work, device)
    rates: Rates = {name: [] for name in works}
    with progress("bench", repeats * len(works), unit="measurements") as advance:
        for _ in range(repeats):
            for name, work in works.items():
                rates[name].append(rate(work, device))
                advance()
    return rates


def warm_up(work: Callable[[], int], device: torch.device) -> None:
    """Some calls that are not measured; on a CPU, where nothing is captured later, one that takes long is enough."""
    started = time.perf_counter()
    for _ in range(WARM_UP_BATCHES):
        work()
        if device.type == "cpu" and time.perf_counter() - started > WARM_UP_S:
            return


def rate(work: Callable[[], int], device: torch.device, seconds: float | None = None) -> float:
    """Images per second of calling `work` over and over, for `seconds` or those of every measurement; waits for the
    device before it starts the clock, and before it stops it."""
    seconds = SECONDS_A_MEASUREMENT if seconds is None else seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return images / (time.perf_counter() - started)


def _report(
    recipe: Recipe, plan: Plan, device: torch.device, rates: Rates, ratios: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """Each ratio of medians with both rates beside it, then what was measured and on what."""
    medians = {f"{name}_images_per_s": round(median(values), 1) for name, values in rates.items()}
    return {
        **{name: round(median(rates[over]) / median(rates[under]), 2) for name, (over, under) in ratios.items()},
        **medians,
        "each_images_per_s": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "repeats": len(next(iter(rates.values()))),
        "recipe": recipe.name,
        "batch_size": plan.batch_size,
        "threads": torch.get_num_threads(),
        "environment": environment(device),
    }


class _PlainImages(Dataset[torch.Tensor]):
    """Images in memory [H, W, C], transformed one by one, as torchvision's own data sets do it."""

    def __init__(
        self, images: np.ndarray | Sequence[np.ndarray], transform: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        # Copied: what is mapped from shards may not be written to, of which PyTorch warns.
        self.images = [torch.tensor(image).permute(2, 0, 1) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index])


def plain_transforms(spec: AugmentSpec, size_px: int, oe: bool, *, crop_first: bool = False) -> list[Any]:
    """The augmentation as a list of torchvision transforms of uint8 images, in the paper's order; those that it does
    not ask for are left out. `crop_first`: no more pixels are changed than are needed."""
    moves: list[Any] = []
    if spec.flip_probability > 0:
        moves.append(v2.RandomHorizontalFlip(spec.flip_probability))
    if spec.crop_padding_px > 0 or spec.crop_px > 0:
        moves.append(v2.RandomCrop(size_px, padding=spec.crop_padding_px or None))
    jitter = [v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue_turns)] if spec.jitters else []
    transforms: list[Any] = [v2.Resize(spec.resize_px)] if spec.resize_px else []
    transforms += [*moves[::-1], *jitter] if crop_first else [*jitter, *moves]
    if oe and spec.oe_blur_sigma_px > 0:
        window = 2 * int(np.ceil(3 * spec.oe_blur_sigma_px)) + 1
        transforms.append(v2.GaussianBlur(window, spec.oe_blur_sigma_px))
    transforms.append(v2.ToDtype(torch.float32, scale=True))
    if spec.noise_std > 0:
        transforms.append(v2.GaussianNoise(sigma=spec.noise_std, clip=False))
    if spec.mean != (0.0,) or spec.std != (1.0,):
        transforms.append(v2.Normalize(list(spec.mean), list(spec.std)))
    return transforms


def plain_batches(
    plan: Plan, sets: Sets, recipe: Recipe, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Balanced batches the plain way: a loader each for nominal and OE images, joined; without end."""
    named = zip(plan.streams, (sets.nominal, *sets.oe), strict=False)
    streams = [(reader, stream.rows, stream.batch) for stream, reader in named]
    workers = max(1, len(os.sched_getaffinity(0)) // len(streams))
    loaders = []
    for place, (reader, rows, size) in enumerate(streams):
        size_px = recipe.augment.crop_px or reader.manifest.shape_hwc[0]
        transform = v2.Compose(plain_transforms(recipe.augment, size_px, oe=place >= 1))
        images = _PlainImages(reader.arrays(rows[:PLAIN_IMAGES]), transform)
        loaders.append(
            # By forking, also where this process was spawned, or each worker would import all anew.
            DataLoader(
                images,
                size,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                persistent_workers=True,
                multiprocessing_context="fork",
            )
        )
    target = torch.cat([torch.full((size,), float(place)) for place, (_, _, size) in enumerate(streams)]).to(device)
    with warnings.catch_warnings():
        # More workers than cores is the user's machine, not the user's mistake.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        for parts in zip(*map(_endless, loaders), strict=True):
            yield torch.cat(parts).to(device), target


def _endless(loader: DataLoader[torch.Tensor]) -> Iterator[torch.Tensor]:
    while True:
        yield from loader

"""Speed of training, data included, as a ratio to plain loops; and its share of what the machine could do at most.

Owns the networks, sets and groups of `fastad bench step`, and the plain loops: eager float32 steps with PyTorch's
default Adam and memory format in the authors' order of layers, each fed by a `DataLoader` in a process of its own, so
that nothing that fastad sets for its process is theirs too. Floors are `fastad.roofline`'s.
Use: `measure_networks(device, repeats=3)["mnist-lenet_group_of_4_ratio"]`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from fastad import bench, shard
from fastad.augment import AugmentSpec
from fastad.bench import plain_batches, rate, sets_and_plan
from fastad.bench_loader import CIFAR, IMAGENET, JITTER
from fastad.errors import FastadError, unknown
from fastad.group import Workbench, step
from fastad.listing import Converter
from fastad.manifest import Sample
from fastad.networks import Detector, build
from fastad.objectives import find
from fastad.pipeline import Unmade
from fastad.progress import progress
from fastad.recipe import Recipe, parse
from fastad.roofline import floor_s, flops, least_bytes, measured_roof
from fastad.run import environment
from fastad.seeds import generator
from fastad.sets import training_sources

GROUPS = (1, 2, 4)
OBJECTIVES = ("hsc", "deep-sad", "bce", "focal")


@dataclass(frozen=True, slots=True)
class Case:
    """A network on images of its size, `count` nominal and as many OE ones; `batch` of each in a step."""

    network: str
    side_px: int
    channels: int
    spec: AugmentSpec
    count: int = 5_000
    batch: int = 128


def cases(device: torch.device) -> list[Case]:
    """The paper's networks, sizes and batches; on a CPU, the large network's batch is small, as its step takes
    seconds."""
    large = 128 if device.type == "cuda" else 8
    imagenet = replace(IMAGENET, noise_std=0.001, **JITTER)
    return [
        Case("mnist-lenet", 28, 1, AugmentSpec()),
        Case("cifar-lenet", 32, 3, CIFAR),
        Case("resnet18-cbam", 256, 3, imagenet, count=max(128, 2 * large), batch=large),
    ]


def measure_networks(device: torch.device, repeats: int, networks: Sequence[str] = ()) -> dict[str, Any]:
    """What `measure_step` returns, for each network or those named, and groups of 1, 2 and 4 objectives, on images made
    here. Raises `FastadError` for another network."""
    known = {case.network: case for case in cases(device)}
    for name in networks:
        if name not in known:
            raise unknown("network", name, known)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case in (known[name] for name in networks or known):
            home = Path(temporary) / case.network
            for name in ("nominal", "oe"):
                _convert(name, case, home)
            found = _merged(found, measure_step(_recipe(case), home, device, repeats))
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, **other, "each_images_per_s": {**one.get("each_images_per_s", {}), **other["each_images_per_s"]}}


def _recipe(case: Case) -> Recipe:
    data = {"nominal": "nominal", "oe": "oe", "batch_nominal": case.batch, "batch_oe": case.batch}
    table = {"name": case.network, "network": case.network, "objectives": OBJECTIVES, "data": data}
    return replace(parse({**table, "optim": {"epochs": 1}}), augment=case.spec)


def _convert(name: str, case: Case, home: Path) -> None:
    converter = Converter(name, lambda: _squares(name, case), "scikit-learn's photographs", "CC BY 2.0", None, "")
    shard.convert_with(converter, None, home)


def _squares(name: str, case: Case) -> Iterator[Sample]:
    """Squares of scikit-learn's sample photographs."""
    rng, photos, side = generator(0, "bench", name), load_sample_images().images, case.side_px
    for index in range(case.count):
        photo = photos[index % len(photos)]
        top, left = (int(rng.integers(room - side + 1)) for room in photo.shape[:2])
        square = np.ascontiguousarray(photo[top : top + side, left : left + side, : case.channels])
        yield Sample(f"{index:05d}", square, name, "train")


def measure_step(recipe: Recipe, shards: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """The speed of training groups of a recipe's first 1, 2 and 4 objectives, data included, with plain loops' of the
    same objectives, one after another. Images count once for each objective, since each is trained on them.

    For each group, as `<network>_group_of_<n>_…`:
    - `ratio`, and both rates (medians of `repeats`, measured in turns);
    - `step_ms`: milliseconds of a step of the whole group, and the lowest and highest of the repeats;
    - `mfu`: the share of this machine's arithmetic, and `roofline_share`: that of what arithmetic and memory allow
      together (`fastad.roofline`), both of which are measured in the same run;
    - `memory_mib`: the device's memory at most, on a CPU the process's, with all that it has kept.
    """
    sets, plan = sets_and_plan(recipe, shards)
    workbench = Workbench(recipe, sets.shape_hwc, device)
    execution = workbench.execution(recipe.optim.epochs * plan.steps_per_epoch)
    members = [workbench.member(find(name), 1, execution) for name in recipe.objectives[: max(GROUPS)]]
    sources = training_sources(recipe, sets, plan, device)
    batches = workbench.batches(plan, sources, recipe.augment, device, loader=recipe.loader)
    sizes = [size for size in GROUPS if size <= len(members)]

    def group_step(size: int) -> int:
        batch = next(batches)
        step(members[:size], batch)
        return size * len(batch.row)

    rates: dict[str, list[float]] = {str(size): [] for size in sizes}
    memory = {}
    with ExitStack() as opened:
        names = [member.objective.name for member in members]
        loops = {name: opened.enter_context(_plain_loop(recipe, shards, name, device)) for name in names}
        rates |= {name: [] for name in names}
        advance = opened.enter_context(
            progress(f"bench {recipe.network}", repeats * (len(sizes) + len(names)), unit="measurements")
        )
        for loop in loops.values():
            loop(0.0)  # their processes have started, and take no time from what is measured first
        for _ in range(repeats):
            for size in sizes:
                bench.warm_up(lambda size=size: group_step(size), device)  # type: ignore[misc]
                _forget_memory(device)
                rates[str(size)].append(rate(lambda size=size: group_step(size), device))  # type: ignore[misc]
                memory[size] = _memory_mib(device)
                advance()
            for name in names:
                rates[name].append(loops[name](bench.SECONDS_A_MEASUREMENT))
                advance()
    batch = next(batches)
    images = batch.made().images if isinstance(batch, Unmade) else batch.images
    roof = measured_roof(device, workbench.precision)
    counted = [(flops(member.model, images), least_bytes(member.model, images)) for member in members]
    found: dict[str, Any] = {}
    for size in sizes:
        arithmetic, moved = (sum(numbers) for numbers in zip(*counted[:size], strict=True))
        found |= _figures(
            f"{recipe.network}_group_of_{size}",
            [rates[name] for name in names[:size]],
            rates[str(size)],
            size * len(images),
            arithmetic / roof.flops_per_s,
            floor_s(arithmetic, moved, roof),
        )
        found[f"{recipe.network}_group_of_{size}_memory_mib"] = round(memory[size], 1)
    return found | {
        "each_images_per_s": {
            f"{recipe.network}_{f'group_of_{key}' if key.isdigit() else f'plain_{key}'}": _rounded(values)
            for key, values in rates.items()
        },
        f"{recipe.network}_batch_size": plan.batch_size,
        f"{recipe.network}_compiled": execution.compiled,
        f"{recipe.network}_memory_format": execution.memory_format,
        "objectives": names,
        "repeats": repeats,
        "precision": workbench.precision,
        "teraflops_per_s": round(roof.flops_per_s / 1e12, 3),
        "gigabytes_per_s": round(roof.bytes_per_s / 1e9, 1),
        "threads": torch.get_num_threads(),
        "environment": environment(device),
    }


def _figures(
    name: str,
    plain_rates: Sequence[Sequence[float]],
    group_rates: Sequence[float],
    images: int,
    arithmetic_s: float,
    least_s: float,
) -> dict[str, Any]:
    """A group's figures, of steps of so many images, that of every objective counted; its plain loops take the time of
    one after another. `arithmetic_s`, `least_s`: what arithmetic alone, and all, would take at least."""
    group = median(group_rates)
    plain = len(plain_rates) / sum(1 / median(values) for values in plain_rates)
    step_s = sorted(images / value for value in group_rates)
    return {
        f"{name}_ratio": round(group / plain, 2),
        f"{name}_images_per_s": round(group, 1),
        f"plain_{name}_images_per_s": round(plain, 1),
        f"{name}_step_ms": round(1e3 * median(step_s), 3),
        f"{name}_step_ms_range": [round(1e3 * seconds, 3) for seconds in (step_s[0], step_s[-1])],
        f"{name}_mfu": round(arithmetic_s / median(step_s), 3),
        f"{name}_roofline_share": round(least_s / median(step_s), 3),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in values]


def _forget_memory(device: torch.device) -> None:
    """Lets the most memory used begin anew; where a system does not allow it, it is that of the process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _memory_mib(device: torch.device) -> float:
    """The most memory used since then."""
    if device.type == "cuda":
        # Not what is allocated: a captured step's memory is its graph's own, and counts as free while it is replayed.
        return torch.cuda.max_memory_reserved(device) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


@contextmanager
def _plain_loop(
    recipe: Recipe, shards: Path, objective: str, device: torch.device
) -> Iterator[Callable[[float], float]]:
    """While it lasts, calling what it yields measures a plain loop for some seconds, in images per second."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, recipe, shards, objective, str(device)))
    process.start()
    theirs.close()

    def measured(seconds: float) -> float:
        try:
            ours.send(seconds)
            return float(ours.recv())
        except (EOFError, OSError) as error:
            raise FastadError(f"the plain loop of {objective} has ended: what it said stands above") from error

    try:
        yield measured
    finally:
        ours.close()
        process.join(timeout=10)
        process.kill()


def _serve(connection: Connection, recipe: Recipe, shards: Path, objective: str, device: str) -> None:
    """A plain loop's process: measures whenever it is told to, until nobody listens."""
    work = plain_step(recipe, shards, objective, torch.device(device))
    with suppress(EOFError, OSError):
        while True:
            seconds = connection.recv()
            bench.warm_up(work, torch.device(device))
            connection.send(rate(work, torch.device(device), seconds))


def plain_step(recipe: Recipe, shards: Path, name: str, device: torch.device) -> Callable[[], int]:
    """One eager step of one objective on its own batches: default memory format, float32, default Adam."""
    objective, (sets, plan) = find(name), sets_and_plan(recipe, shards)
    model = plain_model(build(recipe.network, sets.shape_hwc, objective.output_width, seed=1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    batches = plain_batches(plan, sets, recipe, device)

    def stepped() -> int:
        images, target = next(batches)
        seen = None if objective.uses_oe else plan.nominal.batch
        optimizer.zero_grad()
        loss = objective.loss(model(images[:seen]), target[:seen]).mean()
        loss.backward()
        optimizer.step()
        return len(target)

    return stepped


def plain_model(model: Detector) -> Detector:
    """The same network in the default memory format, and pooled after leaky ReLU, as the authors do it."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for place, (one, other) in enumerate(zip(list(module), islice(list(module), 1, None), strict=False)):
                if isinstance(one, nn.MaxPool2d) and isinstance(other, nn.LeakyReLU):
                    module[place], module[place + 1] = other, one
    return model.to(memory_format=torch.contiguous_format)

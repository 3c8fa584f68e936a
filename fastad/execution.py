"""How a network's steps are executed: compiled or not, and in which memory format its images and weights are.

Owns from which length of a run on that is measured on a CPU, in which order, the measuring, and the cache of what was
found for a machine, a network and a batch. Ways differ in their last bits, so what was found once is used from then on,
and timing moves no number; a checkpoint keeps the way that its training began with.
Use: `way = chosen(recipe.train, device, key, make)`, where `make(way)` returns steps that can be timed.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from fastad.errors import FastadError
from fastad.files import cache_home, locked, write_json
from fastad.networks import MEMORY_FORMATS
from fastad.pixels import has_compiler
from fastad.progress import say
from fastad.recipe import TrainSpec

# Compiling takes 5 (cached) to 80 s on two busy cores, of which a run should not notice more than a tenth.
MEASURED_FROM_STEPS = 6_000

# Steps that warm up, and rounds of steps that are measured in turns.
WARM_UP, ROUNDS, STEPS_A_ROUND = 3, 5, 5

# What is not the first choice must be faster by this share: two measurements of one thing lay that far apart.
NOISE = 0.05

Step = Callable[[], None]


class Execution(NamedTuple):
    """Whether steps are compiled, and the memory format of images and weights, as recipes name it."""

    compiled: bool = False
    memory_format: str = "channels_last"


def begun_with(member: Mapping[str, Any]) -> Execution:
    """The way that a checkpoint's member was trained in; what older ones do not tell is as it was then."""
    return Execution(**{name: member[name] for name in Execution._fields if name in member})


def chosen(
    train: TrainSpec, device: torch.device, key: Mapping[str, Any] | None, make: Callable[[Execution], Step]
) -> Execution:
    """What the recipe says; for what it leaves open, on a GPU compiled and channels_last, on a CPU the faster ones as
    found now or earlier for the same key, or plainly eager and channels_last where `key` is None.

    The memory format is found first, by eager steps, and what is compiled has that format. To compile for both would
    take twice as long and decide little: the compiler chooses layouts of its own, and what it made for either was
    within 3 % of the other where eager steps were 18 to 63 % apart (three networks on two cores).
    """
    memory_format, compiled = train.memory_format, train.compile != "off"
    on_cpu = device.type == "cpu"
    if on_cpu and compiled and not has_compiler():
        if train.compile == "on":
            raise FastadError("train.compile=on needs a C++ compiler on the CPU: install g++, or use auto")
        if key is not None:
            say("no C++ compiler found: training is not compiled")
        compiled = False
    if memory_format == "auto":
        memory_format = "channels_last"
        if on_cpu and key is not None:
            works = {name: functools.partial(make, Execution(memory_format=name)) for name in MEMORY_FORMATS}
            memory_format = fastest({**key, "compiled": False}, works)
    if on_cpu and compiled and train.compile == "auto":
        works = {
            name: functools.partial(make, Execution(is_compiled, memory_format))
            for name, is_compiled in (("eager", False), ("compiled", True))
        }
        compiled = key is not None and fastest({**key, "memory_format": memory_format}, works) == "compiled"
    return Execution(compiled, memory_format)


def fastest(key: Mapping[str, Any], works: Mapping[str, Callable[[], Step]]) -> str:
    """The work whose steps take the least time, the first one unless another is clearly faster, as found now or
    earlier for the same key; `works` make the steps that are timed."""
    path = cache_home() / f"steps-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    found = _kept(path, key, works)
    why = f"cached in {path}"
    if found is None:
        found, why = _measured(works), "measured now"
        _keep(path, {"key": dict(key), "step_ms": found})
        found = _kept(path, key, works) or found  # another process's, if that was first
    first, *others = works
    best = min([first, *(name for name in others if found[name] < (1 - NOISE) * found[first])], key=found.__getitem__)
    said = ", ".join(f"{found[name]:.1f} ms {name}" for name in works)
    say(f"training is {best}: a step takes {said} ({why})")
    return best


def _measured(works: Mapping[str, Callable[[], Step]]) -> dict[str, float]:
    """Milliseconds of a step of each work: the median of rounds, in turns so that a busy machine is busy for all."""
    steps = {name: make() for name, make in works.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS_A_ROUND):
                step()
            rounds[name].append(1e3 * (time.perf_counter() - started) / STEPS_A_ROUND)
    return {name: round(median(values), 2) for name, values in rounds.items()}


def _kept(path: Path, key: Mapping[str, Any], works: Mapping[str, Any]) -> dict[str, float] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["key"] == key:
            return {name: float(found["step_ms"][name]) for name in works}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    say(f"{path} is damaged: it is measured again")
    path.unlink(missing_ok=True)
    return None


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    """Writes what was found, unless another process has by now."""
    try:
        with locked(path.with_suffix(".lock"), f"another process is writing {path}"):
            if not path.is_file():
                write_json(path, found)
    except FastadError as error:
        say(f"what was measured is not kept: {error}")

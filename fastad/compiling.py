"""Whether a network's steps are compiled on a CPU: measured once for a machine, a network and a batch, then kept.

Owns from which length of a run on it is asked, the measuring, and the cache of what was found. Eager and compiled steps
differ in their last bits, so what was found once is used from then on, and timing moves no number.
Use: `pays = compiling_pays(key, {"eager": make_eager, "compiled": make_compiled})`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fastad.errors import FastadError
from fastad.files import cache_home, locked, write_json
from fastad.progress import say

# Compiling takes 5 (cached) to 80 s on two busy cores, of which a run should not notice more than a tenth.
COMPILE_CPU_FROM_STEPS = 6_000

# Steps that warm up, and rounds of steps that are measured in turns.
WARM_UP, ROUNDS, STEPS_A_ROUND = 3, 5, 5

# Compiled steps must be faster by this share: two measurements of one thing lay that far apart.
NOISE = 0.05

Works = Mapping[str, Callable[[], Callable[[], None]]]


def compiling_pays(key: Mapping[str, Any], works: Works) -> bool:
    """Whether the work "compiled" is faster than "eager", found now or earlier for the same key; `works` make the
    steps that are timed."""
    path = cache_home() / f"compile-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    found = _kept(path, key)
    why = f"cached in {path}"
    if found is None:
        found, why = _measured(works), "measured now"
        _keep(path, {"key": dict(key), "step_ms": found})
        found = _kept(path, key) or found  # another process's, if that was first
    pays = found["compiled"] < (1 - NOISE) * found["eager"]
    said = f"{found['compiled']:.1f} ms a step, {found['eager']:.1f} ms eager ({why})"
    say(f"training is {'compiled' if pays else 'not compiled'}: compiled {said}")
    return pays


def _measured(works: Works) -> dict[str, float]:
    """Milliseconds of a step of each work: the median of rounds, in turns so that a busy machine is busy for both."""
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


def _kept(path: Path, key: Mapping[str, Any]) -> dict[str, float] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["key"] == key:
            return {name: float(found["step_ms"][name]) for name in ("eager", "compiled")}
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

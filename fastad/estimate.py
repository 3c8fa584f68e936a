"""What a training would be and take, told before it is begun: `fastad train --dry-run`.

Owns what is measured for that, and the sum; nothing is written, and nothing is tuned.
Use: `estimate(load("digits"), shards=home, out=Path("runs"), device=device)["estimated_s"]`.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastad.dali import Decoding
from fastad.errors import FastadError
from fastad.evaluate import measure, score_batches
from fastad.faults import Origin
from fastad.group import Member, Workbench, step
from fastad.networks import parameter_count
from fastad.pipeline import Source, evaluation_batches
from fastad.plan import ENDLESS_EPOCHS, Plan
from fastad.prepare import finishes_compiled, prepare
from fastad.progress import duration
from fastad.ranks import share
from fastad.reader import ShardReader
from fastad.recipe import Recipe
from fastad.resident import hold
from fastad.run import environment
from fastad.seeds import generator
from fastad.sets import Sets, make_plan, memory_held, one_vs_rest, stream_faults
from fastad.step_graph import WARM_UP
from fastad.training import any_uses_oe
from fastad.warm import Warm

# Of each stream and of the test; more would only take longer to decode.
MEASURED_IMAGES = 1_024
MEASURED_S = 3.0
FEWEST_STEPS, MOST_STEPS = 3, 200


def estimate(
    recipe: Recipe,
    *,
    shards: Path,
    out: Path,
    device: torch.device,
    classes: Sequence[str] = (),
    objectives: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Sizes, and the seconds that `fastad.train.train` of the same arguments would take, from a few measured steps.

    Raises `FastadError` for what `train` would refuse before it writes, and where there are several processes.
    """
    if share().ranks > 1:
        raise FastadError("--dry-run measures one process: run it without torchrun")
    prepared = prepare(
        recipe, shards=shards, out=out, device=device, classes=classes, objectives=objectives, seeds=seeds, warm=Warm()
    )
    sets, workbench, wanted, pairs = prepared.sets, prepared.workbench, prepared.wanted, prepared.pairs
    undone = {
        pair: [run for run in runs if not run.result.is_file()] for pair, runs in zip(pairs, prepared.runs, strict=True)
    }
    due = [pair for pair in pairs if undone[pair]]
    (seed, class_name), *_ = due or pairs
    plans = [make_plan(recipe, sets, name, number, any_uses_oe(wanted)) for number, name in due or pairs]
    rows, target = one_vs_rest(sets, class_name)
    held = memory_held(recipe, sets, plans[0], rows, device)
    execution = workbench.execution(plans[0].steps)
    members = [workbench.member(objective, seed, execution) for objective in wanted]
    finishes = finishes_compiled(recipe, sets, plans[0], device)

    cut = _cut(plans[0])
    readers = (sets.nominal, *sets.oe)
    sources, hold_image_s = _sources(recipe, cut, readers, held, device)
    first_step_s, step_s, steps = _measured_steps(recipe, workbench, cut, sources, members, finishes)
    score_image_s = _measured_scoring(recipe, sets, rows[:MEASURED_IMAGES], target, members, held["test"] > 0, device)
    started = time.perf_counter()
    measure(target, generator(0, "estimate").random(len(target)))
    metrics_s = time.perf_counter() - started

    held_images = _held_images(plans, due or pairs, readers, held, len(rows))
    trainings, total_steps = sum(map(len, undone.values())), sum(plan.steps for plan in plans) if due else 0
    seconds = {
        "first_step": first_step_s if due else 0.0,
        "steps": total_steps * step_s,
        "holding": held_images * hold_image_s if due else 0.0,
        "scoring": len(due) * len(rows) * score_image_s,
        "metrics": trainings * metrics_s,
    }
    total_s = sum(seconds.values())
    return {
        "recipe": recipe.name,
        "trainings": trainings,
        "finished": len(pairs) * len(wanted) - trainings,
        "groups": len(due),
        "objectives": [objective.name for objective in wanted],
        "epochs": recipe.optim.epochs,
        "steps_per_epoch": plans[0].steps_per_epoch,
        "steps": total_steps,
        "batch": {stream.name: stream.batch for stream in plans[0].streams},
        "images": {stream.name: len(stream.rows) for stream in plans[0].streams} | {"test": len(rows)},
        "shape_hwc": list(sets.shape_hwc),
        "parameters": {member.objective.name: parameter_count(member.model) for member in members},
        "held_bytes": held,
        "precision": workbench.precision,
        "compiled": execution.compiled,
        "memory_format": execution.memory_format,
        "step_ms": round(1e3 * step_s, 2),
        "images_per_s": round(cut.batch_size / step_s, 1),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "estimated_s": round(total_s, 1),
        "estimated": duration(total_s),
        "rests_on": f"{steps} steps of {class_name}, seed {seed}, on no more than {MEASURED_IMAGES:,} images of each "
        "kind, and as many test images scored, just now; runs that are begun count from their start, and tuning, "
        "checkpoints and replayed batches not at all",
        "environment": environment(device),
    }


def _cut(plan: Plan) -> Plan:
    """An endless plan of the same batches but few images."""
    streams = [
        replace(stream, rows=stream.rows[:size], shard=None if stream.shard is None else stream.shard[:size])
        for stream in plan.streams
        if (size := max(MEASURED_IMAGES, stream.batch))
    ]
    return replace(plan, streams=tuple(streams), epochs=ENDLESS_EPOCHS)


def _sources(
    recipe: Recipe, plan: Plan, readers: Sequence[ShardReader], held: dict[str, int], device: torch.device
) -> tuple[list[Source], float]:
    """The plan's sources, held where the whole ones will be, and the seconds that decoding an image to hold it took;
    arrays take no time worth counting."""
    sources, images, seconds = [], 0, 0.0
    decoding = Decoding(recipe.augment, device, recipe.loader)
    for stream, reader in zip(plan.streams, readers, strict=False):
        origin, kept = Origin(reader, stream_faults(recipe, stream)), None
        if held[stream.name]:
            if reader.is_encoded:  # the first images also wait for DALI to begin
                hold(origin, stream.rows[:1], decoding)
            started = time.perf_counter()
            kept = hold(origin, stream.rows, decoding)
            if reader.is_encoded:
                images, seconds = images + len(kept.rows), seconds + time.perf_counter() - started
        sources.append(Source(reader, kept, origin.faults))
    return sources, seconds / max(images, 1)


def _measured_steps(
    recipe: Recipe,
    workbench: Workbench,
    plan: Plan,
    sources: Sequence[Source],
    members: Sequence[Member],
    compiled: bool,
) -> tuple[float, float, int]:
    """Seconds of the first step, which builds and compiles, with those that precede a capture where steps are captured;
    and of one of those after it; and how many those were. `compiled`: what finishes images is."""
    device = workbench.device
    made = workbench.batches(plan, sources, recipe.augment, device, loader=recipe.loader, compiled=compiled)
    with closing(made) as batches:
        started = time.perf_counter()
        for _ in range(1 if workbench.graphs is None else WARM_UP + 1):  # the last of them is captured
            step(members, next(batches))
        _wait(device)
        first_s, started, steps = time.perf_counter() - started, time.perf_counter(), 0
        while steps < FEWEST_STEPS or (steps < MOST_STEPS and time.perf_counter() - started < MEASURED_S):
            step(members, next(batches))
            steps += 1
        _wait(device)
        return first_s, (time.perf_counter() - started) / steps, steps


def _measured_scoring(
    recipe: Recipe,
    sets: Sets,
    rows: np.ndarray,
    target: np.ndarray,
    members: Sequence[Member],
    is_held: bool,
    device: torch.device,
) -> float:
    """Seconds for an image of the test by all members."""
    source = Source(sets.nominal)
    if is_held:
        source = replace(source, held=hold(source.origin, rows, Decoding(recipe.augment, device, recipe.loader)))
    started = time.perf_counter()
    batches = evaluation_batches(source, rows, target, recipe.augment, device, loader=recipe.loader)
    score_batches([(member.model, member.objective) for member in members], batches)
    return (time.perf_counter() - started) / len(rows)


def _held_images(
    plans: Sequence[Plan],
    pairs: Sequence[tuple[int, str]],
    readers: Sequence[ShardReader],
    held: dict[str, int],
    test: int,
) -> int:
    """Images to be decoded and held one after another: each class's own, the OE of each seed, the test's once."""
    images = test if held["test"] and readers[0].is_encoded else 0
    for number, plan in enumerate(plans):
        is_new_seed = number == 0 or pairs[number][0] != pairs[number - 1][0]
        streams = list(zip(plan.streams, readers, strict=False))[: None if is_new_seed else 1]
        images += sum(len(stream.rows) for stream, reader in streams if held[stream.name] and reader.is_encoded)
    return images


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

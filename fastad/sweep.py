"""An experiment from its first group to its last: checked, queued, given to warm workers, and shown.

Owns the driver: what must be there before, the workers' deaths, the end. Trainings are `fastad.sweep_worker`'s.
Use: `sweep(find_experiment("smoke"), shards=home, out=Path("runs"), room=Room()).aside`.
"""

import inspect
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from fastad.errors import FastadError, Interrupted
from fastad.experiment import Experiment, class_names, point_recipe
from fastad.files import alone, make_folder
from fastad.listing import converter_names, find_converter
from fastad.manifest import MANIFEST, open_set
from fastad.progress import say
from fastad.recipe import Recipe
from fastad.run import DEVICES, check_recipe, slug
from fastad.sweep_pool import Ended, Pool, actors, processes, slots_on_cpu, slots_on_gpus
from fastad.sweep_presence import driver_name, present
from fastad.sweep_queue import FAILURES, Group, Queue
from fastad.sweep_watch import Screen, Watch
from fastad.sweep_worker import Work
from fastad.train import never
from fastad.view import classes_in

# Of workers that end before they are ready, as where a package is missing, so many in a row end the sweep.
FALSE_STARTS = 3
LOOK_EVERY_S = 0.5
# A Ray cluster may have grown.
FILL_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Room:
    """What a sweep may use. `device`: auto, cpu or cuda. On GPUs: `gpus` of them, None for all, with `workers_per_gpu`;
    on the CPU: `workers`, None for as many as there is room for. `ray`: the address of a cluster to work on."""

    device: str = "auto"
    gpus: int | None = None
    workers_per_gpu: int = 1
    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended: its groups and trainings, and those left aside, by label, with the log of the last failure."""

    groups: int
    trainings: int
    aside: Mapping[str, Path]


def groups_of(experiment: Experiment, shards: Path, changes: Iterable[str] = ()) -> list[Group]:
    """All groups, those of one point and seed next to each other, as they share their OE images."""
    recipes = recipes_of(experiment, changes)
    names = class_names(experiment, known_classes(recipes[0].data.nominal, shards))
    return [
        Group(recipe, name, seed) for recipe in recipes for seed in range(1, experiment.seeds + 1) for name in names
    ]


def recipes_of(experiment: Experiment, changes: Iterable[str] = ()) -> list[Recipe]:
    """The recipe of each point."""
    changes = tuple(changes)
    return [point_recipe(experiment, point, changes) for point in experiment.points()]


def known_classes(name: str, shards: Path) -> Sequence[str]:
    """The classes that may be nominal, from a set's shards or, before it is converted, from its converter."""
    if (shards / name / MANIFEST).is_file():
        return classes_in("train", open_set(shards / name))
    classes = find_converter(name).classes if name in converter_names() else None
    if classes is None:
        raise FastadError(f"the classes of {name} are known once it is converted: fastad shard {name} RAW")
    return classes


def missing_sets(recipes: Iterable[Recipe], shards: Path) -> dict[str, str]:
    """The sets that the recipes need and the shard home lacks, each with the command that makes it."""
    needed = dict.fromkeys(name for recipe in recipes for name in recipe.data.sets)
    missing = {}
    for name in needed:
        if not (shards / name / MANIFEST).is_file():
            if name in converter_names():
                what = name + " RAW" * ("raw" in inspect.signature(find_converter(name).samples).parameters)
            else:
                what = f"SET RAW --name {name}"
            missing[name] = f"fastad shard {what} --out {shards}"
    return missing


def folder_of(experiment: Experiment, out: Path) -> Path:
    """Where a sweep keeps what is not of a single run."""
    return out / slug(experiment.name) / ".sweep"


def sweep(
    experiment: Experiment,
    *,
    shards: Path,
    out: Path,
    changes: Iterable[str] = (),
    room: Room | None = None,
    retry: bool = False,
    stop: Callable[[], int] = never,
) -> Outcome:
    """Trains all groups that are not finished, on as many workers as there is room for; again to continue.

    What failed three times is left aside, also by later sweeps unless they `retry` it. Raises `FastadError` for what
    the user can mend, before anything is trained, and `Interrupted` once `stop()` is not 0 and all workers have kept
    what they did.
    """
    room = room or Room()
    groups = groups_of(experiment, shards, changes)
    recipes = list(dict.fromkeys(group.recipe for group in groups))
    if missing := missing_sets(recipes, shards):
        raise FastadError(f"{experiment.name} needs sets that {shards} lacks: {'; '.join(missing.values())}")
    folder = folder_of(experiment, out)
    make_folder(folder)
    with alone(folder / "recipes.lock"):
        for recipe in recipes:
            check_recipe(folder / f"{slug(recipe.name)}.toml", recipe)
    with Queue(groups, out, folder) as queue:
        if retry:
            queue.forgive()
        if due := queue.due():
            found = layout(room, len(due))
            work = Work(tuple(groups), shards.resolve(), out.resolve(), folder.resolve(), found.device, found.threads)
            watch = Watch(experiment.name, groups, out, folder)
            with present(folder, driver_name()) as beat, _workers(work, room, found) as pool:
                _drive(pool, queue, watch, work, stop, beat)
        trainings = sum(len(group.recipe.objectives) for group in groups)
        return Outcome(len(groups), trainings, queue.aside())


@dataclass(frozen=True, slots=True)
class Layout:
    """How many workers of how many threads work where: `device` is cpu or cuda; `gpus` is 0 on the CPU."""

    device: str
    gpus: int
    workers: int
    threads: int


def layout(room: Room, due: int) -> Layout:
    """What the room holds on this machine for so many groups; raises `FastadError` for more GPUs than there are.

    On the CPU each worker has one thread, or `$OMP_NUM_THREADS`: then nothing depends on how many workers there are, as
    it could, since threads share out sums.
    """
    device, cores = _device(room), len(os.sched_getaffinity(0))
    if device == "cuda":
        there = torch.cuda.device_count()
        if (gpus := room.gpus or there) > there and room.ray is None:
            raise FastadError(f"--gpus {gpus}: PyTorch finds {there} here, ask for no more")
        workers = gpus * room.workers_per_gpu
        return Layout(device, gpus, min(due, workers), max(1, cores // max(1, workers)))
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else 1
    return Layout(device, 0, min(due, room.workers or max(1, cores // threads)), threads)


def _workers(work: Work, room: Room, found: Layout) -> AbstractContextManager[Pool]:
    where = "GPUs" if found.device == "cuda" else "the CPU"
    threads = f"{found.threads} thread{'s' * (found.threads > 1)} each"
    if room.ray is not None:
        say(f"workers: on {where} of the Ray cluster at {room.ray}, {threads}")
        return actors(work, room.ray, workers=room.workers, workers_per_gpu=room.workers_per_gpu)
    say(f"workers: {found.workers} on {where}, {threads}")
    if found.device == "cuda":
        slots = slots_on_gpus(found.gpus, room.workers_per_gpu, found.threads)[: found.workers]
    else:
        slots = slots_on_cpu(found.workers, found.threads)
    return processes(work, slots)


def _device(room: Room) -> str:
    """ "cpu" or "cuda"; on a Ray cluster "auto" is what this machine has."""
    if room.device not in DEVICES:
        raise FastadError(f"unknown device {room.device!r}: use {', '.join(DEVICES)}")
    found = torch.cuda.is_available()
    if room.device == "cuda" and not found and room.ray is None:
        raise FastadError("--device cuda asked, but PyTorch finds no CUDA GPU: use --device cpu, or check nvidia-smi")
    if room.device == "auto":
        return "cuda" if found else "cpu"
    return room.device


def _drive(
    pool: Pool, queue: Queue, watch: Watch, work: Work, stop: Callable[[], int], beat: Callable[[], None]
) -> None:
    """Watches the workers until all have ended, starting others for those that die while groups are due."""
    pool.fill()
    asked, false_starts, filled_at = 0, 0, time.monotonic()
    watch.read()
    with Screen(watch) as screen:
        while pool.names:
            ended = pool.ended(LOOK_EVERY_S)
            beat()
            watch.read()
            for worker, how in ended:
                if how is not None:
                    _note_death(queue, watch, work, Ended(worker, how))
                    false_starts = 0 if worker in watch.ready else false_starts + 1
                watch.doing.pop(worker, None)
                watch.ready.discard(worker)
            if false_starts >= FALSE_STARTS:
                raise FastadError(f"workers end before they are ready: see {work.log(ended[-1].name)}")
            if stop() and not asked:
                asked = stop()
                pool.stop()
            if not asked and (any(how for _, how in ended) or time.monotonic() - filled_at >= FILL_EVERY_S):
                filled_at = time.monotonic()
                if queue.due():
                    pool.fill()
            note = "stopping: each worker ends its step and keeps what it did" if asked else ""
            screen.show(pool.names, note)
        screen.show((), now=True)
    if asked:
        raise Interrupted(asked)


def _note_death(queue: Queue, watch: Watch, work: Work, ended: Ended) -> None:
    """Notes the group that a worker had when it died as failed, if the worker has not said so itself."""
    group = watch.doing.get(ended.name)
    say(f"{ended.name} {ended.how}{f' at {group.label}' if group else ''}")
    if group is not None and group in queue.due():
        watch.failures += 1
        queue.fail(group, f"the worker {ended.name} {ended.how}\n\nWhat led to it is in {work.log(ended.name)}.")


def aside_line(outcome: Outcome) -> str:
    """What was left aside, in a line; empty if nothing was."""
    if not outcome.aside:
        return ""
    whys = Counter(path.read_text().splitlines()[0] for path in outcome.aside.values())
    why, count = whys.most_common(1)[0]
    log = next(path for path in outcome.aside.values() if path.read_text().startswith(why))
    return (
        f"{len(outcome.aside)} groups failed {FAILURES} times and were left aside ({count} of them: {why}; "
        f"{log}): --retry tries them again"
    )

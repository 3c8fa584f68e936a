"""One warm worker of a sweep: it takes groups from the queue and trains them, until none is left.

Owns the loop and what it tells of itself; starting workers and watching them is `fastad.sweep`'s.
Use: `work_on(work, "node7.4711.0", stopping)`, in a process of its own.

A worker tells in `.sweep/workers/<name>.jsonl`, a line an event: {"at": seconds since 1970, "event": "ready", "start",
"done", "failed" or "stopped", "group": …}; what it would print is in `<name>.log` beside it.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastad.errors import FastadError, Interrupted
from fastad.files import append_line
from fastad.run import choose_device, environment
from fastad.shared_images import sharing
from fastad.sweep_queue import Group, Queue
from fastad.train import train
from fastad.warm import Warm

# How often a worker without a group looks whether another's has become free.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What all workers of a sweep are told. `folder`: its `.sweep`; `threads`: of each worker, on the CPU."""

    groups: tuple[Group, ...]
    shards: Path
    out: Path
    folder: Path
    device: str
    threads: int

    def events(self, name: str) -> Path:
        """Where the worker of that name tells what it does."""
        return self.folder / "workers" / f"{name}.jsonl"

    def log(self, name: str) -> Path:
        """What it would print."""
        return self.folder / "workers" / f"{name}.log"


def work_on(work: Work, name: str, stopping: threading.Event) -> None:
    """Trains groups until all are finished or left aside, or `stopping` is set, then after the step under way.

    A group that fails with a `FastadError` is noted as failed, and the next one is taken; after any other error, which
    may have left the device unusable, it is noted as well, and raised.
    """
    torch.set_num_threads(work.threads)
    work.events(name).parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(work.device)
    warm = Warm(groups=len(work.groups), shares=True)
    with sharing(), Queue(work.groups, work.out, work.folder) as queue:
        _tell(work, name, "ready", device=environment(device)["device"], threads=work.threads, pid=os.getpid())
        while not stopping.is_set():
            group = queue.take()
            if group is None:
                if not queue.due():
                    return
                stopping.wait(LOOK_EVERY_S)
                continue
            started = time.perf_counter()
            _tell(work, name, "start", group)
            try:
                results = train(
                    group.recipe,
                    shards=work.shards,
                    out=work.out,
                    device=device,
                    classes=[group.class_name],
                    seeds=[group.seed],
                    stop=lambda: signal.SIGTERM if stopping.is_set() else 0,
                    warm=warm,
                )
            except Interrupted:
                _tell(work, name, "stopped", group)
            except Exception as error:
                why = str(error) if isinstance(error, FastadError) else f"{type(error).__name__}: {error}"
                queue.fail(group, f"{why}\n\n{traceback.format_exc()}\nWhat led to it is in {work.log(name)}.")
                _tell(work, name, "failed", group, why=why)
                if not isinstance(error, FastadError):
                    raise
            else:
                seconds = time.perf_counter() - started
                train_s = max(result.seconds["train"] for result in results)
                told = {"seconds": round(seconds, 3), "train_s": train_s, "trainings": len(results)}
                _tell(work, name, "done", group, **told, steps=results[0].counts["steps"])
            finally:
                queue.leave(group)


def _tell(work: Work, name: str, event: str, group: Group | None = None, **more: Any) -> None:
    told = {"at": round(time.time(), 3), "event": event, **({"group": group.name} if group else {}), **more}
    append_line(work.events(name), json.dumps(told))


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Whatever this process prints goes to the file, also what libraries do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [(number, os.dup(number)) for number in (1, 2)]
    with open(path, "ab") as file:
        for number, _ in before:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in before:
            os.dup2(copy, number)
            os.close(copy)

"""What a sweep costs beside its training steps, against a process for each training, measured in the same run.

Owns the measurement; everything that it times is what `fastad sweep` and `fastad train` do.
Use: `measure_sweep(device, groups=64, singles=4)["outside_share"]`.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastad.errors import FastadError
from fastad.experiment import Experiment
from fastad.progress import say
from fastad.run import environment
from fastad.shard import convert
from fastad.sweep import folder_of, groups_of
from fastad.sweep_queue import Group
from fastad.sweep_watch import Watch
from fastad.sweep_worker import Work, work_on

# The first groups open sets, hold images and, on a GPU, compile.
WARM_UP = 2

# Half of the recipe's epochs.
SHORT = ("optim.epochs=20", "optim.milestones=[12, 17]")


def measure_sweep(device: torch.device, groups: int, singles: int) -> dict[str, Any]:
    """Trains that many groups of two objectives on digits on one warm worker of one thread, then `singles` of the same
    trainings with a process for each.

    Returns `outside_share`, the share of the wall time after the first groups that is not spent on training steps, and
    `warm_ratio`, trainings per hour of the worker to those of processes, with both rates.
    """
    with TemporaryDirectory(prefix="fastad-bench-") as folder:
        home, out = Path(folder) / "shards", Path(folder) / "runs"
        for name in ("digits", "letters"):
            convert(name, None, home)
        experiment = Experiment(
            name="bench",
            recipe="digits",
            objectives=("hsc", "bce"),
            seeds=(groups + WARM_UP - 1) // 10 + 1,
            classes=(),
            overrides=SHORT,
            grid=(),
        )
        listed = groups_of(experiment, home)[: groups + WARM_UP]
        work = Work(tuple(listed), home, out, folder_of(experiment, out), device.type, torch.get_num_threads())
        say(f"{len(listed)} groups on one warm worker")
        work_on(work, "bench", threading.Event())
        watch = Watch(experiment.name, listed, out, work.folder)
        watch.read()
        if len(watch.measured) != len(listed):
            raise FastadError(f"{len(listed) - len(watch.measured)} groups failed")
        measured = watch.measured[WARM_UP:]
        wall_s = watch.measured[-1].at - watch.measured[WARM_UP - 1].at
        train_s = sum(each.train_s for each in measured)
        trainings = sum(len(each.group.recipe.objectives) for each in measured)
        say(f"{singles} trainings in a process each")
        alone_s = [_alone_s(group, home, Path(folder) / "alone", device) for group in listed[:singles]]
    warm, alone = 3600 * trainings / wall_s, 3600 / median(alone_s)
    return {
        "outside_share": round(1 - train_s / wall_s, 4),
        "warm_ratio": round(warm / alone, 2),
        "warm_trainings_per_h": round(warm, 1),
        "process_trainings_per_h": round(alone, 1),
        "groups": len(measured),
        "objectives_a_group": len(experiment.objectives),
        "group_s": round(median(each.seconds for each in measured), 3),
        "each_process_s": [round(seconds, 2) for seconds in alone_s],
        "threads": torch.get_num_threads(),
        "environment": environment(device),
    }


def _alone_s(group: Group, home: Path, out: Path, device: torch.device) -> float:
    """Seconds of `fastad train` for one objective of the group, from start to end."""
    command = [sys.executable, "-m", "fastad", "train", "digits", "--class", group.class_name]
    command += [argument for change in SHORT for argument in ("--set", change)]
    command += ["--seed", str(group.seed), "--objective", group.recipe.objectives[0], "--device", device.type]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--shards", str(home), "--out", str(out)],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    return time.perf_counter() - started

"""What stands before the first step of a training, alike where it is only estimated: everything is checked, nothing is
written.

Owns the order of the checks. What is asked for and found is said here once, so that `fastad train` and its `--dry-run`
say the same. Use: `prepared = prepare(recipe, shards=home, out=out, device=device, warm=Warm())`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastad.errors import FastadError
from fastad.group import Workbench
from fastad.log import writer_of_boards
from fastad.objectives import Objective
from fastad.pixels import repays_compiling
from fastad.plan import Plan
from fastad.progress import say
from fastad.ranks import of_first
from fastad.recipe import Recipe
from fastad.run import Run, check_run, locate
from fastad.sets import Sets
from fastad.training import asked
from fastad.warm import Warm


@dataclass(frozen=True, eq=False)
class Prepared:
    """The open sets, what trains on them, the objectives that are wanted, and for each pair of seed and class (`pairs`)
    the runs of all of them, begun or not."""

    sets: Sets
    workbench: Workbench
    wanted: list[Objective]
    pairs: list[tuple[int, str]]
    runs: list[list[Run]]


def prepare(
    recipe: Recipe,
    *,
    shards: Path,
    out: Path,
    device: torch.device,
    classes: Sequence[str] = (),
    objectives: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
    warm: Warm,
) -> Prepared:
    """What `fastad.train.train` needs for these arguments of its own; raises `FastadError` for what the user can
    mend."""
    sets = warm.sets(recipe, shards, device)
    workbench = warm.workbench(recipe, sets.shape_hwc, device)
    wanted, pairs = asked(recipe, sets, classes, objectives, seeds)
    if recipe.train.tensorboard:
        writer_of_boards()
    runs = [[locate(out, recipe, name, objective.name, seed) for objective in wanted] for seed, name in pairs]
    of_first(_check_all, runs)
    if not sets.oe and (needing := [objective.name for objective in wanted if objective.uses_oe]):
        say(f"no OE set: {', '.join(needing)} will see nominal images only")
    return Prepared(sets, workbench, wanted, pairs, runs)


def _check_all(runs_of: Sequence[Sequence[Run]]) -> None:
    """Raises `FastadError` if a run's folder is another's, one of those that are asked for or one that is there."""
    of_folder: dict[Path, Run] = {}
    for run in itertools.chain.from_iterable(runs_of):
        if (other := of_folder.setdefault(run.folder, run)) is not run:
            raise FastadError(
                f"{run.folder} would hold the runs of {other.class_name} and of {run.class_name}: choose another --out "
                "for one of them"
            )
        check_run(run)


def finishes_compiled(recipe: Recipe, sets: Sets, plan: Plan, device: torch.device) -> bool:
    """Whether `fastad.pixels` is compiled in a training of that plan, whatever the network's steps are."""
    if recipe.train.compile == "auto":
        height, width, _ = sets.shape_hwc
        return repays_compiling(recipe.augment, (height, width), device, plan.steps * plan.batch_size)
    return recipe.train.compile == "on"

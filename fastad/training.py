"""What is to be trained, and is: a task, which is one class and seed, and the runs of its objectives while they train.

Owns what is asked for, and what an epoch tells of a model's health; what is done about it is `fastad.train`'s.
Use: `for told in read_epoch(group, plan): ...`, once an epoch.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastad.group import Member, Workbench
from fastad.objectives import Objective, find
from fastad.plan import Plan
from fastad.ranks import share
from fastad.recipe import Recipe
from fastad.run import Run
from fastad.sets import Sets, make_plan, one_vs_rest
from fastad.tune import Tuner
from fastad.verdict import Verdict
from fastad.view import classes_in


@dataclass(frozen=True, eq=False)
class Task:
    """One class and seed of a recipe: its batches, what they are made of, and what trains on them. `label` shows it."""

    recipe: Recipe
    sets: Sets
    workbench: Workbench
    tuner: Tuner
    plan: Plan
    label: str


@dataclass(eq=False)
class Training:
    """A run while it trains: how far it is, what it took in seconds, its health over all epochs that are over, and the
    images of each stream that an earlier process could not decode, with the reasons."""

    run: Run
    member: Member
    step: int = 0
    train_s: float = 0.0
    stall_s: float = 0.0
    guard_hits: int = 0
    nonfinite_losses: int = 0
    largest_second_moment: float = 0.0
    diverged_at_epoch: int | None = None
    faults: dict[str, dict[int, str]] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def health(self) -> dict[str, float | None]:
        """As `RunResult` has it."""
        return {
            "guard_hits": self.guard_hits,
            "nonfinite_losses": self.nonfinite_losses,
            "largest_second_moment": finite(self.largest_second_moment),
        }


def asked(
    recipe: Recipe, sets: Sets, classes: Sequence[str], objectives: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Objective], list[tuple[int, str]]]:
    """The objectives and the pairs of seed and class that are to be trained, each once; no classes mean all that
    have training images, no objectives the recipe's. Raises `FastadError` where one of them cannot be."""
    wanted = [find(name) for name in dict.fromkeys(objectives or recipe.objectives)]
    pairs = list(
        itertools.product(dict.fromkeys(seeds), dict.fromkeys(classes or classes_in("train", sets.nominal.manifest)))
    )
    for seed, class_name in pairs:
        one_vs_rest(sets, class_name)
        make_plan(recipe, sets, class_name, seed, any_uses_oe(wanted)).check_share(share())
    return wanted, pairs


def any_uses_oe(objectives: Sequence[Objective]) -> bool:
    """Whether the batches of these objectives have OE images."""
    return any(objective.uses_oe for objective in objectives)


class Epoch(NamedTuple):
    """What an epoch tells of a model: its mean loss; how often an image was at the guard of 1e-9 in its objective's
    formula; steps whose loss was not finite; and Adam's largest second moment, which does not fall fast again: where
    1 / ‖z‖² has once been huge, steps are as good as none from then on, with no loss that tells it."""

    loss: float
    guard_hits: int
    nonfinite_losses: int
    largest_second_moment: float


def read_epoch(trainings: Sequence[Training], plan: Plan) -> list[Epoch]:
    """What the epoch that ends tells of each, added up in it too; the host waits for the device here, once. Sums begin
    anew."""
    members = [training.member for training in trainings]
    numbers = torch.stack([torch.cat((member.sums, largest_second_moment(member).reshape(1))) for member in members])
    epochs = []
    for training, (loss, at_guard, nonfinite, moment) in zip(trainings, numbers.tolist(), strict=True):
        told = Epoch(loss / plan.steps_per_epoch, round(at_guard * plan.batch_size), int(nonfinite), moment)
        training.guard_hits += told.guard_hits
        training.nonfinite_losses += told.nonfinite_losses
        training.largest_second_moment = moment
        training.member.sums.zero_()
        epochs.append(told)
    return epochs


def largest_second_moment(member: Member) -> torch.Tensor:
    """Of Adam's estimates, the largest of all weights', on the device; NaN if one of them is."""
    moments = [state["exp_avg_sq"].max() for state in member.optimizer.state.values()]
    return torch.stack(moments).max() if moments else torch.zeros_like(member.sums[0])


def finite(value: float) -> float | None:
    """The number, or None, as JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None

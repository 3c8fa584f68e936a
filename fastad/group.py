"""A group: one or more objectives on the same batches, each with its own parameters and optimiser.

Owns models, precision and the step; how it is executed is asked of `fastad.execution`, and how it becomes a CUDA graph
is `fastad.step_graph`'s. Which batches, how long and what is kept is `fastad.train`'s.
Use: `member = workbench.member(find("hsc"), 1, workbench.execution(steps))`, then `step([member], batch)`.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastad.compiled import compiled_apart
from fastad.errors import FastadError
from fastad.execution import MEASURED_FROM_STEPS, Execution, chosen
from fastad.memory import keep_freed_memory
from fastad.networks import Detector, build, in_memory_format
from fastad.objectives import Objective, find
from fastad.pipeline import Batch, Unmade, step_batches, train_batches
from fastad.ranks import average, over_whole_batches, share
from fastad.recipe import OptimSpec, Recipe
from fastad.run import environment
from fastad.step_graph import CudaCapture, StepGraphs

# (images, target) → mean loss, and the share of the images that are at the objective's guard.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Member:
    """One objective of a group while it trains. `sums` float32 [3], on the device, over the steps since it was last set
    to 0: the mean loss, the share of images at the objective's guard, and 1 where the loss is not finite. `graphs`:
    what captures its steps, shared by all members of a workbench; None where steps are not captured."""

    objective: Objective
    model: Detector
    loss: Loss
    optimizer: torch.optim.Adam
    sums: Tensor
    execution: Execution
    graphs: StepGraphs | None = None

    def state(self) -> dict[str, Any]:
        """Everything that training has changed."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            **self.execution._asdict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned, on another device too: how the optimiser steps stays this member's own."""
        self.model.load_state_dict(state["model"])
        own, saved = self.optimizer.state_dict()["param_groups"], state["optimizer"]
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.load_state_dict({**saved, "param_groups": own})
        _put_learning_rate(self.optimizer, lr, saved["param_groups"][0]["lr"])
        self.sums.copy_(state["sums"])
        if self.graphs is not None:
            self.graphs.clear()


def step(members: Iterable[Member], batch: Batch | Unmade) -> None:
    """One optimisation step of every member on one batch, or on this rank's share of it; the host does not wait for the
    device."""
    members = tuple(members)
    work = functools.partial(_step, members)
    if members and members[0].graphs is not None:
        members[0].graphs.step(work, members, batch)
    else:
        made = batch.made() if isinstance(batch, Unmade) else batch
        work(made.images, made.target)


def _step(members: Iterable[Member], images: Tensor, target: Tensor) -> None:
    for member in members:
        loss, at_guard = member.loss(images, target)
        loss.backward()
        told = average(member.model.parameters(), torch.stack((loss.detach(), at_guard)))
        member.optimizer.step()
        member.optimizer.zero_grad()
        member.sums[:2] += told
        member.sums[2] += ~torch.isfinite(told[0])


def set_learning_rate(member: Member, optim: OptimSpec, epoch: int) -> float:
    """Sets and returns the learning rate of an epoch: a tenth for every milestone that has come."""
    lr = optim.lr * 0.1 ** sum(milestone <= epoch for milestone in optim.milestones)
    _put_learning_rate(member.optimizer, member.optimizer.param_groups[0]["lr"], lr)
    return lr


def _put_learning_rate(optimizer: torch.optim.Adam, place: Tensor | float, lr: Tensor | float) -> None:
    """Sets the learning rate: where its place is a tensor, in it, as a captured step reads it there."""
    for parameters in optimizer.param_groups:
        parameters["lr"] = place.fill_(lr) if isinstance(place, Tensor) else float(lr)


class Workbench:
    """Warm models: each objective's module is made and compiled once, and re-initialised in place for every run."""

    def __init__(self, recipe: Recipe, shape_hwc: tuple[int, int, int], device: torch.device) -> None:
        self.recipe = recipe
        self.shape_hwc = shape_hwc
        self.device = device
        self.precision = precision_on(recipe.train.precision, device)
        on_cuda = device.type == "cuda"
        captures = on_cuda and share().ranks == 1 and recipe.train.compile != "off"
        self.graphs = StepGraphs(CudaCapture()) if captures else None
        if not on_cuda:
            keep_freed_memory()
        self._models: dict[tuple[str, str], Detector] = {}
        self._losses: dict[tuple[str, Execution], Loss] = {}
        self._chosen: dict[bool, Execution] = {}

    def member(self, objective: Objective, seed: int, execution: Execution) -> Member:
        """A member with the seed's fresh parameters; it is the only valid one of its objective until the next call."""
        recipe = self.recipe
        fresh = build(recipe.network, self.shape_hwc, objective.output_width, seed, recipe.network_weights)
        place = objective.name, execution.memory_format
        if place not in self._models:
            over_whole_batches(fresh)
            fresh.autocast_dtype = torch.bfloat16 if self.precision == "bfloat16" else None
            self._models[place] = in_memory_format(fresh, execution.memory_format).to(self.device)
        else:
            self._models[place].load_state_dict(fresh.state_dict())
        model = self._models[place]
        if (objective.name, execution) not in self._losses:
            self._losses[objective.name, execution] = self._loss(model, objective, execution.compiled)
        optim, on_cuda = self.recipe.optim, self.device.type == "cuda"
        return Member(
            objective=objective,
            model=model.train(),
            loss=self._losses[objective.name, execution],
            optimizer=torch.optim.Adam(
                model.parameters(),
                lr=torch.tensor(optim.lr, device=self.device) if on_cuda else optim.lr,
                weight_decay=optim.weight_decay,
                fused=True,
                capturable=on_cuda and self.graphs is not None,
            ),
            sums=torch.zeros(3, device=self.device),
            execution=execution,
            graphs=self.graphs,
        )

    @property
    def batches(self) -> Callable[..., Generator[Batch | Unmade, None, None]]:
        """`train_batches` or `step_batches`: what makes batches for steps of this workbench's members. Captured steps
        make images themselves; before others, what images take is seen as waiting for them."""
        return train_batches if self.graphs is None else step_batches

    def release(self) -> None:
        """Forgets captured steps, and so does not keep the images that their batches are made of."""
        if self.graphs is not None:
            self.graphs.clear()

    def _loss(self, model: Detector, objective: Objective, compiled: bool) -> Loss:
        """An objective without OE sees the nominal images only, in a batch of their own."""
        seen = None if objective.uses_oe else self.recipe.data.batch_nominal // share().ranks

        def loss(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            each = objective.loss(model(images[:seen]), target[:seen])
            at_guard = (each.detach() > objective.guard_loss) & (target[:seen] > 0)
            return each.mean(), at_guard.float().mean()

        return compiled_apart(loss, fullgraph=True) if compiled else loss

    def execution(self, steps: int) -> Execution:
        """How a run of that many steps is executed: decided by the recipe, the run's own length and what was once
        measured on this machine, so that neither grouping nor resuming changes a number.

        Several processes of one training do not measure: each step of theirs waits for the others, and one that found
        in its cache what another has to measure would not come.
        """
        measured = self.device.type == "cpu" and steps >= MEASURED_FROM_STEPS and share().ranks == 1
        if measured not in self._chosen:
            key = self._key() if measured else None
            self._chosen[measured] = chosen(self.recipe.train, self.device, key, self._timed_step)
        return self._chosen[measured]

    @property
    def _batch_size(self) -> int:
        return self.recipe.data.batch_nominal + self.recipe.data.batch_oe

    def _key(self) -> dict[str, Any]:
        """What the time of a step depends on."""
        found = environment(self.device)
        return {
            "processor": found["processor"],
            "threads": torch.get_num_threads(),
            "torch": found["packages"].get("torch"),
            "network": self.recipe.network,
            "images": [self._batch_size, *self.shape_hwc],
        }

    def _timed_step(self, execution: Execution) -> Callable[[], None]:
        """A step of one objective, whatever a run's are, on images of random values."""
        images = torch.rand(self._batch_size, *self.shape_hwc).permute(0, 3, 1, 2)
        batch = Batch(images, (torch.arange(len(images)) % 2).float(), np.arange(len(images)))
        member = Workbench(self.recipe, self.shape_hwc, self.device).member(find("bce"), 0, execution)
        return lambda: step([member], batch)


def precision_on(choice: str, device: torch.device) -> str:
    """ "bfloat16" or "float32": what the bodies of networks compute in."""
    # Older GPUs emulate it, which is slower than float32.
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if choice == "bfloat16" and not has_bfloat16:
        raise FastadError("train.precision=bfloat16 needs a GPU that has it: use float32 or auto")
    if choice == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return choice

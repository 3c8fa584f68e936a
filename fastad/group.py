"""A group: one or more objectives on the same batches, each with its own parameters and optimiser.

Owns models, precision and the step; whether it is compiled on a CPU is asked of `fastad.compiling`, and how it becomes
a CUDA graph is `fastad.step_graph`'s. Which batches, how long and what is kept is `fastad.train`'s.
Use: `member = workbench.member(find("hsc"), seed=1, compiled=False)`, then `step([member], batch)`.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastad.compiled import compiled_apart
from fastad.compiling import COMPILE_CPU_FROM_STEPS, compiling_pays
from fastad.errors import FastadError
from fastad.memory import keep_freed_memory
from fastad.networks import Detector, build
from fastad.objectives import Objective, find
from fastad.pipeline import Batch, Unmade, step_batches, train_batches
from fastad.pixels import has_compiler
from fastad.progress import say
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
    compiled: bool
    graphs: StepGraphs | None = None

    def state(self) -> dict[str, Any]:
        """Everything that training has changed."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            "compiled": self.compiled,
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
        self._models: dict[str, Detector] = {}
        self._losses: dict[tuple[str, bool], Loss] = {}
        self._compiling_pays: bool | None = None

    def member(self, objective: Objective, seed: int, compiled: bool) -> Member:
        """A member with the seed's fresh parameters; it is the only valid one of its objective until the next call."""
        recipe = self.recipe
        fresh = build(recipe.network, self.shape_hwc, objective.output_width, seed, recipe.network_weights)
        if objective.name not in self._models:
            over_whole_batches(fresh)
            fresh.autocast_dtype = torch.bfloat16 if self.precision == "bfloat16" else None
            self._models[objective.name] = fresh.to(self.device)
        else:
            self._models[objective.name].load_state_dict(fresh.state_dict())
        model = self._models[objective.name]
        if (objective.name, compiled) not in self._losses:
            self._losses[objective.name, compiled] = self._loss(model, objective, compiled)
        optim, on_cuda = self.recipe.optim, self.device.type == "cuda"
        return Member(
            objective=objective,
            model=model.train(),
            loss=self._losses[objective.name, compiled],
            optimizer=torch.optim.Adam(
                model.parameters(),
                lr=torch.tensor(optim.lr, device=self.device) if on_cuda else optim.lr,
                weight_decay=optim.weight_decay,
                fused=True,
                capturable=on_cuda and self.graphs is not None,
            ),
            sums=torch.zeros(3, device=self.device),
            compiled=compiled,
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

    def compiles(self, steps: int) -> bool:
        """Whether a run of that many steps is compiled: decided by the recipe, the run's own length and what was once
        measured on this machine, so that neither grouping nor resuming changes a number."""
        choice, on_cpu = self.recipe.train.compile, self.device.type == "cpu"
        if choice == "off" or not on_cpu:
            return choice != "off"
        # Several processes could not measure without each other.
        if choice == "auto" and (steps < COMPILE_CPU_FROM_STEPS or share().ranks > 1):
            return False
        if not has_compiler():
            if choice == "on":
                raise FastadError("train.compile=on needs a C++ compiler on the CPU: install g++, or use auto")
            say("no C++ compiler found: training is not compiled")
            return False
        if choice == "auto" and self._compiling_pays is None:
            self._compiling_pays = self._measured()
        return choice == "on" or bool(self._compiling_pays)

    def _measured(self) -> bool:
        """Whether compiled steps are faster here, found by those of one objective, whatever a run's are."""
        height, width, channels = self.shape_hwc
        batch_size = self.recipe.data.batch_nominal + self.recipe.data.batch_oe
        images = torch.rand(batch_size, height, width, channels).permute(0, 3, 1, 2)
        batch = Batch(images, (torch.arange(batch_size) % 2).float(), np.arange(batch_size))

        def made(compiled: bool) -> Callable[[], None]:
            member = Workbench(self.recipe, self.shape_hwc, self.device).member(find("bce"), 0, compiled)
            return lambda: step([member], batch)

        found = environment(self.device)
        key = {
            "processor": found["processor"],
            "threads": torch.get_num_threads(),
            "torch": found["packages"].get("torch"),
            "network": self.recipe.network,
            "images": [batch_size, *self.shape_hwc],
        }
        return compiling_pays(key, {"eager": functools.partial(made, False), "compiled": functools.partial(made, True)})


def precision_on(choice: str, device: torch.device) -> str:
    """ "bfloat16" or "float32": what the bodies of networks compute in."""
    # Older GPUs emulate it, which is slower than float32.
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if choice == "bfloat16" and not has_bfloat16:
        raise FastadError("train.precision=bfloat16 needs a GPU that has it: use float32 or auto")
    if choice == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return choice

"""Several processes that train one model together, each on its share of every batch, as torchrun starts them.

Owns joining them, and all that they say to each other: averages, batch norm over the whole batch, what the first one
found, stopping. All must call the same functions in the same order; a process of its own finds that they do nothing.
Use: `with joined(): train(...)`, and inside `share()`, `average(parameters, told)`, `of_first(read, path)`.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from fastad import progress
from fastad.errors import FastadError, Interrupted
from fastad.plan import WHOLE_BATCH, Share

# The others wait as long as the first evaluates. That one has died is seen by its closed connections, not by a timeout.
PATIENCE = timedelta(days=1)

_TOLD = "fastad/told"

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@contextmanager
def joined() -> Iterator[None]:
    """While it lasts, this process is one of those that torchrun's environment variables tell of.

    Only the first shows progress. An error is told by the process that meets it first; the others end with its code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, ranks = next(dist.rendezvous("env://", timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FastadError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the processes cannot join: {reason}") from error
    progress.console.quiet = rank > 0
    try:
        yield
    except FastadError as error:
        if not _is_first_to_tell(store):
            raise SystemExit(2) from error
        raise
    except Interrupted as error:
        dist.destroy_process_group()
        if rank:
            raise SystemExit(128 + error.signal_number) from error
        raise
    dist.destroy_process_group()


def _is_first_to_tell(store: dist.Store) -> bool:
    try:
        return store.add(_TOLD, 1) == 1
    except RuntimeError:  # the process that kept the store has ended
        return True


def share() -> Share:
    """This process's share of every batch."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE_BATCH


def processes_here() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if share().ranks > 1 else 1


def gpu() -> torch.device:
    """The GPU of this process; raises `FastadError` where there are more processes than GPUs."""
    if share().ranks > 1:
        number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= count:
            raise FastadError(f"{processes_here()} processes on {count} GPUs: start one for each, or use --device cpu")
        torch.cuda.set_device(number)
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _together() -> Iterator[None]:
    """Around what all processes must do: raises `FastadError` where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise FastadError(
            "another process of this training has ended: the same command continues from the last checkpoint"
        ) from error


def average(parameters: Iterable[nn.Parameter], told: Tensor) -> Tensor:
    """Replaces the gradients of the parameters by their average over all processes, and returns that of `told`.

    Parts of a batch are of one size, so averages over them are those of the batch.
    """
    if (ranks := share().ranks) == 1:
        return told
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    numbers = torch.cat([told.reshape(-1), *(gradient.reshape(-1) for gradient in gradients)])
    with _together():
        dist.all_reduce(numbers)
    mean_told, *means = (numbers / ranks).split([told.numel(), *(gradient.numel() for gradient in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return mean_told.view_as(told)


@torch.library.custom_op("fastad::summed", mutates_args=())
def summed(numbers: Tensor) -> Tensor:
    """The sum over all processes, as an operation that autograd and the compiler know."""
    total = numbers.clone(memory_format=torch.contiguous_format)
    with _together():
        dist.all_reduce(total)
    return total


@summed.register_fake
def _(numbers: Tensor) -> Tensor:
    return torch.empty_like(numbers, memory_format=torch.contiguous_format)


# Every process's loss depends on what each of them has put into the sum.
summed.register_autograd(lambda context, gradient: summed(gradient))


class WholeBatchNorm(nn.Module):
    """A batch norm's parameters and running statistics, under the same names, over the batches of all processes.

    PyTorch's SyncBatchNorm needs CUDA.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.momentum is not None, "the running average of all batches is not kept"
        self.eps, self.momentum, self.share = norm.eps, norm.momentum, share()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        rank, ranks = self.share.rank, self.share.ranks
        values, shape = x.float(), (1, -1, *[1] * (x.ndim - 2))
        var, mean = torch.var_mean(values, (0, *range(2, x.ndim)), correction=0)
        own = torch.stack([mean, var])
        # All means and variances, and not their sums only: a difference of large squares would lose digits.
        means, variances = summed(torch.stack([own if other == rank else own * 0 for other in range(ranks)])).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        self._keep(mean.detach(), var.detach(), ranks * x.numel() // x.shape[1])
        scale = torch.rsqrt(var + self.eps)
        normal = (values - mean.view(shape)) * scale.view(shape)
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)


def over_whole_batches(model: nn.Module) -> None:
    """Puts `WholeBatchNorm` in the place of the model's batch norms, where there are several processes."""
    if share().ranks == 1:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, WholeBatchNorm(child))


def of_first(work: Callable[Arguments, Value], *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Value:
    """What `work` returns or raises in the first process; it is done only there, and the others wait."""
    if share().ranks == 1:
        return work(*arguments, **keywords)
    found: list[Any] = [None]
    if share().rank == 0:
        try:
            found = [(work(*arguments, **keywords), None)]
        except FastadError as mistake:
            found = [(None, mistake)]
    with _together():
        dist.broadcast_object_list(found)
    value, error = found[0]
    if error is not None:
        raise error
    return value


def of_all(value: Value) -> list[Value]:
    """That of every process, the first one's first."""
    if share().ranks == 1:
        return [value]
    values: list[Any] = [None] * share().ranks
    with _together():
        dist.all_gather_object(values, value)
    return values


class Agreed:
    """Lets all processes stop at the same step: each call returns the largest of what theirs returned a call earlier.

    A call earlier, so that no process waits for those that are late by less than a step, and never for the device.
    """

    def __init__(self, stop: Callable[[], int]) -> None:
        self.stop = stop
        self.pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self) -> int:
        if share().ranks == 1:
            return self.stop()
        before, said = self.pending, torch.tensor(self.stop())
        with _together():
            if before is not None:
                before[0].wait()
            work = dist.all_reduce(said, dist.ReduceOp.MAX, async_op=True)
        self.pending = (work, said)
        return 0 if before is None else int(before[1])

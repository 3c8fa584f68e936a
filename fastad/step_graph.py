"""The step of a group as a CUDA graph: its hundreds of kernels start with one call of the host's, those that make the
batch's images of held ones among them.

Owns the static memory that a captured step reads, warming up and capturing; what a step is, is `fastad.group`'s, and
what makes images `fastad.pipeline`'s. The work that is captured also runs as it is, on a CPU, where it is tested.
Use: `graphs = StepGraphs(CudaCapture())`, then `graphs.step(work, members, batch)` for every batch of a run.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastad.pipeline import Batch, Maker, Unmade

# Steps before a step is captured: the first compiles and makes the optimisers' state, and libraries choose kernels.
WARM_UP = 3


class StaticStep:
    """A step on memory of its own: `take` copies a batch there, calling it computes. Nothing else may go in.

    Of an unmade batch, its numbers are copied, and its images made in the step.
    """

    def __init__(self, work: Callable[[Tensor, Tensor], None], batch: Batch | Unmade) -> None:
        self.work = work
        self.maker = maker_of(batch)
        device = batch.target.device
        self.memory = [torch.empty_like(each, device=device) for each in _contents(batch)]

    def take(self, batch: Batch | Unmade) -> None:
        """Copies the batch in, in the order of the current stream: what was captured last has read the one before. The
        host does not wait, and what it gives is pinned memory that is not used again before it is copied
        (`fastad.packed`)."""
        for memory, each in zip(self.memory, _contents(batch), strict=True):
            memory.copy_(each, non_blocking=True)

    def __call__(self) -> None:
        if self.maker is None:
            self.work(*self.memory)
        else:
            self.work(self.maker(*self.memory), self.maker.target)


def maker_of(batch: Batch | Unmade) -> Maker | None:
    """What makes the batch's images in a step; None where they are made."""
    return batch.maker if isinstance(batch, Unmade) else None


def _contents(batch: Batch | Unmade) -> Sequence[Tensor]:
    """What differs from one batch to the next."""
    return (batch.packed,) if isinstance(batch, Unmade) else (batch.images, batch.target)


class Capture(Protocol):
    """How work is warmed up, and made into what replays it."""

    def warm_up(self, work: Callable[[], None]) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CudaCapture:
    """By CUDA graphs, captured on one stream, whose workspace of cuBLAS they share: no two of them are used at the same
    time, as each is replayed on the current stream."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs the work on the stream that it will be captured on, between what the current stream does before and
        after: autograd remembers on which stream a gradient was first accumulated."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # An optimiser warns of steps that are not captured; the others will be.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What starts the captured work on the current stream. Capturing runs nothing; the host waits for the device.

        Only this thread is kept from calls that a capture forbids: DALI's threads may allocate meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class StepGraphs:
    """Steps groups of members, each by a graph from its fourth step on; the steps before are plain ones."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._key: tuple[object, ...] = ()
        self._static: StaticStep | None = None
        self._replay: Callable[[], None] | None = None
        self._steps = 0

    def clear(self) -> None:
        """Forgets what was captured, and the images that it makes batches of: a member's memory has been replaced, or
        a run is over."""
        self._key, self._static, self._replay, self._steps = (), None, None, 0

    def step(self, work: Callable[[Tensor, Tensor], None], members: Sequence[Hashable], batch: Batch | Unmade) -> None:
        """One step on a batch. `work(images, target)` is the step of `members`; with other ones, or batches that are
        made by another maker, it begins anew."""
        if (key := (*members, maker_of(batch))) != self._key:
            self.clear()
            self._key = key
        if self._static is None:
            self._static = StaticStep(work, batch)
        self._static.take(batch)
        if self._replay is None and self._steps >= WARM_UP:
            self._replay = self._capture.capture(self._static)
        if self._replay is None:
            self._capture.warm_up(self._static)
        else:
            self._replay()
        self._steps += 1

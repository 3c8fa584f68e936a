"""The step of a group as a CUDA graph: its hundreds of kernels start with one call of the host's.

Owns the static memory that a captured step reads, warming up and capturing; what a step is, is `fastad.group`'s. The
work that is captured also runs as it is, on a CPU, where it is tested.
Use: `graphs = StepGraphs(CudaCapture())`, then `graphs.step(work, members, batch)` for every batch of a run.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastad.pipeline import Batch

# Steps before a step is captured: the first compiles and makes the optimisers' state, and libraries choose kernels.
WARM_UP = 3


class StaticStep:
    """A step on memory of its own: `take` copies a batch there, calling it computes. Nothing else may go in."""

    def __init__(self, work: Callable[[Tensor, Tensor], None], batch: Batch) -> None:
        self.work = work
        self.images = torch.empty_like(batch.images)
        self.target = torch.empty_like(batch.target)

    def take(self, batch: Batch) -> None:
        """Copies the batch in, in the order of the current stream: what was captured last has read the one before."""
        self.images.copy_(batch.images)
        self.target.copy_(batch.target)

    def __call__(self) -> None:
        self.work(self.images, self.target)


class Capture(Protocol):
    """How work is warmed up, and made into what replays it."""

    def warm_up(self, work: Callable[[], None]) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CudaCapture:
    """By CUDA graphs, each captured on a stream of its own: those of one stream would share cuBLAS's workspace."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs the work on the stream that it will be captured on, between what the current stream does before and
        after: autograd remembers on which stream a gradient was first accumulated."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What starts the captured work on the current stream. Capturing runs nothing; the host waits for the device.

        Only this thread is kept from calls that a capture forbids: DALI's threads may allocate meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        self.stream = None
        return graph.replay


class StepGraphs:
    """Steps groups of members, each by a graph from its fourth step on; the steps before are plain ones."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._group: tuple[Hashable, ...] = ()
        self._static: StaticStep | None = None
        self._replay: Callable[[], None] | None = None
        self._steps = 0

    def clear(self) -> None:
        """Forgets what was captured: a member's memory has been replaced."""
        self._group, self._static, self._replay, self._steps = (), None, None, 0

    def step(self, work: Callable[[Tensor, Tensor], None], members: Sequence[Hashable], batch: Batch) -> None:
        """One step on a batch. `work(images, target)` is the step of `members`; with other ones it begins anew."""
        if tuple(members) != self._group:
            self.clear()
            self._group = tuple(members)
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

"""The workers of a sweep on their machines: processes here, or actors of a Ray cluster.

Owns how many there are, what each has of the machine, starting, stopping and noticing deaths; none outlives its driver.
What a worker does is `fastad.sweep_worker`'s.
Use: `with processes(work, slots) as pool: pool.fill()`, then `pool.ended()` again and again.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

from fastad.shared_images import leave_all
from fastad.sweep_presence import driver_name
from fastad.sweep_worker import Work, printing_to, work_on
from fastad.workers import environment_variables, import_ahead, ray_cluster, signals_blocked


class Ended(NamedTuple):
    """A worker that has ended, and how: None if it found nothing left to do, or was asked to stop."""

    name: str
    how: str | None


class Pool(Protocol):
    """Workers that can be started and watched. `names`: of those alive."""

    @property
    def names(self) -> Sequence[str]: ...

    def fill(self) -> None:
        """Starts as many workers as there is room for."""

    def ended(self, timeout_s: float) -> list[Ended]:
        """Those that have ended since, waiting that long for one to."""

    def stop(self) -> None:
        """Asks all to end after the step under way."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one worker on this machine: its name, and the environment variables that give it its part."""

    name: str
    environment: Mapping[str, str]


def slots_on_cpu(workers: int, threads: int) -> list[Slot]:
    """Workers of so many threads each: with OpenMP's own choice, two would take every core twice and wait for each
    other."""
    part = {"OMP_NUM_THREADS": str(threads), "LOCAL_WORLD_SIZE": str(workers)}
    return [Slot(f"{driver_name()}.{number}", part) for number in range(workers)]


def slots_on_gpus(gpus: int, workers_per_gpu: int, threads: int) -> list[Slot]:
    """So many workers for each GPU; each sees its GPU alone, so that nothing can depend on which one it is."""
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    part = {"OMP_NUM_THREADS": str(threads), "LOCAL_WORLD_SIZE": str(gpus * workers_per_gpu)}
    return [
        Slot(
            f"{driver_name()}.gpu{gpu}" + (f"-{number}" if workers_per_gpu > 1 else ""),
            part | {"CUDA_VISIBLE_DEVICES": visible[gpu] if visible else str(gpu)},
        )
        # The first of each GPU come first: if there are few groups, they are shared out over all GPUs.
        for number in range(workers_per_gpu)
        for gpu in range(gpus)
    ]


@contextmanager
def processes(work: Work, slots: Sequence[Slot]) -> Iterator[Pool]:
    """Workers on this machine; at the end those that are still alive end at once."""
    pool = _Processes(work, slots)
    try:
        yield pool
    finally:
        pool.close()


class _Processes:
    def __init__(self, work: Work, slots: Sequence[Slot]) -> None:
        self._work = work
        self._slots = slots
        # On the CPU, workers are copies of a process that has imported everything once; CUDA would not outlive a fork.
        self._context: Any = multiprocessing.get_context("spawn" if work.device == "cuda" else "forkserver")
        if work.device == "cpu":
            import_ahead([work_on.__module__])
        self._alive: dict[str, tuple[BaseProcess, connection.Connection]] = {}

    @property
    def names(self) -> Sequence[str]:
        return list(self._alive)

    def fill(self) -> None:
        for slot in self._slots:
            if slot.name not in self._alive:
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        listens, lifeline = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work_in_process, args=(self._work, slot, listens))
        with signals_blocked(), environment_variables(slot.environment):
            process.start()
        listens.close()
        self._alive[slot.name] = process, lifeline

    def ended(self, timeout_s: float) -> list[Ended]:
        sentinels = {process.sentinel: name for name, (process, _) in self._alive.items()}
        found = []
        for sentinel in connection.wait(list(sentinels), timeout_s):
            name = sentinels[sentinel]  # type: ignore[index]
            process, lifeline = self._alive.pop(name)
            process.join()
            lifeline.close()
            found.append(Ended(name, _told(process.exitcode or 0)))
        return found

    def stop(self) -> None:
        for _, lifeline in self._alive.values():
            with suppress(OSError):
                lifeline.send("stop")

    def close(self) -> None:
        for _, lifeline in self._alive.values():
            lifeline.close()
        for process, _ in self._alive.values():
            process.join()


def _told(exit_code: int) -> str | None:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}" if exit_code else None


def _work_in_process(work: Work, slot: Slot, lifeline: connection.Connection) -> None:
    os.environ.update(slot.environment)
    stopping = threading.Event()
    threading.Thread(target=_listen, args=(lifeline, stopping), daemon=True).start()
    with printing_to(work.log(slot.name)):
        try:
            work_on(work, slot.name, stopping)
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None


def _listen(lifeline: connection.Connection, stopping: threading.Event) -> None:
    """Asks to stop once the driver says so, and ends the process once the driver is gone."""
    with suppress(EOFError, OSError):
        lifeline.recv()
        stopping.set()
        lifeline.recv()
    leave_all()
    os._exit(1)


@contextmanager
def actors(work: Work, address: str, *, workers: int | None, workers_per_gpu: int) -> Iterator[Pool]:
    """Workers on a Ray cluster (`fastad.workers.ray_cluster`): one for each of its GPUs if `work` is for GPUs, else one
    for every `work.threads` of its CPUs, and no more than `workers`; also on nodes that join later."""
    with ray_cluster(address):
        yield _Actors(work, workers, workers_per_gpu)


class _Worker:
    """The actor: it works in one thread and is told to stop in another."""

    def __init__(self) -> None:
        self._stopping = threading.Event()

    def run(self, work: Work, name: str) -> None:
        with printing_to(work.log(name)):
            try:
                work_on(work, name, self._stopping)
            except BaseException:
                traceback.print_exc()
                raise

    def stop(self) -> None:
        self._stopping.set()


class _Actors:
    def __init__(self, work: Work, workers: int | None, workers_per_gpu: int) -> None:
        self._work = work
        self._workers = workers
        self._workers_per_gpu = workers_per_gpu
        self._started = 0
        self._alive: dict[Any, tuple[str, Any]] = {}

    @property
    def names(self) -> Sequence[str]:
        return [name for name, _ in self._alive.values()]

    def fill(self) -> None:
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        settings: dict[str, Any] = {"max_concurrency": 2, "runtime_env": {"env_vars": self._environment()}}
        if self._work.device == "cuda":
            room = int(resources.get("GPU", 0)) * self._workers_per_gpu
            settings |= {"num_gpus": 1 / self._workers_per_gpu, "num_cpus": 0}
        else:
            room = int(resources.get("CPU", 1)) // self._work.threads
            settings |= {"num_cpus": self._work.threads}
        room = max(1, room if self._workers is None else min(room, self._workers))
        while len(self._alive) < room:
            name = f"{driver_name()}.ray{self._started}"
            actor = ray.remote(_Worker).options(**settings).remote()
            self._alive[actor.run.remote(self._work, name)] = name, actor  # type: ignore[attr-defined]
            self._started += 1

    def _environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self._work.threads)}

    def ended(self, timeout_s: float) -> list[Ended]:
        import ray

        found = []
        done, _ = ray.wait(list(self._alive), timeout=timeout_s)
        for reference in done:
            name, _ = self._alive.pop(reference)
            try:
                ray.get(reference)
                found.append(Ended(name, None))
            except ray.exceptions.RayError as error:
                found.append(Ended(name, f"ended: {str(error).strip().splitlines()[0]}"))
        return found

    def stop(self) -> None:
        for _, actor in self._alive.values():
            actor.stop.remote()

"""Who does independent jobs: processes here, or tasks of a Ray cluster.

Owns starting, feeding and stopping workers; what a job is, is its function's own. A worker never outlives its driver.
Use: `for result in over_processes(work, jobs, 2): ...`, ahead of it `import_ahead(["torch"])` where its workers import
what takes long; or `with ray_cluster("auto"):` and `over_ray(work, jobs)`.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from fastad.errors import FastadError

# Of a task whose worker or node died; its own errors are never tried again.
RETRIES = 3
# Given out for each worker: one that it does, one that waits. More would only fill the object store.
JOBS_A_WORKER = 2
REACH_S = 5

Job = TypeVar("Job")
Result = TypeVar("Result")


def import_ahead(modules: Sequence[str]) -> None:
    """Begins to import modules in the process that workers will be copies of, while this one goes on; the first call
    counts. Workers have one thread each, whatever library would start more: they are as many as there are cores.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    with signals_blocked(), environment_variables({"OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, processes start with these environment variables, too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started in it inherit the mask: signals to the whole process group are this process's to answer."""
    # Python starts this process of its own with the first of any, and then unblocks the signals.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def over_processes(work: Callable[[Job], Result], jobs: Iterator[Job], workers: int) -> Generator[Result, None, None]:
    """The results of all jobs, as they come, from that many processes, or from this one if one is enough.

    Where a job fails, those given out are still waited for; on a signal the processes end at once.
    """
    if workers <= 1:
        yield from map(work, jobs)
        return
    import_ahead([work.__module__])
    context = multiprocessing.get_context("forkserver")
    lifeline, held = context.Pipe(duplex=False)
    with held, lifeline, ProcessPoolExecutor(workers, context, _hold_on_to, (lifeline,)) as pool:
        try:
            pending = {pool.submit(work, job) for job in islice(jobs, JOBS_A_WORKER * workers)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                pending |= {pool.submit(work, job) for job in islice(jobs, len(done))}
        except FastadError:
            pool.shutdown(cancel_futures=True)
            raise
        except BrokenProcessPool as error:
            held.close()
            raise FastadError(
                "a worker process was killed (for want of memory?): the same command continues, "
                "also with fewer --workers"
            ) from error
        except BaseException:
            held.close()
            raise


def _hold_on_to(lifeline: Connection) -> None:
    """Lets a worker process end once its parent closes the other end, or is dead."""

    def end() -> None:
        with suppress(EOFError):
            lifeline.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def ray_cluster(address: str) -> Iterator[None]:
    """Joins the Ray cluster at `auto` or `host:port`, or starts a `local` one; leaves it at the end.

    Raises `FastadError` if Ray is not installed, or no cluster is there. Ray's own notices go to standard error.
    """
    # Under `uv run`, Ray would otherwise make its workers' environments anew from a copy of the current folder.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as error:
        raise FastadError("--ray needs the package ray, which is not installed: pip install 'fastad[ray]'") from error
    if address not in ("local", "auto"):
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        settings |= {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address, **settings)
        except ConnectionError as error:
            raise FastadError(
                f"cannot join a Ray cluster at {address}: ray start one, or set RAY_AUTH_MODE=token and the token that "
                "it asks for, or give --ray local"
            ) from error
        finally:
            # Ray puts its own handler in place.
            signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Sees whether anyone listens at `host:port`: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise FastadError(f"--ray must be local, auto or host:port, found {address!r}")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise FastadError(f"no Ray cluster found at {address} ({error}): ray start one, or give --ray local") from error


def over_ray(work: Callable[[Job], Result], jobs: Iterator[Job]) -> Generator[Result, None, None]:
    """The results of all jobs, as they come, from tasks of the cluster joined.

    A task whose worker or node dies is tried again; raises `FastadError` where that does not help. Tasks under way end
    when the cluster is left: Ray 2.60 may abort the driver if one that it is told to cancel ends at that moment.
    """
    import ray

    task = ray.remote(max_retries=RETRIES)(work)
    pending: list[Any] = []
    try:
        while True:
            # Asked each time: a cluster may grow.
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            limit = JOBS_A_WORKER * max(1, int(resources.get("CPU", 1)))
            pending += [task.remote(job) for job in islice(jobs, max(0, limit - len(pending)))]
            if not pending:
                return
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise FastadError(
            f"Ray lost a task {RETRIES + 1} times, or the cluster ({type(error).__name__}): the same command continues"
        ) from error

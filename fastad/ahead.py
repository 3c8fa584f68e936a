"""Work done ahead of its use, by a thread, so that reading never waits for computing or the other way round.

Owns the thread and the queue between; what is read is its caller's.
Use: `for batch in ahead(read_batches(), depth=4, what="reading shards"): ...`.
"""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

from fastad.progress import say

# How long nothing may come before that is said.
STALL_S = 10.0

Item = TypeVar("Item")


def ahead(items: Iterator[Item], *, depth: int, what: str) -> Generator[Item, None, None]:
    """The items in their order, up to `depth` of them made ahead; an exception in making comes where its item would.

    Where nothing comes for `STALL_S` seconds, that is said, and again each time that as much has gone by. Closing it
    ends the thread.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> bool:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=make, name=what, daemon=True)
    thread.start()
    try:
        while True:
            item, error = _next(made, what)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        closed.set()
        thread.join()


def _next(
    made: "queue.Queue[tuple[Item | None, BaseException | None]]", what: str
) -> tuple[Item | None, BaseException | None]:
    waited_s = 0.0
    while True:
        try:
            return made.get(timeout=STALL_S)
        except queue.Empty:
            waited_s += STALL_S
            say(f"{what} has given nothing for {waited_s:.0f} s: is the disk or the network slow?")

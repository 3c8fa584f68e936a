"""The errors that users are meant to see.

Owns `FastadError`, `Interrupted` with the signals that raise it, and the wording of "unknown name" messages; nothing
else of fastad is imported here.
Use: `raise FastadError("asked for …, found …: do …")`.
"""

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


class FastadError(Exception):
    """A mistake that the user can mend: one line that tells what was asked, what was found and what to do next."""


class Interrupted(Exception):
    """Work was asked to stop by a signal and has kept what it did, so that the same command continues."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; the same command continues")
        self.signal_number = signal_number


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """While it lasts, the first SIGINT or SIGTERM raises `Interrupted`; a second one ends the process at once."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    try:
        for number in previous:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def unknown(kind: str, name: str, known: Iterable[str]) -> FastadError:
    """The error for a name that is not in a table: it shows the nearest known names, and all where none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return FastadError(f"unknown {kind} {name!r}: {hint}")

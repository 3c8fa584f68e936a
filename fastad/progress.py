"""What long work shows while it runs: a bar with rate and time left on a terminal, plain lines elsewhere.

Owns standard error; standard output belongs to results.
Use: `with progress("train", total, unit="steps") as advance: advance(1, "loss 0.3")`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_LINE_EVERY_S = 10.0
REDRAW_EVERY_S = 0.1

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One plain line for the user, on standard error."""
    console.print(text, markup=False)


def duration(seconds: float) -> str:
    """A time as people say it: "95 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:,.1f} h"


@dataclass
class _Work:
    """How far a piece of work is; the rate counts only what was done here, so it is honest after a resume."""

    label: str
    total: int | None
    unit: str
    done: int
    note: str = ""
    here: int = 0
    started: float = field(default_factory=time.perf_counter)

    def line(self) -> str:
        rate = self.here / max(time.perf_counter() - self.started, 1e-9)
        figures = f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}, {rate:,.0f}/s"
        if self.total is not None and self.done < self.total and rate > 0:
            figures += f", {duration((self.total - self.done) / rate)} left"
        return f"{figures}, {self.note}" if self.note else figures


@contextmanager
def progress(label: str, total: int | None = None, *, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Shows work of `total` units (None: unknown), `done` of them earlier; yields `advance(count=1, note=None)`."""
    work = _Work(label, total, unit, done)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), console=console
        ) as bars:
            task = bars.add_task(label, total=total, completed=done, line="")
            yield _advance(work, REDRAW_EVERY_S, lambda: bars.update(task, completed=work.done, line=work.line()))
            bars.update(task, completed=work.done, line=work.line())
        return
    yield _advance(work, PLAIN_LINE_EVERY_S, lambda: say(f"{label}: {work.line()}"))
    say(f"{label}: {work.line()}")


def _advance(work: _Work, every_s: float, show: Callable[[], None]) -> Callable[..., None]:
    """The function that counts, and shows the work at most every `every_s` seconds."""
    shown = work.started

    def advance(count: int = 1, note: str | None = None) -> None:
        nonlocal shown
        work.done, work.here = work.done + count, work.here + count
        work.note = work.note if note is None else note
        now = time.perf_counter()
        if now - shown >= every_s:
            shown = now
            show()

    return advance

"""What is known of a sweep while it runs, from what its workers tell; and its one screen.

Owns reading `.sweep/workers/*.jsonl`, rates, and what is shown: a table on a terminal, plain lines elsewhere.
Use: `with Screen(watch) as screen: watch.read(); screen.show(names)`.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastad.log import read_log
from fastad.progress import PLAIN_LINE_EVERY_S, console, duration, say
from fastad.sweep_queue import Group


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a worker trains, from the last epoch that its group has logged."""

    epoch: int
    images_per_s: float
    stall_share: float


class Measured(NamedTuple):
    """What a group took: `seconds` from being claimed to its results, `train_s` of them in its `steps`; done `at`, in
    seconds since 1970."""

    group: Group
    device: str
    seconds: float
    train_s: float
    steps: int
    at: float


class Watch:
    """Takes in what workers tell, here and on all machines that share the folder.

    `done`: names of finished groups. `failures`: groups that failed since the watch began. `doing`: each worker's
    group. `measured`: the groups that were finished, also before.
    """

    def __init__(self, name: str, groups: Iterable[Group], out: Path, folder: Path) -> None:
        self.name = name
        self.groups = {group.name: group for group in groups}
        self.done = {name for name, group in self.groups.items() if group.is_finished(out)}
        self._out = out
        self._folder = folder
        self.failures = 0
        self.doing: dict[str, Group | None] = {}
        self.ready: set[str] = set()
        self.measured: list[Measured] = []
        self.began = time.time()
        self.done_here = 0
        self.trainings_here = 0
        self._read: dict[Path, int] = {}
        self._devices: dict[str, str] = {}

    def read(self) -> None:
        """Takes in what has been told since."""
        for worker, told in self._new():
            group = self.groups.get(told.get("group", ""))
            match told["event"]:
                case "ready":
                    self.ready.add(worker)
                    self._devices[worker] = told["device"]
                case "start":
                    self.doing[worker] = group
                    continue
                case "done" if group is not None:
                    device = self._devices.get(worker, "")
                    self.measured.append(
                        Measured(group, device, told["seconds"], told["train_s"], told["steps"], told["at"])
                    )
                    if told["at"] >= self.began:
                        self.done_here += 1
                        self.trainings_here += told["trainings"]
                    self.done.add(group.name)
                case "failed":
                    self.failures += told["at"] >= self.began
            self.doing[worker] = None

    def _new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The lines told since, each with its worker's name."""
        for path in sorted((self._folder / "workers").glob("*.jsonl")):
            at = self._read.get(path, 0)
            with open(path, "rb") as file:
                file.seek(at)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]  # a line that is being written comes next time
            self._read[path] = at + len(whole)
            for line in whole.splitlines():
                with suppress(json.JSONDecodeError):  # cut by a kill
                    yield path.stem, json.loads(line)

    @property
    def left(self) -> int:
        return len(self.groups) - len(self.done)

    def trainings_per_hour(self) -> float:
        return 3600 * self.trainings_here / max(time.time() - self.began, 1e-9)

    def seconds_left(self) -> float | None:
        """By the rate at which groups have been finished since the watch began; None before the first."""
        if not self.done_here:
            return None
        return self.left * (time.time() - self.began) / self.done_here

    def pace(self, worker: str) -> Pace | None:
        """How fast the worker is, None before the end of its group's first epoch."""
        group = self.doing.get(worker)
        if group is None:
            return None
        lines = (lines for run in group.runs(self._out) if (lines := read_log(run)))
        line = next(lines, [None])[-1]
        return None if line is None else Pace(line["epoch"] + 1, line["images_per_s"], line["stall_share"])


class Screen:
    """Shows a watch: redrawn in place on a terminal, else a line now and then."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, workers: Sequence[str], note: str = "", *, now: bool = False) -> None:
        """Draws the state with these workers; as a line only every `PLAIN_LINE_EVERY_S`, or `now`."""
        if self._live:
            self._live.update(self._table(workers, note), refresh=True)
        elif now or time.monotonic() - self._shown >= PLAIN_LINE_EVERY_S:
            self._shown = time.monotonic()
            say(self._line(workers, note))

    def _summary(self, workers: Sequence[str], note: str) -> str:
        watch = self._watch
        running = sum(watch.doing.get(worker) is not None for worker in workers)
        parts = [f"{len(watch.done):,} of {len(watch.groups):,} groups done, {running} running"]
        parts.append(f"{watch.failures} failed")
        if watch.done_here:
            parts.append(f"{watch.trainings_per_hour():,.0f} trainings/h")
        left = watch.seconds_left()
        if left:
            parts.append(f"{duration(left)} left")
        return f"{watch.name}: {', '.join(parts)}{f'; {note}' if note else ''}"

    def _line(self, workers: Sequence[str], note: str) -> str:
        paces = [pace for worker in workers if (pace := self._watch.pace(worker))]
        line = self._summary(workers, note)
        if paces:
            stalls = ", ".join(f"{100 * pace.stall_share:.1f} %" for pace in paces)
            line += f"; images/s: {', '.join(f'{pace.images_per_s:,.0f}' for pace in paces)}; waiting: {stalls}"
        return line

    def _table(self, workers: Sequence[str], note: str) -> Table:
        table = Table(title=Text(self._summary(workers, note)), title_justify="left", expand=False)
        for name in ("worker", "group", "epoch"):
            table.add_column(name)
        for name in ("images/s", "waiting"):
            table.add_column(name, justify="right")
        for worker in workers:
            group, pace = self._watch.doing.get(worker), self._watch.pace(worker)
            if group is None:
                idle = "between groups" if worker in self._watch.ready else "starting"
                table.add_row(Text(worker), idle, "", "", "")
                continue
            epoch = f"{pace.epoch if pace else 0}/{group.recipe.optim.epochs}"
            rate = (f"{pace.images_per_s:,.0f}", f"{100 * pace.stall_share:.1f} %") if pace else ("", "")
            table.add_row(Text(worker), Text(group.label), epoch, *rate)
        return table

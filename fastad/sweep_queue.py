"""The queue of a sweep: which groups are finished, claimed, failed or due.

Owns the folder `<out>/<experiment>/.sweep/`: claims and failures; that a group is finished, only its results tell.
Use: `with Queue(groups, out, folder) as queue: group = queue.take()` … `queue.leave(group)`.

Any process that sees the folder may take part, on any machine. A claim is a lock on one byte of one file, the byte that
a hash of the group's name says. The kernel takes it back when its process ends, however it ends, so that neither clocks
nor host names have to tell whether a claimant lives, as they would with files that are created or renamed. It is a
POSIX lock (`fcntl.lockf`), which NFS carries to its server as it is, and the server gives up for a machine that is
gone. Lustre must be mounted with `-o flock`, BeeGFS needs `tuneUseGlobalFileLocks`: where a file system keeps locks to
each machine, two of them may train the same group, and `fastad.sweep_presence` refuses it.
"""

import fcntl
import glob
import hashlib
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fastad.files import write_text
from fastad.recipe import Recipe
from fastad.run import Run, locate, slug

# After so many failures a group is left aside.
FAILURES = 3


@dataclass(frozen=True, slots=True)
class Group:
    """Trainings that share their batches: all objectives of a point's recipe, for one class and seed."""

    recipe: Recipe
    class_name: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}/{self.class_name}/seed{self.seed}"

    @property
    def file_name(self) -> str:
        """The name as it stands in names of files."""
        return "--".join((slug(self.recipe.name), slug(self.class_name), f"seed{self.seed}"))

    @property
    def point(self) -> str:
        """The label of its place in the grid."""
        return self.recipe.name.partition("/")[2]

    @property
    def label(self) -> str:
        """The name for those who know the experiment."""
        return " ".join(filter(None, (self.point, self.class_name, f"seed {self.seed}")))

    def runs(self, out: Path) -> list[Run]:
        """Its trainings, and where they live."""
        return [locate(out, self.recipe, self.class_name, objective, self.seed) for objective in self.recipe.objectives]

    def is_finished(self, out: Path) -> bool:
        """Whether all of them have their results."""
        return all(run.result.is_file() for run in self.runs(out))


class Queue:
    """The groups of a sweep in their order; those that have failed come after all others."""

    def __init__(self, groups: Iterable[Group], out: Path, folder: Path) -> None:
        self._groups = {group.file_name: group for group in groups}
        self._due = dict(self._groups)
        self._out = out
        self._failed = folder / "failed"
        self._failed.mkdir(parents=True, exist_ok=True)
        # This must stay the only opening of the file in this process: closing another one would give up all its claims.
        self._claims = open(folder / "claims", "ab")  # noqa: SIM115 (closed at the exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Gives up all claims of this process."""
        self._claims.close()

    def take(self) -> Group | None:
        """The first group that is due, claimed for this process, which has one claim at a time; None if there is none
        at present."""
        failures = self._failures()
        unfailed = [name for name in self._due if name not in failures]
        for name in (*unfailed, *sorted(failures.keys() & self._due.keys(), key=lambda name: (failures[name], name))):
            group = self._groups[name]
            if failures[name] >= FAILURES or self._is_finished(group) or not self._claim(group):
                continue
            # It may have been finished by another process since.
            if not self._is_finished(group):
                return group
            self.leave(group)
        return None

    def leave(self, group: Group) -> None:
        """Gives up the claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _place(group))

    def due(self) -> list[Group]:
        """The groups that are neither finished nor left aside; another process may be at work on them."""
        failures = self._failures()
        due = [group for name, group in self._due.items() if failures[name] < FAILURES]
        return [group for group in due if not self._is_finished(group)]

    def aside(self) -> dict[str, Path]:
        """What has failed too often: the groups' labels, and the log of the last failure of each."""
        failures, due = self._failures(), self._due.items()
        aside = [group for name, group in due if failures[name] >= FAILURES]
        return {
            group.label: max(self._failed.glob(f"{glob.escape(group.file_name)}.*.log"))
            for group in aside
            if not self._is_finished(group)
        }

    def fail(self, group: Group, why: str) -> None:
        """Notes that the group has failed, and why: a line, and what else may help."""
        write_text(self._failed / f"{group.file_name}.{time.time_ns()}.log", why.rstrip() + "\n")

    def forgive(self) -> None:
        """Forgets all failures, so that what was left aside is due again."""
        for path in self._failed.glob("*.log"):
            path.unlink(missing_ok=True)

    def _failures(self) -> Counter[str]:
        """How often each group has failed, by its file name."""
        return Counter(path.name.rsplit(".", 2)[0] for path in self._failed.glob("*.log"))

    def _is_finished(self, group: Group) -> bool:
        if group.file_name in self._due and group.is_finished(self._out):
            del self._due[group.file_name]
        return group.file_name not in self._due

    def _claim(self, group: Group) -> bool:
        # Held by another process: EAGAIN or, as POSIX also allows, EACCES.
        with suppress(BlockingIOError, PermissionError):
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(group))
            return True
        return False


def _place(group: Group) -> int:
    """The byte whose lock is the claim: of 2^62, so that two groups do not share one."""
    return int.from_bytes(hashlib.blake2b(group.name.encode(), digest_size=8).digest(), "little") >> 2

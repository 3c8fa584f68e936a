"""Freed memory is kept: what comes again needs no new pages. What is available: the least of what all limits leave."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastad.memory import available_bytes

CODE = """
import resource, torch
from fastad.memory import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [torch.ones(3_000_000) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_pages_are_not_fetched_again() -> None:
    found = [
        int(subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True).stdout)
        for call in ("keep_freed_memory()", "pass")
    ]
    assert found[0] < 1_000
    assert found[0] <= found[1]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8 * 2**20),
        # Slurm's: the limit is that of the group above.
        ("0::/job/step\n", {"job/step": ("max", 1, 0), "job": (6_000_000, 5_500_000, 1_000_000)}, 1_500_000),
        ("5:cpu:/x\n4:memory:/job\n0::/\n", {"memory/job": (4_000_000, 3_000_000, 0)}, 1_000_000),
        # A container sees its own group at the top.
        ("4:memory:/docker/1234\n", {"memory": (3_000_000, 3_500_000, 0)}, 0),
    ],
)
def test_available_is_what_the_machine_and_every_limit_leave(
    groups: str, files: dict[str, tuple[int | str, int, int]], expected: int, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999 kB\nMemFree: 100 kB\nMemAvailable: 8192 kB\nHugePages: 0\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, (limit, used, cached) in files.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        first = name.startswith("memory")
        total = "total_" if first else ""
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"anon 5\n{total}inactive_file {cached // 4}\n{total}active_file {cached - cached // 4}\n"
        )
    assert available_bytes(tmp_path) == expected


def test_this_machine_has_some() -> None:
    assert 2**20 < available_bytes() < 2**50

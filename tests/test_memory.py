"""Freed memory is kept: what comes again needs no new pages."""

import subprocess
import sys

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

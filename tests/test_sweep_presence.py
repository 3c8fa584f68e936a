"""Drivers of several machines: known to each other by locks, and refused where locks do not reach."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastad import sweep_presence
from fastad.errors import FastadError
from fastad.sweep_presence import present

HOLD = "import sys, time; from pathlib import Path; from fastad.sweep_presence import present\n"
HOLD += "with present(Path(sys.argv[1]), 'node1.77'): print('here', flush=True); time.sleep(60)"


def test_drivers_of_other_machines_are_let_be_and_what_dead_ones_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_presence, "BEAT_S", 0.1)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        with present(tmp_path, "node2.5") as beat:
            beat()
            assert {path.name for path in (tmp_path / "drivers").iterdir()} == {"node1.77", "node2.5"}
    finally:
        other.kill()
        other.communicate()
    assert [path.name for path in (tmp_path / "drivers").iterdir()] == ["node1.77"]
    with present(tmp_path, "node2.6"):
        assert [path.name for path in (tmp_path / "drivers").iterdir()] == ["node2.6"]


def test_a_file_system_that_keeps_locks_to_each_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_presence, "BEAT_S", 0.2)
    path, ended = tmp_path / "drivers" / "node1.77", threading.Event()
    path.parent.mkdir()

    def live_without_a_lock() -> None:
        while not ended.is_set():
            path.write_text(f"{time.time()}\n")
            ended.wait(0.05)

    thread = threading.Thread(target=live_without_a_lock)
    thread.start()
    try:
        time.sleep(0.1)
        with pytest.raises(FastadError, match=r"node1.77 works on .*, whose file system keeps locks to each machine"):
            present(tmp_path, "node2.5").__enter__()
    finally:
        ended.set()
        thread.join()

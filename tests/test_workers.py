"""Workers: the same bytes from Ray as from processes, deaths made good, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import write_converter

from fastad.errors import FastadError
from fastad.listing import find_converter
from fastad.shard import Part, convert
from fastad.workers import over_processes

COUNT = 40_000


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four shards."""
    folder = tmp_path_factory.mktemp("converter")
    return write_converter(folder / "many.py", classes=("x", "y"), counts={"train": COUNT}, seed=3, size=20)


@pytest.fixture(scope="module")
def whole(converter: Path) -> dict[str, bytes]:
    convert(str(converter), None, converter.parent / "whole", workers=1)
    return contents(converter.parent / "whole" / "many")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*arguments: object) -> subprocess.Popen[str]:
    """`fastad shard …` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastad", "shard", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate(timeout=10)
        time.sleep(0.002)


def writing(folder: Path) -> list[Path]:
    """The tars that are being written."""
    return list(folder.glob(".*.tar.tmp"))


def writers(folder: Path) -> set[int]:
    """The processes that have a tar in this folder open for writing."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                target = str(link.readlink())
                if target.startswith(f"{folder}/.") and target.endswith(".tar.tmp"):
                    found.add(int(process.name))
    return found


def test_ray_gives_the_same_bytes_although_a_worker_is_killed(
    converter: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(converter, "--out", tmp_path, "--ray", "local")
    folder = tmp_path / "many"
    wait_until(lambda: writers(folder), process)
    victim = min(writers(folder))
    assert victim != process.pid
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert out == f"{folder}: 40,000 images in 4 shards, 0 left out\n"
    assert contents(folder) == whole


def test_ctrl_c_ends_work_on_ray_and_processes_continue_it(
    converter: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    process = start(converter, "--out", tmp_path, "--ray", "local")
    wait_until(lambda: list(folder.glob("*.tar")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "fastad: stopped by SIGINT; the same command continues"
    assert "Traceback" not in err
    assert not writers(folder)
    convert(str(converter), None, tmp_path, workers=1)
    assert contents(folder) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_processes_at_once_and_in_one_line(
    number: signal.Signals, converter: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    process = start(converter, "--out", tmp_path, "--workers", 2)
    wait_until(lambda: len(writers(folder)) == 2, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1:] == [f"fastad: stopped by {number.name}; the same command continues"]
    assert "Traceback" not in err
    assert not writers(folder)
    for path in folder.glob("*.tar"):
        assert path.read_bytes() == whole[path.name]


def test_workers_do_not_outlive_a_driver_that_is_killed(converter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    process = start(converter, "--out", tmp_path, "--workers", 2)
    wait_until(lambda: len(writers(folder)) == 2, process)
    process.kill()
    # They hold its standard error, which would not end while one of them lives.
    process.communicate(timeout=10)
    assert not writers(folder)


def test_a_worker_that_is_killed_is_said_in_one_line(converter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    process = start(converter, "--out", tmp_path, "--workers", 2)
    wait_until(lambda: writers(folder), process)
    os.kill(min(writers(folder)), signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("fastad: a worker process was killed")
    assert "Traceback" not in err


def test_a_part_is_converted_by_one_process_at_a_time_and_a_set_shared_out_in_one_way(
    converter: Path, tmp_path: Path
) -> None:
    command = (converter, "--out", tmp_path, "--workers", 1, "--part", "1/2")
    first = start(*command)
    try:
        wait_until(lambda: writing(tmp_path / "many"), first)
        first.send_signal(signal.SIGSTOP)
        for part in ("1/2", "1/1", "3/3"):
            second = start(*command[:-1], part)
            _, err = second.communicate(timeout=20)
            assert second.returncode == 2
            assert err == (
                f"fastad: {tmp_path / 'many'} is being converted by another process: "
                "wait for it, or choose another --out or --part\n"
            )
    finally:
        first.kill()
        first.communicate(timeout=10)
    third = start(*command)
    _, err = third.communicate(timeout=60)
    assert third.returncode == 0, err


def test_jobs_are_drawn_as_workers_need_them_and_errors_come_through() -> None:
    drawn = 0

    def jobs() -> Iterator[int]:
        nonlocal drawn
        for job in range(3, 1_000):
            drawn += 1
            yield job

    results = over_processes(abs, jobs(), 2)
    assert next(results) >= 3
    assert drawn < 10
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(FastadError, match="unknown set 'nothing'"):
        list(over_processes(find_converter, iter(["folder", "nothing"]), 2))


def test_ray_is_refused_in_one_line(converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FastadError, match="--ray shares the shards out among all CPUs of its cluster: leave out --part"
    ):
        convert(str(converter), None, tmp_path, ray="local", part=Part(1, 2))
    with pytest.raises(FastadError, match="no Ray cluster found at 127.0.0.1:1 .*ray start one, or give --ray local"):
        convert(str(converter), None, tmp_path, ray="127.0.0.1:1")
    with pytest.raises(FastadError, match="--ray must be local, auto or host:port, found 'locl'"):
        convert(str(converter), None, tmp_path, ray="locl")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FastadError, match=r"is not installed: pip install 'fastad\[ray\]'"):
        convert(str(converter), None, tmp_path, ray="local")
    assert not list(tmp_path.iterdir())


def threads_and_modules(job: int) -> tuple[str | None, bool]:
    return os.environ.get("OMP_NUM_THREADS"), "colorsys" in sys.modules


AHEAD = """
import os
from fastad.workers import import_ahead, over_processes
from test_workers import threads_and_modules
if __name__ == "__main__":
    import_ahead(["colorsys"])
    print(list(over_processes(threads_and_modules, iter(range(2)), 2)), os.environ.get("OMP_NUM_THREADS"))
"""


def test_workers_have_one_thread_and_what_was_imported_ahead() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join((str(Path(__file__).parent), environment.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", AHEAD]
    found = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[('1', True), ('1', True)] None", found.stderr

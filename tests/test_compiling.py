"""Compiling on a CPU: chosen by what was measured once, the same ever after."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastad import compiling
from fastad.compiling import compiling_pays
from fastad.files import cache_home

KEY = {"network": "any", "images": [4, 28, 28, 1]}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "cache"))


def works(monkeypatch: pytest.MonkeyPatch, eager_s: float, compiled_s: float) -> dict[str, Callable[[], Callable]]:
    """Steps that take so long by a clock of their own."""
    clock = [0.0]
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: clock[0])

    def steps(seconds: float) -> Callable[[], None]:
        def step() -> None:
            clock[0] += seconds

        return step

    return {"eager": lambda: steps(eager_s), "compiled": lambda: steps(compiled_s)}


@pytest.mark.parametrize(("compiled_s", "pays"), [(0.5, True), (0.94, True), (0.96, False), (2.0, False)])
def test_the_faster_one_is_chosen_and_near_ones_stay_eager(
    monkeypatch: pytest.MonkeyPatch, compiled_s: float, pays: bool
) -> None:
    assert compiling_pays(KEY, works(monkeypatch, 1.0, compiled_s)) is pays


def test_what_was_found_once_stays_whatever_is_measured_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiling_pays(KEY, works(monkeypatch, 1.0, 0.5))
    assert "training is compiled: compiled 500.0 ms a step, 1000.0 ms eager (measured now)" in capsys.readouterr().err
    assert compiling_pays(KEY, works(monkeypatch, 1.0, 2.0))
    assert "cached in" in " ".join(capsys.readouterr().err.split())
    assert not compiling_pays(KEY | {"network": "other"}, works(monkeypatch, 1.0, 2.0))


def test_the_first_of_two_processes_decides_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = compiling._measured

    def beaten(made: dict[str, Callable]) -> dict[str, float]:
        compiling_pays(KEY, works(monkeypatch, 1.0, 0.5))
        return measured(made)

    slower = works(monkeypatch, 1.0, 2.0)
    monkeypatch.setattr(
        compiling, "_measured", lambda made: (monkeypatch.setattr(compiling, "_measured", measured), beaten(made))[1]
    )
    assert compiling_pays(KEY, slower)


def test_a_damaged_file_is_said_and_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiling_pays(KEY, works(monkeypatch, 1.0, 0.5))
    (path,) = cache_home().glob("compile-*.json")
    path.write_text("{")
    assert not compiling_pays(KEY, works(monkeypatch, 1.0, 2.0))
    assert "is damaged: it is measured again" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_bytes())["step_ms"] == {"eager": 1000.0, "compiled": 2000.0}


def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "file"))
    assert compiling_pays(KEY, works(monkeypatch, 1.0, 0.5))
    assert "what was measured is not kept" in " ".join(capsys.readouterr().err.split())

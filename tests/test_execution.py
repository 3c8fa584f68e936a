"""How steps are executed on a CPU: chosen by what was measured once, the same ever after."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fastad import execution
from fastad.errors import FastadError
from fastad.execution import Execution, Step, begun_with, chosen, fastest
from fastad.files import cache_home
from fastad.recipe import TrainSpec

CPU = torch.device("cpu")
KEY = {"network": "any", "images": [4, 28, 28, 1]}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], Step]]:
    """Makes steps that take so many seconds, by a clock of their own."""
    clock = [0.0]
    monkeypatch.setattr(execution.time, "perf_counter", lambda: clock[0])

    def maker(seconds: float) -> Callable[[], Step]:
        def step() -> None:
            clock[0] += seconds

        return lambda: step

    return maker


Taking = Callable[[float], Callable[[], Step]]


def works(taking: Taking, eager_s: float, compiled_s: float) -> dict[str, Callable[[], Step]]:
    return {"eager": taking(eager_s), "compiled": taking(compiled_s)}


@pytest.mark.parametrize(
    ("compiled_s", "best"), [(0.5, "compiled"), (0.94, "compiled"), (0.96, "eager"), (2.0, "eager")]
)
def test_the_faster_one_is_chosen_and_of_near_ones_the_first(taking: Taking, compiled_s: float, best: str) -> None:
    assert fastest(KEY, works(taking, 1.0, compiled_s)) == best


def test_what_was_found_once_stays_whatever_is_measured_later(
    taking: Taking, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fastest(KEY, works(taking, 1.0, 0.5)) == "compiled"
    said = " ".join(capsys.readouterr().err.split())
    assert "training is compiled: a step takes 1000.0 ms eager, 500.0 ms compiled (measured now)" in said
    assert fastest(KEY, works(taking, 1.0, 2.0)) == "compiled"
    assert "cached in" in " ".join(capsys.readouterr().err.split())
    assert fastest(KEY | {"network": "other"}, works(taking, 1.0, 2.0)) == "eager"


def test_the_first_of_two_processes_decides_for_both(monkeypatch: pytest.MonkeyPatch, taking: Taking) -> None:
    measured = execution._measured

    def beaten(made: Mapping[str, Callable[[], Step]]) -> dict[str, float]:
        monkeypatch.setattr(execution, "_measured", measured)
        fastest(KEY, works(taking, 1.0, 0.5))
        return measured(made)

    monkeypatch.setattr(execution, "_measured", beaten)
    assert fastest(KEY, works(taking, 1.0, 2.0)) == "compiled"


def test_a_damaged_file_is_said_and_measured_again(taking: Taking, capsys: pytest.CaptureFixture[str]) -> None:
    fastest(KEY, works(taking, 1.0, 0.5))
    (path,) = cache_home().glob("steps-*.json")
    path.write_text("{")
    assert fastest(KEY, works(taking, 1.0, 2.0)) == "eager"
    assert "is damaged: it is measured again" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_bytes())["step_ms"] == {"eager": 1000.0, "compiled": 2000.0}


def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, taking: Taking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "file"))
    assert fastest(KEY, works(taking, 1.0, 0.5)) == "compiled"
    assert "what was measured is not kept" in " ".join(capsys.readouterr().err.split())


EAGER, PLAIN = Execution(False, "channels_last"), Execution(False, "contiguous")
COMPILED, COMPILED_PLAIN = Execution(True, "channels_last"), Execution(True, "contiguous")


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({EAGER: 1.0, PLAIN: 1.5, COMPILED: 1.2}, EAGER),
        ({EAGER: 1.0, PLAIN: 1.5, COMPILED: 0.8}, COMPILED),
        ({EAGER: 1.0, PLAIN: 0.9, COMPILED_PLAIN: 1.0}, PLAIN),
        ({EAGER: 1.0, PLAIN: 0.9, COMPILED_PLAIN: 0.8}, COMPILED_PLAIN),
    ],
)
def test_the_memory_format_is_found_first_and_only_that_one_is_compiled(
    monkeypatch: pytest.MonkeyPatch, taking: Taking, seconds: dict[Execution, float], best: Execution
) -> None:
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    made: list[Execution] = []

    def make(way: Execution) -> Step:
        made.append(way)
        return taking(seconds[way])()

    assert chosen(TrainSpec(), CPU, KEY, make) == best
    assert made == [EAGER, PLAIN, Execution(False, best.memory_format), Execution(True, best.memory_format)]
    assert chosen(TrainSpec(), CPU, KEY, make) == best
    assert len(made) == 4, "what was found is not measured again"


def never_made(way: Execution) -> Step:
    raise AssertionError(f"{way} was measured")


def test_what_the_recipe_says_is_not_measured(monkeypatch: pytest.MonkeyPatch, taking: Taking) -> None:
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    for compile_, compiled in (("on", True), ("off", False)):
        for memory_format in ("channels_last", "contiguous"):
            asked = TrainSpec(compile=compile_, memory_format=memory_format)
            for key in (KEY, None):
                assert chosen(asked, CPU, key, never_made) == Execution(compiled, memory_format)
    faster_plain = {EAGER: 1.0, PLAIN: 0.5}
    asked = TrainSpec(compile="on")
    assert chosen(asked, CPU, KEY, lambda way: taking(faster_plain[way])()) == COMPILED_PLAIN


def test_short_runs_and_gpus_measure_nothing() -> None:
    assert chosen(TrainSpec(), CPU, None, never_made) == EAGER
    cuda = torch.device("cuda")
    assert chosen(TrainSpec(), cuda, None, never_made) == COMPILED
    assert chosen(TrainSpec(compile="off", memory_format="contiguous"), cuda, None, never_made) == PLAIN


def test_without_a_compiler_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, taking: Taking, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "has_compiler", lambda: False)
    seconds = {EAGER: 1.0, PLAIN: 0.5}
    assert chosen(TrainSpec(), CPU, None, never_made) == EAGER
    assert "compiler" not in capsys.readouterr().err
    assert chosen(TrainSpec(), CPU, KEY, lambda way: taking(seconds[way])()) == PLAIN
    assert "no C++ compiler found: training is not compiled" in capsys.readouterr().err
    with pytest.raises(FastadError, match=r"train\.compile=on needs a C\+\+ compiler"):
        chosen(TrainSpec(compile="on"), CPU, None, never_made)


def test_a_training_goes_on_as_it_began() -> None:
    state: dict[str, Any] = {"model": {}, **COMPILED_PLAIN._asdict()}
    assert begun_with(state) == COMPILED_PLAIN
    assert begun_with({"model": {}, "compiled": True}) == COMPILED, "older versions knew one memory format"

"""Sweeps: the same results on any workers, nothing lost and nothing done twice whoever dies, failures left aside."""

import fcntl
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_scores, scores_in
from rich.console import Console

from fastad import sets as sets_module
from fastad import sweep as sweep_module
from fastad import sweep_worker
from fastad.errors import FastadError, Interrupted
from fastad.experiment import Experiment, find_experiment
from fastad.recipe import Recipe, dump
from fastad.run import find_runs
from fastad.sweep import Outcome, Room, aside_line, folder_of, groups_of, layout, sweep
from fastad.sweep_pool import Ended, slots_on_cpu, slots_on_gpus
from fastad.sweep_queue import Group, Queue
from fastad.sweep_watch import Screen, Watch
from fastad.sweep_worker import Work, work_on
from fastad.train import train

# As each worker has.
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LINES = ('objectives = ["hsc", "bce"]', "seeds = 2", 'classes = ["middle", "high"]', "[grid]", "data.oe_size = [8, 32]")


def written(folder: Path, recipe: Recipe, *lines: str) -> Path:
    """An experiment on the tiny recipe, as a file."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(dump(recipe))
    path = folder / "tiny.toml"
    path.write_text("\n".join((f'recipe = "{folder / "recipe.toml"}"', *lines)))
    return path


@pytest.fixture
def toml(recipe: Recipe, tmp_path: Path) -> Path:
    return written(tmp_path / "experiment", recipe, *LINES)


def trained_one_by_one(experiment: Experiment, home: Path, out: Path) -> dict[str, np.ndarray]:
    """The scores of each training in a call of its own, with nothing kept warm."""
    for group in groups_of(experiment, home):
        for objective in experiment.objectives:
            where = {"classes": [group.class_name], "seeds": [group.seed], "objectives": [objective]}
            train(group.recipe, shards=home, out=out, device=CPU, **where)  # type: ignore[arg-type]
    return scores_in(out)


def worked_on(experiment: Experiment, home: Path, out: Path, *, backwards: bool = False) -> None:
    """One worker in this process trains everything."""
    groups = groups_of(experiment, home)
    work = Work(tuple(groups[::-1] if backwards else groups), home, out, folder_of(experiment, out), "cpu", 1)
    work_on(work, "here", threading.Event())
    assert all(group.is_finished(out) for group in groups)


def events(out: Path) -> list[dict[str, object]]:
    """All that workers told, each file in its order."""
    paths = sorted(out.glob("*/.sweep/workers/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def start(toml: Path, home: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`fastad sweep …` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastad", "sweep", str(toml), "--shards", str(home), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for(out: Path, event: str, count: int, process: subprocess.Popen[str]) -> None:
    while sum(told["event"] == event for told in events(out)) < count:
        assert process.poll() is None, process.communicate(timeout=10)
        time.sleep(0.01)


def test_results_depend_neither_on_workers_nor_on_groups_or_their_order(toml: Path, home: Path, tmp_path: Path) -> None:
    experiment = find_experiment(str(toml))
    expected = trained_one_by_one(experiment, home, tmp_path / "alone")
    assert len(expected) == 16
    worked_on(experiment, home, tmp_path / "one", backwards=True)
    assert_same_scores(scores_in(tmp_path / "one"), expected)
    outcome = sweep(experiment, shards=home, out=tmp_path / "two", room=Room("cpu", workers=2))
    assert outcome == Outcome(groups=8, trainings=16, aside={})
    assert_same_scores(scores_in(tmp_path / "two"), expected)
    told = events(tmp_path / "two")
    assert sorted(Counter(each["event"] for each in told).items()) == [("done", 8), ("ready", 2), ("start", 8)]
    # Done already: no worker is started.
    assert sweep(experiment, shards=home, out=tmp_path / "two", room=Room("cpu")) == outcome
    assert events(tmp_path / "two") == told


def test_workers_share_the_images_they_hold(
    toml: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = find_experiment(str(toml))
    expected = trained_one_by_one(experiment, home, tmp_path / "alone")
    monkeypatch.setattr(sets_module, "hold", None)
    worked_on(experiment, home, tmp_path / "shared")
    assert_same_scores(scores_in(tmp_path / "shared"), expected)


def test_ctrl_c_leaves_what_the_same_command_continues(toml: Path, recipe: Recipe, home: Path, tmp_path: Path) -> None:
    long = written(tmp_path / "long", replace(recipe, optim=replace(recipe.optim, epochs=60)), *LINES[:3])
    experiment = find_experiment(str(long))
    process = start(long, home, tmp_path / "stopped", "--workers", "1")
    wait_for(tmp_path / "stopped", "start", 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert (out, err.splitlines()[-1]) == ("", "fastad: stopped by SIGINT; the same command continues")
    assert "Traceback" not in err
    assert [each["event"] for each in events(tmp_path / "stopped")] == ["ready", "start", "done", "start", "stopped"]
    assert len(list((tmp_path / "stopped").rglob("checkpoint.pt"))) == 2
    worked_on(experiment, home, tmp_path / "stopped")
    assert_same_scores(scores_in(tmp_path / "stopped"), trained_one_by_one(experiment, home, tmp_path / "alone"))


def alive(out: Path) -> list[int]:
    """The workers that have got ready and live."""
    pids = [int(str(told["pid"])) for told in events(out) if told["event"] == "ready"]
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return sorted(pid for pid, path in states.items() if path.is_file() and path.read_text().split()[2] != "Z")


def test_ten_kills_at_random_moments_lose_nothing_and_do_nothing_twice(
    recipe: Recipe, home: Path, tmp_path: Path
) -> None:
    frequent = replace(
        recipe, optim=replace(recipe.optim, epochs=20), train=replace(recipe.train, checkpoint_every_s=0.1)
    )
    toml = written(tmp_path / "killed", frequent, *LINES[:1], "seeds = 3", *LINES[2:4], "data.oe_size = [1, 2, 4, 8]")
    experiment, out, rng = find_experiment(str(toml)), tmp_path / "out", random.Random(7)
    groups = groups_of(experiment, home)
    process = start(toml, home, out, "--workers", "2")
    # Six workers, one at a time while others work, then the driver, three workers more.
    for kill in range(10):
        wait_for(out, "start", 1 + kill + sum(told["event"] == "done" for told in events(out)) // 2, process)
        time.sleep(rng.uniform(0, 1.5))
        if kill == 6:
            process.kill()
            process.communicate(timeout=120)
            process = start(toml, home, out, "--workers", "2")
            continue
        while not (pids := alive(out)):
            assert process.poll() is None, process.communicate(timeout=10)
            time.sleep(0.01)
        os.kill(rng.choice(pids), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    done = Counter(told["group"] for told in events(out) if told["event"] == "done")
    assert max(done.values()) == 1 and len(done) >= len(groups) - 10
    for run in find_runs([out]):
        assert [json.loads(line)["epoch"] for line in run.log.read_text().splitlines()] == list(range(20))
        assert run.result.is_file() and not run.checkpoint.exists()
    worked_on(experiment, home, tmp_path / "undisturbed")
    assert_same_scores(scores_in(out), scores_in(tmp_path / "undisturbed"))


def test_ray_gives_the_same_results_and_ends_with_its_driver(toml: Path, home: Path, tmp_path: Path) -> None:
    experiment = find_experiment(str(toml))
    process = start(toml, home, tmp_path / "ray", "--workers", "2", "--ray", "local")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == f"{tmp_path / 'ray' / 'tiny'}: 8 of 8 groups finished (16 trainings)\n"
    assert Counter(told["event"] for told in events(tmp_path / "ray")) == {"ready": 2, "start": 8, "done": 8}
    worked_on(experiment, home, tmp_path / "here")
    assert_same_scores(scores_in(tmp_path / "ray"), scores_in(tmp_path / "here"))


def test_what_fails_three_times_is_left_aside_and_the_rest_goes_on(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    toml = written(tmp_path / "failing", recipe, *LINES[:1], "seeds = 1", *LINES[2:4], "data.oe_size = [1000, 8]")
    process = start(toml, home, tmp_path / "out", "--workers", "1", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    told = json.loads(out)
    assert (told["groups"], told["trainings"]) == (4, 8)
    assert list(told["aside"]) == ["oe_size=1000 middle seed 1", "oe_size=1000 high seed 1"]
    line = err.splitlines()[-1]
    assert line.startswith("fastad: 2 groups failed 3 times and were left aside (2 of them: 1000 images asked of ")
    assert line.endswith("--retry tries them again") and ".log" in line
    log = Path(told["aside"]["oe_size=1000 high seed 1"]).read_text()
    assert "which has 90: ask for 1 to 90" in log and "Traceback" in log and "workers/" in log
    assert len(scores_in(tmp_path / "out")) == 4
    # What failed came after all others.
    names = [str(each["group"]) for each in events(tmp_path / "out") if each["event"] == "start"]
    assert ["1000" in name for name in names] == [True, True, False, False, True, True, True, True]

    experiment = find_experiment(str(toml))
    again = sweep(experiment, shards=home, out=tmp_path / "out", room=Room("cpu"))
    assert len(again.aside) == 2 and aside_line(again).startswith("2 groups failed")
    with Queue(groups_of(experiment, home), tmp_path / "out", folder_of(experiment, tmp_path / "out")) as queue:
        assert not queue.due()
        queue.forgive()
        assert len(queue.due()) == 2 and not queue.aside()


def test_another_error_than_a_user_s_is_noted_and_ends_the_worker(
    toml: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(sweep_worker, "train", broken)
    with pytest.raises(RuntimeError):
        worked_on(find_experiment(str(toml)), home, tmp_path)
    (path,) = (tmp_path / "tiny" / ".sweep" / "failed").iterdir()
    assert path.read_text().startswith("RuntimeError: CUDA error: an illegal memory access\n")
    assert [each["event"] for each in events(tmp_path)] == ["ready", "start", "failed"]


def test_drivers_that_share_a_folder_share_the_work(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    longer = replace(recipe, optim=replace(recipe.optim, epochs=40))
    toml, out = written(tmp_path / "shared", longer, *LINES), tmp_path / "out"
    drivers = [start(toml, home, out, "--workers", "1") for _ in range(2)]
    for driver in drivers:
        _, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
    done = Counter(told["group"] for told in events(out) if told["event"] == "done")
    assert (len(done), max(done.values())) == (8, 1)
    assert not list((out / "tiny" / ".sweep" / "drivers").iterdir())


def test_drivers_that_begin_together_write_the_recipes_one_after_the_other(
    toml: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one's temporary file is renamed by the other, which then finds none."""
    held = []

    def checked(path: Path, recipe: Recipe) -> None:
        with open(path.with_name("recipes.lock")) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(path)
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(sweep_module, "check_recipe", checked)
    with pytest.raises(Interrupted):
        sweep(find_experiment(str(toml)), shards=home, out=tmp_path, room=Room("cpu"))
    assert len(held) == 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_results_do_not_depend_on_the_gpu(toml: Path, home: Path, tmp_path: Path) -> None:
    experiment, exact = find_experiment(str(toml)), ["train.deterministic=true"]
    for gpus in (1, 2):
        sweep(experiment, shards=home, out=tmp_path / str(gpus), changes=exact, room=Room("cuda", gpus=gpus))
    assert_same_scores(scores_in(tmp_path / "1"), scores_in(tmp_path / "2"))


class FakePool:
    """Workers that end as they are told, and what was asked of the pool."""

    def __init__(self, *rounds: Sequence[Ended], names: Sequence[str] = ("w",)) -> None:
        self.rounds = list(rounds)
        self.started: list[str] = []
        self.names: list[str] = []
        self._all = names

    def fill(self) -> None:
        self.started += [name for name in self._all if name not in self.names]
        self.names = list(self._all)

    def ended(self, timeout_s: float) -> list[Ended]:
        found = list(self.rounds.pop(0))
        self.names = [name for name in self.names if name not in {ended.name for ended in found}]
        return found

    def stop(self) -> None:
        self.rounds = [[Ended(name, None) for name in self.names]]


def driven(toml: Path, home: Path, out: Path, pool: FakePool, *told: dict[str, object]) -> Group | None:
    """What is due first after a drive with this pool, whose worker "w" has told so much."""
    experiment = find_experiment(str(toml))
    groups, folder = groups_of(experiment, home), folder_of(experiment, out)
    work = Work(tuple(groups), home, out, folder, "cpu", 1)
    work.events("w").parent.mkdir(parents=True)
    work.events("w").write_text("".join(json.dumps({"at": 0.0} | each) + "\n" for each in told))
    watch = Watch(experiment.name, groups, out, folder)
    with Queue(groups, out, folder) as queue:
        sweep_module._drive(pool, queue, watch, work, lambda: 0, lambda: None)  # type: ignore[arg-type]
        return queue.take()


def test_a_killed_worker_s_group_has_failed_once_and_another_worker_starts(
    toml: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = groups_of(find_experiment(str(toml)), home)[0]
    pool = FakePool([Ended("w", "killed by SIGKILL")], [Ended("w", None)])
    lines = ({"event": "ready", "device": "cpu"}, {"event": "start", "group": group.name})
    first = driven(toml, home, tmp_path, pool, *lines)
    assert first is not None and first != group
    assert pool.started == ["w", "w"]
    (path,) = (tmp_path / "tiny" / ".sweep" / "failed").iterdir()
    assert path.name.startswith(group.file_name) and "w killed by SIGKILL" in path.read_text()
    assert f"w killed by SIGKILL at {group.label}" in capsys.readouterr().err


def test_workers_that_never_get_ready_end_the_sweep(toml: Path, home: Path, tmp_path: Path) -> None:
    pool = FakePool(*[[Ended("w", "ended with exit code 1")]] * 3)
    with pytest.raises(FastadError, match=r"workers end before they are ready: see .*workers/w\.log"):
        driven(toml, home, tmp_path, pool)


def test_other_settings_and_missing_sets_are_refused(toml: Path, home: Path, tmp_path: Path) -> None:
    experiment = find_experiment(str(toml))
    with pytest.raises(FastadError, match=r"the classes of blobs are known once it is converted: fastad shard blobs"):
        sweep(experiment, shards=tmp_path, out=tmp_path)
    with pytest.raises(FastadError, match=r"tiny needs sets that .* lacks: fastad shard letters --out"):
        sweep(experiment, shards=home, out=tmp_path, changes=["data.oe=letters"])
    worked_on(experiment, home, tmp_path)
    sweep_module.check_recipe(
        folder_of(experiment, tmp_path) / "tiny-oe_size=8.toml", groups_of(experiment, home)[0].recipe
    )
    with pytest.raises(FastadError, match="holds a run of another recipe .*epochs = 5 there.*choose another --out"):
        sweep(experiment, shards=home, out=tmp_path, changes=["optim.epochs=6"])
    with pytest.raises(FastadError, match="unknown device 'gpu'"):
        layout(Room("gpu"), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_gpus_are_refused_where_there_are_none() -> None:
    with pytest.raises(FastadError, match="--device cuda asked, but PyTorch finds no CUDA GPU"):
        layout(Room("cuda"), 1)


def test_room_becomes_workers_and_each_gets_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (layout(Room("cpu"), 100).workers, layout(Room("cpu"), 3).workers) == (4, 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = layout(Room("cpu"), 100)
    assert (found.workers, found.threads) == (8, 1)
    assert slots_on_cpu(2, 3)[1].environment == {"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = layout(Room("auto", gpus=2, workers_per_gpu=2), 100)
    assert (found.device, found.gpus, found.workers, found.threads) == ("cuda", 2, 4, 2)
    with pytest.raises(FastadError, match="--gpus 5: PyTorch finds 4 here"):
        layout(Room("auto", gpus=5), 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-x")
    slots = slots_on_gpus(2, 2, 1)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["6", "GPU-x", "6", "GPU-x"]
    assert len({slot.name for slot in slots}) == 4


def test_the_screen_tells_what_is_done_how_fast_and_what_is_left(
    toml: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = find_experiment(str(toml))
    groups, folder = groups_of(experiment, home), folder_of(experiment, tmp_path)
    watch = Watch(experiment.name, groups, tmp_path, folder)
    path = folder / "workers" / "n.1.0.jsonl"
    path.parent.mkdir(parents=True)
    now = time.time() + 1
    told = {"seconds": 2.0, "train_s": 1.5, "trainings": 2, "steps": 10}
    lines = [
        {"at": now, "event": "ready", "device": "cpu"},
        {"at": now, "event": "done", "group": groups[0].name, **told},
        {"at": now, "event": "failed", "group": groups[1].name, "why": "x"},
        {"at": now, "event": "start", "group": groups[2].name},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"at": 1, "ev')
    run = groups[2].runs(tmp_path)[0]
    run.folder.mkdir(parents=True)
    line = {"epoch": 2, "images_per_s": 1234.5, "stall_share": 0.031}
    run.log.write_text(json.dumps(line) + "\n")
    watch.began = time.time() - 10
    watch.read()
    with Screen(watch) as screen:
        screen.show(["n.1.0"])
        screen.show(["n.1.0"])
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, "a line now and then, not each time"
    assert "tiny: 1 of 8 groups done, 1 running, 1 failed, 7" in shown
    assert "70 s left; images/s: 1,234; waiting: 3.1 %" in shown
    assert [(each.group, each.seconds, each.steps) for each in watch.measured] == [(groups[0], 2.0, 10)]
    table = Console(width=150, file=io.StringIO(), record=True)
    table.print(screen._table(["n.1.0", "n.1.1"], ""))
    rows = [line.replace("│", " ").split() for line in table.export_text().splitlines() if "n.1." in line]
    assert rows == [["n.1.0", *groups[2].label.split(), "3/5", "1,234", "3.1", "%"], ["n.1.1", "starting"]]


def test_a_sweep_stopped_before_it_begins_raises(toml: Path, home: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        sweep(
            find_experiment(str(toml)),
            shards=home,
            out=tmp_path,
            room=Room("cpu", workers=1),
            stop=lambda: signal.SIGTERM,
        )
    assert not list(tmp_path.rglob("result.json"))

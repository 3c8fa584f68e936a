"""Nothing is lost: kills at any moment, signals, damaged checkpoints and full disks leave what goes on exactly."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import after, assert_same_scores, run_with_small_files, scores_in

from fastad import files
from fastad.errors import FastadError, Interrupted
from fastad.execution import Execution
from fastad.group import Workbench
from fastad.recipe import Recipe, dump
from fastad.run import Run, RunResult, find_runs
from fastad.train import train

CPU = torch.device("cpu")

KILLED = '''
"""Trains in children that kill themselves, at a random step or amid the writing of a file, until 20 are dead; then in
one that does not, and in one that was never killed. Nothing is computed before they are made, so that all are alike."""
import os, random, signal, sys
from pathlib import Path
import torch
import torch._dynamo  # or each of them would import it in its first step
from fastad.recipe import load
from fastad.train import train

recipe, home, out = load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
rng = random.Random(1)

def child(folder, steps, writes):
    left = {"steps": steps, "writes": writes}
    def one_less(kind):
        left[kind] -= 1
        if left[kind] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0
    for name in ("fsync", "replace"):
        def killing(*arguments, original=getattr(os, name)):
            one_less("writes")
            return original(*arguments)
        setattr(os, name, killing)
    train(recipe, shards=home, out=out / folder, device=torch.device("cpu"), classes=["middle"],
          stop=lambda: one_less("steps"))

def run(folder, steps=-1, writes=-1):
    sys.stderr.flush()
    if (number := os.fork()) == 0:
        child(folder, steps, writes)
        sys.stderr.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

codes = [run("killed", rng.randint(1, 6)) if kill % 2 else run("killed", writes=rng.randint(1, 8))
         for kill in range(20)]
assert codes == [-signal.SIGKILL] * 20, codes
assert [run("killed"), run("whole")] == [0, 0]
'''


def run(recipe: Recipe, home: Path, out: Path, **fields: object) -> list[RunResult]:
    arguments: dict[str, object] = {"classes": ["middle"], **fields}
    return train(recipe, shards=home, out=out, device=CPU, **arguments)  # type: ignore[arg-type]


def test_killed_twenty_times_at_random_the_scores_are_the_same(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    """A checkpoint after every epoch of two steps, so that steps are lost and come again."""
    often = replace(recipe.train, checkpoint_every_epochs=1)
    path = tmp_path / "tiny.toml"
    optim = replace(recipe.optim, epochs=40)
    path.write_text(dump(replace(recipe, objectives=("hsc",), train=often, optim=optim)))
    command = [sys.executable, "-c", KILLED, path, home, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert_same_scores(scores_in(tmp_path / "killed"), scores_in(tmp_path / "whole"))
    left = {file.name for file in tmp_path.glob("killed/**/*") if file.is_file()}
    assert left == {"recipe.toml", "run.json", "log.jsonl", "model.pt", "scores.npz", "examples.npz", "result.json"}


def interrupted_at(steps: tuple[int, ...], recipe: Recipe, home: Path, out: Path) -> Run:
    """A run of HSC that was interrupted after so many steps each time."""
    for count in steps:
        with pytest.raises(Interrupted):
            run(recipe, home, out, objectives=["hsc"], stop=after(count))
    return find_runs([out])[0]


def flip(path: Path) -> None:
    """Changes one byte among the weights, which no archive format notices by itself."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: object,
    recipe: Recipe,
    home: Path,
    tmp_path: Path,
    uninterrupted: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = interrupted_at((3, 4), recipe, home, tmp_path)
    for path, step in ((found.checkpoint, 7), (found.earlier_checkpoint, 3)):
        assert torch.load(path, weights_only=True)["training"]["step"] == step
    damage(found.checkpoint)  # type: ignore[operator]
    capsys.readouterr()
    run(recipe, home, tmp_path)
    told = f"{found.checkpoint} is damaged or cut short: going on from the one before it, of step 3"
    assert told in capsys.readouterr().err
    assert_same_scores(scores_in(tmp_path), uninterrupted)
    assert not found.checkpoint.exists() and not found.earlier_checkpoint.exists()


def test_a_training_goes_on_in_the_memory_format_it_began_with(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be chosen for a new one by then is another: as where the cache of what was measured is gone."""
    plain = Execution(memory_format="contiguous")
    monkeypatch.setattr(Workbench, "execution", lambda self, steps: plain)
    (whole,) = run(recipe, home, tmp_path / "whole", objectives=["hsc"])
    interrupted_at((3,), recipe, home, tmp_path / "cut")
    monkeypatch.setattr(Workbench, "execution", lambda self, steps: Execution())
    (found,) = run(recipe, home, tmp_path / "cut", objectives=["hsc"])
    assert (whole.memory_format, found.memory_format) == ("contiguous", "contiguous")
    assert_same_scores(scores_in(tmp_path / "cut"), scores_in(tmp_path / "whole"))


def test_checkpoints_that_cannot_be_gone_on_from_are_said(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    from fastad import checkpoint

    found = interrupted_at((3,), recipe, home, tmp_path)
    saved = torch.load(found.checkpoint, weights_only=True)
    for changed, message in (
        ({"fingerprint": ["other", "shards"]}, "was begun with other shards: remove it"),
        ({"plan": ["other", "rows"]}, "was begun with another order of images"),
    ):
        found.checkpoint.write_bytes(checkpoint.sealed(checkpoint.tensor_bytes(saved | changed)))
        with pytest.raises(FastadError, match=message):
            run(recipe, home, tmp_path, objectives=["hsc"])
    flip(found.checkpoint)
    with pytest.raises(FastadError, match=r"checkpoint\.pt cannot be read: remove .*seed1 to train this run anew"):
        run(recipe, home, tmp_path, objectives=["hsc"])


def test_checkpoints_come_by_epochs_and_by_time(
    recipe: Recipe, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastad import train as train_module

    written: list[int] = []
    monkeypatch.setattr(train_module, "write_checkpoint", lambda training, *_: written.append(training.step))
    for number, (every_s, every_epochs, expected) in enumerate(
        ((60.0, 0, []), (60.0, 2, [4, 8]), (60.0, 1, [2, 4, 6, 8, 10]), (0.0, 0, list(range(1, 11))))
    ):
        how = replace(recipe.train, checkpoint_every_s=every_s, checkpoint_every_epochs=every_epochs)
        written.clear()
        run(replace(recipe, train=how), home, tmp_path / str(number), objectives=["hsc"])
        assert written == expected


def test_how_often_does_not_make_it_another_run(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    interrupted_at((3,), recipe, home, tmp_path)
    run(replace(recipe, train=replace(recipe.train, checkpoint_every_epochs=1)), home, tmp_path, objectives=["hsc"])


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on(
    recipe: Recipe,
    home: Path,
    tmp_path: Path,
    uninterrupted: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = interrupted_at((3,), recipe, home, tmp_path)
    before = found.checkpoint.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        patched.setattr("fastad.log.write_text", lambda *_: None)
        often = replace(recipe, train=replace(recipe.train, checkpoint_every_epochs=1))
        with pytest.raises(Interrupted):
            run(often, home, tmp_path, objectives=["hsc"], stop=after(4))
    told = capsys.readouterr().err
    assert told.count("cannot write") == 3  # at steps 4 and 6, and as it stops at step 7
    assert "No space left on device; free some space" in told
    assert "1 of 1 checkpoints are not written, and training goes on" in told
    assert found.checkpoint.read_bytes() == before
    run(recipe, home, tmp_path)
    assert_same_scores(scores_in(tmp_path), uninterrupted)


@pytest.mark.parametrize("limit", [300_000, 1_000_000])
def test_a_disk_that_fills_up_costs_checkpoints_or_results_and_the_same_command_continues(
    limit: int, recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    """The checkpoint (1.4 MB) does not fit, or the model (0.5 MB) neither."""
    path, out = tmp_path / "tiny.toml", tmp_path / "o"
    path.write_text(dump(replace(recipe, train=replace(recipe.train, checkpoint_every_epochs=2))))
    full = run_with_small_files(limit, "train", path, "--class", "middle", "--shards", home, "--out", out)
    assert full.stderr.count("2 of 2 checkpoints are not written, and training goes on") == 2
    if limit > 500_000:
        assert full.returncode == 0, full.stderr
    else:
        assert full.returncode == 2, full.stderr
        last = full.stderr.splitlines()[-1]
        assert last.startswith("fastad: cannot write") and "model.pt" in last
        assert not [file for file in out.glob("**/*") if file.suffix in (".pt", ".tmp")]
        run(recipe, home, out)
    assert_same_scores(scores_in(out), uninterrupted)


def test_a_terminated_process_continues_from_its_checkpoint(
    recipe: Recipe, home: Path, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    """SIGTERM ends with a checkpoint and exit code 143; the scores are the same."""
    path = tmp_path / "tiny.toml"
    path.write_text(dump(replace(recipe, train=replace(recipe.train, checkpoint_every_s=0.0))))
    # As many threads as in this process: on the CPU the order of sums, and so the last bits, depend on them.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "fastad", "train", path, "--class", "middle", "--shards", home]
    command += ["--out", tmp_path / "o"]
    codes = []
    for number in (signal.SIGTERM, None):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while number and process.poll() is None and not list(tmp_path.glob("o/**/checkpoint.pt")):
            time.sleep(0.005)
        if number:
            process.send_signal(number)
        process.wait(timeout=120)
        codes.append(process.returncode)
    assert codes[0] in (143, 0)
    assert codes[1] == 0
    assert_same_scores(scores_in(tmp_path / "o"), uninterrupted)

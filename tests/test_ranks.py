"""Two processes train as one does: run as a script under torchrun, this file is what each of them does.

Both compute the same sums in other orders, float32 on the CPU. Gradients of the first step and the statistics that it
leaves agree to 2e-5 of the largest of each kind; after ten steps, whose differences Adam enlarges, scores do to 2 %.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

from fastad.errors import Interrupted
from fastad.evaluate import read_scores
from fastad.execution import Execution
from fastad.group import Workbench
from fastad.objectives import find
from fastad.pipeline import train_batches
from fastad.ranks import WholeBatchNorm, average, joined, of_first, share
from fastad.recipe import Recipe, dump, load
from fastad.run import find_runs
from fastad.sets import make_plan, open_sets, training_sources
from fastad.train import train

CPU = torch.device("cpu")
OBJECTIVES = ("hsc", "bce", "deep-svdd")
# Two processes with as many threads as there are cores would wait for each other; and each would compile all of
# PyTorch's Python anew, did none of them leave it behind.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
FASTAD = ("-m", "fastad", "train")
PATIENCE_S = 180


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S
    )


@contextmanager
def two_processes(*arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """What torchrun starts, without what it adds: each process's own exit code and messages. The store is kept here."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=ENVIRONMENT | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Their exit codes, and what fastad told at last."""
    told = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    return [process.returncode for process in processes], [
        line for text in told for line in text.splitlines() if line.startswith("fastad: ")
    ]


def scores(out: Path) -> dict[str, np.ndarray]:
    return {run.objective: read_scores(run).score for run in find_runs([out])}


def steps(out: Path) -> set[int]:
    """Those of the checkpoints; a process that is writing one leaves a moment without."""
    found = set()
    for run in find_runs([out]):
        with suppress(FileNotFoundError):
            found.add(torch.load(run.checkpoint, weights_only=True)["training"]["step"])
    return found


def assert_near(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=0, atol=tolerance * abs(values).max(), err_msg=name)


def batches_of(recipe: Recipe, home: Path) -> dict[str, np.ndarray]:
    """Rows [steps, b] and pixels of a process's share of every batch."""
    sets = open_sets(recipe, home)
    plan = make_plan(recipe, sets, "middle", 1)
    sources = training_sources(recipe, sets, plan, CPU)
    batches = list(train_batches(plan, sources, recipe.augment, CPU, share=share()))
    return {
        "row": np.stack([batch.row for batch in batches]),
        "target": np.stack([batch.target.numpy() for batch in batches]),
        "images": np.stack([batch.images.numpy() for batch in batches]),
    }


def first_step(recipe: Recipe, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients and running statistics that the first batch gives, by objective and name; and each mean loss."""
    workbench = Workbench(recipe, (28, 28, 1), CPU)
    images, target = torch.from_numpy(found["images"][0]), torch.from_numpy(found["target"][0])
    numbers = {}
    for name in OBJECTIVES:
        member = workbench.member(find(name), 1, Execution())
        loss, _ = member.loss(images, target)
        loss.backward()
        numbers[f"{name} loss"] = average(member.model.parameters(), loss.detach()).numpy()
        for parameter, value in member.model.named_parameters():
            assert value.grad is not None
            numbers[f"{name} {parameter}"] = value.grad.numpy()
        numbers |= {f"{name} {buffer}": value.numpy() for buffer, value in member.model.named_buffers()}
    return numbers


def compiled_norm(values: np.ndarray) -> dict[str, np.ndarray]:
    """What a batch norm traced into one graph makes of this process's share, and the gradient that comes back."""
    norm = WholeBatchNorm(nn.BatchNorm1d(3))
    traced = torch.compile(norm, fullgraph=True, backend="aot_eager")
    x = torch.from_numpy(values[share().columns(len(values))]).requires_grad_()
    out = traced(x)
    (out**3).sum().backward()
    assert x.grad is not None
    return {"out": out.detach().numpy(), "grad": x.grad.numpy()}


def small_values() -> np.ndarray:
    return np.random.default_rng(3).normal(100, 1, (8, 3)).astype(np.float32)


def after(calls: int) -> Iterator[int]:
    """What `stop` says: at the end of the step of that number, and of those after it, a signal."""
    for call in range(1, 1_000):
        yield signal.SIGTERM if call >= calls else 0


def main(path: str, home: Path, out: Path) -> None:
    """What each of two processes does. The second one alone is asked to stop at step 3: both do at step 4."""
    recipe = load(path)
    with joined():
        rank = share().rank
        found = batches_of(recipe, home)
        np.savez(out / f"batches-{rank}.npz", **found)
        np.savez(out / f"first-{rank}.npz", **first_step(recipe, found))
        np.savez(out / f"norm-{rank}.npz", **compiled_norm(small_values()))
        arguments: dict[str, Any] = {"shards": home, "device": CPU, "classes": ["middle"]}
        train(recipe, out=out / "whole", **arguments)
        asked = after(3 if rank == 1 else 1_000)
        try:
            train(recipe, out=out / "resumed", stop=lambda: next(asked), **arguments)
        except Interrupted as stopped:
            assert stopped.signal_number == signal.SIGTERM
            of_first((out / "stopped").touch)


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    from fastad.recipe import parse

    augment = {"flip_probability": 0.5, "crop_px": 28, "crop_padding_px": 2, "noise_std": 0.01, "brightness": 0.1}
    return parse(
        {
            "name": "tiny",
            "network": "mnist-lenet",
            "objectives": list(OBJECTIVES),
            "data": {"nominal": "blobs", "oe": "extras", "batch_nominal": 16, "batch_oe": 16},
            "optim": {"epochs": 5, "milestones": [3]},
            "augment": augment,
        }
    )


@pytest.fixture(scope="module")
def done(tiny: Recipe, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes did what `main` says."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "tiny.toml").write_text(dump(tiny))
    finished = torchrun(__file__, out / "tiny.toml", home, out)
    assert finished.returncode == 0, finished.stderr
    return out


def loaded(done: Path, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(done / f"{name}-{rank}.npz")) for rank in range(2)]


def test_the_shares_of_two_processes_make_up_the_batches_of_one(tiny: Recipe, home: Path, done: Path) -> None:
    whole = batches_of(tiny, home)
    one, other = loaded(done, "batches")
    assert whole["row"].shape == (10, 32)
    for name, values in whole.items():
        nominal, oe = [one[name][:, :8], other[name][:, :8]], [one[name][:, 8:], other[name][:, 8:]]
        np.testing.assert_array_equal(np.concatenate([*nominal, *oe], axis=1), values)


def test_gradients_and_running_statistics_are_those_of_the_whole_batch(tiny: Recipe, home: Path, done: Path) -> None:
    one, other = loaded(done, "first")
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)
    # What a bias adds, the batch norm behind it takes away: its gradient is nothing but rounding.
    whole = {
        name: values
        for name, values in first_step(tiny, batches_of(tiny, home)).items()
        if name.split()[1] not in ("body.0.bias", "body.4.bias", "body.9.bias")
    }
    assert_near(whole, {name: one[name] for name in whole}, 2e-5)


def test_whole_batch_norm_is_batch_norm_and_can_be_compiled(done: Path) -> None:
    values = torch.from_numpy(small_values()).requires_grad_()
    out = nn.BatchNorm1d(3)(values)
    (out**3).sum().backward()
    assert values.grad is not None
    parts = loaded(done, "norm")
    np.testing.assert_allclose(np.concatenate([part["out"] for part in parts]), out.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(np.concatenate([part["grad"] for part in parts]), values.grad.numpy(), atol=1e-4)


def test_scores_are_those_of_one_process(tiny: Recipe, home: Path, done: Path, tmp_path: Path) -> None:
    alone = train(tiny, shards=home, out=tmp_path, device=CPU, classes=["middle"])
    assert_near(scores(tmp_path), scores(done / "whole"), 0.02)
    for run in find_runs([done / "whole"]):
        lines = [json.loads(line) for line in run.log.read_text().splitlines()]
        assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    found = [json.loads(run.result.read_bytes()) for run in find_runs([done / "whole"])]
    assert [result["environment"]["processes"] for result in found] == [2, 2, 2]
    assert [result.environment["processes"] for result in alone] == [1, 1, 1]
    for name, health in {result["objective"]: result["health"] for result in found}.items():
        (expected,) = (result.health for result in alone if result.objective == name)
        assert health == expected | {"largest_second_moment": pytest.approx(expected["largest_second_moment"], rel=0.1)}
    assert {result["objective"]: result["counts"] for result in found} == {
        result.objective: result.counts for result in alone
    }


def test_a_run_goes_on_with_another_number_of_processes(tiny: Recipe, home: Path, done: Path) -> None:
    """Two processes stop at step 4, one goes on to step 6, two finish, from the command line."""
    out = done / "resumed"
    assert (done / "stopped").exists()
    assert steps(out) == {4}
    asked = after(2)
    with pytest.raises(Interrupted):
        train(tiny, shards=home, out=out, device=CPU, classes=["middle"], stop=lambda: next(asked))
    assert steps(out) == {6}
    finished = torchrun(*FASTAD, done / "tiny.toml", "--class", "middle", "--shards", home, "--out", out, "--json")
    assert finished.returncode == 0, finished.stderr
    assert [run["objective"] for run in json.loads(finished.stdout)["runs"]] == list(OBJECTIVES)
    assert finished.stderr.count("device: CPU") == 1
    assert_near(scores(done / "whole"), scores(out), 0.02)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_gpus_train_as_one(tiny: Recipe, home: Path, tmp_path: Path) -> None:
    """By NCCL, each process on the GPU of its number. Convolutions in TF32, of other sizes and so by other kernels,
    differ by 1e-3; ten steps of Adam make more of that than of float32's rounding."""
    (tmp_path / "tiny.toml").write_text(dump(tiny))
    asked = ("--class", "middle", "--shards", home, "--device", "cuda", "--set", "train.precision=float32", "--json")
    finished = torchrun(*FASTAD, tmp_path / "tiny.toml", "--out", tmp_path / "two", *asked)
    assert finished.returncode == 0, finished.stderr
    recipe = replace(tiny, train=replace(tiny.train, precision="float32"))
    train(recipe, shards=home, out=tmp_path / "one", device=torch.device("cuda", 0), classes=["middle"])
    assert_near(scores(tmp_path / "one"), scores(tmp_path / "two"), 0.1)
    for run in find_runs([tmp_path / "two"]):
        assert json.loads(run.result.read_bytes())["environment"]["processes"] == 2


def test_a_batch_that_does_not_divide_is_one_line(done: Path, home: Path, tmp_path: Path) -> None:
    asked = ("--set", "data.batch_oe=15", "--shards", home, "--out", tmp_path / "out")
    with two_processes(*FASTAD, done / "tiny.toml", *asked) as processes:
        codes, told = ends(processes)
    assert codes == [2, 2]
    assert told == [
        "fastad: 2 processes cannot share 15 oe images a batch equally: choose a batch that is a multiple of 2"
    ]
    assert not (tmp_path / "out").exists()


def test_a_signal_to_one_stops_all_and_a_death_ends_all(tiny: Recipe, home: Path, tmp_path: Path) -> None:
    often = replace(tiny.train, checkpoint_every_s=0.0)
    long = replace(tiny, train=often, optim=replace(tiny.optim, epochs=1_000), objectives=("hsc",))
    path, out = tmp_path / "tiny.toml", tmp_path / "out"
    path.write_text(dump(long))
    told, codes = [], []
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = steps(out) if out.exists() else set()
        with two_processes(*FASTAD, path, "--class", "middle", "--shards", home, "--out", out) as processes:
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until and not (list(out.glob("**/run.json")) and steps(out) - before):
                time.sleep(0.05)
            processes[1].send_signal(number)
            sent = time.monotonic()
            code, lines = ends(processes)
            assert time.monotonic() - sent < 20
        codes.append(code)
        told += lines
    assert codes == [[143, 143], [2, -9]]
    assert told == [
        "fastad: stopped by SIGTERM; the same command continues",
        "fastad: another process of this training has ended: the same command continues from the last checkpoint",
    ]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

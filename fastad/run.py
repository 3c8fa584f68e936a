"""The run directory of one training: its name, its files, its environment and its result.

Owns `<out>/<recipe>/<class>/<objective>/seed<N>/` and what its files are called; their contents come from
`fastad.train` and `fastad.evaluate`. `result.json` is written last: its presence means that the run is finished.
Use: `run = open_run(out, recipe, "Trouser", "hsc", seed=1)`.
"""

import io
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastad.dali import LoaderSpec
from fastad.errors import FastadError
from fastad.files import write_json, write_text
from fastad.objectives import OBJECTIVES
from fastad.progress import say
from fastad.ranks import gpu
from fastad.recipe import Recipe, dump, load


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a recipe for one nominal class, one objective and one seed, and the folder it lives in."""

    folder: Path
    recipe: Recipe
    class_name: str
    objective: str
    seed: int

    @property
    def identity(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def earlier_checkpoint(self) -> Path:
        return self.folder / "checkpoint-earlier.pt"

    @property
    def model(self) -> Path:
        return self.folder / "model.pt"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.npz"

    @property
    def examples(self) -> Path:
        return self.folder / "examples.npz"

    @property
    def replaced(self) -> Path:
        return self.folder / "replaced.json"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run. `metrics`: "auroc", "average_precision", "fpr95" as fractions. `seconds`: wall time by phase.

    `stall_share`: the share of training time spent waiting for batches, and `verdict` what that says (`fastad.verdict`;
    empty in results older than it). `group_size`: objectives trained on the same batches at once; `images_per_s` counts
    each image once. `memory_format`: in results older than it always this one.

    `health`, over the whole training (`fastad.training`): "guard_hits", "nonfinite_losses" and "largest_second_moment",
    None where that is not finite; empty in results older than it. `diverged_at_epoch`: the epoch, as log.jsonl counts
    them, in which the loss was not finite, and after which the model was left as it was; None for all others. Metrics
    are NaN, null in the file, where the scores of a diverged model are not finite.
    """

    recipe: str
    class_name: str
    objective: str
    seed: int
    metrics: Mapping[str, Interval]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    images_per_s: float
    stall_share: float
    group_size: int
    precision: str
    compiled: bool
    environment: Mapping[str, Any]
    memory_format: str = "channels_last"
    verdict: str = ""
    health: Mapping[str, float | None] = field(default_factory=dict)
    diverged_at_epoch: int | None = None


def slug(name: str) -> str:
    """A name as it stands in paths: what is not a letter, digit or one of `._=,-` becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._=,-]+", "-", name)


def locate(out: Path, recipe: Recipe, class_name: str, objective: str, seed: int) -> Run:
    """The run in the folder that is its own; nothing is read or written.

    A recipe's name may have parts, as `fastad.experiment` gives them, "cifar10-oe-size/oe_size=64"; each is a folder.
    """
    folder = out.joinpath(*map(slug, recipe.name.split("/")), slug(class_name), slug(objective), f"seed{seed}")
    return Run(folder, recipe, class_name, objective, seed)


def open_run(out: Path, recipe: Recipe, class_name: str, objective: str, seed: int) -> Run:
    """The run in its folder, new or as it was left; raises `FastadError` if another recipe's run stands there."""
    run = locate(out, recipe, class_name, objective, seed)
    check_run(run)
    begin_run(run)
    return run


def check_run(run: Run) -> None:
    """Raises `FastadError` if another run, or another recipe's, stands in the run's folder; nothing is written."""
    if not run.identity.is_file():
        return
    if (other := json.loads(run.identity.read_bytes())) != _identity(run):
        raise FastadError(f"{run.folder} holds the run of {other['class']} {other['objective']}: choose another --out")
    check_recipe(run.folder / "recipe.toml", run.recipe)


def begin_run(run: Run) -> None:
    """Makes the folder of a run that has not begun."""
    if not run.identity.is_file():
        write_text(run.folder / "recipe.toml", dump(run.recipe))
        write_json(run.identity, _identity(run))


def _identity(run: Run) -> dict[str, str | int]:
    return {"class": run.class_name, "objective": run.objective, "seed": run.seed}


def check_recipe(path: Path, recipe: Recipe) -> None:
    """Raises `FastadError` if another recipe stands in the file; writes this one if there is none."""
    if not path.is_file():
        write_text(path, dump(recipe))
        return
    found = load(str(path))
    if _defining(found) != _defining(recipe):
        there, asked = dump(_defining(found)).splitlines(), dump(_defining(recipe)).splitlines()
        changed = [line for line in there if line not in asked] or ["a key less"]
        raise FastadError(
            f"{path.parent} holds a run of another recipe ({changed[0].strip()} there): "
            "choose another --out or remove it"
        )


def _defining(recipe: Recipe) -> Recipe:
    """The recipe without what changes no run: the objectives that it lists, how images are read, decoded and held, how
    often a checkpoint is written, and what shows the training."""
    train = replace(recipe.train, resident="auto", checkpoint_every_s=0.0, checkpoint_every_epochs=0, tensorboard=False)
    return replace(recipe, objectives=(), loader=LoaderSpec(), train=train)


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Every run in the folders or below them, finished or not; raises `FastadError` if one of the folders holds none.

    In the order of recipe and class (numbers in them as numbers), objective (as in the table of objectives) and seed.
    """
    runs = {}
    recipes: dict[bytes, Recipe] = {}  # thousands of runs share one, and parsing takes milliseconds
    for folder in folders:
        found = sorted(folder.glob("**/run.json")) if folder.is_dir() else []
        if not found:
            raise FastadError(f"no run in {folder}: give a folder that fastad train wrote")
        for path in found:
            identity = json.loads(path.read_bytes())
            text = path.with_name("recipe.toml").read_bytes()
            recipe = recipes.get(text) or recipes.setdefault(text, load(str(path.with_name("recipe.toml"))))
            runs[path.parent.resolve()] = Run(
                path.parent, recipe, identity["class"], identity["objective"], identity["seed"]
            )
    return sorted(runs.values(), key=_place)


def _place(run: Run) -> tuple[object, ...]:
    objective = list(OBJECTIVES).index(run.objective.partition(":")[0])
    return natural(run.recipe.name), natural(run.class_name), objective, run.objective, run.seed


def natural(text: str) -> list[tuple[int, str]]:
    """What sorts texts with the numbers in them as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def write_result(run: Run, result: RunResult) -> None:
    """Writes `result.json`: the run is finished."""
    value = asdict(result)
    value["metrics"] = {name: _as_json(interval) for name, interval in result.metrics.items()}
    write_json(run.result, value)


def _as_json(interval: Interval) -> dict[str, float | None]:
    """What is not a number is null: JSON has no NaN."""
    return {key: None if math.isnan(value) else value for key, value in interval._asdict().items()}


def _from_json(value: Mapping[str, float | None]) -> Interval:
    return Interval(**{key: math.nan if number is None else number for key, number in value.items()})


def read_result(run: Run) -> RunResult | None:
    """The result of a finished run, None for one that is not; raises `FastadError` for a file that is not a result."""
    if not run.result.is_file():
        return None
    try:
        value = json.loads(run.result.read_bytes())
        value["metrics"] = {name: _from_json(interval) for name, interval in value["metrics"].items()}
        return RunResult(**value)
    except (ValueError, TypeError, KeyError) as error:
        raise FastadError(
            f"{run.result} is not a result of this fastad ({error}): remove it and evaluate again"
        ) from error


def tensor_bytes(value: Mapping[str, Any]) -> bytes:
    """The file that `torch.load(path, weights_only=True)` reads.

    Not written by torch: to a full disk, it raises an error that does not say so.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """While it lasts, if asked for, PyTorch uses algorithms only that give the same bits every time on one device.

    Raises `FastadError` where an operation has none. On the CPU all do, for one number of threads.
    """
    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    # cuBLAS reads it when it is first used: a workspace that streams do not share.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(".")[0]
        raise FastadError(f"train.deterministic=true: {reason}: set it to false, or train.compile to on") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


DEVICES = ("auto", "cpu", "cuda")


def choose_device(asked: str) -> torch.device:
    """The device to work on, said aloud; "cuda" without a GPU raises `FastadError`, "auto" falls back to the CPU."""
    if asked not in DEVICES:
        raise FastadError(f"unknown device {asked!r}: use auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise FastadError("--device cuda asked, but PyTorch finds no CUDA GPU: use --device cpu, or check nvidia-smi")
    if asked == "cpu" or not torch.cuda.is_available():
        why = "" if asked == "cpu" else ": no CUDA GPU found"
        say(f"device: CPU, {torch.get_num_threads()} threads, for training and DALI{why}")
        return torch.device("cpu")
    device = gpu()
    say(f"device: {torch.cuda.get_device_name(device)}, for training and DALI")
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """What a result rests on: versions, processor and device."""
    packages = ("fastad", "torch", "torchvision", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, platform.machine())

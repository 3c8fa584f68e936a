"""The command line of sweeps: `fastad sweep`, which `fastad.cli` takes in.

Owns its arguments, and what of its outcome is printed; heavy imports stand inside the command.
Use: `fastad sweep --help`.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastad.errors import FastadError
from fastad.options import DeviceOption, JsonOption, OutOption, SetOption, ShardsOption


def sweep(
    experiment: Annotated[
        str | None, typer.Argument(help="An experiment fastad ships, or the path of a .toml file")
    ] = None,
    out: OutOption = Path("runs"),
    set_: SetOption = None,
    shards: ShardsOption = None,
    device: DeviceOption = "auto",
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of this machine to work on [default: all]")] = None,
    workers_per_gpu: Annotated[int, typer.Option(min=1, help="Workers that share a GPU")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers on the CPU [default: one for every $OMP_NUM_THREADS or 1 cores]")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: local, auto or host:port; all nodes share --out"),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed three times")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show grid, groups, what is missing and an estimate")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="With --dry-run: what all experiments cost on GPUs")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train an experiment's whole grid on warm workers; again to continue, or on another machine to help.

    EXPERIMENT: cifar10-table1, cifar10-oe-size, cifar10-oe-blur, cifar10-hsc-norms, cifar10-focal-gamma,
    cifar10-oe-classes, imagenet30-table2, imagenet30-oe-size, imagenet30-oe-blur, imagenet30-focal-gamma,
    mnist-oe-classes, mnist-oe-blur, toy, fashion-mnist, smoke, or the path of your own.
    """
    from fastad.experiment import experiment_names, find_experiment
    from fastad.manifest import shard_home
    from fastad.stage import local_home
    from fastad.sweep import Room, aside_line, recipes_of
    from fastad.sweep import sweep as sweep_all
    from fastad.train import stop_on_signals

    if every or experiment is None:
        if not (every and dry_run) or experiment is not None:
            raise FastadError(f"name an experiment, one of {', '.join(experiment_names())}, or give --all --dry-run")
        _print_costs(shard_home(Path(shards) if shards else None), out, as_json)
        return
    found, changes, room = find_experiment(experiment), set_ or (), Room(device, gpus, workers_per_gpu, workers, ray)
    names = dict.fromkeys(name for recipe in recipes_of(found, changes) for name in recipe.data.sets)
    home = local_home(shards, names)
    if dry_run:
        from fastad.forecast import forecast, forecast_text

        told = forecast(found, shards=home, out=out, room=room, changes=changes)
        print(json.dumps(dataclasses.asdict(told)) if as_json else forecast_text(told))
        return
    with stop_on_signals() as stop:
        outcome = sweep_all(found, shards=home, out=out, changes=changes, room=room, retry=retry, stop=stop)
    finished = outcome.groups - len(outcome.aside)
    if as_json:
        print(json.dumps({"experiment": found.name} | dataclasses.asdict(outcome), default=str))
    else:
        print(
            f"{out / found.name}: {finished:,} of {outcome.groups:,} groups finished ({outcome.trainings:,} trainings)"
        )
    if outcome.aside:
        print(f"fastad: {aside_line(outcome)}", file=sys.stderr)
        raise typer.Exit(1)


def _print_costs(shards: Path, out: Path, as_json: bool) -> None:
    from fastad.forecast import costs, costs_text

    found = costs(shards, out)
    print(json.dumps([dataclasses.asdict(each) for each in found]) if as_json else costs_text(found))

"""The command line of benchmarks: `fastad bench loader|step|shard|sweep`, which `fastad.cli` takes in.

Owns their arguments, and whether a recipe's sets are measured or the benchmark's own; heavy imports stand inside the
commands.
Use: `fastad bench --help`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastad.errors import FastadError
from fastad.options import DeviceOption, JsonOption, SetOption, ShardsOption, print_figures

if TYPE_CHECKING:
    import torch

    from fastad.recipe import Recipe

bench = typer.Typer(no_args_is_help=True, help="Measure speed against a plain PyTorch loop in the same run.")

RepeatsOption = Annotated[int, typer.Option(min=1, help="Measurements of either side, taken in turns")]
Figures = dict[str, Any]


@bench.command("loader")
def bench_loader(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's sets in place of the benchmark's own, which it makes")
    ] = None,
    repeats: RepeatsOption = 5,
    case: Annotated[
        list[str] | None, typer.Option(help="Of the benchmark's own, only these (repeatable) [default: all]")
    ] = None,
    set_: SetOption = None,
    shards: ShardsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Images per second of fastad's batches, against webdataset and torchvision in a DataLoader."""

    def own(device: "torch.device") -> Figures:
        from fastad.bench_loader import measure_cases

        return measure_cases(device, repeats, case or ())

    def of_recipe(recipe: "Recipe", home: Path, device: "torch.device") -> Figures:
        from fastad.bench import measure_loader

        return measure_loader(recipe, home, device, repeats)

    _refuse_mixed("bench loader", recipe, {"--case": case}, set_, shards)
    print_figures(_measured(own, of_recipe, recipe, set_, shards, device), as_json)


@bench.command("step")
def bench_step(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's network and sets in place of every network on images made here")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", help="Without a recipe: this network only (repeatable)")
    ] = None,
    repeats: RepeatsOption = 5,
    set_: SetOption = None,
    shards: ShardsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Speed of training groups of objectives, against plain eager PyTorch loops fed by a DataLoader."""

    def own(device: "torch.device") -> Figures:
        from fastad.bench_step import measure_networks

        return measure_networks(device, repeats, network or ())

    def of_recipe(recipe: "Recipe", home: Path, device: "torch.device") -> Figures:
        from fastad.bench_step import measure_step

        return measure_step(recipe, home, device, repeats)

    _refuse_mixed("bench step", recipe, {"--network": network}, set_, shards)
    print_figures(_measured(own, of_recipe, recipe, set_, shards, device), as_json)


@bench.command("shard")
def bench_shard(
    repeats: RepeatsOption = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that write [default: all cores]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Speed of sharding, against plain loops; and the cost of opening a set of 14.2 million images."""
    from fastad.bench_shard import measure_shard

    print_figures(measure_shard(workers, repeats), as_json)


@bench.command("sweep")
def bench_sweep(
    groups: Annotated[int, typer.Option(min=2, help="Groups of a warm worker")] = 64,
    singles: Annotated[int, typer.Option(min=1, help="Trainings in a process each, to compare with")] = 4,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Share of a sweep's time that is not spent on training steps, against a process for each training."""
    from fastad.bench_sweep import measure_sweep
    from fastad.run import choose_device

    print_figures(measure_sweep(choose_device(device), groups, singles), as_json)


def _refuse_mixed(
    command: str, recipe: str | None, own: dict[str, Any], overrides: list[str] | None, shards: str | None
) -> None:
    """Raises `FastadError` for options of a recipe where none is named, and for `own` ones where one is."""
    if recipe is None and (overrides or shards):
        raise FastadError(f"{command} makes its own sets without a recipe: name one to use --set or --shards")
    if recipe is not None and (given := [option for option, value in own.items() if value]):
        raise FastadError(f"{command}: {given[0]} is for what it makes itself, and a recipe is named: leave out one")


def _measured(
    own: Callable[["torch.device"], Figures],
    of_recipe: Callable[["Recipe", Path, "torch.device"], Figures],
    recipe: str | None,
    overrides: list[str] | None,
    shards: str | None,
    device: str,
) -> Figures:
    from fastad.recipe import load
    from fastad.run import choose_device
    from fastad.stage import local_home

    if recipe is None:
        return own(choose_device(device))
    resolved = load(recipe, overrides or ())
    home = local_home(shards, resolved.data.sets)
    return of_recipe(resolved, home, choose_device(device))

"""The command line: what each command takes, and nothing of what it does.

Owns argument names, exit codes and what goes to standard output. Heavy imports stand inside the commands, so that help
answers at once.
Use: `fastad --help`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastad import __version__
from fastad.cli_bench import bench
from fastad.cli_sweep import sweep
from fastad.errors import FastadError, Interrupted, raise_on_signals
from fastad.options import (
    DeviceOption,
    JsonOption,
    OutOption,
    SeedOption,
    SetArgument,
    SetOption,
    ShardsOption,
    part_of,
    print_figures,
    share_of,
)

if TYPE_CHECKING:
    from fastad.run import RunResult

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Deep image anomaly detection with outlier exposure: raw images → shards → a trained detector → its AUROC.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fastad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    pass


@app.command()
def shard(
    name: Annotated[str, typer.Argument(metavar="SET", help="A data set fastad knows, or a converter's path (.py)")],
    raw: Annotated[Path | None, typer.Argument(help="Where the raw data are, for sets that need them")] = None,
    set_name: Annotated[str | None, typer.Option("--name", help="What recipes call the set [default: SET]")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Shard home [default: $FASTAD_SHARDS or ./shards]")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Short side in px of images that are larger")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of the JPEGs written [default: 95]")] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Do not decode JPEGs that pass as they are: they were checked before")
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Copy nothing, link to the source: for raw pixels in one file")
    ] = False,
    max_bad: Annotated[str, typer.Option(help="Stop if more images than this cannot be used")] = "0.5%",
    split: Annotated[str | None, typer.Option(help="Which part of the source, for sets that have several")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images, for sets that allow it")] = None,
    part: Annotated[str, typer.Option(help="I/N: this process writes every Nth shard, from the Ith")] = "1/1",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that write [default: all cores]")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Write on a Ray cluster: local, auto or host:port; all nodes must share --out and RAW",
        ),
    ] = None,
) -> None:
    """Convert raw data into a shard set; again to continue an interrupted conversion.

    SET: digits, letters, mnist, fashion-mnist, emnist, cifar10, cifar100, tinyimages, tinyimages300k, imagenet30,
    imagenet1k, imagenet22k, folder, mvtec, toy, or the path of a converter of your own (.py). tinyimages was withdrawn
    by its authors in 2020: use cifar100, tinyimages300k, or imagenet22k with --resize 32.
    """
    from fastad.encode import Encoding
    from fastad.manifest import shard_home
    from fastad.shard import Part, convert

    with raise_on_signals():
        manifest = convert(
            name,
            raw,
            shard_home(out),
            name=set_name,
            encoding=Encoding(resize, quality, checked=not unchecked),
            in_place=in_place,
            options={key: value for key, value in (("split", split), ("limit", limit)) if value is not None},
            max_bad=share_of(max_bad),
            part=Part(*part_of(part)),
            workers=workers,
            ray=ray,
        )
    if manifest is not None:
        left_out = len(manifest.facts["rejects"])
        print(f"{manifest.folder}: {len(manifest.key):,} images in {len(manifest.shards)} shards, {left_out} left out")


@app.command()
def verify(
    place: SetArgument,
    level: Annotated[str, typer.Option(help="size, hash or decode")] = "hash",
) -> None:
    """Check a shard set against its manifest."""
    from fastad.stage import local_set
    from fastad.verify import verify

    manifest = verify(local_set(place), level)
    print(f"{manifest.folder}: whole, {len(manifest.key):,} images in {len(manifest.shards)} shards ({level})")


@app.command()
def stage(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Sets at s3://, gs://, hf:// or http(s)://")],
    to: Annotated[
        Path | None, typer.Option(help="Shard home to copy them to [default: $FASTAD_CACHE or ~/.cache/fastad]")
    ] = None,
) -> None:
    """Copy remote shard sets to this machine; train, verify and inspect do it, too, when given an address."""
    from fastad.stage import stage

    for url in urls:
        print(stage(url, to))


@app.command()
def inspect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="SET_DIR|OUT.png", help="A shard set, or its address; with --batch, the PNG file to draw"
        ),
    ],
    batch: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Draw the first batch of a recipe as its network gets it into OUT.png"),
    ] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="For --batch [default: the set's first]")] = None,
    seed: Annotated[int | None, typer.Option(help="For --batch [default: 1]")] = None,
    set_: SetOption = None,
    shards: ShardsOption = None,
    grid: Annotated[Path | None, typer.Option(help="Draw a labelled picture of samples into this PNG file")] = None,
    against: Annotated[str | None, typer.Option(help="Count images that also stand in this shard set")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a shard set, or with --batch what a network is trained on."""
    of_sets = {"--grid": grid, "--against": against, "--json": as_json or None}
    of_batches = {"--class": class_name, "--seed": seed, "--set": set_, "--shards": shards}
    for option, value in (of_batches if batch is None else of_sets).items():
        if value is not None:
            use = "is for --batch RECIPE" if batch is None else "shows a set, and --batch a recipe's batch"
            raise FastadError(f"inspect: {option} {use}: leave out one")
    if batch is None:
        _inspect_set(place, grid, against, as_json)
        return
    from fastad.batch_picture import batch_picture
    from fastad.inspect import write_png
    from fastad.recipe import load
    from fastad.run import choose_device
    from fastad.stage import local_home

    recipe = load(batch, set_ or ())
    home = local_home(shards, recipe.data.sets)
    seed = 1 if seed is None else seed
    write_png(batch_picture(recipe, home, class_name, seed, choose_device("cpu")), Path(place))


def _inspect_set(place: str, grid: Path | None, against: str | None, as_json: bool) -> None:
    from fastad import inspect
    from fastad.manifest import open_set
    from fastad.stage import local_set

    manifest = open_set(local_set(place))
    other = None if against is None else open_set(local_set(against))
    print(json.dumps(inspect.facts(manifest, other)) if as_json else inspect.summary(manifest, other))
    if grid is not None:
        inspect.write_png(inspect.grid(manifest), grid)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe fastad ships, or the path of a .toml file")],
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Nominal class (repeatable) [default: every class]")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option("--objective", help="Objective (repeatable) [default: the recipe's]")
    ] = None,
    seed: SeedOption = None,
    set_: SetOption = None,
    shards: ShardsOption = None,
    out: OutOption = Path("runs"),
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained and how long it would take, as measured")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate detectors; again to continue interrupted runs."""
    from fastad.estimate import estimate
    from fastad.progress import say
    from fastad.ranks import joined, share
    from fastad.recipe import dump, load
    from fastad.run import choose_device
    from fastad.stage import local_home
    from fastad.train import stop_on_signals
    from fastad.train import train as train_all

    with joined(), stop_on_signals() as stop:
        resolved = load(recipe, set_ or ())
        say(dump(resolved))
        asked: dict[str, Any] = {
            "shards": local_home(shards, resolved.data.sets),
            "out": out,
            "device": choose_device(device),
            "classes": class_name or (),
            "objectives": objective or (),
            "seeds": seed or (1,),
        }
        if dry_run:
            print_figures(estimate(resolved, **asked), as_json)
            return
        results = train_all(resolved, stop=stop, **asked)
        if share().rank == 0:
            _print_results(results, as_json)


app.command()(sweep)


@app.command("eval")
def evaluate(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders, or folders of runs")],
    as_json: JsonOption = False,
) -> None:
    """Show the metrics of finished runs with their intervals, one by one and over seeds."""
    from fastad.results import finished_results

    _print_results(finished_results(folders), as_json)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run")],
    place: SetArgument,
    split: Annotated[str | None, typer.Option(help="Only the images of a split")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A CSV file [default: standard output]")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score the images of a set with a trained detector: a CSV line for each, higher for what is more anomalous."""
    from fastad.files import write_text
    from fastad.run import choose_device, find_runs
    from fastad.score import csv_of, score_set
    from fastad.stage import local_set

    if len(runs := find_runs([folder])) > 1:
        raise FastadError(f"{folder} holds {len(runs)} runs: name one, such as {runs[0].folder}")
    text = csv_of(score_set(runs[0], local_set(place), choose_device(device), split))
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
        print(out)


def _print_results(results: Sequence["RunResult"], as_json: bool) -> None:
    from fastad.results import results_json, results_table

    if as_json:
        print(json.dumps(results_json(results)))
    else:
        from rich.console import Console

        Console().print(results_table(results))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders of runs")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report's files")] = Path("report"),
) -> None:
    """Write a report of finished runs: report.md, one self-contained report.html, the paper's tables and figures."""
    from fastad.report import write_report

    for path in write_report(folders, out):
        print(path)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for shards, runs and report")] = Path("quickstart"),
    device: DeviceOption = "auto",
) -> None:
    """Digits → shards → trained detectors → report, with nothing to download: about a minute on two CPU cores."""
    from fastad.quickstart import quickstart
    from fastad.run import choose_device

    results, pages = quickstart(out, choose_device(device))
    _print_results(results, as_json=False)
    for path in pages:
        print(path)


app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the command line. Exit code 0: done; 2: a user's mistake, told in one line; 128 + n: stopped by signal n."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except FastadError as error:
        print(f"fastad: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"fastad: {error}", file=sys.stderr)
        sys.exit(128 + error.signal_number)
    except Exception as error:
        # What typer raises for wrong usage is its own copy of click's; only this method tells it from other errors.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():  # none where help was printed for want of a command
            print(f"fastad: {message} (see --help)", file=sys.stderr)
        sys.exit(2)

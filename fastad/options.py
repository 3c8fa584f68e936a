"""What several commands have in common: arguments, named and explained once, and how figures are printed.

Owns the spelling and help of arguments; what they do is each command's.
Use: `def train(out: OutOption = Path("runs")) -> None: ...`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ShardsOption = Annotated[
    str | None,
    typer.Option("--shards", help="Shard home, or its address [default: $FASTAD_SHARDS or ./shards]"),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the runs")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a recipe field: key=value (repeatable)")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output")]
SetArgument = Annotated[str, typer.Argument(metavar="SET_DIR", help="A shard set, or its address")]
SeedOption = Annotated[list[int] | None, typer.Option("--seed", help="Seed (repeatable) [default: 1]")]


def print_figures(found: dict[str, Any], as_json: bool) -> None:
    """What was measured: one JSON object, or a line for each."""
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))

"""Arguments of commands: those of several, named and explained once, and what is read from text; printing of figures.

Owns the spelling and help of arguments; what they do is each command's.
Use: `def train(out: OutOption = Path("runs")) -> None: ...`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastad.errors import FastadError

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


def share_of(text: str) -> float:
    """The share that "0.5%" or "0.005" is."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise FastadError(f"--max-bad must be a share from 0 to 1 or 0% to 100%, found {text!r}")
    return share


def part_of(text: str) -> tuple[int, int]:
    """I and N of "I/N"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise FastadError(f"--part must be I/N with I from 1 to N, found {text!r}")
    return int(index), int(count)

"""Arguments that several commands take, named and explained once.

Owns their spelling and help; what they do is each command's.
Use: `def train(out: OutOption = Path("runs")) -> None: ...`.
"""

from pathlib import Path
from typing import Annotated

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

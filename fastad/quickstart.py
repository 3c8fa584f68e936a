"""The main job on data that need no download: digits → shards → trained detectors → report.

Owns which sets, recipe and classes are shown; every step is the one that the other commands run.
Use: `quickstart(Path("quickstart"), device)`.
"""

from pathlib import Path

import torch

from fastad.progress import say
from fastad.recipe import load
from fastad.report import write_report
from fastad.run import RunResult
from fastad.shard import convert
from fastad.train import stop_on_signals, train

CLASSES = ("0", "3", "5", "8", "9")


def quickstart(out: Path, device: torch.device) -> tuple[list[RunResult], list[Path]]:
    """Converts digits (nominal) and letters (OE), trains HSC and BCE for some digits, and writes the report.

    Returns the results and the report's files. Run again, it continues or says that it is done.
    """
    recipe, shards, runs = load("digits"), out / "shards", out / "runs"
    convert("digits", None, shards)
    convert("letters", None, shards)
    say(f"training {', '.join(recipe.objectives)}: one digit is nominal, printed letters are the outlier exposure")
    with stop_on_signals() as stop:
        results = train(recipe, shards=shards, out=runs, device=device, classes=CLASSES, stop=stop)
    return results, write_report([runs], out / "report")

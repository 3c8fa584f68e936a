"""Scores of any images by a trained detector.

Owns which detector of a finished run scores which images of a set; training's own test is `fastad.outcome`'s.
Use: `scored = score_set(run, Path("shards/new"), device)`, then `scored.score.argmax()`.
"""

import csv
import io
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastad.errors import FastadError
from fastad.evaluate import class_names_of, score_batches
from fastad.manifest import open_set
from fastad.networks import Detector, build
from fastad.objectives import find
from fastad.pipeline import Source, evaluation_batches, out_hw
from fastad.reader import ShardReader
from fastad.run import Run


class Scored(NamedTuple):
    """Images and what a model made of them, [n] each, in the order of their source: splits, keys and class names as
    text, float32 scores, higher for what is more anomalous."""

    split: np.ndarray
    key: np.ndarray
    class_name: np.ndarray
    score: np.ndarray


def load_detector(run: Run, shape_hwc: tuple[int, int, int], device: torch.device) -> Detector:
    """The trained network of a finished run, for images of that shape; `run.objective` makes scores of its output.

    Raises `FastadError` if the run is not finished, its model is damaged, or it was trained on other images.
    """
    detector = build(run.recipe.network, shape_hwc, find(run.objective).output_width, run.seed)
    try:
        state = torch.load(run.model, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise FastadError(f"{run.folder} is not finished: run its fastad train or fastad sweep again") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FastadError(f"{run.model} cannot be read: remove {run.folder} and train it again") from error
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        shape = "×".join(map(str, shape_hwc))
        raise FastadError(f"{run.folder} was trained on other images than of {shape}: score such as its own") from error
    return detector.to(device).eval()


def score_set(run: Run, place: Path, device: torch.device, split: str | None = None) -> Scored:
    """Scores a shard set's images, of all splits or of one, with the model of a finished run. They are resized and
    cropped as the run's test images were.

    Raises `FastadError` for a run that is not finished, a set or split that is not there, and images that do not decode
    or are not such as the model takes.
    """
    reader = ShardReader(open_set(place))
    manifest, recipe = reader.manifest, run.recipe
    rows = np.arange(len(manifest.key)) if split is None else np.asarray(manifest.split_rows(split))
    rows = rows[np.argsort(manifest.source_index[rows], kind="stable")]
    shape_hwc = *out_hw(rows, reader, recipe.augment), manifest.channels
    detector = load_detector(run, shape_hwc, device)
    target = np.zeros(len(rows), dtype=np.float32)
    batches = evaluation_batches(Source(reader), rows, target, recipe.augment, device, loader=recipe.loader)
    (score,) = score_batches([(detector, find(run.objective))], batches)
    starts = [whole.start for whole in manifest.splits.values()]
    names = np.array(list(manifest.splits))[np.searchsorted(starts, rows, side="right") - 1]
    return Scored(names, np.char.decode(manifest.key[rows]), class_names_of(manifest, rows), score)


def csv_of(scored: Scored) -> str:
    """A header and a line for each image; scores with all their digits."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("split", "key", "class", "score"))
    lines.writerows(zip(*(column.tolist() for column in scored), strict=True))
    return text.getvalue()

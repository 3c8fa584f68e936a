"""Scores of test images, and the metrics with their intervals.

Owns `scores.npz`, `examples.npz` and every metric; which model scored is `fastad.train`'s matter.
Use: `measure(target, score)["auroc"].value`.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fastad.augment import AugmentSpec, place
from fastad.errors import FastadError
from fastad.files import write_bytes, write_json
from fastad.manifest import Manifest
from fastad.networks import Detector
from fastad.objectives import Objective
from fastad.pipeline import Batch, Source
from fastad.reader import ShardReader
from fastad.run import Interval, Run
from fastad.seeds import generator

METRICS = ("auroc", "average_precision", "fpr95")

RESAMPLES = 1_000
# Places of so many counts are looked at together, which fit in a core's cache.
COUNTED_AT_ONCE = 20_000
EXAMPLES = 12
SHOWN_PX = 128


class Scores(NamedTuple):
    """What a model made of the test images, [n] each: keys (bytes), class names, target (1: anomalous), score."""

    key: np.ndarray
    class_name: np.ndarray
    target: np.ndarray
    score: np.ndarray


def score_batches(models: Sequence[tuple[Detector, Objective]], batches: Iterable[Batch]) -> np.ndarray:
    """The scores of every image by every model, float32 [models, n]; one pass over the batches, which leaves scores on
    the device until its end: the host waits there, once.

    Not compiled, captured or padded: of a training of the MNIST LeNet it is 0.2 %, and on a CPU a compiled pass was no
    faster and took 20 s to compile. On a GPU that is to be measured; the last batch may be smaller without harm.
    """
    found: list[list[torch.Tensor]] = [[] for _ in models]
    for model, _ in models:
        model.eval()
    with torch.inference_mode():
        for batch in batches:
            for (model, objective), scores in zip(models, found, strict=True):
                scores.append(objective.score(model(batch.images)))
    return torch.stack([torch.cat(scores) for scores in found]).cpu().numpy()


def measure(target: np.ndarray, score: np.ndarray, seed: int = 0) -> dict[str, Interval]:
    """AUROC, average precision and FPR at 95 % TPR, anomalous as positive, each with a 95 % interval.

    The intervals are percentiles of a stratified bootstrap (as many nominal and as many anomalous images as there are,
    drawn with replacement, 1,000 times). Raises `FastadError` if a score is not finite or one of the targets is absent.
    """
    if not np.isfinite(score).all():
        raise FastadError(
            f"{np.sum(~np.isfinite(score))} of {len(score)} scores are not finite: the model diverged, lower optim.lr"
        )
    if not 0 < target.sum() < len(target):
        raise FastadError("all test images are of one kind, so nothing can be ranked: test nominal and anomalous ones")
    fpr, tpr, _ = roc_curve(target, score, drop_intermediate=False)
    values = (roc_auc_score(target, score), average_precision_score(target, score), fpr[np.searchsorted(tpr, 0.95)])
    low, high = np.percentile(_bootstrap(target, score, seed), (2.5, 97.5), axis=0)
    return {name: Interval(*map(float, figures)) for name, *figures in zip(METRICS, values, low, high, strict=True)}


def _bootstrap(target: np.ndarray, score: np.ndarray, seed: int) -> np.ndarray:
    """The metrics of `RESAMPLES` stratified resamples, [resamples, metrics]."""
    rng = generator(seed, "bootstrap")
    thresholds, place = np.unique(-score, return_inverse=True)
    width = len(thresholds)
    at_once = max(1, COUNTED_AT_ONCE // width)

    def counts(kind: int) -> Iterator[np.ndarray]:
        """How many images of a kind stand at each threshold in some resamples, int32 [resamples, thresholds]."""
        places = place[target == kind]
        for first in range(0, RESAMPLES, at_once):
            rows = np.arange(min(at_once, RESAMPLES - first))
            drawn = places[rng.integers(len(places), size=(len(rows), len(places)))] + width * rows[:, None]
            # The counts of one kind are all held at once: half the width is half of 80 MB for 10,000 images.
            yield np.bincount(drawn.ravel(), minlength=len(rows) * width).reshape(-1, width).astype(np.int32)

    anomalous = list(counts(1))
    return np.concatenate([_metrics_of_counts(*pair) for pair in zip(anomalous, counts(0), strict=True)])


def _metrics_of_counts(anomalous: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """The metrics [n, metrics] of n resamples from how many images of either kind stand at each distinct score, highest
    score first, [n, thresholds]."""
    true_positives, false_positives = anomalous.cumsum(axis=1), nominal.cumsum(axis=1)
    positives, negatives = true_positives[:, -1:], false_positives[:, -1:]
    auroc = np.sum(anomalous * (negatives - false_positives + nominal / 2), axis=1) / (positives * negatives)[:, 0]
    flagged = np.maximum(true_positives + false_positives, 1)
    precision = np.sum(anomalous * (true_positives / flagged), axis=1) / positives[:, 0]
    at_95 = np.sum(true_positives < 0.95 * positives, axis=1)
    fpr95 = np.take_along_axis(false_positives, at_95[:, None], axis=1)[:, 0] / negatives[:, 0]
    return np.column_stack([auroc, precision, fpr95])


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of fractions over seeds with Student's 95 % interval, cut to [0, 1]; of a single seed it is NaN."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def write_scores(run: Run, scores: Scores) -> None:
    """Writes `scores.npz` (key, class, target, score)."""
    columns = {
        "key": scores.key,
        "class": scores.class_name,
        "target": scores.target,
        "score": scores.score,
    }
    _write_columns(run.scores, columns)


def _write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    arrays: dict[str, Any] = dict(columns)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getbuffer())


def read_scores(run: Run) -> Scores:
    """The scores of an evaluated run; raises `FastadError` if there are none or the file is damaged."""
    with _columns(run, run.scores) as columns:
        return Scores(columns["key"], columns["class"], columns["target"], columns["score"])


@contextmanager
def _columns(run: Run, path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """What `_write_columns` wrote, read as it is asked for."""
    try:
        with open(path, "rb") as file, np.load(file) as columns:
            yield columns
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise unreadable(run, path, error) from error


def describe(manifest: Manifest, rows: np.ndarray, target: np.ndarray, score: np.ndarray) -> Scores:
    """Scores with the keys and class names of their rows."""
    return Scores(manifest.key[rows], class_names_of(manifest, rows), target.astype(np.int8), score)


def class_names_of(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """The class of each row by name, [n] text; "(none)" where it has none."""
    return np.array((*manifest.classes, "(none)"))[manifest.class_index[rows]]


def write_replaced(run: Run, sources: Iterable[Source]) -> None:
    """Writes `replaced.json`, where there are any: training images that do not decode, and which stood in."""
    replaced = [
        {
            "set": source.reader.manifest.name,
            "key": source.reader.manifest.key[row].decode(),
            "reason": reason,
            "stand_in": source.reader.manifest.key[source.faults.replaced(row)].decode(),
        }
        for source in sources
        for row, reason in sorted(source.faults.reason.items())
    ]
    if replaced:
        write_json(run.replaced, replaced)


STRIPS: Mapping[str, str] = {
    "highest": "most anomalous of all",
    "lowest": "least anomalous of all",
    "nominal_highest": "nominal images that look most anomalous",
    "anomalous_lowest": "anomalous images that look least anomalous",
}


class Strip(NamedTuple):
    """Test images side by side, [n] each: uint8 [n, H, W, C], class names, targets, scores."""

    images: np.ndarray
    class_name: np.ndarray
    target: np.ndarray
    score: np.ndarray


def write_examples(
    run: Run, reader: ShardReader, rows: np.ndarray, scores: Scores, oe: np.ndarray | None = None
) -> None:
    """Writes `examples.npz`: of each of `STRIPS`, the images that a report shows, with their scores and classes; and an
    OE image, uint8 [H, W, C], as `network_view` gives it, where the run has any."""
    order = np.argsort(scores.score, kind="stable")
    anomalous = scores.target[order] == 1
    strips = {
        "highest": order[::-1][:EXAMPLES],
        "lowest": order[:EXAMPLES],
        "nominal_highest": order[~anomalous][::-1][:EXAMPLES],
        "anomalous_lowest": order[anomalous][:EXAMPLES],
    }
    columns = {} if oe is None else {"oe_image": oe}
    for name, places in strips.items():
        columns[f"{name}_images"] = _shown(reader, rows[places])
        columns[f"{name}_class"] = scores.class_name[places]
        columns[f"{name}_target"] = scores.target[places]
        columns[f"{name}_score"] = scores.score[places]
    _write_columns(run.examples, columns)


def read_examples(run: Run) -> dict[str, Strip]:
    """Each of `STRIPS` of an evaluated run; raises `FastadError` if there are none or the file is damaged."""
    with _columns(run, run.examples) as columns:
        return {
            name: Strip(*(columns[f"{name}_{key}"] for key in ("images", "class", "target", "score")))
            for name in STRIPS
        }


def read_oe_image(run: Run) -> np.ndarray | None:
    """The OE image of an evaluated run, uint8 [H, W, C]; None where it has none, as older results have not."""
    with _columns(run, run.examples) as columns:
        return columns.get("oe_image")


def unreadable(run: Run, path: Path, error: Exception) -> FastadError:
    """The error for a file of a finished run that is missing or damaged."""
    return FastadError(
        f"{path} cannot be read ({error}): remove {run.folder} and run fastad train or fastad sweep again"
    )


def _shown(reader: ShardReader, rows: np.ndarray) -> np.ndarray:
    """The images of rows as a report shows them, uint8 [n, H, W, C]: arrays of one size as they are, of others the
    middle square, `SHOWN_PX` wide."""
    if reader.manifest.common_shape_hwc is not None:
        return reader.pixels(rows)
    pictures = (Image.fromarray(reader.image(row).squeeze()).convert("RGB") for row in rows.tolist())
    return np.stack([np.asarray(ImageOps.fit(picture, (SHOWN_PX, SHOWN_PX))) for picture in pictures])


def network_view(reader: ShardReader, row: int, spec: AugmentSpec) -> np.ndarray:
    """An image as networks see it that is neither augmented nor normalised, uint8 [H, W, C]: resized, cropped from the
    middle, and to be shown, reduced to `SHOWN_PX` if it is larger."""
    (image,) = reader.arrays(np.array([row]))
    geometry = place(spec, None, *np.array(image.shape[:2])[:, None])
    (height, width), (top, left), out = geometry.size_hw[0].tolist(), geometry.start[0].tolist(), geometry.out_hw
    picture = Image.fromarray(image.squeeze())
    if reader.manifest.common_shape_hwc is None:
        picture = picture.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    picture = picture.crop((left, top, left + out[1], top + out[0]))
    picture.thumbnail((SHOWN_PX, SHOWN_PX))
    shown = np.asarray(picture)
    return shown if shown.ndim == 3 else shown[..., None]

"""What comes of a group that is trained: scores of the test images, and the files of each of its runs.

Owns the order in which a run's files are written, `result.json` last; metrics are `fastad.evaluate`'s.
Use: `results = evaluate_group(task, sources, group)`.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastad.checkpoint import discard_checkpoints
from fastad.evaluate import (
    METRICS,
    Scores,
    describe,
    measure,
    network_view,
    score_batches,
    write_examples,
    write_replaced,
    write_scores,
)
from fastad.files import write_bytes
from fastad.networks import parameter_count
from fastad.pipeline import Source, evaluation_batches
from fastad.progress import say
from fastad.ranks import share
from fastad.run import Interval, RunResult, environment, tensor_bytes, write_result
from fastad.sets import one_vs_rest, testing_source
from fastad.training import Task, Training
from fastad.verdict import Verdict

NO_METRICS = {name: Interval(math.nan, math.nan, math.nan) for name in METRICS}


def evaluate_group(task: Task, sources: Sequence[Source], group: Sequence[Training]) -> dict[Path, RunResult]:
    """Scores the test images with all members in one pass; writes model, scores and examples, and results last."""
    recipe, device, manifest = task.recipe, task.workbench.device, task.sets.nominal.manifest
    rows, target = one_vs_rest(task.sets, group[0].run.class_name)
    started = time.perf_counter()
    source = testing_source(recipe, task.sets, rows, device)
    batches = evaluation_batches(source, rows, target, recipe.augment, device, loader=recipe.loader)
    scores = score_batches([(training.member.model, training.member.objective) for training in group], batches)
    score_s = time.perf_counter() - started
    oe_image = _oe_image(task, sources)
    results = {}
    for training, score in zip(group, scores, strict=True):
        started = time.perf_counter()
        uses_oe = training.member.objective.uses_oe
        seen = sources if uses_oe else sources[:1]
        metrics = _metrics(task, training, target, score)
        described = describe(manifest, rows, target, score)
        _write_files(task, training, seen, rows, described, oe_image if uses_oe else None)
        seconds = {"train": training.train_s, "score": score_s, "measure": time.perf_counter() - started}
        result = _result(task, training, seen, target, metrics, seconds, len(group))
        write_result(training.run, result)
        discard_checkpoints(training.run)
        results[training.run.folder] = result
    return results


def _metrics(task: Task, training: Training, target: np.ndarray, score: np.ndarray) -> dict[str, Interval]:
    """The metrics; NaN where scores are not finite, and then the model has diverged if it was not known before."""
    if np.isfinite(score).all():
        return measure(target, score)
    if training.diverged_at_epoch is None:
        training.diverged_at_epoch = task.plan.epochs - 1
    bad = int(np.sum(~np.isfinite(score)))
    say(f"{training.run.folder}: {bad:,} of {len(score):,} scores of the diverged model are not finite: no metrics")
    return NO_METRICS


def _write_files(
    task: Task,
    training: Training,
    seen: Sequence[Source],
    rows: np.ndarray,
    scores: Scores,
    oe_image: np.ndarray | None,
) -> None:
    run = training.run
    write_bytes(run.model, tensor_bytes(training.member.model.state_dict()))
    write_scores(run, scores)
    write_examples(run, task.sets.nominal, rows, scores, oe_image)
    write_replaced(run, seen)


def _oe_image(task: Task, sources: Sequence[Source]) -> np.ndarray | None:
    """The first OE image of the seed that decodes, None for a group without OE."""
    if len(sources) < 2:
        return None
    row = sources[1].faults.replaced(int(task.plan.oe[0].rows[0]))
    return network_view(sources[1].reader, row, task.recipe.augment)


def _result(
    task: Task,
    training: Training,
    seen: Sequence[Source],
    target: np.ndarray,
    metrics: dict[str, Interval],
    seconds: dict[str, float],
    group_size: int,
) -> RunResult:
    run, member, plan = training.run, training.member, task.plan
    ended = "stopped after its last step" if training.diverged_at_epoch is None else "left as it was when it diverged"
    verdict = training.verdict or Verdict(training.stall_s / training.train_s, ended)
    return RunResult(
        recipe=run.recipe.name,
        class_name=run.class_name,
        objective=run.objective,
        seed=run.seed,
        metrics=metrics,
        counts={
            "nominal": len(plan.nominal.rows),
            "oe": sum(len(stream.rows) for stream in plan.oe) if member.objective.uses_oe else 0,
            "test_nominal": int((target == 0).sum()),
            "test_anomalous": int((target == 1).sum()),
            "replaced": sum(len(source.faults.reason) for source in seen),
            "steps": training.step,
            "parameters": parameter_count(member.model),
        },
        seconds={name: round(value, 3) for name, value in seconds.items()},
        images_per_s=round(training.step * plan.batch_size / training.train_s, 1),
        stall_share=round(verdict.stall_share, 4),
        group_size=group_size,
        precision=task.workbench.precision,
        compiled=member.execution.compiled,
        environment=environment(task.workbench.device) | {"processes": share().ranks},
        memory_format=member.execution.memory_format,
        verdict=verdict.line,
        health=training.health,
        diverged_at_epoch=training.diverged_at_epoch,
    )

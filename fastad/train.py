"""The training loop, in reading order: check everything, then train group after group, then evaluate.

Owns checkpoints, resuming, stopping and logs. Batches come from `fastad.pipeline`, the step from `fastad.group`,
metrics from `fastad.evaluate`.
Use: `train(load("digits"), shards=home, out=Path("runs"), device=device, seeds=[1])`.
"""

import itertools
import json
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from fastad.errors import FastadError, Interrupted
from fastad.evaluate import describe, measure, score_batches, write_examples, write_replaced, write_scores
from fastad.files import append_line, write_text
from fastad.group import Member, Workbench, set_learning_rate, step
from fastad.networks import parameter_count
from fastad.objectives import Objective, find
from fastad.pipeline import Source, evaluation_batches, train_batches
from fastad.plan import Plan
from fastad.progress import progress, say
from fastad.ranks import Agreed, of_all, of_first, share
from fastad.recipe import Recipe
from fastad.run import Run, RunResult, environment, open_run, read_result, save_tensors, write_result
from fastad.sets import Sets, make_plan, one_vs_rest, testing_source, training_sources
from fastad.tune import Tuner
from fastad.verdict import Pace, Verdict, judge
from fastad.warm import Warm


def never() -> int:
    """The `stop` of work that nobody interrupts."""
    return 0


class Stop:
    """Whether training is to stop: the number of the signal that asked, 0 while none has."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __call__(self) -> int:
        return self.signal_number


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While it lasts, the first SIGINT or SIGTERM only sets the `Stop` it yields; a second one acts at once, but where
    there are several processes: their launcher sends a signal again that they may have already."""
    stop = Stop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        if share().ranks == 1:
            signal.signal(number, signal.SIG_DFL)

    try:
        for number in previous:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    recipe: Recipe,
    *,
    shards: Path,
    out: Path,
    device: torch.device,
    classes: Sequence[str] = (),
    objectives: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
    stop: Callable[[], int] = never,
    warm: Warm | None = None,
) -> list[RunResult]:
    """Trains and evaluates every class × objective × seed; finished runs are left alone, unfinished ones go on.

    `classes` empty means every class of the nominal set, `objectives` empty the recipe's. Raises `FastadError` for what
    the user can mend, before anything is written, and `Interrupted` once `stop()` is not 0. Where there are several
    processes each takes its share of the batches; the first alone reads and writes run folders, and evaluates. Calls
    that are given the same `warm` open, hold and compile things once; it changes no number.
    """
    warm = warm or Warm()
    sets = warm.sets(recipe, shards, device)
    workbench = warm.workbench(recipe, sets.shape_hwc, device)
    wanted = [find(name) for name in dict.fromkeys(objectives or recipe.objectives)]
    if not sets.oe and (needing := [objective.name for objective in wanted if objective.uses_oe]):
        say(f"no OE set: {', '.join(needing)} will see nominal images only")
    uses_oe = any(objective.uses_oe for objective in wanted)
    tasks = list(itertools.product(dict.fromkeys(seeds), dict.fromkeys(classes or sets.nominal.manifest.classes)))
    for seed, class_name in tasks:
        one_vs_rest(sets, class_name)
        make_plan(recipe, sets, class_name, seed, uses_oe).check_share(share())
    runs_of = of_first(_open_runs, out, recipe, tasks, wanted)
    stop = Agreed(stop)

    tuner = warm.tuner(recipe, shards, device, groups=len(tasks))
    results: dict[Path, RunResult] = {}
    for number, ((seed, class_name), runs) in enumerate(zip(tasks, runs_of, strict=True), start=1):
        label = f"[{number}/{len(tasks)}] {class_name} seed {seed}"
        finished = of_first(_finished, runs)
        results |= finished
        if len(finished) == len(runs):
            say(f"{label}: done already")
            continue
        due = [pair for pair in zip(runs, wanted, strict=True) if pair[0].folder not in finished]
        # Made again rather than kept: with all of ImageNet-22K as OE, one plan holds 0.1 GB of rows.
        plan = make_plan(recipe, sets, class_name, seed, uses_oe)
        for group in _groups(workbench, sets, plan, due):
            sources = training_sources(recipe, sets, plan, device)
            for training in group:
                _recall_faults(training, plan, sources)
            _train_group(recipe, workbench, sets, plan, sources, tuner, group, label, stop)
            _join_faults(sources)
            results |= of_first(_evaluate_group, recipe, workbench, sets, plan, sources, group)
    return [results[run.folder] for runs in runs_of for run in runs]


def _open_runs(out: Path, recipe: Recipe, tasks: list[tuple[int, str]], wanted: list[Objective]) -> list[list[Run]]:
    """For every task the runs of all objectives."""
    return [
        [open_run(out, recipe, class_name, objective.name, seed) for objective in wanted] for seed, class_name in tasks
    ]


def _finished(runs: list[Run]) -> dict[Path, RunResult]:
    """The results of those that are finished."""
    return {run.folder: result for run in runs if (result := read_result(run))}


@dataclass(eq=False)
class _Training:
    """A run while it trains: how far it is, what it took in seconds, and the images of each stream that an earlier
    process could not decode, with the reasons."""

    run: Run
    member: Member
    step: int
    train_s: float
    stall_s: float
    verdict: Verdict | None = None
    faults: dict[str, dict[int, str]] = field(default_factory=dict)


def _groups(
    workbench: Workbench, sets: Sets, plan: Plan, due: list[tuple[Run, Objective]]
) -> Iterator[list[_Training]]:
    """The runs that are due, as groups of equal progress, so that each group can share its batches."""
    trainings = []
    for run, objective in due:
        saved = of_first(_read_checkpoint, run, sets, _plan_of(objective, plan))
        compiled = saved["member"]["compiled"] if saved else workbench.compiles(plan.steps)
        training = _Training(run, workbench.member(objective, run.seed, compiled), 0, 0.0, 0.0)
        if saved:
            training.member.load(saved["member"])
            training.step, training.train_s, training.stall_s = saved["step"], saved["train_s"], saved["stall_s"]
            training.faults = saved["faults"]
        trainings.append(training)
    trainings.sort(key=lambda training: training.step)
    for _, group in itertools.groupby(trainings, key=lambda training: training.step):
        yield list(group)


def _plan_of(objective: Objective, plan: Plan) -> list[str]:
    """What a checkpoint must agree with beside its shards: the streams that the objective sees."""
    return list(plan.fingerprints if objective.uses_oe else plan.fingerprints[:1])


def _recall_faults(training: _Training, plan: Plan, sources: Sequence[Source]) -> None:
    for stream, source in zip(plan.streams, sources, strict=True):
        for row, reason in training.faults.get(stream.name, {}).items():
            source.faults.note(row, reason)


def _train_group(
    recipe: Recipe,
    workbench: Workbench,
    sets: Sets,
    plan: Plan,
    sources: Sequence[Source],
    tuner: Tuner,
    group: list[_Training],
    label: str,
    stop: Callable[[], int],
) -> None:
    """Steps every member through the plan's batches; the host waits for the device at the end of an epoch only."""
    start, members = group[0].step, [training.member for training in group]
    made = train_batches(
        plan,
        sources,
        recipe.augment,
        workbench.device,
        loader=tuner.loader(plan, sources),
        start_step=start,
        share=share(),
        compiled=None if recipe.train.compile == "auto" else workbench.compiles(plan.steps),
    )
    is_first = share().rank == 0
    for training in group if is_first else ():
        _cut_log(training.run, start)
    names = " ".join(member.objective.name for member in members)
    earlier_s, earlier_stall_s = group[0].train_s, group[0].stall_s
    stall_s, counted, counted_at = 0.0, start, time.perf_counter()
    saved_at = counted_at
    with closing(made) as batches, progress(f"{label} {names}", plan.steps, unit="steps", done=start) as advance:
        for number in range(start, plan.steps):
            epoch, place = divmod(number, plan.steps_per_epoch)
            if number == start or place == 0:
                for member in members:
                    set_learning_rate(member, recipe.optim, epoch)
            waiting_at = time.perf_counter()
            batch = next(batches)
            stall_s += time.perf_counter() - waiting_at
            step(members, batch)
            if number == start:
                earlier_s += time.perf_counter() - counted_at
                earlier_stall_s += stall_s
            advance()

            asked, ends_epoch = stop(), place + 1 == plan.steps_per_epoch
            saves = asked or time.perf_counter() - saved_at >= recipe.train.checkpoint_every_s
            if not (ends_epoch or saves):
                continue
            losses = _mean_losses(group, plan.steps_per_epoch) if ends_epoch else []
            seconds = time.perf_counter() - counted_at
            for training in group:
                training.step = number + 1
                training.train_s += seconds
                training.stall_s += stall_s
            if ends_epoch:
                images_per_s = (number + 1 - counted) * plan.batch_size / seconds
                if is_first:
                    _log_epoch(group, epoch, losses, images_per_s, stall_s / seconds)
                waiting = (
                    f"{images_per_s:,.0f} images/s, {100 * stall_s / seconds:.1f} % of the time waiting for batches"
                )
                advance(0, f"loss {', '.join(f'{loss:.4f}' for loss in losses)}, {waiting}")
            if saves:
                for training in group if is_first else ():
                    _write_checkpoint(training, sets, plan, sources)
                saved_at = time.perf_counter()
            if asked:
                of_all(number)  # none ends before the first has written
                raise Interrupted(asked)
            stall_s, counted, counted_at = 0.0, number + 1, time.perf_counter()
    if start < plan.steps:
        pace = Pace(plan.steps - start - 1, group[0].train_s - earlier_s, group[0].stall_s - earlier_stall_s)
        verdict = judge(members, batch, pace, sources)
        say(f"{label} {names}: {verdict.line}")
        for training in group:
            training.verdict = verdict


def _join_faults(sources: Sequence[Source]) -> None:
    """Takes up which images other ranks could not decode."""
    for others in of_all([source.faults.reason for source in sources])[1:]:
        for source, reasons in zip(sources, others, strict=True):
            for row, reason in reasons.items():
                source.faults.note(row, reason)


def _mean_losses(group: list[_Training], steps: int) -> list[float]:
    """Every member's mean loss of the epoch that ends; the host waits for the device here. Sums begin anew."""
    losses = []
    for training in group:
        losses.append(training.member.loss_sum.item() / steps)
        training.member.loss_sum.zero_()
        if not np.isfinite(losses[-1]):
            raise FastadError(f"{training.run.folder}: the loss is {losses[-1]}: lower optim.lr and remove the folder")
    return losses


def _log_epoch(
    group: list[_Training], epoch: int, losses: list[float], images_per_s: float, stall_share: float
) -> None:
    for training, loss in zip(group, losses, strict=True):
        line = {
            "epoch": epoch,
            "step": training.step,
            "lr": training.member.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "images_per_s": round(images_per_s, 1),
            "stall_share": round(stall_share, 4),
            "train_s": round(training.train_s, 3),
        }
        append_line(training.run.log, json.dumps(line))


def _cut_log(run: Run, start: int) -> None:
    """Takes away what an earlier process logged after step `start`: those epochs come again."""
    lines = run.log.read_text().splitlines(keepends=True) if run.log.is_file() else []
    write_text(run.log, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start))


def _evaluate_group(
    recipe: Recipe, workbench: Workbench, sets: Sets, plan: Plan, sources: Sequence[Source], group: list[_Training]
) -> dict[Path, RunResult]:
    """Scores the test images with all members in one pass; writes model, scores and examples, and results last."""
    rows, target = one_vs_rest(sets, group[0].run.class_name)
    started = time.perf_counter()
    source = testing_source(recipe, sets, rows, workbench.device)
    batches = evaluation_batches(source, rows, target, recipe.augment, workbench.device, loader=recipe.loader)
    scores = score_batches([(training.member.model, training.member.objective) for training in group], batches)
    score_s = time.perf_counter() - started
    results = {}
    for training, score in zip(group, scores, strict=True):
        run, member, started = training.run, training.member, time.perf_counter()
        described = describe(sets.nominal.manifest, rows, target, score)
        metrics = measure(target, score)
        verdict = training.verdict or Verdict(training.stall_s / training.train_s, "stopped after its last step")
        save_tensors(run.model, member.model.state_dict())
        write_scores(run, described)
        write_examples(run, sets.nominal, rows, described)
        seen = sources if member.objective.uses_oe else sources[:1]
        write_replaced(run, seen)
        results[run.folder] = RunResult(
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
                "steps": plan.steps,
                "parameters": parameter_count(member.model),
            },
            seconds={
                "train": round(training.train_s, 3),
                "score": round(score_s, 3),
                "measure": round(time.perf_counter() - started, 3),
            },
            images_per_s=round(plan.steps * plan.batch_size / training.train_s, 1),
            stall_share=round(verdict.stall_share, 4),
            group_size=len(group),
            precision=workbench.precision,
            compiled=member.compiled,
            environment=environment(workbench.device) | {"processes": share().ranks},
            verdict=verdict.line,
        )
        write_result(run, results[run.folder])
        run.checkpoint.unlink(missing_ok=True)
    return results


def _write_checkpoint(training: _Training, sets: Sets, plan: Plan, sources: Sequence[Source]) -> None:
    state = {
        "fingerprint": sets.fingerprint(),
        "plan": _plan_of(training.member.objective, plan),
        "faults": {
            stream.name: source.faults.reason.copy() for stream, source in zip(plan.streams, sources, strict=True)
        },
        "step": training.step,
        "train_s": training.train_s,
        "stall_s": training.stall_s,
        "member": training.member.state(),
    }
    save_tensors(training.run.checkpoint, state)


def _read_checkpoint(run: Run, sets: Sets, plan: list[str]) -> dict[str, Any] | None:
    """The checkpoint of a run that was interrupted, if there is one; raises `FastadError` for one of other shards or of
    another plan, which would go on with other batches than it began with."""
    if not run.checkpoint.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
        fingerprint, begun = saved["fingerprint"], saved["plan"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise FastadError(f"{run.checkpoint} cannot be read: remove it to train this run anew") from error
    if fingerprint != sets.fingerprint():
        raise FastadError(
            f"{run.folder} was begun with other shards: remove it, or train with the shards it began with"
        )
    if begun != plan:
        raise FastadError(
            f"{run.folder} was begun with another order of images, by another version of fastad or NumPy, say: "
            "remove it, or train with the version it began with"
        )
    return saved

"""The training loop, in reading order: check everything, then train group after group, then evaluate.

Owns the order of the work, stopping, and what is done about models that diverge and disks that are full. Batches come
from `fastad.pipeline`, the step from `fastad.group`, what is kept from `fastad.checkpoint` and `fastad.outcome`.
Use: `train(load("digits"), shards=home, out=Path("runs"), device=device, seeds=[1])`.
"""

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch

from fastad.checkpoint import plan_of, read_checkpoint, take_up, write_checkpoint
from fastad.errors import Interrupted
from fastad.execution import begun_with
from fastad.files import Unwritable
from fastad.group import set_learning_rate, step
from fastad.log import logs
from fastad.objectives import Objective
from fastad.outcome import evaluate_group
from fastad.pipeline import Source
from fastad.plan import Plan
from fastad.prepare import finishes_compiled, prepare
from fastad.progress import progress, say
from fastad.ranks import Agreed, of_all, of_first, share
from fastad.recipe import Recipe
from fastad.run import Run, RunResult, begin_run, deterministic, read_result
from fastad.sets import make_plan, training_sources
from fastad.training import Epoch, Task, Training, any_uses_oe, finite, read_epoch
from fastad.verdict import Pace, judge
from fastad.warm import Warm

# From here on, Adam's second moment takes longer to fall to what gradients of 1 need than the paper's trainings are
# long: by e for every 1,000 steps.
STUCK_FROM = 1e12


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

    `classes` empty means every class of the nominal set that has training images, `objectives` empty the recipe's.
    Raises `FastadError` for what the user can mend, before anything is written, and `Interrupted` once `stop()` is not
    0. Where there are several processes each takes its share of the batches; the first alone reads and writes run
    folders, and evaluates. Calls that are given the same `warm` open, hold and compile things once; it changes no
    number.
    """
    warm = warm or Warm()
    prepared = prepare(
        recipe, shards=shards, out=out, device=device, classes=classes, objectives=objectives, seeds=seeds, warm=warm
    )
    sets, workbench, wanted = prepared.sets, prepared.workbench, prepared.wanted
    of_first(_begin, prepared.runs)
    stop = Agreed(stop)

    tuner = warm.tuner(recipe, shards, device, groups=len(prepared.pairs))
    results: dict[Path, RunResult] = {}
    for number, ((seed, class_name), runs) in enumerate(zip(prepared.pairs, prepared.runs, strict=True), start=1):
        label = f"[{number}/{len(prepared.pairs)}] {class_name} seed {seed}"
        finished = of_first(_finished, runs)
        results |= finished
        if len(finished) == len(runs):
            say(f"{label}: done already")
            continue
        due = [pair for pair in zip(runs, wanted, strict=True) if pair[0].folder not in finished]
        # Made again rather than kept: with all of ImageNet-22K as OE, one plan holds 0.1 GB of rows.
        plan = make_plan(recipe, sets, class_name, seed, any_uses_oe(wanted))
        task = Task(recipe, sets, workbench, tuner, plan, label)
        for group in _groups(task, due):
            results |= _trained(task, group, stop)
    return [results[run.folder] for runs in prepared.runs for run in runs]


def _begin(runs_of: list[list[Run]]) -> None:
    for run in itertools.chain.from_iterable(runs_of):
        begin_run(run)


def _finished(runs: list[Run]) -> dict[Path, RunResult]:
    """The results of those that are finished."""
    return {run.folder: result for run in runs if (result := read_result(run))}


def _groups(task: Task, due: list[tuple[Run, Objective]]) -> Iterator[list[Training]]:
    """The runs that are due, as groups of equal progress, so that each group can share its batches; those of models
    that have diverged before, which are not trained on, are groups of their own."""
    trainings = []
    for run, objective in due:
        saved = of_first(read_checkpoint, run, task.sets, plan_of(objective, task.plan))
        execution = begun_with(saved["member"]) if saved else task.workbench.execution(task.plan.steps)
        training = Training(run, task.workbench.member(objective, run.seed, execution))
        if saved:
            take_up(training, saved)
        trainings.append(training)

    def progress_of(training: Training) -> tuple[int, bool]:
        return training.step, training.diverged_at_epoch is not None

    for _, group in itertools.groupby(sorted(trainings, key=progress_of), key=progress_of):
        yield list(group)


def _trained(task: Task, group: list[Training], stop: Callable[[], int]) -> dict[Path, RunResult]:
    """Trains and evaluates a group. Nothing here outlives it that keeps its images from making room for the next's."""
    recipe, workbench = task.recipe, task.workbench
    sources = training_sources(recipe, task.sets, task.plan, workbench.device)
    for training in group:
        _recall_faults(training, task.plan, sources)
    with deterministic(recipe.train.deterministic):
        try:
            _train_group(task, sources, group, stop)
        finally:
            workbench.release()
        _join_faults(sources)
        return of_first(evaluate_group, task, sources, group)


def _recall_faults(training: Training, plan: Plan, sources: Sequence[Source]) -> None:
    for stream, source in zip(plan.streams, sources, strict=True):
        for row, reason in training.faults.get(stream.name, {}).items():
            source.faults.note(row, reason)


def _train_group(task: Task, sources: Sequence[Source], group: list[Training], stop: Callable[[], int]) -> None:
    """Steps every member through the plan's batches, those that diverge to the end of that epoch; the host waits for
    the device at the end of an epoch only."""
    recipe, plan, start, going = task.recipe, task.plan, group[0].step, _going(group)
    if start == plan.steps or not going:
        return
    made = task.workbench.batches(
        plan,
        sources,
        recipe.augment,
        task.workbench.device,
        loader=task.tuner.loader(plan, sources),
        start_step=start,
        share=share(),
        compiled=finishes_compiled(recipe, task.sets, plan, task.workbench.device),
    )
    is_first = share().rank == 0
    logged = logs(group, tensorboard=recipe.train.tensorboard) if is_first else nullcontext()
    names = " ".join(training.run.objective for training in group)
    shown = progress(f"{task.label} {names}", plan.steps, unit="steps", done=start)
    earlier_s, earlier_stall_s = group[0].train_s, group[0].stall_s
    stall_s, counted, counted_at = 0.0, start, time.perf_counter()
    saved_at = counted_at
    with closing(made) as batches, logged as write_line, shown as advance:
        for number in range(start, plan.steps):
            epoch, place = divmod(number, plan.steps_per_epoch)
            members = [training.member for training in going]
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

            signalled, ends_epoch = stop(), place + 1 == plan.steps_per_epoch
            every = recipe.train.checkpoint_every_epochs
            due = time.perf_counter() - saved_at >= recipe.train.checkpoint_every_s
            saves = signalled or due or (ends_epoch and every > 0 and (epoch + 1) % every == 0)
            if not (ends_epoch or saves):
                continue
            told = read_epoch(going, plan) if ends_epoch else []
            seconds, went = time.perf_counter() - counted_at, going
            for training in went:
                training.step = number + 1
                training.train_s += seconds
                training.stall_s += stall_s
            if ends_epoch:
                images_per_s, stall_share = (number + 1 - counted) * plan.batch_size / seconds, stall_s / seconds
                if write_line is not None:
                    for training, each in zip(went, told, strict=True):
                        write_line(training, _line(training, epoch, each, images_per_s, stall_share))
                advance(0, _note(went, told, images_per_s, stall_share))
                _freeze(task, went, told, epoch)
                going = _going(went)
            if saves or len(going) < len(went):
                if is_first:
                    _save(task, went, sources)
                saved_at = time.perf_counter()
            if signalled:
                of_all(number)  # none ends before the first has written
                raise Interrupted(signalled)
            if not going:
                return
            stall_s, counted, counted_at = 0.0, number + 1, time.perf_counter()
    pace = Pace(plan.steps - start - 1, going[0].train_s - earlier_s, going[0].stall_s - earlier_stall_s)
    verdict = judge(members, batch, pace, sources)
    say(f"{task.label} {names}: {verdict.line}")
    for training in going:
        training.verdict = verdict
        _warn_if_stuck(task, training)


def _going(group: Sequence[Training]) -> list[Training]:
    """Those that have not diverged."""
    return [training for training in group if training.diverged_at_epoch is None]


def _line(training: Training, epoch: int, told: Epoch, images_per_s: float, stall_share: float) -> dict[str, object]:
    """A line of log.jsonl; what is not finite is null in it."""
    return {
        "epoch": epoch,
        "step": training.step,
        "lr": float(training.member.optimizer.param_groups[0]["lr"]),
        "loss": finite(told.loss),
        "guard_hits": told.guard_hits,
        "nonfinite_losses": told.nonfinite_losses,
        "largest_second_moment": finite(told.largest_second_moment),
        "images_per_s": round(images_per_s, 1),
        "stall_share": round(stall_share, 4),
        "train_s": round(training.train_s, 3),
    }


def _note(trainings: Sequence[Training], told: Sequence[Epoch], images_per_s: float, stall_share: float) -> str:
    losses = ", ".join(f"{one.run.objective} {each.loss:.4f}" for one, each in zip(trainings, told, strict=True))
    return f"loss {losses}, {images_per_s:,.0f} images/s, {100 * stall_share:.1f} % of the time waiting for batches"


def _freeze(task: Task, trainings: Sequence[Training], told: Sequence[Epoch], epoch: int) -> None:
    """Marks those whose loss was not finite in the epoch: they are trained no more."""
    for training, each in zip(trainings, told, strict=True):
        if each.nonfinite_losses:
            training.diverged_at_epoch = epoch
            say(
                f"{task.label} {training.run.objective} has diverged: its loss was not finite in "
                f"{each.nonfinite_losses} steps of epoch {epoch}. It is left as it is; a lower optim.lr would help"
            )


def _save(task: Task, trainings: Sequence[Training], sources: Sequence[Source]) -> None:
    """Writes checkpoints; a disk that is full is told of, and training goes on with those that there are."""
    failed = []
    for training in trainings:
        try:
            write_checkpoint(training, task, sources)
        except Unwritable as error:
            failed.append(error)
    if failed:
        say(f"{failed[0]}: {len(failed)} of {len(trainings)} checkpoints are not written, and training goes on")


def _warn_if_stuck(task: Task, training: Training) -> None:
    if training.largest_second_moment > STUCK_FROM:
        say(
            f"{task.label} {training.run.objective}: Adam's second moment has come to "
            f"{training.largest_second_moment:.0e}, with {training.guard_hits:,} images at the guard of 1e-9: some "
            "weights have stood still since then"
        )


def _join_faults(sources: Sequence[Source]) -> None:
    """Takes up which images other ranks could not decode."""
    for others in of_all([source.faults.reason for source in sources])[1:]:
        for source, reasons in zip(sources, others, strict=True):
            for row, reason in reasons.items():
                source.faults.note(row, reason)

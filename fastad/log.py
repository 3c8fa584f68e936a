"""What a training tells while it runs, epoch by epoch: `log.jsonl`, and TensorBoard's event files made from it.

Owns their lines and their life over interruptions; what stands on the screen is `fastad.progress`'.
Use: `with logs(group, tensorboard=False) as write: write(training, line)`.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastad.errors import FastadError
from fastad.files import Unwritable, append_line, write_text
from fastad.progress import say
from fastad.run import Run
from fastad.training import Training

Line = Mapping[str, Any]


@contextmanager
def logs(group: Sequence[Training], *, tensorboard: bool) -> Iterator[Callable[[Training, Line], None]]:
    """Yields what writes a training's line of an epoch; lines of epochs that come again are taken away first.

    A full disk is told of once, and training goes on without.
    """
    boards = {}
    for training in group:
        cut_log(training.run, training.step)
        if tensorboard:
            boards[training] = _open_board(training.run)
    told = False

    def write(training: Training, line: Line) -> None:
        nonlocal told
        try:
            append_line(training.run.log, json.dumps(line))
            if training in boards:
                _show(boards[training], line)
                boards[training].flush()
        except (Unwritable, OSError) as error:
            if not told:
                say(f"{error}; training goes on without its log")
            told = True

    try:
        yield write
    finally:
        for board in boards.values():
            board.close()


def read_log(run: Run) -> list[dict[str, Any]]:
    """The lines of `log.jsonl`; those that a kill or a full disk has cut are left out."""
    lines = run.log.read_text().splitlines() if run.log.is_file() else []
    return [line for text in lines if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return line


def cut_log(run: Run, start: int) -> None:
    """Takes away what an earlier process logged after step `start`: those epochs come again."""
    lines = [line for line in read_log(run) if line["step"] <= start]
    write_text(run.log, "".join(f"{json.dumps(line)}\n" for line in lines))


def writer_of_boards() -> Any:
    """TensorBoard's class; raises `FastadError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FastadError("train.tensorboard=true needs TensorBoard: pip install 'fastad[tensorboard]'") from error
    return SummaryWriter


def _open_board(run: Run) -> Any:
    """A TensorBoard writer that has shown what is logged already, in a folder of its own, made anew."""
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    board = writer_of_boards()(str(run.tensorboard))
    for line in read_log(run):
        _show(board, line)
    return board


def _show(board: Any, line: Line) -> None:
    """Every figure of a line over its step."""
    for name, value in line.items():
        if name != "step" and value is not None:
            board.add_scalar(name, value, line["step"])

"""Work ahead: order, errors, an end to every thread, and no more held than asked."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fastad import ahead as ahead_module
from fastad.ahead import ahead
from fastad.augment import AugmentSpec
from fastad.manifest import Manifest
from fastad.pipeline import Source, train_batches
from fastad.plan import Plan, Stream
from fastad.reader import ShardReader

CPU = torch.device("cpu")


def alive(what: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == what]


def test_items_come_in_their_order_and_the_thread_ends() -> None:
    assert list(ahead(iter(range(1000)), depth=3, what="counting")) == list(range(1000))
    assert not alive("counting")


def test_an_exception_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("no third")

    found = []
    with pytest.raises(ValueError, match="no third"):
        for item in ahead(items(), depth=5, what="failing"):
            found.append(item)
    assert found == [1, 2]
    assert not alive("failing")


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_its_depth_and_closing_ends_a_producer_that_is_blocked(depth: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    found = ahead(items(), depth=depth, what="blocked")
    assert next(found) == 0
    time.sleep(0.3)
    # One was taken, `depth` wait in the queue, and one is in the producer's hands.
    assert len(made) == depth + 2
    assert alive("blocked")
    found.close()
    assert not alive("blocked")


def test_a_stall_is_said_and_said_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ahead_module, "STALL_S", 0.1)

    def items() -> Iterator[int]:
        time.sleep(0.35)
        yield 1

    assert list(ahead(items(), depth=1, what="reading slowly")) == [1]
    assert capsys.readouterr().err.count("reading slowly has given nothing for") >= 2


def stream_of(blobs: Manifest, reader: ShardReader) -> Iterator[object]:
    plan = Plan((Stream("nominal", np.arange(50), 10),), seed=1, epochs=20)
    return train_batches(plan, [Source(reader)], AugmentSpec(), CPU)


def test_a_slow_disk_is_said_through_a_whole_stream(
    blobs: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ahead_module, "STALL_S", 0.1)
    reader = ShardReader(blobs)
    arrays = reader.arrays

    def slow(rows: np.ndarray) -> object:
        time.sleep(0.25)
        return arrays(rows)

    monkeypatch.setattr(reader, "arrays", slow)
    batches = stream_of(blobs, reader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert "reading blobs has given nothing for" in capsys.readouterr().err
    assert not alive("reading blobs")


def test_no_thread_outlives_batches_that_are_closed_or_fail(blobs: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(blobs)
    batches = stream_of(blobs, reader)
    next(batches)
    assert alive("reading blobs")
    batches.close()  # type: ignore[attr-defined]
    assert not alive("reading blobs")

    def fails(rows: np.ndarray) -> object:
        raise OSError("the disk is gone")

    monkeypatch.setattr(reader, "arrays", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream_of(blobs, reader))
    assert not alive("reading blobs")

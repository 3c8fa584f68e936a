"""The queue: claims that end with their process, and an order in which failures come last."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastad.recipe import Recipe
from fastad.sweep_queue import Group, Queue

CLAIM = """
import pickle, sys
from pathlib import Path
from fastad.sweep_queue import Queue
groups, out, folder = pickle.loads(bytes.fromhex(sys.argv[1]))
queue = Queue(groups, out, folder)
print(queue.take().class_name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def groups(recipe: Recipe) -> list[Group]:
    return [Group(recipe, name, 1) for name in ("low/mid", "middle", "high")]


def finish(group: Group, out: Path) -> None:
    for run in group.runs(out):
        run.folder.mkdir(parents=True)
        run.result.write_text("{}")


def test_a_claim_holds_for_other_processes_until_its_process_is_dead(groups: list[Group], tmp_path: Path) -> None:
    told = pickle.dumps((groups, tmp_path, tmp_path / ".sweep")).hex()
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "low/mid\n"
        with Queue(groups, tmp_path, tmp_path / ".sweep") as queue:
            taken = queue.take()
            assert taken == groups[1]
            queue.leave(taken)
            assert queue.due() == groups
            other.kill()
            other.communicate()
            assert queue.take() == groups[0]
    finally:
        other.kill()
        other.communicate()


def test_a_group_is_finished_when_all_its_results_are_there(groups: list[Group], tmp_path: Path) -> None:
    with Queue(groups, tmp_path, tmp_path / ".sweep") as queue:
        finish(groups[0], tmp_path)
        run = groups[1].runs(tmp_path)[0]
        run.folder.mkdir(parents=True)
        run.result.write_text("{}")
        assert queue.due() == groups[1:]
        assert queue.take() == groups[1]
        finish(groups[2], tmp_path)
        assert queue.due() == groups[1:2]


def test_what_failed_comes_last_and_after_three_times_not_at_all(groups: list[Group], tmp_path: Path) -> None:
    with Queue(groups, tmp_path, tmp_path / ".sweep") as queue:
        queue.fail(groups[0], "first line\nmore")
        assert queue.take() == groups[1]
        queue.fail(groups[1], "x")
        queue.fail(groups[1], "x")
        finish(groups[2], tmp_path)
        assert queue.take() == groups[0]
        queue.fail(groups[0], "second")
        queue.fail(groups[0], "third")
        assert queue.take() == groups[1]
        assert [path.read_text() for path in queue.aside().values()] == ["third\n"]
        assert list(queue.aside()) == ["low/mid seed 1"]
        queue.forgive()
        assert queue.due() == groups[:2] and not queue.aside()


def test_names_tell_point_class_and_seed(recipe: Recipe, tmp_path: Path) -> None:
    group = Group(replace(recipe, name="sizes/oe_size=64"), "low/mid", 3)
    assert (group.name, group.point, group.label) == (
        "sizes/oe_size=64/low/mid/seed3",
        "oe_size=64",
        "oe_size=64 low/mid seed 3",
    )
    assert group.runs(tmp_path)[1].folder == tmp_path / "sizes" / "oe_size=64" / "low-mid" / "bce" / "seed3"
    assert group.file_name == "sizes-oe_size=64--low-mid--seed3"

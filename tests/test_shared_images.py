"""Images shared by the processes of a machine: decoded once, the same for all, and gone with the last, however it ends.

Processes here are real ones; each is told what to do by a word on its standard input.
"""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_faults import BAD, DAMAGED, make_set, row_of

from fastad import sets as sets_module
from fastad import shared_images
from fastad.augment import AugmentSpec
from fastad.dali import Decoding, LoaderSpec
from fastad.errors import FastadError
from fastad.faults import Faults, Origin
from fastad.manifest import Manifest
from fastad.reader import ShardReader
from fastad.recipe import Recipe
from fastad.resident import Held, hold
from fastad.sets import make_plan, open_sets, training_sources
from fastad.shared_images import hold_together, leave_all, sharing

CPU = torch.device("cpu")
HOW = Decoding(AugmentSpec(crop_px=64), CPU, LoaderSpec())

# Holds a set's training images in home `argv[2]`; tells when it decodes, and what it has. "slow" to decode, it waits to
# be told before it does.
PROCESS = """
import hashlib, json, sys, time
from pathlib import Path
import numpy as np, torch
from fastad import shared_images
from fastad.augment import AugmentSpec
from fastad.dali import Decoding, LoaderSpec
from fastad.faults import Faults, Origin
from fastad.manifest import open_set
from fastad.reader import ShardReader
from fastad.resident import hold

def tell(**told):
    print(json.dumps(told), flush=True)

def counted(*arguments):
    tell(decodes=True)
    if "slow" in sys.argv:
        sys.stdin.readline()
    return hold(*arguments)

shared_images.hold, shared_images.HOMES = counted, (Path(sys.argv[2]),)
manifest = open_set(Path(sys.argv[1]))
rows = np.asarray(manifest.split_rows("train"))
faults = Faults(rows)
sys.stdin.readline()
with shared_images.sharing():
    decoding = Decoding(AugmentSpec(crop_px=64), torch.device("cpu"), LoaderSpec())
    held = shared_images.hold_together(Origin(ShardReader(manifest), faults), rows, decoding, lambda: 2**30)
    tell(pixels=hashlib.sha256(held.pixels.numpy().data).hexdigest(), bad=sorted(faults.stand_in))
    sys.stdin.readline()
"""


class Process:
    """One of those."""

    def __init__(self, manifest: Manifest, home: Path, *how: str) -> None:
        arguments = [sys.executable, "-c", PROCESS, str(manifest.folder), str(home), *how]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(arguments, text=True, **pipes)  # type: ignore[call-overload]

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def told(self) -> dict[str, object]:
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def end(self) -> str:
        _, said = self.process.communicate("go\n", timeout=60)
        assert self.process.returncode == 0, said
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Train images that do not decode, and one of them larger than what it is said to be."""
    return make_set(tmp_path_factory.mktemp("damaged"), "damaged", DAMAGED)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the processes of a test find each other: a folder of its own."""
    monkeypatch.setattr(shared_images, "HOMES", (tmp_path,))
    yield tmp_path
    leave_all()


def left_in(place: Path) -> list[Path]:
    return [path for folder in place.glob("fastad-*") for path in folder.iterdir()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def train_rows(manifest: Manifest) -> np.ndarray:
    return np.asarray(manifest.split_rows("train"))


def taken(manifest: Manifest, faults: Faults | None = None, room: float = 2**30) -> Held | None:
    rows = train_rows(manifest)
    return hold_together(Origin(ShardReader(manifest), faults or Faults(rows)), rows, HOW, lambda: room)


def alone(manifest: Manifest, faults: Faults | None = None) -> Held:
    rows = train_rows(manifest)
    return hold(Origin(ShardReader(manifest), faults or Faults(rows)), rows, HOW)


def assert_same(one: Held | None, other: Held) -> None:
    assert one is not None
    assert torch.equal(one.pixels, other.pixels)
    for name in ("rows", "first", "size_hw"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_processes_that_begin_together_decode_once_and_have_the_same(damaged: Manifest, place: Path) -> None:
    processes = [Process(damaged, place) for _ in range(3)]
    for process in processes:
        process.go()
    told = [process.told() for process in processes]
    decoders = [process for process, first in zip(processes, told, strict=True) if "decodes" in first]
    assert len(decoders) == 1
    told = [first if "pixels" in first else process.told() for process, first in zip(processes, told, strict=True)]
    expected = hashlib.sha256(np.asarray(alone(damaged).pixels)).hexdigest()
    bad = sorted(row_of(damaged, number) for number in BAD)
    assert told == [{"pixels": expected, "bad": bad}] * 3
    assert len(left_in(place)) == 1
    said = [process.end() for process in processes]
    assert sum("4 images cannot be decoded, as the process says that tried" in each for each in said) == 2
    assert not left_in(place)


def test_what_a_killed_process_was_making_is_made_by_one_that_waited(damaged: Manifest, place: Path) -> None:
    maker, waiting = Process(damaged, place, "slow"), Process(damaged, place)
    maker.go()
    assert maker.told() == {"decodes": True}
    waiting.go()
    time.sleep(0.2)
    maker.kill()
    assert waiting.told() == {"decodes": True}
    assert waiting.told()["pixels"] == hashlib.sha256(np.asarray(alone(damaged).pixels)).hexdigest()
    waiting.end()
    assert not left_in(place)


def test_what_is_used_outlives_the_process_that_made_it(damaged: Manifest, place: Path) -> None:
    maker = Process(damaged, place)
    maker.go()
    assert maker.told() == {"decodes": True}
    assert "pixels" in maker.told()
    held = taken(damaged)
    maker.kill()
    # Of what is used nothing is removed, nor decoded again.
    with sharing():
        assert len(left_in(place)) == 1
        later = Process(damaged, place)
        later.go()
        assert "pixels" in later.told()
        later.end()
    assert_same(held, alone(damaged))


def test_what_killed_processes_leave_is_removed_by_the_next(damaged: Manifest, place: Path) -> None:
    killed = Process(damaged, place)
    killed.go()
    assert [*killed.told(), *killed.told()] == ["decodes", "pixels", "bad"]
    killed.kill()
    (left,) = left_in(place)
    assert left.stat().st_size < 100
    with sharing():
        assert not left_in(place)


def test_it_is_as_held_alone_also_where_a_larger_image_stands_in(
    damaged: Manifest, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, others = Faults(train_rows(damaged)), Faults(train_rows(damaged))
    expected = alone(damaged, others)
    held = taken(damaged, faults)
    assert_same(held, expected)
    assert (faults.stand_in, faults.reason) == (others.stand_in, others.reason)
    monkeypatch.setattr(shared_images, "hold", None)
    later = Faults(train_rows(damaged))
    assert_same(taken(damaged, later), expected)
    assert (later.stand_in, later.reason) == (others.stand_in, others.reason)
    del held
    assert not left_in(place)
    # Fewer bytes than they turn out to take, as where all stand-ins are larger.
    monkeypatch.setattr(shared_images, "hold", hold)
    monkeypatch.setattr(shared_images, "bytes_held", lambda *_: 3 * 8_000)
    assert_same(taken(damaged), expected)


def test_other_images_are_not_taken_for_them(damaged: Manifest, place: Path) -> None:
    rows, reader = train_rows(damaged), ShardReader(damaged)
    resized = replace(HOW, spec=replace(HOW.spec, resize_px=72))
    asked = [(Faults(rows), rows, HOW), (Faults(), rows[8:], HOW), (Faults(rows[::-1].copy()), rows, HOW)]
    asked.append((Faults(rows), rows, resized))
    bad = {row_of(damaged, number) for number in BAD}
    held = []
    for faults, wanted, how in asked:
        sound = np.array([row for row in wanted.tolist() if len(faults.others) or row not in bad])
        held.append(hold_together(Origin(reader, faults), sound, how, lambda: 2**30))
    assert len(left_in(place)) == 4
    # A crop is taken of what is held.
    cropped = replace(HOW, spec=replace(HOW.spec, crop_px=32, flip_probability=0.5))
    held.append(hold_together(Origin(reader, Faults(rows)), rows, cropped, lambda: 2**30))
    assert len(left_in(place)) == 4


def test_nobody_can_write_to_it(damaged: Manifest) -> None:
    held = taken(damaged)
    assert held is not None
    ((memory, _),) = shared_images._used.values()
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_TRUNC)
    code = "import sys, torch; from test_shared_images import *; "
    code += "from fastad.manifest import open_set; taken(open_set(Path(sys.argv[1]))).pixels[0] = 1"
    process = subprocess.run([sys.executable, "-c", code, str(damaged.folder)], cwd=Path(__file__).parent)
    assert process.returncode < 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("room", r"not shared with the other processes of this machine \(there is no room for their 1,\d+,\d+ bytes\)"),
        ("memory", r"not shared with the other processes of this machine \(No space left on device\)"),
        ("place", r"\(no folder of one's own can be made: .*/file\)"),
        ("proc", r"\(what others have cannot be opened: /"),
    ],
)
def test_where_it_cannot_be_shared_it_is_said_and_nothing_is_left(
    fault: str,
    said: str,
    damaged: Manifest,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    other = None
    if fault == "memory":
        monkeypatch.setattr(os, "posix_fallocate", full)
    if fault == "place":
        (place / "file").touch()
        monkeypatch.setattr(shared_images, "HOMES", (place / "file",))
    if fault == "proc":
        other = taken(damaged)
        monkeypatch.setattr(shared_images, "_memory_of", lambda *_: None)
        monkeypatch.setattr(shared_images, "GIVE_UP_AFTER_S", 0.1)
    before, left = open_files(), left_in(place)
    assert taken(damaged, room=1_000 if fault == "room" else 2**30) is None
    assert re.search(said, capsys.readouterr().err)
    assert (open_files(), left_in(place)) == (before, left)
    del other


def test_an_image_that_nothing_can_replace_ends_it_for_everyone(damaged: Manifest, place: Path) -> None:
    for _ in range(2):
        with pytest.raises(FastadError, match="cannot be decoded"):
            taken(damaged, Faults())
        assert not left_in(place)


def test_a_sets_images_are_shared_if_it_is_asked(
    recipe: Recipe, home: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(origin: Origin, *arguments: Any) -> Held:
        made.append(origin)
        return hold(origin, *arguments)

    monkeypatch.setattr(shared_images, "hold", counted)
    monkeypatch.setattr(sets_module, "hold", None)
    every, sources = [open_sets(recipe, home, shares=True) for _ in range(2)], []
    for number, sets in enumerate(every):
        plan = make_plan(recipe, sets, "middle", 1)
        sources.append(training_sources(recipe, sets, plan, CPU))
        assert len(made) == 2
        if number == 0:  # what is there already takes no more room
            monkeypatch.setattr(sets_module, "available_bytes", lambda: 0)
    for one, other in zip(*sources, strict=True):
        assert one.held is not None
        assert_same(one.held, other.held)  # type: ignore[arg-type]
    asked = replace(recipe, train=replace(recipe.train, resident="on"))
    with pytest.raises(FastadError, match=r"train\.resident=on: the 40 nominal images need 31,360 bytes, more"):
        training_sources(asked, every[0], make_plan(asked, every[0], "high", 1), CPU)
    plan = make_plan(recipe, every[1], "high", 1)
    assert [source.held is None for source in training_sources(recipe, every[1], plan, CPU)] == [True, False]


@pytest.mark.gpu
def test_a_gpu_takes_what_another_process_decoded(damaged: Manifest, place: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    gpu, rows = torch.device("cuda"), train_rows(damaged)
    faults = [Faults(rows), Faults(rows)]
    held = [
        hold_together(Origin(ShardReader(damaged), each), rows, replace(HOW, device=gpu), lambda: 2**30)
        for each in faults
    ]
    assert held[0] is not None
    assert held[0].pixels.device.type == "cuda"
    assert_same(held[1], held[0])
    assert faults[0].stand_in == faults[1].stand_in

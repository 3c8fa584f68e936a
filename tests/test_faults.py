"""Images that do not decode, and shards that change: named, replaced or refused, on every way that pixels take."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from fastad import shard
from fastad.augment import AugmentSpec, Geometry
from fastad.dali import Decoding, LoaderSpec
from fastad.encode import Encoding
from fastad.errors import FastadError, Interrupted
from fastad.faults import Faults, Origin
from fastad.listing import Converter
from fastad.manifest import Manifest, Sample, open_set
from fastad.networks import NETWORKS, Network
from fastad.pipeline import Batch, Source, evaluation_batches, train_batches
from fastad.plan import WHOLE_BATCH, Plan, Share, Stream
from fastad.reader import ShardReader
from fastad.recipe import CHOICES, Recipe, parse
from fastad.resident import hold
from fastad.run import find_runs
from fastad.train import train

CPU = torch.device("cpu")
SPEC = AugmentSpec(crop_px=64, flip_probability=0.5, noise_std=0.01)
HOW = Decoding(SPEC, CPU, LoaderSpec())

Damage = Callable[[bytes], bytes]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_its_end(data: bytes) -> bytes:
    return data[:-2]


def with_bytes_after(data: bytes) -> bytes:
    return data + b"left by a careless program"


def without_quantisation(data: bytes) -> bytes:
    """Zeros in the place of its tables: Pillow reads it, DALI crashes."""
    return data[:300] + bytes(100) + data[400:]


def zeros_in_the_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :]


def make_set(home: Path, name: str, damaged: dict[int, Damage], count: int = 48) -> Manifest:
    """JPEGs 80 to 120 px wide, two classes; of number n as `damaged` says; a quarter as many test images."""
    rng, sources = np.random.default_rng(0), load_sample_images().images

    def samples() -> object:
        for index in range(count + count // 4):
            height, width = rng.integers(80, 120, size=2)
            top, left = rng.integers(0, 250, size=2)
            crop = sources[index % 2][top : top + height, left : left + width]
            buffer = io.BytesIO()
            Image.fromarray(crop).save(buffer, "JPEG", quality=92)
            path = home / f"{name}-{index:03d}.jpg"
            path.write_bytes(damaged.get(index, bytes)(buffer.getvalue()))
            yield Sample(path.stem, path, "ab"[index % 2], "train" if index < count else "test")

    converter = Converter(name, samples, "tests", "CC0", None, "")  # type: ignore[arg-type]
    encoding = Encoding(checked=False)
    manifest = shard.convert_with(converter, None, home, encoding=encoding, workers=1, shard_samples=16)
    assert manifest is not None
    return manifest


DAMAGED: dict[int, Damage] = {3: half, 4: without_its_end, 17: half, 20: without_quantisation, 31: with_bytes_after}
BAD = (3, 4, 17, 20)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("damaged"), "damaged", DAMAGED)


def row_of(manifest: Manifest, index: int) -> int:
    return int(np.flatnonzero(manifest.source_index == index)[0])


def stream_rows(manifest: Manifest) -> np.ndarray:
    return np.asarray(manifest.split_rows("train"))


def make_plan(manifest: Manifest, batch: int = 12, epochs: int = 3) -> Plan:
    rows = stream_rows(manifest)
    return Plan((Stream("nominal", rows, batch), Stream("oe", rows[::-1].copy(), batch, "cyclic")), 7, epochs)


def sources_of(plan: Plan, manifest: Manifest, executor: str, spec: AugmentSpec = SPEC) -> list[Source]:
    reader, sources = ShardReader(manifest), []
    for stream in plan.streams:
        faults = Faults(stream.rows)
        held = hold(Origin(reader, faults), stream.rows, replace(HOW, spec=spec)) if executor == "resident" else None
        sources.append(Source(reader, held, faults))
    return sources


def batches_of(
    plan: Plan,
    sources: list[Source],
    start_step: int = 0,
    share: Share = WHOLE_BATCH,
    spec: AugmentSpec = SPEC,
) -> list[Batch]:
    batches = train_batches(plan, sources, spec, CPU, start_step=start_step, share=share)
    return [Batch(batch.images.clone(), batch.target, batch.row) for batch in batches]


def expected_rows(plan: Plan, bad: set[int]) -> list[np.ndarray]:
    """The plan's rows, each bad one replaced by the next of its stream that is not."""
    following = []
    for stream in plan.streams:
        rows = stream.rows.tolist()
        around = rows + rows
        following.append({row: next(r for r in around[place:] if r not in bad) for place, row in enumerate(rows)})
    return [
        np.array([other[row] for rows, other in zip(epoch, following, strict=True) for row in rows[step].tolist()])
        for epoch in map(plan.epoch, range(plan.epochs))
        for step in range(plan.steps_per_epoch)
    ]


@pytest.mark.parametrize("executor", ["dali", "resident"])
def test_bad_images_are_replaced_by_the_next_of_their_stream(
    executor: str, damaged: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several in a batch, of which one follows the other in its stream; no batch is lost or comes twice."""
    plan = make_plan(damaged)
    sources = sources_of(plan, damaged, executor)
    batches = batches_of(plan, sources)
    bad = {row_of(damaged, index) for index in BAD}
    assert len(batches) == plan.steps
    for batch, rows in zip(batches, expected_rows(plan, bad), strict=True):
        np.testing.assert_array_equal(batch.row, rows)
    for source in sources:
        assert source.faults.reason.keys() == bad
        assert "truncated" in source.faults.reason[row_of(damaged, 3)]
        assert source.faults.reason[row_of(damaged, 20)] == "its headers are broken"
    said = capsys.readouterr().err
    path = damaged.shard_path(int(damaged.shard[row_of(damaged, 3)]))
    assert f"{path}: image damaged-003 cannot be decoded (image file is truncated" in said
    assert said.count("stands in for it") == 2 * len(BAD)


def test_both_executors_give_the_same_bits(damaged: Manifest) -> None:
    plan = make_plan(damaged)
    one, other = (batches_of(plan, sources_of(plan, damaged, executor)) for executor in ("dali", "resident"))
    for mine, yours in zip(one, other, strict=True):
        assert torch.equal(mine.images, yours.images)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_pixels_are_those_of_the_rows_that_stand_in(prefetch: int, damaged: Manifest) -> None:
    plan, spec = make_plan(damaged), AugmentSpec(crop_px=80)
    sources = sources_of(plan, damaged, "dali")
    sound = {row: damaged.key[row].decode() for row in stream_rows(damaged)}
    for batch in train_batches(plan, sources, spec, CPU, loader=LoaderSpec(prefetch=prefetch)):
        for image, row in zip(batch.images, batch.row.tolist(), strict=True):
            pixels = ShardReader(damaged).image(row) / 255
            levels = image.permute(1, 2, 0).numpy()
            corners = [
                pixels[top : top + 80, left : left + 80]
                for top in range(pixels.shape[0] - 79)
                for left in range(pixels.shape[1] - 79)
                if np.allclose(pixels[top, left], levels[0, 0], atol=1e-3)
            ]
            assert any(np.allclose(corner, levels, atol=1e-3) for corner in corners), sound[row]
        break


@pytest.mark.parametrize("executor", ["dali", "resident"])
@pytest.mark.parametrize("start_step", [1, 5, 9])
def test_resumed_after_or_before_a_fault_the_batches_are_the_same(
    executor: str, start_step: int, damaged: Manifest
) -> None:
    plan = make_plan(damaged)
    whole = batches_of(plan, sources_of(plan, damaged, executor))
    rest = batches_of(plan, sources_of(plan, damaged, executor), start_step)
    for one, other in zip(whole[start_step:], rest, strict=True):
        np.testing.assert_array_equal(one.row, other.row)
        assert torch.equal(one.images, other.images)


def test_ranks_replace_alike(damaged: Manifest) -> None:
    plan = make_plan(damaged)
    shares = [batches_of(plan, sources_of(plan, damaged, "dali"), share=Share(rank, 2)) for rank in range(2)]
    for step, whole in enumerate(batches_of(plan, sources_of(plan, damaged, "dali"))):
        rows = [share[step].row for share in shares]
        for stream in (slice(0, 6), slice(6, 12)):
            both = slice(2 * stream.start, 2 * stream.stop)
            np.testing.assert_array_equal(np.concatenate([part[stream] for part in rows]), whole.row[both])


def test_known_faults_cost_no_second_pipeline(damaged: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found in reading, before DALI gets them."""
    from fastad import dali

    made: list[object] = []
    graph = dali._graph
    monkeypatch.setattr(dali, "_graph", lambda *args, **fields: made.append(args) or graph(*args, **fields))
    plan = make_plan(damaged, epochs=12)
    batches_of(plan, sources_of(plan, damaged, "dali"))
    assert len(made) == 1


def test_the_headers_of_a_row_are_walked_once(damaged: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastad import faults

    walked: list[int] = []
    has_headers = faults._has_headers
    monkeypatch.setattr(faults, "_has_headers", lambda source: walked.append(len(source)) or has_headers(source))
    plan = make_plan(damaged, epochs=12)
    sources = sources_of(plan, damaged, "dali")
    batches_of(plan, sources)
    assert 0 < len(walked) <= sum(len(stream.rows) for stream in plan.streams) < plan.steps * plan.batch_size
    assert not any(source.faults.checked[row_of(damaged, index)] for source in sources for index in BAD)


def test_headers_are_walked_to_their_end_however_short_the_file_is(damaged: Manifest) -> None:
    from fastad.faults import _has_headers

    whole = ShardReader(damaged).files(np.array([row_of(damaged, 0)]))[0].tobytes()
    scan = whole.index(b"\xff\xda")
    assert [_has_headers(whole[:stop]) for stop in range(2, scan + 2)] == [False] * scan
    assert _has_headers(whole[: scan + 2])
    assert _has_headers(whole[:2] + b"\xff\xff" + whole[2:])


@pytest.mark.parametrize("executor", ["dali", "resident"])
def test_a_stream_in_which_all_images_are_bad_stops(executor: str, tmp_path: Path) -> None:
    manifest = make_set(tmp_path, "hopeless", dict.fromkeys(range(8), half), count=8)
    plan = make_plan(manifest, batch=4)
    with pytest.raises(FastadError, match=r"cannot be decoded .*nor can any of the 8 images that might stand in"):
        batches_of(plan, sources_of(plan, manifest, executor))


@pytest.mark.parametrize("executor", ["dali", "resident"])
@pytest.mark.parametrize("index", [3, 20])
def test_in_a_test_nothing_is_left_out(index: int, executor: str, damaged: Manifest) -> None:
    rows = np.array([row_of(damaged, each) for each in (0, 1, index, 5)])
    reader, faults = ShardReader(damaged), Faults()
    message = rf"\d+\.tar: image damaged-{index:03d} cannot be decoded .*none may stand in for it in a test"
    with pytest.raises(FastadError, match=message):
        held = hold(Origin(reader, faults), rows, HOW) if executor == "resident" else None
        list(evaluation_batches(Source(reader, held, faults), rows, np.zeros(4, np.float32), SPEC, CPU))


def test_what_is_wrong_with_a_batch_but_not_with_its_images_is_told_in_dalis_words(
    damaged: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in those of the first line, "Critical error in pipeline:", nor those that say where in the graph."""
    from fastad import external_source

    place = external_source.place

    def beyond(*args: object) -> Geometry:
        geometry = place(*args)  # type: ignore[arg-type]
        return geometry._replace(start=geometry.start + 1_000)

    monkeypatch.setattr(external_source, "place", beyond)
    plan = make_plan(damaged)
    with pytest.raises(
        FastadError, match=r"DALI cannot make a batch of \S+ \(damaged-\d+, .* …\): The cropping window"
    ):
        batches_of(plan, sources_of(plan, damaged, "dali"))


class Full:
    """A pipeline for which there is no memory."""

    def run(self) -> None:
        raise MemoryError("CUDA allocation failed")


def test_where_memory_is_too_small_it_is_said_what_takes_less(
    damaged: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastad.dali._graph", lambda *_, **__: Full())
    plan = make_plan(damaged)
    with pytest.raises(FastadError, match=r"…\): CUDA allocation failed: less is needed with --set loader\.prefetch=1"):
        batches_of(plan, sources_of(plan, damaged, "dali"))


def test_what_is_read_to_the_end_but_damaged_inside_passes_as_pillow_reads_it(tmp_path: Path) -> None:
    """No decoder complains of it; only a conversion without --unchecked would keep hash and pixels."""
    manifest = make_set(tmp_path, "scratched", {2: zeros_in_the_middle, 5: with_bytes_after}, count=12)
    plan = Plan((Stream("nominal", stream_rows(manifest), 12),), seed=1, epochs=1)
    sources = sources_of(plan, manifest, "dali")
    (batch,) = batches_of(plan, sources)
    assert not sources[0].faults.reason
    np.testing.assert_array_equal(batch.row, plan.epoch(0)[0][0])


def test_what_is_no_jpeg_is_decoded_at_conversion_even_unchecked(tmp_path: Path) -> None:
    with pytest.raises(FastadError, match="not an image"):
        make_set(tmp_path, "texts", {1: lambda data: b"not an image at all"})


@pytest.fixture
def jpegs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe for two sets in `tmp_path`: "sound" with one bad training image, and "damaged"; and its network."""
    tiny = Network(lambda shape_hwc: nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), 4, lambda body: None)
    monkeypatch.setitem(NETWORKS, "tiny", tiny)
    monkeypatch.setitem(CHOICES, "network", ("tiny",))
    make_set(tmp_path, "sound", {6: half})
    make_set(tmp_path, "damaged", DAMAGED)
    return parse(
        {
            "name": "jpegs",
            "network": "tiny",
            "objectives": ["hsc", "deep-svdd"],
            "data": {"nominal": "sound", "oe": "damaged", "batch_nominal": 8, "batch_oe": 8},
            "optim": {"epochs": 4},
            "augment": {"crop_px": 32, "flip_probability": 0.5},
        }
    )


def run(recipe: Recipe, home: Path, out: Path, **fields: object) -> dict[str, np.ndarray]:
    from fastad.evaluate import read_scores

    train(recipe, shards=home, out=out, device=CPU, classes=["a"], **fields)  # type: ignore[arg-type]
    return {run.objective: read_scores(run).score for run in find_runs([out])}


def after(calls: int) -> Callable[[], int]:
    left = iter(range(calls - 1, -1, -1))
    return lambda: 0 if next(left, 1) else 15


@pytest.mark.parametrize("resident", ["off", "on"])
def test_a_whole_training_names_what_it_replaced_and_resumes_exactly(
    resident: str, jpegs: Recipe, tmp_path: Path
) -> None:
    recipe = replace(jpegs, train=replace(jpegs.train, resident=resident))
    whole = run(recipe, tmp_path, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, tmp_path / "cut", stop=after(5))
    # How images are held makes no other run.
    other = replace(jpegs, train=replace(jpegs.train, resident="auto"), loader=LoaderSpec(threads=1, prefetch=1))
    rest = run(other, tmp_path, tmp_path / "cut")
    for objective, scores in whole.items():
        np.testing.assert_array_equal(scores, rest[objective])
    for folder in ("whole", "cut"):
        for found in find_runs([tmp_path / folder]):
            replaced = json.loads(found.replaced.read_bytes())
            keys = {each["key"] for each in replaced}
            oe = {f"damaged-{index:03d}" for index in BAD} if found.objective == "hsc" else set()
            assert keys == {"sound-006"} | oe
            assert json.loads(found.result.read_bytes())["counts"]["replaced"] == len(keys)
            assert all(each["stand_in"] and each["reason"] for each in replaced)


def test_a_recipe_may_stop_at_bad_images(jpegs: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FastadError, match=r"cannot be decoded .*loader\.bad_images=stop: convert \S+ again"):
        run(replace(jpegs, loader=LoaderSpec(bad_images="stop")), tmp_path, tmp_path / "out")


def vanish(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    data = path.read_bytes()
    os.utime(path, ns=(0, 0))
    path.write_bytes(data)


def exchange(path: Path) -> None:
    shutil.copy(path, copy := path.with_suffix(".new"))
    os.replace(copy, path)


CHANGES = {"vanish": vanish, "cut": cut, "overwrite": overwrite, "exchange": exchange}


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_before_it_is_read_is_named(change: str, tmp_path: Path) -> None:
    manifest = make_set(tmp_path, "photos", {})
    reader = ShardReader(manifest)
    CHANGES[change](manifest.shard_path(1))
    plan = Plan((Stream("nominal", stream_rows(manifest), 8),), seed=1, epochs=1)
    with pytest.raises(FastadError, match=r"photos/train-00001\.tar (cannot be read|has changed while it was read)"):
        batches_of(plan, [Source(reader)])


@pytest.mark.parametrize("change", ["cut", "overwrite"])
def test_a_shard_that_changes_while_dali_streams_is_named(change: str, tmp_path: Path) -> None:
    manifest = make_set(tmp_path, "photos", {})
    plan = Plan((Stream("nominal", stream_rows(manifest), 8),), seed=1, epochs=50)
    batches = train_batches(plan, [Source(ShardReader(manifest))], SPEC, CPU)
    next(batches)
    CHANGES[change](manifest.shard_path(1))
    with pytest.raises(FastadError, match=r"photos/train-00001\.tar (cannot be read|has changed while it was read)"):
        list(batches)


def test_a_shard_that_is_removed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    manifest = make_set(tmp_path, "photos", {})
    plan = Plan((Stream("nominal", stream_rows(manifest), 48),), seed=1, epochs=9)
    batches = train_batches(plan, [Source(ShardReader(manifest))], SPEC, CPU)
    next(batches)
    for number in range(len(manifest.shards)):
        manifest.shard_path(number).unlink()
    assert len(list(batches)) == 8


@pytest.mark.parametrize("change", ["vanish", "cut"])
def test_shards_that_are_not_whole_at_the_start_are_one_line(change: str, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "blobs", tmp_path / "digits")
    path = open_set(tmp_path / "digits").shard_path(0)
    CHANGES[change](path)
    command = ["train", "digits", "--shards", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-m", "fastad", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"fastad: {path} ")
    assert "Traceback" not in done.stderr

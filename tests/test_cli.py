"""The command line: what a user sees, exit codes, and one line for each mistake."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fastad import __version__, cli
from fastad.listing import converter_names
from fastad.manifest import open_set
from fastad.reader import ShardReader
from fastad.recipe import Recipe, dump, load
from fastad.sets import make_plan, open_sets

# Levels, on average over an image: what rounding Pillow's resizing and torchvision's of tensors differ in, and what a
# JPEG of quality 95 loses of a grainy photograph.
RESIZING_DIFFERENCE, JPEG_LOSS = 0.2, 3.0


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line that a mistake is told in."""
        assert self.code == 2, (self.code, self.err)
        lines = [line for line in self.err.splitlines() if line.startswith("fastad: ")]
        assert self.err.splitlines()[-1:] == lines
        assert "Traceback" not in self.err
        return lines[0]


class Shell:
    """Runs `fastad …` in this process, through the same entry point as the installed command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Done:
        self.monkeypatch.setattr(sys, "argv", ["fastad", *map(str, arguments)])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = self.capsys.readouterr()
        return Done(code, captured.out, captured.err)


@pytest.fixture
def fastad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture
def toml(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(dump(recipe))
    return path


def test_version_and_help(fastad: Shell) -> None:
    assert fastad("--version").out.strip() == f"fastad {__version__}"
    text = fastad("--help").out
    for command in ("shard", "stage", "verify", "inspect", "train", "eval", "report", "sweep", "quickstart", "bench"):
        assert command in text


def test_python_dash_m_and_the_installed_command_are_the_same() -> None:
    one = subprocess.run([sys.executable, "-m", "fastad", "--version"], capture_output=True, text=True)
    other = subprocess.run([Path(sys.executable).parent / "fastad", "--version"], capture_output=True, text=True)
    assert one.stdout == other.stdout == f"fastad {__version__}\n"


def test_a_batch_is_drawn_nominal_above_oe(fastad: Shell, home: Path, toml: Path, tmp_path: Path) -> None:
    found = tmp_path / "batch.png"
    done = fastad("inspect", "--batch", toml, found, "--shards", home, "--class", "middle", "--seed", 2)
    assert done.code == 0, done.err
    with Image.open(found) as picture:
        pixels = np.asarray(picture.convert("L"))
    recipe_ = load(str(toml))
    sets = open_sets(recipe_, home)
    plan = make_plan(recipe_, sets, "middle", seed=2)
    for reader, rows, top in zip((sets.nominal, *sets.oe), plan.epoch(0), (16, 91), strict=True):
        for column, image in enumerate(reader.pixels(rows[0])):
            left = 3 + column * 59
            np.testing.assert_array_equal(pixels[top : top + 56 : 2, left : left + 56 : 2], image[..., 0])
    assert "unknown class" in fastad("inspect", "--batch", toml, found, "--shards", home, "--class", "midle").error


def test_from_raw_images_to_a_report(fastad: Shell, home: Path, toml: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "runs"
    assert "180 images in 2 shards" in fastad("shard", home / "blobs.py", "--out", shards).out
    assert "90 images in 1 shards" in fastad("shard", home / "extras.py", "--out", shards, "--workers", 2).out
    assert "whole, 180 images" in fastad("verify", shards / "blobs", "--level", "decode").out

    shown = fastad("inspect", shards / "blobs", "--grid", tmp_path / "grid.png")
    assert "low/mid: 40" in shown.out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 300
    facts = json.loads(fastad("inspect", shards / "blobs", "--json").out)
    assert facts["splits"] == {"train": 120, "test": 60}
    against = json.loads(fastad("inspect", shards / "extras", "--against", shards / "blobs", "--json").out)
    assert against["duplicates_in"] == {"blobs": {"train": {"train": 0, "test": 0}}}

    command = ["train", toml, "--class", "middle", "--class", "low/mid", "--seed", 1, "--seed", 2]
    command += ["--objective", "hsc", "--shards", shards, "--out", out, "--set", "optim.epochs=2"]
    done = fastad(*command)
    assert done.code == 0, done.err
    assert "epochs = 2" in done.err
    assert "device: CPU" in done.err
    assert "middle" in done.out
    again = fastad(*command, "--json")
    assert "done already" in again.err
    assert len(json.loads(again.out)["runs"]) == 4

    found = json.loads(fastad("eval", out, "--json").out)
    for run in found["runs"]:
        folder = out / "tiny" / run["class_name"].replace("/", "-") / "hsc" / f"seed{run['seed']}"
        with np.load(folder / "scores.npz") as scores:
            pairs = scores["score"][scores["target"] == 1][:, None] - scores["score"][scores["target"] == 0]
        auroc = run["metrics"]["auroc"]
        assert auroc["value"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
        assert auroc["low"] <= auroc["value"] <= auroc["high"]
    scored = fastad("score", folder, shards / "blobs", "--split", "test", "--out", tmp_path / "scores.csv")
    assert scored.code == 0 and len((tmp_path / "scores.csv").read_text().splitlines()) == 61
    assert fastad("score", folder, shards / "extras").out.startswith("split,key,class,score\ntrain,train-0000,a,")
    assert "holds 4 runs: name one, such as " in fastad("score", out, shards / "blobs").error
    assert fastad("report", out, "--out", tmp_path / "report").code == 0
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return np.asarray(Image.open(buffer))


def test_photographs_become_what_torchvision_reads_and_resizes(fastad: Shell, crops: Path, tmp_path: Path) -> None:
    """JPEG, PNG and WebP mixed; larger images are resized to 256 px, and smaller JPEGs pass byte for byte."""
    assert (
        "108 images in 2 shards, 0 left out" in fastad("shard", "folder", crops, "--out", tmp_path, "--resize", 256).out
    )
    assert "whole, 108 images" in fastad("verify", tmp_path / "folder", "--level", "decode").out
    shown = fastad("inspect", tmp_path / "folder", "--grid", tmp_path / "grid.png").out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height > 12 * 96
    assert shown.count("Aqua: ") == 2 and "WEBP RGB to RGB" in shown and "PNG RGB to RGB, resized" in shown

    manifest = open_set(tmp_path / "folder")
    reader, row_of = ShardReader(manifest), {key.decode(): row for row, key in enumerate(manifest.key)}
    resize, passed = v2.Resize(256, antialias=True), 0
    for split in ("train", "test"):
        expected = ImageFolder(str(crops / split), transform=v2.PILToTensor())
        assert tuple(expected.classes) == manifest.classes
        assert len(expected) == len(manifest.split_rows(split))
        for (path, label), (image, _) in zip(expected.samples, expected, strict=True):
            row = row_of[str(Path(path).relative_to(crops).with_suffix(""))]
            assert row in manifest.split_rows(split) and manifest.class_index[row] == label
            larger = min(image.shape[1:]) > 256
            pixels = (resize(image) if larger else image).permute(1, 2, 0).numpy()
            if path.endswith("jpg") and not larger:
                passed += 1
                np.testing.assert_array_equal(reader.image(row), pixels)
                assert manifest.size[row] == Path(path).stat().st_size
                continue
            found = reader.image(row).astype(int)
            difference, loss = np.abs(found - as_jpeg(pixels)), np.abs(found - pixels)
            assert difference.mean() < RESIZING_DIFFERENCE and loss.mean() < JPEG_LOSS, path
    assert passed > 5


def test_mistakes_are_one_line_and_exit_code_2(fastad: Shell, home: Path, toml: Path, tmp_path: Path) -> None:
    train = ["train", toml, "--shards", home, "--out", tmp_path / "runs", "--device", "cpu"]
    cases: list[tuple[list[object], str]] = [
        (["shard", "cifar11"], "unknown set 'cifar11'"),
        (["shard", "mnist", tmp_path / "nowhere"], "no raw data at"),
        (["shard", "mnist", home, "--out", tmp_path / "s"], "no train-images-idx3-ubyte"),
        (
            ["shard", "digits", "--in-place", "--out", tmp_path / "s"],
            "digits cannot stay in place: sample digit-0000 is",
        ),
        (["verify", tmp_path], "is not a shard set"),
        (["verify", home / "blobs", "--level", "sizes"], "unknown level 'sizes': did you mean size"),
        (["inspect", tmp_path / "nothing"], "is not a shard set"),
        (["inspect", home], f"found the sets blobs, extras in it: name one, such as {home / 'blobs'}"),
        (["inspect", home / "blobs", "--class", "middle"], "inspect: --class is for --batch RECIPE"),
        (["inspect", home / "blobs", "--seed", 0], "inspect: --seed is for --batch RECIPE"),
        (["inspect", home / "blobs", "--grid", tmp_path], f"cannot write {tmp_path}: it is a folder; name a file"),
        (["inspect", "--batch", toml, tmp_path / "s.png", "--json"], "inspect: --json shows a set"),
        (["inspect", "--batch", toml, tmp_path / "s.png", "--against", home], "inspect: --against shows a set"),
        (["stage", home / "blobs"], "blobs is no address: give one such as s3://bucket/shards/digits"),
        (["train", "cifar"], "unknown recipe 'cifar'"),
        ([*train, "--class", "Trousers"], "unknown class of blobs 'Trousers': known: low/mid, middle, high"),
        ([*train, "--objective", "hcs"], "unknown objective 'hcs': did you mean hsc?"),
        ([*train, "--set", "optim.epocs=3"], "unknown recipe key 'optim.epocs': did you mean optim.epochs"),
        ([*train, "--device", "gpu"], "unknown device 'gpu'"),
        (["train", toml, "--shards", tmp_path, "--out", tmp_path / "runs"], "blobs is not a shard set"),
        (["eval", tmp_path], "no run in"),
        (["report", tmp_path / "nothing"], "no run in"),
        (["train"], "Missing argument 'recipe'"),
        (["inspekt"], "No such command 'inspekt'"),
        ([*train, "--sed", 1], "No such option: --sed"),
        ([*train, "--seed", "one"], "Invalid value for '--seed'"),
        (["bench", "step", "--shards", tmp_path], "bench step makes its own sets without a recipe"),
        (["bench", "loader", "--set", "a=1"], "bench loader makes its own sets without a recipe"),
        (["bench", "loader", toml, "--case", "small"], "bench loader: --case is for what it makes itself"),
        (["bench", "step", toml, "--network", "toy"], "bench step: --network is for what it makes itself"),
        (["shard", "digits", "--max-bad", "5"], "--max-bad must be a share from 0 to 1"),
        (["shard", "digits", "--part", "3/2"], "--part must be I/N with I from 1 to N"),
    ]
    for arguments, message in cases:
        assert message in fastad(*arguments).error
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "s" / "mnist").exists()
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("**/.*.tmp"))


def test_a_command_that_lacks_its_name_shows_help_and_nothing_else(fastad: Shell) -> None:
    done = fastad("bench")
    assert (done.code, done.err) == (2, "")
    assert "loader" in done.out


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_said(fastad: Shell, home: Path, toml: Path) -> None:
    assert "--device cuda asked, but PyTorch finds no CUDA GPU" in fastad("train", toml, "--device", "cuda").error


def test_a_changed_tar_stops_training_with_its_name(fastad: Shell, home: Path, toml: Path, tmp_path: Path) -> None:
    for name in ("blobs", "extras"):
        shutil.copytree(home / name, tmp_path / name)
    tar = tmp_path / "extras" / "train-00000.tar"
    os.truncate(tar, tar.stat().st_size - 1)
    done = fastad("train", toml, "--shards", tmp_path, "--out", tmp_path / "runs")
    assert "train-00000.tar has changed" in done.error
    assert not (tmp_path / "runs").exists()


def test_an_out_folder_that_may_not_be_written_is_said(fastad: Shell, home: Path, toml: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = fastad("train", toml, "--shards", home, "--out", tmp_path / "file", "--class", "middle")
    assert "cannot write" in done.error


def test_help_names_every_set_and_says_that_tiny_images_were_withdrawn(fastad: Shell) -> None:
    text = " ".join(fastad("shard", "--help").out.split())
    assert all(name in text for name in converter_names())
    assert "withdrawn by its authors in 2020" in text

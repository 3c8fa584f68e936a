"""What the README shows in Python runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastad.shard import convert

README = Path(__file__).parents[1] / "README.md"
CONVERTER, FROM_PYTHON = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_converter_converts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("bolt", "nut", "washer")):
            folder = tmp_path / "raw" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.full((40, 40), 80 * number, dtype=np.uint8)).save(folder / "1.png")
    (tmp_path / "parts.py").write_text(CONVERTER)
    manifest = convert(str(tmp_path / "parts.py"), tmp_path / "raw", tmp_path)
    assert (manifest.name, manifest.classes, manifest.shape_hwc) == ("parts", ("bolt", "nut", "washer"), (28, 28, 1))
    assert {split: len(rows) for split, rows in manifest.splits.items()} == {"train": 3, "test": 3}


def test_batches_and_trainings_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "letters"):
        convert(name, None, tmp_path / "shards")
    names: dict[str, object] = {}
    exec(compile(FROM_PYTHON, README, "exec"), names)
    assert names["batch"].images.shape == (64, 1, 28, 28)  # type: ignore[attr-defined]
    assert names["batch"].target.sum() == 32  # type: ignore[attr-defined]
    name, auroc = capsys.readouterr().out.split()
    assert name == "3" and 0.5 < float(auroc) <= 1

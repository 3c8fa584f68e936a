"""What is in a shard set, for people: counts in a few lines and a labelled picture of samples.

Owns `fastad inspect`; checking that a set is whole is `fastad.shard.verify`'s.
Use: `print(summary(manifest))`, `grid(manifest).save("digits.png")`.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fastad.manifest import Manifest
from fastad.reader import ShardReader

GRID_COLUMNS = 12
LABEL_PX, LABEL_HEIGHT_PX, GAP_PX = 110, 14, 3


def facts(manifest: Manifest) -> dict[str, Any]:
    """Counts per split and class, image shape, bytes, source and licence, ready for JSON."""
    return {
        "name": manifest.name,
        "source": manifest.facts["source"],
        "licence": manifest.facts["licence"],
        "shape_hwc": list(manifest.shape_hwc),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "splits": {split: len(rows) for split, rows in manifest.splits.items()},
        "classes": class_counts(manifest),
    }


def class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Samples per split and class, in the order of the manifest; those of no class are counted as "(none)"."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in manifest.splits.items():
        numbers = np.bincount(manifest.class_index[rows.start : rows.stop] + 1, minlength=len(manifest.classes) + 1)
        named = zip(("(none)", *manifest.classes), numbers.tolist(), strict=True)
        counts[split] = {name: number for name, number in named if number}
    return counts


def summary(manifest: Manifest) -> str:
    """The same in a few lines of text."""
    found = facts(manifest)
    lines = [
        f"{found['name']}: {found['source']} ({found['licence']})",
        f"{'×'.join(map(str, found['shape_hwc']))} uint8, {found['shards']} shards, {found['bytes']:,} bytes",
    ]
    for split, counts in found["classes"].items():
        lines.append(f"{split}: {found['splits'][split]:,} images")
        lines += [f"  {name}: {count:,}" for name, count in counts.items()]
    return "\n".join(lines)


def grid(manifest: Manifest) -> Image.Image:
    """A picture with a row for every class (of the first split that has it), its name and its first images."""
    reader = ShardReader(manifest)
    height, width, channels = manifest.shape_hwc
    indices = [index for index in range(-1, len(manifest.classes)) if np.any(manifest.class_index == index)]
    line_px = max(height, LABEL_HEIGHT_PX) + GAP_PX
    picture = Image.new("RGB", (LABEL_PX + GRID_COLUMNS * (width + GAP_PX), GAP_PX + len(indices) * line_px), "white")
    pen = ImageDraw.Draw(picture)
    for line, index in enumerate(indices):
        top = GAP_PX + line * line_px
        pen.text((GAP_PX, top), manifest.classes[index] if index >= 0 else "(none)", fill="black")
        rows = np.flatnonzero(manifest.class_index == index)[:GRID_COLUMNS]
        for column, image in enumerate(reader.pixels(rows)):
            shown = Image.fromarray(image[..., 0] if channels == 1 else image)
            picture.paste(shown, (LABEL_PX + column * (width + GAP_PX), top))
    return picture

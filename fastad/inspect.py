"""What is in a shard set, for people: counts in a few lines and a labelled picture of samples.

Owns `fastad inspect`; checking that a set is whole is `fastad.verify`'s.
Use: `print(summary(manifest))`, `grid(manifest).save("digits.png")`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fastad.card import shard_bytes
from fastad.files import atomic
from fastad.manifest import Manifest
from fastad.reader import ShardReader
from fastad.synsets import SYNSETS, holds_synsets, synsets
from fastad.view import content_hashes, stand_in

GRID_COLUMNS, GRID_CLASSES = 12, 100
LARGEST_TILE_PX = 96
LISTED_REJECTS = 20
LABEL_PX, LABEL_HEIGHT_PX, GAP_PX = 110, 14, 3


def facts(manifest: Manifest, other: Manifest | None = None) -> dict[str, Any]:
    """Counts, sizes, bytes, what was converted or left out, and images that stand more than once, or in the other set
    too; of ImageNet's synsets also what the set holds of the lists in `fastad.synsets`. Ready for JSON."""
    return {
        "name": manifest.name,
        "source": manifest.facts["source"],
        "licence": manifest.facts["licence"],
        "notices": manifest.facts.get("notices", []),
        "shape_hwc": manifest.common_shape_hwc,
        "width_px": [int(manifest.width.min()), int(manifest.width.max())],
        "height_px": [int(manifest.height.min()), int(manifest.height.max())],
        "shards": len(manifest.shards),
        "bytes": shard_bytes(manifest.facts["shards"]),
        "splits": {split: len(rows) for split, rows in manifest.splits.items()},
        "classes": class_counts(manifest),
        "changes": manifest.facts["changes"],
        "rejects": manifest.facts["rejects"],
        "duplicates": duplicates(manifest),
        "synsets": {name: synset_counts(manifest, name) for name in SYNSETS if holds_synsets(manifest)},
        "duplicates_in": {} if other is None else {other.name: duplicate_counts(manifest, other)},
    }


def class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Samples per split and class, in the order of the manifest; those of no class are counted as "(none)"."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in manifest.splits.items():
        numbers = np.bincount(manifest.class_index[rows.start : rows.stop] + 1, minlength=len(manifest.classes) + 1)
        named = zip(("(none)", *manifest.classes), numbers.tolist(), strict=True)
        counts[split] = {name: number for name, number in named if number}
    return counts


def synset_counts(manifest: Manifest, name: str) -> dict[str, int]:
    """Of a list of synsets: how many it names, how many of these the set holds, and the set's images of them."""
    index_of = {class_name: index for index, class_name in enumerate(manifest.classes)}
    held = [index_of[wnid] for wnid in synsets(name) if wnid in index_of]
    numbers = np.bincount(manifest.class_index + 1, minlength=len(manifest.classes) + 1)[1:]
    return {"listed": len(synsets(name)), "held": len(held), "images": int(numbers[held].sum())}


def duplicates(manifest: Manifest) -> int | None:
    """How many images stand in the set already, pixel for pixel; None where it was converted unchecked."""
    known = manifest.content_hash.all()
    return len(manifest.key) - len(np.unique(manifest.content_hash)) if known else None


def duplicate_counts(manifest: Manifest, other: Manifest) -> dict[str, dict[str, int]]:
    """How many images of each split of a set stand, pixel for pixel, in each split of the other."""
    hashes, others = (
        {split: content_hashes(found, np.asarray(rows)) for split, rows in found.splits.items()}
        for found in (manifest, other)
    )
    return {
        split: {among: int(stand_in(own, there).sum()) for among, there in others.items()}
        for split, own in hashes.items()
    }


def summary(manifest: Manifest, other: Manifest | None = None) -> str:
    """The same in a few lines of text."""
    found = facts(manifest, other)
    lines = [
        f"{found['name']}: {found['source']} ({found['licence']})",
        *(f"note: {notice}" for notice in found["notices"]),
        f"{_sizes(found)}, {found['shards']} shards, {found['bytes']:,} bytes",
        f"{len(found['rejects']):,} left out as unusable, "
        + ("duplicates not known" if found["duplicates"] is None else f"{found['duplicates']:,} duplicates"),
        *(f"  {reject['key']}: {reject['reason']}" for reject in found["rejects"][:LISTED_REJECTS]),
        *(["  …"] if len(found["rejects"]) > LISTED_REJECTS else []),
        *(f"converted: {count:,} {what}" for what, count in found["changes"].items()),
        *(
            f"holds {counts['held']:,} of the {counts['listed']:,} synsets of {name}: {counts['images']:,} images"
            for name, counts in found["synsets"].items()
        ),
    ]
    for split, counts in found["classes"].items():
        lines.append(f"{split}: {found['splits'][split]:,} images")
        lines += [
            f"  {count:,} stand, pixel for pixel, in {set_name}'s {among}"
            for set_name, duplicates in found["duplicates_in"].items()
            for among, count in duplicates[split].items()
        ]
        lines += [f"  {name}: {count:,}" for name, count in counts.items()]
    return "\n".join(lines)


def _sizes(found: dict[str, Any]) -> str:
    if found["shape_hwc"]:
        return f"{'×'.join(map(str, found['shape_hwc']))} uint8"
    (low_w, high_w), (low_h, high_h) = found["width_px"], found["height_px"]
    return f"{low_w} to {high_w} px wide, {low_h} to {high_h} px high"


def grid(manifest: Manifest) -> Image.Image:
    """A picture with a row for every class (of the first split that has it), its name and its first images."""
    reader = ShardReader(manifest)
    tile_px = min(int(max(manifest.width.max(), manifest.height.max())), LARGEST_TILE_PX)
    indices = [index for index in range(-1, len(manifest.classes)) if np.any(manifest.class_index == index)]
    indices = indices[:GRID_CLASSES]
    line_px = max(tile_px, LABEL_HEIGHT_PX) + GAP_PX
    picture = Image.new("RGB", (LABEL_PX + GRID_COLUMNS * (tile_px + GAP_PX), GAP_PX + len(indices) * line_px), "white")
    pen = ImageDraw.Draw(picture)
    for line, index in enumerate(indices):
        top = GAP_PX + line * line_px
        pen.text((GAP_PX, top), manifest.classes[index] if index >= 0 else "(none)", fill="black")
        for column, row in enumerate(np.flatnonzero(manifest.class_index == index)[:GRID_COLUMNS]):
            pixels = _eight_bits(reader.image(row))
            shown = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            shown.thumbnail((tile_px, tile_px))
            picture.paste(shown, (LABEL_PX + column * (tile_px + GAP_PX), top))
    return picture


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a picture, atomically."""
    with atomic(path) as file:
        picture.save(file, format="PNG")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)

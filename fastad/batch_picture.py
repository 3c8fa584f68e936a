"""A picture of a training batch as the network gets it, with the normalisation undone.

Owns `fastad inspect --batch`; what a set holds is `fastad.inspect`'s.
Use: `batch_picture(load("digits"), shards, "3", seed=1, device=device).save("batch.png")`.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastad.pipeline import Source, train_batches
from fastad.recipe import Recipe
from fastad.sets import make_plan, open_sets, stream_faults
from fastad.view import classes_in

COLUMNS = 16
SMALLEST_TILE_PX, GAP_PX, LABEL_HEIGHT_PX = 56, 3, 16


def batch_picture(recipe: Recipe, shards: Path, class_name: str | None, seed: int, device: torch.device) -> Image.Image:
    """The first batch of a class (None: the set's first with training images) and a seed, nominal images above OE."""
    sets, spec = open_sets(recipe, shards), recipe.augment
    plan = make_plan(recipe, sets, class_name or classes_in("train", sets.nominal.manifest)[0], seed)
    sources = [
        Source(reader, faults=stream_faults(recipe, stream))
        for stream, reader in zip(plan.streams, (sets.nominal, *sets.oe), strict=True)
    ]
    with closing(train_batches(plan, sources, spec, device, loader=recipe.loader)) as batches:
        batch = next(batches)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std))
    levels = ((batch.images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    tiles, target = levels.permute(0, 2, 3, 1).cpu().numpy(), batch.target.cpu().numpy()
    return _drawn({"nominal": tiles[target == 0], "outlier exposure": tiles[target == 1]})


def _drawn(parts: dict[str, np.ndarray]) -> Image.Image:
    """Tiles [n, H, W, C] under the name of their part, `COLUMNS` in a line; small ones are enlarged."""
    height, width = next(iter(parts.values())).shape[1:3]
    scale = -(-SMALLEST_TILE_PX // min(height, width))
    step_y, step_x = height * scale + GAP_PX, width * scale + GAP_PX
    lines = {name: -(-len(tiles) // COLUMNS) for name, tiles in parts.items() if len(tiles)}
    size = (GAP_PX + COLUMNS * step_x, sum(LABEL_HEIGHT_PX + count * step_y for count in lines.values()))
    picture, top = Image.new("RGB", size, "white"), 0
    pen = ImageDraw.Draw(picture)
    for name, count in lines.items():
        pen.text((GAP_PX, top + 2), name, fill="black")
        top += LABEL_HEIGHT_PX
        for number, pixels in enumerate(parts[name]):
            tile = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            picture.paste(tile, (GAP_PX + number % COLUMNS * step_x, top + number // COLUMNS * step_y))
        top += count * step_y
    return picture

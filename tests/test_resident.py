"""Gathering from held images: the work depends on the recipe and on what is held, never on what is drawn."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastad import resident
from fastad.augment import AugmentSpec, draw
from fastad.resident import Gather, Held

SPECS = {
    "whole": AugmentSpec(noise_std=0.1),
    "flipped": AugmentSpec(flip_probability=0.5),
    "cropped": AugmentSpec(crop_px=5, flip_probability=0.5),
    "padded": AugmentSpec(crop_px=8, crop_padding_px=2),
}


def held_of(sides: list[tuple[int, int]], seed: int = 0) -> tuple[Held, list[np.ndarray]]:
    """Images of these sizes for the rows 0, 10, 20, …; and each of them."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sides]
    counts = np.array([height * width for height, width in sides])
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return Held(10 * np.arange(len(sides)), pixels, first, np.array(sides, dtype=np.int32)), images


def expected(image: np.ndarray, spec: AugmentSpec, flip: bool, crop: np.ndarray) -> np.ndarray:
    padding = spec.crop_padding_px
    image = np.pad(image[:, ::-1] if flip else image, ((padding, padding), (padding, padding), (0, 0)))
    side = (spec.crop_px, spec.crop_px) if spec.crop_px else image.shape[:2]
    top, left = (int(u * (whole - part + 1)) for u, whole, part in zip(crop, image.shape, side, strict=False))
    return image[top : top + side[0], left : left + side[1]]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("sides", [[(8, 8)] * 6, [(8, 9), (10, 8), (8, 8), (12, 12)]])
def test_the_same_memory_serves_all_batches(name: str, sides: list[tuple[int, int]]) -> None:
    spec = SPECS[name]
    if not spec.crop_px and len(set(sides)) > 1:
        pytest.skip("only images of one size are batches without a crop")
    held, images = held_of(sides)
    gather, memory, drawn_rows = Gather(held, spec, drawn=True), None, np.random.default_rng(1)
    assert gather.takes_whole == (name == "whole")
    for batch in range(8):
        draws, numbers = draw(spec, 3, "nominal", 0, 16 * batch, 16), drawn_rows.integers(len(sides), size=16)
        places, inside = gather.numbers(held.rows[numbers], draws)
        assert (inside is not None) == (name == "padded"), "the recipe tells, not the draws"
        memory = torch.empty_like(torch.from_numpy(places)) if memory is None else memory
        memory.copy_(torch.from_numpy(places))
        found = gather(memory).numpy()
        for place, number in enumerate(numbers):
            want = expected(images[number], spec, bool(draws.flip[place]), draws.crop[place])
            np.testing.assert_array_equal(found[place], want)


@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn, differently with every release
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_it_is_one_graph_for_any_number_of_pixels(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        made.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    compiled = resident.compiled_gathered.__wrapped__((8, 8), padded)
    spec = AugmentSpec(crop_px=8, crop_padding_px=2 if padded else 0, flip_probability=0.5)
    for count in (5, 7, 11):
        held, _ = held_of([(9, 10)] * count, seed=count)
        gather = Gather(held, spec, drawn=True)
        places, _ = gather.numbers(held.rows[np.arange(16) % count], draw(spec, 3, "oe", 0, 0, 16))
        assert torch.equal(compiled(held.pixels, torch.from_numpy(places)), gather(torch.from_numpy(places)))
    assert len(made) == 1

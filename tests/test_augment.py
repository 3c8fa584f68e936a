"""Draws, keyed by position and as likely as the recipe says; and geometry, which is torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from fastad.augment import NOISE_BANK, AugmentSpec, Draws, draw, place

SPEC = AugmentSpec(
    crop_padding_px=4, flip_probability=0.3, brightness=0.1, contrast=0.2, saturation=0.3, hue_turns=0.04, noise_std=0.1
)
SIDE = np.full(20_000, 32)


def test_draws_have_the_ranges_and_frequencies_of_the_spec() -> None:
    draws = draw(SPEC, 1, "oe", 0, 0, 20_000)
    assert abs(draws.flip.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 20_000)
    for column, (middle, reach) in enumerate([(1, 0.1), (1, 0.2), (1, 0.3), (0, 0.04)]):
        values = draws.colour[:, column].astype(float)
        assert np.abs(values - middle).max() <= reach * 1.001
        assert abs(values.mean() - middle) < 5 * reach / np.sqrt(3 * 20_000)
        assert values.std() == pytest.approx(reach / np.sqrt(3), rel=0.03)
    assert draws.noise.min() >= 0
    assert draws.noise.max() < NOISE_BANK
    start = place(SPEC, draws, SIDE, SIDE).start
    assert set(np.unique(start)) == set(range(-4, 5))
    for axis in (0, 1):
        counts = np.unique(start[:, axis], return_counts=True)[1]
        assert np.abs(counts - 20_000 / 9).max() < 5 * np.sqrt(20_000 / 9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5_000), st.integers(0, 2**32))
def test_a_position_has_the_same_draws_whatever_is_drawn_with_it(start: int, count: int, seed: int) -> None:
    some = draw(SPEC, seed, "nominal", 3, start, count)
    for numbers, all_numbers in zip(some, draw(SPEC, seed, "nominal", 3, 0, start + count), strict=True):
        np.testing.assert_array_equal(numbers, all_numbers[start:])
    halves = [draw(SPEC, seed, "nominal", 3, start, count // 2)]
    halves.append(draw(SPEC, seed, "nominal", 3, start + count // 2, count - count // 2))
    for numbers, joined in zip(some, Draws.joined(halves), strict=True):
        np.testing.assert_array_equal(numbers, joined)


def test_streams_epochs_and_seeds_have_their_own_draws() -> None:
    flips = draw(SPEC, 1, "nominal", 0, 0, 200).flip
    np.testing.assert_array_equal(flips, draw(SPEC, 1, "nominal", 0, 0, 200).flip)
    for other in (
        draw(SPEC, 2, "nominal", 0, 0, 200),
        draw(SPEC, 1, "oe", 0, 0, 200),
        draw(SPEC, 1, "nominal", 1, 0, 200),
    ):
        assert not np.array_equal(flips, other.flip)


@pytest.mark.parametrize("size", [(337, 250), (250, 337), (256, 341), (500, 375), (256, 256), (1000, 301)])
def test_sizes_and_central_crops_are_torchvisions(size: tuple[int, int]) -> None:
    image = torch.arange(size[0] * size[1], dtype=torch.float32).reshape(1, *size)
    resized = v2.functional.resize(image, [256], antialias=True)
    geometry = place(AugmentSpec(resize_px=256, crop_px=224), None, *(np.array([side]) for side in size))
    assert tuple(geometry.size_hw[0]) == tuple(resized.shape[1:])
    top, left = geometry.start[0]
    assert geometry.out_hw == (224, 224)
    np.testing.assert_array_equal(
        v2.functional.center_crop(resized, [224]), resized[:, top : top + 224, left : left + 224]
    )


def test_a_mirrored_crop_is_the_crop_of_the_mirrored_image() -> None:
    spec = AugmentSpec(crop_px=20, crop_padding_px=3, flip_probability=0.5)
    image = np.random.default_rng(0).integers(0, 256, (24, 31))
    draws = draw(spec, 1, "nominal", 0, 0, 64)
    geometry = place(spec, draws, np.full(64, 24), np.full(64, 31))
    assert geometry.padded
    inside = geometry.inside()
    assert inside is not None
    for number in range(64):
        first = np.floor(draws.crop[number] * (np.array([24, 31]) + 6 - 20 + 1)).astype(int)
        source = np.pad(image[:, ::-1] if draws.flip[number] else image, 3, constant_values=-1)
        expected = source[first[0] : first[0] + 20, first[1] : first[1] + 20]
        top, left = geometry.start[number] + 3
        found = np.pad(image, 3, constant_values=-1)[top : top + 20, left : left + 20]
        found = found[:, ::-1] if geometry.flip[number] else found
        np.testing.assert_array_equal(found, expected)
        rows, columns = np.nonzero(expected >= 0)
        assert inside[number].tolist() == [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]


def test_without_draws_nothing_is_padded_or_mirrored() -> None:
    geometry = place(SPEC, None, SIDE, SIDE)
    assert not geometry.start.any()
    assert not geometry.flip.any()
    assert geometry.inside() is None


def test_draws_are_their_askers_own() -> None:
    draws = draw(SPEC, 1, "nominal", 0, 0, 8)
    for numbers in draws:
        numbers[:] = 0
    assert draw(SPEC, 1, "nominal", 0, 0, 8).colour.all()


def test_whether_crops_are_padded_is_the_recipes_and_not_the_draws() -> None:
    draws = draw(SPEC, 1, "nominal", 0, 0, 200)
    inside = (place(SPEC, draws, SIDE[:200], SIDE[:200]).start == 0).all(1)
    assert inside.any()
    alone = draws.part(slice(int(np.flatnonzero(inside)[0]), int(np.flatnonzero(inside)[0]) + 1))
    geometry = place(SPEC, alone, SIDE[:1], SIDE[:1])
    assert geometry.padded
    assert np.array_equal(geometry.inside(), [[0, 32, 0, 32]])
    assert not place(AugmentSpec(crop_px=20), alone, SIDE[:1], SIDE[:1]).padded

"""Draws: keyed by position, within their ranges, and as likely as the recipe says."""

import numpy as np

from fastad.augment import AugmentSpec, draw, no_draws

SPEC = AugmentSpec(flip_probability=0.3, crop_padding_px=4, oe_blur_sigma_px=2.0)


def test_draws_have_the_ranges_and_frequencies_of_the_spec() -> None:
    draws = draw(SPEC, 1, "oe", 0, 20_000)
    assert abs(draws.flip.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 20_000)
    assert set(np.unique(draws.crop_start_px)) == set(range(-4, 5))
    for axis in (0, 1):
        counts = np.unique(draws.crop_start_px[:, axis], return_counts=True)[1]
        assert np.abs(counts - 20_000 / 9).max() < 5 * np.sqrt(20_000 / 9)
    assert (draws.blur_sigma_px == 2.0).all()


def test_only_oe_images_are_blurred() -> None:
    assert (draw(SPEC, 1, "nominal", 0, 50).blur_sigma_px == 0).all()


def test_streams_epochs_and_seeds_have_their_own_draws() -> None:
    flips = draw(SPEC, 1, "nominal", 0, 200).flip
    np.testing.assert_array_equal(flips, draw(SPEC, 1, "nominal", 0, 200).flip)
    for other in (draw(SPEC, 2, "nominal", 0, 200), draw(SPEC, 1, "oe", 0, 200), draw(SPEC, 1, "nominal", 1, 200)):
        assert not np.array_equal(flips, other.flip)


def test_no_draws_change_nothing() -> None:
    assert not any(numbers.any() for numbers in no_draws(5))

"""Values of pixels: each operation against torchvision or scipy in float64, and its distribution on photographs."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from fastad import pixels
from fastad.augment import AugmentSpec, Draws, draw
from fastad.pixels import Finish, blur_matrix, noise_bank, windows

CPU = torch.device("cpu")
PHOTOS = [photo[60:124, 200:264] for photo in load_sample_images().images]
JITTER = AugmentSpec(brightness=0.4, contrast=0.4, saturation=0.4, hue_turns=0.1)


def crops(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([PHOTOS[number % 2] for number in range(count)]))


def finished(spec: AugmentSpec, images: torch.Tensor, draws: Draws, oe_from: int = 0) -> np.ndarray:
    """[n, H, W, C]."""
    finish = Finish(spec, tuple(images.shape[1:3]), images.shape[3], CPU, oe_from=oe_from)  # type: ignore[arg-type]
    return finish([images], draws).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue_turns"])
def test_each_part_of_the_jitter_is_torchvisions(field: str) -> None:
    functional = {
        "brightness": v2.functional.adjust_brightness,
        "contrast": v2.functional.adjust_contrast,
        "saturation": v2.functional.adjust_saturation,
        "hue_turns": v2.functional.adjust_hue,
    }[field]
    column = ["brightness", "contrast", "saturation", "hue_turns"].index(field)
    spec, images = AugmentSpec(**{field: 0.3}), crops(8)
    draws = draw(spec, 1, "nominal", 0, 0, 8)
    found = finished(spec, images, draws)
    for number in range(8):
        image = images[number].permute(2, 0, 1).double() / 255
        expected = functional(image, float(draws.colour[number, column])).permute(1, 2, 0)
        # torchvision weighs red with 0.2989 where Pillow and this weigh it with 0.299.
        np.testing.assert_allclose(found[number], expected, atol=2e-4)


@pytest.mark.parametrize("turn", [-0.5, -0.4, -0.2, 0.0, 0.3, 0.5])
def test_hues_are_shifted_by_up_to_half_a_turn_either_way(turn: float) -> None:
    spec, images = AugmentSpec(hue_turns=0.5), crops(2)
    draws = draw(spec, 1, "nominal", 0, 0, 2)
    draws.colour[:, 3] = turn
    found = finished(spec, images, draws)
    for number in range(2):
        expected = v2.functional.adjust_hue(images[number].permute(2, 0, 1).double() / 255, turn).permute(1, 2, 0)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)


def test_the_jitter_is_distributed_as_torchvisions() -> None:
    """Means and spreads of each channel over 400 draws of a photograph; torchvision's order is random, ours is not."""
    images = crops(400)[::2]
    found = np.concatenate(
        [finished(JITTER, images, draw(JITTER, seed, "nominal", 0, 0, 200)).mean((1, 2)) for seed in (1, 2)]
    )
    torch.manual_seed(0)
    theirs = v2.ColorJitter(JITTER.brightness, JITTER.contrast, JITTER.saturation, JITTER.hue_turns)
    image = images[0].permute(2, 0, 1).float() / 255
    expected = np.stack([theirs(image).mean((1, 2)).numpy() for _ in range(400)])
    error = np.sqrt(found.var(0) / 400 + expected.var(0) / 400)
    assert (np.abs(found.mean(0) - expected.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(found.std(0), expected.std(0), rtol=0.15)


def test_at_the_papers_strength_the_authors_pillow_is_its_own_rounding_away() -> None:
    """Pillow cuts 8-bit values after each of four steps, half a level each on average, and hue to 1/255 of a turn."""
    spec, images = AugmentSpec(brightness=0.01, contrast=0.01, saturation=0.01, hue_turns=0.01), crops(16)
    draws = draw(spec, 3, "oe", 0, 0, 16)
    found = finished(spec, images, draws, oe_from=16) * 255
    for number in range(16):
        image = v2.functional.to_pil_image(images[number].permute(2, 0, 1))
        brightness, contrast, saturation, hue = map(float, draws.colour[number])
        image = v2.functional.adjust_brightness(image, brightness)
        image = v2.functional.adjust_contrast(image, contrast)
        image = v2.functional.adjust_saturation(image, saturation)
        image = v2.functional.adjust_hue(image, hue)
        difference = found[number] - np.asarray(image)
        assert abs(difference.mean() - 1.5) < 1
        assert np.quantile(np.abs(difference), 0.99) < 8


def test_grey_images_are_made_brighter_and_of_more_contrast_only() -> None:
    images, draws = crops(4)[..., :1], draw(JITTER, 1, "nominal", 0, 0, 4)
    for number, image in enumerate(finished(JITTER, images, draws)):
        brighter = (images[number].double().numpy() / 255 * draws.colour[number, 0]).clip(0, 1)
        contrast = draws.colour[number, 1]
        expected = (contrast * brighter + (1 - contrast) * brighter.mean()).clip(0, 1)
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_padding_stays_black_and_does_not_pull_the_contrasts_pivot() -> None:
    draws = draw(JITTER, 1, "nominal", 0, 0, 1)
    inside = np.array([[5, 64, 0, 50]], dtype=np.int32)
    padded = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    padded[0, 5:, :50] = crops(1)[0, 5:, :50]
    finish = Finish(JITTER, (64, 64), 3, CPU, oe_from=1)
    found = finish([padded], draws, inside)[0].permute(1, 2, 0)
    assert not found[:5].any()
    assert not found[:, 50:].any()
    alone = Finish(JITTER, (59, 50), 3, CPU, oe_from=1)([padded[:, 5:, :50].contiguous()], draws)[0].permute(1, 2, 0)
    torch.testing.assert_close(found[5:, :50], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [28, 50, 64, 90])
def test_crops_that_might_be_padded_and_are_not_have_the_values_of_those_that_cannot_be(side: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, side, side, 3), dtype=np.uint8))
    draws = draw(WHOLE, 1, "nominal", 0, 0, 6)
    finish = Finish(WHOLE, (side, side), 3, CPU, oe_from=3)
    assert torch.equal(finish([images], draws), finish([images], draws, np.tile(np.int32([0, side, 0, side]), (6, 1))))


def test_noise_is_read_alike_by_a_gpu_and_a_cpu() -> None:
    bank, offset = noise_bank(100), torch.tensor([0, 7, 2**24 - 1, 7])
    expected = torch.stack([bank[first : first + 100] for first in offset.tolist()])
    assert torch.equal(windows(bank, 100, offset), expected)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 8.0, 32.0])
def test_blur_is_a_gaussian_with_mirrored_borders_of_oe_images_only(sigma: float) -> None:
    spec = AugmentSpec(oe_blur_sigma_px=sigma)
    found = finished(spec, crops(4), draw(spec, 1, "oe", 0, 0, 4), oe_from=2)
    radius = int(np.ceil(3 * sigma))
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    for number, image in enumerate(crops(4).numpy()):
        expected = image / 255
        for axis in (0, 1) if number >= 2 else ():
            expected = convolve1d(expected, window / window.sum(), axis=axis, mode="mirror")
        np.testing.assert_allclose(found[number], expected, atol=1e-5)


def test_blurring_keeps_flat_images() -> None:
    for side in (1, 2, 7, 32):
        np.testing.assert_allclose(blur_matrix(side, 16.0).sum(1), 1, atol=1e-5)


def test_noise_is_normal_of_its_strength_and_each_images_own() -> None:
    spec = AugmentSpec(noise_std=0.01)
    draws = draw(spec, 1, "nominal", 0, 0, 64)
    noise = finished(spec, crops(64), draws) - crops(64).numpy() / 255
    assert noise.std() == pytest.approx(0.01, rel=0.01)
    assert abs(noise.mean()) < 5 * 0.01 / np.sqrt(noise.size)
    correlations = np.corrcoef(noise.reshape(64, -1))[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(64 * 64 * 3)
    bank = noise_bank(64 * 64 * 3)
    expected = bank[draws.noise[7] : draws.noise[7] + 64 * 64 * 3].reshape(64, 64, 3) * 0.01
    np.testing.assert_allclose(noise[7], expected, atol=1e-6)


def test_testing_only_normalises() -> None:
    spec = AugmentSpec(brightness=0.4, noise_std=0.1, oe_blur_sigma_px=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    found = Finish(spec, (64, 64), 3, CPU, oe_from=0)([crops(2)])
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = v2.functional.normalize(crops(2).permute(0, 3, 1, 2) / 255, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


WHOLE = AugmentSpec(
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
    hue_turns=0.05,
    oe_blur_sigma_px=2,
    noise_std=0.01,
    mean=(0.5,),
    std=(0.2,),
)


def test_large_images_finished_one_by_one_are_as_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = draw(WHOLE, 1, "oe", 0, 0, 6)
    at_once = finished(WHOLE, crops(6), draws, oe_from=3)
    monkeypatch.setattr("fastad.pixels.LARGEST_AT_ONCE", 0)
    np.testing.assert_allclose(finished(WHOLE, crops(6), draws, oe_from=3), at_once, atol=1e-5)


def test_compiled_values_are_the_eager_ones() -> None:
    draws = draw(WHOLE, 1, "oe", 0, 0, 6)
    compiled = Finish(WHOLE, (64, 64), 3, CPU, oe_from=3, compiled=True)
    found = compiled([crops(6)], draws).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, finished(WHOLE, crops(6), draws, oe_from=3), atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_cpus_values(compiled: bool) -> None:
    draws = draw(WHOLE, 1, "oe", 0, 0, 6)
    finish = Finish(WHOLE, (64, 64), 3, torch.device("cuda"), oe_from=3, compiled=compiled)
    found = finish([crops(6).cuda()], draws).permute(0, 2, 3, 1).cpu().numpy()
    np.testing.assert_allclose(found, finished(WHOLE, crops(6), draws, oe_from=3), atol=1e-4)


@pytest.mark.parametrize("sizes", [(6,), (2, 4), (3, 3), (1, 2, 3), (5, 1)])
def test_the_parts_of_a_batch_are_finished_as_the_whole(sizes: tuple[int, ...]) -> None:
    draws = draw(WHOLE, 1, "oe", 0, 0, 6)
    finish = Finish(WHOLE, (64, 64), 3, CPU, oe_from=3)
    found = finish(crops(6).split(sizes), draws).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, finished(WHOLE, crops(6), draws, oe_from=3), atol=1e-6)


def test_memory_is_used_again_only_once_nobody_shares_it() -> None:
    finish = Finish(AugmentSpec(), (64, 64), 3, CPU, oe_from=0)
    kept, view = finish([crops(2)]), finish([crops(2) * 0])[0]
    before = kept.clone(), view.clone()
    places = {finish([crops(2)[:, :, :] * 0 + number]).data_ptr() for number in range(5)}
    assert len(places) == 1
    assert not places & {kept.data_ptr(), view.data_ptr()}
    assert torch.equal(kept, before[0])
    assert torch.equal(view, before[1])


def test_compiling_is_for_gpus_and_for_many_large_jittered_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "has_compiler", lambda: True)
    large, many = (224, 224), pixels.COMPILE_CPU_FROM_IMAGES
    assert pixels.repays_compiling(WHOLE, large, CPU, many)
    assert pixels.repays_compiling(AugmentSpec(), (28, 28), torch.device("cuda"), 1)
    assert not pixels.repays_compiling(WHOLE, large, CPU, many - 1)
    assert not pixels.repays_compiling(WHOLE, (32, 32), CPU, many)
    assert not pixels.repays_compiling(AugmentSpec(noise_std=0.1), large, CPU, many)
    monkeypatch.setattr(pixels, "has_compiler", lambda: False)
    assert not pixels.repays_compiling(WHOLE, large, CPU, many)

"""What is done to the values of pixels once they are where they belong: jitter, blur, noise, normalisation.

Owns one function on tensors that runs on a GPU and on the CPU; which pixels it gets is `fastad.dali`'s and
`fastad.resident`'s, so that both give the same. It computes in float32 and rounds nothing:

- Jitter is torchvision's ColorJitter in its listed order (brightness, contrast, saturation, hue in HSV), each clipped
  to [0, 1]. The contrast's pivot is the mean grey of the crop without its padding; torchvision's that of the image.
- Blur is a true Gaussian with mirrored borders: a matrix for columns and one for rows, so that any σ costs the same.
- Noise is read from a bank of normals at a place drawn for each image.
Use: `finish = Finish(spec, (224, 224), 3, device, oe_from=128)`, then `finish([nominal, oe], draws)`.
"""

import functools
import shutil
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastad.augment import NOISE_BANK, AugmentSpec, Draws
from fastad.compiled import compiled_apart
from fastad.seeds import generator

# ITU-R 601, as torchvision and Pillow weigh colours into grey.
GREY = (0.299, 0.587, 0.114)

# On a CPU images that are larger are finished while they are in its caches: one by one, so many if they are normalised
# only (README, Development).
LARGEST_AT_ONCE = 64 * 64
NORMALISED_AT_ONCE = 16

# On a CPU, compiling takes 10 to 20 s, and saves 1.5 ms of a jittered image of 224 px (README, Development).
COMPILE_CPU_FROM_IMAGES = 20_000


def has_compiler() -> bool:
    """Whether there is the C++ compiler that compiling for a CPU needs."""
    return bool(shutil.which("g++") or shutil.which("clang++"))


def repays_compiling(spec: AugmentSpec, out_hw: tuple[int, int], device: torch.device, images: int) -> bool:
    """Whether so many images are finished sooner if that is compiled first; it does not depend on how far a run is."""
    if device.type == "cuda":
        return True
    large = out_hw[0] * out_hw[1] > LARGEST_AT_ONCE
    return large and spec.jitters and images >= COMPILE_CPU_FROM_IMAGES and has_compiler()


class Finish:
    """Uint8 crops → normalised float32 images; those from place `oe_from` on are OE."""

    def __init__(
        self,
        spec: AugmentSpec,
        out_hw: tuple[int, int],
        channels: int,
        device: torch.device,
        *,
        oe_from: int,
        compiled: bool = False,
    ) -> None:
        self.spec, self.out_hw, self.device, self.oe_from = spec, out_hw, device, oe_from
        mean, std = (np.broadcast_to(values, channels).astype(np.float32) for values in (spec.mean, spec.std))
        self.large = out_hw[0] * out_hw[1] > LARGEST_AT_ONCE
        # As long as an image, or a row of a large one: short ones are slow to repeat, long ones do not stay in caches.
        repeats = out_hw[1] if self.large else out_hw[0] * out_hw[1]
        self.scale, self.shift, self.strength = (
            torch.from_numpy(np.tile(numbers, repeats)).to(device)
            for numbers in (1 / (255 * std), -mean / std, spec.noise_std * (1 / std))
        )
        self.numbers = out_hw[0] * out_hw[1] * channels
        self.bank = _bank_on(device, self.numbers) if spec.noise_std else None
        sigma = spec.oe_blur_sigma_px
        self.blur = [torch.from_numpy(blur_matrix(side, sigma)).to(device) for side in out_hw] if sigma else None
        self.memory = _Memory()
        normalising = tuple(mean.tolist()), tuple(std.tolist()), spec.noise_std
        self.changed = compiled_values(out_hw, *normalising) if compiled else changed_values(*normalising)

    def __call__(self, parts: Sequence[Tensor], draws: Draws | None = None, inside: np.ndarray | None = None) -> Tensor:
        """The parts of a batch, uint8 [b, H, W, C] on the device → all of it, float32 [B, C, H, W], channels_last.

        `draws` None: as in testing. `inside` [B, 4]: the part of each crop that is image (`Geometry.inside`), None
        where all is.
        """
        if draws is None:
            return self.finished(parts, None)
        numbers = self.needed(draws, inside)
        return self.finished(parts, {name: moved(each, self.device) for name, each in numbers.items()})

    def needed(self, draws: Draws, inside: np.ndarray | None) -> dict[str, np.ndarray]:
        """The numbers that a batch's values depend on, of those that the recipe has a use for: `colour` and `noise` as
        in `Draws`, and `inside`. Their names are the same for every batch of a run."""
        numbers = {"colour": draws.colour} if self.spec.jitters else {}
        if self.spec.jitters and inside is not None:
            numbers["inside"] = inside
        return numbers if self.bank is None else numbers | {"noise": draws.noise}

    @torch.no_grad()
    def finished(self, parts: Sequence[Tensor], numbers: Mapping[str, Tensor] | None) -> Tensor:
        """What calling it returns. `numbers`: those `needed`, on the device; None as in testing. On a GPU the work is
        the same for every batch of that size, and nothing comes from the host, so that it can be captured."""
        colour, bounds, offsets = ((numbers or {}).get(name) for name in ("colour", "inside", "noise"))
        blur = self.blur if numbers is not None else None
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        on_cpu = self.device.type == "cpu"
        finished = self.memory.tensor(shape) if on_cpu else torch.empty(shape, device=self.device)
        changes, blurs = colour is not None or blur is not None, blur is not None
        for some, images in self._pieces(parts, changes=changes, blurs=blurs):
            colour_, bounds_ = (None if each is None else each[some] for each in (colour, bounds))
            noise = None if offsets is None else self._noise(offsets[some], images.shape)
            blur_ = blur if some.start >= self.oe_from else None
            if colour_ is None and blur_ is None:
                self._normalise(images, noise, finished[some])
            else:
                # On a CPU strided bytes are slow to compute with, and slower when that is compiled.
                planes = images.permute(0, 3, 1, 2)
                self.changed(planes.contiguous() if on_cpu else planes, colour_, noise, bounds_, blur_, finished[some])
        return finished.permute(0, 3, 1, 2)

    def _normalise(self, images: Tensor, noise: Tensor | None, finished: Tensor) -> None:
        rows = finished.view(-1, len(self.scale))
        torch.addcmul(self.shift, rows.copy_(images.reshape(rows.shape)), self.scale, out=rows)
        if noise is not None:
            rows.addcmul_(noise.view(rows.shape), self.strength)

    def _pieces(self, parts: Sequence[Tensor], *, changes: bool, blurs: bool) -> Iterator[tuple[slice, Tensor]]:
        """What is finished in one call: each part, cut where blurring begins, or a few large images."""
        at_once = (1 if changes else NORMALISED_AT_ONCE) if self.large and self.device.type == "cpu" else 0
        first = 0
        for part in parts:
            edge = min(max(self.oe_from - first, 0), len(part)) if blurs else 0
            for images in (part[:edge], part[edge:]):
                for piece in images.split(at_once or max(1, len(images))):
                    if len(piece):
                        yield slice(first, first + len(piece)), piece
                    first += len(piece)

    def _noise(self, offset: Tensor, shape: Sequence[int]) -> Tensor:
        """Each image's normals, float32 [n, H, W, C]."""
        assert self.bank is not None
        if self.device.type == "cuda":
            return windows(self.bank, self.numbers, offset).view(*shape)
        pieces = [self.bank[first : first + self.numbers] for first in offset.tolist()]
        return (pieces[0] if len(pieces) == 1 else torch.stack(pieces)).view(*shape)


def windows(bank: Tensor, length: int, offset: Tensor) -> Tensor:
    """So many numbers of the bank from each place, [n, length]. Rows of a view in which every place begins one are
    taken, as the numbers' own places would be twice as many bytes as the numbers: 150 MB for 128 images of 224 px."""
    return bank.unfold(0, length, 1).index_select(0, offset)


class _Memory:
    """Memory of tensors that are gone, for new ones: to touch fresh pages costs a CPU as much as to fill them does."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised float32 tensor; its memory comes back once nothing shares it any more."""
        array = self.free[shape].pop() if self.free[shape] else np.empty(shape, dtype=np.float32)
        lent = array[:]
        weakref.finalize(lent, self.free[shape].append, array).atexit = False
        return torch.from_numpy(lent)


def moved(numbers: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device, from pinned memory, or the host would wait for a GPU."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# (images, colour, noise, bounds, blur, finished).
Values = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, Sequence[Tensor] | None, Tensor], None]


def changed_values(mean: tuple[float, ...], std: tuple[float, ...], noise_std: float) -> Values:
    """What finishes uint8 images [n, C, H, W], of which jitter or blur changes the values, into `finished`
    [n, H, W, C]."""

    def changed(
        images: Tensor,
        colour: Tensor | None,
        noise: Tensor | None,
        bounds: Tensor | None,
        blur: Sequence[Tensor] | None,
        finished: Tensor,
    ) -> None:
        planes = [plane.to(torch.float32) * (1 / 255) for plane in images.unbind(1)]
        if colour is not None:
            planes = jitter(planes, colour, None if bounds is None else _mask(bounds, planes[0]))
        for channel, plane in enumerate(planes):
            if blur is not None:
                plane = blur[0] @ plane @ blur[1].T
            if noise is not None:
                plane = plane + noise_std * noise[..., channel]
            finished[..., channel].copy_((plane - mean[channel]) * (1 / std[channel]))

    return changed


@functools.cache
def compiled_values(
    out_hw: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], noise_std: float
) -> Values:
    """The same, compiled once for all runs of a process with images of that size that need the same."""
    return compiled_apart(changed_values(mean, std, noise_std), fullgraph=False)


def _mask(bounds: Tensor, plane: Tensor) -> Tensor:
    """1 where a crop is image, 0 where it is padding, float32 [n, H, W]."""
    top, bottom, left, right = (bound[:, None, None] for bound in bounds.unbind(1))
    y = torch.arange(plane.shape[1], device=plane.device)[:, None]
    x = torch.arange(plane.shape[2], device=plane.device)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).to(torch.float32)


def jitter(planes: list[Tensor], colour: Tensor, mask: Tensor | None) -> list[Tensor]:
    """ColorJitter of planes [n, H, W] in [0, 1], by `colour` [n, 4] as in `Draws`; of grey images brightness and
    contrast only. Padding, where `mask` is 0, stays black."""
    brightness, contrast, saturation, hue = (numbers[:, None, None] for numbers in colour.unbind(1))
    planes = [(plane * brightness).clamp(max=1) for plane in planes]
    grey = _grey(planes)
    if mask is None:
        pivot = grey.mean((1, 2), keepdim=True)
    else:
        pivot = (grey * mask).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True)
    planes = [(contrast * plane + (1 - contrast) * pivot).clamp(0, 1) for plane in planes]
    if len(planes) == 3:
        grey = _grey(planes)
        planes = [(saturation * plane + (1 - saturation) * grey).clamp(0, 1) for plane in planes]
        planes = _turned(planes, hue)
    return planes if mask is None else [plane * mask for plane in planes]


def _grey(planes: list[Tensor]) -> Tensor:
    return GREY[0] * planes[0] + GREY[1] * planes[1] + GREY[2] * planes[2] if len(planes) == 3 else planes[0]


def _turned(planes: list[Tensor], hue: Tensor) -> list[Tensor]:
    """The hue shifted by that part of a turn, in HSV: a colour that lies d sixths of a turn from red, −3 to 3, has
    min + chroma · clip(2 − |d|, 0, 1) of it, and so for green and blue (Smith 1978, in one formula). All is taken
    times the chroma, so that nothing is divided by it."""
    red, green, blue = planes
    value, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    two, three = 2 * chroma, 3 * chroma
    distance = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, two + (blue - red), (red - green) - two),
    )
    distance = distance + 6 * hue * chroma
    turned = []
    for from_colour in (distance, distance - two, distance + two):
        # Beyond half a turn, as shifting may bring it, the way around is shorter.
        shortest = ((from_colour.abs() - three).abs() - three).abs()
        turned.append(least + torch.minimum(torch.relu(two - shortest), chroma))
    return turned


@functools.cache
def noise_bank(beyond: int) -> Tensor:
    """`NOISE_BANK` standard normals, the same on every machine, and after them the first `beyond` again, float32."""
    bank = generator(0, "noise").standard_normal(NOISE_BANK, dtype=np.float32)
    return torch.from_numpy(np.concatenate([bank, bank[:beyond]]))


@functools.cache
def _bank_on(device: torch.device, beyond: int) -> Tensor:
    """The bank on the device; it is not made anew, or moved to a GPU, 64 MB for every run."""
    return noise_bank(beyond).to(device)


def blur_matrix(side: int, sigma_px: float) -> np.ndarray:
    """What blurring with a Gaussian of that standard deviation does to a line of `side` pixels, float32 [side, side].

    The window reaches 3 σ to either side; beyond the border pixels are mirrored without the border's own (reflect-101).
    """
    radius = int(np.ceil(3 * sigma_px))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    matrix = np.zeros((side, side))
    period = max(2 * (side - 1), 1)
    for shift, weight in zip(range(-radius, radius + 1), weights / weights.sum(), strict=True):
        place = np.arange(side) + shift
        source = np.minimum(place % period, -place % period)
        np.add.at(matrix, (np.arange(side), source), weight)
    return matrix.astype(np.float32)

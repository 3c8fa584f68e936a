"""What is done to the values of pixels once they are where they belong: jitter, blur, noise, normalisation.

Owns one function on tensors that runs on a GPU and on the CPU; which pixels it gets is `fastad.dali`'s and
`fastad.resident`'s, so that both give the same. It computes in float32 and rounds nothing:

- Jitter is torchvision's ColorJitter in its listed order (brightness, contrast, saturation, hue in HSV), each clipped
  to [0, 1]. The contrast's pivot is the mean grey of the crop without its padding; torchvision's that of the image.
- Blur is a true Gaussian with mirrored borders: a matrix for columns and one for rows, so that any σ costs the same.
- Noise is read from a bank of normals at a place drawn for each image.
Use: `finish = Finish(spec, (224, 224), 3, device, oe_from=128)`, then `finish(images, draws, inside)`.
"""

import ctypes
import functools
import itertools
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastad.augment import NOISE_BANK, AugmentSpec, Draws
from fastad.seeds import generator

# ITU-R 601, as torchvision and Pillow weigh colours into grey.
GREY = (0.299, 0.587, 0.114)

# A CPU finishes so many pixels in one call: with fewer, threads wait for the interpreter (README, Development).
PIXELS_AT_ONCE = 2**18


class Finish:
    """Uint8 crops → normalised float32 images; those from place `oe_from` on are OE.

    On a CPU a few images at a time are finished by one thread each, so that values do not depend on their number; there
    `compiled` changes nothing, as it was slower (README, Development).
    """

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
        mean, std = (torch.from_numpy(np.broadcast_to(v, channels).astype(np.float32)) for v in (spec.mean, spec.std))
        self.scale, self.shift = (numbers[:, None, None].to(device) for numbers in (1 / std, -mean / std))
        self.numbers = out_hw[0] * out_hw[1] * channels
        self.bank = noise_bank(self.numbers).to(device) if spec.noise_std else None
        # Noise is added to what is normalised already.
        self.strength = (spec.noise_std / std).expand(*out_hw, channels).contiguous().to(device)
        sigma = spec.oe_blur_sigma_px
        self.blur = [torch.from_numpy(blur_matrix(side, sigma)).to(device) for side in out_hw] if sigma else None
        self.at_once = max(1, PIXELS_AT_ONCE // (out_hw[0] * out_hw[1]))
        self.threads = None if device.type == "cuda" else threads(torch.get_num_threads())
        self.memory = _Memory()
        self.values = torch.compile(self._values, dynamic=False) if compiled and device.type == "cuda" else self._values

    def __call__(
        self, images: Tensor | Sequence[Tensor], draws: Draws | None = None, inside: np.ndarray | None = None
    ) -> Tensor:
        """`images` uint8 [B, H, W, C] on the device, or parts of them → float32 [B, C, H, W] on it, channels_last.

        `draws` None: as in testing. `inside` [B, 4]: the part of each crop that is image (`Geometry.inside`), None
        where all is.
        """
        parts = [images] if isinstance(images, Tensor) else list(images)
        colour = bounds = None
        if draws is not None and self.spec.jitters:
            colour = moved(draws.colour, self.device)
            bounds = None if inside is None else moved(inside, self.device)
        blurs = draws is not None and self.blur is not None
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        on_cpu = self.device.type == "cpu"
        finished = self.memory.tensor(shape) if on_cpu else torch.empty(shape, device=self.device)

        @torch.no_grad()
        def finish(some: slice, pixels: Tensor) -> None:
            colour_, bounds_ = (None if each is None else each[some] for each in (colour, bounds))
            noise = None if draws is None or self.bank is None else self._noise(draws.noise[some], pixels.shape)
            blur = self.blur if blurs and some.start >= self.oe_from else None
            self.values(pixels, colour_, noise, bounds_, blur, finished[some])

        if self.threads is None:
            together = parts[0] if len(parts) == 1 else torch.cat(parts)
            edges = sorted({0, min(self.oe_from, len(together)), len(together)} if blurs else {0, len(together)})
            for first, last in itertools.pairwise(edges):
                finish(slice(first, last), together[first:last])
        else:
            deque(self.threads.map(finish, *zip(*self._pieces(parts), strict=True)), maxlen=0)
        return finished.permute(0, 3, 1, 2)

    def _pieces(self, parts: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """What is finished in one call: a few images, of one part, either blurred or not."""
        first = 0
        for part in parts:
            nominal = min(max(self.oe_from - first, 0), len(part))
            for kind in (part[:nominal], part[nominal:]):
                for pixels in kind.split(self.at_once) if len(kind) else ():
                    yield slice(first, first + len(pixels)), pixels
                    first += len(pixels)

    def _noise(self, offset: np.ndarray, shape: Sequence[int]) -> Tensor:
        """Each image's normals, float32 [n, H, W, C]."""
        assert self.bank is not None
        if self.device.type == "cuda":
            places = moved(offset, self.device)[:, None] + torch.arange(self.numbers, device=self.device)
            return self.bank[places].view(*shape)
        pieces = [self.bank[first : first + self.numbers] for first in offset.tolist()]
        if len(pieces) == 1:
            return pieces[0].view(*shape)
        noise = self.memory.tensor(shape)
        return torch.stack(pieces, out=noise.view(len(pieces), -1)).view(*shape)

    def _values(
        self,
        images: Tensor,
        colour: Tensor | None,
        noise: Tensor | None,
        bounds: Tensor | None,
        blur: Sequence[Tensor] | None,
        finished: Tensor,
    ) -> None:
        """Finishes uint8 images [n, H, W, C] into `finished` [n, H, W, C]."""
        planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        if colour is not None:
            planes = jitter(self.spec, planes, colour, None if bounds is None else _mask(bounds, planes))
        if blur is not None:
            planes = blur[0] @ planes @ blur[1].T
        finished.permute(0, 3, 1, 2).copy_(planes.mul_(self.scale).add_(self.shift))
        if noise is not None:
            finished.addcmul_(noise, self.strength)


class _Memory:
    """Memory of tensors that are gone, for new ones: to touch fresh pages costs a CPU as much as to fill them does."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)

    def tensor(self, shape: Sequence[int]) -> Tensor:
        """An uninitialised float32 tensor; its memory comes back once nothing shares it any more."""
        shape = tuple(shape)
        try:
            array = self.free[shape].pop()
        except IndexError:
            array = np.empty(shape, dtype=np.float32)
        lent = array[:]
        weakref.finalize(lent, self.free[shape].append, array).atexit = False
        return torch.from_numpy(lent)


@functools.cache
def threads(count: int) -> ThreadPoolExecutor:
    """That many threads, each of which PyTorch's operations run in alone: on a busy machine those that share an
    operation wait for each other."""
    keep_freed_memory()
    pool = ThreadPoolExecutor(count, "finish", initializer=torch.set_num_threads, initargs=(1,))
    started = threading.Barrier(count)
    deque(pool.map(lambda _: started.wait(), range(count)), maxlen=0)
    # A thread's number is its own, but what threads of the future begin with is set with it.
    torch.set_num_threads(count)
    return pool


# mallopt(3): what is freed is kept for later instead of being given back to the system, page by page.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT_BYTES = -1, -3, 2**25


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory of up to 32 MiB apiece, or each operation's result is in fresh pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def moved(numbers: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device, from pinned memory, or the host would wait for a GPU."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _mask(bounds: Tensor, planes: Tensor) -> Tensor:
    """1 where a crop is image, 0 where it is padding, float32 [n, 1, H, W]."""
    top, bottom, left, right = (bound[:, None, None] for bound in bounds.unbind(1))
    y = torch.arange(planes.shape[2], device=planes.device)[:, None]
    x = torch.arange(planes.shape[3], device=planes.device)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).to(torch.float32)[:, None]


def jitter(spec: AugmentSpec, planes: Tensor, colour: Tensor, mask: Tensor | None) -> Tensor:
    """ColorJitter of planes [n, C, H, W] in [0, 1], which it overwrites, by `colour` [n, 4] as in `Draws`; what has no
    range in `spec` is left out, and of grey images saturation and hue. Padding, where `mask` is 0, stays black."""
    brightness, contrast, saturation, hue = (numbers[:, None, None, None] for numbers in colour.unbind(1))
    coloured = planes.shape[1] == 3
    if spec.brightness:
        planes.mul_(brightness).clamp_(0, 1)
    if spec.contrast:
        grey = _grey(planes)
        if mask is None:
            pivot = grey.mean((2, 3), keepdim=True)
        else:
            pivot = (grey * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
        planes.mul_(contrast).add_((1 - contrast) * pivot).clamp_(0, 1)
    if spec.saturation and coloured:
        planes = torch.lerp(_grey(planes), planes, saturation).clamp_(0, 1)
    if spec.hue_turns and coloured:
        planes = _turned(planes, hue)
    return planes if mask is None else planes.mul_(mask)


def _grey(planes: Tensor) -> Tensor:
    """[n, 1, H, W]."""
    if planes.shape[1] == 1:
        return planes
    red, green, blue = planes.split(1, 1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _turned(planes: Tensor, hue: Tensor) -> Tensor:
    """The hue shifted by that part of a turn, in HSV: red, green and blue are v − (v − min) · clip(min(k, 4 − k), 0, 1)
    with k = (n + 6 hue) mod 6 and n = 5, 3, 1 (Smith 1978, in one formula).

    Written with k = 6 t: min(k, 4 − k) is 2 − 6 |t − 1/3|, of which the fractional part of t + 1/6 gives |t − 1/3|.
    """
    red, green, blue = planes.split(1, 1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # Positive: the fractional part of a negative number is negative.
    turns = sixth.mul_(1 / 6).add_(hue + (2 + 1 / 6))
    n = torch.tensor([5 / 6, 3 / 6, 1 / 6], device=planes.device)[:, None, None]
    parts = (turns + n).frac_().sub_(0.5).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value, chroma, parts, value=-1)


@functools.cache
def noise_bank(beyond: int) -> Tensor:
    """`NOISE_BANK` standard normals, the same on every machine, and after them the first `beyond` again, float32."""
    bank = generator(0, "noise").standard_normal(NOISE_BANK, dtype=np.float32)
    return torch.from_numpy(np.concatenate([bank, bank[:beyond]]))


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

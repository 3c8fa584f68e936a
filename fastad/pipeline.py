"""Batches: each stream's crops, resident or made by DALI, joined and finished on the device.

Owns the choice of executor and the hand-over to training and evaluation; what is in a batch is decided by
`fastad.plan` and `fastad.augment`. Of held images the host makes numbers only: who asks for `step_batches` makes the
images of them, and may capture that.
Use: `for batch in train_batches(plan, sources, spec, device): ...`.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from fastad.augment import AugmentSpec, Draws, place
from fastad.dali import Crops, Decoding, LoaderSpec, dali_crops, merged
from fastad.errors import FastadError
from fastad.faults import Faults, Origin
from fastad.feed import Wanted, in_order, planned
from fastad.packed import Layout
from fastad.pixels import Finish, moved, repays_compiling
from fastad.plan import WHOLE_BATCH, Plan, Share
from fastad.reader import ShardReader
from fastad.resident import Gather, Held, resident_crops

EVALUATION_BATCH = 512


class Batch(NamedTuple):
    """`images`: float32 [B, C, H, W], channels_last, on the device, normalised. `target`: float32 [B] on the device, 0
    nominal, 1 OE or anomalous. `row`: int64 [B] on the host, in the manifest of the image's own set."""

    images: torch.Tensor
    target: torch.Tensor
    row: np.ndarray


class Maker:
    """What makes batches of held images out of numbers: `packed` on the host, then it is called on the device, where
    its work is the same for every batch of a run. `target`: of each of these batches, on the device."""

    def __init__(self, gathers: Sequence[Gather], finish: Finish, target: torch.Tensor) -> None:
        self.gathers, self.finish, self.target = gathers, finish, target
        self.layout: Layout | None = None

    def packed(self, parts: Sequence[Wanted]) -> torch.Tensor:
        """All numbers of a batch, of each stream what is wanted, as `fastad.packed` lays them out."""
        found = [gather.numbers(part.rows, part.draws) for gather, part in zip(self.gathers, parts, strict=True)]
        places, inside = zip(*found, strict=True)
        draws = Draws.joined([part.draws for part in parts if part.draws is not None])
        numbers = {f"places {number}": each for number, each in enumerate(places)}
        numbers |= self.finish.needed(draws, _joined(inside))
        self.layout = self.layout or Layout.of(numbers)
        return self.layout.packed(numbers, self.finish.device)

    def __call__(self, packed: torch.Tensor) -> torch.Tensor:
        """The images of a batch whose numbers are on the device, as `Batch` has them."""
        assert self.layout is not None
        numbers = self.layout.unpacked(packed)
        return self.finish.finished([gather(numbers[f"places {n}"]) for n, gather in enumerate(self.gathers)], numbers)


class Unmade(NamedTuple):
    """A batch of held images as the host leaves it: its numbers, still there, and what makes it of them."""

    packed: torch.Tensor
    maker: Maker
    row: np.ndarray

    @property
    def target(self) -> torch.Tensor:
        """As `Batch` has it, on the device already."""
        return self.maker.target

    def made(self) -> Batch:
        """The batch, made now."""
        packed = self.packed.to(self.target.device, non_blocking=True)
        return Batch(self.maker(packed), self.target, self.row)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the images of a stream come from: a reader of its set, the images that the device holds already, and what
    becomes of those that cannot be decoded."""

    reader: ShardReader
    held: Held | None = None
    faults: Faults = field(default_factory=Faults)

    @property
    def origin(self) -> Origin:
        return Origin(self.reader, self.faults)


def train_batches(
    plan: Plan,
    sources: Sequence[Source],
    spec: AugmentSpec,
    device: torch.device,
    *,
    loader: LoaderSpec | None = None,
    start_step: int = 0,
    share: Share = WHOLE_BATCH,
    compiled: bool | None = None,
) -> Generator[Batch, None, None]:
    """The plan's batches from `start_step` to its end, or a rank's share of each: nominal images first, then OE,
    augmented as `spec` says. `sources` are those of the plan's streams. `compiled` None: where the plan repays it."""
    made = step_batches(
        plan, sources, spec, device, loader=loader, start_step=start_step, share=share, compiled=compiled
    )
    with closing(made) as batches:
        for batch in batches:
            yield batch.made() if isinstance(batch, Unmade) else batch


def step_batches(
    plan: Plan,
    sources: Sequence[Source],
    spec: AugmentSpec,
    device: torch.device,
    *,
    loader: LoaderSpec | None = None,
    start_step: int = 0,
    share: Share = WHOLE_BATCH,
    compiled: bool | None = None,
) -> Generator[Batch | Unmade, None, None]:
    """The same batches for a step that can make images itself: unmade where the images of all streams are held."""
    plan.check_share(share)
    size = out_hw(plan.nominal.rows, sources[0].reader, spec)
    if compiled is None:
        compiled = repays_compiling(spec, size, device, plan.steps * plan.batch_size)
    sizes = [stream.batch // share.ranks for stream in plan.streams]
    target = torch.repeat_interleave(torch.tensor([0.0, *[1.0] * len(plan.oe)]), torch.tensor(sizes)).to(device)
    channels = sources[0].reader.manifest.channels
    finish = Finish(spec, size, channels, device, oe_from=sizes[0], compiled=compiled)
    wanted = [planned(plan, stream, spec, start_step=start_step, share=share) for stream in plan.streams]
    held = [source.held for source in sources if source.held is not None]
    if len(held) == len(sources):
        maker = Maker([Gather(each, spec, drawn=True, compiled=compiled) for each in held], finish, target)
        for asked in zip(*wanted, strict=True):
            sound = [
                part._replace(rows=source.faults.sound(part.rows)) for source, part in zip(sources, asked, strict=True)
            ]
            yield Unmade(maker.packed(sound), maker, np.concatenate([part.rows for part in sound]))
        return
    with closing(_crops(sources, wanted, Decoding(spec, device, loader or LoaderSpec()), drawn=True)) as crops:
        for parts in crops:
            yield _finished(parts, target, finish)


def evaluation_batches(
    source: Source,
    rows: np.ndarray,
    target: np.ndarray,
    spec: AugmentSpec,
    device: torch.device,
    *,
    loader: LoaderSpec | None = None,
    size: int = EVALUATION_BATCH,
) -> Generator[Batch, None, None]:
    """The images of `rows` with their `target`, in order, resized, cropped from the middle and normalised; the last
    batch may be smaller."""
    manifest = source.reader.manifest
    finish = Finish(spec, out_hw(rows, source.reader, spec), manifest.channels, device, oe_from=size)
    decoding = Decoding(spec, device, loader or LoaderSpec())
    with closing(_crops([source], [in_order(rows, size)], decoding, drawn=False)) as crops:
        for number, parts in enumerate(crops):
            first = number * size
            yield _finished(parts, moved(target[first : first + size], device), finish)


def out_hw(rows: np.ndarray, reader: ShardReader, spec: AugmentSpec) -> tuple[int, int]:
    """The size of the images in batches; raises `FastadError` where they have none in common, or are too small."""
    manifest = reader.manifest
    if not spec.crop_px:
        height, width, _ = manifest.shape_hwc
        return place(spec, None, np.array([height]), np.array([width])).out_hw
    size = place(spec, None, manifest.height[rows], manifest.width[rows]).size_hw
    small = int(np.argmin(size.min(axis=1)))
    short = int(size[small].min()) + 2 * spec.crop_padding_px
    if short < spec.crop_px:
        raise FastadError(
            f"{manifest.folder}: image {manifest.key[rows[small]].decode()} is {short} px high or wide, too little "
            f"for augment.crop_px={spec.crop_px}: resize with --set augment.resize_px={spec.crop_px} or more"
        )
    return spec.crop_px, spec.crop_px


def _crops(
    sources: Sequence[Source], wanted: Sequence[Iterator[Wanted]], decoding: Decoding, *, drawn: bool
) -> Generator[tuple[Crops, ...], None, None]:
    """The crops of each batch, one part for each source: gathered where its images are held, else DALI's."""
    streamed = [number for number, source in enumerate(sources) if source.held is None]
    with ExitStack() as opened:
        made: list[tuple[Sequence[int], Iterator[tuple[Crops, ...]]]] = []
        if streamed:
            origins, asked = [sources[number].origin for number in streamed], [wanted[number] for number in streamed]
            made.append((streamed, opened.enter_context(closing(dali_crops(origins, asked, decoding)))))
        for number, (source, asked_of) in enumerate(zip(sources, wanted, strict=True)):
            if source.held is not None:
                crops = resident_crops(source.held, asked_of, decoding.spec, source.faults, drawn=drawn)
                made.append(([number], zip(opened.enter_context(closing(crops)))))
        yield from merged(made)


def _finished(parts: Sequence[Crops], target: torch.Tensor, finish: Finish) -> Batch:
    pixels, draws = [part.pixels for part in parts], [part.draws for part in parts if part.draws is not None]
    return Batch(
        images=finish(pixels, Draws.joined(draws) if draws else None, _joined([part.inside for part in parts])),
        target=target[: sum(map(len, pixels))],
        row=np.concatenate([part.rows for part in parts]),
    )


def _joined(inside: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Which part of each crop is image; of training's streams, all may be padded or none."""
    bounds = [each for each in inside if each is not None]
    return np.concatenate(bounds) if bounds else None

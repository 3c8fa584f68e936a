"""Batches: each stream's crops, resident or made by DALI, joined and finished on the device.

Owns the choice of executor and the hand-over to training and evaluation; what is in a batch is decided by
`fastad.plan` and `fastad.augment`.
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
from fastad.pixels import Finish, repays_compiling
from fastad.plan import WHOLE_BATCH, Plan, Share
from fastad.reader import ShardReader
from fastad.resident import Held, resident_crops

EVALUATION_BATCH = 512


class Batch(NamedTuple):
    """`images`: float32 [B, C, H, W], channels_last, on the device, normalised. `target`: float32 [B] on the device, 0
    nominal, 1 OE or anomalous. `row`: int64 [B] on the host, in the manifest of the image's own set."""

    images: torch.Tensor
    target: torch.Tensor
    row: np.ndarray


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
    plan.check_share(share)
    size = out_hw(plan.nominal.rows, sources[0].reader, spec)
    if compiled is None:
        compiled = repays_compiling(spec, size, device, plan.steps * plan.batch_size)
    sizes = [stream.batch // share.ranks for stream in plan.streams]
    target = torch.repeat_interleave(torch.tensor([0.0, *[1.0] * len(plan.oe)]), torch.tensor(sizes)).to(device)
    channels = sources[0].reader.manifest.channels
    finish = Finish(spec, size, channels, device, oe_from=sizes[0], compiled=compiled)
    wanted = [planned(plan, stream, spec, start_step=start_step, share=share) for stream in plan.streams]
    with closing(_crops(sources, wanted, Decoding(spec, device, loader or LoaderSpec()))) as crops:
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
    with closing(_crops([source], [in_order(rows, size)], decoding)) as crops:
        for number, parts in enumerate(crops):
            first = number * size
            yield _finished(parts, torch.from_numpy(target[first : first + size]).to(device), finish)


def out_hw(rows: np.ndarray, reader: ShardReader, spec: AugmentSpec) -> tuple[int, int]:
    """The size of the images in batches; raises `FastadError` where they have none in common, or are too small."""
    manifest = reader.manifest
    if not spec.crop_px:
        height, width, _ = manifest.shape_hwc
        return place(spec, None, np.array([height]), np.array([width])).out_hw
    size = place(spec, None, manifest.height[rows], manifest.width[rows]).size_hw
    if (small := int(np.argmin(size.min(axis=1)))) is not None:
        short = int(size[small].min()) + 2 * spec.crop_padding_px
        if short < spec.crop_px:
            raise FastadError(
                f"{manifest.folder}: image {manifest.key[rows[small]].decode()} is {short} px high or wide, too little "
                f"for augment.crop_px={spec.crop_px}: resize with --set augment.resize_px={spec.crop_px} or more"
            )
    return spec.crop_px, spec.crop_px


def _crops(
    sources: Sequence[Source], wanted: Sequence[Iterator[Wanted]], decoding: Decoding
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
                crops = resident_crops(source.held, asked_of, decoding.spec, source.faults)
                made.append(([number], zip(opened.enter_context(closing(crops)))))
        yield from merged(made)


def _finished(parts: Sequence[Crops], target: torch.Tensor, finish: Finish) -> Batch:
    pixels, draws = [part.pixels for part in parts], [part.draws for part in parts if part.draws is not None]
    return Batch(
        images=finish(pixels, Draws.joined(draws) if draws else None, _joined_bounds(parts, finish)),
        target=target[: sum(map(len, pixels))],
        row=np.concatenate([part.rows for part in parts]),
    )


def _joined_bounds(parts: Sequence[Crops], finish: Finish) -> np.ndarray | None:
    if all(part.inside is None for part in parts):
        return None
    whole = np.array([0, finish.out_hw[0], 0, finish.out_hw[1]], dtype=np.int32)
    return np.concatenate(
        [np.tile(whole, (len(part.rows), 1)) if part.inside is None else part.inside for part in parts]
    )

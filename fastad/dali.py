"""DALI's part of a batch: decoding, resizing, cropping and flipping, on a GPU or on the CPU.

Owns the graph, its feeding from a reader, and what becomes of images that DALI cannot decode; values of pixels are
`fastad.pixels`'.
Use: `for crops in dali_crops(reader, wanted, spec, device, LoaderSpec(), Faults()): ...`.
"""

import itertools
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fastad.ahead import ahead
from fastad.augment import AugmentSpec, Draws, Geometry, place
from fastad.encode import BadImage, check
from fastad.errors import FastadError
from fastad.feed import Wanted
from fastad.progress import say
from fastad.reader import ShardReader

BAD_IMAGES = ("replace", "stop")

# The settings that change the speed of decoding and nothing else, in the order in which they are tuned.
TUNED = ("threads", "hw_decoder_load", "prefetch")

# Batches that are read before DALI asks for them, besides those that it prefetches.
READ_AHEAD = 4


@dataclass(frozen=True, slots=True)
class LoaderSpec:
    """How images are read and decoded. `threads` that decode; `prefetch`: batches that DALI makes ahead;
    `hw_decoder_load`: the share of JPEGs that a GPU's hardware decoder gets. Those left as they are here, 0 or None,
    are tuned where that pays (`fastad.tune`). `bad_images`: "replace" takes the plan's next image for one that cannot
    be decoded, "stop" does not go on."""

    threads: int = 0
    prefetch: int = 0
    hw_decoder_load: float | None = None
    bad_images: str = "replace"

    def left_open(self) -> list[str]:
        """The settings that have no value."""
        return [item.name for item in fields(self) if item.name in TUNED and getattr(self, item.name) == item.default]

    def settled(self) -> "LoaderSpec":
        """With values for what is left open: as many threads as PyTorch has, and DALI's own defaults."""
        values: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "prefetch": 2,
            "hw_decoder_load": 0.65,
        }
        return replace(self, **{name: values[name] for name in self.left_open()})


@dataclass(eq=False)
class Faults:
    """Images that could not be decoded: row → the row that stands in for it, and row → key and reason."""

    stand_in: dict[int, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class Crops(NamedTuple):
    """A stream's part of one batch: `pixels` uint8 [b, H, W, C] on the device, `rows` int64 [b], what was drawn, and
    which part of each crop is image (`Geometry.inside`)."""

    pixels: Tensor
    rows: np.ndarray
    draws: Draws | None
    inside: np.ndarray | None


def dali_crops(
    reader: ShardReader,
    wanted: Iterator[Wanted],
    spec: AugmentSpec,
    device: torch.device,
    loader: LoaderSpec,
    faults: Faults,
) -> Generator[Crops, None, None]:
    """The crops of what is wanted, in order; their memory is DALI's, and valid until the next are asked for.

    Images that cannot be decoded are replaced, and noted in `faults` and said; or they stop it with a `FastadError`
    that names them, as `loader` says and where nothing follows, as in testing.
    """
    for made, read in _executed(reader, wanted, spec, device, loader, faults, crops=True):
        pixels = torch.from_dlpack(made.as_tensor())
        yield Crops(pixels, read.wanted.rows, read.wanted.draws, read.geometry.inside())


def whole_images(
    reader: ShardReader,
    rows: np.ndarray,
    spec: AugmentSpec,
    device: torch.device,
    loader: LoaderSpec,
    faults: Faults,
    *,
    batch: int,
) -> Generator[list[Tensor], None, None]:
    """The images of rows, `batch` at a time, decoded and resized but not cropped: uint8 [H, W, C] each, else as
    `dali_crops`; for one that cannot be decoded the next row's stands in."""
    parts = (
        Wanted(rows[first : first + batch], None, np.roll(rows, -first - batch)) for first in range(0, len(rows), batch)
    )
    for made, _ in _executed(reader, parts, spec, device, loader, faults, crops=False):
        yield [torch.from_dlpack(made[place]) for place in range(len(made))]


def _executed(
    reader: ShardReader,
    wanted: Iterator[Wanted],
    spec: AugmentSpec,
    device: torch.device,
    loader: LoaderSpec,
    faults: Faults,
    *,
    crops: bool,
) -> "Generator[tuple[Any, _Read], None, None]":
    """What DALI makes of each part that is wanted, and the part; past an image that it cannot decode it begins anew."""
    read = ahead(_read(reader, wanted, spec, faults), depth=READ_AHEAD, what=f"reading {reader.manifest.name}")
    waiting: Iterator[_Read] = read
    try:
        while (first := next(waiting, None)) is not None:
            source = _Source(itertools.chain([first], waiting))
            pipeline = _graph(source, reader, first, spec, device, loader, crops=crops)
            try:
                while True:
                    # Bound to the consumer's stream, neither the hand-over nor the buffer's release waits on the host.
                    (made,) = pipeline.run(*((torch.cuda.current_stream(device),) if device.type == "cuda" else ()))
                    yield made, source.under_way.popleft()
            except StopIteration:
                return
            except RuntimeError as error:
                # The pipeline is of no more use. What it had taken is read again, with other images for the bad ones.
                again = [taken.wanted for taken in source.under_way]
                _replace_bad(reader, again, loader, faults, error)
                waiting = itertools.chain(_read(reader, iter(again), spec, faults), waiting)
    finally:
        read.close()


class _Read(NamedTuple):
    """What DALI gets of one part of a batch: encoded images or pixels, and how they are moved."""

    wanted: Wanted
    images: "list[np.ndarray] | np.ndarray"
    geometry: Geometry


def _read(reader: ShardReader, wanted: Iterator[Wanted], spec: AugmentSpec, faults: Faults) -> Iterator[_Read]:
    """Reads in order, asking the system for one part more than is read."""
    manifest = reader.manifest
    coming = deque(itertools.islice(wanted, 1))
    while coming:
        for next_part in itertools.islice(wanted, 1):
            reader.ask_ahead(next_part.rows)
            coming.append(next_part)
        part = coming.popleft()
        if faults.stand_in:
            rows = np.array([faults.stand_in.get(row, row) for row in part.rows.tolist()], dtype=np.int64)
            part = part._replace(rows=rows)
        geometry = place(spec, part.draws, manifest.height[part.rows], manifest.width[part.rows])
        yield _Read(part, reader.files(part.rows) if reader.is_encoded else reader.arrays(part.rows), geometry)


class _Source:
    """Gives DALI its inputs and remembers, in the same order, what is under way."""

    def __init__(self, read: Iterator[_Read]) -> None:
        self.read = read
        self.under_way: deque[_Read] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, ...]:
        taken = next(self.read)
        self.under_way.append(taken)
        geometry = taken.geometry
        return taken.images, geometry.size_hw.astype(np.float32), geometry.start, geometry.flip.astype(np.int32)


def _graph(
    source: _Source,
    reader: ShardReader,
    first: _Read,
    spec: AugmentSpec,
    device: torch.device,
    loader: LoaderSpec,
    *,
    crops: bool,
) -> Any:
    """The graph: decode, resize, crop, flip; what no image needs is not in it.

    Where nothing is resized or padded, only the crop's region is decoded.
    """
    from nvidia.dali import fn, pipeline_def, types

    loader = loader.settled()
    on_gpu, encoded = device.type == "cuda", reader.is_encoded
    out_hw = first.geometry.out_hw
    resizes = bool(spec.resize_px) and reader.has_short_side_other_than(spec.resize_px)
    regional = crops and encoded and not resizes and not spec.crop_padding_px
    slices = crops and not regional and bool(resizes or spec.crop_padding_px or spec.crop_px)

    @pipeline_def(
        batch_size=len(first.wanted.rows),
        num_threads=loader.threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=loader.prefetch,
        exec_dynamic=True,
    )
    def graph() -> Any:
        images, size, start, flip = fn.external_source(
            source, num_outputs=4, batch=True, layout=["" if encoded else "HWC", "", "", ""]
        )
        decoding = {"device": "mixed" if on_gpu else "cpu", "output_type": types.RGB, "adjust_orientation": False}
        if on_gpu:
            # Fancy upsampling as Pillow does it; on the CPU there is no other.
            decoding |= {"hw_decoder_load": loader.hw_decoder_load, "jpeg_fancy_upsampling": True}
        if regional:
            images = fn.decoders.image_slice(images, start=start, shape=out_hw, axes=(0, 1), **decoding)
        elif encoded:
            images = fn.decoders.image(images, **decoding)
        elif on_gpu:
            images = images.gpu()
        if resizes:
            images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        if slices:
            images = fn.slice(images, start=start, shape=out_hw, axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)
        return fn.flip(images, horizontal=flip) if crops and spec.flip_probability else images

    with warnings.catch_warnings():
        # DALI warns of fed numbers that no operation uses; which ones those are is the recipe's choice.
        warnings.filterwarnings("ignore", message="The external source node")
        pipeline = graph()
        pipeline.build()
    return pipeline


def _replace_bad(
    reader: ShardReader, parts: list[Wanted], loader: LoaderSpec, faults: Faults, error: RuntimeError
) -> None:
    """Finds the images that cannot be decoded among those that DALI had, and rows to stand in for them."""
    manifest = reader.manifest
    found = 0
    for part in parts:
        for row in part.rows.tolist():
            if row in faults.stand_in or (reason := _fault(reader, row)) is None:
                continue
            found += 1
            key = manifest.key[row].decode()
            place_ = f"{manifest.shard_path(int(manifest.shard[row]))}: image {key} cannot be decoded ({reason})"
            sound = (int(other) for other in part.following if _fault(reader, int(other)) is None)
            stand_in = None if loader.bad_images == "stop" else next(sound, None)
            if stand_in is None:
                raise FastadError(
                    f"{place_}: convert {manifest.name} again, or set loader.bad_images=replace in training"
                ) from error
            faults.stand_in[row], faults.reasons[key] = stand_in, reason
            say(f"{place_}; {manifest.key[stand_in].decode()} stands in for it")
    if not found and not any(row in faults.stand_in for part in parts for row in part.rows.tolist()):
        keys = ", ".join(manifest.key[row].decode() for row in parts[0].rows[:3].tolist()) if parts else "none"
        reason = str(error).strip().splitlines()[0]
        raise FastadError(f"DALI cannot make a batch of {manifest.folder} ({keys} …): {reason}") from error


def _fault(reader: ShardReader, row: int) -> str | None:
    """Why an image cannot be decoded, None where it can, as arrays always can."""
    if not reader.is_encoded:
        return None
    (data,) = reader.files(np.array([row]))
    try:
        check(data.tobytes())
    except BadImage as bad:
        return str(bad)
    return None

"""DALI's part of a batch: decoding, resizing, cropping and flipping, on a GPU or on the CPU.

Owns the graph, its feeding from a reader, and what becomes of images that DALI cannot decode; values of pixels are
`fastad.pixels`'.
Use: `for crops in dali_crops(reader, wanted, spec, device, LoaderSpec(), Faults()): ...`.
"""

import itertools
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fastad.ahead import ahead
from fastad.augment import AugmentSpec, Draws, Geometry, place
from fastad.encode import BadImage, check
from fastad.errors import FastadError
from fastad.feed import Wanted, in_order
from fastad.progress import say
from fastad.reader import ShardReader

BAD_IMAGES = ("replace", "stop")

# The settings that change the speed of decoding and nothing else, in the order in which they are tuned.
TUNED = ("threads", "hw_decoder_load", "prefetch")

# Batches that are read before DALI asks for them, besides those that it prefetches.
READ_AHEAD = 4


@dataclass(frozen=True, slots=True)
class LoaderSpec:
    """How images are read and decoded. `threads` that decode, for all streams together; `prefetch`: batches that DALI
    makes ahead; `hw_decoder_load`: the share of JPEGs that a GPU's hardware decoder gets. Those left as they are here,
    0 or None, are tuned where that pays (`fastad.tune`). `bad_images`: in training, "replace" takes the next image of
    its stream for one that cannot be decoded, "stop" does not go on."""

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

    def for_each_of(self, streams: int) -> "LoaderSpec":
        """What each of so many streams is decoded with: more threads than cores would wait for each other."""
        settled = self.settled()
        return replace(settled, threads=max(1, settled.threads // max(1, streams)))


@dataclass(eq=False)
class Faults:
    """The images of a stream that cannot be decoded. `others` [n]: the stream's rows, of which each may stand in for
    the one before it, the first for the last; empty: none may, as in testing.

    `stand_in`: bad row → the row after it, which may be bad itself; `reason`: bad row → what is wrong with it; `whole`:
    rows that look cut but decode. Which row stands in depends on `others` and the images alone, so that it is the same
    for every executor, rank and resume.
    """

    others: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    stand_in: dict[int, int] = field(default_factory=dict)
    reason: dict[int, str] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """The rows, others for those that are known to be bad."""
        return np.array([self.replaced(row) for row in rows.tolist()], dtype=np.int64) if self.stand_in else rows

    def note(self, row: int, reason: str) -> int | None:
        """Notes a bad row and returns the one that stands in for it; None, and nothing is noted, where none can."""
        place_ = np.flatnonzero(self.others == row)
        following = int(self.others[(place_[0] + 1) % len(self.others)]) if len(place_) else row
        if (stand_in := self.replaced(following)) == row:
            return None
        self.reason[row], self.stand_in[row] = reason, following
        return stand_in

    def replaced(self, row: int) -> int:
        """The row, or what stands in for it."""
        while row in self.stand_in:
            row = self.stand_in[row]
        return row


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

    Images that cannot be decoded are noted in `faults`, said, and replaced as it says; or they stop it with a
    `FastadError` that names them, where none may stand in.
    """
    with closing(_executed(reader, wanted, spec, device, loader, faults, crops=True)) as executed:
        for made, read in executed:
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
    `dali_crops`."""
    with closing(_executed(reader, in_order(rows, batch), spec, device, loader, faults, crops=False)) as executed:
        for made, _ in executed:
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
    """What DALI makes of each part that is wanted, and the part; past an image that it refuses it begins anew."""
    what = f"reading {reader.manifest.name}"
    with closing(ahead(_read(reader, wanted, spec, faults), depth=READ_AHEAD, what=what)) as read:
        source = _Source(read)
        while (first := source.first()) is not None:
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
                taken = list(source.under_way)
                _note_refused(reader, taken, device, loader, faults, error)
                source.take_back(_read(reader, (part.wanted for part in taken), spec, faults))


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
        rows = faults.sound(part.rows)
        images = reader.files(rows) if reader.is_encoded else reader.arrays(rows)
        while reader.is_encoded and _note_cut(reader, rows, images, faults):
            rows = faults.sound(part.rows)
            images = reader.files(rows)
        part = part._replace(rows=rows)
        yield _Read(part, images, place(spec, part.draws, manifest.height[rows], manifest.width[rows]))


class _Source:
    """Gives DALI its inputs and remembers, in the same order, what is under way."""

    def __init__(self, read: Iterator[_Read]) -> None:
        self.read = read
        self.again: deque[_Read] = deque()
        self.under_way: deque[_Read] = deque()

    def first(self) -> _Read | None:
        """What DALI will get next, None at the end."""
        if not self.again:
            self.again.extend(itertools.islice(self.read, 1))
        return self.again[0] if self.again else None

    def take_back(self, instead: Iterable[_Read]) -> None:
        """Puts others in the place of what is under way, to be given again."""
        self.under_way.clear()
        self.again.extendleft(reversed(list(instead)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, ...]:
        taken = self.again.popleft() if self.again else next(self.read)
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
        decoding = _decoding(on_gpu, loader)
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


def _decoding(on_gpu: bool, loader: LoaderSpec) -> dict[str, Any]:
    """How DALI's decoders are to decode: to the pixels that Pillow makes of the same file."""
    from nvidia.dali import types

    decoding = {"device": "mixed" if on_gpu else "cpu", "output_type": types.RGB, "adjust_orientation": False}
    # Fancy upsampling as Pillow does it; on the CPU there is no other.
    return decoding | ({"hw_decoder_load": loader.hw_decoder_load, "jpeg_fancy_upsampling": True} if on_gpu else {})


JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"


def _note_cut(reader: ShardReader, rows: np.ndarray, images: Iterable[np.ndarray], faults: Faults) -> bool:
    """Notes JPEGs that DALI must not get: those that lack their end and do not decode, as it finds no fault with a crop
    that lies above the cut; and those whose headers are broken, at which DALI 2.4 crashes if other images are decoded
    at the same time. Of what is damaged further inside no decoder complains."""
    noted = False
    for row, data in zip(rows.tolist(), images, strict=True):
        source = data.tobytes()
        if not source.startswith(JPEG_BEGINS) or row in faults.whole:
            continue
        sound = _has_headers(source)
        if sound and source.endswith(JPEG_ENDS):
            continue
        if reason := _reason(data) or ("" if sound else "its headers are broken"):
            _note(reader, row, reason, faults)
            noted = True
        else:
            faults.whole.add(row)
    return noted


def _has_headers(source: bytes) -> bool:
    """Whether a JPEG's segments follow one another as far as its pixels (ITU-T T.81, B.1.1.4)."""
    place = 2
    while source[place : place + 1] == b"\xff":
        if (marker := source[place + 1]) == 0xDA:
            return True
        # A marker may be preceded by any number of 0xFF.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(source[place + 2 : place + 4])
        if place + 2 > len(source):
            return False
    return False


def _note_refused(
    reader: ShardReader,
    taken: list[_Read],
    device: torch.device,
    loader: LoaderSpec,
    faults: Faults,
    error: RuntimeError,
) -> None:
    """Notes the images that DALI refuses, in the first of the parts it had that has any."""
    for part in taken if reader.is_encoded else ():
        rows = part.wanted.rows.tolist()
        if any(row in faults.stand_in for row in rows):
            return  # noted after this part had been read
        refused = _refused(part.images, device, loader)
        for place_ in refused if len(refused) < len(rows) else ():
            _note(reader, rows[place_], _reason(part.images[place_]) or "DALI refuses it", faults)
        if refused and len(refused) < len(rows):
            return
    first = ", ".join(reader.manifest.key[row].decode() for part in taken[:1] for row in part.wanted.rows[:3].tolist())
    reason = str(error).strip().splitlines()[0]
    raise FastadError(f"DALI cannot make a batch of {reader.manifest.folder} ({first} …): {reason}") from error


def _refused(images: "list[np.ndarray] | np.ndarray", device: torch.device, loader: LoaderSpec) -> list[int]:
    """The places of the images that DALI does not decode, each given to it alone."""
    from nvidia.dali import fn, pipeline_def

    on_gpu = device.type == "cuda"

    @pipeline_def(
        batch_size=1,
        num_threads=1,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def alone(some: Iterable[np.ndarray]) -> Any:
        encoded = fn.external_source(([image] for image in some), batch=True)
        return fn.decoders.image(encoded, **_decoding(on_gpu, loader))

    refused: list[int] = []
    done = 0
    while done < len(images):
        pipeline = alone(images[done:])
        pipeline.build()
        try:
            while True:
                pipeline.run()
                done += 1
        except StopIteration:
            break
        except RuntimeError:
            refused.append(done)
            done += 1
    return refused


def _note(reader: ShardReader, row: int, reason: str, faults: Faults) -> None:
    """Notes and says that an image cannot be decoded; raises `FastadError` where none may or can stand in for it."""
    manifest = reader.manifest
    bad = f"{manifest.shard_path(int(manifest.shard[row]))}: image {manifest.key[row].decode()} cannot be decoded"
    bad += f" ({reason})"
    if (stand_in := faults.note(row, reason)) is None:
        why = (
            f"nor can any of the {len(faults.others):,} images that might stand in for it"
            if len(faults.others)
            else "and none may stand in for it in a test, or with loader.bad_images=stop"
        )
        raise FastadError(f"{bad}, {why}: convert {manifest.name} again, without --unchecked")
    say(f"{bad}; {manifest.key[stand_in].decode()} stands in for it")


def _reason(data: np.ndarray) -> str | None:
    """Why an image cannot be decoded, None where Pillow can."""
    try:
        check(data.tobytes())
    except BadImage as bad:
        return str(bad)
    return None

"""DALI's part of a batch: decoding, resizing, cropping and flipping, on a GPU or on the CPU.

Owns the graph, the hand-over of what it makes, and beginning anew past images that DALI refuses; what it is fed is
`fastad.external_source`'s, values of pixels are `fastad.pixels`'.
Use: `for crops in dali_crops(origins, wanted, Decoding(spec, device, LoaderSpec())): ...`.
"""

import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastad.ahead import ahead
from fastad.augment import AugmentSpec, Draws
from fastad.errors import FastadError
from fastad.external_source import ExternalSource, ReadBatch, read_in_order
from fastad.faults import Origin, note_bad, reason
from fastad.feed import Wanted, in_order
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

    def settled(self, device: torch.device) -> "LoaderSpec":
        """With values for what is left open: as many threads as PyTorch has, or on a GPU under torchrun, which gives
        PyTorch one, a process's part of the cores; DALI's own defaults on a GPU; and on a CPU one batch, as what is
        decoded meanwhile takes the cores from what finishes images (README, Development)."""
        shared = device.type == "cuda" and "LOCAL_WORLD_SIZE" in os.environ
        values: dict[str, Any] = {
            "threads": cores_here() if shared else torch.get_num_threads(),
            "prefetch": 2 if device.type == "cuda" else 1,
            "hw_decoder_load": 0.65,
        }
        return replace(self, **{name: values[name] for name in self.left_open()})


def cores_here() -> int:
    """The cores of this process; of several on a machine, whose number torchrun tells, each has its part of them."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@dataclass(frozen=True, slots=True)
class Decoding:
    """What becomes of encoded images: sizes and crops as `spec` says, on `device`, with the settings of `loader`."""

    spec: AugmentSpec
    device: torch.device
    loader: LoaderSpec

    @property
    def device_id(self) -> int | None:
        """The GPU's number as DALI wants it, None for the CPU."""
        if self.device.type == "cpu":
            return None
        return torch.cuda.current_device() if self.device.index is None else self.device.index


class Crops(NamedTuple):
    """A stream's part of one batch: `pixels` uint8 [b, H, W, C] on the device, `rows` int64 [b], what was drawn, and
    which part of each crop is image (`Geometry.inside`)."""

    pixels: Tensor
    rows: np.ndarray
    draws: Draws | None
    inside: np.ndarray | None


def dali_crops(
    origins: Sequence[Origin], wanted: Sequence[Iterator[Wanted]], decoding: Decoding
) -> Generator[tuple[Crops, ...], None, None]:
    """The crops of what is wanted of each origin, in order; their memory is DALI's, which uses it again once no tensor
    shares it and, on a GPU, the stream that was current when they came has done what was asked of it by then.
    Origins that need the same of DALI share a pipeline: two would wait for each other by turns.

    Images that cannot be decoded are noted in the origin's faults, said, and replaced as they say; or they stop it with
    a `FastadError` that names them, where none may stand in.
    """
    loader = decoding.loader.settled(decoding.device)
    groups: dict[_Kind, list[int]] = defaultdict(list)
    for number, origin in enumerate(origins):
        groups[_kind(origin.reader, decoding.spec)].append(number)
    # More threads than cores would wait for each other.
    decoding = replace(decoding, loader=replace(loader, threads=max(1, loader.threads // max(1, len(groups)))))
    with ExitStack() as opened:
        made = []
        for numbers in groups.values():
            together = zip(*(wanted[number] for number in numbers), strict=True)
            some = _executed([origins[number] for number in numbers], together, decoding, crops=True)
            batches = opened.enter_context(closing(some))
            made.append((numbers, (_crops(torch.from_dlpack(pixels.as_tensor()), read) for pixels, read in batches)))
        yield from merged(made)


def merged(made: Sequence[tuple[Sequence[int], Iterator[tuple[Crops, ...]]]]) -> Iterator[tuple[Crops, ...]]:
    """Each batch's crops in the streams' order, from several that make them, of the streams with those numbers."""
    order = np.argsort([number for numbers, _ in made for number in numbers]).tolist()
    for batch in zip(*(crops for _, crops in made), strict=True):
        parts = list(itertools.chain.from_iterable(batch))
        yield tuple(parts[place] for place in order)


def whole_images(
    origin: Origin, rows: np.ndarray, decoding: Decoding, *, batch: int
) -> Generator[list[Tensor], None, None]:
    """The images of rows, `batch` at a time, decoded and resized but not cropped: uint8 [H, W, C] each, else as
    `dali_crops`."""
    wanted = ((part,) for part in in_order(rows, batch))
    decoding = replace(decoding, loader=decoding.loader.settled(decoding.device))
    with closing(_executed([origin], wanted, decoding, crops=False)) as executed:
        for made, _ in executed:
            yield [torch.from_dlpack(made[place]) for place in range(len(made))]
    if decoding.device.type == "cuda":
        # Done once, before a training that needs the memory that DALI would keep for more.
        from nvidia.dali.backend import ReleaseUnusedMemory  # type: ignore[attr-defined]

        ReleaseUnusedMemory()


class _Kind(NamedTuple):
    """What a graph does, beyond what the spec says: images of one kind can share it."""

    encoded: bool
    channels: int
    resizes: bool


def _kind(reader: ShardReader, spec: AugmentSpec) -> _Kind:
    resizes = bool(spec.resize_px) and reader.has_short_side_other_than(spec.resize_px)
    return _Kind(reader.is_encoded, reader.manifest.channels, resizes)


def _crops(pixels: Tensor, read: ReadBatch) -> tuple[Crops, ...]:
    parts = pixels.split([len(part.wanted.rows) for part in read])
    return tuple(
        Crops(some, part.wanted.rows, part.wanted.draws, part.geometry.inside())
        for some, part in zip(parts, read, strict=True)
    )


def _executed(
    origins: Sequence[Origin], wanted: Iterator[tuple[Wanted, ...]], decoding: Decoding, *, crops: bool
) -> Generator[tuple[Any, ReadBatch], None, None]:
    """What DALI makes of each batch that is wanted, and the batch; past an image that it refuses it begins anew."""
    device, spec = decoding.device, decoding.spec
    what = f"reading {', '.join(dict.fromkeys(origin.reader.manifest.name for origin in origins))}"
    with closing(ahead(read_in_order(origins, wanted, spec), depth=READ_AHEAD, what=what)) as read:
        source = ExternalSource(read)
        while (first := source.first()) is not None:
            pipeline = _graph(source, _kind(origins[0].reader, spec), first, decoding, crops=crops)
            try:
                while True:
                    # Bound to the consumer's stream, neither the hand-over nor the buffer's release waits on the host.
                    (made,) = pipeline.run(*((torch.cuda.current_stream(device),) if device.type == "cuda" else ()))
                    yield made, source.under_way.popleft()
            except StopIteration:
                return
            except (RuntimeError, MemoryError) as error:
                # The pipeline is of no more use. What it had taken is read again, with other images for the bad ones.
                taken = list(source.under_way)
                _note_refused(origins, taken, decoding, error)
                again = (tuple(part.wanted for part in batch) for batch in taken)
                source.take_back(read_in_order(origins, again, spec))


def _graph(source: ExternalSource, kind: _Kind, first: ReadBatch, decoding: Decoding, *, crops: bool) -> Any:
    """The graph: decode, resize, crop, flip; what no image needs is not in it.

    Where nothing is resized or padded, only the crop's region is decoded.
    """
    from nvidia.dali import fn, pipeline_def, types

    spec, loader, on_gpu = decoding.spec, decoding.loader, decoding.device.type == "cuda"
    (encoded, _, resizes), out_hw = kind, first[0].geometry.out_hw
    regional = crops and encoded and not resizes and not spec.crop_padding_px
    slices = crops and not regional and bool(resizes or spec.crop_padding_px or spec.crop_px)

    @pipeline_def(
        batch_size=sum(len(part.wanted.rows) for part in first),
        num_threads=loader.threads,
        device_id=decoding.device_id,
        prefetch_queue_depth=loader.prefetch,
        exec_dynamic=True,
    )
    def graph() -> Any:
        images, size, start, flip = fn.external_source(
            source, num_outputs=4, batch=True, layout=["" if encoded else "HWC", "", "", ""]
        )
        how = _how(decoding)
        if regional:
            images = fn.decoders.image_slice(images, start=start, shape=out_hw, axes=(0, 1), **how)
        elif encoded:
            images = fn.decoders.image(images, **how)
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


def _how(decoding: Decoding) -> dict[str, Any]:
    """How DALI's decoders are to decode: to the pixels that Pillow makes of the same file."""
    from nvidia.dali import types

    how = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    if decoding.device.type == "cpu":
        return how
    # Fancy upsampling as Pillow does it; on the CPU there is no other.
    return how | {
        "device": "mixed",
        "hw_decoder_load": decoding.loader.hw_decoder_load,
        "jpeg_fancy_upsampling": True,
    }


def _note_refused(
    origins: Sequence[Origin], taken: Sequence[ReadBatch], decoding: Decoding, error: RuntimeError | MemoryError
) -> None:
    """Notes the images that DALI refuses, in the first of the parts it had that has any; raises `FastadError` if it is
    not images that it cannot work with."""
    parts = [(origin, part) for batch in taken for origin, part in zip(origins, batch, strict=True)]
    for origin, part in parts if isinstance(error, RuntimeError) else ():
        if not origin.reader.is_encoded:
            continue
        rows = part.wanted.rows.tolist()
        if any(row in origin.faults.stand_in for row in rows):
            return  # noted after this part had been read
        refused = _refused(part.images, decoding)
        for number in refused if len(refused) < len(rows) else ():
            note_bad(origin, rows[number], reason(part.images[number]) or "DALI refuses it")
        if refused and len(refused) < len(rows):
            return
    named = list(zip(origins, taken[0] if taken else (), strict=False))
    keys = [origin.reader.manifest.key[row].decode() for origin, part in named for row in part.wanted.rows[:3].tolist()]
    folders = ", ".join(dict.fromkeys(str(origin.reader.manifest.folder) for origin in origins))
    advice = ": less is needed with --set loader.prefetch=1" if isinstance(error, MemoryError) else ""
    raise FastadError(f"DALI cannot make a batch of {folders} ({', '.join(keys)} …): {_said(error)}{advice}") from error


def _said(error: Exception) -> str:
    """The line of DALI's message that tells what is wrong; before it stands where in the graph it was met."""
    lines = [line.strip() for line in str(error).rpartition("encountered:")[2].splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _refused(images: "list[np.ndarray] | np.ndarray", decoding: Decoding) -> list[int]:
    """The places of the images that DALI does not decode, each given to it alone."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(
        batch_size=1,
        num_threads=1,
        device_id=decoding.device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def alone(some: Iterable[np.ndarray]) -> Any:
        encoded = fn.external_source(([image] for image in some), batch=True)
        return fn.decoders.image(encoded, **_how(decoding))

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

"""What a GPU adds to the speed of batches: its decoders' own limits, and whether a trainer waits for what they make.

Owns what is measured beside encoded images' batches, and its figures; the batches are `fastad.bench_loader`'s. It also
runs on a CPU, where it is tested.
Use: `works = gpu_works("photographs", "resnet18-cbam", stream, loader)`, then `gpu_figures("photographs", medians)`.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastad.augment import AugmentSpec
from fastad.dali import Crops, Decoding, LoaderSpec, dali_crops, whole_images
from fastad.feed import planned
from fastad.group import Workbench, step
from fastad.objectives import find
from fastad.pipeline import Batch, Source, Unmade, out_hw, train_batches
from fastad.plan import WHOLE_BATCH, Plan
from fastad.recipe import Recipe, parse
from fastad.step_graph import Capture, StepGraphs
from fastad.tune import fastest, values_to_try

Work = Callable[[], Generator[int, None, None]]

# The share of JPEGs that the hardware decoder gets, by who decodes then.
DECODERS = {"hardware": 1.0, "cuda": 0.0}

# More images than are decoded in any measurement.
MANY = 2**21


@dataclass(frozen=True, eq=False)
class Streamed:
    """Batches of images: the plan, where its streams come from, and what is made of them."""

    plan: Plan
    sources: tuple[Source, ...]
    spec: AugmentSpec
    device: torch.device


def fastest_loader(streamed: Streamed) -> LoaderSpec:
    """The loader settings with which these images are decoded fastest, found now."""
    start, decoded = LoaderSpec(), list(zip(streamed.plan.streams, streamed.sources, strict=True))
    device = streamed.device
    values = values_to_try(start, device)
    return fastest(streamed.spec, streamed.plan, decoded, device, start.settled(device), values)[0]


def gpu_works(name: str, network: str, streamed: Streamed, loader: LoaderSpec) -> dict[str, Work]:
    """What is measured, by what its rates are called: the images decoded and cropped only, as in the batches, by the
    hardware decoder alone and by CUDA alone; whole images by the hardware decoder, to tell whether it takes parts of
    them; and, where a network is named, its steps on the batches, and the same steps on one batch over and over."""
    works: dict[str, Work] = {f"{name}_decoded": functools.partial(_decoded, streamed, loader)}
    for decoder, share in DECODERS.items():
        only = replace(loader, hw_decoder_load=share)
        works[f"{name}_decoded_by_{decoder}"] = functools.partial(_decoded, streamed, only)
    hardware = replace(loader, hw_decoder_load=DECODERS["hardware"])
    works[f"{name}_whole_by_hardware"] = functools.partial(_whole, streamed, hardware)
    if network:
        for key, replayed in ((f"{name}_trained", False), (f"{name}_trained_alone", True)):
            works[key] = functools.partial(_trained, network, streamed, loader, replayed)
    return works


def gpu_figures(name: str, medians: Mapping[str, float]) -> dict[str, float]:
    """The batches' share of what the hardware decoder can do alone, and the share of a training's time that goes on
    waiting for them."""
    found = {f"{name}_to_hardware_ratio": round(medians[name] / medians[f"{name}_whole_by_hardware"], 3)}
    if f"{name}_trained" in medians:
        share = 1 - medians[f"{name}_trained"] / medians[f"{name}_trained_alone"]
        found[f"{name}_stall_share"] = round(max(0.0, share), 4)
    return found


def decoders_differ(streamed: Streamed, loader: LoaderSpec) -> int:
    """By how many levels at most the two decoders of a GPU differ in the pixels of the first batch."""
    first = []
    for share in DECODERS.values():
        with closing(_crops(streamed, replace(loader, hw_decoder_load=share))) as batches:
            first.append(next(batches))
    return max(int((one.pixels.int() - other.pixels.int()).abs().max()) for one, other in zip(*first, strict=True))


def captured(batches: Iterable[Batch | Unmade], capture: Capture) -> Iterator[int]:
    """The sizes of batches, whose images are made as in a captured step of training, but for the training."""
    graphs = StepGraphs(capture)
    for batch in batches:
        graphs.step(lambda images, target: None, (), batch)
        yield len(batch.row)


def _crops(streamed: Streamed, loader: LoaderSpec) -> Generator[tuple[Crops, ...], None, None]:
    plan, spec = streamed.plan, streamed.spec
    wanted = [planned(plan, stream, spec, start_step=0, share=WHOLE_BATCH) for stream in plan.streams]
    origins = [source.origin for source in streamed.sources]
    return dali_crops(origins, wanted, Decoding(spec, streamed.device, loader))


def _decoded(streamed: Streamed, loader: LoaderSpec) -> Generator[int, None, None]:
    with closing(_crops(streamed, loader)) as batches:
        for parts in batches:
            yield sum(len(part.rows) for part in parts)


def _whole(streamed: Streamed, loader: LoaderSpec) -> Generator[int, None, None]:
    spec, rows = replace(streamed.spec, resize_px=0), np.resize(streamed.plan.nominal.rows, MANY)
    decoding = Decoding(spec, streamed.device, loader)
    made = whole_images(streamed.sources[0].origin, rows, decoding, batch=streamed.plan.batch_size)
    with closing(made) as batches:
        for images in batches:
            yield len(images)


def _trained(network: str, streamed: Streamed, loader: LoaderSpec, replayed: bool) -> Generator[int, None, None]:
    """Steps of HSC; `replayed`: on the first batch, for ever."""
    plan, spec, device = streamed.plan, streamed.spec, streamed.device
    workbench = Workbench(_recipe(network, plan), _shape_hwc(streamed), device)
    member = workbench.member(find("hsc"), 1, workbench.execution(plan.steps_per_epoch))
    with closing(train_batches(plan, streamed.sources, spec, device, loader=loader)) as batches:
        for batch in batches:
            step([member], batch)
            yield len(batch.row)
            while replayed:
                step([member], batch)
                yield len(batch.row)


def _recipe(network: str, plan: Plan) -> Recipe:
    data = {"nominal": "nominal", "oe": "oe"}
    sizes = {"batch_nominal": plan.nominal.batch, "batch_oe": sum(stream.batch for stream in plan.oe)}
    return parse(
        {"name": "bench", "network": network, "objectives": ["hsc"], "data": data | sizes, "optim": {"epochs": 1}}
    )


def _shape_hwc(streamed: Streamed) -> tuple[int, int, int]:
    reader = streamed.sources[0].reader
    return (*out_hw(streamed.plan.nominal.rows, reader, streamed.spec), reader.manifest.channels)

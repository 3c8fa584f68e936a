"""The DALI graph for small images and the iterator of batches.

Owns what is executed on pixels and the hand-over to PyTorch; which rows and which draws come from `fastad.plan` and
`fastad.augment`. The same graph runs on a GPU or on the CPU.
Use: `for batch in train_batches(plan, nominal, oe, spec, device): ...`.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from fastad.augment import AugmentSpec, Draws, draw, no_draws
from fastad.plan import Plan
from fastad.reader import ShardReader

PREFETCH_BATCHES = 2


class Batch(NamedTuple):
    """`images`: float32 [B, C, H, W], channels_last, on the device, normalised. `target`: float32 [B] on the device, 0
    nominal, 1 OE or anomalous. `row`: int64 [B] on the host, in the manifest of the image's own set."""

    images: torch.Tensor
    target: torch.Tensor
    row: np.ndarray


class _Fed(NamedTuple):
    """One batch on its way into the graph: uint8 pixels [B, H, W, C], what is done to them, and what they are."""

    pixels: np.ndarray
    draws: Draws
    target: np.ndarray
    row: np.ndarray


def train_batches(
    plan: Plan,
    nominal: ShardReader,
    oe: ShardReader | None,
    spec: AugmentSpec,
    device: torch.device,
    *,
    start_step: int = 0,
) -> Iterator[Batch]:
    """The plan's batches from `start_step` to its end: nominal images first, then OE, augmented as `spec` says."""
    fed = _planned(plan, nominal, oe, spec, start_step)
    return _execute(fed, spec, nominal.manifest.shape_hwc, device, plan.batch_size)


def evaluation_batches(
    reader: ShardReader, rows: np.ndarray, target: np.ndarray, spec: AugmentSpec, device: torch.device, size: int = 512
) -> Iterator[Batch]:
    """The images of `rows` with their `target`, in order, normalised only; the last batch may be smaller."""

    def fed() -> Iterator[_Fed]:
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield _Fed(reader.pixels(chosen), no_draws(len(chosen)), target[start : start + size], chosen)

    plain = AugmentSpec(mean=spec.mean, std=spec.std)
    return _execute(fed(), plain, reader.manifest.shape_hwc, device, size)


def _planned(
    plan: Plan, nominal: ShardReader, oe: ShardReader | None, spec: AugmentSpec, start_step: int
) -> Iterator[_Fed]:
    for epoch in range(start_step // plan.steps_per_epoch, plan.epochs):
        rows = plan.epoch(epoch)
        draws = [
            draw(spec, plan.seed, stream, epoch, stream_rows.size)
            for stream, stream_rows in zip(("nominal", "oe"), rows, strict=True)
        ]
        first = start_step % plan.steps_per_epoch if epoch == start_step // plan.steps_per_epoch else 0
        for step in range(first, plan.steps_per_epoch):
            parts, taken = [nominal.pixels(rows.nominal[step])], []
            if plan.oe is not None and oe is not None:
                parts.append(oe.pixels(rows.oe[step]))
            for stream_rows, stream_draws in zip(rows, draws, strict=True):
                size = stream_rows.shape[1]
                taken.append(Draws(*(numbers[step * size : (step + 1) * size] for numbers in stream_draws)))
            yield _Fed(
                pixels=np.concatenate(parts),
                draws=Draws(*(np.concatenate(numbers) for numbers in zip(*taken, strict=True))),
                target=np.repeat(np.array([0, 1], np.float32), [rows.nominal.shape[1], rows.oe.shape[1]]),
                row=np.concatenate([rows.nominal[step], rows.oe[step]]),
            )


class _Source:
    """Gives DALI the arrays of each batch and remembers, in the same order, what DALI does not carry."""

    def __init__(self, fed: Iterator[_Fed]) -> None:
        self.fed = fed
        self.under_way: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[np.ndarray, ...]:
        batch = next(self.fed)
        self.under_way.append((batch.target, batch.row))
        return batch.pixels, *batch.draws


def _execute(
    fed: Iterator[_Fed], spec: AugmentSpec, shape_hwc: tuple[int, int, int], device: torch.device, largest_batch: int
) -> Iterator[Batch]:
    source = _Source(fed)
    pipeline = _graph(source, spec, shape_hwc, device, largest_batch)
    while True:
        try:
            if device.type == "cuda":
                # Bound to the consumer's stream: neither this hand-over nor the buffer's release waits on the host.
                (images,) = pipeline.run(torch.cuda.current_stream(device))
            else:
                (images,) = pipeline.run()
        except StopIteration:
            return
        target, row = source.under_way.popleft()
        yield Batch(
            images=torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2),
            target=torch.from_numpy(target).to(device, non_blocking=True),
            row=row,
        )


def _graph(
    source: _Source, spec: AugmentSpec, shape_hwc: tuple[int, int, int], device: torch.device, largest_batch: int
) -> Any:
    """The graph: flip, crop, blur, normalise; an operation that `spec` does not ask for is not in it."""
    from nvidia.dali import fn, pipeline_def, types

    height, width, channels = shape_hwc

    @pipeline_def(
        batch_size=largest_batch,
        num_threads=torch.get_num_threads(),
        device_id=torch.cuda.current_device() if device.type == "cuda" else None,
        prefetch_queue_depth=PREFETCH_BATCHES,
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def graph() -> Any:
        images, flip, start, sigma = fn.external_source(source, num_outputs=4, layout=["HWC", "", "", ""])
        if device.type == "cuda":
            images = images.gpu()
        if spec.flip_probability > 0:
            images = fn.flip(images, horizontal=flip)
        if spec.crop_padding_px > 0:
            images = fn.slice(
                images, start=start, shape=(height, width), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
            )
        if spec.oe_blur_sigma_px > 0:
            if sigma > 0:
                images = fn.gaussian_blur(images, sigma=sigma)
        return fn.crop_mirror_normalize(
            images,
            mean=[255 * value for value in np.broadcast_to(spec.mean, channels)],
            std=[255 * value for value in np.broadcast_to(spec.std, channels)],
            output_layout="HWC",
            dtype=types.FLOAT,
        )

    with warnings.catch_warnings():
        # DALI warns of fed numbers that no operation uses; which ones those are is the recipe's choice.
        warnings.filterwarnings("ignore", message="The external source node")
        pipeline = graph()
        pipeline.build()
    return pipeline

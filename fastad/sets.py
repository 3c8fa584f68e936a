"""A recipe's shard sets, open, and what a run takes of them: its plan, its test images, and what the device holds.

Owns the roles of sets and the choice of what is resident; which rows a view is, is `fastad.view`'s.
Use: `sets = open_sets(recipe, shards)`, then `plan = make_plan(recipe, sets, "Trouser", seed=1)`.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastad.dali import Decoding
from fastad.errors import FastadError
from fastad.faults import Faults, Origin
from fastad.manifest import Manifest, open_set
from fastad.memory import available_bytes
from fastad.pipeline import Source, out_hw
from fastad.plan import Plan, Stream
from fastad.progress import say
from fastad.ranks import processes_here
from fastad.reader import ShardReader
from fastad.recipe import Recipe
from fastad.resident import Held, bytes_held, hold
from fastad.shared_images import hold_together
from fastad.synsets import holds_synsets, synsets
from fastad.view import View, classes_in, content_hashes, select

# Images of this size are held wherever they fit; larger ones only if they come again.
SMALL_PX = 64

# Of the memory that is free, as images are not all that needs it.
RESIDENT_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class Sets:
    """The open shard sets of a recipe; images of the test split of `never_oe` must not be OE. `shape_hwc`: of the
    images in batches. `held`: the sources whose images a device holds, by role, and a hash of their rows; `shares`:
    with the other processes of the machine."""

    nominal: ShardReader
    oe: tuple[ShardReader, ...]
    shape_hwc: tuple[int, int, int]
    never_oe: Manifest | None = None
    shares: bool = False
    held: dict[str, tuple[str, Source]] = field(default_factory=dict)

    def fingerprint(self) -> list[str]:
        """What a checkpoint must agree with beside its recipe: the images it is trained on, or must not be."""
        manifests = [reader.manifest for reader in (self.nominal, *self.oe)]
        return [manifest.fingerprint for manifest in (*manifests, self.never_oe) if manifest is not None]


def open_sets(recipe: Recipe, shards: Path, *, shares: bool = False) -> Sets:
    """The recipe's sets in the shard home, `shares` as `Sets` has it; `FastadError` if one is missing or changed, or if
    their images differ in size or channels once they are cropped."""
    data, spec = recipe.data, recipe.augment
    nominal = ShardReader(open_set(shards / data.nominal))
    oe = tuple(ShardReader(open_set(shards / name), transpose=data.oe_transpose) for name in data.oe)
    shapes = [
        (*out_hw(np.asarray(reader.manifest.split_rows("train")), reader, spec), reader.manifest.channels)
        for reader in (nominal, *oe)
    ]
    for reader, shape in zip(oe, shapes[1:], strict=True):
        if shape != shapes[0]:
            sizes = " and ".join("×".join(map(str, found)) for found in (shapes[0], shape))
            raise FastadError(
                f"{nominal.manifest.folder} and {reader.manifest.folder} hold images of {sizes}: choose an OE set of "
                "the same size and channels, or crop both with --set augment.crop_px"
            )
        manifest = reader.manifest
        for name in data.oe_exclude_synsets if holds_synsets(manifest) else ():
            held, listed = len(set(manifest.classes).intersection(synsets(name))), len(synsets(name))
            say(f"{manifest.folder} holds {held:,} of the {listed:,} synsets of {name}: their images are never OE")
    other = data.oe_exclude_duplicates_of
    never_oe = None if other is None else open_set(shards / other)
    return Sets(nominal, oe, shapes[0], never_oe, shares or processes_here() > 1)


def make_plan(recipe: Recipe, sets: Sets, class_name: str, seed: int, uses_oe: bool = True) -> Plan:
    """The batches of one class and seed; OE is drawn by the seed alone, so that all classes and objectives share it."""
    data = recipe.data
    nominal = select(View("train", (class_name,)), sets.nominal.manifest)
    streams = [Stream("nominal", nominal, data.batch_nominal)]
    if uses_oe:
        for number, (reader, batch) in enumerate(zip(sets.oe, oe_batches(recipe), strict=True), start=1):
            name = "oe" if number == 1 else f"oe-{number}"
            streams.append(_oe_stream(name, recipe, sets, reader.manifest, seed, len(nominal), batch))
    return Plan(tuple(streams), seed, recipe.optim.epochs)


def oe_batches(recipe: Recipe) -> list[int]:
    """How many images of each OE set stand in every batch: the weights' shares, the largest remainders rounded up."""
    data = recipe.data
    weights = np.array(data.oe_weights or [1.0] * len(data.oe))
    exact = data.batch_oe * weights / weights.sum()
    batches = np.floor(exact).astype(int)
    batches[np.argsort(batches - exact, kind="stable")[: data.batch_oe - batches.sum()]] += 1
    if len(data.oe) and not batches.all():
        raise FastadError(
            f"data.batch_oe={data.batch_oe} leaves no image to {data.oe[int(batches.argmin())]}: raise it or its weight"
        )
    return batches.tolist()


def _oe_stream(
    name: str, recipe: Recipe, sets: Sets, manifest: Manifest, seed: int, nominal_size: int, batch: int
) -> Stream:
    """The OE images of a seed and their order: a window means one in source order, and drawn classes that hold fewer
    images than the nominal class are read with replacement (PROTOCOL, Figure 4)."""
    data, never_oe = recipe.data, sets.never_oe
    view = View(
        exclude_classes=data.oe_exclude_classes,
        exclude_synsets=data.oe_exclude_synsets,
        class_count=data.oe_classes,
        size=data.oe_size,
        seed=seed,
    )
    rows = select(
        view, manifest, None if never_oe is None else content_hashes(never_oe, select(View("test"), never_oe))
    )
    if data.oe_order == "window":
        rows = rows[np.argsort(manifest.source_index[rows], kind="stable")]
    if data.oe_order == "shards":
        rows = np.sort(rows)
        return Stream(name, rows, batch, "shards", manifest.shard[rows])
    few = data.oe_classes is not None and len(rows) < nominal_size
    return Stream(name, rows, batch, "with-replacement" if few else data.oe_order)


def one_vs_rest(sets: Sets, class_name: str) -> tuple[np.ndarray, np.ndarray]:
    """One against the rest: the rows of the test split, and their target, 0 for the class and 1 for all others. The
    rest of `bottle/good` are the other classes of `bottle`, where it has any."""
    manifest = sets.nominal.manifest
    select(View("test", (class_name,)), manifest)
    category = class_name.rpartition("/")[0]
    fellows = tuple(name for name in manifest.classes if category and name.startswith(f"{category}/"))
    rows = select(View("test", fellows if len(fellows) > 1 else ()), manifest)
    target = (manifest.class_index[rows] != manifest.classes.index(class_name)).astype(np.float32)
    if target.all() or not target.any():
        raise FastadError(f"{manifest.folder} has test images of {class_name} only: one against the rest needs a rest")
    return rows, target


def training_sources(recipe: Recipe, sets: Sets, plan: Plan, device: torch.device) -> list[Source]:
    """Where the images of each of the plan's streams come from, and, as the recipe says, those that stand in for bad
    ones."""
    reads = [plan.steps * stream.batch for stream in plan.streams]
    named = zip(plan.streams, (sets.nominal, *sets.oe), reads, strict=False)
    return [
        _source(recipe, sets, stream.name, reader, stream.rows, n, device, stream_faults(recipe, stream))
        for stream, reader, n in named
    ]


def stream_faults(recipe: Recipe, stream: Stream) -> Faults:
    """What may become of a stream's bad images, as the recipe says."""
    return Faults(stream.rows) if recipe.loader.bad_images == "replace" else Faults()


def testing_source(recipe: Recipe, sets: Sets, rows: np.ndarray, device: torch.device) -> Source:
    """Where the test images come from, for every class of the set: they are read for each again."""
    return _source(recipe, sets, "test", sets.nominal, rows, _test_reads(sets, rows), device, Faults())


def _test_reads(sets: Sets, rows: np.ndarray) -> int:
    """How many test images are read in all."""
    return len(rows) * len(classes_in("train", sets.nominal.manifest))


def _source(
    recipe: Recipe,
    sets: Sets,
    role: str,
    reader: ShardReader,
    rows: np.ndarray,
    reads: int,
    device: torch.device,
    faults: Faults,
) -> Source:
    key = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
    if role in sets.held and sets.held[role][0] == key:
        return sets.held[role][1]
    # What another class or seed held is of no more use.
    sets.held.pop(role, None)
    held = _held(recipe, sets, role, Origin(reader, faults), rows, reads, device)
    source = Source(reader, held, faults)
    if held is not None:
        sets.held[role] = key, source
    return source


def _held(
    recipe: Recipe, sets: Sets, role: str, origin: Origin, rows: np.ndarray, reads: int, device: torch.device
) -> Held | None:
    """The images on the device, None if they are read each time."""
    decoding = Decoding(recipe.augment, device, recipe.loader)

    def to_hold() -> int:
        return _bytes_to_hold(recipe, role, origin.reader, rows, reads, device)

    if sets.shares:
        # On the CPU what another process holds takes no more room; a GPU must have room for its own.
        wanted = _is_worth_holding(recipe, origin.reader, rows, reads) if device.type == "cpu" else to_hold()
        if wanted and (held := hold_together(origin, rows, decoding, _room)) is not None:
            return held
    return hold(origin, rows, decoding) if to_hold() else None


def _room() -> float:
    """The bytes of main memory that images of all processes together may take."""
    return RESIDENT_SHARE * available_bytes()


def _is_worth_holding(recipe: Recipe, reader: ShardReader, rows: np.ndarray, reads: int) -> bool:
    """Whether images of which so many are read are to be held where they fit."""
    choice = recipe.train.resident
    small = max(int(reader.manifest.height.max()), int(reader.manifest.width.max())) <= SMALL_PX
    return choice == "on" or (choice == "auto" and (small or reads >= 2 * len(rows)))


def _bytes_to_hold(
    recipe: Recipe, role: str, reader: ShardReader, rows: np.ndarray, reads: int, device: torch.device
) -> int:
    """What the images of `rows` take on the device, 0 if they are not to be held but read each of so many times.

    Raises `FastadError` if they must be held and do not fit.
    """
    needed = bytes_held(reader, rows, recipe.augment)
    fits = needed <= RESIDENT_SHARE * free_bytes(device)
    if recipe.train.resident == "on" and not fits:
        raise FastadError(
            f"train.resident=on: the {len(rows):,} {role} images need {needed:,} bytes, more than {RESIDENT_SHARE:.0%} "
            f"of what is free on the {device.type}: use auto"
        )
    return needed if fits and _is_worth_holding(recipe, reader, rows, reads) else 0


def memory_held(recipe: Recipe, sets: Sets, plan: Plan, test_rows: np.ndarray, device: torch.device) -> dict[str, int]:
    """Bytes that the images of each of the plan's streams, and of "test", are to take on the device; 0 where they are
    read each time."""
    parts = [
        (stream.name, reader, stream.rows, plan.steps * stream.batch)
        for stream, reader in zip(plan.streams, (sets.nominal, *sets.oe), strict=False)
    ]
    parts.append(("test", sets.nominal, test_rows, _test_reads(sets, test_rows)))
    return {role: _bytes_to_hold(recipe, role, reader, rows, reads, device) for role, reader, rows, reads in parts}


def free_bytes(device: torch.device) -> int:
    """The memory that is free on the device, for each of the processes that share it."""
    if device.type == "cuda":
        # What PyTorch has freed and keeps for itself is free, too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return available_bytes() // processes_here()

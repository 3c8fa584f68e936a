"""What a converter yields, as columns: the first stage of a conversion.

Owns finding converters, checking what they yield, and the columns in which 79 million samples fit in memory. Nothing is
decoded here; arrays go into one spool file, so that every sample is a range of some file.
Use: `listing = list_samples(find_converter("digits"), None, {}, partial)`.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import pkgutil
import re
import traceback
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from fastad.encode import AXIS_ORDERS
from fastad.errors import FastadError, unknown
from fastad.files import atomic
from fastad.manifest import FileRange, PixelRange, Sample
from fastad.progress import progress, say
from fastad.text_column import TextColumn, standing_twice

SPOOL = "spool.bin"

_KEY = re.compile(r"[A-Za-z0-9_\-/]{1,90}")
_SPLIT = re.compile(r"[A-Za-z0-9_\-]+")
_SHOW_EVERY = 100


@dataclass(frozen=True, slots=True)
class Converter:
    """A module of `tools/`, or a user's own file: what it yields and what is to be said of it.

    `published_counts`: of each release or part that was published, the images of each split.
    """

    name: str
    samples: Callable[..., Iterator[Sample]]
    source: str
    licence: str
    classes: tuple[str, ...] | None
    about: str
    notice: str = ""
    published_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def converter_names() -> list[str]:
    """The names that `fastad shard` knows."""
    import fastad_tools

    modules = (module.name for module in pkgutil.iter_modules(fastad_tools.__path__) if not module.ispkg)
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))


def find_converter(name: str) -> Converter:
    """The converter of that name, or of the file at that path if it ends in `.py`; `FastadError` if there is none."""
    if name.endswith(".py"):
        module = _module_of_file(Path(name))
    elif name in (known := converter_names()):
        module = importlib.import_module(f"fastad_tools.{name.replace('-', '_')}")
    else:
        raise unknown("set", name, known)
    if not callable(getattr(module, "samples", None)):
        raise FastadError(f"{module.__file__} is not a converter: it has no function samples(raw) that yields Samples")
    return Converter(
        name=module.__name__.rpartition(".")[2].replace("_", "-"),
        samples=module.samples,
        source=getattr(module, "SOURCE", "unknown"),
        licence=getattr(module, "LICENCE", "unknown"),
        classes=getattr(module, "CLASSES", None),
        about=inspect.getdoc(module) or "",
        notice=getattr(module, "NOTICE", ""),
        published_counts=getattr(module, "PUBLISHED_COUNTS", {}),
    )


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FastadError(f"no converter file {path}: give the path of an existing .py file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else place.lineno
        raise FastadError(f"{path} does not run: {type(error).__name__} in line {line}: {error}") from error
    return module


def yielded(converter: Converter, raw: Path | None, options: Mapping[str, Any]) -> Iterator[Sample]:
    """The converter's samples; raises `FastadError` for raw data or options that it does not take, or lacks."""
    parameters = inspect.signature(converter.samples).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(f'--{option}' for option in known)}" if known else "it takes no options"
            raise FastadError(f"{converter.name} takes no --{name}: {takes}")
    if len(parameters) == len(known):
        if raw is not None:
            raise FastadError(f"{converter.name} makes its own images and takes no raw data: leave out {raw}")
        return converter.samples(**options)
    if raw is None:
        raise FastadError(f"{converter.name} needs the path of its raw data: fastad shard {converter.name} RAW")
    if not raw.exists():
        raise FastadError(f"no raw data at {raw}: give the path of the files of {converter.name}")
    return converter.samples(raw, **options)


@dataclass(frozen=True, eq=False)
class Listing:
    """A row for each sample in the converter's order. A row's bytes are `size` at `offset` of `files[file]`; where
    `shape` [rows, 3] is not 0, they are uint8 pixels [H, W, C] whose axes lie as `AXIS_ORDERS[order]` says, else an
    encoded image. `notices` are what a user must know of the set, beyond its licence."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    files: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    shape: np.ndarray
    order: np.ndarray
    exact: np.ndarray
    class_index: np.ndarray
    split: np.ndarray
    key: np.ndarray
    notices: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.key)


def list_samples(
    converter: Converter, raw: Path | None, options: Mapping[str, Any], partial: Path, *, in_place: bool = False
) -> Listing:
    """Lists everything that the converter yields, spooling arrays into `partial`; says the notices.

    The fingerprint covers the order, the keys, the classes, the bytes of arrays, and the size and time of every file.
    With `in_place`, anything but raw pixels in files is refused.
    """
    samples = yielded(converter, raw, options)
    columns = _Columns(partial / SPOOL, converter.name if in_place else None)
    with atomic(partial / SPOOL) as spool, progress(f"list {converter.name}", unit="images") as advance:
        for number, sample in enumerate(samples, 1):
            columns.add(sample, spool)
            if number % _SHOW_EVERY == 0:
                advance(_SHOW_EVERY)
        advance(len(columns.size) % _SHOW_EVERY)
    if not columns.size:
        raise FastadError(f"{converter.name} found no images in {raw}: check the path")
    notices = tuple(_notices(converter, options, columns.counts()))
    for notice in notices:
        say(f"note: {notice}")
    return columns.finish(converter, notices)


def _notices(converter: Converter, options: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    """The converter's own notice, and whether the images are as many as were published."""
    if converter.notice:
        yield converter.notice
    published = converter.published_counts
    # Where an option chooses among what was published, as `--split` does, only that is meant.
    defaults = {name: known.default for name, known in inspect.signature(converter.samples).parameters.items()}
    chosen = (defaults | dict(options)).values()
    published = {name: counts for name, counts in published.items() if name in chosen} or published
    if published and all(counts != expected for expected in published.values()):
        known = " or ".join(f"{_counted(expected)} ({name})" for name, expected in published.items())
        limited = f", by --limit {options['limit']}" if "limit" in options else ""
        yield f"its counts are not the published ones: here {_counted(counts)} images{limited}; published {known}"


def _counted(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in counts.items())


class _Columns:
    """Growing columns: numbers as C arrays, text in chunks of numpy bytes; no Python object outlives its sample."""

    def __init__(self, spool: Path, in_place: str | None) -> None:
        self.file, self.split, self.class_index = array("i"), array("b"), array("i")
        self.offset, self.size = array("q"), array("q")
        self.shape, self.order, self.exact = array("H"), array("b"), array("b")
        self.spooled = 0
        self.keys, self.files = TextColumn(), TextColumn()
        self.splits: dict[str, int] = {}
        self.classes: dict[str | None, int] = {None: -1}
        self.digest = hashlib.sha256()
        self.in_place = in_place
        self.last_file, self.last_number, self.last_size = str(spool), 0, 0
        self.files.add(self.last_file)

    def add(self, sample: Sample, spool: IO[bytes]) -> None:
        if not isinstance(sample, Sample):
            raise FastadError(f"a converter must yield fastad.manifest.Sample, found {sample!r:.100}")
        if not _KEY.fullmatch(sample.key):
            raise FastadError(f"sample key {sample.key!r}: use 1 to 90 of letters, digits, '_', '-' and '/'")
        pixels = sample.pixels
        if isinstance(pixels, PixelRange):
            self._open(pixels.path)
            size, order = _layout(pixels.shape_hwc, pixels.order)
            if not 0 <= pixels.offset <= self.last_size - size:
                raise FastadError(
                    f"sample {sample.key} is {size:,} bytes at {pixels.offset:,} of {pixels.path}, which has "
                    f"{self.last_size:,}: fetch that file again"
                )
            self._place(self.last_number, pixels.offset, size, pixels.shape_hwc, order)
        elif self.in_place:
            raise FastadError(
                f"{self.in_place} cannot stay in place: sample {sample.key} is not raw pixels in a file; "
                "leave out --in-place"
            )
        elif isinstance(pixels, np.ndarray):
            self._spool(sample.key, pixels, spool)
        elif isinstance(pixels, FileRange):
            self._open(pixels.path)
            self._place(self.last_number, pixels.offset, pixels.size, (0, 0, 0), 0)
        else:
            self._open(pixels)
            self._place(self.last_number, 0, self.last_size, (0, 0, 0), 0)
        self.keys.add(sample.key)
        self.exact.append(sample.exact)
        if sample.class_name not in self.classes:
            self._begin_class(sample)
        self.class_index.append(self.classes[sample.class_name])
        if sample.split not in self.splits:
            self._begin_split(sample)
        self.split.append(self.splits[sample.split])

    def _begin_class(self, sample: Sample) -> None:
        name = sample.class_name
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise FastadError(f"sample {sample.key} is of class {name!r}: a class is a name as text, or None")
        self.classes[name] = len(self.classes) - 1

    def _begin_split(self, sample: Sample) -> None:
        if not _SPLIT.fullmatch(sample.split):
            raise FastadError(f"sample {sample.key} is of split {sample.split!r}: use letters, digits, '_' and '-'")
        self.splits[sample.split] = len(self.splits)

    def _spool(self, key: str, array: np.ndarray, spool: IO[bytes]) -> None:
        pixels = array[..., None] if array.ndim == 2 else array
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or not pixels.size:
            raise FastadError(f"sample {key} is {array.dtype} {array.shape}: images must be uint8 [H, W] or [H, W, C]")
        data = pixels.tobytes()
        spool.write(data)
        self.digest.update(data)
        self._place(0, self.spooled, len(data), pixels.shape, 0)
        self.spooled += len(data)

    def _open(self, path: Path | str) -> None:
        """Makes a file the last one listed; the ranges of one file are expected to come together."""
        # Paths are slow to compare, and keep their text.
        name = str(path)
        if name == self.last_file:
            return
        try:
            found = os.stat(name)  # noqa: PTH116 (twice as fast)
        except OSError as error:
            raise FastadError(f"{path} cannot be read: {error.strerror}") from error
        self.last_file, self.last_number, self.last_size = name, len(self.files), found.st_size
        self.digest.update(repr((name.rpartition("/")[2], found.st_size, found.st_mtime_ns)).encode())
        self.files.add(name if name.startswith("/") else str(Path(name).absolute()))

    def _place(self, file: int, offset: int, size: int, shape: tuple[int, ...], order: int) -> None:
        self.file.append(file)
        self.offset.append(offset)
        self.size.append(size)
        self.shape.extend(shape)
        self.order.append(order)

    def counts(self) -> dict[str, int]:
        """The samples of each split."""
        numbers = np.bincount(np.frombuffer(self.split, dtype=np.int8), minlength=len(self.splits)).tolist()
        return dict(zip(self.splits, numbers, strict=True))

    def finish(self, converter: Converter, notices: tuple[str, ...]) -> Listing:
        keys = self.keys.column()
        if (twice := standing_twice(keys)) is not None:
            raise FastadError(
                f"{converter.name} yields two samples of one key, {twice.decode()}: keys must be unique in a set"
            )
        found = [name for name in self.classes if name is not None]
        classes = converter.classes or tuple(sorted(found))
        if strange := set(found) - set(classes):
            raise FastadError(f"{converter.name} yields class {min(strange)!r}, which is not in its CLASSES")
        # Index −1, "no class", is the last entry.
        place = {name: index for index, name in enumerate(classes)}
        numbers = np.array([*(place[name] for name in found), -1], dtype=np.int32)
        class_index = numbers[np.frombuffer(self.class_index, dtype=np.int32)]
        columns = [np.frombuffer(column, dtype=kind) for column, kind in self._numbers()]
        file, offset, size, shape, split, order, exact = columns
        hashed = [offset, size, shape, split, keys, class_index]
        # Those that say nothing are left out, so that sets of before there were such columns keep their fingerprints.
        hashed += [column for column in (order, exact) if column.any()]
        for column in hashed:
            self.digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        self.digest.update(repr((classes, tuple(self.splits), converter.source)).encode())
        return Listing(
            classes=classes,
            splits=tuple(self.splits),
            files=self.files.column(),
            file=file,
            offset=offset,
            size=size,
            shape=shape.reshape(-1, 3),
            order=order,
            exact=exact,
            class_index=class_index,
            split=split,
            key=keys,
            notices=notices,
            fingerprint=self.digest.hexdigest(),
        )

    def _numbers(self) -> list[tuple[array, str]]:
        return [
            (self.file, "int32"),
            (self.offset, "int64"),
            (self.size, "int64"),
            (self.shape, "uint16"),
            (self.split, "int8"),
            (self.order, "int8"),
            (self.exact, "bool"),
        ]


@functools.cache
def _layout(shape_hwc: tuple[int, int, int], order: str) -> tuple[int, int]:
    """The bytes of raw pixels, and the number of their order."""
    if order not in AXIS_ORDERS or len(shape_hwc) != 3 or min(shape_hwc) < 1:
        raise FastadError(
            f"raw pixels of shape {shape_hwc} in order {order!r}: give [H, W, C] and one of {', '.join(AXIS_ORDERS)}"
        )
    return math.prod(shape_hwc), AXIS_ORDERS.index(order)

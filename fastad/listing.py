"""What a converter yields, as columns: the first stage of a conversion.

Owns finding converters, checking what they yield, and the columns in which 14 million samples fit in memory. Nothing is
decoded here; arrays go into one spool file, so that every sample is a range of some file.
Use: `listing = list_samples(find_converter("digits"), None, {}, partial)`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from fastad.errors import FastadError, unknown
from fastad.files import atomic
from fastad.manifest import FileRange, Sample
from fastad.progress import progress

SPOOL = "spool.bin"

_KEY = re.compile(r"[A-Za-z0-9_\-/]{1,90}")
_CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Converter:
    """A module of `tools/`, or a user's own file: what it yields and what is to be said of it."""

    name: str
    samples: Callable[..., Iterator[Sample]]
    source: str
    licence: str
    classes: tuple[str, ...] | None
    about: str


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
    )


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FastadError(f"no converter file {path}: give the path of an existing .py file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
    `shape` [rows, 3] is not 0, they are uint8 pixels [H, W, C], else an encoded image."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    files: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    shape: np.ndarray
    class_index: np.ndarray
    split: np.ndarray
    key: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.key)


def list_samples(converter: Converter, raw: Path | None, options: Mapping[str, Any], partial: Path) -> Listing:
    """Lists everything that the converter yields, spooling arrays into `partial`.

    The fingerprint covers the order, the keys, the classes, the bytes of arrays, and the size and time of every file.
    """
    samples = yielded(converter, raw, options)
    columns = _Columns(partial / SPOOL)
    with atomic(partial / SPOOL) as spool, progress(f"list {converter.name}", unit="images") as advance:
        for sample in samples:
            columns.add(sample, spool)
            advance()
    if not columns.size:
        raise FastadError(f"{converter.name} found no images in {raw}: check the path")
    return columns.finish(converter)


class _Columns:
    """Growing columns: numbers as C arrays, text in chunks of numpy bytes; no Python object outlives its sample."""

    def __init__(self, spool: Path) -> None:
        self.file, self.split, self.class_index = array("i"), array("b"), array("i")
        self.offset, self.size = array("q"), array("q")
        self.shape = array("H")
        self.spooled = 0
        self.keys, self.files = _Text(), _Text()
        self.splits: dict[str, int] = {}
        self.classes: dict[str | None, int] = {None: -1}
        self.digest = hashlib.sha256()
        self.last_file, self.last_size = spool, 0
        self.files.add(str(spool))

    def add(self, sample: Sample, spool: IO[bytes]) -> None:
        if not _KEY.fullmatch(sample.key):
            raise FastadError(f"sample key {sample.key!r}: use 1 to 90 of letters, digits, '_', '-' and '/'")
        if isinstance(sample.pixels, np.ndarray):
            pixels = sample.pixels[..., None] if sample.pixels.ndim == 2 else sample.pixels
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or not pixels.size:
                found = f"{sample.pixels.dtype} {sample.pixels.shape}"
                raise FastadError(f"sample {sample.key} is {found}: images must be uint8 [H, W] or [H, W, C]")
            data = pixels.tobytes()
            spool.write(data)
            self.digest.update(data)
            self._place(0, self.spooled, len(data), pixels.shape)
            self.spooled += len(data)
        elif isinstance(sample.pixels, FileRange):
            self._open(sample.pixels.path)
            self._place(len(self.files) - 1, sample.pixels.offset, sample.pixels.size, (0, 0, 0))
        else:
            self._open(sample.pixels)
            self._place(len(self.files) - 1, 0, self.last_size, (0, 0, 0))
        self.keys.add(sample.key)
        self.class_index.append(self.classes.setdefault(sample.class_name, len(self.classes) - 1))
        self.split.append(self.splits.setdefault(sample.split, len(self.splits)))

    def _open(self, path: Path) -> None:
        """Makes a file the last one listed; the ranges of one file are expected to come together."""
        if path == self.last_file:
            return
        try:
            found = path.stat()
        except OSError as error:
            raise FastadError(f"{path} cannot be read: {error.strerror}") from error
        self.last_file, self.last_size = path, found.st_size
        self.digest.update(repr((path.name, found.st_size, found.st_mtime_ns)).encode())
        self.files.add(str(path.absolute()))

    def _place(self, file: int, offset: int, size: int, shape: tuple[int, ...]) -> None:
        self.file.append(file)
        self.offset.append(offset)
        self.size.append(size)
        self.shape.extend(shape)

    def finish(self, converter: Converter) -> Listing:
        keys = self.keys.column()
        if len(np.unique(keys)) != len(keys):
            raise FastadError(f"{converter.name} yields two samples of one key: keys must be unique in a set")
        found = [name for name in self.classes if name is not None]
        classes = converter.classes or tuple(sorted(found))
        if strange := set(found) - set(classes):
            raise FastadError(f"{converter.name} yields class {min(strange)!r}, which is not in its CLASSES")
        # Index −1, "no class", is the last entry.
        order = np.array([*(classes.index(name) for name in found), -1], dtype=np.int32)
        class_index = order[np.frombuffer(self.class_index, dtype=np.int32)]
        columns = [np.frombuffer(column, dtype=kind) for column, kind in self._numbers()]
        for column in (*columns[1:], keys, class_index):
            self.digest.update(np.ascontiguousarray(column).tobytes())
        self.digest.update(repr((classes, tuple(self.splits), converter.source)).encode())
        file, offset, size, shape, split = columns
        return Listing(
            classes=classes,
            splits=tuple(self.splits),
            files=self.files.column(),
            file=file,
            offset=offset,
            size=size,
            shape=shape.reshape(-1, 3),
            class_index=class_index,
            split=split,
            key=keys,
            fingerprint=self.digest.hexdigest(),
        )

    def _numbers(self) -> list[tuple[array, str]]:
        return [
            (self.file, "int32"),
            (self.offset, "int64"),
            (self.size, "int64"),
            (self.shape, "uint16"),
            (self.split, "int8"),
        ]


class _Text:
    """A growing column of text as numpy bytes."""

    def __init__(self) -> None:
        self.chunks: list[np.ndarray] = []
        self.recent: list[str] = []

    def __len__(self) -> int:
        return _CHUNK * len(self.chunks) + len(self.recent)

    def add(self, text: str) -> None:
        self.recent.append(text)
        if len(self.recent) == _CHUNK:
            self.chunks.append(np.char.encode(self.recent, "utf-8"))
            self.recent = []

    def column(self) -> np.ndarray:
        rest = [np.char.encode(self.recent, "utf-8")] if self.recent else []
        return np.concatenate([*self.chunks, *rest])

"""Reading CIFAR-10 and CIFAR-100: the python and the binary version, as archives or extracted."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastad.errors import FastadError
from fastad.manifest import Sample
from fastad_tools._pickle import PlainArray, load_plain

IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the two sets. Files of the binary version have the same names with `.bin`.

    `folders` are those in the archives. In a pickle the labels are at `label_key`; in the binary version `label_bytes`
    bytes stand before each image, the last of which is the label.
    """

    name: str
    folders: tuple[str, ...]
    batches: Mapping[str, tuple[str, ...]]
    label_key: str
    label_bytes: int


def cifar_samples(raw: Path, layout: Layout, classes: tuple[str, ...]) -> Iterator[Sample]:
    """The images as uint8 [32, 32, 3], in the order of the batch files."""
    place, files = _archived(raw, layout) if raw.is_file() else _extracted(raw, layout)
    names = [name for batch in layout.batches.values() for name in batch]
    binary = not any(name in files for name in names)
    suffix = ".bin" if binary else ""
    if missing := [name + suffix for name in names if name + suffix not in files]:
        raise FastadError(f"no {', '.join(missing)} in {place}: fetch {layout.name} again")
    for split, batch in layout.batches.items():
        index = 0
        for name in batch:
            path = place / (name + suffix)
            images, labels = (_binary if binary else _pickled)(files.pop(path.name), path, layout)
            if strange := set(labels) - set(range(len(classes))):
                raise FastadError(f"{path} holds label {max(strange)}: labels must be 0 to {len(classes) - 1}")
            for pixels, label in zip(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, strict=True):
                yield Sample(f"{split}-{index:05d}", pixels, classes[label], split)
                index += 1


def _extracted(raw: Path, layout: Layout) -> tuple[Path, dict[str, bytes]]:
    """The folder that holds batch files (the one given or one in it), and their bytes by name."""
    for folder in (raw, *(raw / name for name in layout.folders)):
        if paths := [folder / name for name in _wanted(layout) if (folder / name).is_file()]:
            return folder, {path.name: path.read_bytes() for path in paths}
    raise FastadError(
        f"no batch files of {layout.name} in {raw}: give its tar.gz (python or binary version), "
        f"{' or '.join(layout.folders)}, or the folder that holds that"
    )


def _archived(raw: Path, layout: Layout) -> tuple[Path, dict[str, bytes]]:
    """The bytes of the archive's batch files by name, read in one pass: seeking back would decompress again."""
    files = {}
    try:
        with open(raw, "rb") as packed, gzip.GzipFile(fileobj=packed) as unpacked:
            is_gzip = packed.peek(2)[:2] == b"\x1f\x8b"
            with tarfile.open(fileobj=unpacked if is_gzip else packed, mode="r:") as archive:
                for member in archive:
                    if Path(member.name).name in _wanted(layout) and (opened := archive.extractfile(member)):
                        files[Path(member.name).name] = opened.read()
            # tarfile stops at the end mark; gzip tells whether all before it is sound when it is read to its own end.
            while is_gzip and unpacked.read(2**20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise FastadError(f"{raw} is not a whole tar or tar.gz ({reason}): fetch {layout.name} again") from error
    return raw, files


def _wanted(layout: Layout) -> set[str]:
    return {name + suffix for batch in layout.batches.values() for name in batch for suffix in ("", ".bin")}


def _pickled(data: bytes, path: Path, layout: Layout) -> tuple[np.ndarray, list[int]]:
    batch = load_plain(data, path)
    # Python 2 wrote the originals, so that their keys arrive as bytes.
    pairs = batch.items() if isinstance(batch, dict) else ()
    held = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in pairs}
    images, labels = held.get("data"), held.get(layout.label_key)
    if not isinstance(images, PlainArray) or not isinstance(labels, list) or set(map(type, labels)) - {int}:
        raise FastadError(f"{path} holds no data and {layout.label_key} of {layout.name}: fetch it again")
    if images.values.shape != (len(labels), IMAGE_BYTES):
        raise FastadError(
            f"{path} holds data {images.values.shape} and {len(labels)} labels, not ({len(labels)}, {IMAGE_BYTES}): "
            f"fetch it again"
        )
    return images.values, labels


def _binary(data: bytes, path: Path, layout: Layout) -> tuple[np.ndarray, list[int]]:
    record = layout.label_bytes + IMAGE_BYTES
    if len(data) % record:
        raise FastadError(f"{path} has {len(data):,} bytes, not a multiple of {record}: fetch it again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].tolist()

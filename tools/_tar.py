"""Where the files in a tar lie: its headers are read, its data are not, so that a tar can be used in place.

Reads USTAR, pax and GNU headers (POSIX.1-2017, pax; the GNU tar manual, "Basic Tar Format"). The standard library's
`tarfile` does that at a tenth of the speed, and takes damage between two members for the end of the archive.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from fastad.errors import FastadError
from fastad.manifest import FileRange

BLOCK = 512
_FILE, _NO_DATA = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_LONGEST_EXTENSION = 2**20


def tar_files(tar: Path | FileRange) -> dict[str, FileRange]:
    """Every regular file in a tar, or in a tar inside another, by name, sorted; of two of one name the later counts.

    Raises `FastadError` if the tar is compressed, is damaged or ends too early.
    """
    path = tar if isinstance(tar, Path) else tar.path
    try:
        whole = FileRange(tar, 0, tar.stat().st_size) if isinstance(tar, Path) else tar
        with open(whole.path, "rb", buffering=0) as file:
            return dict(sorted(_files(file.fileno(), whole)))
    except OSError as error:
        raise FastadError(f"{path} cannot be read: {error.strerror}") from error


def _files(descriptor: int, whole: FileRange) -> Iterator[tuple[str, FileRange]]:
    at, end = whole.offset, whole.offset + whole.size
    name, size = None, None  # what an extended header says of the member after it
    while True:
        header = os.pread(descriptor, max(0, min(BLOCK, end - at)), at)
        if at == whole.offset and header[:2] == b"\x1f\x8b":
            raise FastadError(f"{whole.path} is gzipped, and cannot be read in place: gunzip it first")
        if len(header) < BLOCK:
            raise _damaged(whole, "ends before its end mark")
        if not any(header):
            return
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise _damaged(whole, f"has no tar header at byte {at:,}")
        kind = header[156:157]
        length = 0 if kind in _NO_DATA else _number(header[124:136]) if size is None else size
        data = FileRange(whole.path, at + BLOCK, length)
        if length < 0 or (kind in (_LONG_NAME, _PAX) and length > _LONGEST_EXTENSION):
            raise _damaged(whole, f"has a member of impossible size at byte {at:,}")
        if data.offset + length > end:
            raise _damaged(whole, f"ends within the member at byte {at:,}")
        if kind == _PAX:
            records = _pax_records(os.pread(descriptor, length, data.offset), whole)
            name = records.get("path", name)
            size = int(records["size"]) if records.get("size", "").isdecimal() else None
        elif kind == _LONG_NAME:
            name = _text(os.pread(descriptor, length, data.offset))
        elif kind in _FILE or kind in _NO_DATA:
            if kind in _FILE:
                yield (_name(header) if name is None else name).removeprefix("./"), data
            name, size = None, None
        elif kind not in (_LONG_LINK, _PAX_GLOBAL):
            raise _damaged(whole, f"has a member of unknown type {kind!r} at byte {at:,}")
        at = data.offset + -(-length // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    """The name in a header; POSIX splits long ones at a slash, GNU uses the second field otherwise."""
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _number(field: bytes) -> int:
    """Octal digits, or (GNU) a big-endian number whose first bit is set; −1 if it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if digits.isdigit() and b"8" not in digits and b"9" not in digits else -1


def _pax_records(data: bytes, whole: FileRange) -> dict[str, str]:
    """The records `<length> <keyword>=<value>\\n`, the length counting all of it."""
    records, rest = {}, data
    while rest:
        digits, _, _ = rest.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(rest):
            raise _damaged(whole, "has an unreadable pax header")
        keyword, _, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        records[keyword.decode(errors="replace")] = value.decode(errors="surrogateescape")
        rest = rest[length:]
    return records


def _damaged(tar: FileRange, what: str) -> FastadError:
    return FastadError(f"{tar.path} is not a whole tar: it {what}; fetch it again, or remove it from the folder")

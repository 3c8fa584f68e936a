"""The bytes of a shard: USTAR members, npy headers and DALI indices.

Owns the formats; which samples stand in a shard is `fastad.shard`'s.
Use: `tar.writelines(member("train-0001.npy", npy_bytes(pixels)))`.
"""

import functools
import struct
from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 512
END = bytes(2 * BLOCK)
NPY_HEADER_BYTES = 128

_INDEX_LINES = 100_000

_HEADER = struct.pack(
    "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s167x",
    *(b"", b"0000644", b"0000000", b"0000000", b"00000000000", b"00000000000"),
    *(b" " * 8, b"0", b"", b"ustar\0", b"00", b"", b"", b"0000000", b"0000000"),
)


# The checksum is summed with its own field as spaces.
_BLANK_SUM = sum(_HEADER)


def member(name: str, data: bytes) -> tuple[bytes, ...]:
    """One USTAR member with zeroed metadata: header block, data, padding to whole blocks (POSIX.1-2017, pax, ustar)."""
    encoded, size = name.encode(), b"%011o" % len(data)
    checksum = _BLANK_SUM + sum(encoded) + sum(size) - sum(_HEADER[124:135])
    header = b"".join(
        (
            *(encoded, bytes(100 - len(encoded)), _HEADER[100:124], size, _HEADER[135:148]),
            *(b"%06o\0" % checksum, _HEADER[155:]),
        )
    )
    return header, data, bytes(-len(data) % BLOCK)


def members(names: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The same for many members of one size: names bytes [n], data uint8 [n, size] → uint8 [n, bytes of each]."""
    count, size = data.shape
    found = np.zeros((count, BLOCK + size + -size % BLOCK), dtype=np.uint8)
    header = found[:, :BLOCK]
    header[:] = np.frombuffer(_HEADER, dtype=np.uint8)
    header[:, :100] = _characters(names.astype("S100"))
    header[:, 124:135] = np.frombuffer(b"%011o" % size, dtype=np.uint8)
    checksums = header.sum(axis=1, dtype=np.int64)
    header[:, 148:154] = (checksums[:, None] >> np.arange(15, -1, -3) & 7) + ord("0")
    header[:, 154] = 0
    found[:, BLOCK : BLOCK + size] = data
    return found


def text_members(names: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Members that hold short texts: names and texts bytes [n] → uint8 [n, 1024]."""
    found = np.empty((len(names), 2 * BLOCK), dtype=np.uint8)
    lengths = np.char.str_len(texts)
    for length in np.unique(lengths):
        same = lengths == length
        found[same] = members(names[same], _characters(texts[same].astype(f"S{length}")))
    return found


def _characters(texts: np.ndarray) -> np.ndarray:
    """Bytes [n] → uint8 [n, characters]."""
    return texts.view(np.uint8).reshape(len(texts), -1)


def npy_bytes(pixels: np.ndarray) -> bytes:
    """An npy file of uint8 pixels [H, W, C]: a header of 128 bytes, then the pixels."""
    return _npy_header(pixels.shape) + pixels.tobytes()


def npy_rows(pixels: np.ndarray) -> np.ndarray:
    """The same for many images of one shape: [n, H, W, C] → uint8 [n, bytes of each file]."""
    header = np.frombuffer(_npy_header(pixels.shape[1:]), dtype=np.uint8)
    count = len(pixels)
    return np.concatenate([np.broadcast_to(header, (count, len(header))), pixels.reshape(count, -1)], axis=1)


@functools.cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(map(int, shape))}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", NPY_HEADER_BYTES - 10)
        + fields.ljust(NPY_HEADER_BYTES - 11).encode()
        + b"\n"
    )


def index_text(extension: Sequence[bytes] | np.ndarray, offset: np.ndarray, size: np.ndarray) -> str:
    """A DALI webdataset index (v1.1) with one component, the image, a line: enough for `fn.readers.webdataset`."""
    return "".join(index_parts(extension, offset, size))


def index_parts(extension: Sequence[bytes] | np.ndarray, offset: np.ndarray, size: np.ndarray) -> Iterator[str]:
    """An index in parts of some megabytes: that of 79 million images is not to be held as one text."""
    yield f"v1.1 {len(offset)}\n"
    for start in range(0, len(offset), _INDEX_LINES):
        part = slice(start, start + _INDEX_LINES)
        columns = zip(extension[part], offset[part].tolist(), size[part].tolist(), strict=True)
        yield "".join([f"{suffix.decode()} {at} {length}\n" for suffix, at, length in columns])

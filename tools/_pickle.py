"""Opening pickles from the web that hold plain data and uint8 arrays, without running anything they ask for.

A pickle is a program: it names callables and has them called. Here it can name only what an array needs, and gets
stand-ins of this module even for those, so that not numpy's but this module's code reads the array's bytes. Bound
methods are handed out because a pickle cannot set attributes on them.
Use: `batch = load_plain(path.read_bytes(), path)`.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fastad.errors import FastadError


def load_plain(data: bytes, path: Path) -> Any:
    """What the pickle holds: dicts, lists, numbers, str, bytes (also for Python 2's str) and `PlainArray`s.

    `path` is for messages. Raises `FastadError` if the pickle asks for anything else, or if it is damaged.
    """
    try:
        return _Unpickler(data, path).load()
    except FastadError:
        raise
    except Exception as error:  # a damaged pickle may raise anything, as Python's documentation warns
        raise FastadError(f"{path} is not a whole pickle of uint8 data ({error}): fetch it again") from error


class PlainArray:
    """A pickled uint8 array; its `values` are empty until the pickle sets its state."""

    def __init__(self) -> None:
        self.values = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _version, shape, _dtype, fortran_order, data = state
        if fortran_order:
            raise pickle.UnpicklingError("an array in Fortran order")
        self.values = np.frombuffer(data, dtype=np.uint8).reshape(shape)


class _Uint8:
    """Stands in for the array's dtype, whose state (byte order, alignment) says nothing about bytes."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return self._array
            case "numpy", "ndarray":
                return None  # only ever an argument of _reconstruct
            case "numpy", "dtype":
                return self._dtype
            case "_codecs", "encode":
                return self._encode
        raise FastadError(
            f"{self._path} would run code: it asks for {module}.{name}, which no data file needs; "
            f"do not open it elsewhere, and fetch it again from its publisher"
        )

    def _array(self, *_: object) -> PlainArray:
        return PlainArray()

    def _dtype(self, kind: str | bytes, *_: object) -> _Uint8:
        if kind not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {kind!r}")
        return _Uint8()

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in pickles of protocol 2."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes as {encoding!r}")
        return text.encode("latin1")

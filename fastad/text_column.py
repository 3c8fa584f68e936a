"""Columns of text for millions of samples: how they grow, and what stands in one twice.

Owns their memory, numpy bytes from the first chunk on; which texts they hold is `fastad.listing`'s.
Use: `keys = TextColumn(); keys.add("train/1"); standing_twice(keys.column())`.
"""

import numpy as np

_CHUNK = 100_000


class TextColumn:
    """A growing column of text as numpy bytes."""

    def __init__(self) -> None:
        self.chunks: list[np.ndarray] = []
        self.recent: list[str] = []

    def __len__(self) -> int:
        return _CHUNK * len(self.chunks) + len(self.recent)

    def add(self, text: str) -> None:
        self.recent.append(text)
        if len(self.recent) == _CHUNK:
            self._encode()

    def _encode(self) -> None:
        self.chunks.append(np.array([text.encode() for text in self.recent]))
        self.recent = []

    def column(self) -> np.ndarray:
        """The whole column; the chunks are given up one by one, so that it is never held twice."""
        length = len(self)
        if self.recent:
            self._encode()
        column = np.empty(length, dtype=max(chunk.dtype for chunk in self.chunks))
        self.chunks.reverse()
        start = 0
        while self.chunks:
            chunk = self.chunks.pop()
            column[start : start + len(chunk)] = chunk
            start += len(chunk)
        return column


def standing_twice(keys: np.ndarray) -> bytes | None:
    """A key that is not unique, if there is one; takes 9 bytes of memory a key, where sorting the keys takes many."""
    parts = [slice(start, start + _CHUNK) for start in range(0, len(keys), _CHUNK)]
    hashes = np.empty(len(keys), dtype=np.uint64)
    for part in parts:
        hashes[part] = _hashes(keys[part])
    hashes.sort()
    shared = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(shared):
        return None
    # Different keys may share a hash.
    alike = np.concatenate([keys[part][np.isin(_hashes(keys[part]), shared)] for part in parts])
    found, counts = np.unique(alike, return_counts=True)
    return bytes(found[counts > 1][0]) if (counts > 1).any() else None


def _hashes(keys: np.ndarray) -> np.ndarray:
    """64-bit hashes of keys, word by word, each step one of splitmix64's (Steele, Lea and Flood 2014)."""
    words = -(-keys.dtype.itemsize // 8)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    for word in keys.astype(f"S{8 * words}").view(np.uint64).reshape(-1, words).T:
        hashes = (hashes ^ word) * np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(31)
    return hashes

"""Columns of text: they give back what was added, in chunks, and their hashes tell like keys apart."""

import numpy as np
import pytest

from fastad import text_column
from fastad.text_column import TextColumn, standing_twice


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_column_is_what_was_added_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_column, "_CHUNK", chunk)
    texts = ["a", "longer", "ä", "", "b/c", "a"]
    column = TextColumn()
    for text in texts:
        column.add(text)
    assert len(column) == len(texts)
    found = column.column()
    assert found.tolist() == [text.encode() for text in texts]
    assert standing_twice(found) == b"a"
    assert standing_twice(found[1:]) is None


def test_hashes_of_many_like_keys_differ() -> None:
    keys = np.array([f"n{index // 1000:08d}/n{index // 1000:08d}_{index % 1000}" for index in range(200_000)], "S")
    assert len(np.unique(text_column._hashes(keys))) == len(keys)

"""A final name always holds a whole file."""

import errno
import os
import threading
from pathlib import Path

import pytest

from fastad.errors import FastadError
from fastad.files import alone, atomic, sha256, syncing_early, write_text


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FastadError, match=r"cannot write .*lost\.txt: No space left on device; free some space"):
        write_text(tmp_path / "lost.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_the_digest_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "abc", "abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_long_file_is_synced_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    pieces = [bytes([number]) * (6 * 2**20) for number in range(8)]
    with atomic(tmp_path / "long") as file, syncing_early(file) as written:
        for piece in pieces:
            file.write(piece)
            written()
    # The first three pieces, at least, and later ones as the disk is free for them.
    assert 18 * 2**20 <= synced[0] <= 48 * 2**20
    assert len(synced) <= 2
    assert (tmp_path / "long").read_bytes() == b"".join(pieces)


def test_an_error_of_an_early_sync_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with (
        pytest.raises(FastadError, match="No space left on device; free some space"),
        atomic(tmp_path / "long") as file,
        syncing_early(file) as written,
    ):
        file.write(bytes(17 * 2**20))
        written()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_says_so_and_comes_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        waits.set()
        with alone(tmp_path / "lock", "waiting for the first"):
            order.append("second")

    with alone(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        waits.wait()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for the first" in capsys.readouterr().err


def test_nothing_is_held_where_the_folder_is_gone(tmp_path: Path) -> None:
    with alone(tmp_path / "gone" / "lock"):
        assert not (tmp_path / "gone").exists()

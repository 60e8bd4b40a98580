"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import durable


def test_replace_puts_the_whole_document_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    durable.replace_file(path, b"one")
    durable.replace_file(path, b"two", durable=False)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_create_refuses_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "d"
    durable.create_file(path, b"one")
    with pytest.raises(FileExistsError):
        durable.create_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("whole", [True, False])
def test_a_document_takes_the_place_of_another_only_once_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    path = tmp_path / "d"
    durable.replace_file(path, b"one")

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace_file(path, b"two", durable=whole)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_with_their_parents_which_shut_nobody_out(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a/b/c")
    durable.make_folder(tmp_path / "a/b/c")
    modes = [(tmp_path / folder).stat().st_mode & 0o777 for folder in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o700]


def test_write_all_writes_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    buffers = [bytes([i % 256]) * (i % 7) for i in range(3000)]
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        durable.write_all(fd, buffers, 5)
    finally:
        os.close(fd)
    assert (tmp_path / "f").read_bytes() == bytes(5) + b"".join(buffers)


@pytest.mark.parametrize("put", [durable.replace_file, durable.create_file])
def test_an_error_names_the_document_in_the_same_words_with_each_try(
    tmp_path: Path, put: Callable[[Path, bytes], None]
) -> None:
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "no folder" / "d"):
        said = set()
        for _ in range(3):
            with pytest.raises(OSError, match="Errno") as caught:
                put(path, b"one")
            said.add(str(caught.value))
        assert said == {f"[Errno {caught.value.errno}] {caught.value.strerror}: '{path}'"}

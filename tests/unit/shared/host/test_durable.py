"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.host import durable


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


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077])
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("any_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_modes_are_those_that_were_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    durable.replace_file(tmp_path / "a", b"", mode=mode)
    durable.create_file(tmp_path / "b", b"", mode=mode)
    durable.make_folder(tmp_path / "c/d", 0o700)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "c", "c/d")]
    assert modes == [mode, mode, 0o755, 0o700]


def no_links(*_args: object, **_kwargs: object) -> None:
    """As on vfat and exfat."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


def no_nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""
    opened = os.open

    def open_(path: Path, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("nameless", [True, False])
def test_create_puts_the_whole_document_on_every_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool, links: bool
) -> None:
    if not nameless:
        no_nameless(monkeypatch)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "d"
    durable.create_file(path, b"one", mode=0o640)
    with pytest.raises(FileExistsError):
        durable.create_file(path, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_where_there_are_no_links_is_gone_and_what_was_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    there = tmp_path / "there"
    there.write_bytes(b"somebody's")
    opened = os.open

    def open_(path: Path, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opened(path, flags, *args, **kwargs)

    with monkeypatch.context() as few:
        few.setattr(os, "open", open_)
        with pytest.raises(OSError, match="Too many"):
            durable.create_file(there, b"two")
    assert there.read_bytes() == b"somebody's"

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.create_file(tmp_path / "d", b"one")
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize("call", ["link", "fsync", "unlink", "close"])
def test_who_is_killed_while_a_document_is_made_leaves_it_whole_or_nothing_and_no_second_copy(
    tmp_path: Path, call: str
) -> None:
    """Before and after each call of the system, the first time, the second and the third."""
    for at in range(6):
        path = tmp_path / f"d{at}"
        child = os.fork()
        if not child:
            try:
                die_at(call, at)
                durable.create_file(path, b"secret")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not path.exists() or path.read_bytes() == b"secret"
    assert {entry.name for entry in tmp_path.iterdir()} <= {f"d{at}" for at in range(6)}


def die_at(call: str, at: int) -> None:
    done = 0
    real = getattr(os, call)

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal done
        for moment in (0, 1):
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            if moment == 0:
                result = real(*args, **kwargs)
        return result

    setattr(os, call, dying)


def test_what_was_written_in_part_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"on")
    path.chmod(0o600)
    durable.complete_file(path, b"one")
    durable.complete_file(path, b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(FileExistsError):
        durable.complete_file(path, b"two")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        durable.complete_file(tmp_path / "link", b"two")


@pytest.mark.parametrize("whose", ["another user's", "a second name's", "everybody's to open", "a pipe's"])
def test_what_others_may_have_opened_is_not_completed(tmp_path: Path, whose: str) -> None:
    """Whoever has it open reads what is written into it, whatever its mode is then."""
    path = tmp_path / "d"
    path.write_bytes(b"")
    path.chmod(0o600)
    match whose:
        case "another user's":
            if os.geteuid():
                pytest.skip("only root gives files away")
            os.chown(path, 4711, 4712)
        case "a second name's":
            (tmp_path / "other").hardlink_to(path)
        case "everybody's to open":
            path.chmod(0o644)
        case _:
            path.unlink()
            os.mkfifo(path)
    before = path.stat().st_mode
    with pytest.raises(PermissionError):
        durable.complete_file(path, b"one")
    assert (path.stat().st_mode, path.is_fifo() or path.read_bytes()) == (
        before,
        b"" if whose != "a pipe's" else True,
    )


def test_where_all_is_everybody_s_a_document_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stick, whose file system keeps no modes."""
    path = tmp_path / "d"
    path.write_bytes(b"on")
    path.chmod(0o755)
    monkeypatch.setattr(os, "fchmod", lambda _fd, _mode: None)
    durable.complete_file(path, b"one")
    assert path.read_bytes() == b"one"


def test_leftovers_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    ours = [tmp_path / f".d.json.{number:012x}" for number in range(3)]
    for file, content in zip(ours, (b"", b"on", b"one"), strict=True):
        file.write_bytes(content)
    for name in (".d.json.0123456789a", ".d.json.0123456789abc", ".dxjson.0123456789ab", ".d.json.x"):
        (tmp_path / name).write_bytes(b"one")
    (tmp_path / ".d.json.bbbbbbbbbbbb").write_bytes(b"somebody's")
    (tmp_path / ".d.json.cccccccccccc").symlink_to(ours[2])
    assert durable.leftovers(path, b"one") == ours
    os.mkfifo(tmp_path / ".d.json.dddddddddddd")
    assert durable.leftovers(path, None) == [*ours, tmp_path / ".d.json.bbbbbbbbbbbb"]
    if not os.geteuid():
        os.chown(ours[0], 4711, 4712)
        assert durable.leftovers(path, b"one") == ours[1:]

"""What the kernel lists while others make and remove what is listed, and what libbpf says of a failure."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.capture import libbpf
from shared.errors import BpfError


def listed(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Of objects 1 and 2, where the descriptor of the first is refused with this errno."""

    def next_id(current: Any, into: Any) -> int:
        if current.value == 2:
            ctypes.set_errno(errno.ENOENT)
            return -1
        into._obj.value += 1
        return 0

    def get_fd(current: Any) -> int:
        if current.value == 1:
            ctypes.set_errno(number)
            return -1
        return os.open("/dev/null", os.O_RDONLY)

    def error(what: str) -> BpfError:
        return BpfError(what, cause=os.strerror(ctypes.get_errno()), number=ctypes.get_errno())

    lib: Any = SimpleNamespace(c=SimpleNamespace(next_id=next_id, get_fd=get_fd), error=error)
    monkeypatch.setattr(libbpf, "_library", lambda: lib)
    return [1 for _ in libbpf._every("next_id", "get_fd", lambda fd: fd)]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EAGAIN])
def test_what_others_make_or_remove_meanwhile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert listed(monkeypatch, number) == [1]


def test_a_list_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BpfError, match="could not be listed"):
        listed(monkeypatch, errno.EPERM)


def test_why_an_object_is_refused_is_told_whatever_another_thread_calls_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Disks are tried out in a thread, while the event loop asks maps all the time."""
    lib = libbpf._library()
    error = lib.error

    def another_calls() -> None:
        assert lib.call("libbpf_major_version", "") >= 1

    def later(what: str) -> BpfError:
        other = threading.Thread(target=another_calls)
        other.start()
        other.join()
        return error(what)

    monkeypatch.setattr(lib, "error", later)
    path = tmp_path / "no.o"
    path.write_text("no object file")
    with pytest.raises(BpfError) as caught:
        libbpf.BpfObject(path)
    assert str(path) in caught.value.cause

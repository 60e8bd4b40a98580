"""The locks of an agent: one agent, or one detach, at a time. Two agents on one capture would both free the ring.

The capture is what must not have two of them, so one lock is beside it: a folder next to pin_dir, in the same file system, whoever names it
from whatever configuration. The other is in state_dir, for the files there.

**Held by a thread that has file descriptors of its own.** A process that was killed is not over while one of its threads waits for a hung
disk, which no signal ends; the descriptors of the process stay open as long, and so would the locks: no agent could start until the disk
answers or the host restarts. A descriptor in another table (`unshare`) is closed when the last thread that uses *that* table ends, and ours
waits for nothing that a SIGKILL does not end. What the dead process still has open of the capture does no harm: nobody runs in it.

**Under numbers that no file of the process has.** Python collects garbage in whichever thread comes along: a forgotten file of the process
whose turn it is in this thread is closed by its number, in the table of this thread. So a lock stands under a number that is taken in the
process's table meanwhile, by /dev/null; no object of the process ever has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.capture import pins
from shared.daemon.threads import start
from shared.errors import AgentRunningError
from shared.host import durable

NAME: Final = "agent.lock"
_LOCKS: Final = Path("/proc/locks")
_CLONE_FILES: Final = 0x400
_STDERR: Final = 2


def beside(pin_dir: Path) -> Path:
    """The folder that is locked for a capture. It is there while an agent runs, and after one was killed."""
    return pin_dir.with_name(f"{pin_dir.name}-agent")


@contextlib.contextmanager
def held(state_dir: Path | None, what: str, pin_dir: Path | None = None) -> Iterator[None]:
    """Both locks, or one of them. Raises AgentRunningError, which begins with `what`, when somebody else holds one, and
    NoThreadError."""
    taken: Future[None] = Future()
    over = threading.Event()
    with contextlib.ExitStack() as undo:
        with durable.named("The agent's lock could not be made"):
            if state_dir is not None:
                state_dir.mkdir(parents=True, exist_ok=True)
            file = _Place(state_dir / NAME, _number(undo)) if state_dir is not None else None
            folder = _Place(beside(pin_dir), _number(undo)) if pin_dir is not None else None
        arguments = (file, folder, what, taken, over)
        holding = threading.Thread(target=_hold, args=arguments, name="lock", daemon=True)
        try:
            with durable.named("The agent's lock could not be made"):
                start(holding)
                taken.result()
            yield
        finally:
            over.set()
            # Who is interrupted while it is taken, on a disk that hangs, does not wait: the thread lets go of it by itself.
            if taken.done():
                holding.join()


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    number: int
    """Of its descriptor, in the thread."""


def _number(undo: contextlib.ExitStack) -> int:
    number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, number)
    return number


def _hold(
    file: _Place | None, folder: _Place | None, what: str, taken: Future[None], over: threading.Event
) -> None:
    """In the thread: takes them and keeps them until it is over."""
    with contextlib.ExitStack() as undo:
        try:
            _take_own_descriptors()
            if file is not None:
                # To read, since that is enough: an agent that ran here before starts again on a disk that the kernel made read-only.
                undo.callback(os.close, _lock(file, what, os.O_RDONLY | os.O_CREAT))
            if folder is not None:
                undo.callback(os.close, _lock_folder(folder, what))
                # While it is locked: whoever has it open by then sees that it is another's.
                undo.callback(_remove, folder.path)
        except BaseException as exc:  # noqa: BLE001 - whoever wants the lock gets it
            taken.set_exception(exc)
            return
        taken.set_result(None)
        over.wait()


def _take_own_descriptors() -> None:
    """From here on this thread's descriptors are no other thread's. It keeps none but those on which errors are told."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FILES) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.closerange(_STDERR + 1, os.sysconf("SC_OPEN_MAX"))


def _lock_folder(folder: _Place, what: str) -> int:
    while True:
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            fd = _lock(folder, what, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its last holder removed it just now
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), folder.path.stat()):
                return fd
        os.close(fd)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
    pins.remove_empty(folder.parent)


def _lock(place: _Place, what: str, flags: int) -> int:
    fd = _open(place, flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        status = os.fstat(fd)
        # Which device a file is on looks different there on some file systems; bpffs numbers its folders from 1.
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        pid = holder(status.st_ino, device=device if flags & os.O_DIRECTORY else "")
        os.close(fd)
        if exc.errno != errno.EWOULDBLOCK:
            raise
        process = f" (process {pid})" if pid else ""
        raise AgentRunningError(what, cause=f"an agent runs{process}: it holds {place.path}") from exc
    return fd


def _open(place: _Place, flags: int) -> int:
    """Should a collection close the number that it has for a moment, this fails, and nothing is locked."""
    fd = os.open(place.path, flags | os.O_CLOEXEC, 0o600)
    if fd != place.number:
        os.dup2(fd, place.number, inheritable=False)
        os.close(fd)
    return place.number


def holder(inode: int, locks: Path = _LOCKS, *, device: str = "") -> int:
    """The process that holds a flock on the file (of this device, if given), as the kernel lists it; 0 if that is not to be seen."""
    with contextlib.suppress(OSError, ValueError):
        for line in locks.read_text().splitlines():
            fields = line.split()
            # number: FLOCK ADVISORY WRITE pid major:minor:inode begin end
            if "FLOCK" not in fields or "->" in fields:
                continue
            where, _, number = fields[5].rpartition(":")
            if number == str(inode) and device in ("", where):
                return int(fields[4])
    return 0

"""Where log lines go, and what becomes of those that cannot be written: they are counted, never more than that.

A daemon's stderr is somebody else's: a full disk, a pipe whose reader has gone or does not read, a journal that restarts. None of
that may end the daemon or make it wait, for its work is the data. So the sink writes straight to the descriptor (a stream's buffer
would keep what failed and fail again with it, even at exit), in pieces that a pipe or socket takes at once, and only while the kernel says
that there is room. When it works again, `on_recovery` is called once with what was lost.

Nor may a line wait for another one. The garbage collector may run within any of these statements, and what it ends may have something to
say (a connection that nobody closed, a task whose error nobody heard): that is a line within a line, by the same thread. And such a line
comes through a lock of the standard library's, which another thread may hold that waits here. So a line is put into a queue, and whoever
can have the lock writes what is in it; who cannot leaves its line to him who has it, and he looks once more behind his release.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

LIMIT: Final = "UNDERSTUDY_LOG_LIMIT_B"
"""Environment variable: a log that is a file, and that nobody else rotates (a lab's), is renamed to FILE.1 when it has so many bytes."""
_PIECE_B: Final = select.PIPE_BUF
"""A pipe that is writable takes so much without blocking."""
_PATIENCE_MS: Final = 100
"""How long a reader that is merely slow is waited for. One that failed the last line gets no time."""


class Sink:
    """A text stream that never raises and never blocks for long. Any thread may write; each write is one line.

    `stream` None: there is no stderr at all. Streams without a descriptor (in tests) are written to as they are.
    """

    def __init__(self, stream: TextIO | None, on_recovery: Callable[[int, str], None] | None = None) -> None:
        self._stream = stream
        self._fd = _descriptor(stream)
        self._limit_b = int(os.environ.get(LIMIT, "0"))
        self._on_recovery = on_recovery
        self._lock = threading.Lock()
        """Never waited for where something may be collected."""
        self._waiting: deque[str] = deque()
        self._lines = 0
        self._lost = 0
        self._cause = ""
        self._torn = False

    @property
    def trouble(self) -> str:
        """For a status line; empty while lines are written."""
        lost, cause = self._lost, self._cause
        return f"{lost} log lines lost ({cause})" if lost else ""

    @property
    def cause(self) -> str:
        """Why lines are lost; empty while they are written."""
        return self._cause if self._lost else ""

    def try_again(self) -> None:
        """If lines were lost and there is room by now, tell so: else that would wait for the next thing that happens."""
        if not self._lost or self._on_recovery is None or not self._lock.acquire(blocking=False):
            return
        try:
            if self._fd is not None and not self._has_room(self._fd):
                return
            lost, cause, before = self._lost, self._cause, self._lines
            self._lost = 0
        finally:
            self._lock.release()
            self._drain()
        self._on_recovery(lost, cause)
        with self._lock:  # nothing is collected by counting
            if self._lost:  # not yet: the line that should have told it does not count
                self._lost += lost - 1
            elif self._lines == before:  # it is below the level that is written
                self._lost = lost
        self._drain()

    def isatty(self) -> bool:
        return self._fd is not None and os.isatty(self._fd)

    def write(self, text: str) -> int:
        self._lines += 1
        self._waiting.append(text)
        self._drain()
        return len(text)

    def _drain(self) -> None:
        while self._waiting and self._lock.acquire(blocking=False):
            lost = 0
            try:
                while self._waiting and not lost:
                    cause = self._put(self._waiting.popleft().encode(errors="backslashreplace"))
                    if cause:
                        self._lost, self._cause = self._lost + 1, cause
                    else:
                        lost, self._lost = self._lost, 0
            finally:
                self._lock.release()
            if lost and self._on_recovery is not None:
                self._on_recovery(lost, self._cause)

    def flush(self) -> None:
        """Nothing is kept back."""

    def _put(self, data: bytes) -> str:
        """Why it could not be written, or nothing."""
        try:
            if self._fd is None:
                if self._stream is None:
                    return "there is no stderr"
                self._stream.write(data.decode())
                self._stream.flush()
                return ""
            if self._limit_b:
                self._rotate(self._fd, self._limit_b)
            rest = memoryview(b"\n" + data if self._torn else data)
            while rest:
                if not self._has_room(self._fd):
                    return "nobody reads them"
                written = os.write(self._fd, rest[:_PIECE_B])
                rest = rest[written:]
                self._torn = len(rest) > 0
        except (OSError, ValueError) as exc:  # ValueError: the stream was closed
            return getattr(exc, "strerror", None) or str(exc)
        return ""

    def _rotate(self, fd: int, limit_b: int) -> None:
        """The descriptor keeps its number, so that what others write to stderr goes to the new file, too."""
        with contextlib.suppress(OSError):  # a log that grows is better than none
            status = os.fstat(fd)
            path = Path(f"/proc/self/fd/{fd}").readlink()
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_size < limit_b
                or not path.samefile(f"/proc/self/fd/{fd}")
            ):
                return
            # What can fail comes first: else the descriptor follows a file that has another name, and the next line renames it again.
            new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".1")
            fresh = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                path.rename(old)
                try:
                    new.rename(path)
                except OSError:
                    old.rename(path)
                    raise
                os.dup2(fresh, fd)
            finally:
                os.close(fresh)

    def _has_room(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A reader that has gone shows as an error: the write tells which.
        return bool(poll.poll(0 if self._lost else _PATIENCE_MS))


def _descriptor(stream: TextIO | None) -> int | None:
    if stream is not None:
        with contextlib.suppress(AttributeError, OSError, ValueError, io.UnsupportedOperation):
            return stream.fileno()
    return None


def fill_standard_descriptors() -> None:
    """Open 0, 1 and 2 where the parent left them closed: the next file that is opened would get their numbers, and the log lines.
    Python has no stream for these: they get one that leads nowhere."""
    for wanted, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(wanted)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end

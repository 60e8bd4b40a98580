"""Daemons that outlive the command that started them.

A daemon is known by its command line, which names its lab's own files: the process table is the only record, so none can be stale,
lost in a crash between start and note, or unwritable on a full disk. Signals go through a pidfd that is checked after it was opened,
so not even a pid that is recycled at this moment can be hit. A zombie has no command line: it counts as gone, for nobody may be
there to reap it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def spawn(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, its output appended to `log`. `find` finds it from then on."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv,
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )
    # The kernel reports the exec as done a moment before the new command line is there.
    while not _command_line(child.pid) and child.poll() is None:
        time.sleep(0.001)
    return child


def find(arguments: Sequence[str]) -> int | None:
    """The pid of a running process with exactly these arguments, whatever its program is called."""
    wanted = _joined(arguments)
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and _arguments(int(folder.name)) == wanted:
            return int(folder.name)
    return None


def name_of(pid: int) -> str:
    """As the process table shows it; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text().rstrip("\n")
    except OSError:
        return ""


def send(pid: int, arguments: Sequence[str], number: signal.Signals, timeout_s: float) -> bool:
    """Signal the process that `find` found, and wait until it is gone; False when it is still there after `timeout_s`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if _arguments(pid) != _joined(arguments):
            return True  # the pid is somebody else's by now
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def _joined(arguments: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)


def _arguments(pid: int) -> bytes:
    """All but the program's name."""
    return _command_line(pid).partition(b"\0")[2]


def _command_line(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""

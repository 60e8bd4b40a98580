"""Daemons that outlive the command that started them.

A daemon is known by its pid, its start time (from /proc) and the boot: a pid that the kernel gave to
somebody else since is never taken for it. Signals go through a pidfd that is checked after it was opened, so
not even a pid that is recycled at this moment can be hit. A zombie counts as gone: nobody may be there to
reap it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from shared import durable
from shared.errors import UNDECODABLE

_PROC: Final = Path("/proc")


class Process(msgspec.Struct, frozen=True):
    """A running process, for as long as it lives."""

    pid: int
    start_ticks: int
    boot: str

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and _start_ticks(self.pid) == self.start_ticks


def spawn(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, its output appended to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )


def remember(pid_file: Path, pid: int) -> None:
    """Note a process that was just started; it must be our child, so that the pid is still its own."""
    ticks = _start_ticks(pid)
    process = Process(pid, ticks if ticks is not None else -1, _boot())
    durable.replace_file(pid_file, msgspec.json.encode(process), mode=0o600, durable=False)


def recall(pid_file: Path) -> Process | None:
    """The process that was noted there, when it is still running."""
    try:
        process = msgspec.json.decode(pid_file.read_bytes(), type=Process)
    except (OSError, *UNDECODABLE):
        return None
    return process if process.alive else None


def send(process: Process, number: signal.Signals, timeout_s: float) -> bool:
    """Signal the process and wait until it is gone; False when it is still there after `timeout_s`."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.alive:
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def command_of(pid: int) -> str:
    """Its command line, for people; empty when it is gone."""
    try:
        return (
            (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
    except OSError:
        return ""


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None for a process that is gone or a zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, also parentheses and spaces.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in ("Z", "X", "x") else int(fields[18])

"""The lock of a state_dir: one agent, or one detach, at a time. Two agents on one capture would both free the ring."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared import durable
from shared.errors import AgentRunningError

NAME: Final = "agent.lock"
_LOCKS: Final = Path("/proc/locks")


@contextlib.contextmanager
def held(state_dir: Path, what: str) -> Iterator[None]:
    """Raises AgentRunningError, which begins with `what`, when somebody else holds it."""
    path = state_dir / NAME
    with durable.named("The agent's lock could not be made"):
        state_dir.mkdir(parents=True, exist_ok=True)
        # To read, since that is enough for a lock: an agent that ran here before starts again on a disk that the kernel made read-only.
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                raise
            raise AgentRunningError(what, cause=_who(fd, path)) from exc
        yield
    finally:
        os.close(fd)


def _who(fd: int, path: Path) -> str:
    pid = holder(os.fstat(fd).st_ino)
    return f"an agent runs (process {pid}): it holds {path}" if pid else f"an agent runs: it holds {path}"


def holder(inode: int, locks: Path = _LOCKS) -> int:
    """The process that holds a flock on the file, as the kernel lists it; 0 if that is not to be seen."""
    with contextlib.suppress(OSError, ValueError):
        for line in locks.read_text().splitlines():
            fields = line.split()
            # number: FLOCK ADVISORY WRITE pid major:minor:inode begin end
            if "FLOCK" in fields and "->" not in fields and fields[5].rpartition(":")[2] == str(inode):
                return int(fields[4])
    return 0

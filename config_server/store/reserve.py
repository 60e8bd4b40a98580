"""Room on the disk that is kept for what must be recorded also when the disk is full: a revocation.

A file of random bytes (zeroes take no room on a file system that compresses) beside the database. Who must write and finds no room has it
given up, writes, and takes again what is left of it: so it serves several times, and what may wait, such as reports, never gets it. A log
that grows on the same disk can win the race for what was given up; then the write fails, and says so.

Storage is the second place for revocations (revoking.py). It may be away on the same day.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from shared.daemon import logging
from shared.errors import cause_of

_log = logging.get()

FILE: Final = "reserve"
"""In the data folder."""
SIZE_B: Final = 1 << 20
"""A revocation takes some 50 KiB of the write-ahead log."""
_PART_B: Final = 16 << 10
_SHARE: Final = 8
"""Of what is free, this part at most."""


class Reserve:
    """All methods block, and raise nothing."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._size_b = 0

    def take(self, *, everything: bool = False) -> None:
        """As much as there is room for; `everything`: also the last of it, since it was the reserve's before."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            _log.warning("no room is kept for revocations", file=str(self._path), cause=cause_of(exc))
            return
        try:
            self._size_b = before_b = os.fstat(fd).st_size
            while self._size_b < SIZE_B:
                room = os.fstatvfs(fd)
                if not everything and room.f_bavail * room.f_frsize < _SHARE * _PART_B:
                    break
                self._size_b += os.write(fd, os.urandom(_PART_B))
            if self._size_b > before_b:
                os.fsync(fd)  # until then a file system may only have promised the room
        except OSError as exc:
            _log.debug("the reserve is smaller than it should be", size_b=self._size_b, cause=cause_of(exc))
        finally:
            os.close(fd)

    def give_up(self) -> bool:
        """Whether there was anything to give up."""
        try:
            size_b = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False  # there is none
        self._size_b = 0
        return size_b > 0

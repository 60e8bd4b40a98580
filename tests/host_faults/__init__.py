"""A host that fails under one process: calls on chosen files (ENOSPC, EIO, EROFS, …) and the wall clock, from outside, while it runs.

    host = Host(folder)
    subprocess.Popen(…, env={**os.environ, **host.environment})
    with host.failing("*/spool/*.seg", Fail.FULL): …
    host.shift_clock(-3600)

A small library is preloaded (shim.c), so that only the one process and only the files that a pattern names are struck: a full disk would
strike its neighbours as well. It counts what it did, so that no test passes because nothing was struck.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import mmap
import os
import secrets
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("shim.c")
_BUILD: Final = Path(__file__).parents[2] / "build"
_RULES: Final = 16
_HEAD: Final = struct.Struct("<IIq")
_RULE: Final = struct.Struct("<IiII240s")
_ARMED_AT, _STRUCK_AT = 0, 12


class Call(enum.IntFlag):
    """Calls of one kind; as `enum call` of shim.c."""

    OPEN_TO_READ = 1
    OPEN_TO_WRITE = 2
    CREATE = 4
    READ = 8
    WRITE = 16
    SYNC = 32
    NAME = 64
    """rename, unlink."""
    ASK = 128
    """statvfs."""


class Fail(enum.Enum):
    """How a file system fails: the error, and the calls that meet it."""

    FULL = (errno.ENOSPC, Call.CREATE | Call.WRITE)
    FULL_AT_SYNC = (errno.ENOSPC, Call.SYNC)
    """Delayed allocation, a network's file system."""
    READ_ONLY = (errno.EROFS, Call.OPEN_TO_WRITE | Call.CREATE | Call.WRITE | Call.NAME)
    WRITES = (errno.EIO, Call.WRITE)
    SYNCS = (errno.EIO, Call.SYNC)
    READS = (errno.EIO, Call.READ | Call.OPEN_TO_READ)
    ALL = (
        errno.EIO,
        Call.OPEN_TO_READ
        | Call.OPEN_TO_WRITE
        | Call.CREATE
        | Call.READ
        | Call.WRITE
        | Call.SYNC
        | Call.NAME
        | Call.ASK,
    )
    FORBIDDEN = (errno.EACCES, Call.OPEN_TO_READ | Call.OPEN_TO_WRITE | Call.CREATE | Call.NAME)
    GONE = (errno.ENOENT, Call.OPEN_TO_READ | Call.OPEN_TO_WRITE | Call.CREATE)
    PIPE = (errno.EPIPE, Call.WRITE)

    @property
    def words(self) -> str:
        """The system's."""
        return os.strerror(self.value[0])


class _Clock(enum.IntEnum):
    AS_IS = 0
    SHIFTED = 1
    STANDING = 2


class Host:
    """What a process whose environment has `environment` sees of its host."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"host-{secrets.token_hex(4)}.faults"
        path.write_bytes(bytes(_HEAD.size + _RULES * _RULE.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self.environment: Final = {"LD_PRELOAD": str(_library()), "HOST_FAULTS": str(path)}

    @contextlib.contextmanager
    def failing(self, where: str, how: Fail, *, calls: Call | None = None) -> Iterator[Struck]:
        """Until the block ends, such calls on files whose whole path matches `where` (fnmatch, "*" crosses slashes) fail."""
        at = next(at for at in range(_RULES) if not self._word(self._rule(at) + _ARMED_AT))
        number, usual = how.value
        begin = self._rule(at)
        self._shared[begin : begin + _RULE.size] = _RULE.pack(
            0, number, int(calls or usual), 0, where.encode()
        )
        self._set(begin + _ARMED_AT, 1)
        self._set(4, self._word(4) + 1)
        try:
            yield Struck(self._shared, begin + _STRUCK_AT)
        finally:
            self._set(begin + _ARMED_AT, 0)
            self._set(4, self._word(4) - 1)

    def shift_clock(self, seconds: float) -> None:
        """The wall clock shows so much more than it should."""
        self._clock(_Clock.SHIFTED, int(seconds * 1e9))

    def stop_clock(self) -> None:
        """The wall clock stands where it is."""
        self._clock(_Clock.STANDING, time.time_ns())

    def mend_clock(self) -> None:
        self._clock(_Clock.AS_IS, 0)

    def _clock(self, kind: _Clock, ns: int) -> None:
        struct.pack_into("<I", self._shared, 0, _Clock.AS_IS)
        struct.pack_into("<q", self._shared, 8, ns)
        struct.pack_into("<I", self._shared, 0, kind)

    def _rule(self, at: int) -> int:
        return _HEAD.size + at * _RULE.size

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._shared, at)[0])

    def _set(self, at: int, value: int) -> None:
        struct.pack_into("<I", self._shared, at, value)


class Struck:
    """How many calls have failed by a rule."""

    def __init__(self, shared: mmap.mmap, at: int) -> None:
        self._shared = shared
        self._at = at

    @property
    def count(self) -> int:
        return int(struct.unpack_from("<I", self._shared, self._at)[0])


def _library() -> Path:
    """The shim, compiled once for each of its versions."""
    source = _SOURCE.read_bytes()
    library = _BUILD / f"host-faults-{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        making = library.with_name(f"{library.name}.{secrets.token_hex(4)}")
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", making, _SOURCE, "-ldl"], check=True
        )
        making.rename(library)
    return library

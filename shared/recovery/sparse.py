"""A disk image as a sparse file: positioned writes, holes for what is cleared, data ranges. Blocking: call
it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from shared.errors import ImageFileError, UnderstudyError, UsageError

_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
_CHUNK_B: Final = 4 * 1024 * 1024
_ZEROES: Final = bytes(_CHUNK_B)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


class SparseFile:
    """An open image of exactly `size_b` bytes. Offsets and lengths: bytes. Methods raise ImageFileError."""

    def __init__(self, path: Path, size_b: int, *, create: bool = True) -> None:
        """Opens `path`, or creates it, and gives it that size."""
        self.path = path
        self.size_b = size_b
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except OSError as exc:
            raise self._error("opened", exc) from exc
        self.resize(size_b)

    def __enter__(self) -> SparseFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def resize(self, size_b: int) -> None:
        """Cut it, or extend it by a hole."""
        try:
            if os.fstat(self._fd).st_size != size_b:
                os.ftruncate(self._fd, size_b)
        except OSError as exc:
            raise self._error("resized", exc) from exc
        self.size_b = size_b

    def fileno(self) -> int:
        return self._fd

    def write(self, offset_b: int, data: bytes | memoryview) -> None:
        self._inside(offset_b, len(data))
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset_b)
                view, offset_b = view[done:], offset_b + done
        except OSError as exc:
            raise self._error("written", exc) from exc

    def clear(self, offset_b: int, length_b: int) -> None:
        """The range reads as zeroes afterwards; its space is given back where the file system can."""
        self._inside(offset_b, length_b)
        if not length_b or not _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset_b, length_b):
            return
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            exc = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            raise self._error("cleared", exc) from exc
        for at in range(offset_b, offset_b + length_b, _CHUNK_B):
            self.write(at, memoryview(_ZEROES)[: min(_CHUNK_B, offset_b + length_b - at)])

    def read(self, offset_b: int, length_b: int) -> bytes:
        self._inside(offset_b, length_b)
        parts = []
        try:
            while length_b:
                part = os.pread(self._fd, length_b, offset_b)
                if not part:
                    raise OSError(errno.EIO, "the file is shorter than it was")
                parts.append(part)
                offset_b, length_b = offset_b + len(part), length_b - len(part)
        except OSError as exc:
            raise self._error("read", exc) from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sync(self, *, times: bool = False) -> None:
        """fdatasync: what was written survives a crash of this host. With `times` (fsync) so does when it was."""
        try:
            (os.fsync if times else os.fdatasync)(self._fd)
        except OSError as exc:
            raise self._error("synchronised", exc) from exc

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what may hold data; the rest are holes, which read as zeroes."""
        at = 0
        while at < self.size_b:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
                at = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # no data after `at`
                    return
                raise self._error("read", exc) from exc
            yield start, min(at, self.size_b) - start

    def sha256(self, progress: Callable[[int], None] = lambda _: None) -> str:
        """SHA-256 of all `size_b` bytes, holes as zeroes, in hex; `progress` gets the number of bytes
        hashed since the last call.
        """
        digest = hashlib.sha256()
        at = 0
        for start, length in [*self.data_ranges(), (self.size_b, 0)]:
            while at < start:
                step = min(_CHUNK_B, start - at)
                digest.update(memoryview(_ZEROES)[:step])
                at += step
                progress(step)
            while at < start + length:
                data = self.read(at, min(_CHUNK_B, start + length - at))
                digest.update(data)
                at += len(data)
                progress(len(data))
        return digest.hexdigest()

    def _inside(self, offset_b: int, length_b: int) -> None:
        if offset_b < 0 or offset_b + length_b > self.size_b:
            raise ImageFileError(
                f"Disk image {self.path} was not touched",
                cause=f"bytes {offset_b} to {offset_b + length_b} lie beyond its {self.size_b} bytes",
                action="The log does not fit this disk: its size changed within an epoch. Resynchronise it.",
            )

    def _error(self, verb: str, exc: OSError) -> UnderstudyError:
        what = f"Disk image {self.path} could not be {verb}"
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EISDIR):
            return UsageError(what, cause=str(exc), action="Choose a folder that this user may write to.")
        return ImageFileError(what, cause=str(exc))

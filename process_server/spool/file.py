"""One file of the spool: written, made durable, closed, read for upload. Blocking; one thread at a time.

Why what was acknowledged is there after a crash (I5): `append` returns only after fdatasync of the file,
and, for a new file, of its folder; only then are its batches acknowledged. `Draft` counts only such
batches. After an error of a sync the kernel may have dropped the pages and forgotten: the file is then
*abandoned*, never written or synced again; what was durable in it before is uploaded from it, what was not
was never acknowledged. A write that found the disk full is undone by truncation, and the file goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shared import durable, logging
from shared.batch import Buffer
from shared.crashpoints import reach
from shared.errors import SpoolError, SpoolFullError, SpoolLostError
from shared.log import segment
from shared.log.draft import Draft
from shared.log.segment import BatchRow, FileHeader, Frame

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
SUFFIX: Final = ".seg"

_log = logging.get()


class SpooledSegment:
    """A closed spool file that waits for upload. It has at least one batch."""

    def __init__(self, path: Path, draft: Draft) -> None:
        self.path: Final = path
        self.header: Final = draft.header
        self.footer: Final = draft.footer
        self.digest: Final = draft.digest
        self._body_b: Final = draft.size_b
        self._closing: Final = draft.closing()

    @property
    def size_b(self) -> int:
        return self._body_b + len(self._closing)

    @property
    def first(self) -> BatchRow:
        return self.footer.rows[0]

    @property
    def last(self) -> BatchRow:
        return self.footer.rows[-1]

    def read(self) -> bytes:
        """The whole segment, compared with what was written. Raises SpoolLostError when the disk does not
        give it back.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                body = bytearray(self.size_b)
                view = memoryview(body)
                at = 0
                while at < self._body_b and (count := file.readinto(view[at : self._body_b])):
                    at += count
        except OSError as exc:
            raise self._lost(exc.strerror or str(exc)) from exc
        if at != self._body_b or segment.body_digest(body, self._body_b) != self.digest:
            raise self._lost("its bytes are not those that were written")
        view[self._body_b :] = self._closing
        view.release()
        return bytes(body)

    def _lost(self, cause: str) -> SpoolLostError:
        return SpoolLostError(
            f"Spool file {self.path} with batches {self.first.number} to {self.last.number} is damaged",
            cause=cause,
        )


class SpoolFile:
    """The file that batches are appended to."""

    def __init__(self, folder: Path, header: FileHeader) -> None:
        self.path: Final = folder / f"{header.first:012d}{SUFFIX}"
        self.draft: Final = Draft(header)
        self._fd = -1

    def append(self, frames: Sequence[Frame]) -> None:
        """Adds the frames, durably: when it returns they survive a power cut. On any error none of them
        counts.

        SpoolFullError: the disk is full, the file is as before and can go on. SpoolError: the file is
        abandoned; only `close` it.
        """
        new = self._fd < 0
        what = (
            f"Batches {frames[0].row.number} to {frames[-1].row.number} could not be written to {self.path}"
        )
        end = 0 if new else self.draft.size_b
        head: list[Buffer] = [self.draft.head] if new else []
        buffers: list[Buffer] = [*head, *(frame.data for frame in frames)]
        try:
            if new:
                # What may lie under this name holds no batch that counts: those are all below `first`.
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            reach("spool.before-write")
            durable.write_all(self._fd, buffers, end)
        except OSError as exc:
            cause = exc.strerror or str(exc)
            if exc.errno in FULL and self._undo(end):
                raise SpoolFullError(what, cause=cause) from exc
            raise SpoolError(what, cause=cause) from exc
        try:
            reach("spool.before-fdatasync")
            durable.sync_data(self._fd)
            if new:
                durable.sync_folder(self.path.parent)
        except OSError as exc:
            raise SpoolError(what, cause=f"sync failed: {exc.strerror or exc}") from exc
        reach("spool.after-fdatasync")
        for frame in frames:
            self.draft.add(frame)

    def close(self) -> SpooledSegment | None:
        """Writes the footer (not synced: recovery can make it again) and closes. None, and no file, if it
        holds no batch.
        """
        if not self.draft.rows:
            self._close()
            with contextlib.suppress(OSError):
                durable.remove_file(self.path)
            return None
        spooled = SpooledSegment(self.path, self.draft)
        reach("spool.before-footer")
        with without_footer_at_worst(self.path):
            write_footer(self._fd, self.draft)
        self._close()
        reach("spool.after-footer")
        return spooled

    def _undo(self, end: int) -> bool:
        if self._fd < 0:
            return True
        try:
            os.ftruncate(self._fd, end)
        except OSError:
            return False
        if end == 0:
            self._close()
            with contextlib.suppress(OSError):
                durable.remove_file(self.path)
        return True

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def write_footer(fd: int, draft: Draft) -> None:
    os.ftruncate(fd, draft.size_b)
    durable.write_all(fd, [draft.closing()], draft.size_b)


@contextlib.contextmanager
def without_footer_at_worst(path: Path) -> Iterator[None]:
    """A full disk must not keep a file from being uploaded, which makes room. The upload takes the footer from
    memory, and recovery makes it again from a scan.
    """
    try:
        yield
    except OSError as exc:
        _log.warning("spool file has no footer", path=str(path), cause=exc.strerror)

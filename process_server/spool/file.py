"""One file of the spool: written, made durable, closed, read for upload. Blocking; one thread at a time.

Why what was acknowledged is there after a crash (I5): `append` returns only after fdatasync of the file,
and, for a new file, of its folder; only then are its batches acknowledged. `Draft` counts only such
batches. After an error of a sync the kernel may have dropped the pages and forgotten: the file is then
*abandoned*, never written or synced again; what was durable in it before is uploaded from it, what was not
was never acknowledged. A write that found the disk full is undone by truncation, and the file goes on.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from process_server.spool.ownership import LocalFile
from shared.batch import Buffer, StreamState
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import IntegrityError, SpoolError, SpoolFullError, SpoolLostError, cause_of
from shared.host import durable
from shared.log import segment
from shared.log.draft import Draft
from shared.log.segment import BatchRow, FileHeader, Footer, Frame

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
SUFFIX: Final = ".seg"

_log = logging.get()


class Readout(NamedTuple):
    """A segment as it is uploaded."""

    data: bytes
    footer: Footer
    digest: bytes


class SpooledSegment:
    """A closed spool file that waits for upload. It has at least one batch.

    In a storage outage many thousands wait, so it remembers of its batches only the first and the last; the
    rest stands in the file's footer. `first` and `header` are those of the segment that is uploaded: the file may
    begin with batches that another process server has listed meanwhile (`behind`).
    """

    def __init__(
        self,
        path: Path,
        header: FileHeader,
        first: BatchRow,
        last: BatchRow,
        *,
        body_b: int,
        digest: bytes,
        closing: bytes | None,
    ) -> None:
        """`closing`: footer and trailer, if they are not in the file."""
        self.path: Final = path
        self.header = header
        self.first = first
        self.last: Final = last
        self._digest: Final = digest
        self._body_b: Final = body_b
        self._closing: Final = closing

    @classmethod
    def of(cls, path: Path, draft: Draft, *, has_footer: bool) -> SpooledSegment:
        return cls(
            path,
            draft.header,
            draft.rows[0],
            draft.rows[-1],
            body_b=draft.size_b,
            digest=draft.digest,
            closing=None if has_footer else draft.closing(),
        )

    @property
    def size_b(self) -> int:
        """What it takes here, without the footer."""
        return self._body_b

    def local(self) -> LocalFile:
        return LocalFile(self.first.number, self.last.number, self.header.predecessor, self.last.digest)

    def footer(self) -> Footer:
        """Raises SpoolError."""
        return self._footer(self._read())

    def digest_of(self, number: int) -> str:
        """The digest (hex) of one of its batches, or of the one before. Raises SpoolError."""
        if number == self.first.number - 1:
            return self.header.predecessor
        if number == self.last.number:
            return self.last.digest
        return self._row(number).digest

    def behind(self, number: int) -> SpooledSegment:
        """The part of it that follows its batch `number`. Raises SpoolError."""
        rest = copy.copy(self)
        rest.first = self._row(number + 1)
        rest.header = msgspec.structs.replace(
            self.header, first=number + 1, predecessor=self._row(number).digest
        )
        return rest

    def read(self) -> Readout:
        """The whole segment, compared with what was written. Raises SpoolLostError when what the disk gives is not that; SpoolError
        when it gives nothing, which may pass, or when only the footer is unreadable, which recovery can make again.
        """
        data = self._read()
        if segment.body_digest(data, self._body_b) != self._digest:
            raise self._lost("its bytes are not those that were written")
        footer = self._footer(data)
        if self.first.number != footer.rows[0].number:
            return self._without_front(data, footer)
        end = segment.encode_footer(footer, self._body_b, self._digest)
        if memoryview(data)[self._body_b :] != end:
            data = b"".join((memoryview(data)[: self._body_b], end))
        return Readout(data, footer, self._digest)

    def _without_front(self, data: bytes, footer: Footer) -> Readout:
        """Frames do not depend on their place in a file, only on the salt, which the new header has as well."""
        first = self.first.number
        head = segment.encode_file_header(self.header)
        shift = self.first.offset - len(head)
        rows = tuple(
            msgspec.structs.replace(row, offset=row.offset - shift)
            for row in footer.rows
            if row.number >= first
        )
        ordered = all(row.state == StreamState.ORDERED for row in rows)
        rest = Footer(
            rows=rows,
            marks=tuple(mark for mark in footer.marks if mark.batch >= first),
            cause="" if ordered else footer.cause,
        )
        body = b"".join((head, memoryview(data)[self.first.offset : self._body_b]))
        digest = segment.body_digest(body, len(body))
        return Readout(body + segment.encode_footer(rest, len(body), digest), rest, digest)

    def _row(self, number: int) -> BatchRow:
        rows = self.footer().rows
        return rows[number - rows[0].number]

    def _footer(self, data: bytes) -> Footer:
        end = data[self._body_b :] if self._closing is None else self._closing
        try:
            return segment.decode_footer(end, self._body_b + len(end), self.path.name)
        except IntegrityError as exc:
            raise SpoolError(f"The footer of spool file {self.path} cannot be read", cause=exc.cause) from exc

    def _read(self) -> bytes:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as exc:
            raise self._lost(exc.strerror or "it is gone") from exc
        except OSError as exc:
            # Not lost yet: a path that is away comes back. How long it is waited for says machine_folder.
            raise SpoolError(f"Spool file {self.path} could not be read", cause=cause_of(exc)) from exc
        if len(data) < self._body_b:
            raise self._lost("it is shorter than what was written")
        return data

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
            cause = cause_of(exc)
            if exc.errno in FULL and self._undo(end):
                raise SpoolFullError(what, cause=cause) from exc
            raise SpoolError(what, cause=cause) from exc
        try:
            reach("spool.before-fdatasync")
            durable.sync_data(self._fd)
            if new:
                durable.sync_folder(self.path.parent)
        except OSError as exc:
            raise SpoolError(what, cause=f"sync failed: {cause_of(exc)}") from exc
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
        reach("spool.before-footer")
        has_footer = write_footer(self.path, self._fd, self.draft)
        self._close()
        reach("spool.after-footer")
        return SpooledSegment.of(self.path, self.draft, has_footer=has_footer)

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


def write_footer(path: Path, fd: int, draft: Draft) -> bool:
    """Whether it could be written. A full disk must not keep a file from being uploaded, which makes room: then the
    footer stays in memory, and recovery makes it again from a scan.
    """
    try:
        os.ftruncate(fd, draft.size_b)
        durable.write_all(fd, [draft.closing()], draft.size_b)
    except OSError as exc:
        _log.warning("spool file has no footer", path=str(path), cause=cause_of(exc))
        return False
    return True

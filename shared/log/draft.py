"""A segment that is being written: where the next frame goes, and the footer that will close it. Pure
bookkeeping.
"""

from __future__ import annotations

import msgspec
import xxhash

from shared.batch import Buffer, StreamState
from shared.log import segment
from shared.log.segment import BatchRow, FileHeader, Footer, Frame, MarkRow


class Draft:
    """Counts only what it was told is safely written: `add` is called after the frame's bytes are durable."""

    def __init__(self, header: FileHeader) -> None:
        self.header = header
        self.head = segment.encode_file_header(header)
        self.size_b = len(self.head)
        """Where the next frame goes."""
        self.plain_b = 0
        self.rows: list[BatchRow] = []
        self._marks: list[MarkRow] = []
        self._cause = ""
        self._hasher = xxhash.xxh3_128(self.head)

    @classmethod
    def recovered(cls, header: FileHeader, footer: Footer, body: Buffer) -> Draft:
        """The draft of a file that holds exactly `body` (header and the footer's frames)."""
        draft = cls(header)
        draft.size_b = len(body)
        draft.plain_b = sum(row.plain_b for row in footer.rows)
        draft.rows = list(footer.rows)
        draft._marks = list(footer.marks)
        draft._cause = footer.cause
        draft._hasher = xxhash.xxh3_128(body)
        return draft

    def add(self, frame: Frame) -> None:
        self.rows.append(msgspec.structs.replace(frame.row, offset=self.size_b))
        self._marks += frame.marks
        self._cause = frame.cause or self._cause
        self._hasher.update(frame.data)
        self.size_b += len(frame.data)
        self.plain_b += frame.row.plain_b

    @property
    def footer(self) -> Footer:
        ordered = all(row.state == StreamState.ORDERED for row in self.rows)
        return Footer(rows=tuple(self.rows), marks=tuple(self._marks), cause="" if ordered else self._cause)

    @property
    def digest(self) -> bytes:
        """xxh3-128 of header and frames."""
        return self._hasher.digest()

    def closing(self) -> bytes:
        """Footer and trailer, for the place at `size_b`."""
        return segment.encode_footer(self.footer, self.size_b, self.digest)

"""The log index: which segments count, in which order, and who may add more. Lines and their rules; pure.
Layout in FORMAT.md.

The index of an epoch is a chain of append blobs, `index-000001`, `index-000002`, … of JSON lines. Three
kinds of line:

- *claim*: a process server takes the log with a term; from here on only lines of this term, or of a higher
one, count;
- *segment*: a segment counts from here on;
- *closed*: this blob is full, the chain goes on in the next one.

`Fold` says what a reader makes of the lines. Its rules hold for every reader, and for every writer that
takes over:

1. A line of a lower term than one before it is ignored.
2. A segment's first batch follows the last batch before it, and names its digest. Else the index is damaged.
3. Claims name the epoch's own claim (epoch_id.py), and one stands before the first segment. Else it is the index of another epoch with
   the same number.

How writers keep to it: shared/log/writer.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from shared import decoding
from shared.batch import NO_DIGEST
from shared.errors import UNDECODABLE, IndexDamagedError
from shared.log.epoch_id import UNKNOWN, EpochId
from shared.log.segment import Footer, MarkRow, ordered_ranges


class Term(NamedTuple):
    """Who has the log. Numbers order the terms; a number alone is no identity: storage that is set back within an epoch gives it out again.
    The claim is random, and made with the term's document.
    """

    number: int
    claim: str

    def __str__(self) -> str:
        return str(self.number)


NO_TERM: Final = Term(0, UNKNOWN)


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True, tag="segment", tag_field="kind", gc=False):
    """One segment of the log. (It can be in no cycle: the garbage collector need not walk over hundreds of thousands.)"""

    v: int = 1
    term: int
    blob: str
    """The segment's full blob name."""
    bytes: int
    digest: str
    """xxh3-128 (hex) of all bytes of the segment before its footer."""
    plain_b: int
    """Bytes of its batches when opened."""
    first: int
    last: int
    """Batch numbers, inclusive."""
    first_captured_ns: int
    last_captured_ns: int
    end_seq: int
    predecessor: str
    """Digest (hex) of batch `first` - 1."""
    last_digest: str
    """Digest (hex) of batch `last`."""
    ordered: tuple[tuple[int, int], ...]
    """Runs of batch numbers, inclusive, after each of which the stream was ordered."""
    marks: tuple[MarkRow, ...] = ()
    cause: str = ""
    """Why it was not always ordered."""
    written_ns: int
    """Wall clock of the process server."""


class Claim(msgspec.Struct, frozen=True, kw_only=True, tag="claim", tag_field="kind"):
    v: int = 1
    term: int
    epoch_claim: str
    """Whose index this is: the claim of the epoch's document."""
    term_claim: str = UNKNOWN
    """Of the term's document: tells the term from another one of its number."""
    owner: str
    """Which process server, for people."""
    after: int
    """The last batch before the claim."""
    written_ns: int


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed", tag_field="kind"):
    v: int = 1
    term: int
    next: int
    """Number of the blob in which the index goes on."""


Line = IndexEntry | Claim | Closed

NEWEST: Final = 4
"""So many of the newest segments a `Fold` remembers."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = decoding.json_decoder(Line)


def encode_lines(lines: Sequence[Line]) -> bytes:
    return b"".join(_encoder.encode(line) + b"\n" for line in lines)


def decode_lines(data: bytes, name: str) -> list[Line]:
    """The lines of a piece of an index blob. IndexDamagedError when it is not whole lines of known kinds."""
    lines, damage = decode_up_to_damage(data, name)
    if damage is not None:
        raise damage
    return lines


def decode_up_to_damage(data: bytes, name: str) -> tuple[list[Line], IndexDamagedError | None]:
    """The lines before the first that is not whole or of no known kind, and what is wrong with that one."""
    lines: list[Line] = []
    *whole, rest = data.split(b"\n")
    for line in whole:
        try:
            lines.append(_decoder.decode(line))
        except UNDECODABLE as exc:
            return lines, IndexDamagedError(f"Log index {name} is damaged", cause=str(exc))
    if rest:
        return lines, IndexDamagedError(f"Log index {name} is damaged", cause="its last line is not whole")
    return lines, None


class Fold:
    """What the lines read so far say, in order. Its size does not grow with the log: an epoch may last for months."""

    def __init__(self, machine: str, epoch: EpochId) -> None:
        self._epoch = f"machine {machine}, epoch {epoch.number}"
        """For messages."""
        self._claim = epoch.claim
        self.entries: deque[IndexEntry] = deque(maxlen=NEWEST)
        """The newest segments."""
        self.owner = NO_TERM
        """The highest term that any line carried."""
        self.last = 0
        """The last batch that counts; 0 = none."""
        self.end_seq = 0
        self.last_digest = NO_DIGEST.hex()
        self.number = 1
        """The blob of the chain in which the next line stands."""

    def add(self, line: Line) -> bool:
        """Whether the line counts. IndexDamagedError when it should but does not fit."""
        if line.term < self.owner.number:
            return False
        if not self.owner.number and not isinstance(line, Claim):
            raise IndexDamagedError(
                f"The log index of {self._epoch} is damaged",
                cause="nobody claimed it before its first segment",
            )
        if isinstance(line, Claim):
            self._check_epoch(line)
            self.owner = Term(line.term, line.term_claim)
        elif line.term > self.owner.number:
            self.owner = Term(line.term, UNKNOWN)
        if isinstance(line, Closed):
            self.number = line.next
        elif isinstance(line, IndexEntry):
            self._add_segment(line)
        return True

    def _check_epoch(self, claim: Claim) -> None:
        if claim.epoch_claim != self._claim:
            raise IndexDamagedError(
                f"The log index of {self._epoch} is damaged",
                cause=f"it is that of another epoch with this number: claim {claim.epoch_claim}, not {self._claim}",
            )

    def expect(self, entries: Sequence[IndexEntry]) -> None:
        """Raises IndexDamagedError unless the entries can be added one after the other."""
        last, digest = self.last, self.last_digest
        for entry in entries:
            self._check(entry, last, digest)
            last, digest = entry.last, entry.last_digest

    def _add_segment(self, entry: IndexEntry) -> None:
        self._check(entry, self.last, self.last_digest)
        self.entries.append(entry)
        self.last, self.end_seq, self.last_digest = entry.last, entry.end_seq, entry.last_digest

    def _check(self, entry: IndexEntry, last: int, last_digest: str) -> None:
        if entry.first != last + 1 or entry.last < entry.first:
            raise IndexDamagedError(
                f"The log index of {self._epoch} is damaged",
                cause=f"segment {entry.blob} begins at batch {entry.first}, the one before ends at {last}",
            )
        if entry.predecessor != last_digest:
            raise IndexDamagedError(
                f"The log index of {self._epoch} is damaged",
                cause=f"segment {entry.blob} names another digest for batch {last} than that batch has",
            )


def entry_for(
    footer: Footer, *, blob: str, size_b: int, digest: bytes, predecessor: str, term: int, written_ns: int
) -> IndexEntry:
    """The index entry of the segment that has this footer."""
    rows = footer.rows
    return IndexEntry(
        term=term,
        blob=blob,
        bytes=size_b,
        digest=digest.hex(),
        plain_b=sum(row.plain_b for row in rows),
        first=rows[0].number,
        last=rows[-1].number,
        first_captured_ns=rows[0].captured_ns,
        last_captured_ns=rows[-1].captured_ns,
        end_seq=rows[-1].end_seq,
        predecessor=predecessor,
        last_digest=rows[-1].digest,
        ordered=tuple(ordered_ranges(rows)),
        marks=footer.marks,
        cause=footer.cause,
        written_ns=written_ns,
    )

"""The segment: many sealed batches in one file. A spool file and a log blob are the same bytes. Layout in
FORMAT.md. Pure.

What protects what:
- A frame's fixed header has a CRC, so that a scan finds where whole frames end without any key.
- Header and batch are bound together, and to machine, epoch and its claim, as associated data of AES-256-GCM: a frame that opens is whole,
  unaltered, and the batch of its number. Batches also name their predecessor's digest.
- Readers know which epoch they mean, and refuse a file header that names another (`check_epoch`).
- The footer repeats what the frames say, so that a reader finds its way with one read. It is not secret and not trusted: readers compare
  it, and the index entry, with the frames that they open.
- The trailer carries a digest of all bytes before the footer, which finds bit rot without the key.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import xxhash

from shared import batch as batches
from shared import decoding
from shared.batch import Batch, Buffer, StreamState
from shared.errors import (
    UNDECODABLE,
    IntegrityError,
    OtherEpochSegmentError,
    SegmentAlteredError,
    SegmentTruncatedError,
    SegmentVersionError,
)
from shared.keys import sealing
from shared.keys.sealing import FileKey, SealError
from shared.log.epoch_id import Claim, EpochId

MAX_PLAIN_B: Final = 64 * 1024 * 1024
"""No batch is larger; a length beyond it is damage and never allocated."""

VERSION: Final = 2
_FILE_MAGIC: Final = b"UNDSEG1\n"
_FILE: Final = struct.Struct("<8sIII")
_MAX_HEADER_B: Final = 1 << 20
_FRAME_MAGIC: Final = b"USF1"
_FRAME: Final = struct.Struct("<4sBBHQQqII16sI")
_CRC: Final = struct.Struct("<I")
FRAME_HEADER_B: Final = _FRAME.size + _CRC.size
_FOOTER_MAGIC: Final = b"USX1"
_TRAILER_MAGIC: Final = b"UNDEND1\n"
_TRAILER: Final = struct.Struct("<QI16sI8s")
TRAILER_B: Final = _TRAILER.size


class FileHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote the file for whom, and how to get its key."""

    machine: str
    epoch: int
    claim: Claim
    """Of the epoch."""
    first: int
    """Number of its first batch."""
    predecessor: str
    """Digest (hex) of the batch before the first."""
    key_id: str
    wrapped: str
    """The machine's data key under vault key `key_id`; base64."""
    salt: str
    """Base64."""
    created_ns: int

    @property
    def epoch_id(self) -> EpochId:
        return EpochId(self.epoch, self.claim)

    @property
    def wrapped_key(self) -> bytes:
        return base64.b64decode(self.wrapped)

    @property
    def salt_bytes(self) -> bytes:
        return base64.b64decode(self.salt)


class BatchRow(msgspec.Struct, frozen=True, array_like=True):
    """One batch in the file. The frame (header and sealed batch) is `length` bytes from `offset`."""

    number: int
    offset: int
    length: int
    plain_b: int
    captured_ns: int
    end_seq: int
    state: StreamState
    digest: str
    """Hex."""


class MarkRow(msgspec.Struct, frozen=True, array_like=True):
    """A bookmark: the recovery point that was asked for stands behind batch `batch`."""

    batch: int
    id: str
    consistency: str
    captured_ns: int


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    rows: tuple[BatchRow, ...]
    marks: tuple[MarkRow, ...] = ()
    cause: str = ""
    """Why the stream was not ordered, in the words of the last batch that said so; empty if it always was."""


class Frame(NamedTuple):
    """A sealed batch that has no place in a file yet."""

    data: bytearray
    row: BatchRow
    """With offset 0."""
    marks: tuple[MarkRow, ...]
    cause: str


# ---- file header ----


def encode_file_header(header: FileHeader) -> bytes:
    body = msgspec.json.encode(header)
    crc = zlib.crc32(body, zlib.crc32(_FILE_MAGIC))
    return _FILE.pack(_FILE_MAGIC, VERSION, len(body), crc) + body


def decode_file_header(data: Buffer, name: str) -> tuple[FileHeader, int]:
    """The header and where the frames begin. SegmentTruncatedError, SegmentAlteredError, SegmentVersionError;
    `name` is for the message.
    """
    view = memoryview(data)
    if len(view) < _FILE.size:
        raise _truncated(name, "it ends inside its header")
    magic, version, length, crc = _FILE.unpack_from(view)
    if magic != _FILE_MAGIC:
        raise _altered(name, "it does not begin like a segment")
    if version != VERSION:
        raise SegmentVersionError(
            f"Segment {name} cannot be read",
            cause=f"its format version is {version}; this program reads version {VERSION}",
        )
    if length > _MAX_HEADER_B:
        raise _altered(name, "its header is damaged")
    end = _FILE.size + length
    if len(view) < end:
        raise _truncated(name, "it ends inside its header")
    body = view[_FILE.size : end]
    if zlib.crc32(body, zlib.crc32(_FILE_MAGIC)) != crc:
        raise _altered(name, "its header is damaged")
    try:
        header = decoding.decode(body, type=FileHeader)
        base64.b64decode(header.wrapped, validate=True), base64.b64decode(header.salt, validate=True)
        bytes.fromhex(header.predecessor)
    except UNDECODABLE as exc:
        raise _altered(name, f"its header is damaged ({exc})") from exc
    return header, end


def check_epoch(header: FileHeader, epoch: EpochId, name: str) -> None:
    """Raises OtherEpochSegmentError unless the file is of that very epoch."""
    if header.epoch_id != epoch:
        raise OtherEpochSegmentError(
            f"Segment {name} is of another epoch", cause=f"it is of epoch {header.epoch_id}, not {epoch}"
        )


# ---- frames ----


def _associated(machine: str, epoch: EpochId, frame_header: Buffer) -> bytes:
    named = (machine.encode(), epoch.number, epoch.claim.encode(), bytes(frame_header))
    return b"understudy frame 2\0%s\0%d\0%s\0%s" % named


def seal_frame(
    key: FileKey, machine: str, claim: str, encoded: Buffer, batch: Batch, digest: bytes, level: int = 1
) -> Frame:
    """The batch, compressed (how hard says zstd's `level`) and sealed. `encoded` is what `shared.batch.encode` made of `batch`, `digest`
    its digest, `claim` that of its epoch.
    """
    packed = sealing.compress(encoded, level)
    sealed_b = len(packed) + sealing.OVERHEAD_B
    data = bytearray(FRAME_HEADER_B + sealed_b)
    _FRAME.pack_into(
        data,
        0,
        _FRAME_MAGIC,
        batch.state,
        0,
        0,
        batch.number,
        batch.end_seq,
        batch.captured_ns,
        sealed_b,
        len(encoded),
        digest,
        0,
    )
    _CRC.pack_into(data, _FRAME.size, zlib.crc32(memoryview(data)[: _FRAME.size]))
    associated = _associated(machine, EpochId(batch.epoch, claim), data[:FRAME_HEADER_B])
    key.seal_into(packed, associated, data, FRAME_HEADER_B)
    return Frame(
        data, _row(data, 0), _marks(batch), batch.meta.cause if batch.state != StreamState.ORDERED else ""
    )


def _marks(batch: Batch) -> tuple[MarkRow, ...]:
    return tuple(MarkRow(batch.number, m.id, m.consistency, batch.captured_ns) for m in batch.meta.marks)


def _row(data: Buffer, at: int) -> BatchRow:
    _, state, _, _, number, end_seq, captured_ns, sealed_b, plain_b, digest, _ = _FRAME.unpack_from(data, at)
    return BatchRow(
        number=number,
        offset=at,
        length=FRAME_HEADER_B + sealed_b,
        plain_b=plain_b,
        captured_ns=captured_ns,
        end_seq=end_seq,
        state=StreamState(state),
        digest=digest.hex(),
    )


def read_row(data: Buffer, at: int, name: str) -> BatchRow | None:
    """What the frame at `at` says of itself; None where the frames end (footer, or the end of the data).

    SegmentTruncatedError when the frame reaches behind the end of the data, SegmentAlteredError when its
    header is damaged.
    """
    view = memoryview(data)
    if at == len(view) or bytes(view[at : at + 4]) == _FOOTER_MAGIC:
        return None
    if at + FRAME_HEADER_B > len(view):
        raise _truncated(name, f"it ends inside a batch's header at offset {at}")
    magic = bytes(view[at : at + 4])
    (crc,) = _CRC.unpack_from(view, at + _FRAME.size)
    if magic != _FRAME_MAGIC or zlib.crc32(view[at : at + _FRAME.size]) != crc:
        raise _altered(name, f"the batch header at offset {at} is damaged")
    try:
        row = _row(view, at)
    except ValueError as exc:
        raise _altered(name, f"the batch header at offset {at} is damaged ({exc})") from exc
    if row.plain_b > MAX_PLAIN_B:
        raise _altered(name, f"batch {row.number} claims {row.plain_b} bytes")
    if at + row.length > len(view):
        raise _truncated(name, f"it ends inside batch {row.number}")
    return row


def open_frame(key: FileKey, header: FileHeader, frame: Buffer, name: str) -> Batch:
    """The batch in a frame (header and sealed part, whole).

    SegmentAlteredError or SegmentTruncatedError when anything about it is not as it was sealed.
    """
    view = memoryview(frame)
    row = read_row(view, 0, name)
    if row is None or row.length != len(view):
        raise _altered(name, "a batch is not where it should be")
    associated = _associated(header.machine, header.epoch_id, view[:FRAME_HEADER_B])
    try:
        batch, digest = batches.decode(sealing.unpack(key, view[FRAME_HEADER_B:], associated, row.plain_b))
    except (SealError, IntegrityError) as exc:
        raise _altered(name, f"batch {row.number} was altered: {exc}") from exc
    said = (batch.epoch, batch.number, batch.end_seq, batch.captured_ns, batch.state, digest.hex())
    if said != (header.epoch, row.number, row.end_seq, row.captured_ns, row.state, row.digest):
        raise _altered(name, f"batch {row.number} is not what its header says")
    return batch


# ---- footer and trailer ----


def encode_footer(footer: Footer, body_b: int, body_digest: bytes) -> bytes:
    """Footer and trailer, which close a file whose first `body_b` bytes have the xxh3-128 `body_digest`."""
    body = msgspec.json.encode(footer)
    crc = zlib.crc32(body)
    return b"".join((_FOOTER_MAGIC, body, _TRAILER.pack(body_b, len(body), body_digest, crc, _TRAILER_MAGIC)))


def decode_trailer(tail: Buffer, size_b: int, name: str) -> tuple[int, bytes]:
    """Where the footer begins, and the digest of everything before it, from the last TRAILER_B bytes of a
    file of `size_b`.
    """
    if len(tail) < TRAILER_B:
        raise _truncated(name, "its end is missing")
    body_b, length, digest, _, magic = _TRAILER.unpack_from(tail, len(tail) - TRAILER_B)
    if magic != _TRAILER_MAGIC:
        raise _truncated(name, "its end is missing")
    if body_b + 4 + length + TRAILER_B != size_b:
        raise _altered(name, f"its parts do not add up to {size_b} bytes")
    return body_b, digest


def decode_footer(tail: Buffer, size_b: int, name: str) -> Footer:
    """The footer, from the end of a file of `size_b` bytes; `tail` reaches back to the footer's begin at
    least.
    """
    body_b, _ = decode_trailer(tail, size_b, name)
    view = memoryview(tail)
    footer = view[len(view) - (size_b - body_b) : len(view) - TRAILER_B]
    _, _, _, crc, _ = _TRAILER.unpack_from(view, len(view) - TRAILER_B)
    if bytes(footer[:4]) != _FOOTER_MAGIC or zlib.crc32(footer[4:]) != crc:
        raise _altered(name, "its footer is damaged")
    try:
        return decoding.decode(footer[4:], type=Footer)
    except UNDECODABLE as exc:
        raise _altered(name, f"its footer is damaged ({exc})") from exc


def check_body(data: Buffer, name: str) -> Footer:
    """The footer of a whole file in memory, after comparing the digest of everything before it."""
    body_b, digest = decode_trailer(data, len(data), name)
    footer = decode_footer(data, len(data), name)
    if body_digest(data, body_b) != digest:
        raise _altered(name, "its bytes are not those that were written")
    return footer


def body_digest(data: Buffer, body_b: int) -> bytes:
    return xxhash.xxh3_128(memoryview(data)[:body_b]).digest()


# ---- scanning ----


class Scan(NamedTuple):
    """What an unclosed file holds: whole frames up to `end`; `why` it ends there if something unreadable
    follows.
    """

    footer: Footer
    end: int
    why: str
    torn: bool
    """What follows is the begin of a frame at the end of the data, as an interrupted write leaves it."""


def scan(data: Buffer, start: int, header: FileHeader, key: FileKey, name: str) -> Scan:
    """The frames from `start` up to the first that is not whole. Each is opened: a header may be on disk
    while its batch is not.
    """
    view = memoryview(data)
    rows: list[BatchRow] = []
    marks: list[MarkRow] = []
    cause, why, torn, end, expected = "", "", False, start, header.first
    while True:
        try:
            row = read_row(view, end, name)
            if row is None:
                break
            if row.number != expected:
                raise _altered(name, f"batch {row.number} stands where batch {expected} should")
            batch = open_frame(key, header, view[end : end + row.length], name)
        except (SegmentTruncatedError, SegmentAlteredError) as exc:
            why, torn = exc.cause, isinstance(exc, SegmentTruncatedError)
            break
        rows.append(row)
        marks += _marks(batch)
        cause = (batch.meta.cause or cause) if batch.state != StreamState.ORDERED else cause
        end += row.length
        expected += 1
    return Scan(Footer(rows=tuple(rows), marks=tuple(marks), cause=cause), end, why, torn)


def highest_number(data: Buffer, start: int) -> int:
    """The highest batch number that a whole frame header names, anywhere behind `start`; 0 if there is none. For
    telling what was in a file that cannot be read.
    """
    whole = bytes(memoryview(data)[start:])
    highest, at = 0, whole.find(_FRAME_MAGIC)
    while at >= 0:
        if at + FRAME_HEADER_B <= len(whole):
            (crc,) = _CRC.unpack_from(whole, at + _FRAME.size)
            if zlib.crc32(whole[at : at + _FRAME.size]) == crc:
                highest = max(highest, int(_FRAME.unpack_from(whole, at)[4]))
        at = whole.find(_FRAME_MAGIC, at + 1)
    return highest


def ordered_ranges(rows: Sequence[BatchRow]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive batches, first and last number, after which the stream was ordered."""
    first: int | None = None
    for row in rows:
        if row.state == StreamState.ORDERED:
            first = row.number if first is None else first
        elif first is not None:
            yield first, row.number - 1
            first = None
    if first is not None:
        yield first, rows[-1].number


def _truncated(name: str, cause: str) -> SegmentTruncatedError:
    return SegmentTruncatedError(f"Segment {name} is truncated", cause=cause)


def _altered(name: str, cause: str) -> SegmentAlteredError:
    return SegmentAlteredError(f"Segment {name} was altered", cause=cause)

"""The batch: what is sent, acknowledged, sealed and applied as one. Layout in FORMAT.md beside this file.

A batch is a run of extents with their data, in stream order. An extent is a contiguous range of one disk that was written
(WRITE), cleared (ZERO), or read by catch-up (SYNC, SYNC_ZERO). Applying a batch means applying its extents in order;
the stream's state after the batch, `state`, says whether the image then is a crash-consistent prefix (ORDERED) or not.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Annotated, Final, NewType

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from shared import decoding
from shared.errors import UNDECODABLE, IntegrityError
from shared.vocabulary import Consistency

Epoch = NewType("Epoch", int)
"""An unbroken run of capture of one machine; 1, 2, 3…"""
BatchNumber = NewType("BatchNumber", int)
"""Number of a batch in its epoch; 1, 2, 3… without gaps. 0 means "none yet"."""
Seq = NewType("Seq", int)
"""Ring position of a captured record (byte position ÷ record size); only ever grows within an epoch."""

Buffer = bytes | bytearray | memoryview
SECTOR: Final = 512

EXTENT: Final = np.dtype(
    [("sector", "<u8"), ("sectors", "<u4"), ("disk", "<u2"), ("op", "u1"), ("reserved", "u1")]
)
"""One extent, 16 bytes: first sector, length in sectors, disk number within the epoch, op (`Op`)."""
Extents = npt.NDArray[np.void]
"""A one-dimensional array of EXTENT."""


class Op(enum.IntEnum):
    WRITE = 1
    """Captured write; `sectors` × 512 bytes of payload."""
    ZERO = 2
    """Captured discard or write-zeroes; no payload; reads as zeroes afterwards."""
    SYNC = 3
    """Read by catch-up; `sectors` × 512 bytes of payload."""
    SYNC_ZERO = 4
    """Read by catch-up and found to be all zeroes; no payload."""


class StreamState(enum.IntEnum):
    """State of the machine's stream after a batch. Only ORDERED batches can be recovery points."""

    ORDERED = 0
    INITIAL_REPLICATION = 1
    BITMAP = 2
    CATCHING_UP = 3
    RESYNC = 4


class Mark(msgspec.Struct, frozen=True):
    """A bookmark in the stream: "a recovery point was asked for here"."""

    id: str
    consistency: str = Consistency.CRASH


Range = tuple[
    Annotated[int, msgspec.Meta(ge=0, le=np.iinfo(np.uint16).max)],
    Annotated[int, msgspec.Meta(ge=0, lt=1 << 55)],
    Annotated[int, msgspec.Meta(ge=0, lt=1 << 55)],
]
"""(disk number, first sector, sectors). No disk has such a sector as is refused here, and arithmetic with them stays in 64 bits."""
_MOST_NAMED: Final = 1 << 20
"""Runs of sectors in all that an agent has room to name (agent/stream/unreadable.py). What is stored opens, up to that."""
META_MAX_B: Final = 1 << 20
"""Of a batch that comes from a peer. An agent names 4096 runs at most in one batch, in 180 KiB; the rest is room for some 10,000 marks."""


class BatchMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rare, small and named part of a batch; JSON on the wire."""

    marks: tuple[Mark, ...] = ()
    unreadable: Annotated[tuple[Range, ...], msgspec.Meta(max_length=_MOST_NAMED)] = ()
    """Source ranges (disk, sector, sectors) that catch-up could not read: missing behind this batch, until a later one has them."""
    cause: str = ""
    """Why the stream is not ordered, for people; empty when it is."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    epoch: Epoch
    number: BatchNumber
    end_seq: Seq
    """Ring position behind the batch: every write whose last piece stands below it is in this batch or an earlier one."""
    captured_ns: int
    """The moment of the image after it, by the machine's wall clock when it was cut; Unix nanoseconds. It may go back (FORMAT.md)."""
    state: StreamState
    predecessor: bytes
    """Digest of batch `number - 1` (16 bytes; zeroes for the first)."""
    extents: Extents
    payload: Buffer
    """The data of WRITE and SYNC extents, back to back, in extent order."""
    meta: BatchMeta = BatchMeta()


_MAGIC: Final = b"USB1"
_HEADER: Final = struct.Struct("<4sIQQQq16sQBBHI")
HEADER_SIZE: Final = _HEADER.size
DIGEST_SIZE: Final = 16
NO_DIGEST: Final = bytes(DIGEST_SIZE)


def encode(batch: Batch) -> tuple[list[Buffer], bytes]:
    """The encoded batch as buffers to be written one after the other (payload not copied), and its digest, which is the last of them."""
    meta = b"" if batch.meta == BatchMeta() else msgspec.json.encode(batch.meta)
    extents = batch.extents.tobytes()
    header = _HEADER.pack(
        _MAGIC,
        len(batch.extents),
        batch.epoch,
        batch.number,
        batch.end_seq,
        batch.captured_ns,
        batch.predecessor,
        len(batch.payload),
        batch.state,
        0,
        0,
        len(meta),
    )
    hasher = xxhash.xxh3_128()
    parts: list[Buffer] = [header, meta, extents, batch.payload]
    for part in parts:
        hasher.update(part)
    digest = hasher.digest()
    return [*parts, digest], digest


def decode(data: Buffer, meta_max_b: int | None = None) -> tuple[Batch, bytes]:
    """The batch in `data` and its digest. Extents and payload are views into `data`, never copies.

    Raises IntegrityError when `data` is not exactly one whole, undamaged batch, or its meta part is longer than that.
    """
    view = memoryview(data)
    if len(view) < HEADER_SIZE + DIGEST_SIZE:
        raise _bad(f"{len(view)} bytes are too few")
    magic, count, epoch, number, end_seq, captured_ns, predecessor, payload_len, state, _, _, meta_len = (
        _HEADER.unpack_from(view)
    )
    if magic != _MAGIC:
        raise _bad("wrong magic number")
    if meta_max_b is not None and meta_len > meta_max_b:
        raise _bad(f"its meta part has {meta_len} bytes; at most {meta_max_b} are taken")
    extents_at = HEADER_SIZE + meta_len
    payload_at = extents_at + count * EXTENT.itemsize
    if payload_at + payload_len + DIGEST_SIZE != len(view):
        raise _bad(f"its lengths do not add up to {len(view)} bytes")
    digest = bytes(view[-DIGEST_SIZE:])
    if xxhash.xxh3_128(view[:-DIGEST_SIZE]).digest() != digest:
        raise _bad("its digest does not match")
    try:
        stream_state = StreamState(state)
        meta = decoding.decode(view[HEADER_SIZE:extents_at], type=BatchMeta) if meta_len else BatchMeta()
    except UNDECODABLE as exc:
        raise _bad(str(exc)) from exc
    extents = np.frombuffer(view[extents_at:payload_at], dtype=EXTENT)
    if payload_bytes(extents) != payload_len:
        raise _bad("its extents do not match its payload")
    return Batch(
        epoch=Epoch(epoch),
        number=BatchNumber(number),
        end_seq=Seq(end_seq),
        captured_ns=captured_ns,
        state=stream_state,
        predecessor=bytes(predecessor),
        extents=extents,
        payload=view[payload_at:-DIGEST_SIZE],
        meta=meta,
    ), digest


def named_rows(ranges: Sequence[Range]) -> npt.NDArray[np.int64]:
    """(disk, first sector, sectors) of each, as rows."""
    return np.array(ranges, np.int64).reshape(-1, 3)


def has_payload(extents: Extents) -> npt.NDArray[np.bool_]:
    """Which extents carry data in the payload."""
    mask: npt.NDArray[np.bool_] = (extents["op"] == Op.WRITE) | (extents["op"] == Op.SYNC)
    return mask


def payload_bytes(extents: Extents) -> int:
    """The payload length, in bytes, that these extents call for."""
    return int(extents["sectors"][has_payload(extents)].sum(dtype=np.uint64)) * SECTOR


def payload_offsets(extents: Extents) -> npt.NDArray[np.int64]:
    """Where in the payload each extent's data begins, in bytes (meaningless for extents without data)."""
    lengths = np.where(has_payload(extents), extents["sectors"], 0).astype(np.int64) * SECTOR
    return np.cumsum(lengths) - lengths


def make_extents(rows: Sequence[tuple[int, int, int, Op]]) -> Extents:
    """Extents from (disk, sector, sectors, op) rows; for small or rare arrays, not for hot paths."""
    extents = np.zeros(len(rows), EXTENT)
    for i, (disk, sector, sectors, op) in enumerate(rows):
        extents[i] = (sector, sectors, disk, op, 0)
    return extents


def _bad(cause: str) -> IntegrityError:
    return IntegrityError(
        "A batch could not be read",
        cause=cause,
        action="It is never applied; the sender is asked again, or the segment is damaged.",
    )

"""Frames: how messages are cut out of a byte stream. Layout: FORMAT.md.

`FrameReader` owns the memory that is read into: a transport asks where the next bytes go (`buffer`) and says
how many came (`advance`). So a batch of megabytes is decrypted straight into the one buffer that its consumer
gets; nothing is copied.

Safety argument: a body is allocated only after its header was found whole: right magic, right check, known
version and type, and a length within that type's limit. So no peer can make this end allocate more than one
MAX_BATCH_B at a time, and bytes that are not of this protocol are recognised within the first 16.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable
from typing import Final

import msgspec

from shared.batch import DIGEST_SIZE, Buffer
from shared.batch import HEADER_SIZE as BATCH_HEADER_SIZE
from shared.errors import MalformedFrameError, NotAFrameError, OversizedFrameError, VersionSkewError

MAGIC: Final = b"USWP"
FRAME_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<4sBBHI")
_CHECK: Final = struct.Struct("<I")
HEADER_SIZE: Final = _FIELDS.size + _CHECK.size
MAX_BATCH_B: Final = 17 * 1024 * 1024
"""Longest batch frame body: 16 MiB of payload, and room for its header and extents."""


class FrameType(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    BATCH = 3
    ACK = 4
    FAULT = 5
    FLUSH = 6
    PING = 7


LIMITS: Final[dict[FrameType, tuple[int, int]]] = {
    FrameType.HELLO: (1, 256 * 1024),
    FrameType.WELCOME: (1, 4 * 1024),
    FrameType.BATCH: (BATCH_HEADER_SIZE + DIGEST_SIZE, MAX_BATCH_B),
    FrameType.ACK: (1, 256),
    FrameType.FAULT: (1, 64 * 1024),
    FrameType.FLUSH: (1, 256),
    FrameType.PING: (1, 256),
}
"""Least and greatest length of a body, bytes, by type."""


class Frame(msgspec.Struct, frozen=True):
    type: FrameType
    body: bytearray
    """Owned by the receiver of the frame: the reader keeps no reference."""


def header(type_: FrameType, length: int) -> bytes:
    """The header of a frame whose body has `length` bytes. Raises OversizedFrameError beyond the type's
    limit."""
    least, most = LIMITS[type_]
    if not least <= length <= most:
        raise OversizedFrameError(
            f"A {type_.name} frame of {length} bytes was not sent",
            cause=f"{least} to {most} bytes are allowed",
        )
    fields = _FIELDS.pack(MAGIC, type_, FRAME_VERSION, 0, length)
    return fields + _CHECK.pack(zlib.crc32(fields))


def parse_header(data: Buffer) -> tuple[FrameType, int]:
    """Type and body length from HEADER_SIZE bytes.

    Raises NotAFrameError, VersionSkewError, MalformedFrameError or OversizedFrameError.
    """
    view = memoryview(data)
    magic, type_number, version, reserved, length = _FIELDS.unpack_from(view)
    if magic != MAGIC:
        # The bytes themselves are not shown: they could be a piece of somebody's disk.
        raise NotAFrameError("Bytes were received where a frame should begin")
    # The check comes before the version: a later version keeps these 16 bytes, else the skew could not be
    # named.
    if _CHECK.unpack_from(view, _FIELDS.size)[0] != zlib.crc32(view[: _FIELDS.size]):
        raise NotAFrameError(
            "A frame header was damaged",
            cause="its check does not match: bytes were lost or changed on the way",
        )
    if version != FRAME_VERSION:
        raise VersionSkewError(
            f"A frame of version {version} was received",
            cause=f"this end knows only version {FRAME_VERSION}",
        )
    try:
        type_ = FrameType(type_number)
    except ValueError as exc:
        raise MalformedFrameError(f"A frame of the unknown type {type_number} was received") from exc
    if reserved:
        raise MalformedFrameError(f"A {type_.name} frame was received with reserved bits set ({reserved:#x})")
    least, most = LIMITS[type_]
    if length > most:
        raise OversizedFrameError(
            f"A {type_.name} frame of {length} bytes was announced", cause=f"at most {most} bytes are allowed"
        )
    if length < least:
        raise MalformedFrameError(
            f"A {type_.name} frame of {length} bytes is too short", cause=f"it needs {least}"
        )
    return type_, length


class FrameReader:
    """Cuts a byte stream into frames; bytes arrive in pieces of any size."""

    def __init__(self, admit: Callable[[FrameType], object] = lambda _type: None) -> None:
        """`admit` is asked with the header, before anything is allocated; it raises when it wants no such
        frame."""
        self._admit = admit
        self._header = bytearray(HEADER_SIZE)
        self._type: FrameType | None = None
        self._target = memoryview(self._header)
        self._body = bytearray()
        self._filled = 0

    @property
    def inside(self) -> bool:
        """Whether part of a frame has arrived and the rest has not: an end of the stream here loses
        something."""
        return self._type is not None or self._filled > 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty, and never longer than the current header or body still
        lacks."""
        return self._target[self._filled :]

    def advance(self, count: int) -> Frame | None:
        """Note that `count` bytes were put into `buffer()`; the frame that they complete, if any.

        Raises the errors of `parse_header` and of `admit`; the reader must not be used after one.
        """
        self._filled += count
        if self._filled < len(self._target):
            return None
        self._filled = 0
        if self._type is None:
            type_, length = parse_header(self._header)
            self._admit(type_)
            self._type = type_
            self._body = bytearray(length)  # the length is within the type's limit: parse_header saw to it
            self._target = memoryview(self._body)
            return None
        frame = Frame(self._type, self._body)
        self._type, self._body, self._target = None, bytearray(), memoryview(self._header)
        return frame

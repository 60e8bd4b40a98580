"""The frame layer: headers, limits, who owns which memory."""

from __future__ import annotations

import struct
import zlib

import pytest

from shared.errors import (
    MalformedFrameError,
    NotAFrameError,
    OversizedFrameError,
    RemoteProtocolError,
    VersionSkewError,
)
from shared.wire import frames
from shared.wire.frames import HEADER_SIZE, LIMITS, MAX_BATCH_B, FrameReader, FrameType


def raw_header(
    type_: int = 3, version: int = 1, reserved: int = 0, length: int = 100, magic: bytes = b"USWP"
) -> bytes:
    fields = struct.pack("<4sBBHI", magic, type_, version, reserved, length)
    return fields + struct.pack("<I", zlib.crc32(fields))


def test_a_header_is_16_bytes_as_the_format_says() -> None:
    assert frames.header(FrameType.BATCH, 100) == raw_header()
    assert HEADER_SIZE == 16


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (raw_header(magic=b"GET "), NotAFrameError),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcde", NotAFrameError),
        (raw_header()[:-1] + b"\x00", NotAFrameError),
        (raw_header(version=2), VersionSkewError),
        (raw_header(type_=99), MalformedFrameError),
        (raw_header(reserved=1), MalformedFrameError),
        (raw_header(length=MAX_BATCH_B + 1), OversizedFrameError),
        (raw_header(length=2**32 - 1), OversizedFrameError),
        (raw_header(length=10), MalformedFrameError),
        (raw_header(type_=7, length=257), OversizedFrameError),
    ],
)
def test_each_bad_header_has_its_own_error(header: bytes, error: type[RemoteProtocolError]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        frames.parse_header(header)
    assert type(caught.value) is error
    assert caught.value.action


def test_the_bytes_of_a_bad_header_are_not_shown() -> None:
    with pytest.raises(NotAFrameError) as caught:
        frames.parse_header(b"SECRET-OF-A-DISK")
    assert "SECRET" not in str(caught.value)


def test_nothing_is_allocated_for_a_frame_that_is_too_long() -> None:
    reader = FrameReader()
    reader.buffer()[:] = raw_header(length=2**32 - 1)
    with pytest.raises(OversizedFrameError):
        reader.advance(HEADER_SIZE)
    assert len(reader.buffer()) == HEADER_SIZE


def test_a_header_beyond_the_limit_is_not_made() -> None:
    for type_, (least, most) in LIMITS.items():
        frames.header(type_, least)
        frames.header(type_, most)
        for length in (least - 1, most + 1):
            with pytest.raises(OversizedFrameError):
                frames.header(type_, length)


def test_a_body_is_filled_in_place_and_then_belongs_to_the_consumer() -> None:
    reader = FrameReader()
    reader.buffer()[:] = raw_header(length=100)
    assert reader.advance(HEADER_SIZE) is None
    target = reader.buffer()
    assert len(target) == 100
    target[:60] = b"a" * 60
    assert reader.advance(60) is None
    assert reader.inside
    rest = reader.buffer()
    rest[:] = b"b" * 40
    frame = reader.advance(40)
    assert frame is not None
    assert frame.body == b"a" * 60 + b"b" * 40
    assert not reader.inside
    # The very memory that the transport wrote into, not a copy.
    rest[0] = ord("c")
    assert frame.body[60] == ord("c")
    reader.buffer()[:] = raw_header(length=100)
    reader.advance(HEADER_SIZE)
    reader.buffer()[:] = b"x" * 100
    assert frame.body[:1] == b"a"


def test_the_reader_knows_whether_it_is_inside_a_frame() -> None:
    reader = FrameReader()
    assert not reader.inside
    reader.buffer()[:1] = b"U"
    reader.advance(1)
    assert reader.inside

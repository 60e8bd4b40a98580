"""The segment codec: what is sealed opens again; whatever else the bytes are, it is noticed."""

from __future__ import annotations

import itertools
import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batch import Batch, StreamState
from shared.errors import IntegrityError, SegmentAlteredError
from shared.keys.sealing import MachineKey
from shared.log import segment
from shared.log.segment import FileHeader, Scan
from tests.logs import KEY, OTHER_KEY, Made, make_batch, make_chain, make_draft, make_segment


def read_all(data: bytes, key: MachineKey = KEY) -> list[Batch]:
    """Everything that a reader does with a segment's bytes."""
    header, _ = segment.decode_file_header(data, "s")
    footer = segment.check_body(data, "s")
    file_key = key.file_key(header.salt_bytes)
    return [
        segment.open_frame(file_key, header, data[r.offset : r.offset + r.length], "s") for r in footer.rows
    ]


def with_footer(made: list[Made], body: bytes) -> bytes:
    """A segment whose footer is `body`, with a checksum that fits it."""
    draft, data = make_draft(made)
    length = struct.calcsize("<QI16sI8s")
    fields = list(struct.unpack("<QI16sI8s", draft.closing()[-length:]))
    fields[1], fields[3] = len(body), zlib.crc32(body)
    return data + b"USX1" + body + struct.pack("<QI16sI8s", *fields)


def scan(data: bytes) -> tuple[FileHeader, Scan]:
    header, start = segment.decode_file_header(data, "s")
    return header, segment.scan(data, start, header, KEY.file_key(header.salt_bytes), "s")


def same(found: list[Batch], made: list[Made]) -> bool:
    return [b.number for b in found] == [m.batch.number for m in made] and all(
        bytes(b.payload) == bytes(m.batch.payload)
        and b.predecessor == m.batch.predecessor
        and b.meta == m.batch.meta
        and (b.extents == m.batch.extents).all()
        for b, m in zip(found, made, strict=True)
    )


states = st.sampled_from(list(StreamState))
texts = st.text(max_size=20)


@settings(max_examples=60)
@given(
    first=st.integers(1, 2**40),
    shapes=st.lists(
        st.tuples(st.integers(0, 9), states, st.lists(texts, max_size=3), texts), min_size=1, max_size=6
    ),
)
def test_what_was_sealed_opens_again_with_its_rows_marks_and_cause(
    first: int, shapes: list[tuple[int, StreamState, list[str], str]]
) -> None:
    made: list[Made] = []
    for i, (sectors, state, marks, cause) in enumerate(shapes):
        predecessor = made[-1].digest if made else bytes(16)
        made.append(
            make_batch(first + i, predecessor, sectors=sectors, state=state, marks=marks, cause=cause)
        )
    data = make_segment(made)
    assert same(read_all(data), made)
    footer = segment.check_body(data, "s")
    assert [r.state for r in footer.rows] == [m.batch.state for m in made]
    assert [(m.batch, m.id) for m in footer.marks] == [
        (m.batch.number, mark.id) for m in made for mark in m.batch.meta.marks
    ]
    causes = [c for _, s, _, c in shapes if s != StreamState.ORDERED and c]
    assert footer.cause == (causes[-1] if causes else "")
    _, found = scan(data)
    assert found.footer == footer, "a scan of the frames finds what the footer says"
    assert found.why == ""


def test_a_tail_torn_at_any_byte_leaves_exactly_the_whole_batches() -> None:
    made = make_chain(4, sectors=1)
    draft, data = make_draft(made)
    ends = [row.offset + row.length for row in draft.rows]
    whole_file = data + draft.closing()
    start = len(draft.head)
    for size in range(start, len(whole_file)):
        _, found = scan(whole_file[:size])
        whole = sum(end <= size for end in ends)
        assert [r.number for r in found.footer.rows] == [1, 2, 3, 4][:whole]
        assert found.end == ([start, *ends][whole])
    for size in range(start):
        with pytest.raises(IntegrityError):
            segment.decode_file_header(whole_file[:size], "s")


def test_a_batch_that_never_reached_the_disk_ends_the_scan_although_its_header_did() -> None:
    draft, data = make_draft(make_chain(3))
    second = draft.rows[1]
    holed = bytearray(data)
    holed[second.offset + segment.FRAME_HEADER_B : second.offset + second.length] = bytes(
        second.length - segment.FRAME_HEADER_B
    )
    _, found = scan(bytes(holed))
    assert [r.number for r in found.footer.rows] == [1]
    assert "batch 2" in found.why


def test_a_changed_byte_anywhere_is_detected() -> None:
    made = make_chain(3, sectors=1)
    data = make_segment(made)
    rng = random.Random(1)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= rng.randrange(1, 256)
        with pytest.raises(IntegrityError):
            read_all(bytes(damaged))


def test_a_changed_frame_with_a_matching_digest_and_footer_does_not_open() -> None:
    """An attacker can compute CRCs and xxh3; only the seal stops him."""
    made = make_chain(3, sectors=1)
    draft, data = make_draft(made)
    header, start = segment.decode_file_header(data, "s")
    file_key = KEY.file_key(header.salt_bytes)
    row = draft.rows[1]
    for at in range(row.offset, row.offset + row.length):
        frame = bytearray(data[row.offset : row.offset + row.length])
        frame[at - row.offset] ^= 1
        if not 60 <= at - row.offset < 64:  # the CRC itself
            _fix_crc(frame)
        with pytest.raises(IntegrityError):
            segment.open_frame(file_key, header, frame, "s")
    assert start == draft.rows[0].offset


def _fix_crc(frame: bytearray) -> None:
    struct.pack_into("<I", frame, 60, zlib.crc32(frame[:60]))


def test_a_frame_does_not_open_in_another_file_machine_or_epoch() -> None:
    made = make_chain(2)
    draft, data = make_draft(made)
    frame = data[draft.rows[0].offset : draft.rows[0].offset + draft.rows[0].length]
    header, _ = segment.decode_file_header(data, "s")
    other, _ = segment.decode_file_header(make_segment(made), "s")
    key = KEY.file_key(header.salt_bytes)
    assert segment.open_frame(key, header, frame, "s").number == 1
    with pytest.raises(SegmentAlteredError):
        segment.open_frame(KEY.file_key(other.salt_bytes), other, frame, "s")
    for changed in ({"machine": "m2"}, {"epoch": 2}, {"claim": "f" * 16}):
        lying = FileHeader(**({f: getattr(header, f) for f in header.__struct_fields__} | changed))
        with pytest.raises(SegmentAlteredError):
            segment.open_frame(key, lying, frame, "s")
    with pytest.raises(SegmentAlteredError):
        segment.open_frame(OTHER_KEY.file_key(header.salt_bytes), header, frame, "s")


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 60))
def test_garbage_is_an_integrity_error_and_nothing_else(garbage: bytes, keep: int) -> None:
    data = make_segment(make_chain(1, sectors=0))
    for candidate in (garbage, data[:keep] + garbage, data[: keep * 8] + garbage):
        with pytest.raises(IntegrityError):
            read_all(candidate)


@given(st.lists(states, min_size=1, max_size=12))
def test_ordered_ranges_are_the_runs_of_ordered_batches(run: list[StreamState]) -> None:
    made = [make_batch(i + 5, state=s, sectors=0) for i, s in enumerate(run)]
    ranges = list(segment.ordered_ranges(make_draft(made)[0].rows))
    covered = [n for a, b in ranges for n in range(a, b + 1)]
    assert covered == [m.batch.number for m in made if m.batch.state == StreamState.ORDERED]
    assert all(b + 1 < c for (_, b), (c, _) in itertools.pairwise(ranges))


def test_the_plaintext_is_nowhere_in_a_segment() -> None:
    made = [make_batch(1, sectors=8), make_batch(2, sectors=8)]
    data = make_segment(made)
    for m in made:
        assert bytes(m.batch.payload)[:32] not in data


@pytest.mark.parametrize("body", [b"", b'{"rows":[],"cause":"\xff"}', b'{"more":' + b"[" * 100_000])
def test_a_footer_that_is_no_document_is_damage(body: bytes) -> None:
    with pytest.raises(SegmentAlteredError, match="footer"):
        segment.check_body(with_footer(make_chain(1), body), "s")

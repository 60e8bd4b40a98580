"""The wire under arbitrary values, arbitrary cuts of the byte stream, and garbage."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batch import EXTENT, NO_DIGEST, Batch, BatchMeta, BatchNumber, Epoch, Mark, Seq, StreamState
from shared.batch import decode as decode_batch
from shared.batch import encode as encode_batch
from shared.errors import IntegrityError, RemoteProtocolError
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.messages import Ack, DiskInfo, Fault, Flush, Hello, Ping, Welcome, pack, unpack
from shared.wire.protocol import (
    BatchReceived,
    Connection,
    Event,
    Failed,
    FlushReceived,
    HelloReceived,
    Side,
    State,
)
from tests.epoch_ids import CLAIM
from tests.wire_parts import Chain, hello

counts = st.integers(0, 2**63 - 1)
ranges = st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**55 - 1), st.integers(0, 2**55 - 1))
texts = st.text(max_size=50)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
digests = st.binary(min_size=16, max_size=16)
disks = st.builds(
    DiskInfo,
    number=st.integers(0, 2**16 - 1),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._!-]{0,20}", fullmatch=True),
    serial=st.text(max_size=20),
    sectors=counts,
)
claims = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        Hello,
        protocol_min=counts,
        protocol_max=counts,
        machine=names,
        epoch=counts,
        claim=claims | st.just(""),
        seen=counts,
        reason=texts,
        agent_id=texts,
        disks=st.lists(disks, max_size=4).map(tuple),
        held_from=counts,
        last_sent=counts,
    ),
    st.builds(
        Welcome,
        protocol=counts,
        epoch=counts,
        claim=claims,
        spooled=counts,
        spooled_seq=counts,
        spooled_digest=digests,
        uploaded=counts,
        uploaded_seq=counts,
        credit_b=counts,
        session=texts,
    ),
    st.builds(Ack, spooled=counts, spooled_seq=counts, uploaded=counts, uploaded_seq=counts, credit_b=counts),
    st.builds(
        Fault,
        code=texts,
        what=texts,
        cause=texts,
        action=texts,
        retry_after_s=st.floats(0, 1e6),
        new_epoch=st.booleans(),
    ),
    st.just(Flush()),
    st.just(Ping()),
)


@given(messages)
def test_every_message_survives_the_wire(message: Any) -> None:
    assert unpack(pack(message), type(message)) == message


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    count = draw(st.integers(0, 5))
    extents = np.zeros(count, EXTENT)
    for index in range(count):
        extents[index] = (
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 9)),
            draw(st.integers(0, 2**16 - 1)),
            draw(st.integers(1, 4)),
            0,
        )
    with_data = (extents["op"] == 1) | (extents["op"] == 3)
    size_b = int(extents["sectors"][with_data].sum()) * 512
    return Batch(
        epoch=Epoch(draw(st.integers(0, 2**64 - 1))),
        number=BatchNumber(draw(st.integers(0, 2**64 - 1))),
        end_seq=Seq(draw(st.integers(0, 2**64 - 1))),
        captured_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        state=draw(st.sampled_from(StreamState)),
        predecessor=draw(digests),
        extents=extents,
        payload=bytes([draw(st.integers(0, 255))]) * size_b,
        meta=draw(
            st.builds(
                BatchMeta,
                marks=st.lists(st.builds(Mark, id=texts, consistency=texts), max_size=2).map(tuple),
                unreadable=st.lists(ranges, max_size=2).map(tuple),
                cause=texts,
            )
        ),
    )


@given(batches())
def test_every_batch_survives_encoding(batch: Batch) -> None:
    parts, digest = encode_batch(batch)
    again, digest_again = decode_batch(b"".join(parts))
    assert digest_again == digest
    assert again.extents.tobytes() == batch.extents.tobytes()
    assert bytes(again.payload) == bytes(batch.payload)
    for name in ("epoch", "number", "end_seq", "captured_ns", "state", "predecessor", "meta"):
        assert getattr(again, name) == getattr(batch, name)


@given(batches(), st.data())
def test_no_changed_or_cut_batch_is_taken_for_a_batch(batch: Batch, data: st.DataObject) -> None:
    encoded = bytearray(b"".join(encode_batch(batch)[0]))
    position = data.draw(st.integers(0, len(encoded) - 1))
    damaged = bytearray(encoded)
    damaged[position] ^= data.draw(st.integers(1, 255))
    for wrong in (damaged, encoded[:position], encoded + b"\0"):
        with pytest.raises(IntegrityError):
            decode_batch(wrong)


def server_stream() -> tuple[bytes, list[type[Event]]]:
    """What an agent sends in a small session, and the events that it must make."""
    agent = Connection(Side.AGENT)
    stream = b"".join(agent.send_hello(hello()))
    kinds: list[type[Event]] = [HelloReceived]
    chain = Chain()
    for sectors in (0, 1, 8):
        batch = chain.next(sectors=sectors) if sectors else chain.next(sectors=1)
        stream += frames.header(FrameType.BATCH, batch.size_b) + b"".join(batch.parts)
        kinds.append(BatchReceived)
    for type_, body in ((FrameType.PING, pack(Ping())), (FrameType.FLUSH, pack(Flush()))):
        stream += frames.header(type_, len(body)) + body
    return stream, [*kinds, FlushReceived]


STREAM, KINDS = server_stream()
WELCOME = Welcome(
    epoch=1,
    claim=CLAIM,
    spooled=0,
    spooled_seq=0,
    spooled_digest=NO_DIGEST,
    uploaded=0,
    uploaded_seq=0,
    credit_b=1 << 20,
)


def run_server(pieces: list[bytes]) -> tuple[Connection, list[Event]]:
    """Feed a server; it answers HELLO with WELCOME as soon as it sees it."""
    server, events = Connection(Side.SERVER), []
    for piece in pieces:
        for event in server.receive_data(piece):
            events.append(event)
        if server.state is State.GREETED:
            server.send_welcome(WELCOME)
    return server, events


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_of_the_stream_change_nothing(cuts: list[int]) -> None:
    # HELLO ends a piece of its own: an agent waits for WELCOME before it goes on.
    first = 16 + int.from_bytes(STREAM[8:12], "little")
    bounds = sorted({0, first, len(STREAM), *cuts})
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(bounds)]
    server, events = run_server(pieces)
    assert [type(event) for event in events] == KINDS
    assert server.receive_eof()


@given(st.binary(max_size=400))
def test_garbage_never_does_more_than_end_the_session(garbage: bytes) -> None:
    server = Connection(Side.SERVER)
    events = server.receive_data(garbage)
    if len(garbage) >= 16:
        [event] = events
        assert isinstance(event, Failed)
        assert isinstance(event.error, RemoteProtocolError)
        assert server.state is State.CLOSED
    else:
        assert events == []


@settings(max_examples=200)
@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255))
def test_one_changed_byte_is_found_or_harmless(position: int, flip: int) -> None:
    """A changed stream makes a prefix of the true one's batches, then at most a failure; never another
    batch."""
    changed = bytearray(STREAM)
    changed[position] ^= flip
    first = 16 + int.from_bytes(STREAM[8:12], "little")
    server, events = run_server([bytes(changed[:first]), bytes(changed[first:])])
    true = run_server([STREAM[:first], STREAM[first:]])[1]
    digests_of = [event.digest for event in events if isinstance(event, BatchReceived)]
    true_digests = [event.digest for event in true if isinstance(event, BatchReceived)]
    assert digests_of == true_digests[: len(digests_of)]
    for event in events:
        if isinstance(event, Failed):
            assert isinstance(event.error, RemoteProtocolError)
            assert server.state is State.CLOSED


@given(st.sampled_from(list(FrameType)), st.binary(min_size=1, max_size=200))
def test_any_body_in_a_good_frame_is_an_event_or_a_fault(type_: FrameType, body: bytes) -> None:
    least, most = frames.LIMITS[type_]
    body = body.ljust(least, b"\0")[:most]
    for side, pieces in ((Side.SERVER, [STREAM]), (Side.AGENT, [])):
        connection = Connection(side)
        if pieces:
            first = 16 + int.from_bytes(STREAM[8:12], "little")
            connection, _ = run_server([STREAM[:first]])
        events = connection.receive_data(frames.header(type_, len(body)) + body)
        assert len(events) <= 1

"""The session's rules: both ends of a Connection, joined by nothing but bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import pytest
from msgspec.structs import replace

from shared.batch import (
    META_MAX_B,
    NO_DIGEST,
    Batch,
    BatchMeta,
    BatchNumber,
    Buffer,
    Epoch,
    Seq,
    StreamState,
    decode,
    encode,
    make_extents,
)
from shared.errors import (
    BatchGapError,
    ContinuityError,
    LocalProtocolError,
    MalformedFrameError,
    OversizedFrameError,
    TruncatedFrameError,
    UnexpectedFrameError,
    VersionSkewError,
)
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.messages import Ack, DiskInfo, Fault, Hello, Welcome, pack
from shared.wire.protocol import (
    TRANSITIONS,
    Acked,
    BatchReceived,
    Connection,
    DuplicateReceived,
    Ended,
    Event,
    Failed,
    Faulted,
    FlushReceived,
    HelloReceived,
    Side,
    State,
    Welcomed,
)
from tests.epoch_ids import eid
from tests.wire_parts import Chain, hello

WINDOW_B = 1 << 20


def joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def welcome(
    epoch: int = 1, spooled: int = 0, digest: bytes = NO_DIGEST, credit_b: int = WINDOW_B, protocol: int = 1
) -> Welcome:
    return Welcome(
        protocol=protocol,
        epoch=epoch,
        claim=eid(epoch).claim,
        spooled=spooled,
        spooled_seq=spooled,
        spooled_digest=digest,
        uploaded=0,
        uploaded_seq=0,
        credit_b=credit_b,
    )


def ack(spooled: int, uploaded: int = 0, credit_b: int = WINDOW_B) -> Ack:
    return Ack(
        spooled=spooled, spooled_seq=spooled, uploaded=uploaded, uploaded_seq=uploaded, credit_b=credit_b
    )


def greeted(message: Hello | None = None) -> tuple[Connection, Connection]:
    agent, server = Connection(Side.AGENT), Connection(Side.SERVER)
    [event] = server.receive_data(joined(agent.send_hello(message or hello())))
    assert isinstance(event, HelloReceived)
    return agent, server


def opened(message: Hello | None = None, answer: Welcome | None = None) -> tuple[Connection, Connection]:
    agent, server = greeted(message)
    [event] = agent.receive_data(joined(server.send_welcome(answer or welcome())))
    assert isinstance(event, Welcomed)
    return agent, server


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def test_a_session_runs_from_hello_to_acknowledgement() -> None:
    agent, server = opened()
    chain = Chain()
    batch = chain.next()
    [event] = server.receive_data(joined(agent.send_batch(batch.number, batch.parts)))
    assert isinstance(event, BatchReceived)
    assert event.encoded == joined(batch.parts)
    assert event.digest == batch.digest
    assert event.batch.number == 1
    assert agent.in_flight_b == batch.size_b
    [acked] = agent.receive_data(joined(server.send_ack(ack(1))))
    assert isinstance(acked, Acked)
    assert agent.in_flight_b == 0
    assert agent.next_number == 2


def test_a_session_goes_on_behind_the_stored_batch() -> None:
    chain = Chain()
    for _ in range(3):
        third = chain.next()
    agent, server = opened(hello(epoch=1, last_sent=5), welcome(spooled=3, digest=third.digest))
    fourth = chain.next()
    [event] = server.receive_data(joined(agent.send_batch(fourth.number, fourth.parts)))
    assert isinstance(event, BatchReceived)


def test_the_payload_is_neither_copied_by_the_sender_nor_by_the_receiver() -> None:
    agent, server = opened()
    batch = Chain().next(sectors=64)
    payload = max(batch.parts, key=len)
    assert any(part is payload for part in agent.send_batch(batch.number, batch.parts))
    stream = frames.header(FrameType.BATCH, batch.size_b) + joined(batch.parts)
    server.receive_data(stream[:16])
    target = server.get_buffer()
    assert len(target) == batch.size_b
    target[:] = stream[16:]
    [event] = server.buffer_updated(batch.size_b)
    assert isinstance(event, BatchReceived)
    target[100] ^= 0xFF
    assert event.encoded[100] == target[100]


def test_empty_parts_are_not_sent() -> None:
    agent, _ = opened()
    batch = Chain().next()
    assert any(len(part) == 0 for part in batch.parts)
    assert all(len(part) for part in agent.send_batch(batch.number, batch.parts))


def test_ping_is_taken_wherever_it_may_be_sent_and_never_answered() -> None:
    agent, server = Connection(Side.AGENT), Connection(Side.SERVER)
    assert agent.send_ping() == []
    server.receive_data(joined(agent.send_hello(hello())))
    for _ in range(2):
        assert server.receive_data(joined(agent.send_ping())) == []
        assert agent.receive_data(joined(server.send_ping())) == []
        if server.state is State.GREETED:
            agent.receive_data(joined(server.send_welcome(welcome())))


def test_flush_reaches_the_server() -> None:
    agent, server = opened()
    assert server.receive_data(joined(agent.send_flush())) == [FlushReceived()]


@pytest.mark.parametrize("side", list(Side))
def test_a_fault_ends_the_session_for_both(side: Side) -> None:
    ends = dict(zip(Side, opened(), strict=True))
    sender = ends.pop(side)
    [receiver] = ends.values()
    fault = Fault(code="US455", what="Stopping")
    assert receiver.receive_data(joined(sender.send_fault(fault))) == [Faulted(fault)]
    assert sender.state is receiver.state is State.CLOSED
    assert receiver.send_fault(fault) == []
    assert receiver.receive_data(b"anything") == []
    assert receiver.receive_eof() == []


def test_an_end_between_frames_is_an_end_and_inside_a_frame_an_error() -> None:
    _, server = opened()
    assert server.receive_eof() == [Ended()]
    agent, server = opened()
    batch = Chain().next()
    server.receive_data(joined(agent.send_batch(batch.number, batch.parts))[:-1])
    failed = failure(server.receive_eof())
    assert isinstance(failed.error, TruncatedFrameError)
    assert failed.reply == []


def every_wrong_frame() -> list[tuple[State, Side, FrameType]]:
    states = (State.IDLE, State.GREETED, State.OPEN)
    return [key for key in itertools.product(states, Side, FrameType) if key not in TRANSITIONS]


@pytest.mark.parametrize(("state", "sender", "type_"), every_wrong_frame())
def test_what_the_table_does_not_allow_is_refused_by_both_ends(
    state: State, sender: Side, type_: FrameType
) -> None:
    ends: dict[State, Callable[[], tuple[Connection, Connection]]] = {
        State.IDLE: lambda: (Connection(Side.AGENT), Connection(Side.SERVER)),
        State.GREETED: greeted,
        State.OPEN: opened,
    }
    agent, server = ends[state]()
    local, remote = (agent, server) if sender is Side.AGENT else (server, agent)
    if state is State.GREETED:
        assert local.state is State.GREETED
    batch = Chain().next()
    sends: dict[FrameType, Callable[[], object]] = {
        FrameType.HELLO: lambda: local.send_hello(hello()),
        FrameType.WELCOME: lambda: local.send_welcome(welcome()),
        FrameType.BATCH: lambda: local.send_batch(batch.number, batch.parts),
        FrameType.ACK: lambda: local.send_ack(ack(0)),
        FrameType.FLUSH: lambda: local.send_flush(),
    }
    if (
        type_ is not FrameType.PING
    ):  # a PING out of place is silently not sent: keepalive need not know states
        with pytest.raises(LocalProtocolError):
            sends[type_]()
    body = joined(batch.parts) if type_ is FrameType.BATCH else b"\x80"
    failed = failure(remote.receive_data(frames.header(type_, len(body)) + body))
    assert isinstance(failed.error, UnexpectedFrameError)
    [fault] = local.receive_data(joined(failed.reply))
    assert isinstance(fault, Faulted)
    assert fault.fault.code == UnexpectedFrameError.code


def test_a_frame_that_has_no_place_now_is_refused_by_its_header() -> None:
    """A batch of 17 MiB costs a server that has not welcomed anybody no memory."""
    server = Connection(Side.SERVER)
    failed = failure(server.receive_data(frames.header(FrameType.BATCH, frames.MAX_BATCH_B)))
    assert isinstance(failed.error, UnexpectedFrameError)
    assert len(server.get_buffer()) == frames.HEADER_SIZE


def test_frames_before_a_bad_one_still_count() -> None:
    agent, server = opened()
    batch = Chain().next()
    events = server.receive_data(joined(agent.send_batch(batch.number, batch.parts)) + b"garbage, 16 bytes")
    assert isinstance(events[0], BatchReceived)
    failure(events)
    assert server.receive_data(joined(batch.parts)) == []


@pytest.mark.parametrize("more", [0, 1])
def test_a_meta_part_that_is_longer_than_any_agents_is_not_read_from_a_peer_but_from_storage(
    more: int,
) -> None:
    agent, server = opened()
    empty = len(msgspec.json.encode(BatchMeta(cause="x"))) - 1
    batch = Batch(
        epoch=Epoch(1),
        number=BatchNumber(1),
        end_seq=Seq(0),
        captured_ns=0,
        state=StreamState.BITMAP,
        predecessor=NO_DIGEST,
        extents=make_extents([]),
        payload=b"",
        meta=BatchMeta(cause="x" * (META_MAX_B - empty + more)),
    )
    parts, digest = encode(batch)
    assert decode(joined(parts))[1] == digest
    events = server.receive_data(joined(agent.send_batch(batch.number, parts)))
    if more:
        assert "meta part" in failure(events).error.cause
    else:
        assert isinstance(events[0], BatchReceived)


def test_a_damaged_batch_is_refused() -> None:
    agent, server = opened()
    batch = Chain().next()
    stream = bytearray(joined(agent.send_batch(batch.number, batch.parts)))
    stream[200] ^= 1
    assert isinstance(failure(server.receive_data(stream)).error, MalformedFrameError)


def test_a_body_that_is_no_message_is_refused() -> None:
    deep = b"\x81\xa1x" + b"\x91" * 200_000 + b"\xc0"
    not_utf8 = pack(hello()).replace(b"\xa3lab", b"\xa3l\xecb")
    for body in (b"\xc1", b"\x80", pack(ack(1)), b"\x81\xa7machine\x01", deep, not_utf8):
        server = Connection(Side.SERVER)
        events = server.receive_data(frames.header(FrameType.HELLO, len(body)) + body)
        assert isinstance(failure(events).error, MalformedFrameError)


@pytest.mark.parametrize("name", ["", ".", "../up", "a/b", "a\n", "x" * 64, "-a", "ä"])
def test_a_machine_name_that_is_no_name_is_refused(name: str) -> None:
    body = pack(hello(machine=name))
    server = Connection(Side.SERVER)
    failure(server.receive_data(frames.header(FrameType.HELLO, len(body)) + body))


@pytest.mark.parametrize("disks", [(), ((1, "sda"), (1, "sdb")), ((1, "sda"), (2, "sda"))])
def test_a_hello_without_disks_or_with_two_that_are_one_is_refused(
    disks: tuple[tuple[int, str], ...],
) -> None:
    infos = tuple(DiskInfo(number=number, name=name, serial="", sectors=1) for number, name in disks)
    agent, server = Connection(Side.AGENT), Connection(Side.SERVER)
    message = Hello(machine="lab", epoch=0, disks=infos)
    failure(server.receive_data(joined(agent.send_hello(message))))


@pytest.mark.parametrize("name", ["", "..", "../sda", "a/b", ".sda", "s\x00", "x" * 129])
def test_a_disk_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    body = pack(Hello(machine="lab", epoch=0, disks=(DiskInfo(number=0, name=name, serial="", sectors=1),)))
    server = Connection(Side.SERVER)
    failure(server.receive_data(frames.header(FrameType.HELLO, len(body)) + body))


def test_versions_that_do_not_meet_are_named_as_such() -> None:
    agent, server = Connection(Side.AGENT), Connection(Side.SERVER)
    failed = failure(server.receive_data(joined(agent.send_hello(hello(protocol_min=2, protocol_max=3)))))
    assert isinstance(failed.error, VersionSkewError)
    [event] = agent.receive_data(joined(failed.reply))
    assert isinstance(event, Faulted)
    assert event.fault.retry_after_s >= 30
    agent, server = greeted()
    failed = failure(agent.receive_data(joined(server.send_welcome(welcome(protocol=2)))))
    assert isinstance(failed.error, VersionSkewError)


def test_a_later_agent_that_still_speaks_our_version_is_welcome() -> None:
    opened(hello(protocol_min=1, protocol_max=9))


def test_a_server_that_is_ahead_of_the_agent_is_lost_continuity() -> None:
    agent, server = greeted(hello(epoch=1, last_sent=2))
    with pytest.raises(ContinuityError) as caught:
        server.send_welcome(welcome(spooled=3, digest=b"x" * 16))
    [event] = agent.receive_data(joined(server.send_fault(Fault.of(caught.value))))
    assert isinstance(event, Faulted)
    assert event.fault.new_epoch


def test_the_agent_finds_lost_continuity_by_itself() -> None:
    agent, _ = greeted(hello(epoch=1, last_sent=2))
    body = pack(welcome(spooled=3))
    failed = failure(agent.receive_data(frames.header(FrameType.WELCOME, len(body)) + body))
    assert failed.error.ends_epoch


def test_a_welcome_to_another_epoch_is_refused() -> None:
    agent, server = greeted(hello(epoch=4))
    assert isinstance(
        failure(agent.receive_data(joined(server.send_welcome(welcome(epoch=5))))).error, MalformedFrameError
    )


def test_a_batch_that_comes_again_is_reported_as_duplicate() -> None:
    agent, server = opened()
    batch = Chain().next()
    stream = joined(agent.send_batch(batch.number, batch.parts))
    server.receive_data(stream)
    assert server.receive_data(stream) == [DuplicateReceived(batch.number)]


def test_a_gap_is_refused_by_the_receiver_and_not_sent_by_the_sender() -> None:
    agent, server = opened()
    chain = Chain()
    chain.next()
    second = chain.next()
    with pytest.raises(LocalProtocolError):
        agent.send_batch(second.number, second.parts)
    stream = frames.header(FrameType.BATCH, second.size_b) + joined(second.parts)
    assert isinstance(failure(server.receive_data(stream)).error, BatchGapError)


def test_an_oversized_batch_is_not_sent() -> None:
    agent, _ = opened(answer=welcome(credit_b=1 << 30))
    with pytest.raises(OversizedFrameError):
        agent.send_batch(BatchNumber(1), [bytes(frames.MAX_BATCH_B + 1)])
    assert agent.next_number == 1


def test_credit_bounds_what_is_on_its_way() -> None:
    chain = Chain()
    first, second, third = chain.next(), chain.next(), chain.next()
    agent, server = opened(answer=welcome(credit_b=first.size_b + second.size_b))
    for batch in (first, second):
        assert agent.may_send(batch.size_b)
        server.receive_data(joined(agent.send_batch(batch.number, batch.parts)))
    assert not agent.may_send(third.size_b)
    with pytest.raises(LocalProtocolError):
        agent.send_batch(third.number, third.parts)
    agent.receive_data(joined(server.send_ack(ack(1, credit_b=first.size_b + second.size_b))))
    assert agent.may_send(third.size_b)


def test_a_batch_larger_than_the_credit_goes_alone_and_credit_0_stops_all() -> None:
    agent, server = opened(answer=welcome(credit_b=1))
    batch = Chain().next()
    assert agent.may_send(batch.size_b)
    server.receive_data(joined(agent.send_batch(batch.number, batch.parts)))
    assert not agent.may_send(1)
    agent.receive_data(joined(server.send_ack(ack(1, credit_b=0))))
    assert not agent.may_send(1)


def test_nothing_may_be_sent_before_the_session_is_open() -> None:
    assert not Connection(Side.AGENT).may_send(1)


@pytest.mark.parametrize(
    "wrong", [ack(2), ack(0), ack(1, uploaded=2)], ids=["never received", "goes back", "uploaded first"]
)
def test_an_impossible_ack_is_neither_sent_nor_taken(wrong: Ack) -> None:
    agent, server = opened()
    batch = Chain().next()
    server.receive_data(joined(agent.send_batch(batch.number, batch.parts)))
    agent.receive_data(joined(server.send_ack(ack(1))))
    with pytest.raises(LocalProtocolError):
        server.send_ack(wrong)
    body = pack(wrong)
    failed = failure(agent.receive_data(frames.header(FrameType.ACK, len(body)) + body))
    assert isinstance(failed.error, MalformedFrameError)


SENT = bytes(range(16))
CONTINUED = welcome(spooled=3, digest=SENT)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (hello(epoch=1, last_sent=5), replace(CONTINUED, claim=eid(1, life=2).claim)),
        (hello(epoch=1, last_sent=5), replace(CONTINUED, epoch=2)),
        (hello(epoch=1, last_sent=5, claim=""), CONTINUED),
        (hello(seen=4), welcome(epoch=4)),
        (hello(seen=4), welcome(epoch=3)),
        (hello(), replace(welcome(), epoch=0)),
        (hello(epoch=1, last_sent=5), replace(CONTINUED, uploaded=4)),
        (hello(epoch=1, last_sent=5), replace(CONTINUED, uploaded_seq=4)),
        (hello(), welcome(digest=SENT)),
        (hello(), replace(welcome(), spooled_seq=9)),
        (hello(), replace(welcome(), uploaded=1)),
    ],
)
def test_an_impossible_welcome_is_refused_and_ends_no_epoch(asked: Hello, answer: Welcome) -> None:
    agent, _ = greeted(asked)
    body = pack(answer)
    failed = failure(agent.receive_data(frames.header(FrameType.WELCOME, len(body)) + body))
    assert isinstance(failed.error, MalformedFrameError)
    assert not failed.error.ends_epoch


def test_a_welcome_without_a_claim_cannot_be_read() -> None:
    agent, _ = greeted()
    body = pack(welcome()).replace(eid(1).claim.encode(), b"not sixteen hex!")
    failed = failure(agent.receive_data(frames.header(FrameType.WELCOME, len(body)) + body))
    assert isinstance(failed.error, MalformedFrameError)


@pytest.mark.parametrize("said", [ack(4), ack(2, uploaded=3), ack(1)])
def test_an_acknowledgement_of_what_was_never_sent_frees_nothing(said: Ack) -> None:
    agent, _ = opened(
        hello(epoch=1, last_sent=5), replace(welcome(spooled=2, digest=SENT), uploaded=1, uploaded_seq=1)
    )
    body = pack(said)
    failed = failure(agent.receive_data(frames.header(FrameType.ACK, len(body)) + body))
    assert isinstance(failed.error, MalformedFrameError)

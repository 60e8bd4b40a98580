"""The session's rules: one `Connection` per end. Bytes in, events out; messages in, buffers out. Pure.

    agent            process server
      HELLO    ─►                        IDLE    → GREETED
               ◄─    WELCOME             GREETED → OPEN       where to go on, and how much may be on its way
      BATCH    ─►                        OPEN
               ◄─    ACK                 OPEN                 durable up to; uploaded up to; credit
      FLUSH    ─►                        OPEN                 upload now
      PING     ◄─►                       GREETED, OPEN        alive; answered if it asks
      FAULT    ◄─►                       any     → CLOSED     why the session ends

Both ends run the same table (`TRANSITIONS`): each applies it to what it sends and to what it receives, and
both come through the same states because nothing moves a session on but the agent's HELLO and the server's
WELCOME.

Blame is typed: what this end may not send raises LocalProtocolError at the call; what the peer may not send
becomes a `Failed` event with a RemoteProtocolError and the bytes of the FAULT that tells it so. After
`Failed`, `Faulted` or `Ended` the connection is CLOSED: it takes and gives nothing more.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Sequence as Seq_
from typing import Final, TypeVar

import msgspec

from shared import batch as batches
from shared.batch import BatchNumber, Buffer, Epoch, Seq
from shared.errors import (
    ContinuityError,
    CopyRefusedError,
    IntegrityError,
    LocalProtocolError,
    MachineAwaitedError,
    MalformedFrameError,
    PeerError,
    RemoteProtocolError,
    TooManyHellosError,
    TruncatedFrameError,
    UnderstudyError,
    UnexpectedFrameError,
    VersionSkewError,
)
from shared.wire import frames
from shared.wire.events import (
    Acked,
    BatchReceived,
    DuplicateReceived,
    Ended,
    Event,
    Failed,
    Faulted,
    FlushReceived,
    HelloReceived,
    Pinged,
    Welcomed,
)
from shared.wire.frames import Frame, FrameReader, FrameType
from shared.wire.messages import PROTOCOL, Ack, Fault, Flush, Hello, Message, Ping, Welcome, pack, unpack
from shared.wire.sequence import Sequence

__all__ = [
    "TRANSITIONS",
    "Acked",
    "BatchReceived",
    "Connection",
    "DuplicateReceived",
    "Ended",
    "Event",
    "Failed",
    "Faulted",
    "FlushReceived",
    "HelloReceived",
    "Pinged",
    "Side",
    "State",
    "Welcomed",
    "fault_for",
]

_M = TypeVar("_M", bound=msgspec.Struct)


class Side(enum.Enum):
    AGENT = "agent"
    SERVER = "process server"


class State(enum.Enum):
    IDLE = "idle"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"


_A, _S = Side.AGENT, Side.SERVER
TRANSITIONS: Final[dict[tuple[State, Side, FrameType], State]] = {
    # (state, who sends, what) → state afterwards; what is not here is not allowed
    (State.IDLE, _A, FrameType.HELLO): State.GREETED,
    (State.IDLE, _A, FrameType.FAULT): State.CLOSED,
    (State.IDLE, _S, FrameType.FAULT): State.CLOSED,
    (State.GREETED, _S, FrameType.WELCOME): State.OPEN,
    (State.GREETED, _A, FrameType.PING): State.GREETED,
    (State.GREETED, _S, FrameType.PING): State.GREETED,
    (State.GREETED, _A, FrameType.FAULT): State.CLOSED,
    (State.GREETED, _S, FrameType.FAULT): State.CLOSED,
    (State.OPEN, _A, FrameType.BATCH): State.OPEN,
    (State.OPEN, _A, FrameType.FLUSH): State.OPEN,
    (State.OPEN, _S, FrameType.ACK): State.OPEN,
    (State.OPEN, _A, FrameType.PING): State.OPEN,
    (State.OPEN, _S, FrameType.PING): State.OPEN,
    (State.OPEN, _A, FrameType.FAULT): State.CLOSED,
    (State.OPEN, _S, FrameType.FAULT): State.CLOSED,
}


class Connection:
    """One end of one session."""

    def __init__(self, side: Side) -> None:
        self.side: Final = side
        self.state = State.IDLE
        self.hello: Hello | None = None
        self.welcome: Welcome | None = None
        self.peer: Final = Side.SERVER if side is Side.AGENT else Side.AGENT
        self._reader = FrameReader(self._admit)
        self._sequence: Sequence | None = None
        # Server: the last Ack sent. Agent: the last one received. Both begin at Welcome's values.
        self._acked = Ack(spooled=0, spooled_seq=0, uploaded=0, uploaded_seq=0, credit_b=0)
        self._sent = 0
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_b = 0

    # ---- bytes in ----

    def get_buffer(self) -> memoryview:
        """Where the next bytes from the transport belong (never empty)."""
        return self._reader.buffer()

    def buffer_updated(self, count: int) -> list[Event]:
        """`count` bytes were put into `get_buffer()`; what they mean."""
        if self.state is State.CLOSED:
            return []
        try:
            frame = self._reader.advance(count)
            return [] if frame is None else self._receive(frame)
        except RemoteProtocolError as exc:
            return [self._fail(exc)]

    def receive_data(self, data: Buffer) -> list[Event]:
        """The same for bytes that lie elsewhere already: they are copied."""
        events: list[Event] = []
        rest = memoryview(data)
        while len(rest) and self.state is not State.CLOSED:
            target = self.get_buffer()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            rest = rest[count:]
            events += self.buffer_updated(count)
        return events

    def receive_eof(self) -> list[Event]:
        """The peer will send nothing more."""
        if self.state is State.CLOSED:
            return []
        if self._reader.inside:
            return [self._fail(TruncatedFrameError(f"The {self.peer.value} was cut off"))]
        self.state = State.CLOSED
        return [Ended()]

    # ---- messages out: each returns the buffers to write, in order ----

    def send_hello(self, hello: Hello) -> list[Buffer]:
        self._step_local(FrameType.HELLO)
        self.hello = hello
        return _frame(FrameType.HELLO, hello)

    def send_welcome(self, welcome: Welcome) -> list[Buffer]:
        """Raises ContinuityError when the agent's history is not the stored one; answer that with
        `send_fault`."""
        if self.hello is not None:
            _check_continuity(self.hello, welcome)
        self._step_local(FrameType.WELCOME)
        self._open(welcome)
        return _frame(FrameType.WELCOME, welcome)

    def send_batch(self, number: BatchNumber, parts: Seq_[Buffer]) -> list[Buffer]:
        """`parts` as `shared.batch.encode` returns them; they are passed on, not copied."""
        length = sum(map(len, parts))
        if number != self._sent + 1:
            raise LocalProtocolError(
                f"Batch {number} cannot be sent", cause=f"batch {self._sent + 1} is the next one"
            )
        if not self.may_send(length):
            raise LocalProtocolError(
                f"Batch {number} cannot be sent",
                cause=f"{self._in_flight_b} + {length} bytes exceed the credit of {self._acked.credit_b}",
            )
        head = frames.header(FrameType.BATCH, length)
        self._step_local(FrameType.BATCH)
        self._sent = number
        self._in_flight.append((number, length))
        self._in_flight_b += length
        return [head, *filter(len, parts)]  # an empty write confuses OpenSSL

    def send_ack(self, ack: Ack) -> list[Buffer]:
        """Raises LocalProtocolError for an Ack that goes back, or beyond what was received (I5)."""
        self._check_ack(ack, last=self._sequence.last if self._sequence else 0, blame=LocalProtocolError)
        self._step_local(FrameType.ACK)
        self._acked = ack
        return _frame(FrameType.ACK, ack)

    def send_flush(self) -> list[Buffer]:
        self._step_local(FrameType.FLUSH)
        return _frame(FrameType.FLUSH, Flush())

    def send_ping(self, *, ask: int = 0, answer: int = 0) -> list[Buffer]:
        """Nothing in states in which a PING has no place: keepalive need not know them."""
        if (self.state, self.side, FrameType.PING) not in TRANSITIONS:
            return []
        return _frame(FrameType.PING, Ping(ask=ask, answer=answer))

    def send_fault(self, fault: Fault) -> list[Buffer]:
        """Ends the session; nothing when it has ended already."""
        if self.state is State.CLOSED:
            return []
        self._step_local(FrameType.FAULT)
        return _frame(FrameType.FAULT, fault)

    # ---- agent: flow control ----

    @property
    def in_flight_b(self) -> int:
        """Bytes of batches sent and not yet acknowledged as spooled."""
        return self._in_flight_b

    @property
    def next_number(self) -> BatchNumber:
        """The only number that `send_batch` takes now."""
        return BatchNumber(self._sent + 1)

    def may_send(self, length: int) -> bool:
        """Whether the credit lets a batch of `length` bytes go now.

        A batch larger than the whole credit goes alone: else it would wait for ever. Credit 0 stops
        everything.
        """
        credit_b = self._acked.credit_b
        if self.state is not State.OPEN or credit_b == 0:
            return False
        return self._in_flight_b == 0 or self._in_flight_b + length <= credit_b

    # ---- inside ----

    def _admit(self, type_: FrameType) -> State:
        """The state after the peer's frame of this type. Raises UnexpectedFrameError when it has no place
        now."""
        following = TRANSITIONS.get((self.state, self.peer, type_))
        if following is None:
            raise UnexpectedFrameError(
                f"The {self.peer.value} sent {type_.name}", cause=f"the session is {self.state.value}"
            )
        return following

    def _receive(self, frame: Frame) -> list[Event]:
        following = self._admit(frame.type)  # again: this end may have sent something since the header came
        match frame.type:
            case FrameType.BATCH:
                event = self._receive_batch(frame)
            case FrameType.PING:
                ping = _unpack(frame, Ping)
                return [Pinged(ping.ask, ping.answer)] if ping.ask or ping.answer else []
            case FrameType.ACK:
                event = self._receive_ack(_unpack(frame, Ack))
            case FrameType.FLUSH:
                _unpack(frame, Flush)
                event = FlushReceived()
            case FrameType.HELLO:
                event = self._receive_hello(_unpack(frame, Hello))
            case FrameType.WELCOME:
                event = self._receive_welcome(_unpack(frame, Welcome))
            case FrameType.FAULT:
                event = Faulted(_unpack(frame, Fault))
        self.state = following
        return [event]

    def _receive_hello(self, hello: Hello) -> Event:
        if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
            raise _skew(hello.protocol_min, hello.protocol_max)
        if not hello.disks:
            raise MalformedFrameError("A HELLO was refused", cause="it names no disk")
        for field in ("number", "name"):
            if len({getattr(disk, field) for disk in hello.disks}) != len(hello.disks):
                raise MalformedFrameError("A HELLO was refused", cause=f"two disks have the same {field}")
        self.hello = hello
        return HelloReceived(hello)

    def _receive_welcome(self, welcome: Welcome) -> Event:
        assert self.hello is not None
        if not self.hello.protocol_min <= welcome.protocol <= self.hello.protocol_max:
            raise _skew(welcome.protocol, welcome.protocol)
        _check_epoch(self.hello, welcome)
        _check_continuity(self.hello, welcome)
        _check_positions(welcome)
        self._open(welcome)
        return Welcomed(welcome)

    def _receive_batch(self, frame: Frame) -> Event:
        assert self._sequence is not None
        try:
            # Bounded: it is done in the event loop of all other machines' sessions, also for a duplicate, which takes no credit.
            batch, digest = batches.decode(frame.body, batches.META_MAX_B)
        except IntegrityError as exc:
            raise MalformedFrameError("A batch was refused", cause=exc.cause) from exc
        except RecursionError as exc:
            raise MalformedFrameError(
                "A batch was refused", cause="its meta part is nested too deeply"
            ) from exc
        if self._sequence.take(batch, digest):
            return BatchReceived(batch, frame.body, digest)
        return DuplicateReceived(batch.number)

    def _receive_ack(self, ack: Ack) -> Event:
        self._check_ack(ack, last=self._sent, blame=MalformedFrameError)
        self._acked = ack
        while self._in_flight and self._in_flight[0][0] <= ack.spooled:
            self._in_flight_b -= self._in_flight.popleft()[1]
        return Acked(ack)

    def _open(self, welcome: Welcome) -> None:
        assert self.hello is not None
        self.welcome = welcome
        self._sent = welcome.spooled
        self._acked = Ack(
            spooled=welcome.spooled,
            spooled_seq=welcome.spooled_seq,
            uploaded=welcome.uploaded,
            uploaded_seq=welcome.uploaded_seq,
            credit_b=welcome.credit_b,
        )
        if self.side is Side.SERVER:
            self._sequence = Sequence(
                Epoch(welcome.epoch),
                BatchNumber(welcome.spooled),
                Seq(welcome.spooled_seq),
                welcome.spooled_digest,
                self.hello.disks,
            )

    def _check_ack(self, ack: Ack, last: int, blame: type[PeerError]) -> None:
        before = self._acked
        chain = (before.uploaded, ack.uploaded, ack.spooled, last)
        if ack.spooled < before.spooled or any(a > b for a, b in itertools.pairwise(chain)):
            raise blame(
                f"An ACK of {ack.spooled} spooled and {ack.uploaded} uploaded batches is impossible",
                cause=f"{before.spooled} and {before.uploaded} were acknowledged before, {last} were sent",
            )

    def _step_local(self, type_: FrameType) -> None:
        following = TRANSITIONS.get((self.state, self.side, type_))
        if following is None:
            raise LocalProtocolError(
                f"{type_.name} cannot be sent by the {self.side.value}",
                cause=f"the session is {self.state.value}",
            )
        self.state = following

    def _fail(self, error: RemoteProtocolError) -> Failed:
        reply = [] if isinstance(error, TruncatedFrameError) else self.send_fault(fault_for(error))
        self.state = State.CLOSED
        return Failed(error, reply)


def fault_for(error: UnderstudyError) -> Fault:
    """The Fault that tells the peer of `error`, with a pause that fits it."""
    if error.ends_epoch:
        return Fault.of(error, retry_after_s=0.0)
    if isinstance(error, MachineAwaitedError | TooManyHellosError):
        return Fault.of(error, retry_after_s=error.retry_after_s)
    lasting = isinstance(error, (VersionSkewError, CopyRefusedError))
    return Fault.of(error, retry_after_s=60.0 if lasting else 1.0)


def _check_epoch(hello: Hello, welcome: Welcome) -> None:
    """The agent goes on in no other epoch than it asked for, whatever bears its number; and a new one is newer than all that it knows."""
    if hello.epoch and welcome.epoch_id != hello.epoch_id:
        wanted = f"{hello.epoch_id} was asked for"
    elif welcome.epoch <= hello.seen and not hello.epoch:
        wanted = f"one above {hello.seen} was asked for"
    else:
        return
    raise MalformedFrameError(f"The process server offers epoch {welcome.epoch_id}", cause=wanted)


def _check_positions(welcome: Welcome) -> None:
    """What is uploaded was spooled before; and before the first batch there is nothing to name a digest or a ring position of."""
    nothing = not welcome.spooled and (welcome.spooled_seq or welcome.spooled_digest != batches.NO_DIGEST)
    if nothing or welcome.uploaded > welcome.spooled or welcome.uploaded_seq > welcome.spooled_seq:
        raise MalformedFrameError(
            f"The process server stands at an impossible place of epoch {welcome.epoch}",
            cause=f"batch {welcome.spooled}, end seq {welcome.spooled_seq} spooled;"
            f" {welcome.uploaded}, end seq {welcome.uploaded_seq} uploaded",
        )


def _check_continuity(hello: Hello, welcome: Welcome) -> None:
    """A process server that is ahead of the agent has seen a future that the agent forgot (it was
    reverted)."""
    sent = hello.last_sent if hello.epoch else 0
    if welcome.spooled > sent:
        raise ContinuityError(
            f"Epoch {welcome.epoch} of {hello.machine} cannot be continued",
            cause=f"{welcome.spooled} batches are stored, but the agent knows of {sent} only",
        )


def _skew(least: int, most: int) -> VersionSkewError:
    return VersionSkewError(
        f"The peer speaks protocol versions {least} to {most}", cause=f"this end speaks {PROTOCOL}"
    )


def _frame(type_: FrameType, message: Message) -> list[Buffer]:
    body = pack(message)
    return [frames.header(type_, len(body)) + body]


def _unpack(frame: Frame, type_: type[_M]) -> _M:
    try:
        return unpack(frame.body, type_)
    except ValueError as exc:
        raise MalformedFrameError(f"A {frame.type.name} frame could not be read", cause=str(exc)) from exc

"""What tests of the wire need: an agent that speaks it over real TLS, a machine log in memory, batches."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from process_server.standing import Standing
from shared.batch import (
    NO_DIGEST,
    Batch,
    BatchMeta,
    BatchNumber,
    Buffer,
    Epoch,
    Mark,
    Op,
    Seq,
    StreamState,
    encode,
    make_extents,
)
from shared.errors import ContinuityError, UnderstudyError
from shared.wire.messages import Ack, DiskInfo, Fault, Hello, Welcome
from shared.wire.protocol import Acked, Connection, Event, Faulted, Pinged, Side, Welcomed
from tests.epoch_ids import eid

T = TypeVar("T")


async def until(condition: Callable[[], object]) -> None:
    """Lets the loop run until `condition` holds; gives up after 10 s."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of other code's state have no event
            await asyncio.sleep(0)


DISKS = (DiskInfo(number=0, name="loop0", serial="S0", sectors=1 << 20),)


def hello(machine: str = "lab", epoch: int = 0, last_sent: int = 0, **more: Any) -> Hello:
    more.setdefault("claim", eid(epoch).claim if epoch else "")
    return Hello(machine=machine, epoch=epoch, last_sent=last_sent, disks=DISKS, **more)


class Encoded(NamedTuple):
    number: BatchNumber
    parts: list[Buffer]
    digest: bytes

    @property
    def size_b(self) -> int:
        return sum(map(len, self.parts))


class Chain:
    """Makes batches that follow one another."""

    def __init__(self, epoch: int = 1, number: int = 0, seq: int = 0, digest: bytes = NO_DIGEST) -> None:
        self.epoch, self.number, self.seq, self.digest = Epoch(epoch), number, seq, digest

    @classmethod
    def after(cls, welcome: Welcome) -> Chain:
        return cls(welcome.epoch, welcome.spooled, welcome.spooled_seq, welcome.spooled_digest)

    def next(
        self,
        sectors: int = 8,
        fill: int = 1,
        state: StreamState = StreamState.ORDERED,
        marks: Sequence[str] = (),
    ) -> Encoded:
        self.number += 1
        self.seq += 1
        batch = Batch(
            epoch=self.epoch,
            number=BatchNumber(self.number),
            end_seq=Seq(self.seq),
            captured_ns=self.number,
            state=state,
            predecessor=self.digest,
            extents=make_extents([(0, 0, sectors, Op.WRITE)]),
            payload=bytes([fill]) * (sectors * 512),
            meta=BatchMeta(marks=tuple(map(Mark, marks))),
        )
        parts, self.digest = encode(batch)
        return Encoded(batch.number, parts, self.digest)


START = Standing(
    epoch=0, claim="", spooled=0, spooled_seq=0, spooled_digest=NO_DIGEST, uploaded=0, uploaded_seq=0
)


class MemoryLog:
    """A machine's log in memory, with a gate that holds appends back and errors on demand.

    `durable` holds the encoded batches by number; appends become durable in the order of the calls.
    """

    def __init__(self) -> None:
        self.position = START
        self.on_change: Callable[[], None] | None = None
        self.failure: UnderstudyError | None = None
        self.durable: dict[int, bytes] = {}
        self.pending_b = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.return_gate = asyncio.Event()
        """Holds an append back between its batch being durable and its return."""
        self.return_gate.set()
        self.begun = asyncio.Event()
        """Set at the first append that has begun."""
        self.begin_gate = asyncio.Event()
        self.begin_gate.set()
        self.begin_error: UnderstudyError | None = None
        self.fail_from: tuple[int, Exception] | None = None
        self.flushes = 0
        self.running = 0
        self.keep = True
        self._order = asyncio.Lock()

    async def begin(self, hello: Hello) -> Standing:
        assert self.running == 0, "begin() while an append of the earlier session runs"
        await self.begin_gate.wait()
        if self.begin_error is not None:
            raise self.begin_error
        if hello.epoch == 0:
            begun = eid(self.position.epoch + 1)
            self.position = replace(START, epoch=begun.number, claim=begun.claim)
            self.durable.clear()
        elif hello.epoch_id != (self.position.epoch, self.position.claim):
            raise ContinuityError("The epoch is not known here")
        return self.position

    async def append(self, encoded: Buffer, batch: Batch, digest: bytes) -> None:
        self.running += 1
        self.begun.set()
        try:
            async with self._order:  # asyncio locks are fair: the order of the calls
                await self.gate.wait()
                if self.fail_from is not None and batch.number >= self.fail_from[0]:
                    raise self.fail_from[1]
                assert batch.number == self.position.spooled + 1
                self.durable[batch.number] = bytes(encoded) if self.keep else b""
                self.pending_b += len(encoded)
                self.position = replace(
                    self.position, spooled=batch.number, spooled_seq=batch.end_seq, spooled_digest=digest
                )
                await self.return_gate.wait()
        finally:
            self.running -= 1

    async def flush(self) -> None:
        self.flushes += 1
        self.upload()

    def upload(self) -> None:
        """Everything durable counts as uploaded."""
        if self.on_change is not None:
            asyncio.get_running_loop().call_soon(self.on_change)
        self.pending_b = 0
        self.position = replace(
            self.position, uploaded=self.position.spooled, uploaded_seq=self.position.spooled_seq
        )


class Agent:
    """The agent's end of a session over a real TLS connection. All waits end by themselves after 10 s."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire = Connection(Side.AGENT)
        self.events: list[Event] = []
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port: int, context: ssl.SSLContext) -> AsyncIterator[Agent]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def open(self, message: Hello) -> Welcome:
        self.write(self.wire.send_hello(message))
        return (await self.expect(Welcomed)).welcome

    async def open_rest(self) -> Welcome:
        """After a HELLO that was written by hand."""
        return (await self.expect(Welcomed)).welcome

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._writer.writelines(buffers)

    async def send(self, batch: Encoded) -> None:
        self.write(self.wire.send_batch(batch.number, batch.parts))
        await self._writer.drain()

    async def acked(self, spooled: int, uploaded: int = 0) -> Ack:
        """The first Ack that has reached both."""
        while True:
            ack = (await self.expect(Acked)).ack
            if ack.spooled >= spooled and ack.uploaded >= uploaded:
                return ack

    async def fault(self) -> Fault:
        return (await self.expect(Faulted)).fault

    async def expect(self, type_: type[T]) -> T:
        """The next event of this type; acknowledgements before it are skipped."""
        async with asyncio.timeout(10):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if isinstance(event, type_):
                        return event
                    assert isinstance(event, Acked), event
                await self._read()

    async def listen(self) -> None:
        """Reads until cancelled, so that pings are answered; what comes is kept for `expect`."""
        while True:
            await self._read()

    async def ended(self) -> None:
        """Until the server has closed the connection."""
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                while await self._reader.read(1 << 16):
                    pass

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def cut(self) -> None:
        """Break the TCP connection without a word."""
        self._writer.transport.abort()

    async def _read(self) -> None:
        data = await self._reader.read(1 << 18)
        for event in self.wire.receive_data(data) if data else self.wire.receive_eof():
            if isinstance(event, Pinged):
                self.write(self.wire.send_ping(answer=event.ask))
            else:
                self.events.append(event)

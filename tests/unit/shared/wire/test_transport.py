"""The transport of both ends, against itself, over real TLS on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import MalformedFrameError, UnderstudyError
from shared.trust import tls
from shared.wire import transport
from shared.wire.messages import Welcome
from shared.wire.protocol import BatchReceived, Event, Faulted, HelloReceived, Side, Welcomed
from shared.wire.transport import PIECE_B, Channel
from tests.epoch_ids import CLAIM
from tests.pki import TestCa
from tests.wire_parts import Chain, hello, until

CREDIT_B = 64 << 20


class End:
    """One end, and what it was told."""

    def __init__(self, side: Side) -> None:
        self.events: list[Event] = []
        self.over: list[UnderstudyError | None] = []
        self.channel = Channel(side, self.events.append, self.over.append)

    def got(self, type_: type[Event]) -> bool:
        return any(isinstance(event, type_) for event in self.events)


class Session:
    """An open session between two ends."""

    def __init__(self) -> None:
        self.agent, self.server = End(Side.AGENT), End(Side.SERVER)

    async def open(self) -> None:
        agent, server = self.agent.channel, self.server.channel
        agent.send(agent.wire.send_hello(hello()))
        await until(lambda: self.server.got(HelloReceived))
        welcome = Welcome(
            epoch=1, claim=CLAIM, spooled=0, spooled_seq=0, spooled_digest=bytes(16), uploaded=0, uploaded_seq=0, credit_b=CREDIT_B
        )  # fmt: skip
        server.send(server.wire.send_welcome(welcome))
        await until(lambda: self.agent.got(Welcomed))


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    ca = TestCa(tmp_path)
    made = Session()
    loop = asyncio.get_running_loop()
    context = tls.server_context(ca.issue("process-server:ps"))
    listener = await loop.create_server(lambda: made.server.channel, "127.0.0.1", 0, ssl=context)
    host, port = listener.sockets[0].getsockname()
    context = tls.client_context(ca.issue("agent:lab"))
    await loop.create_connection(lambda: made.agent.channel, host, port, ssl=context)
    await made.open()
    yield made
    for end in (made.agent, made.server):
        end.channel.close()
    for end in (made.agent, made.server):
        async with asyncio.timeout(10):
            await end.channel.closed.wait()
    listener.close()
    await listener.wait_closed()


async def test_a_large_frame_is_written_in_pieces_and_nothing_comes_between_them(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = session.agent.channel
    assert channel._transport is not None
    sizes: list[int] = []
    write = channel._transport.write

    def noted(data: Any) -> None:
        sizes.append(len(data))
        write(data)
        channel._keep_alive()  # a ping would be due

    monkeypatch.setattr(channel._transport, "write", noted)
    monkeypatch.setattr(transport, "PING_S", 0.0)
    batch = Chain().next(sectors=8192)
    await channel.send_slowly(channel.wire.send_batch(batch.number, batch.parts))
    assert max(sizes) <= PIECE_B < sum(sizes)
    await until(lambda: session.server.got(BatchReceived))
    assert session.server.over == []
    channel._keep_alive()
    small = Chain(number=1, seq=1, digest=batch.digest).next()
    channel.send(channel.wire.send_batch(small.number, small.parts))
    await until(lambda: len(session.server.events) == 3)


async def test_a_peer_that_does_not_read_is_waited_for(session: Session) -> None:
    channel, server = session.agent.channel, session.server.channel
    server.pause_reading()
    chain, sent = Chain(), 0

    async def send() -> None:
        nonlocal sent
        for _ in range(15):
            batch = chain.next(sectors=8192)
            await channel.send_slowly(channel.wire.send_batch(batch.number, batch.parts))
            sent += 1

    sending = asyncio.create_task(send())
    await until(lambda: not channel._may_write.is_set())
    assert sent < 15
    server.resume_reading()
    async with asyncio.timeout(30):
        await sending
    await until(lambda: len(session.server.events) == 16)


async def test_a_session_that_is_over_keeps_nobody_waiting_for_room(session: Session) -> None:
    channel = session.agent.channel
    session.server.channel.pause_reading()
    batch = Chain().next(sectors=32_768)
    sending = asyncio.create_task(channel.send_slowly(channel.wire.send_batch(batch.number, batch.parts)))
    await until(lambda: not channel._may_write.is_set())
    session.server.channel.abort()
    async with asyncio.timeout(10):
        await sending
    assert len(session.agent.over) == 1


async def test_why_one_end_gives_up_is_told_to_the_other(session: Session) -> None:
    session.agent.channel.fail(MalformedFrameError("A batch was refused", cause="it is odd"))
    await until(lambda: session.server.over)
    (fault,) = [event.fault for event in session.server.events if isinstance(event, Faulted)]
    assert (fault.code, fault.cause) == (MalformedFrameError.code, "it is odd")
    assert "The agent gave up" in str(session.server.over[0])


@pytest.mark.parametrize("side", [Side.AGENT, Side.SERVER])
async def test_a_silent_peer_is_given_up_by_either_end(session: Session, side: Side) -> None:
    end = session.agent if side is Side.AGENT else session.server
    end.channel._heard_at -= transport.SILENCE_S
    end.channel._keep_alive()
    (error,) = end.over
    assert error is not None
    assert error.code == "US453"

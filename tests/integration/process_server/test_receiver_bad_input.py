"""Garbage, plain TCP, foreign certificates, broken frames on the receiver's port: each has a name, and costs
nothing.

Every test ends with a good session of the same machine: whatever came before, nothing was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from process_server.reception.admission import Admission
from process_server.reception.boots import BootFiles
from process_server.reception.credit import MIB, CacheSpace, CreditPolicy
from process_server.reception.receiver import Receiver
from shared.serving import door
from shared.trust import tls
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.messages import Hello
from tests.pki import TestCa
from tests.wire_parts import Agent, Chain, Encoded, MemoryLog, hello, until


class Port:
    """A receiver with one machine that has one durable batch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = TestCa(folder)
        self.log = MemoryLog()
        self.chain = Chain()
        self.lines: list[Any] = []

    async def start(self) -> None:
        async def open_log(_message: Hello) -> MemoryLog:
            return self.log

        async def everybody(machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
            return False

        admission = Admission(
            open_log,
            policy=CreditPolicy(window_b=MIB),
            cache=lambda: CacheSpace(total_b=1 << 40, free_b=1 << 40),
            check_side=everybody,
            boots=BootFiles(self._folder / "spool"),
        )
        context = tls.server_context(self.ca.issue("process-server:ps1"))
        self.receiver = Receiver(("127.0.0.1", 0), context, admission)
        await self.receiver.start()
        self.context = tls.client_context(self.ca.issue("agent:lab"))
        async with self.connect() as agent:
            await agent.open(hello())
            await agent.send(self.chain.next())
            await agent.acked(1)

    def connect(self, context: ssl.SSLContext | None = None) -> contextlib.AbstractAsyncContextManager[Agent]:
        return Agent.connect(self.receiver.port, context or self.context)

    async def logged(self, code: str) -> None:
        """Until a warning with this code was logged; it must be the only one."""
        await until(self.warnings)
        assert [line["code"] for line in self.warnings()] == [code]
        [line] = self.warnings()
        assert line["what"]
        assert line["action"]
        assert line["address"].startswith("127.0.0.1:")

    def warnings(self) -> list[Any]:
        return [line for line in self.lines if line["log_level"] in ("warning", "error")]

    async def still_works(self) -> None:
        async with self.connect() as agent:
            assert (await agent.open(hello(epoch=1, last_sent=1))).spooled == 1
            await agent.send(self.chain.next())
            await agent.acked(2)
        assert sorted(self.log.durable) == [1, 2]


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    port = Port(tmp_path)
    await port.start()
    with capture_logs() as port.lines:
        yield port
        await port.still_works()
    await port.receiver.stop()


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 100,
        frames.header(FrameType.PING, 1) + b"\x80",
        b"hello\n" * 9,
    ],
    ids=["http", "zeroes", "plain wire", "text"],
)
async def test_plain_tcp_is_named_as_such(port: Port, junk: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port.receiver.port)
    writer.write(junk)
    async with asyncio.timeout(10):
        with contextlib.suppress(OSError):
            await reader.read()
    await port.logged("US461")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_port_scan_is_one_line(port: Port) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port.receiver.port)
    writer.close()
    await writer.wait_closed()
    await port.logged("US467")


async def test_a_handshake_that_never_comes_is_given_up(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.receiver.port)
    with contextlib.suppress(OSError):
        await reader.read()
    await port.logged("US467")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_who_comes_from_the_same_port_again_and_again_is_counted_once_each(port: Port) -> None:
    """Before anybody noticed that the connection of before is over, which a reset ends at once."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        own = chosen.getsockname()
    at = port.receiver._door
    assert at is not None
    for _ in range(600):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind(own)
            sock.connect(("127.0.0.1", port.receiver.port))
            await asyncio.sleep(0)
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        await until(lambda: len(at._connections) == 1)
        assert len(at._connections._unproved) == 0


async def test_an_agent_gets_in_beside_hundreds_that_say_nothing(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 3600.0)  # no deadline helps here
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port.receiver.port))
        async with port.connect() as agent:
            assert (await agent.open(hello(epoch=1, last_sent=1))).spooled == 1
    await until(port.warnings)
    assert {line["event"] for line in port.warnings()} == {"connection given up"}


async def test_a_flood_of_garbage_is_one_line(port: Port) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.receiver.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
    await port.logged("US461")


async def test_a_client_without_a_certificate_gets_nowhere(port: Port) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(port.ca.path)
    with contextlib.suppress(OSError):
        async with port.connect(bare) as agent:
            agent.write(agent.wire.send_hello(hello()))
            await agent.ended()
    await port.logged("US462")


async def test_a_foreign_certificate_gets_nowhere(port: Port, tmp_path: Path) -> None:
    foreign = TestCa(tmp_path, "foreign").issue("agent:lab")
    context = tls.client_context(tls.TlsFiles(cert=foreign.cert, key=foreign.key, ca=port.ca.path))
    with contextlib.suppress(OSError):
        async with port.connect(context) as agent:
            agent.write(agent.wire.send_hello(hello()))
            await agent.ended()
    await port.logged("US464")


async def test_an_expired_certificate_gets_nowhere(port: Port) -> None:
    context = tls.client_context(port.ca.issue("agent:lab", expired=True))
    with contextlib.suppress(OSError):
        async with port.connect(context) as agent:
            agent.write(agent.wire.send_hello(hello()))
            await agent.ended()
    await port.logged("US463")


def raw(type_: int = 3, version: int = 1, length: int = 100) -> bytes:
    fields = struct.pack("<4sBBHI", b"USWP", type_, version, 0, length)
    return fields + struct.pack("<I", zlib.crc32(fields))


def wrong_batches() -> Iterator[Any]:
    def framed(batch: Encoded, change: int | None = None) -> bytes:
        body = bytearray(b"".join(batch.parts))
        if change is not None:
            body[change] ^= 1
        return frames.header(FrameType.BATCH, len(body)) + bytes(body)

    def second(fill: int = 1) -> Chain:
        chain = Chain()
        chain.next(fill=fill)
        return chain

    yield pytest.param(framed(second().next(), change=-1), "US427", False, id="damaged digest")
    yield pytest.param(framed(second().next(), change=500), "US427", False, id="damaged payload")
    yield pytest.param(framed(second(fill=2).next()), "US451", True, id="another history")
    yield pytest.param(framed(Chain().next(fill=2)), "US450", True, id="the same number, other content")
    skipped = second()
    skipped.next()
    yield pytest.param(framed(skipped.next()), "US429", False, id="gap")
    other = Chain(epoch=2)
    other.next()
    yield pytest.param(framed(other.next()), "US427", False, id="other epoch")
    yield pytest.param(framed(second().next(sectors=(1 << 20) // 512)), "", False, id="fine")


@pytest.mark.parametrize(
    ("bytes_", "code", "new_epoch"), [case for case in wrong_batches() if case.id != "fine"]
)
async def test_a_wrong_batch_is_a_fault_of_its_own_kind(
    port: Port, bytes_: bytes, code: str, new_epoch: bool
) -> None:
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        agent.write([bytes_])
        fault = await agent.fault()
        assert (fault.code, fault.new_epoch) == (code, new_epoch)
        await port.logged(code)
        await agent.close()


@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        (b"garbage in the middle of a session", "US423"),
        (raw(length=2**31), "US424"),
        (raw(version=2), "US425"),
        (raw(type_=77), "US427"),
        (raw(length=0), "US427"),
        (frames.header(FrameType.WELCOME, 1) + b"\x80", "US428"),
        (frames.header(FrameType.HELLO, 1) + b"\x80", "US428"),
    ],
    ids=["garbage", "oversized", "version", "type", "undersized", "not the agent's", "not now"],
)
async def test_a_wrong_frame_is_a_fault_of_its_own_kind(port: Port, bytes_: bytes, code: str) -> None:
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        agent.write([bytes_])
        assert (await agent.fault()).code == code
        await port.logged(code)
        await agent.close()


async def test_an_end_inside_a_frame_is_named(port: Port) -> None:
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        agent.write([frames.header(FrameType.BATCH, 5000), bytes(100)])
        await agent.close()
        await port.logged("US426")


async def test_a_cut_connection_is_named(port: Port) -> None:
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        agent.write([frames.header(FrameType.BATCH, 5000), bytes(100)])
        agent.cut()
        await port.logged("US426")


async def test_a_polite_end_is_no_warning(port: Port) -> None:
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
    await until(lambda: [line for line in port.lines if line["event"] == "session ended"])
    assert port.warnings() == []


async def test_a_version_that_we_do_not_speak_is_refused_at_hello(port: Port) -> None:
    async with port.connect() as agent:
        agent.write(agent.wire.send_hello(hello(protocol_min=2, protocol_max=4)))
        fault = await agent.fault()
        assert (fault.code, fault.new_epoch) == ("US425", False)
        await port.logged("US425")
        await agent.close()


async def test_a_fault_reaches_an_agent_that_is_still_sending(port: Port) -> None:
    """A reset would drop it: the server reads on, and drops, until the agent has closed."""
    async with port.connect() as agent:
        await agent.open(hello(epoch=1, last_sent=1))
        agent.write([raw(version=9)])
        sending = True

        async def send() -> None:
            with contextlib.suppress(OSError):
                while sending:
                    agent.write([bytes(1 << 20)])
                    await agent._writer.drain()

        task = asyncio.create_task(send())
        assert (await agent.fault()).code == "US425"
        sending = False
        agent.cut()
        await task
        await port.logged("US425")

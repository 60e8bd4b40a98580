"""A listening port under peers that come, go and are given up at every moment. Real TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.serving.door import Door, Peer, Visit
from shared.trust import tls
from tests.pki import TestCa
from tests.wire_parts import until


class Echo(asyncio.Protocol):
    """Says back what it hears, and of the first of it that this peer is proved."""

    def __init__(self, site: Site, peer: Peer) -> None:
        self._site = site
        self._peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._site.living.add(self._peer)
        self._site.on_made(self._peer)

    def data_received(self, data: bytes) -> None:
        self._site.door.asked(self._peer, proved=True)
        self._transport.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._site.living.discard(self._peer)
        self._site.door.lost(self._peer)


class Site:
    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.ca = TestCa(folder)
        self.client = tls.client_context(self.ca.issue("agent:lab"))
        self.door = Door.open(host, 0, tls.server_context(self.ca.issue("process-server:ps1")), "A test")
        self.living: set[Peer] = set()
        """Those whose protocol has a connection."""
        self.on_made: Callable[[Peer], None] = lambda _peer: None
        self.before_visit: Callable[[], None] = lambda: None

    def visit(self, peer: Peer) -> Visit:
        self.before_visit()
        return Echo(self, peer), lambda _transport: None

    async def answered(self) -> None:
        """An honest peer is served."""
        async with asyncio.timeout(8):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.door.port, ssl=self.client)
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            writer.transport.abort()

    async def until_all_over(self) -> None:
        await until(lambda: not self.door._handshakes and not self.living and not len(self.door._connections))
        assert self.door._closers == {}

    def reset_from(self, own: tuple[str, int], said: bytes = b"") -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind(own)
            sock.connect(("127.0.0.1", self.door.port))
            sock.send(said)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    running = asyncio.create_task(site.door.run(site.visit))
    await site.answered()
    await site.until_all_over()
    yield site
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def numbers() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def descriptors() -> int:
    return len(numbers())


async def test_who_comes_next_is_heard_after_one_was_given_up_as_its_handshake_ended(site: Site) -> None:
    """The one's descriptor has the other's number: the loop must have forgotten it."""
    loop = asyncio.get_running_loop()
    first = [True]

    def give_up(peer: Peer) -> None:
        if first.pop():
            loop.call_soon(site.door.give_up, peer)
        first.append(False)

    site.on_made = give_up
    _, writer = await asyncio.open_connection("127.0.0.1", site.door.port, ssl=site.client)
    for _ in range(3):
        await site.answered()
    writer.transport.abort()
    await site.until_all_over()


async def test_a_handshake_that_is_ended_anywhere_loses_no_descriptor_and_nobody_who_comes_after(
    site: Site,
) -> None:
    """Given up, and cancelled, after any number of turns of the loop."""
    before = descriptors()
    chance = random.Random(7)
    for turns in range(40):
        coming = asyncio.create_task(
            asyncio.open_connection("127.0.0.1", site.door.port, ssl=site.client, ssl_handshake_timeout=5)
        )
        await until(lambda: site.door._handshakes)
        for _ in range(turns):
            await asyncio.sleep(0)
        for peer, task in list(site.door._handshakes.items()):
            if chance.random() < 0.5:
                task.cancel()
            else:
                site.door.give_up(peer)
        with contextlib.suppress(OSError):
            _, writer = await coming
            writer.transport.abort()
        await site.until_all_over()
        if turns % 8 == 0:
            await site.answered()
    await site.answered()
    await site.until_all_over()
    await until(lambda: descriptors() <= before)


async def test_a_port_that_closes_leaves_no_handshake_behind(tmp_path: Path) -> None:
    site = Site(tmp_path)
    before = descriptors()
    running = asyncio.create_task(site.door.run(site.visit))
    with contextlib.ExitStack() as stack, capture_logs() as lines:
        for said in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", site.door.port)))
            sock.send(said)
        await until(lambda: len(site.door._handshakes) == 3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (site.door._handshakes, site.door._closers, len(site.door._connections)) == ({}, {}, 0)
        assert [line for line in lines if line.get("code") != "US461"] == []
    await until(lambda: descriptors() == before - 1)


async def test_of_one_address_each_kind_of_refusal_is_named(site: Site) -> None:
    """Behind it a scanner may hide the machine whose certificate has expired."""
    expired = tls.client_context(site.ca.issue("agent:lab", expired=True))
    with capture_logs() as lines:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.door.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            writer.write_eof()
            await reader.read()
            writer.close()
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", site.door.port, ssl=expired)
                await reader.read()
            writer.close()
        await site.until_all_over()
    assert [line["code"] for line in lines] == ["US461", "US463"]


async def test_who_comes_as_the_port_closes_is_no_bug(tmp_path: Path) -> None:
    bugs: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: bugs.append(context))
    site = Site(tmp_path)
    running = asyncio.create_task(site.door.run(site.visit))
    await asyncio.sleep(0)
    with socket.create_connection(("127.0.0.1", site.door.port)):
        loop.call_soon(running.cancel)
        await asyncio.gather(running, return_exceptions=True)
    assert bugs == []


async def test_what_is_counted_is_what_lives_whatever_strangers_do(site: Site) -> None:
    """Ports that come again at once, resets before, within and after a handshake, half of a connection closed, beside those who are
    well."""
    chance = random.Random(3)
    with contextlib.ExitStack() as stack:
        owns = []
        for _ in range(4):
            chosen = stack.enter_context(socket.socket())
            chosen.bind(("127.0.0.1", 0))
            owns.append(chosen.getsockname())
        stack.pop_all().close()
        for _ in range(300):
            what = chance.randrange(6)
            if what < 3:
                with contextlib.suppress(OSError):
                    site.reset_from(
                        chance.choice(owns), chance.choice([b"", b"\x16\x03\x01\x02\x00\x01", b"x"])
                    )
            elif what == 3:
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", site.door.port)))
                sock.shutdown(socket.SHUT_WR)
            elif what == 4:
                stack.enter_context(socket.create_connection(("127.0.0.1", site.door.port)))
            elif site.door._closers:
                site.door.give_up(chance.choice(list(site.door._closers)))
            await asyncio.sleep(0)
            assert len(site.door._connections) == len(site.door._closers)
        await site.answered()
    await site.until_all_over()


async def test_a_visit_that_fails_is_a_bug_in_the_log_and_costs_one_connection(site: Site) -> None:
    def fail() -> None:
        site.before_visit = lambda: None
        raise ValueError("no protocol")

    before = descriptors()
    site.before_visit = fail
    with capture_logs() as lines:
        with contextlib.suppress(OSError):
            await asyncio.open_connection("127.0.0.1", site.door.port, ssl=site.client)
        await site.until_all_over()
    assert [line["log_level"] for line in lines] == ["error"]
    await site.answered()
    await site.until_all_over()
    assert descriptors() <= before


async def test_a_server_without_descriptors_says_so_and_serves_again_once_there_are_some(
    site: Site,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack, capture_logs() as lines:
        socks = [stack.enter_context(socket.socket()) for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers()) + 1, limits[1]))
        try:
            while True:
                try:
                    stack.callback(os.close, os.dup(0))
                except OSError:
                    break
            for sock in socks:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.door.port))
            await until(lambda: lines)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert [(line["code"], line["cause"]) for line in lines] == [("US605", "Too many open files")]
        await site.answered()
    await site.until_all_over()


class Forbidden:
    """A listening socket of which accepting is forbidden three times, as by SELinux: no connection leaves its queue."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.turn = 0
        self.failed_at: list[int] = []
        """In which turns of the loop."""

    def accept(self) -> tuple[socket.socket, Any]:
        if len(self.failed_at) < 3:
            self.failed_at.append(self.turn)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_while_nothing_can_be_accepted_everything_else_has_its_turn(tmp_path: Path) -> None:
    site = Site(tmp_path)
    forbidden = Forbidden(site.door._sock)
    site.door._sock = forbidden  # type: ignore[assignment]

    async def count() -> None:
        while True:
            forbidden.turn += 1
            await asyncio.sleep(0)

    with capture_logs() as lines:
        tasks = [asyncio.create_task(count()), asyncio.create_task(site.door.run(site.visit))]
        await site.answered()
    first, second, third = forbidden.failed_at
    assert second == first + 1, "one alone costs the next peer nothing"
    assert third > second + 1, "and what goes on does not keep the loop busy"
    assert [line["code"] for line in lines] == ["US605"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Accepts TLS connections for the API, gives up those that do not get on, and says why one was refused.

aiohttp's own sites accept without limit, and drop a connection whose handshake fails without a word; here a foreign or
expired certificate, or something that is not TLS, is a log line with address and reason. Nothing is waited for before the
next connection is accepted; which ones are closed when there are too many is decided in `connections`.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

from aiohttp import web

from shared import logging, tls
from shared.connections import Connections
from shared.errors import ListenError, cause_of
from shared.refusals import Refusals

_log = logging.get()
_HANDSHAKE_S: Final = 10.0
_FIRST_REQUEST_S: Final = 20.0
"""So long a connection may take from the end of its handshake to the end of its first request."""
_DESCRIPTORS: Final = 65_536

Peer = tuple[Any, ...]
"""The other end's address and port: of the open connections it names one."""


class Listener:
    """A listening port in front of an aiohttp server, whose handlers say `asked` when a request has come whole."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._context = context
        self._connections: Connections[Peer] = Connections()
        self._closers: dict[Peer, Callable[[], object]] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        self._refusals = Refusals()

    @classmethod
    def open(cls, host: str, port: int, context: ssl.SSLContext) -> Self:
        """Raises ListenError."""
        _raise_descriptor_limit()
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            sock = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as exc:
            raise ListenError(
                f"The config server could not listen on {host}:{port}", cause=cause_of(exc)
            ) from exc
        sock.setblocking(False)
        return cls(sock, context)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def asked(self, request: web.Request) -> None:
        """This request has come whole."""
        if request.transport is not None:
            self._close(self._connections.asked(request.transport.get_extra_info("peername")))

    async def run(self, server: web.Server) -> None:
        """Accept for `server` until cancelled; closes the port."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(self._sock)
                except OSError as exc:
                    # Out of file descriptors, or the peer is gone again: neither ends the service.
                    self._refusals.note("", "a connection could not be accepted", cause=cause_of(exc))
                    await asyncio.sleep(0.1)
                    continue
                task = asyncio.create_task(self._handshake(server, accepted, peer), name=f"handshake {peer}")
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)
                self._closers[peer] = task.cancel
                too_many = list(self._connections.opened(peer, str(peer[0])))
                await asyncio.sleep(
                    0
                )  # accepting never yields while there is a queue, and no handshake may be cancelled unbegun
                self._close(too_many)
        finally:
            self._sock.close()
            for task in self._handshakes:
                task.cancel()

    async def _handshake(self, server: web.Server, accepted: socket.socket, peer: Peer) -> None:
        address = str(peer[0])
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await tls.accept(
                lambda: _Watched(server(), lambda: self._lost(peer)), accepted, self._context, _HANDSHAKE_S
            )
        except (OSError, TimeoutError) as exc:
            error = tls.translate(exc, f"A connection from {address} was refused")
            self._refusals.note(address, "connection refused", remote=address, **error.as_dict())
            self._lost(peer)
            accepted.close()
        except asyncio.CancelledError:
            self._lost(peer)
            accepted.close()
            raise
        else:
            self._closers[peer] = transport.abort
            asyncio.get_running_loop().call_later(_FIRST_REQUEST_S, self._give_up, peer, transport)

    def _give_up(self, peer: Peer, transport: asyncio.BaseTransport) -> None:
        # The transport may be gone, and its peer's port in use by another connection.
        if not transport.is_closing() and self._connections.is_unproved(peer):
            self._close([peer])

    def _lost(self, peer: Peer) -> None:
        self._connections.closed(peer)
        self._closers.pop(peer, None)

    def _close(self, peers: Iterable[Peer]) -> None:
        for peer in list(peers):  # whole, before anything moves
            close = self._closers.get(peer)
            self._lost(peer)
            if close is not None:
                close()
            self._refusals.note(
                str(peer[0]),
                "connection given up",
                remote=str(peer[0]),
                cause="it did not get on, or too many were open",
            )


class _Watched(asyncio.Protocol):
    """aiohttp's protocol, and somebody who learns when its connection is over."""

    def __init__(self, inner: asyncio.Protocol, on_lost: Callable[[], None]) -> None:
        self._inner = inner
        self._on_lost = on_lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()
        self._inner.connection_lost(exc)


def _raise_descriptor_limit() -> None:
    """A connection is a descriptor, and the usual soft limit of 1024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""The config server's port: aiohttp behind a `Door`, which gives up what does not get on (shared/door.py).

aiohttp's own sites accept without limit, and drop a connection whose handshake fails without a word.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, Self

from aiohttp import web

from shared.door import Door, Peer, Visit

_FIRST_REQUEST_S: Final = 20.0
"""So long a connection may take from the end of its handshake to the end of its first request."""


class Listener:
    """A listening port in front of an aiohttp server, whose handlers say `asked` when a request has come whole."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @classmethod
    def open(cls, host: str, port: int, context: ssl.SSLContext) -> Self:
        """Raises ListenError."""
        return cls(Door.open(host, port, context, "The config server"))

    @property
    def port(self) -> int:
        return self._door.port

    def asked(self, request: web.Request, *, proved: bool) -> None:
        """This request has come whole; `proved`: of somebody whom we know."""
        transport = request.transport
        watched = transport.get_protocol() if isinstance(transport, asyncio.Transport) else None
        if isinstance(watched, _Watched):
            self._door.asked(watched.peer, proved=proved)

    async def run(self, server: web.Server) -> None:
        """Accept for `server` until cancelled; closes the port."""

        def visit(peer: Peer) -> Visit:
            def opened(transport: asyncio.Transport) -> None:
                asyncio.get_running_loop().call_later(_FIRST_REQUEST_S, self._give_up, peer, transport)

            return _Watched(server(), peer, self._door.lost), opened

        await self._door.run(visit)

    def _give_up(self, peer: Peer, transport: asyncio.BaseTransport) -> None:
        if not transport.is_closing() and self._door.is_unproved(peer):
            self._door.give_up(peer)


class _Watched(asyncio.Protocol):
    """aiohttp's protocol, and somebody who learns when its connection is over."""

    def __init__(self, inner: asyncio.Protocol, peer: Peer, on_lost: Callable[[Peer], None]) -> None:
        self.peer: Final = peer
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
        self._on_lost(self.peer)
        self._inner.connection_lost(exc)

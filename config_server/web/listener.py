"""The config server's port: aiohttp behind a `Door`, which gives up what does not get on (shared/serving/door.py).

aiohttp's own sites accept without limit, and drop a connection whose handshake fails without a word. And its server logs each request
that is no HTTP with a traceback: of these, too, the first of many is a line.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final, Self

from aiohttp import web
from aiohttp.http import HttpProcessingError

from shared.errors import RequestError
from shared.serving.connections import origin, unmapped
from shared.serving.door import Door, Peer, Visit
from shared.serving.refusals import Refusals

_FIRST_REQUEST_S: Final = 20.0
"""So long a connection may take from the end of its handshake to the end of its first request."""
_SHOWN: Final = 200
"""Characters of what somebody sent."""


class Listener:
    """A listening port in front of an aiohttp server, whose handlers say `asked` when a request has come whole."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.logger: Final = logging.Logger("aiohttp.server")
        """For the aiohttp server."""
        self.logger.parent = logging.getLogger()
        self.logger.addFilter(_NoHttp(door.refusals))

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


class _NoHttp(logging.Filter):
    """Of what aiohttp logs, the requests that are no HTTP go to `refusals`."""

    def __init__(self, refusals: Refusals) -> None:
        super().__init__()
        self._refusals = refusals

    def filter(self, record: logging.LogRecord) -> bool:
        exc = record.exc_info[1] if record.exc_info else None
        if not isinstance(exc, HttpProcessingError):
            return True
        address = unmapped(str(record.args[0])) if isinstance(record.args, tuple) and record.args else ""
        cause = f"it is not HTTP as it should be: {exc.message[:_SHOWN]}"
        error = RequestError(f"A request from {address} was refused", cause=cause)
        self._refusals.note(
            f"{origin(address)} {error.code}", "request refused", address=address, **error.as_dict()
        )
        return False


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

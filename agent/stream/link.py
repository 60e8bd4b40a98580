"""One connection with the process server, as a sequence: connect, hello, welcome, batches out and acknowledgements in.

Input: wire events of one `Channel`. Output: awaitables that raise PeerError once the session is over. Several acknowledgements that come
while nobody waits are one: the newest says all.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from shared.errors import CopyRefusedError, RefusedError, UnderstudyError, UnreachableError
from shared.http import clock_evidence
from shared.waiting import wait_for
from shared.wire.messages import Ack, Fault, Hello, Welcome
from shared.wire.protocol import Acked, Event, Faulted, Side, Welcomed
from shared.wire.transport import CLOSE_S, HANDSHAKE_S, SHUTDOWN_S, Channel

CONNECT_S: Final = 10.0


class Link:
    def __init__(self, address: tuple[str, int], clock_at: tuple[str, int] | None = None) -> None:
        """`clock_at`: the config server, whose clock is asked when a certificate seems out of date: a process server shows none."""
        self.channel = Channel(Side.AGENT, self._on_event, self._on_over)
        self.channel.address = f"{address[0]}:{address[1]}"
        self.fault: Fault | None = None
        """What the process server said when it gave the session up."""
        self._address = address
        self._clock_at = clock_at
        self._welcome: Welcome | None = None
        self._ack: Ack | None = None
        self._over: UnderstudyError | None = None
        self._news = asyncio.Event()

    async def connect(self, context: ssl.SSLContext) -> None:
        host, port = self._address
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: self.channel,
                    host,
                    port,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=SHUTDOWN_S,
                )
        except (OSError, TimeoutError) as exc:
            what = f"The process server {host}:{port} could not be reached"
            raise await clock_evidence.told(
                exc, what, host, port, web=False, clock_at=self._clock_at
            ) from exc
        except ValueError as exc:  # UnicodeError among them: an empty or too long label in the name
            raise UnreachableError(
                f"The process server {host}:{port} could not be reached",
                cause=f"this is no name of a host: {exc}",
                action="Correct `process_server` in the agent's configuration.",
            ) from exc

    async def greet(self, hello: Hello) -> Welcome:
        """A process server that has to recover or to allocate an epoch in slow storage may take its time, but pings meanwhile."""
        self.channel.send(self.channel.wire.send_hello(hello))
        while self._welcome is None or self._over is not None:
            await self._next()
        return self._welcome

    async def ack(self) -> Ack:
        """The next acknowledgement."""
        while self._ack is None:
            await self._next()
        ack, self._ack = self._ack, None
        return ack

    async def drain(self) -> None:
        await self.channel.drain()
        self._raise_if_over()

    async def close(self) -> None:
        self.channel.close()
        try:
            await wait_for(self.channel.closed, CLOSE_S)
        finally:
            self.channel.abort()

    # -- inside --------------------------------------------------------------------------------------------

    async def _next(self) -> None:
        """Until something came, unless the session is over."""
        self._raise_if_over()
        self._news.clear()
        await self._news.wait()

    def _raise_if_over(self) -> None:
        if self.fault is not None:
            said = self.fault
            if said.code == CopyRefusedError.code:
                raise CopyRefusedError(said.what, cause=said.cause, action=said.action)
            raise RefusedError(said.what, cause=f"{said.cause} ({said.code})", action=said.action)
        if self._over is not None:
            raise self._over

    def _on_event(self, event: Event) -> None:
        match event:
            case Welcomed(welcome):
                self._welcome = welcome
            case Acked(ack):
                self._ack = ack
            case Faulted(fault):
                self.fault = fault
        self._news.set()

    def _on_over(self, error: UnderstudyError | None) -> None:
        ended = "The session with the process server ended"
        self._over = error or UnreachableError(ended, cause="it closed the connection")
        self._news.set()

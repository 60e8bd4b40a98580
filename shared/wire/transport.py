"""One TLS connection: asyncio around a wire `Connection`, the same for both ends. It moves bytes and keeps time; it decides nothing.

Bytes are decrypted straight into the buffer that the wire's reader offers, so a batch is written into memory once. Keepalive: a side that
has sent nothing for PING_S sends PING; a peer that was silent for SILENCE_S, while we were reading and it was its turn to speak, is given
up. Writes: `send` only queues, `drain` waits while the peer takes less than was queued, `send_slowly` does both for what is large. A peer
that asks and does not read is answered once it reads: the newest question, which stands for all before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from typing import Final, cast

from shared.batch import Buffer
from shared.errors import RefusedError, SilentPeerError, UnderstudyError
from shared.trust import tls
from shared.wire.protocol import Connection, Ended, Event, Failed, Faulted, Pinged, Side, State, fault_for

PING_S: Final = 10.0
SILENCE_S: Final = 30.0
PIECE_B: Final = 128 * 1024
"""As much as is encrypted at once."""
HELLO_S: Final = 10.0
"""How long an agent may take from the end of the handshake to its HELLO."""
HANDSHAKE_S: Final = 10.0
SHUTDOWN_S: Final = 1.0
"""How long TLS waits for the peer's goodbye once everything is written."""
ANSWER_S: Final = 3.0
"""How long a peer that is asked whether it is there may take to say so."""
CLOSE_S: Final = 3.0
"""How long a polite close (flush, the peer's goodbye) may take before the connection is cut."""
_DISCARD: Final = memoryview(bytearray(64 * 1024))
"""Where bytes go that nobody wants any more; shared, since nobody reads it."""


class Channel(asyncio.BufferedProtocol):
    """One end of one connection.

    `on_event` gets every wire event but Failed and Ended; `on_over` is called once, when the session is over for whatever reason: None
    means that it was closed between two frames. `closed` is set when the socket is gone.
    """

    def __init__(
        self,
        side: Side,
        on_event: Callable[[Event], None],
        on_over: Callable[[UnderstudyError | None], None],
    ) -> None:
        self.wire = Connection(side)
        self.peer = ""
        """The common name in the peer's certificate."""
        self.serial = 0
        """Its serial number."""
        self.begins_s = 0
        """When it begins."""
        self.address = "?"
        self.closed = asyncio.Event()
        self._on_event = on_event
        self._on_over = on_over
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = self._in_frame = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._heard_at = self._sent_at = self._connected_at = self._loop.time()
        self._asked = self._answer = 0
        self._owed = 0
        """What the peer asked within a frame of ours, or while it did not read: answered behind that."""
        self._answered = asyncio.Event()

    # ---- for the session ----

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write what a `wire.send_…` returned: small frames. It goes nowhere after the end of the session, nor within a frame that
        `send_slowly` has begun: a PING is not needed then, and a FAULT could not be read."""
        if self._transport is not None and buffers and not self._in_frame:
            self._sent_at = self._loop.time()
            self._transport.writelines(buffers)

    async def send_slowly(self, buffers: Sequence[Buffer]) -> None:
        """Write a large frame piece by piece, each when there is room for it: TLS encrypts what it is given at once, on the event loop, and
        into memory that it then has to move about. Cancelled half-way, the connection is of no use any more."""
        self._in_frame = True
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), PIECE_B):
                if self._transport is None or self._over:
                    return
                self._sent_at = self._loop.time()
                self._transport.write(view[at : at + PIECE_B])
                await self.drain()
        self._in_frame = False
        self._answer_owed()

    @property
    def may_write(self) -> bool:
        """Whether the peer takes what is sent."""
        return self._may_write.is_set()

    async def drain(self) -> None:
        """Returns when there is room for more, or when the session is over."""
        await self._may_write.wait()

    async def answers(self) -> bool:
        """Whether the peer is there: it answers a PING within ANSWER_S, or still sends at the end of that time: within a large frame it
        cannot answer. One whose bytes are not read just now (it sent more than it may) counts as there."""
        ask = self._asked = self._asked + 1
        self.send(self.wire.send_ping(ask=ask))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while self._answer < ask and not self._over:
                    self._answered.clear()
                    await self._answered.wait()
        still_sends = self._loop.time() - self._heard_at < ANSWER_S / 3
        return not self._over and (self._answer >= ask or still_sends or self._paused)

    def fail(self, error: UnderstudyError) -> None:
        """End the session from this side: tell the peer why, then close."""
        if not self._over:
            self.send(self.wire.send_fault(fault_for(error)))
            self._end(error, linger=True)

    def close(self) -> None:
        """End the session from this side, without a word."""
        self._end(None)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._paused and not self._over:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._paused and not self._over:
            self._paused = False
            self._heard_at = self._loop.time()  # what was not read does not count as silence
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- for asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        ssl_object = cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))
        self.peer, self.serial = tls.peer_name(ssl_object), tls.peer_serial(ssl_object)
        self.begins_s = tls.peer_begins_s(ssl_object)
        self._heard_at = self._sent_at = self._connected_at = self._loop.time()
        self._keep_alive()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _DISCARD if self._over else self.wire.get_buffer()

    def buffer_updated(self, count: int) -> None:
        if self._over:
            return
        self._heard_at = self._loop.time()
        for event in self.wire.buffer_updated(count):
            self._handle(event)

    def eof_received(self) -> None:
        for event in self.wire.receive_eof():
            self._handle(event)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()
        self._answer_owed()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._end(tls.translate(exc, f"The connection with {self.address} broke"))
        self.eof_received()
        self._end(None)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self.closed.set()

    # ---- inside ----

    def _handle(self, event: Event) -> None:
        if self._over:
            return
        match event:
            case Failed(error, reply):
                self.send(reply)
                self._end(error, linger=bool(reply))
            case Ended():
                self._end(None)
            case Faulted(fault):
                self._on_event(event)
                what = f"The {self.wire.peer.value} gave up: {fault.what}"
                self._end(RefusedError(what, cause=fault.cause, action=fault.action))
            case Pinged(ask, answer):
                if ask and (self._in_frame or not self.may_write):
                    self._owed = ask
                elif ask:
                    self.send(self.wire.send_ping(answer=ask))
                self._answer = max(self._answer, answer)
                self._answered.set()
            case _:
                self._on_event(event)

    def _answer_owed(self) -> None:
        if self._owed and not self._in_frame:
            owed, self._owed = self._owed, 0
            self.send(self.wire.send_ping(answer=owed))

    def _end(self, error: UnderstudyError | None, *, linger: bool = False) -> None:
        if self._over:
            return
        self._over = True
        self._may_write.set()
        self._answered.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.resume_reading()  # a paused TLS transport would never see the peer's goodbye
            if linger:
                # A close with unread bytes makes the kernel reset the connection, and the peer may then never
                # read the FAULT. So what still comes is read and dropped until the peer has closed.
                self._timer = self._loop.call_later(CLOSE_S, self._transport.abort)
            else:
                self._transport.close()
        self._on_over(error)

    def _keep_alive(self) -> None:
        """Ping if due, give a silent peer up, and come again when either may next be due."""
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        who = f"The {self.wire.peer.value} at {self.address}"
        if self._waits_for_hello and now - self._connected_at >= HELLO_S:
            self.fail(SilentPeerError(f"{self.address} sent no HELLO", cause=f"for {HELLO_S:.0f} s"))
            return
        if self._waits_for_peer and not self._paused and now - self._heard_at >= SILENCE_S:
            self.abort()
            self._end(SilentPeerError(f"{who} is silent", cause=f"for {SILENCE_S:.0f} s"))
            return
        if now - self._sent_at >= PING_S:
            self.send(self.wire.send_ping())
            self._sent_at = now
        self._timer = self._loop.call_later(1.0, self._keep_alive)

    @property
    def _waits_for_hello(self) -> bool:
        return self.wire.side is Side.SERVER and self.wire.state is State.IDLE

    @property
    def _waits_for_peer(self) -> bool:
        """Whether a peer that lives must be heard. Before WELCOME that is only the process server: whatever holds it up, it pings."""
        return self.wire.state is State.OPEN or (
            self.wire.side is Side.AGENT and self.wire.state is State.GREETED
        )

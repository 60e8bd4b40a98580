"""One agent's session: its batches go to the machine's log, its acknowledgements come from there.

Input: wire events of one Channel. Output: `StreamLog.append`, and ACK frames. It never blocks: batches that
the log has not made durable yet are tasks in flight, bounded by the credit that was granted and by their number
(and by reading no further beyond that). What an agent may send outside of credit costs nothing that grows with how often
it comes: of FLUSH one is under way and one waits; an ACK, or the answer to a PING, that the agent would not read is made
once it reads again, and then only the newest.

Why an ACK implies durability (I5). `spooled` in an ACK is `self._spooled`. `_open` sets it once, to the
position that the log recovered from durable data while nothing was being appended (admission.py says why).
After that only `_count_appended` moves it, from n to n + 1, when the task of `append(n + 1)` has returned without an
error; `append` returns only after the batch has been fdatasynced. Tasks are counted in the order of their
numbers, and after the first failure never again in this session; the wire hands over batches as one gapless
chain behind WELCOME's position. So by induction every batch at or below `spooled` is durable whenever an ACK
is made. `uploaded` is the log's own word, taken only while it is not ahead of `spooled`; the log moves it
after the index entry is in storage.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

from process_server.reception.pace import Pace
from process_server.standing import Standing
from shared.batch import Batch, Buffer, StreamState
from shared.daemon import logging
from shared.daemon.threads import no_room
from shared.errors import (
    CopyRefusedError,
    LocalProtocolError,
    StoppingError,
    SupersededError,
    UnderstudyError,
)
from shared.serving.refusals import Refusals
from shared.wire.frames import MAX_BATCH_B
from shared.wire.messages import Ack, Hello, Welcome
from shared.wire.protocol import (
    BatchReceived,
    DuplicateReceived,
    Event,
    FlushReceived,
    HelloReceived,
    Side,
    State,
)
from shared.wire.transport import Channel

_log = logging.get()

MAX_DISKS: Final = 64
"""An agent captures no more; whoever names more has no more of the cache for it."""
_SHOWN: Final = 1000
"""Characters of what the agent says, in the log."""
MAX_IN_FLIGHT: Final = 1024
"""Batches: the smallest has a hundred bytes, and each is a task of some kilobytes."""
_MAX_ORDERED: Final = 4096
"""Ordered batches of which the time of capture is known until they are uploaded; of more, every second one. What is shown is older then."""
_FLUSHES: Final = 10
_FLUSHES_PER_S: Final = 1.0
"""Each makes a segment and its index entry."""


class StreamLog(Protocol):
    """What a session needs of a machine's log (process_server/spool/machine_log.py)."""

    on_change: Callable[[], None] | None
    """Called on the event loop when position, pending_b or failure may have changed."""

    @property
    def failure(self) -> UnderstudyError | None:
        """Why the log takes no more batches until `begin`."""

    @property
    def position(self) -> Standing: ...

    @property
    def pending_b(self) -> int:
        """Bytes in the cache that are not uploaded yet."""

    async def begin(self, hello: Hello) -> Standing:
        """Recover, or take over, or begin the epoch that `hello` asks for."""

    async def append(self, encoded: Buffer, batch: Batch, digest: bytes) -> None:
        """Returns when the batch is durable. Calls are taken in the order in which they were made."""

    async def flush(self) -> None:
        """Returns when everything appended before is uploaded."""


class Host(Protocol):
    """What a session needs of admission."""

    refusals: Refusals
    """Those that ended before they were open, in the log."""
    control: bytes
    """Where the config server is (shared/trust/pointer.py)."""

    async def claim(self, session: Session, hello: Hello) -> StreamLog:
        """The machine's log, when this is its only session and no batch of an earlier one is in flight."""

    async def begun(self, session: Session, hello: Hello) -> None:
        """The log has begun for it: what tells its machine from copies is written down."""

    def release(self, session: Session) -> None:
        """The claim is decided: the next session of the machine may begin."""

    async def refused(self, session: Session, error: CopyRefusedError) -> None:
        """The log says that the agent, which was admitted, is a copy of the machine."""

    def credit_b(self, session: Session) -> int: ...

    def over(self, session: Session) -> None: ...


class _InFlight(NamedTuple):
    batch: Batch
    size_b: int
    task: asyncio.Task[None]


class Session:
    """The life of one connection: greeted, open, over. Made before the TLS handshake."""

    def __init__(
        self, host: Host, id_: str, address: str, on_named: Callable[[], None] = lambda: None
    ) -> None:
        self.id: Final = id_
        self.on_named: Final = on_named
        """To be called when the agent has said whose it is, and its certificate says so, too."""
        self.machine = ""
        self.identity = ""
        self.boot = ""
        """Which boot of the machine it is with; see Hello."""
        self.order = 0
        """Which HELLO of all that came its was."""
        self.disks = 1
        self.received_b = 0
        self.problem: UnderstudyError | None = None
        """Why the session ended."""
        self.ordered_captured_ns = 0
        """`captured_ns` of the newest batch of this session that is ordered and uploaded."""
        self._host = host
        self._log = _log.bind(session=id_, address=address)
        self.channel = Channel(Side.SERVER, self._on_event, self._on_over)
        self.channel.address = address
        self._greeted_as = ""
        """What the HELLO named, be it right or not."""
        self._machine_log: StreamLog | None = None
        self._spooled = self._spooled_seq = 0
        self._acked = Ack(spooled=0, spooled_seq=0, uploaded=0, uploaded_seq=0, credit_b=0)
        self._ack_due = self._ack_again = False
        self._failed = False
        self._in_flight: deque[_InFlight] = deque()
        self._in_flight_b = 0
        self._all_appended = asyncio.Event()
        self._all_appended.set()
        self._ordered: deque[tuple[int, int]] = deque()
        self._flush_asked = self._flushing = False
        self._flushes = Pace(_FLUSHES, _FLUSHES_PER_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def connected(self) -> bool:
        """Whether batches can come."""
        return self.channel.wire.state is State.OPEN

    @property
    def waiting(self) -> bool:
        """Whether the agent has said HELLO and waits for WELCOME."""
        return self.channel.wire.state is State.GREETED

    @property
    def address(self) -> str:
        return self.channel.address

    async def answers(self) -> bool:
        """Whether the agent is there; takes some seconds if it is not."""
        return (self.connected or self.waiting) and await self.channel.answers()

    @property
    def epoch(self) -> int:
        welcome = self.channel.wire.welcome
        return welcome.epoch if welcome is not None else 0

    def fail(self, error: UnderstudyError) -> None:
        """End the session; the agent is told why. Batches in flight go on: wait for `appended`."""
        self.channel.fail(error)

    async def appended(self) -> None:
        """Until no batch of this session is on its way into the log. Ends for good once the session is
        over."""
        await self._all_appended.wait()

    async def stop(self) -> None:
        """Take no more, make durable what came, acknowledge it, and say goodbye."""
        self.channel.pause_reading()
        await self.appended()
        self._ack()
        self.fail(StoppingError("The process server ends the session"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.channel.closed.wait()

    def refresh(self) -> None:
        """The log's position or the credit may have moved: acknowledge soon if so."""
        if not self._ack_due and self._machine_log is not None:
            self._ack_due = True
            self._loop.call_soon(self._ack)

    # ---- events ----

    def _on_event(self, event: Event) -> None:
        match event:
            case BatchReceived():
                self._take(event)
            case DuplicateReceived():
                self._ack_again = True  # the agent seems not to know
                self.refresh()
            case FlushReceived():
                self._flush_asked = True
                if not self._flushing:
                    self._flushing = True
                    self._spawn(self._flush(), "flush")
            case HelloReceived(hello):
                self._spawn(self._begin(hello), "begin")

    def _on_over(self, error: UnderstudyError | None) -> None:
        self.problem = error
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "spooled": self._spooled,
            "received_b": self.received_b,
        }
        if error is None and not self._greeted_as:
            self._log.debug("session ended")  # somebody with a certificate who said nothing
        elif error is None or isinstance(error, SupersededError | StoppingError):
            self._log.info("session ended", **fields, **({**error.as_dict()} if error else {}))
        elif self._machine_log is None:
            # Whoever has a certificate, be it revoked or another machine's, may cause any number of these.
            peer = self.channel.peer
            whose = {"session": self.id, "address": self.address, "peer": peer, "machine": self._greeted_as}
            self._host.refusals.note(f"{peer} {error.code}", "session failed", **whose, **error.as_dict())
        else:
            self._log.warning("session failed", **fields, **error.as_dict())
        for task in self._tasks:
            if task.get_name().startswith("flush"):
                task.cancel()
        self._host.over(self)

    async def _begin(self, hello: Hello) -> None:
        self._greeted_as = hello.machine
        self._log = self._log.bind(machine=hello.machine)
        try:
            log = await self._host.claim(self, hello)
            try:
                position = await log.begin(hello)
            except CopyRefusedError as exc:
                await self._host.refused(self, exc)
                raise
            await self._host.begun(self, hello)
            self._open(hello, log, position)
        except Exception as exc:  # noqa: BLE001 - every kind must end the session, and tell both ends
            self._fail_for("The session could not be opened", exc)
        finally:
            self._host.release(self)

    def _open(self, hello: Hello, log: StreamLog, position: Standing) -> None:
        if not self.waiting:
            return  # the agent went away meanwhile
        self.disks = min(len(hello.disks), MAX_DISKS)
        self._spooled, self._spooled_seq = position.spooled, position.spooled_seq
        self._machine_log = log
        log.on_change = self.refresh
        welcome = Welcome(
            epoch=position.epoch,
            claim=position.claim,
            spooled=position.spooled,
            spooled_seq=position.spooled_seq,
            spooled_digest=position.spooled_digest,
            uploaded=position.uploaded,
            uploaded_seq=position.uploaded_seq,
            credit_b=self._host.credit_b(self),
            session=self.id,
            control=self._host.control,
        )
        self.channel.send(self.channel.wire.send_welcome(welcome))
        self._acked = Ack(
            spooled=welcome.spooled,
            spooled_seq=welcome.spooled_seq,
            uploaded=welcome.uploaded,
            uploaded_seq=welcome.uploaded_seq,
            credit_b=welcome.credit_b,
        )
        self._log = self._log.bind(epoch=position.epoch)
        self._log.info(
            "session opened",
            spooled=position.spooled,
            uploaded=position.uploaded,
            credit_b=welcome.credit_b,
            new_epoch_reason=hello.reason[:_SHOWN] if hello.epoch == 0 else None,
        )

    # ---- batches in, acknowledgements out ----

    def _take(self, event: BatchReceived) -> None:
        assert self._machine_log is not None
        batch, size_b = event.batch, len(event.encoded)
        task = self._loop.create_task(
            self._machine_log.append(event.encoded, batch, event.digest),
            name=f"append {self.machine} {batch.number}",
        )
        self._in_flight.append(_InFlight(batch, size_b, task))
        self._in_flight_b += size_b
        self.received_b += size_b
        self._all_appended.clear()
        task.add_done_callback(self._count_appended)
        if self._in_flight_b > self._acked.credit_b + MAX_BATCH_B or len(self._in_flight) >= MAX_IN_FLIGHT:
            # An agent that keeps to its credit never comes here. One that does not costs no memory.
            self.channel.pause_reading()

    def _count_appended(self, _task: asyncio.Task[None]) -> None:
        """Account for the appends that have ended, in order. The only place that moves `_spooled` (see
        above)."""
        while self._in_flight and self._in_flight[0].task.done():
            batch, size_b, task = self._in_flight.popleft()
            self._in_flight_b -= size_b
            error = _outcome(task)
            if error is not None and not self._failed:
                self._failed = True
                self._fail_for(f"Batch {batch.number} could not be stored", error)
            if not self._failed:
                self._spooled, self._spooled_seq = batch.number, batch.end_seq
                if batch.state is StreamState.ORDERED:
                    self._ordered.append((batch.number, batch.captured_ns))
                    if len(self._ordered) > _MAX_ORDERED:
                        self._ordered = deque(itertools.islice(self._ordered, 0, None, 2))
        if not self._in_flight:
            self._all_appended.set()
        if self._in_flight_b <= self._acked.credit_b and len(self._in_flight) <= MAX_IN_FLIGHT // 2:
            self.channel.resume_reading()
        self.refresh()

    def _ack(self) -> None:
        self._ack_due = False
        log = self._machine_log
        if log is None or not self.connected:
            return
        if log.failure is not None:
            self.fail(
                log.failure
            )  # fenced, or storage forgot: the agent must know also when it sends nothing
            return
        position = log.position
        uploaded, uploaded_seq = position.uploaded, position.uploaded_seq
        if uploaded > self._spooled:
            # A segment can be listed before the tasks of its last appends were counted here; they come at
            # once.
            uploaded, uploaded_seq = self._acked.uploaded, self._acked.uploaded_seq
        ack = Ack(
            spooled=self._spooled,
            spooled_seq=self._spooled_seq,
            uploaded=uploaded,
            uploaded_seq=uploaded_seq,
            credit_b=self._host.credit_b(self),
        )
        while self._ordered and self._ordered[0][0] <= ack.uploaded:
            self.ordered_captured_ns = self._ordered.popleft()[1]
        if not self.channel.may_write:
            return  # it does not read what was said before: the next look at free space comes here again
        if ack != self._acked or self._ack_again:
            self._acked, self._ack_again = ack, False
            # Every batch up to `spooled` has been fdatasynced: the argument is at the top of this module.
            try:
                self.channel.send(self.channel.wire.send_ack(ack))
            except LocalProtocolError as exc:
                self.fail(exc)  # our own bug: better no session than a wrong ACK

    async def _flush(self) -> None:
        """One at a time: what is asked for meanwhile is done behind it, once, for all who asked."""
        assert self._machine_log is not None
        try:
            while self._flush_asked:
                if (wait_s := self._flushes.wait_s("", self._loop.time())) > 0:
                    await asyncio.sleep(wait_s)
                    continue
                self._flush_asked = False
                if self._in_flight:
                    await asyncio.wait({self._in_flight[-1].task})
                try:
                    await self._machine_log.flush()
                except UnderstudyError as exc:
                    # Nothing is lost and the session is sound: the agent sees no progress and its caller's deadline
                    # decides.
                    self._log.warning("flush failed", **exc.as_dict())
                self.refresh()
        finally:
            self._flushing = False

    def _fail_for(self, what: str, error: BaseException) -> None:
        known = error if isinstance(error, UnderstudyError) else no_room(error)
        if known is not None:
            self.fail(known)
            return
        self._log.error("session failed: this is a bug", what=what, exc_info=error)
        self.fail(UnderstudyError(what, cause=repr(error)))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=f"{name} {self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _outcome(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()

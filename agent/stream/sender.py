"""The session with the process server: sends what the stream cuts, under credit, and takes acknowledgements.

Input: `Stream.cut()`. Output: TLS to port 9443 of the process server. It blocks on credit and on the socket; the kernel's ring goes on
filling meanwhile, and overflows into the dirty bitmap, so the workload never waits.

Every session begins by comparing histories. A process server that is ahead of what was ever sent, behind what is still held, or whose
last batch is not ours (digest, and the place in the ring where it ends), cannot be continued: then a new epoch begins, with its reason.

So nothing that a process server says moves emission, or frees the ring, beyond a batch that this agent cut (I5): WELCOME names one that is
ours; an ACK's `spooled` is at most the last that was sent in this session or welcomed (shared/wire/protocol.py), and what it frees is what
this end noted for that batch.

With which of several process servers a session is: `servers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from agent.stream import rounds
from agent.stream.cutter import CutBatch, Stream
from agent.stream.link import Link
from agent.stream.servers import STEADY_S, Address, ProcessServers
from agent.stream.state import AgentState, Reason, Word
from agent.stream.uploading import Uploading
from shared.api.certificates import Revocations
from shared.batch import HEADER_SIZE, StreamState
from shared.daemon import logging
from shared.errors import (
    CertificateRevokedError,
    ContinuityError,
    CopyRefusedError,
    DeviceError,
    EpochRefusedError,
    NoProcessServerError,
    NoThreadError,
    NotReadyError,
    OtherEpochError,
    PeerError,
    RefusedError,
    SilentPeerError,
    StoppingError,
    TruncatedFrameError,
    UnderstudyError,
    UnreachableError,
)
from shared.trust import identity, tls
from shared.trust.pointer import Whereabouts
from shared.waiting import wait_for
from shared.wire.messages import Ack, DiskInfo, Hello, Welcome

_log = logging.get()

BATCH_B: Final = 9 * 1024 * 1024 + HEADER_SIZE
"""More than any batch of ours takes; what credit must have room for before one is cut."""
LINGER_S: Final = 0.1
"""So long small batches wait for company."""
LINGER_BELOW_B: Final = 256 * 1024
IDLE_S: Final = 0.02
UPLOAD_LOOK_S: Final = 0.5
UPLOAD_WAIT_S: Final = 20.0
"""So long the upload is waited for before the stream goes back to the first."""
LEAVE_S: Final = 600.0
"""So long the upload is waited for of one that is named no more, while he is there."""
RETRY_LIMIT_S: Final = 10.0
RETRY_AFTER_LIMIT_S: Final = 60.0
RESTARTS_S: Final = 60.0
"""So long a process server may be away that is restarted, or upgraded."""


_REASONS: Final = {
    ContinuityError.code: Reason.PROCESS_SERVER_AHEAD,
    EpochRefusedError.code: Reason.OTHER_EPOCH,
    OtherEpochError.code: Reason.OTHER_EPOCH,
}
"""Why the epoch is over, by what the process server says."""


_AWAY: Final = (NotReadyError, SilentPeerError, StoppingError, TruncatedFrameError, UnreachableError)
"""What a process server looks like that stops and starts again."""


class _NewEpochError(Exception):
    """The session must end, since a new epoch is wanted."""


class Sender:
    """Keeps a session with a process server alive until told to stop."""

    def __init__(
        self,
        stream: Stream,
        state: AgentState,
        hello: Callable[[], Hello],
        servers: ProcessServers,
        files: tls.TlsFiles,
        end_epoch: Callable[[Reason], None],
        clock_at: tuple[str, int] | None = None,
    ) -> None:
        self._stream = stream
        self._state = state
        self._hello = hello
        self._servers = servers
        self._clock_at = clock_at
        self._context = tls.client_context(files, tls.PROCESS_SERVER)
        self._files = files
        self._end_epoch = end_epoch
        self.connected = False
        self.problem: UnderstudyError | None = None
        """Why there is no session, or why catch-up does not go on; None while all is well."""
        self.spooled = self.uploaded = 0
        self.sent_b = 0
        """Bytes of batches sent since the start."""
        self.sent = 0
        self.credit_b = 0
        self.busy_since: float | None = None
        """Since when (monotonic) the next batch is being made; None while there is nothing to make or it is on its way."""
        self._uploading = Uploading()
        self._told = ("", "")
        self._opened_at = 0.0
        self._away_since: float | None = None
        self._began = time.monotonic()
        self._welcomed = 0
        """The last batch that the process server had when the session opened."""
        self._flush = asyncio.Event()
        self._hurried = asyncio.Event()
        self._retry_after_s = 0.0
        self._revoked = Revocations()
        self._link: Link | None = None
        self.where: Whereabouts | None = None
        """Of the config server: what a process server says of it is taken there."""
        self._is_moving = False
        """The stream goes to another process server as soon as this session is over: nothing more of the ring is freed by it."""

    @property
    def may_restart(self) -> bool:
        """Whether `problem` is what a restart of the process server looks like, and has not lasted for longer. A session that soon ended
        was none."""
        since = self._away_since
        return isinstance(self.problem, _AWAY) and since is not None and time.monotonic() - since < RESTARTS_S

    @property
    def address(self) -> Address | None:
        """Of `server`."""
        return self._servers.current

    @property
    def server(self) -> str:
        """`host:port` of the one that has the session, or with which one is tried; empty: nobody was named."""
        address = self._servers.current
        return f"{address[0]}:{address[1]}" if address else ""

    @property
    def uploaded_ordered_ns(self) -> int:
        """`captured_ns` of the newest batch that is ordered and uploaded; 0: none of this epoch is known."""
        return self._uploading.captured_ns

    def present(self, chain: tls.Chain) -> None:
        """From the next session on."""
        tls.present(self._context, chain)

    def revoke(self, revoked: Revocations) -> None:
        """Nothing goes to a process server whose certificate is on the list, nor any more over an open session."""
        self._revoked = revoked
        if self._link is not None and (error := self._refusal(self._link)) is not None:
            self._link.channel.fail(error)

    def flush(self) -> None:
        """Asks the process server, once everything cut so far is sent, to upload at once."""
        self._flush.set()

    def hurry(self) -> None:
        """What it was refused for may be over: the next try begins now."""
        self._hurried.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Returns soon after `stop` is set. A session that ends is begun again, with backoff."""
        failures = 0
        while not stop.is_set():
            began = time.monotonic()
            self._retry_after_s = 0.0
            address = self._servers.current
            if address is None:
                self.problem = NoProcessServerError("The stream goes nowhere")
                await stop.wait()
                return
            try:
                await self._session_until(stop, address)
            except _NewEpochError:
                _log.info("the session begins again, for a new epoch")
            except (PeerError, NoThreadError) as caught:
                exc = await self._explained(caught)
                told = (
                    exc.code,
                    caught.cause,
                )  # which batches it was, or what time it is, is not another matter
                if self._told != told:
                    _log.warning("no session with the process server; it is tried again", **exc.as_dict())
                if self._told != told or not isinstance(self.problem, RefusedError):
                    self.problem, self._told = exc, told
                self._turn_elsewhere(caught)
            finally:
                now = time.monotonic()
                if self._away_since is None or (self.connected and now - self._opened_at > STEADY_S):
                    self._away_since = now
                self.connected, self.busy_since = False, None
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            pause_s = min(RETRY_LIMIT_S, 0.125 * 2.0 ** min(failures, 7)) * random.uniform(0.5, 1.0)
            await self._rest(stop, max(pause_s, self._retry_after_s))

    def _turn_elsewhere(self, error: PeerError | NoThreadError) -> None:
        """If it is time, after a session, or a try, that failed. That this host has no room for a thread is no fault of the server's. Where
        another could not go on with the epoch, one that may be restarted is waited for."""
        if self.may_restart and self._state.is_freed_too_early:
            return
        now = time.monotonic()
        open_s = now - self._opened_at if self.connected else 0.0
        if isinstance(error, CopyRefusedError | NoThreadError) or not self._servers.ended(now, open_s=open_s):
            return
        _log.warning("the stream turns to another process server", server=self.server)

    async def _explained(self, caught: PeerError | NoThreadError) -> UnderstudyError:
        with contextlib.suppress(NoThreadError):  # then it is told as it is
            if isinstance(caught, PeerError):
                return await asyncio.to_thread(identity.explained, self._files, caught)
        return caught

    async def _rest(self, stop: asyncio.Event, seconds: float) -> None:
        """So long, unless it is stopped or hurried."""
        waits = [asyncio.create_task(event.wait(), name="pause") for event in (stop, self._hurried)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hurried.clear()
            for wait in waits:
                wait.cancel()

    # -- one session ---------------------------------------------------------------------------------------

    async def _session_until(self, stop: asyncio.Event, address: Address) -> None:
        """A session in whatever state ends with `stop`: a process server may take its time before WELCOME. So it does when the stream is
        to go to the one that is preferred to this one."""
        session = asyncio.create_task(self._session(address), name="session")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        back = asyncio.create_task(self._first_is_back(), name="first")
        self._is_moving = False
        try:
            await asyncio.wait({session, stopping, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            back.cancel()
            session.cancel()
            result, is_back = await asyncio.gather(session, back, return_exceptions=True)
        for failed in (result, is_back):
            if isinstance(failed, Exception):
                raise failed
        if is_back is None:
            self._servers.go_back(time.monotonic())
            _log.info("the stream goes to the process server that is preferred", server=self.server)

    async def _first_is_back(self) -> None:
        """Returns when another server is preferred to the current one, and answers again. No session begins by that (`servers`). From one
        that is named no more the stream goes whether the first answers or not.

        What was found of the ring stays so until the session is over (`_is_moving`, in the very turn of the loop in which it was found): an
        ACK or WELCOME of that time would free what is spooled at the current one alone, and the next could not go on with the epoch."""
        await self._may_go()
        self._is_moving = True

    async def _may_go(self) -> None:
        first = self._servers.first
        if self._servers.is_leaving:
            if not await self._nothing_is_freed_too_early(self._began + LEAVE_S - time.monotonic()):
                _log.warning(
                    "a process server is left before all that it has is uploaded", server=self.server
                )
            return
        if not self._servers.is_elsewhere or first is None:
            await asyncio.Event().wait()
            return
        while True:
            await asyncio.sleep(self._servers.ask_first_in_s(time.monotonic()))
            if await self._answers(first) and await self._nothing_is_freed_too_early(UPLOAD_WAIT_S):
                return
            self._servers.first_is_away(time.monotonic())

    async def _nothing_is_freed_too_early(self, seconds: float) -> bool:
        """Whether all that the ring does not hold any more is in storage: else the first server, which never had it, cannot go on with the
        epoch (`why_not`). Behind a ring that is half full what was freed may lie at the current one alone for a moment: so it is asked to
        upload, and waited for so long."""
        deadline = time.monotonic() + seconds
        while self._state.is_freed_too_early:
            if time.monotonic() >= deadline:
                return False
            self.flush()
            await asyncio.sleep(UPLOAD_LOOK_S)
        return True

    async def _answers(self, address: Address) -> bool:
        link = Link(address, self._clock_at)
        try:
            await link.connect(self._context)
            return self._refusal(link) is None
        except PeerError as exc:
            _log.debug("the process server that is preferred does not answer", **exc.as_dict())
            return False
        finally:
            await link.close()

    async def _session(self, address: Address) -> None:
        link = Link(address, self._clock_at)
        await link.connect(self._context)
        self._link = link
        try:
            if (refusal := self._refusal(link)) is not None:
                raise refusal
            if self.problem is not None and not isinstance(
                self.problem, RefusedError
            ):  # whatever it was, there is a connection now
                self.problem = NotReadyError(
                    "The process server has been reached, but does not take the stream yet"
                )
            hello = self._hello()
            await self._take_up(hello, await link.greet(hello))
            self._state.goes_on_with(address)
            await self._stream_over(link)
        except PeerError as exc:
            self._end_epoch_if_over(link, exc)
            raise
        finally:
            self._link = None
            await link.close()

    def _refusal(self, link: Link) -> CertificateRevokedError | None:
        channel = link.channel
        if not self._revoked.covers(channel.serial, channel.peer, channel.begins_s):
            return None
        return CertificateRevokedError(
            f"The process server {channel.address} was refused",
            cause=f"the certificate of {channel.peer} was revoked",
        )

    async def _take_up(self, hello: Hello, welcome: Welcome) -> None:
        """Goes on where the process server stands, or finds that this is not our history. Not with one that the stream leaves just now
        (`_first_is_back`): the session is cancelled then."""
        if self._is_moving:
            await asyncio.Event().wait()
        state = self._state
        if state[Word.EPOCH] == 0:
            await self._stream.rounds.everything_is_to_do(state.reason.text)
            suspicion = state.suspicion
            if hello.epoch or hello.suspect_after != (suspicion and suspicion.after):
                raise _NewEpochError  # continuity was lost after Hello: what is welcomed is not what is wanted now
            self._stream.begin_epoch(welcome.epoch_id)
            self._uploading.clear()
            _log.info("epoch begun", epoch=welcome.epoch, claim=welcome.claim, reason=state.reason.text)
        elif (reason := why_not(state, welcome)) is not None:
            self._want_epoch(reason)
        self._stream.resume(welcome.spooled, welcome.spooled_seq, welcome.spooled_digest, welcome.uploaded)
        self._uploading.drop_behind(welcome.spooled)
        self._note(welcome)
        self.connected = True
        self._opened_at, self._welcomed = time.monotonic(), welcome.spooled
        if not isinstance(self.problem, RefusedError):
            self.problem, self._told = None, ("", "")
        if self.where is not None and welcome.control:
            await self.where.take(welcome.control)
        _log.info("session opened", epoch=welcome.epoch, spooled=welcome.spooled, uploaded=welcome.uploaded)

    def _want_epoch(self, reason: Reason) -> None:
        self._end_epoch(reason)
        raise _NewEpochError

    async def _stream_over(self, link: Link) -> None:
        """Sends and takes acknowledgements, until one of the two ends with an error."""
        tasks = [
            asyncio.create_task(self._pump(link), name="pump"),
            asyncio.create_task(self._take_acks(link), name="acks"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _pump(self, link: Link) -> None:
        channel = link.channel
        while True:
            # Before the look at what is ready: what becomes ready while this turn lasts is looked at in the next one, without a wait.
            self._stream.wakeup.clear()
            self._forget_refusal()
            self.busy_since = time.monotonic()
            cut = await self._cut(link)
            self.busy_since = None
            if cut is not None:
                frame = channel.wire.send_batch(cut.batch.number, cut.parts)
                self._sent(cut)
                await channel.send_slowly(frame)
            if self._flush.is_set():
                self._flush.clear()
                channel.send(channel.wire.send_flush())
            await link.drain()
            if cut is None:
                await self._pause(IDLE_S)
            elif cut.size_b < LINGER_BELOW_B:
                await self._pause(LINGER_S)

    async def _cut(self, link: Link) -> CutBatch | None:
        """The next batch when credit has room for it. A disk that cannot be read stops catch-up, not the stream; so does a host without
        room for a thread."""
        if self._state[Word.EPOCH] == 0:
            raise _NewEpochError
        if not link.channel.wire.may_send(BATCH_B):
            return None
        try:
            await self._stream.drop_orphans_if_due()
            await self._stream.rounds.begin_if_due()
            if self._state[Word.EPOCH] == 0:  # the audit may have ended it meanwhile
                raise _NewEpochError
            cut = self._stream.cut()
        except (DeviceError, NoThreadError) as exc:
            _log.error("catch-up stopped; it is tried again", **exc.as_dict())
            self.problem = exc
            self._stream.rounds.give_up(rounds.DEVICE_RETRY_S)
            return None
        if cut is not None and cut.chunks and isinstance(self.problem, DeviceError | NoThreadError):
            self.problem = None
        return cut

    def _sent(self, cut: CutBatch) -> None:
        self.sent = cut.batch.number
        self.sent_b += cut.size_b
        if cut.batch.state == StreamState.ORDERED:
            self._uploading.add(cut.batch.number, cut.batch.captured_ns)

    async def _pause(self, seconds: float) -> None:
        if not self._stream.catching_up:
            await asyncio.sleep(seconds)
            return
        # Chunks that become ready are not kept waiting.
        await wait_for(self._stream.wakeup, min(seconds, IDLE_S))

    async def _take_acks(self, link: Link) -> None:
        while True:
            ack = await link.ack()
            self._note(ack)
            # Else nothing is lost: who is welcomed next says where he stands.
            if not self._is_moving:
                self._stream.acknowledged(ack.spooled, ack.uploaded)

    def _note(self, position: Ack | Welcome) -> None:
        self.spooled, self.uploaded, self.credit_b = position.spooled, position.uploaded, position.credit_b
        self._state.uploaded(position.uploaded)
        self._uploading.uploaded(position.uploaded)

    def _forget_refusal(self) -> None:
        """A process server that refuses batches takes sessions all the same: what it said is over when it has taken something, or nothing
        was refused for long. Else the problem would come and go with each try."""
        if isinstance(self.problem, RefusedError) and (
            self.spooled > self._welcomed or time.monotonic() - self._opened_at > STEADY_S
        ):
            self.problem, self._told = None, ("", "")

    def _end_epoch_if_over(self, link: Link, error: PeerError) -> None:
        """Whether this end of the session is also that of the epoch: the process server, or the wire's own check, says so."""
        if link.fault is not None:
            self._retry_after_s = min(link.fault.retry_after_s, RETRY_AFTER_LIMIT_S)
            if link.fault.new_epoch:
                self._want_epoch(_REASONS.get(link.fault.code, Reason.STORAGE_FORGOT))
        elif isinstance(error, ContinuityError):
            self._want_epoch(Reason.PROCESS_SERVER_AHEAD)


def why_not(state: AgentState, welcome: Welcome) -> Reason | None:
    """Why the epoch cannot go on where the process server stands; None if it can."""
    if welcome.spooled > state[Word.LAST_CUT]:
        return Reason.PROCESS_SERVER_AHEAD
    if welcome.spooled < state[Word.FREED]:
        return Reason.PROCESS_SERVER_BEHIND
    ours = state.is_ours(welcome.spooled, welcome.spooled_digest, welcome.spooled_seq)
    if not ours:
        return Reason.DIGEST_FORGOTTEN if ours is None else Reason.DIGEST_MISMATCH
    return None


def disk_infos(disks: Sequence[tuple[str, str, int]]) -> tuple[DiskInfo, ...]:
    """(name, serial, sectors) of each disk, in stream order, as Hello has it."""
    return tuple(
        DiskInfo(number=number, name=name.replace("/", "!"), serial=serial, sectors=sectors)
        for number, (name, serial, sectors) in enumerate(disks)
    )

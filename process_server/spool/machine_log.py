"""One machine's log on this process server: which epoch it is in, and who may go on with it.

Input: the machine's Hello and its batches. Output: `spooled` and `uploaded` positions. `append` blocks on the disk, `flush` on storage.

Who may go on with which epoch (I7). The machine's newest epoch in storage is its epoch; a Hello with a lower one is refused, with a
higher one it was lost by storage, and with the same number but another claim it is another epoch (shared/log/epoch_id.py). The log of
the epoch is ours while no term is above ours; when the agent comes back and one is, it
was with another process server meanwhile, and the log is opened anew with a new term. When storage cannot be asked just then, a log that is
open for this very epoch goes on as it is: it can spool, and should it be fenced, listing fails and nothing is ever said to be uploaded.

Whenever no log is open here, after a restart, a failed `begin` or a fence, the spool uploads what it holds without waiting
for the agent, which may be gone for good: that is what the last minutes before a disaster hang on. Whether it may, `ownership`
says: as long as another process server shows signs of life the agent is with it, and taking the log would disturb it. Then the
machine is no trouble of ours, but what is here and not listed still counts as pending. All other epochs' rests are looked after
beside the new one (older_epochs.py).

Only a `begin` makes a container: nothing in the background does, so that one that was deleted by mistake can be brought back, full, until
the agent comes.

So a full cache drains in every state: that a new epoch finds no room is no obstacle to the old one. An epoch that was begun for a wish and
never came to its agent (it could not be opened, WELCOME was lost, two servers heard the wish at once) is the answer to the same wish the
next time, wherever: the agent says which numbers it has `seen`, so no batch of it can be anywhere.

An epoch may be ended elsewhere while its agent is here and sends: another copy of the machine began the next one through another server.
Each look of the log finds that out (`_look_for_newer`). Then the log goes on as that of an epoch that is over, and the agent hears who
has the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from process_server.spool.chore import Chore
from process_server.spool.epoch_log import EpochLog, Resources
from process_server.spool.machine_folder import MachineFolder
from process_server.spool.older_epochs import OlderEpochs
from process_server.spool.ownership import Decision
from process_server.spool.rivals import Rivals
from process_server.spool.watch import Watch
from process_server.spool.writer import Point
from process_server.standing import Standing
from shared.batch import Batch, Buffer
from shared.blob import BlobStore, Retry
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    EpochRefusedError,
    FencedError,
    NotOpenError,
    OtherEpochError,
    SpoolError,
    StorageError,
    StorageForgotError,
    TransientError,
    UnderstudyError,
)
from shared.keys.vault import machine_key
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochDisk, EpochInfo, allocate_epoch, known_epoch, newest_epoch
from shared.log.terms import newest_term
from shared.recovery.traces import highest_epoch
from shared.wire.messages import Hello

_BEGIN_S: Final = 25.0
_BRIEFLY: Final = Retry(deadline_s=3.0)
"""For requests that others wait for: a log that is open and could go on, or a look that holds the log's lock."""

_log = logging.get()


class MachineLog:
    """One machine's log on this process server. `begin`, then `append` and `flush`; lives as long as the
    process.
    """

    def __init__(self, shared: Resources, machine: str, folder: Path) -> None:
        self.machine: Final = machine
        self.on_change: Callable[[], None] | None = None
        """Called, on the event loop, whenever something below may have changed."""
        self.undropped: UnderstudyError | None = None
        """Why something is still here that was deleted (process_server/deletions.py)."""
        self._shared = shared
        self._folder: Final = MachineFolder(machine, folder, shared.vault, shared.reading)
        self._current: EpochLog | None = None
        self._ended: UnderstudyError | None = None
        """Why the log that was open ended: another process server took it from us, or it failed."""
        self._watch: Watch | None = None
        """The newest epoch, while files of it are here and no log of it is open."""
        self._forgot: tuple[EpochId, StorageForgotError] | None = None
        """An epoch that cannot go on, and why."""
        self._lock: Final = asyncio.Lock()
        self._resuming: Final = Chore(
            f"log of {machine}",
            self._resume,
            look_s=shared.settings.check_seconds,
            changed=self._change,
        )
        self._older: Final = OlderEpochs(shared, self._folder, self._change)
        self._rivals: Final = Rivals(shared)

    # ---- what it says ----

    @property
    def position(self) -> Standing:
        """Raises NotOpenError while no log is open."""
        log = self._current
        if log is None:
            raise self._not_open()
        spooled, uploaded = log.spooled, log.uploaded
        return Standing(
            log.epoch,
            log.id.claim,
            spooled.number,
            spooled.seq,
            spooled.digest,
            uploaded.number,
            uploaded.seq,
        )

    @property
    def failure(self) -> UnderstudyError | None:
        """Why no more batches are taken, until the agent says Hello again."""
        return self._current.failure if self._current is not None else self._ended

    @property
    def elsewhere(self) -> bool:
        """Whether another process server has the machine now."""
        waits = self._watch is not None and self._watch.verdict is not None
        return self._current is None and (isinstance(self._ended, FencedError | EpochRefusedError) or waits)

    @property
    def pending_b(self) -> int:
        """Bytes in the spool that are not listed and may still be."""
        newest_b = self._current.pending_b if self._current is not None else 0
        if self._current is None and self._watch is not None:
            newest_b = self._watch.pending_b
        return newest_b + self._older.pending_b

    @property
    def waits_for_uplink(self) -> bool:
        """Whether closed segments wait for others to be uploaded."""
        return any(log.waits_for_uplink for log in self._logs())

    @property
    def aside_b(self) -> int:
        """Bytes that can not be listed any more and were set aside."""
        return self._folder.aside.size_b

    @property
    def containers(self) -> set[str]:
        """Of which there is something here, as of the last look; "" where that is not known."""
        found = self._containers()
        # An open log's container is the side's, too: the Hello before it asked storage.
        return found | {self._folder.beside} if self._current is None and self._folder.beside else found

    @property
    def last_indexed(self) -> Point | None:
        """The newest batch that is listed; its `captured_ns` is what the RPO counts from."""
        return self._current.uploaded if self._current is not None else None

    @property
    def upload_trouble(self) -> UnderstudyError | None:
        """Why what is pending does not get to storage just now."""
        troubles = [self._resuming.trouble, self._older.trouble]
        for log in self._logs():
            troubles += [log.failure, log.trouble]
        return next((t for t in troubles if t is not None and not isinstance(t, FencedError)), None)

    @property
    def errors(self) -> list[UnderstudyError]:
        """What is wrong now."""
        found: list[UnderstudyError | None] = [self._resuming.trouble, self._older.trouble]
        for log in self._logs():
            found += [log.failure, log.trouble, *log.cache_troubles]
        found.append(self.undropped)
        return [*(error for error in found if error is not None), *self._folder.aside.problems()]

    # ---- what the session does ----

    async def begin(self, hello: Hello) -> Standing:
        """Goes on with the epoch that the agent names, or begins the next one for epoch 0, and says where
        it stands.

        No batch of an earlier session may be on its way. EpochRefusedError and StorageForgotError end the
        epoch; TransientError and other StorageErrors: try again.
        """
        try:
            async with asyncio.timeout(_BEGIN_S), self._lock:
                await self._begin(hello)
        except TimeoutError as exc:
            raise self._too_slow() from exc
        finally:
            if self._current is None:
                self._resuming.ask()
        self._resuming.report(None)
        return self.position

    async def append(self, encoded: Buffer, batch: Batch, digest: bytes) -> None:
        """Returns when the batch is durable here. Batches count in the order of the calls. See
        SpoolWriter.append.
        """
        await self._open_log().append(encoded, batch, digest)

    async def flush(self) -> None:
        """Uploads everything that was taken before the call, now. No deadline of its own; raises `failure`."""
        await self._open_log().flush()

    # ---- what the spool does ----

    def resume(self) -> None:
        """After a restart: uploads what the spool holds, in the background, waiting as long as it takes."""
        self._resuming.ask()

    async def look(self) -> None:
        """At what is here, for `containers`. Raises SpoolError."""
        async with self._lock:
            await self._folder.epochs()

    async def forget(self, deleted: Collection[str], still: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Drops what is here of these containers (process_server/deletions.py): their logs end, and their files go, listed or not; those
        of them alone that are `still` meant, which is asked behind all that is waited for. All else goes on. Raises SpoolError, and what
        `still` raises: then some of it is left.
        """
        error = StorageForgotError(f"Machine {self.machine} was deleted", cause="somebody wanted it deleted")
        async with self._lock:
            if self._current is not None and self._current.container in deleted:
                log, self._current = self._current, None
                await log.abandon(error)
            # What the next look finds anew, of what is left.
            self._watch = self._ended = self._forgot = None
            await self._older.forget(deleted, error)
            reach("forget.logs-closed")
            try:
                await self._folder.drop(await still(), self._live())
            finally:
                self._older.resume()
                if self._containers():
                    self._resuming.ask()
                else:
                    self._resuming.report(None)
                self._change()

    async def close(self) -> None:
        """Everything taken is made durable; uploads stop."""
        await self._resuming.stop()
        async with self._lock:
            await self._close_current()
        await self._older.close()

    # ---- inside ----

    async def _begin(self, hello: Hello) -> None:
        epoch = hello.epoch_id if hello.epoch else await self._next_epoch(hello)
        if not await self._goes_on(epoch):
            await self._reopen(epoch)

    async def _next_epoch(self, hello: Hello) -> EpochId:
        """The epoch that the wish gets. The one before it is over from now on."""
        store = await self._shared.storage.find_or_create(self.machine)
        newest = await newest_epoch(store)
        info = await self._document_of(newest, store) if newest else None
        if info is None or not _answers(info, hello):
            if info is not None:
                await self._rivals.check(hello, info, store)
            # Whoever cannot seal this machine's log must not end its epoch: the key opens for this machine only.
            await machine_key(store, self._shared.vault, self.machine, create=True)
            info = await allocate_epoch(
                store,
                self.machine,
                disks=_disks(hello),
                reason=hello.reason,
                agent_id=hello.agent_id,
                identity=hello.identity,
                boot=hello.boot,
                owner=self._shared.settings.owner,
                suspect_since_ns=hello.suspect_since_ns,
                suspect_after=hello.suspect_after,
                above=await self._highest_seen(store, hello, newest),
            )
            _log.info(
                "epoch begins", machine=self.machine, epoch=info.epoch, claim=info.claim, reason=info.reason
            )
        if self._current is not None and self._current.epoch < info.epoch:
            self._older.take(self._current)
            self._current = None
        self._older.drain(info.epoch)
        return info.id

    async def _document_of(self, number: int, store: BlobStore) -> EpochInfo | None:
        try:
            return await known_epoch(store, self.machine, number)
        except StorageForgotError:
            return None

    async def _highest_seen(self, store: BlobStore, hello: Hello, newest: int) -> int:
        """The highest epoch number that anybody knows of: this agent, storage (log, seed disks, points), this server's spool."""
        return max(
            hello.seen,
            newest,
            await highest_epoch(store),
            *await self._folder.epochs(),
        )

    async def _goes_on(self, epoch: EpochId) -> bool:
        """Whether the open log may simply go on."""
        log = self._current
        if log is None or log.id != epoch or log.failure is not None:
            return False
        await log.drained()
        storage = self._shared.storage.with_retry(_BRIEFLY)
        try:
            store = await storage.find_or_create(self.machine)
            newest = await newest_epoch(store)
            there = (
                (await known_epoch(store, self.machine, epoch.number)).id if newest == epoch.number else None
            )
            taken = await newest_term(store, epoch.number)
        except StorageForgotError:
            return False
        except StorageError as exc:
            _log.warning("log goes on unverified", machine=self.machine, epoch=epoch.number, **exc.as_dict())
            return True
        return there == epoch and taken == log.taken

    async def _reopen(self, epoch: EpochId) -> None:
        store = await self._shared.storage.find_or_create(self.machine)
        newest = await newest_epoch(store)
        if epoch.number > newest:
            raise StorageForgotError(
                f"Epoch {epoch.number} of machine {self.machine} cannot go on",
                cause=f"the newest epoch that storage knows is {newest}",
            )
        info = await known_epoch(store, self.machine, newest)
        if epoch.number < newest:
            raise _over(self.machine, epoch.number, info)
        if epoch != info.id:
            raise OtherEpochError(
                f"Epoch {epoch} of machine {self.machine} cannot go on", cause=info.begun_by
            )
        await self._close_current()
        await self._open(epoch, store)

    async def _open(self, epoch: EpochId, store: BlobStore) -> None:
        self._current = await EpochLog.open(
            self._shared, self._folder, epoch, self._change, store, look=self._look_for_newer
        )
        self._ended = self._watch = None
        self._older.drain(epoch.number)
        self._change()

    async def _look_for_newer(self, log: EpochLog) -> None:
        """Whether the epoch of the open log was ended elsewhere."""
        try:
            store = await self._shared.storage.with_retry(_BRIEFLY).find(self.machine)
            newest = await newest_epoch(store)
            info = await known_epoch(store, self.machine, newest)
        except UnderstudyError:
            return  # told by whatever else needs storage; the next look is soon
        async with self._lock:
            if log is not self._current or info.epoch <= log.epoch:
                return
            self._ended = _over(self.machine, log.epoch, info)
            _log.error(
                "epoch was ended elsewhere", machine=self.machine, epoch=log.epoch, **self._ended.as_dict()
            )
            self._older.take(log)
            self._current = None
            self._older.drain(newest)
            self._change()

    async def _close_current(self) -> None:
        old, self._current = self._current, None
        if old is not None:
            await old.close()

    # ---- in the background ----

    async def _resume(self) -> bool:
        """Goes on with the newest epoch, if no log is open and it may; whether nothing is left to look after.

        It ends with the first request that storage does not answer, so that the agent's `begin`, which may put things right (it makes
        a container that is gone anew), finds the lock free between two looks.
        """
        storage = self._shared.storage.with_retry(_BRIEFLY)
        async with self._lock:
            if self._current is not None and not await self._is_dead(self._current):
                return True
            epochs = await self._folder.epochs()
            if not epochs:
                return self._folder.aside.is_empty
            store = await storage.find(self.machine)
            newest = await newest_epoch(store)
            self._older.drain(newest)
            if newest not in epochs:
                self._watch = None
                return True  # older_epochs looks after those that are here
            epoch = (await known_epoch(store, self.machine, newest)).id
            if self._watch is None or self._watch.id != epoch:
                self._watch = Watch(self._shared, self._folder, epoch, store)
            verdict = await self._watch.look(newest, store)
            match verdict.decision:
                case Decision.OPEN | Decision.RETAKE:
                    await self._reopen_alone(epoch, store)
                case Decision.DELETE | Decision.QUARANTINE:
                    await self._watch.carry_out()
                    self._watch = None
                    self._older.drain(newest)
                case Decision.WAIT:
                    return False
            return True

    async def _is_dead(self, log: EpochLog) -> bool:
        """Whether the current log has failed in a way that opening it again may heal; then it is closed."""
        if log.failure is None or isinstance(log.failure, StorageForgotError):
            return False
        self._ended = log.failure
        await self._close_current()
        if not isinstance(self._ended, FencedError):
            raise self._ended  # told, and opened again after a pause
        return True

    async def _reopen_alone(self, epoch: EpochId, store: BlobStore) -> None:
        """Without an agent."""
        if self._forgot is not None and self._forgot[0] == epoch:
            raise self._forgot[1]  # only the agent can help; opening it again would but take another term
        try:
            await self._open(epoch, store)
        except StorageForgotError as exc:
            self._forgot = epoch, exc
            raise

    # ---- small things ----

    def _logs(self) -> list[EpochLog]:
        current = [self._current] if self._current is not None else []
        return [*current, *self._older.logs.values()]

    def _containers(self) -> set[str]:
        """Of which there are batches here."""
        return self._folder.containers(self._live()) | {log.container for log in self._logs()}

    def _live(self) -> set[int]:
        """The epochs whose folders open logs write into."""
        return {log.epoch for log in self._logs()}

    def _open_log(self) -> EpochLog:
        if self._current is None:
            raise self._ended or self._not_open()
        return self._current

    def _not_open(self) -> NotOpenError:
        return NotOpenError(f"The log of {self.machine} is not open")

    def _too_slow(self) -> StorageError:
        """Why `begin` took too long, as far as it is known."""
        what = f"The log of {self.machine} could not be opened"
        if self._current is not None and not self._current.is_drained:
            return SpoolError(what, cause="the cache disk is slow or does not answer")
        trouble = self._resuming.trouble or (self._current.trouble if self._current is not None else None)
        if trouble is not None:
            return TransientError(what, cause=f"{trouble.what}: {trouble.cause}", action=trouble.action)
        return TransientError(what, cause="storage is slow or does not answer")

    def _change(self) -> None:
        failure = self._current.failure if self._current is not None else None
        if failure is not None and not isinstance(failure, StorageForgotError):
            self._resuming.ask()
        if self.on_change is not None:
            self.on_change()


def _over(machine: str, epoch: int, newest: EpochInfo) -> EpochRefusedError:
    return EpochRefusedError(f"Epoch {epoch} of machine {machine} is over", cause=newest.begun_by)


def _disks(hello: Hello) -> tuple[EpochDisk, ...]:
    return tuple(EpochDisk(d.number, d.name, d.serial, d.sectors) for d in hello.disks)


def _answers(info: EpochInfo, hello: Hello) -> bool:
    """Whether the epoch was begun for this very wish and its agent never heard of it: it does not know the number."""
    begun_for = (info.agent_id, info.boot, info.disks, info.reason, info.suspect_since_ns, info.suspect_after)
    wish = (
        hello.agent_id,
        hello.boot,
        _disks(hello),
        hello.reason,
        hello.suspect_since_ns,
        hello.suspect_after,
    )
    return hello.agent_id != "" and info.epoch > hello.seen and begun_for == wish

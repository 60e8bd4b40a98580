"""All epochs here but the newest: their rest is uploaded beside it, as long as it takes; then their folders go.

An epoch is over as soon as storage knows a newer one, whether or not that one can be opened here. Its open log simply goes on uploading;
of any other, `ownership` says what becomes of it, look after look: opened or taken again until all of its rest is listed, left to another
owner meanwhile, set aside, or deleted (I5). Any error keeps the folder, and it is tried again. Which epoch bears a number, storage says:
while the document is gone nothing is done with the files; those of another epoch are set aside by recovery.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from process_server.spool.chore import Chore
from process_server.spool.epoch_log import EpochLog, Resources
from process_server.spool.machine_folder import MachineFolder
from process_server.spool.ownership import Decision
from process_server.spool.watch import Watch
from shared.blob import BlobStore
from shared.errors import (
    FencedError,
    IndexDamagedError,
    IndexMissingError,
    StorageForgotError,
    UnderstudyError,
)
from shared.log.epoch_id import EpochId
from shared.log.epochs import known_epoch


class OlderEpochs:
    """Those of one machine. `drain` them whenever a newest epoch is known; `close` once."""

    def __init__(self, shared: Resources, folder: MachineFolder, changed: Callable[[], None]) -> None:
        self.logs: Final[dict[int, EpochLog]] = {}
        """Those that are open, by epoch."""
        self._watches: Final[dict[int, Watch]] = {}
        """The others."""
        self._damage: Final[dict[int, str]] = {}
        """Of those whose index was damaged when it was read the last time: by what."""
        self._newest = 0
        self._shared = shared
        self._folder = folder
        self._changed = changed
        self._chore: Final = Chore(
            f"older epochs of {folder.machine}",
            self._drain_all,
            look_s=shared.settings.check_seconds,
            changed=changed,
        )
        self._storage = shared.storage.patient(self._chore.report)

    @property
    def trouble(self) -> UnderstudyError | None:
        """Why their rest cannot be uploaded just now."""
        return self._chore.trouble

    @property
    def pending_b(self) -> int:
        """Bytes of theirs that are not listed and may still be."""
        open_b = sum(log.pending_b for log in self.logs.values())
        return open_b + sum(watch.pending_b for watch in self._watches.values())

    def drain(self, newest: int) -> None:
        """Epochs below `newest` are over; nobody else opens them any more."""
        self._newest = newest
        self._chore.ask()

    def take(self, log: EpochLog) -> None:
        """The log was the current one; `drain` follows."""
        self.logs[log.epoch] = log

    async def forget(self, deleted: Collection[str], error: UnderstudyError) -> None:
        """Closes all that is of these containers, and is at nothing until `resume`."""
        await self._chore.halt()
        self._watches.clear()
        for epoch, log in list(self.logs.items()):
            if log.container in deleted:
                await log.abandon(error)
                del self.logs[epoch]

    def resume(self) -> None:
        """After `forget`: looks after what is left."""
        if not self._folder.containers:
            self._newest = 0
            self._chore.report(None)
        elif self._newest:
            self._chore.ask()

    async def close(self) -> None:
        await self._chore.stop()
        for log in self.logs.values():
            await log.close()

    async def _drain_all(self) -> bool:
        """One after the other; whether none is left, nor anything aside that goes with time."""
        done = True
        trouble: UnderstudyError | None = None
        for epoch in await self._folder.epochs():
            try:
                if epoch < self._newest:
                    done &= await self._drain(await self._identify(epoch))
                elif epoch > self._newest:
                    raise self._unknown(epoch)
            except FencedError:
                done = False  # the next look finds whose it is
            except UnderstudyError as exc:
                trouble = exc
        if trouble is not None:
            raise trouble
        return done and self._folder.aside.is_empty

    def _unknown(self, epoch: int) -> StorageForgotError:
        """Its files stay as they are: its number is never given out again here (MachineLog), so they mix with no other's."""
        return StorageForgotError(
            f"Batches of epoch {epoch} of machine {self._folder.machine} wait here and cannot be listed",
            cause=f"the newest epoch that storage knows is {self._newest}",
            action="Check that this is the right storage account. A new epoch begins when the agent connects.",
        )

    async def _drain(self, id_: EpochId) -> bool:
        """Whether nothing of it is left. Nothing is deleted when it raises."""
        epoch = id_.number
        store = await self._storage.find(self._folder.machine)
        try:
            log = self.logs.get(epoch) or await self._look(id_, store)
            if log is not None:
                self._watches.pop(epoch, None)
                try:
                    await log.flush()
                    await log.release()
                finally:
                    await log.close()
                    del self.logs[epoch]
                await self._folder.remove(epoch)
        except (IndexMissingError, StorageForgotError) as exc:
            await Watch(self._shared, self._folder, id_, store).give_up(exc.cause)
            self._watches.pop(epoch, None)
        except IndexDamagedError as exc:
            watch = self._watches.pop(epoch, None)  # the next look reads the index anew
            if watch is None or watch.damage is None or self._damage.get(epoch) != exc.cause:
                self._damage[epoch] = exc.cause if watch is not None and watch.damage is not None else ""
                raise
            await watch.give_up(exc.cause)  # read twice: behind the damage nothing counts, whoever lists it
        self._changed()
        return epoch not in self._watches

    async def _identify(self, epoch: int) -> EpochId:
        log = self.logs.get(epoch)
        if log is not None:
            return log.id
        store = await self._storage.find(self._folder.machine)
        return (await known_epoch(store, self._folder.machine, epoch)).id

    async def _look(self, id_: EpochId, store: BlobStore) -> EpochLog | None:
        """Does what is to be done with an epoch that has no open log. Its log, if it is now open."""
        epoch = id_.number
        watch = self._watches.get(epoch)
        if watch is None or watch.id != id_:
            watch = self._watches[epoch] = Watch(self._shared, self._folder, id_, store)
        verdict = await watch.look(self._newest, store)
        match verdict.decision:
            case Decision.OPEN | Decision.RETAKE:
                log = await EpochLog.open(self._shared, self._folder, id_, self._changed, store, over=True)
                self.logs[epoch] = log
                return log
            case Decision.DELETE | Decision.QUARANTINE:
                await watch.carry_out()
                del self._watches[epoch]
            case Decision.WAIT:
                pass
        return None

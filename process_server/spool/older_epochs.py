"""The rest of epochs that are over: uploaded beside the newest one, as long as it takes; then their folders go.

An epoch is over as soon as storage knows a newer one, whether or not that one can be opened here. Its open log simply goes on uploading,
else it is opened again, until all of its rest is listed. Only then is its folder deleted (I5), or when nothing can come of it: another
process server has the log by now, or storage lost what the rest would continue. Any other error keeps the folder, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from process_server.spool.chore import Chore
from process_server.spool.epoch_log import EpochLog, Resources
from process_server.spool.machine_folder import MachineFolder
from shared import logging
from shared.blob import BlobStore
from shared.errors import FencedError, StorageForgotError, UnderstudyError

_log = logging.get()


class OlderEpochs:
    """Those of one machine. `finish` them whenever a newest epoch is known; `close` once."""

    def __init__(self, shared: Resources, folder: MachineFolder, changed: Callable[[], None]) -> None:
        self.logs: Final[dict[int, EpochLog]] = {}
        """Those that are open, by epoch."""
        self._newest = 0
        self._folder = folder
        self._changed = changed
        self._chore: Final = Chore(
            f"older epochs of {folder.machine}",
            self._finish_all,
            look_s=shared.settings.check_seconds,
            changed=changed,
        )
        self._store = shared.store.patient(self._chore.report)

    @property
    def trouble(self) -> UnderstudyError | None:
        """Why their rest cannot be uploaded just now."""
        return self._chore.trouble

    def finish(self, newest: int) -> None:
        """Epochs below `newest` are over; nobody else opens them any more."""
        self._newest = newest
        self._chore.ask()

    def take(self, log: EpochLog) -> None:
        """The log was the current one; `finish` follows."""
        self.logs[log.epoch] = log

    async def close(self) -> None:
        await self._chore.stop()
        for log in self.logs.values():
            await log.close()

    async def _finish_all(self) -> bool:
        """One after the other; whether none is left."""
        done = True
        trouble: UnderstudyError | None = None
        for epoch in await self._folder.epochs():
            if epoch < self._newest:
                try:
                    await self._finish(epoch, self._store)
                except FencedError:
                    done = False  # the next look finds that it is not ours
                except UnderstudyError as exc:
                    trouble = exc
        if trouble is not None:
            raise trouble
        return done

    async def _finish(self, epoch: int, store: BlobStore) -> None:
        """Nothing is deleted when it raises."""
        try:
            log = self.logs.get(epoch)
            if log is None and await self._folder.is_ours(epoch, store):
                log = self.logs[epoch] = await self._folder.open(epoch, store, self._changed)
            if log is not None:
                try:
                    await log.flush()
                    await log.release()
                finally:
                    await log.close()
                    del self.logs[epoch]
        except StorageForgotError as exc:
            _log.warning(
                "rest of an old epoch is lost", machine=self._folder.machine, epoch=epoch, **exc.as_dict()
            )
        await self._folder.delete(epoch)
        self._changed()

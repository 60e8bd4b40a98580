"""One machine's folder in the spool: its epochs, whose they are, and opening them.

Whether a log is ours. `state.json` remembers the last term that we took, but it may be older than the truth: it is written after the
term was taken, and not at all on a full disk. So the document of the newest term decides, which names its owner.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from process_server.spool import watermark
from process_server.spool.epoch_log import EpochLog, Resources, last_spooled
from shared.blob import BlobStore
from shared.errors import UNDECODABLE, IndexDamagedError, SpoolError
from shared.log import names
from shared.log.writer import TermDocument, terms
from shared.vault import machine_key


class MachineFolder:
    def __init__(self, shared: Resources, machine: str, path: Path) -> None:
        self.machine: Final = machine
        self._shared = shared
        self._path = path

    async def epochs(self) -> list[int]:
        """The epochs that have a folder here, in order. Raises SpoolError."""
        return await asyncio.to_thread(self._epochs)

    async def open(self, epoch: int, store: BlobStore, changed: Callable[[], None]) -> EpochLog:
        """See EpochLog.open; `store` is used until it is open."""
        key = await machine_key(store, self._shared.vault, self.machine, create=True)
        shared = self._shared._replace(store=store)
        return await EpochLog.open(shared, self.machine, epoch, key, self._epoch(epoch), changed)

    async def is_ours(self, epoch: int, store: BlobStore) -> bool:
        """Whether nobody took the log since this process server had it."""
        taken = max(await terms(store, self.machine, epoch), default=0)
        known = await asyncio.to_thread(watermark.read, self._epoch(epoch))
        return taken <= known.term or await self._owner(epoch, taken, store) == self._shared.settings.owner

    async def last_spooled(self, epoch: int) -> int:
        """The last batch that is here of an epoch whose log is not open. Raises SpoolError, WrongKeyError."""
        return await last_spooled(self._shared, self._epoch(epoch))

    async def delete(self, epoch: int) -> None:
        await asyncio.to_thread(shutil.rmtree, self._epoch(epoch), ignore_errors=True)

    def _epoch(self, epoch: int) -> Path:
        return self._path / f"{epoch:08d}"

    def _epochs(self) -> list[int]:
        try:
            return sorted(int(path.name) for path in self._path.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise SpoolError(
                f"The spool folder {self._path} could not be read", cause=exc.strerror or str(exc)
            ) from exc

    async def _owner(self, epoch: int, term: int, store: BlobStore) -> str:
        name = names.term_document(self.machine, epoch, term)
        data = await store.read(name)
        try:
            return msgspec.json.decode(data, type=TermDocument).owner
        except UNDECODABLE as exc:
            raise IndexDamagedError(f"The term document {name} cannot be read", cause=str(exc)) from exc

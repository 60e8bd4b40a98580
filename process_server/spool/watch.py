"""Looking after one epoch of which files are here and no log is open: what `ownership` makes of it, look after look."""

from __future__ import annotations

import time
from typing import Final

from process_server.spool.epoch_log import Resources
from process_server.spool.evidence import Sorted, sort_files
from process_server.spool.machine_folder import MachineFolder, Recovered
from process_server.spool.ownership import Decision, Owner, Verdict, View, decide
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import BlobNotFoundError, IndexDamagedError, StorageForgotError
from shared.log.chain import IndexChain
from shared.log.epoch_id import EpochId
from shared.log.index import NO_TERM, Term
from shared.log.terms import newest_term, owner_of

_log = logging.get()


class Watch:
    """Makes no sense any more once a log of the epoch was opened: that one moves the files."""

    def __init__(self, shared: Resources, folder: MachineFolder, epoch: EpochId, store: BlobStore) -> None:
        self.id: Final = epoch
        self.verdict: Verdict | None = None
        """The last one."""
        self._shared = shared
        self._folder = folder
        self._recovered: Recovered | None = None
        self._sorted: Sorted | None = None
        self._chain = IndexChain(store, folder.machine, epoch)
        self._owner_name: tuple[Term, str] = NO_TERM, ""
        self._seen: tuple[Term, int] | None = None
        self._seen_at = 0.0

    @property
    def pending_b(self) -> int:
        """Bytes here that are acknowledged, not listed, and may still be."""
        return self._sorted.pending_b if self._sorted is not None else 0

    @property
    def damage(self) -> IndexDamagedError | None:
        """Why nothing more can be listed: what the index was damaged by when it was read."""
        return self._chain.damage

    async def look(self, newest: int, store: BlobStore) -> Verdict:
        """What is to be done, given the machine's newest epoch. Raises SpoolError, WrongKeyError, and what reading the
        log raises.
        """
        if self._recovered is None:
            self._recovered = await self._folder.recover(self.id)
        await self._read_on(store)
        fold = self._chain.fold
        owner = await self._owner(store)
        found = self._sorted = await sort_files(
            store, self._folder.machine, self.id, self._recovered.runs, fold, self._shared.reading
        )
        verdict = decide(
            View(
                epoch=self.id.number,
                newest=newest,
                us=self._shared.settings.owner,
                taken=self._recovered.known.taken,
                owner=owner,
                index_last=fold.last,
                files=found.files,
                here=found.here,
                there=found.there,
            ),
            self._shared.settings.patience,
        )
        if self.verdict is None or self.verdict.decision is not verdict.decision:
            _log.info(
                "epoch looked at",
                machine=self._folder.machine,
                epoch=self.id.number,
                decision=verdict.decision.value,
                reason=verdict.reason,
                pending_b=self.pending_b,
            )
        self.verdict = verdict
        return verdict

    async def carry_out(self) -> None:
        """After *delete* and *quarantine*: what is listed goes, what can not be listed is set aside. Raises SpoolError."""
        assert self._sorted is not None and self.verdict is not None
        assert self.verdict.decision in (Decision.DELETE, Decision.QUARANTINE)
        await self._folder.clear(self.id, self._sorted.listed, self._sorted.unlisted)
        await self._folder.remove(self.id.number)

    async def give_up(self, cause: str) -> None:
        """Sets aside all that is here. Raises SpoolError, WrongKeyError."""
        recovered = await self._folder.recover(self.id)
        files = [(spooled, cause) for run in recovered.runs for spooled in run]
        await self._folder.clear(self.id, [], files)
        await self._folder.remove(self.id.number)

    async def _read_on(self, store: BlobStore) -> None:
        """That the index does not go on as an earlier look left it proves nothing about what is here, for storage may have been set back:
        what it is now decides. An index that is damaged when it is read anew is not read again: nobody lists behind the damage.
        """
        damage = self._chain.damage
        try:
            self._chain.store = store
            await self._chain.read_to_end()
        except (StorageForgotError, IndexDamagedError):
            if damage is not None:
                raise
            self._chain = IndexChain(store, self._folder.machine, self.id)
            await self._chain.read_to_end()

    async def _owner(self, store: BlobStore) -> Owner:
        term = await newest_term(store, self.id.number)
        seen = (term, self._chain.fold.last)
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        if term != self._owner_name[0]:
            self._owner_name = term, await owner_of(store, self.id.number, term)
        try:
            holds = (await store.properties(self._chain.blob)).leased
        except BlobNotFoundError:
            holds = False
        return Owner(
            term=term,
            name=self._owner_name[1],
            holds=holds,
            silent_s=time.monotonic() - self._seen_at,
        )

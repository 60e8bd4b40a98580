"""Looking after one epoch of which files are here and no log is open: what `ownership` makes of it, look after look."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from process_server.spool.epoch_log import Resources
from process_server.spool.evidence import Sorted, sort_files
from process_server.spool.machine_folder import MachineFolder, Recovered
from process_server.spool.ownership import Decision, Owner, Verdict, View, decide
from shared import logging
from shared.blob import BlobStore
from shared.errors import UNDECODABLE, BlobNotFoundError, IndexDamagedError
from shared.log import names
from shared.log.chain import IndexChain
from shared.log.epoch_id import EpochId
from shared.log.terms import TermDocument, terms

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
        self._owners: dict[int, str] = {}
        self._seen = (-1, -1)
        self._seen_at = 0.0

    @property
    def pending_b(self) -> int:
        """Bytes here that are acknowledged, not listed, and may still be."""
        return self._sorted.pending_b if self._sorted is not None else 0

    async def look(self, newest: int, store: BlobStore) -> Verdict:
        """What is to be done, given the machine's newest epoch. Raises SpoolError, WrongKeyError, and what reading the
        log raises.
        """
        if self._recovered is None:
            self._recovered = await self._folder.recover(self.id)
        self._chain.store = store
        await self._chain.read_to_end()
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
                term=self._recovered.known.term,
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

    async def _owner(self, store: BlobStore) -> Owner:
        term = max(await terms(store, self.id.number), default=0)
        seen = (term, self._chain.fold.last)
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        if term and term not in self._owners:
            self._owners = {term: await self._owner_of(term, store)}
        try:
            holds = (await store.properties(self._chain.blob)).leased
        except BlobNotFoundError:
            holds = False
        return Owner(
            term=term,
            name=self._owners.get(term, ""),
            holds=holds,
            silent_s=time.monotonic() - self._seen_at,
        )

    async def _owner_of(self, term: int, store: BlobStore) -> str:
        name = names.term_document(self.id.number, term)
        data = await store.read(name)
        try:
            return msgspec.json.decode(data, type=TermDocument).owner
        except UNDECODABLE as exc:
            raise IndexDamagedError(f"The term document {name} cannot be read", cause=str(exc)) from exc

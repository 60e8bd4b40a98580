"""What can be recovered of a machine, from storage alone: its epochs, its log index, its point documents.

Any ordered batch that the index lists is a recovery point; `points()` are those that were asked for by a mark. What a
reference to a point means: references.py.

Which points restore is one question with one answer, given once, when storage has been read: `docs` are the points that do, by the log
or by their own snapshots, and `lost` the others. What is listed, what `restorable` names and what `resolve` accepts follow from it. A
point is lost
- where its log is gone: storage has no epoch of its claim any more, or was set back within it, and the log went on otherwise: then the
  batch at its position has another digest than its document says. Nothing of the log that is there belongs to such a point: neither may
  that be replayed over its snapshots, nor do these show what it has there. If the point has snapshots, they alone restore it (`alone`),
  as long as its position does not mean an ordered batch of the log that is there;
- where the log does not lead to an ordered batch there (it was cut, or its epoch's document is gone, and nothing else says which disks
  there were: undocumented.py) and the point has no snapshots.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import (
    IndexMissingError,
    IntegrityError,
    LogGapError,
    MachineNotFoundError,
)
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochInfo
from shared.log.index import IndexEntry
from shared.log.reader import LogReader
from shared.recovery import history, point_store, undocumented
from shared.recovery.history import Gap
from shared.recovery.parallel import parallel
from shared.recovery.points import PointDoc
from shared.recovery.position import Position

_WIDTH: Final = 8

_log = logging.get()


class Catalog:
    """A reading of storage at one moment. `epochs` are oldest first; `history` is in log order."""

    def __init__(
        self,
        reader: LogReader,
        machine: str,
        epochs: Sequence[EpochInfo],
        entries: history.History,
        docs: Sequence[PointDoc],
        damaged: Mapping[int, IntegrityError],
        now_ns: int,
        lost: Sequence[PointDoc] = (),
        rebuilt: Mapping[int, IntegrityError] | None = None,
        unusable: Sequence[PointDoc] = (),
    ) -> None:
        """`unusable`: marks of epochs whose log is there and cannot be used."""
        self.reader = reader
        self.machine = machine
        self.epochs = epochs
        self.history = entries
        self.runs = history.ordered_runs(entries)
        self.damaged = damaged
        """Epochs of which the index, or the document, can be read in part only or not at all; what is in the others can be recovered."""
        self.rebuilt = rebuilt or {}
        """Epochs of which the document cannot be read, and which are whole otherwise (undocumented.py)."""
        self._strange = frozenset(doc.position for doc in lost)
        """Points of another epoch, or another history of it, than storage has."""
        self.lost = list(lost)
        self.docs: dict[Position, PointDoc] = {}
        for doc in docs:
            if self._restores(doc):
                self.docs[doc.position] = doc
            else:
                self.lost.append(doc)
        self.docs = {position: self._labelled(doc) for position, doc in self.docs.items()}
        self.lost = [self._labelled(doc) for doc in self.lost]
        self.lost += [self._labelled(doc) for doc in unusable]
        self.now_ns = now_ns

    def _restores(self, doc: PointDoc) -> bool:
        """Of a point of the log that is there. An index is read from its first batch on, without gaps: the log leads to what it lists."""
        return doc.restores_alone or history.contains(self.runs, doc.position)

    @classmethod
    async def load(cls, store: BlobStore, machine: str, reader: LogReader | None = None) -> Catalog:
        """Raises MachineNotFoundError when storage has no epoch of this machine. With an earlier reading's reader, what is new is read."""
        reader = reader or LogReader(store, machine)
        # Documents first: whatever they name is then in the index, which is read after them.
        docs = await point_store.list_docs(store, machine)
        damaged: dict[int, IntegrityError] = {}
        epochs = await reader.epochs(damaged)
        if not epochs and not damaged and not any(doc.restores_alone for doc in docs):
            raise MachineNotFoundError(
                f"There is nothing to recover of machine '{machine}'",
                cause="storage holds no log of it, and no points that have snapshots",
            )
        rebuilt: dict[int, IntegrityError] = {}
        unusable: list[PointDoc] = []
        for number, error in list(damaged.items()):
            epoch = await undocumented.id_of(store, number)
            if epoch is None:
                continue
            info = undocumented.rebuilt(machine, epoch, docs, f"{error.what}: {error.cause}")
            if info is not None:
                rebuilt[number] = damaged.pop(number)
                epochs = sorted([*epochs, info], key=lambda info: info.epoch)
                continue
            cause = f"{error.cause}, and no point that has snapshots says which disks the epoch had"
            damaged[number] = type(error)(error.what, cause=cause)
            unusable += await _marks_without(docs, reader, epoch)
        ids = {info.epoch: info.id for info in epochs}
        unreadable = damaged.keys() - ids.keys()  # of these nobody knows whose claim storage has
        known = [doc for doc in docs if doc.epoch in unreadable or ids.get(doc.epoch) == doc.epoch_id]
        positions = {doc.position for doc in known}
        lost = [doc for doc in docs if doc.position not in positions]
        entries: list[tuple[int, IndexEntry]] = []
        ends: dict[int, int] = {}
        for info in epochs:
            try:
                found = await reader.entries(info.id)
            except IntegrityError as exc:
                damaged[info.epoch], found = exc, reader.before_damage(info.id)
            entries += [(info.epoch, entry) for entry in found]
            ends[info.epoch] = found[-1].last if found else 0
            strange = await _of_another_history(reader, found, [d for d in known if d.epoch == info.epoch])
            lost += [doc for doc in known if doc.position in strange]
            known = [doc for doc in known if doc.position not in strange]
        for doc in [*known, *(doc for doc in lost if doc.epoch not in ids)]:
            if doc.epoch not in damaged and doc.batch > ends.get(doc.epoch, 0):
                damaged[doc.epoch] = _ends_early(machine, doc, ends)
        # A log of months has many segments: nothing that looks at them all is done in the event loop.
        return await asyncio.to_thread(
            cls, reader, machine, epochs, entries, known, damaged, time.time_ns(), lost, rebuilt, unusable
        )

    def epoch(self, number: int) -> EpochInfo:
        """Raises what is wrong with the epoch's document."""
        found = next((e for e in self.epochs if e.epoch == number), None)
        if found is None:
            raise self.damage(number)
        return found

    def entries(self, epoch: int) -> list[IndexEntry]:
        return [entry for e, entry in self.history if e == epoch]

    def points(self) -> list[PointDoc]:
        """All points that marks asked for, in log order: those with a document, and those that have none yet.

        Documents are made in log order and the newest never goes. So a mark behind it has none yet; one before it that has none has
        expired (it is still an ordered batch, which `resolve` accepts while its log is retained).
        """
        newest = max(self.docs, default=Position.of(0, 0))
        marked = history.marked_points(self.machine, self.history, {e.epoch: e.claim for e in self.epochs})
        return [doc for _, doc in sorted(self.docs.items())] + [
            self._labelled(doc) for doc in marked if doc.position > newest
        ]

    def restorable(self) -> list[PointDoc]:
        """All that can be restored: also those whose log is gone and whose snapshots are there."""
        alone = [doc for doc in self.lost if self.alone(doc.position) == doc]
        return sorted([*self.points(), *alone], key=lambda doc: doc.position)

    def _labelled(self, doc: PointDoc) -> PointDoc:
        """The point, marked as suspect when a later epoch says that capture had missed writes by then."""
        suspect = self.is_suspect(doc.position) or (doc.position in self._strange and self.is_untold(doc))
        return msgspec.structs.replace(doc, suspect=True) if suspect else doc

    def is_suspect(self, position: Position) -> bool:
        """Whether capture may have missed writes by then: so a later epoch says; or what followed, which would say it, cannot be read."""
        if any(epoch.doubts(position) for epoch in self.epochs):
            return True
        there = {e.epoch for e in self.epochs}
        # Any later epoch may say it of all before it, not the next one alone.
        later = [n for n in {*there, *self.damaged, *(doc.epoch for doc in self.lost)} if n > position.epoch]
        return any(n not in there or n in self.rebuilt for n in later) or (
            not later and position.epoch not in there
        )

    def alone(self, position: Position) -> PointDoc | None:
        """The point there, when nothing is left of it but its document and its snapshots, which restore it; None when the log says what
        is there, or nothing does.
        """
        if history.contains(self.runs, position):
            return None
        found = self.docs.get(position) or next((d for d in self.lost if d.position == position), None)
        if found is None or not found.restores_alone:
            return None
        has_log = position not in self._strange and any(e.id == found.epoch_id for e in self.epochs)
        return None if has_log else found

    def is_untold(self, doc: PointDoc) -> bool:
        """Whether what followed the epoch of a point that is restored alone is not known, and so whether capture had missed writes."""
        there = any(e.epoch == doc.epoch for e in self.epochs)
        return (there and doc.position in self._strange) or (
            self.is_suspect(doc.position) and not any(e.doubts(doc.position) for e in self.epochs)
        )

    def gaps(self) -> list[Gap]:
        """The periods without points, in log order; among them those of which storage lost the log."""
        lost = {epoch: f"{error.what}: {error.cause}" for epoch, error in self.damaged.items()}
        return history.gaps(self.history, history.reasons(self.epochs), lost)

    def why_lost(self, doc: PointDoc) -> str:
        """Why the log does not restore the point."""
        there = next((e for e in self.epochs if e.epoch == doc.epoch), None)
        if there is not None and there.id != doc.epoch_id:
            return f"its log is gone: it was of epoch {doc.epoch_id}, and storage has epoch {there.id}"
        if there is not None and doc.position in self._strange:
            return f"its log is gone: it was set back, and has another batch {doc.batch} now"
        if there is None and doc.position in self._strange:
            return f"its log is gone: storage has no epoch {doc.epoch}"
        damage = self.damaged.get(doc.epoch)
        if damage is None:
            return f"its log does not lead there: batch {doc.batch} is not ordered in it"
        return f"its log cannot be read: {damage.what}: {damage.cause}"

    async def captured_ns(self, position: Position) -> int:
        """The moment of the image at `position`, by the machine's clock, Unix ns. Raises LogGapError."""
        for entry in self.entries(position.epoch):
            if entry.first <= position.batch <= entry.last:
                return (await self.reader.footer(entry))[position.batch - entry.first].captured_ns
        raise LogGapError(f"Position {position} is not in the log", cause="the index lists no such batch")

    async def digest(self, position: Position) -> str | None:
        """Of the batch there (hex); None when the index lists none."""
        for entry in self.entries(position.epoch):
            if entry.first <= position.batch <= entry.last:
                return await self.reader.digest(entry, position.batch)
        return None

    def damage(self, epoch: int) -> IntegrityError:
        """The error for whoever asks for what lies behind the damage: with what there is before it."""
        error = self.damaged[epoch]
        ready = [*filter(self.is_snapshotted, self.documented())]
        if self.runs:
            ready.append(self.runs[-1].last)
        action = f"The newest point that is left: --point {max(ready)}." if ready else ""
        return type(error)(error.what, cause=error.cause, action=action)

    def is_snapshotted(self, position: Position) -> bool:
        """Whether there is a point that its snapshots restore, also without the log."""
        doc = self.docs.get(position)
        return (doc is not None and doc.restores_alone) or self.alone(position) is not None

    def documented(self) -> list[Position]:
        """Of all points with a document, but for those of another epoch than storage has under their number: which is the newer?"""
        there = {e.epoch for e in self.epochs}
        return [*self.docs, *(doc.position for doc in self.lost if doc.epoch not in there)]


async def _marks_without(docs: Sequence[PointDoc], reader: LogReader, epoch: EpochId) -> list[PointDoc]:
    """The points that marks of the epoch asked for and that have no document."""
    try:
        entries = await reader.entries(epoch)
    except IntegrityError:
        entries = reader.before_damage(epoch)
    there = {doc.position for doc in docs}
    found = history.marked_points(
        reader.machine, [(epoch.number, entry) for entry in entries], {epoch.number: epoch.claim}
    )
    return [doc for doc in found if doc.position not in there]


async def _of_another_history(
    reader: LogReader, entries: Sequence[IndexEntry], docs: Sequence[PointDoc]
) -> set[Position]:
    """Those of the epoch's points where its log has another batch. What no document, or no log, says is no difference."""
    found: set[Position] = set()

    async def compare(doc: PointDoc, entry: IndexEntry) -> None:
        try:
            if await reader.digest(entry, doc.batch) != doc.digest:
                found.add(doc.position)
        except IntegrityError as exc:  # whoever restores it is told
            _log.warning("segment not looked into", machine=reader.machine, point=doc.id, **exc.as_dict())

    todo = []
    for doc in docs:
        at = bisect.bisect_left(entries, doc.batch, key=lambda entry: entry.last)
        if doc.digest and at < len(entries) and entries[at].first <= doc.batch:
            todo.append(partial(compare, doc, entries[at]))
    await parallel(todo, _WIDTH)
    return found


def _ends_early(machine: str, doc: PointDoc, ends: Mapping[int, int]) -> IndexMissingError:
    """A document is written when its position is in the index, and read before the index is."""
    what = f"The log index of machine {machine}, epoch {doc.epoch} is not whole"
    if doc.epoch not in ends:
        return IndexMissingError(what, cause=f"nothing is left of the epoch, and there is point {doc.id}")
    return IndexMissingError(what, cause=f"it ends at batch {ends[doc.epoch]}, and there is point {doc.id}")

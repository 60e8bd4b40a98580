"""Recovery points as people see them, from the catalog of a machine's log."""

from __future__ import annotations

import asyncio
from typing import Final

from shared.api.points import GapView, PointList, PointView
from shared.blob import BlobStore
from shared.errors import MachineNotFoundError
from shared.log.reader import LogReader
from shared.machine.storage import MachineStorage
from shared.recovery.catalog import Catalog
from shared.recovery.points import PointDoc
from shared.recovery.position import format_ns as rfc3339

_KEPT: Final = 16
"""A reader remembers an index, which of a log of months are tens of megabytes."""


class Readers:
    """Of the machines that were listed last: of one that is listed again and again, only what is new is read."""

    def __init__(self) -> None:
        self._readers: dict[tuple[str, str], LogReader] = {}
        """By machine and container, the one that was used last at the end."""

    def take(self, store: BlobStore, machine: str) -> LogReader:
        """It is kept when it is given back: not when a reading of it failed, which the next one shall not build upon."""
        return self._readers.pop((machine, store.container), None) or LogReader(store, machine)

    def give_back(self, store: BlobStore, reader: LogReader) -> None:
        self._readers[reader.machine, store.container] = reader
        while len(self._readers) > _KEPT:
            del self._readers[next(iter(self._readers))]


async def read(storage: MachineStorage, machine: str, readers: Readers | None = None) -> PointList:
    """The machine's points in log order, and the periods without any; nothing when storage has no log of it.

    Raises StorageError, IntegrityError.
    """
    readers = readers or Readers()
    try:
        store = await storage.find(machine)
        catalog = await Catalog.load(store, machine, readers.take(store, machine))
    except MachineNotFoundError:
        return PointList(machine=machine, points=[])
    if not catalog.damaged:
        readers.give_back(store, catalog.reader)
    return await asyncio.to_thread(listing, catalog)


def listing(catalog: Catalog) -> PointList:
    return PointList(
        machine=catalog.machine,
        points=sorted(
            [
                *(_shown(catalog, doc) for doc in catalog.points()),
                *(_shown(catalog, doc) for doc in catalog.lost),
            ],
            key=lambda shown: (shown.epoch, shown.batch),
        ),
        gaps=[
            GapView(
                after=None if gap.after is None else str(gap.after),
                until=None if gap.until is None else str(gap.until),
                since_time=None if gap.since_ns is None else rfc3339(gap.since_ns),
                until_time=None if gap.until_ns is None else rfc3339(gap.until_ns),
                cause=gap.cause,
            )
            for gap in catalog.gaps()
        ],
    )


def _shown(catalog: Catalog, doc: PointDoc) -> PointView:
    if catalog.alone(doc.position) == doc:
        return view(doc, remark=f"{catalog.why_lost(doc)}; it is restored from its snapshots")
    if doc in catalog.lost:
        return view(doc, lost=catalog.why_lost(doc))
    error = catalog.rebuilt.get(doc.epoch)
    return view(doc, remark="" if error is None else f"{error.what}: {error.cause}")


def view(doc: PointDoc, *, lost: str = "", remark: str = "") -> PointView:
    return PointView(
        id=doc.id,
        time=doc.time,
        epoch=doc.epoch,
        batch=doc.batch,
        consistency=doc.consistency,
        state=doc.state,
        marks=list(doc.marks),
        suspect=doc.suspect,
        unreadable=[list(piece) for piece in doc.missing.ranges],
        unreadable_covers=doc.missing.covers,
        lost=lost,
        remark=remark,
    )

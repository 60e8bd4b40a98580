"""Recovery points as people see them, from the catalog of a machine's log."""

from __future__ import annotations

from shared.errors import MachineNotFoundError
from shared.machine_storage import MachineStorage
from shared.messages import GapView, PointList, PointView
from shared.recovery.catalog import Catalog
from shared.recovery.points import PointDoc
from shared.recovery.position import format_ns as rfc3339


async def read(storage: MachineStorage, machine: str) -> PointList:
    """The machine's points in log order, and the periods without any; nothing when storage has no log of it.

    Raises StorageError, IntegrityError.
    """
    try:
        return listing(await Catalog.load(await storage.find(machine), machine))
    except MachineNotFoundError:
        return PointList(machine=machine, points=[])


def listing(catalog: Catalog) -> PointList:
    return PointList(
        machine=catalog.machine,
        points=[view(doc) for doc in catalog.points()],
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


def view(doc: PointDoc) -> PointView:
    return PointView(
        id=doc.id,
        time=doc.time,
        epoch=doc.epoch,
        batch=doc.batch,
        consistency=doc.consistency,
        state=doc.state,
        marks=list(doc.marks),
        suspect=doc.suspect,
        unreadable=[list(piece) for piece in doc.unreadable],
    )

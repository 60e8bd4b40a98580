"""Making recovery points: documents for marks, snapshots when apply is there.

The order that makes a point all or nothing (I6): the mark's segment is listed in the index; then the document, by position alone; then,
while all disks stand exactly at the position, a snapshot of each, which names that position; then the document again, with the
snapshots. A crash in between leaves a point that restores from the log, and snapshots that no document names: orphans, which
retention removes; the snapshots are taken again, as the disks are still there (nothing moves them before the point has its snapshots).

Documents are first written in log order, and the newest is never removed: so the newest tells which marks have been documented.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from master_target.apply import DiskTarget
from shared import logging
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.errors import UNDECODABLE, BlobNotFoundError, IntegrityError
from shared.recovery import point_store, points
from shared.recovery.points import PointDoc, Range
from shared.recovery.position import NOWHERE, Position

_log = logging.get()


class PointMaker:
    """The points of one machine."""

    def __init__(self, store: BlobStore, machine: str) -> None:
        self._store = store
        self._machine = machine
        self.documented = NOWHERE
        """The newest point that has a document. Known after `load`."""
        self.last: PointDoc | None = None
        """The newest point that was documented or got its snapshots here."""

    async def load(self) -> None:
        names = [info.name async for info in self._store.list(points.prefix(self._machine))]
        self.documented = max((p for name in names if (p := points.position_of(name))), default=NOWHERE)

    async def document(self, found: Sequence[PointDoc]) -> None:
        """Write the documents of those points that are newer than any documented one. `found` is in log order."""
        for point in found:
            if point.position > self.documented:
                await point_store.write_new(self._store, point)
                self.documented = point.position
                self.last = point
                _log.info("point logged", machine=self._machine, point=point.id, captured=point.time)
                reach("points.after-document")

    async def take_snapshots(self, position: Position, disks: Sequence[DiskTarget]) -> bool:
        """Take the snapshots of the point at `position` if it has none; False when no document says that there is a point.

        All `disks`, which are all disks of the machine, must stand at `position`.
        """
        doc = await point_store.read(self._store, self._machine, position)
        if doc is None:
            return False
        if doc.state == "snapshotted":
            return True
        snapshots = {}
        for disk in disks:
            snapshots[disk.target.name] = await disk.target.snapshot()
            reach("points.after-a-snapshot")
        self.last = msgspec.structs.replace(
            doc,
            state="snapshotted",
            target=disks[0].target.kind,
            snapshots=snapshots,
            unreadable=await self._read_unreadable(position.epoch),
        )
        await point_store.replace(self._store, self.last)
        _log.info("point snapshotted", machine=self._machine, point=doc.id, captured=doc.time)
        reach("points.after-snapshots")
        return True

    async def note_unreadable(self, epoch: int, new: Sequence[Range]) -> None:
        """Remember what catch-up could not read, before the interval that says so is applied: all later points carry it."""
        if new:
            known = await self._read_unreadable(epoch)
            merged = tuple(dict.fromkeys((*known, *new)))
            if merged != known:
                await self._store.replace(self._unreadable_blob(epoch), msgspec.json.encode(merged))

    async def _read_unreadable(self, epoch: int) -> tuple[Range, ...]:
        name = self._unreadable_blob(epoch)
        try:
            return msgspec.json.decode(await self._store.read(name), type=tuple[Range, ...])
        except BlobNotFoundError:
            return ()
        except UNDECODABLE as exc:
            raise IntegrityError(
                f"{name} could not be read",
                cause=str(exc),
                action="Delete it; points then do not list what the source disk could not read.",
            ) from exc

    def _unreadable_blob(self, epoch: int) -> str:
        return f"disks/{self._machine}/unreadable-{epoch:08d}.json"

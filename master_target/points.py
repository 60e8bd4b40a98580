"""Making recovery points: documents for marks, snapshots when apply is there.

The order that makes a point all or nothing (I6): the mark's segment is listed in the index; then the document, by position alone; then
the roll that names it; then, while all disks stand exactly at the position, a snapshot of each, which names that position; then the
document again, with the snapshots. A crash in between leaves a document that the roll does not name, which the next owner of the machine
makes its own; or a point that restores from the log, and snapshots that no document names: orphans, which retention removes; the
snapshots are taken again, as the disks are still there (nothing moves them before the point has its snapshots).

A seed disk that somebody deletes takes its snapshots with it. It is rebuilt from the log, and stands at each mark again: then those that
are gone are taken anew, and the document names them in place of the others.

Points are added in log order, and the newest is never removed: so the newest tells which marks have been documented.

Unless the log was set back, and went on otherwise: then a mark of the new history may stand before the newest point, or at it. A document
says the digest of its batch, which covers all before it, and when its segment came into storage, by storage's clock. So of the marks up
to the newest point, from the last one back:
- one that is a point with the same digest ends the search: what is before it is of the history that was documented;
- one that is a point with another digest is news: its document is written anew, and has no snapshots until the disks stand at that batch;
- one that is no point is news if its segment came after the newest point's, and has expired if it came before: that ends the search, too.
  (Segments come in the order of the log, or nearly: at worst a point that has just expired is made again, and expires again.)
That needs no batch at the old newest point's place: the new history may end before it.

Points that the log contradicts are set aside (points.Roll): else the old history's snapshots would count as the newest ones for retention,
and the present one's would go. So are those behind a mark that is news in this way, if the log does not have them: no mark is added
before a point that might be of another history. So, from the newest back, the first point that the log confirms ends the look: what is
before it is confirmed by that. If the log of what was set aside comes back, its marks are news again, and take their documents as they are.

That is so of a roll that was kept by these rules. One that was made from documents, since it was lost or set back (roll.py), has forgotten
what was aside, and the present history's points may stand behind the other's: retention would keep the other's for theirs. So all of its
points are judged once (`_judge_all`), in all epochs that it names, before a mark is added or a point expires. The log is read for that
from the oldest of these epochs on (`reads_from`), and nothing of it is forgotten before (machine.py). What it contradicts is set aside. So
is what it lacks of an epoch of which it has other points, or behind all points that it confirms: it went on otherwise, or was cut; nothing
is left of that but documents and snapshots, which are kept as long as a point may be. What else it lacks is of an older epoch whose log is
gone: a point like any other, which takes no other epoch's place. What has no digest (older documents) cannot be judged, and stays.

Who else might write, and why that does no harm: roll.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from master_target.apply import DiskTarget
from master_target.roll import OwnedRoll
from master_target.unreadable import UnreadableRecord
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    IntegrityError,
    LeaseLostError,
    PreconditionError,
)
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochDisk
from shared.recovery import point_store
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.recovery.unreadable import after
from shared.vocabulary import PointState

_log = logging.get()

_TRIES: Final = 20
"""Each try means that somebody changed the document meanwhile; so many at a time is a fight."""


class PointMaker:
    """The points of one machine. Methods raise LeaseLostError once another master target has taken it."""

    def __init__(self, store: BlobStore, machine: str) -> None:
        self._store = store
        self._machine = machine
        self._roll: OwnedRoll | None = None
        self.unreadable = UnreadableRecord(store, lambda: self.roll.check())
        self.last: PointDoc | None = None
        """The newest point that was documented or got its snapshots here."""
        self._judged: set[Position] = set()
        """Points of which the log has said whether they are of its history."""

    async def take(self) -> None:
        """Become the owner of the machine's points; before all else. Only for the holder of the machine's claim."""
        self._roll = await OwnedRoll.take(self._store, self._machine)

    @property
    def roll(self) -> OwnedRoll:
        assert self._roll is not None
        return self._roll

    @property
    def reads_from(self) -> int:
        """The epoch from which on `document` must know the log. 0: the first."""
        if self._roll is None:
            return 0
        newest = self._roll.newest
        return min([newest, *self._roll.newest_first()]).epoch if self._roll.unjudged else newest.epoch

    async def document(
        self,
        found: Sequence[PointDoc],
        listed_ns: Callable[[Position], Awaitable[int]],
        digest: Callable[[Position], Awaitable[str]],
    ) -> None:
        """Write the documents of those points that the roll lacks. `found` is in log order; `listed_ns`: when storage got the segment with
        that position, by its own clock; `digest`: of the batch there in the log.
        """
        await self._set_others_aside(digest)
        news = await self._news(found, listed_ns, digest)
        if news and not self.roll.follows(news[0]):
            await self._set_aside(await self._missing(news[0].position, digest))
        for point in news:
            async with self.roll.writing:
                await self._write(point)
                reach("points.after-document")
                await self.roll.add(point)
            self.last = point
            _log.info("point logged", machine=self._machine, point=point.id, captured=point.time)
            reach("points.after-roll")

    async def _news(
        self,
        found: Sequence[PointDoc],
        listed_ns: Callable[[Position], Awaitable[int]],
        digest: Callable[[Position], Awaitable[str]],
    ) -> list[PointDoc]:
        """The points that the roll lacks, in log order, as they are documented."""
        news: list[PointDoc] = []
        reached = False  # what was documented
        for marked in reversed(found):
            follows = self.roll.follows(marked)
            if reached and not follows:
                continue
            point = msgspec.structs.replace(marked, digest=await self._digest(marked.position, digest) or "")
            came_ns = 0
            if not follows and point.position in self.roll:
                reached = (
                    "" in (there := self.roll.digest(point.position), point.digest) or there == point.digest
                )
            elif not follows and not self.roll.is_aside(point.position):
                came_ns = await listed_ns(point.position)
                reached = not came_ns or came_ns < self.roll.newest_listed_ns
            if not reached or follows:
                came_ns = came_ns or await listed_ns(point.position)
                news.append(self.roll.sign(msgspec.structs.replace(point, listed_ns=came_ns)))
        return news[::-1]

    async def _set_others_aside(self, digest: Callable[[Position], Awaitable[str]]) -> None:
        """The points that the log contradicts."""
        if self.roll.unjudged:
            await self._judge_all(digest)
            return
        others = []
        for position in self.roll.newest_first():
            there = self.roll.digest(position)
            if position in self._judged:
                break
            found = await self._digest(position, digest) if there else ""
            if found == "":
                continue  # the log has not come that far, or what was there is forgotten; or nothing says what the point is
            self._judged.add(position)
            if found in (there, None):
                break
            others.append(position)
        await self._set_aside(others)

    async def _judge_all(self, digest: Callable[[Position], Awaitable[str]]) -> None:
        """Each point by itself: nothing says that what is before one is of its history."""
        said = {p: there for p in self.roll.newest_first() if (there := self.roll.digest(p))}
        found = {position: await self._digest(position, digest) for position in said}
        logs = {position.epoch for position in found if found[position]}
        confirmed = max((p for p, there in said.items() if found[p] == there), default=None)
        others = [
            p
            for p, there in said.items()
            if found[p] not in (there, None, "")
            or (found[p] == "" and (p.epoch in logs or (confirmed is not None and p > confirmed)))
        ]
        await self.roll.judge(others)
        reach("points.after-judging")
        self._say_aside(others)

    async def _missing(
        self, behind: Position, digest: Callable[[Position], Awaitable[str]]
    ) -> list[Position]:
        """The points behind that position which the log, which was set back, does not have, or not yet."""
        later = [position for position in self.roll.newest_first() if position > behind]
        return [position for position in later if await self._digest(position, digest) == ""]

    async def _set_aside(self, others: Sequence[Position]) -> None:
        if others:
            await self.roll.set_aside(others)
            self._judged.difference_update(others)
            self._say_aside(others)

    def _say_aside(self, others: Sequence[Position]) -> None:
        if others:
            _log.warning(
                "points set aside: the log was set back, and went on otherwise",
                machine=self._machine,
                points=[str(position) for position in others],
            )

    async def _digest(self, position: Position, digest: Callable[[Position], Awaitable[str]]) -> str | None:
        """Of the batch there. None when it cannot be had: whoever applies the segment, or restores it, fails by it."""
        try:
            return await digest(position)
        except IntegrityError as exc:
            _log.warning(
                "segment not looked into", machine=self._machine, position=str(position), **exc.as_dict()
            )
            return None

    async def _write(self, point: PointDoc) -> None:
        """The document of a point that the roll does not name. One that is there is an earlier owner's, who was killed, or is late."""
        for _ in range(_TRIES):
            if await point_store.write_new(self._store, point):
                return
            stored = await point_store.read(self._store, point.position)
            if stored is None:
                continue
            await self._check_term(stored.doc)
            if stored.doc.restores_alone and point.digest and _same_batch(stored.doc, point):
                point = self.roll.sign(stored.doc)  # its history is back, and it has its snapshots
            try:
                await point_store.change(self._store, point, stored.etag)
            except PreconditionError:
                continue
            return
        raise self._contended(point.position)

    async def take_snapshots(self, position: Position, disks: Sequence[DiskTarget]) -> bool:
        """Take the snapshots of the point at `position` that it lacks, or all if those that it has are of another history of the log; False
        when there is no point of it, or the disks are not known to be of one history.

        All `disks`, which are all disks of the machine, must stand at `position`.
        """
        place = _place(disks)
        if position not in self.roll or place is None:
            return False
        epoch, there = place
        snapshots: dict[str, str] = {}
        for _ in range(_TRIES):
            stored = await point_store.read(self._store, position)
            if stored is None:
                return False
            await self._check_term(stored.doc)
            if stored.doc.epoch_id != epoch:
                return False
            if stored.doc.state == PointState.SNAPSHOTTED and stored.doc.digest == there:
                left = await self._left_of(stored.doc, disks)
                if len(left) == len(disks):
                    return True
                snapshots = left | snapshots
            if (
                stored.doc.state == "logged"
                and "" not in (stored.doc.digest, there)
                and stored.doc.digest != there
            ):
                return False
            missing = await self.unreadable.at(disks)
            for disk in disks:
                if disk.target.name not in snapshots:
                    snapshots[disk.target.name] = await disk.target.snapshot()
                    reach("points.after-a-snapshot")
            point = msgspec.structs.replace(
                stored.doc,
                state=PointState.SNAPSHOTTED,
                target=disks[0].target.kind,
                snapshots=snapshots,
                digest=there,
                disks=tuple(EpochDisk(d.number, d.target.name, d.serial, d.disk_b // SECTOR) for d in disks),
                unreadable=missing.ranges,
                unreadable_covers=missing.covers,
            )
            try:
                await point_store.change(self._store, self.roll.sign(point), stored.etag)
            except PreconditionError:
                continue
            self.last = point
            _log.info("point snapshotted", machine=self._machine, point=point.id, captured=point.time)
            reach("points.after-snapshots")
            return True
        raise self._contended(position)

    async def retake_snapshots(self, position: Position, disks: Sequence[DiskTarget]) -> None:
        """Take those snapshots of the point at `position` anew that are gone. `disks` stand there; others are ahead, and were not lost."""
        if position not in self.roll:
            return
        for _ in range(_TRIES):
            stored = await point_store.read(self._store, position)
            if stored is None:
                return
            doc = stored.doc
            await self._check_term(doc)
            if doc.state != PointState.SNAPSHOTTED or _place(disks) != (doc.epoch_id, doc.digest):
                return
            left = await self._left_of(doc, disks)
            lost = [disk for disk in disks if disk.target.name in doc.snapshots.keys() - left.keys()]
            if not lost:
                return
            missing = await self.unreadable.at(lost)
            kept = doc.missing.of({n for n, *_ in doc.unreadable} - {disk.number for disk in lost})
            missing = after(kept, {}, missing)
            snapshots = {disk.target.name: await disk.target.snapshot() for disk in lost}
            point = msgspec.structs.replace(
                doc,
                snapshots=doc.snapshots | snapshots,
                unreadable=missing.ranges,
                unreadable_covers=missing.covers,
            )
            try:
                await point_store.change(self._store, self.roll.sign(point), stored.etag)
            except PreconditionError:
                continue
            _log.info(
                "snapshots of a point taken anew", machine=self._machine, point=doc.id, disks=list(snapshots)
            )
            return
        raise self._contended(position)

    async def _left_of(self, doc: PointDoc, disks: Sequence[DiskTarget]) -> dict[str, str]:
        """Those of the point's snapshots that are there. (A seed disk that somebody deletes takes its snapshots with it.) What lies in
        another place than our disks, nobody here can tell.
        """
        if doc.target != disks[0].target.kind:
            return dict(doc.snapshots)
        return {
            disk.target.name: snapshot
            for disk in disks
            if (snapshot := doc.snapshots.get(disk.target.name))
            and await disk.target.shows_as_it_is(snapshot)
        }

    async def _check_term(self, doc: PointDoc) -> None:
        if doc.term == self.roll.term and not self.roll.wrote(doc):
            await self.roll.check()  # storage was set back: only the roll tells whose our term's number is
        if doc.term > self.roll.term:
            raise LeaseLostError(
                f"Recovery point {doc.id} of machine {self._machine} was not changed",
                cause=f"another master target wrote it, with term {doc.term}; ours is {self.roll.term}",
            )

    def _contended(self, position: Position) -> LeaseLostError:
        return LeaseLostError(
            f"Recovery point {position} of machine {self._machine} was not changed",
            cause="another master target keeps changing it",
        )


def _place(disks: Sequence[DiskTarget]) -> tuple[EpochId, str] | None:
    """Epoch, and digest of the batch, at which all these stand; None when they are not known to be at one. A position does not tell: of two
    disks at one, each may be of another history of the log, or of another epoch with its number.
    """
    states = [disk.target.state for disk in disks]
    places = {(state.cursor_epoch, state.cursor_digest) for state in states}
    return places.pop() if len(places) == 1 else None


def _same_batch(one: PointDoc, other: PointDoc) -> bool:
    return (one.epoch_id, one.batch, one.digest) == (other.epoch_id, other.batch, other.digest)

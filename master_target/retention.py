"""Which recovery points go, and which snapshots nobody needs. Rules are pure; `prune` carries them out.

A point's age goes by the storage's clock alone: when its segment came into storage, as its document says, or else when that was written
(after an outage of the master target, a day's points are documented in one minute: they would expire in one as well). Neither the
machine's clock nor ours has a say, so none of them that is years away deletes everything, or keeps everything. A document without that
time which is written again later, by another owner say, makes its point look younger than those behind it: a point is never taken to
be younger than the next one. Age is measured from the newest point: points expire only when newer ones have arrived. "Newest" goes by
position. Never removed: the newest point, the newest with snapshots.

The document goes first, its snapshots later: when nothing has referred to a snapshot for an hour, as seen by this process. So a
restore that began before is not cut off, and a snapshot whose document is still being written is safe. A document that cannot be read
here (damaged, or of a newer version) may name any snapshot that shows its position: those stay. So do those of a point that is still
without snapshots and was written by another owner, who may be about to name them.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Final

import msgspec

from master_target.roll import OwnedRoll
from master_target.targets.base import Target
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import LeaseLostError, PreconditionError, StorageError, StorageProtectedError
from shared.recovery import point_store
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.vocabulary import PointState

_log = logging.get()

_SECOND_NS: Final = 1_000_000_000
_PRUNE_S: Final = 60.0


_CENTURY_S: Final = 100 * 366 * 86400
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_CENTURY_S)]


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    all_s: _Seconds = 2 * 3600.0
    """Every recovery point is kept until it is so old."""
    hourly_s: _Seconds = 24 * 3600.0
    """After that the last point of each hour is kept, until it is so old."""
    orphan_s: Annotated[float, msgspec.Meta(ge=60, le=_CENTURY_S)] = 3600.0
    """A snapshot that no point names any more is kept so long: a restore may still read it."""


def expired(
    docs: Sequence[PointDoc],
    stored_ns: Mapping[Position, int],
    policy: RetentionPolicy,
    aside: Sequence[PointDoc] = (),
) -> list[PointDoc]:
    """The points that the policy does not keep. `docs`: all points of a machine, in log order; `stored_ns`: when the document of each was
    written. Those that were set `aside` are kept as long as any point may be, and take no other's place; longer while no point is behind
    them: until then they tell which marks have been documented.
    """
    if not docs:
        return []
    processed = [doc for doc in docs if doc.state == PointState.SNAPSHOTTED]
    kept = {docs[-1].id, *(doc.id for doc in processed[-1:])}
    newest_ns = at_ns = _listed_ns(docs[-1], stored_ns)
    hours: set[tuple[int, int]] = set()
    for doc in reversed(docs):  # newest first: the last of an hour is the one that stays
        at_ns = min(at_ns, _listed_ns(doc, stored_ns))
        age_ns = newest_ns - at_ns
        hour = (doc.epoch, at_ns // (3600 * _SECOND_NS))
        if age_ns <= policy.all_s * _SECOND_NS or (
            age_ns <= policy.hourly_s * _SECOND_NS and hour not in hours
        ):
            kept.add(doc.id)
        hours.add(hour)
    outlived = [
        doc
        for doc in aside
        if doc.position < docs[-1].position
        and newest_ns - _listed_ns(doc, stored_ns) > max(policy.all_s, policy.hourly_s) * _SECOND_NS
    ]
    return [*(doc for doc in docs if doc.id not in kept), *outlived]


def _listed_ns(doc: PointDoc, stored_ns: Mapping[Position, int]) -> int:
    return min(doc.listed_ns or stored_ns[doc.position], stored_ns[doc.position])


def _named(roll: OwnedRoll, doc: PointDoc) -> bool:
    return doc.position in roll or roll.is_aside(doc.position)


class Pruner:
    """Prunes one machine's points and snapshots; remembers since when each orphan has been one. So it lives as long as the process, also
    when the work on the machine fails and begins again.
    """

    def __init__(self, store: BlobStore, machine: str, policy: RetentionPolicy) -> None:
        self._store = store
        self._machine = machine
        self._policy = policy
        self._orphans: dict[tuple[str, str], float] = {}
        self._due_at = time.monotonic() + _PRUNE_S
        self.failure: StorageError | None = None
        """Why the last `prune` did not remove all that has expired."""

    @property
    def due(self) -> bool:
        """Whether a minute has passed since `prune` began the last time, also when that failed."""
        return time.monotonic() >= self._due_at

    async def prune(self, roll: OwnedRoll, targets: Sequence[Target]) -> None:
        """Remove what has expired. What storage does not let us remove, or not now, is noted in `failure`, and tried again the next time:
        it costs room, and the machine's work goes on. Raises what says that another owner has the points.
        """
        self._due_at = time.monotonic() + _PRUNE_S
        self.failure = None
        try:
            await self._prune(roll, targets)
        except (LeaseLostError, PreconditionError):
            raise
        except StorageError as exc:
            self._note(exc)

    def _note(self, error: StorageError) -> None:
        if self.failure is None:
            _log.warning("not all that has expired was removed", machine=self._machine, **error.as_dict())
        self.failure = self.failure or error

    async def _prune(self, roll: OwnedRoll, targets: Sequence[Target]) -> None:
        found, unreadable, stored_ns, etags = await point_store.survey(self._store, self._machine)
        # What another epoch with the same number left may be all that there is of it: it stays, with its snapshots, for a person to judge.
        others = {doc.position for doc in found if roll.is_of_another(doc.epoch_id)}
        docs = [doc for doc in found if doc.position not in others]
        points = [doc for doc in docs if doc.position in roll]
        aside = [doc for doc in docs if roll.is_aside(doc.position)]
        gone = expired(points, stored_ns, self._policy, aside)
        if gone:
            await roll.strike([doc.position for doc in gone])
            _log.info("points expired", machine=self._machine, count=len(gone), newest=gone[-1].id)
        # What the roll does not name, up to its newest: struck out just now, or before a kill, or created late by an owner before us.
        unnamed = [doc for doc in docs if not _named(roll, doc) and doc.position < roll.newest]
        if unnamed:
            await roll.check()  # so what was seen is of this owner, or of one before it
        for doc in unnamed:
            async with roll.writing:  # a document that is being written is named in a moment
                if not _named(roll, doc):
                    try:
                        await point_store.delete(self._store, doc.position, etags[doc.position])
                    except StorageProtectedError as exc:  # this one: a legal hold, say
                        self._note(exc)
        left = [doc for doc in (*points, *aside) if _named(roll, doc)]
        late = {doc.position for doc in left if doc.state == PointState.LOGGED and not roll.wrote(doc)}
        kept = unreadable | late | others
        if targets:  # any of them knows the snapshots of all the machine's disks, also of those that left it
            needed = {item for doc in left for item in doc.snapshots.items()}
            await self._remove_orphans(roll, targets[0], needed, kept)

    async def _remove_orphans(
        self,
        roll: OwnedRoll,
        target: Target,
        needed: Container[tuple[str, str]],
        unknown: Container[Position | None],
    ) -> None:
        """`needed`: (disk, snapshot) that points name; `unknown`: positions of points of which nobody knows what they (will) name."""
        now = time.monotonic()
        found = await target.snapshots()
        orphans = [
            (s.disk, s.id) for s in found if (s.disk, s.id) not in needed and s.position not in unknown
        ]
        self._orphans = {key: self._orphans.get(key, now) for key in orphans}
        old = [key for key, first_seen in self._orphans.items() if now - first_seen >= self._policy.orphan_s]
        if old:
            await roll.check()
        for disk, snapshot in old:
            try:
                await target.delete_snapshot(disk, snapshot)
            except StorageProtectedError as exc:
                self._note(exc)
                continue
            _log.info("orphan snapshot removed", machine=self._machine, disk=disk, snapshot=snapshot)

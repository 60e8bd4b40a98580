"""Planning a restore: which snapshots to start from, which batches to replay. Pure.

Any ordered batch is a point. Its image = the newest valid snapshots of its epoch at or before it, or all zeroes before the epoch's
first batch (every epoch begins with a full replication, so replay from nothing is complete), and then every batch up to it.
Snapshots of another epoch are no base: what happened between two epochs is not in the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shared.batch import SECTOR
from shared.errors import LogGapError
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochDisk
from shared.log.index import IndexEntry
from shared.recovery.points import PointDoc
from shared.recovery.position import Position


class Replay(msgspec.Struct, frozen=True):
    """Batches `first` to `last` of one segment."""

    entry: IndexEntry
    first: int
    last: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    machine: str
    epoch: EpochId
    """Of the position: what is replayed must be of it. Its claim tells the log from another one of the same name and numbers."""
    position: Position
    captured_ns: int
    disks: tuple[EpochDisk, ...]
    suspect: bool
    """A later epoch says that capture had missed writes by then."""
    point: PointDoc | None
    """The point's document, when a mark asked for one here."""
    base: PointDoc | None
    """Whose snapshots to start from; None: from zeroes."""
    replay: tuple[Replay, ...]
    digest: str = ""
    """Of the batch there (hex). It covers all before it: tells this history of the epoch from another one. Empty: not known, of a point
    that is restored alone and whose document does not say it."""
    remarks: tuple[str, ...] = ()
    """What whoever restores it must know."""

    @property
    def log_b(self) -> int:
        """Bytes of log to download."""
        return sum(step.entry.bytes for step in self.replay)

    @property
    def disks_b(self) -> int:
        """Size of all images together."""
        return sum(disk.sectors for disk in self.disks) * SECTOR


def base_candidates(position: Position, docs: Sequence[PointDoc]) -> list[PointDoc]:
    """The points whose snapshots may serve as base, best first."""
    usable = [
        doc
        for doc in docs
        if doc.restores_alone  # images lie on a master target, which may be gone
        and doc.epoch == position.epoch
        and doc.position <= position
    ]
    return sorted(usable, key=lambda doc: doc.position, reverse=True)


def replay_steps(entries: Sequence[IndexEntry], after: int, until: Position) -> tuple[Replay, ...]:
    """Which batches of which segments lie in (after, until]. `entries`: of the epoch of `until`, in log order.

    Raises LogGapError when they are not all there.
    """
    steps = []
    reached = after
    for entry in entries:
        if entry.last <= reached:
            continue
        if reached >= until.batch or entry.first > reached + 1:
            break
        last = min(entry.last, until.batch)
        steps.append(Replay(entry, reached + 1, last))
        reached = last
    if reached < until.batch:
        raise LogGapError(
            f"The log does not lead to position {until}",
            cause=f"batch {reached + 1} is not in the log index",
        )
    return tuple(steps)

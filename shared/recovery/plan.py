"""Planning a restore: which snapshots to start from, which batches to replay. Pure.

Any ordered batch is a point. Its image = the newest valid snapshots of its epoch at or before it, or all
zeroes before the epoch's first batch (every epoch begins with a full replication, so replay from nothing is
complete), and then every batch up to it. Snapshots of another epoch are no base: what happened between two
epochs is not in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from shared.errors import LogGapError
from shared.recovery.points import PointDoc
from shared.recovery.position import Position


class Listed(Protocol):
    """What planning needs to know of an index entry: the batches in the segment, its size."""

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def bytes(self) -> int: ...


Entry = TypeVar("Entry", bound=Listed)


class Replay(msgspec.Struct, frozen=True):
    """Batches `first` to `last` of one segment."""

    entry: Listed
    first: int
    last: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    position: Position
    base: PointDoc | None
    """Whose snapshots to start from; None: from zeroes."""
    replay: tuple[Replay, ...]

    @property
    def log_b(self) -> int:
        """Bytes of log to read."""
        return sum(step.entry.bytes for step in self.replay)


def make_plan(position: Position, entries: Sequence[Listed], points: Sequence[PointDoc]) -> Plan:
    """The plan for `position`, from the index entries of its epoch (in log order) and the points that may
    serve as base.

    Raises LogGapError when the log does not lead from the best base to the position.
    """
    bases = [p for p in points if p.snapshots and p.epoch == position.epoch and p.position <= position]
    base = max(bases, key=lambda p: p.position, default=None)
    return Plan(
        position=position,
        base=base,
        replay=tuple(replay(entries, base.batch if base else 0, position)),
    )


def replay(entries: Sequence[Listed], after: int, until: Position) -> list[Replay]:
    """Which batches of which segments lie in (after, until], without a gap. Raises LogGapError."""
    steps = []
    reached = after
    for entry in entries:
        if entry.last <= reached or entry.first > until.batch:
            continue
        if entry.first > reached + 1:
            break
        last = min(entry.last, until.batch)
        steps.append(Replay(entry, reached + 1, last))
        reached = last
    if reached < until.batch:
        raise LogGapError(
            f"The log does not lead to position {until}",
            cause=f"after batch {reached} the next batch is not in the log index",
        )
    return steps

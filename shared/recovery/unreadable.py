"""What of the source is missing on the target, since catch-up could not read it: what was named minus what was written since. Pure; numpy.

A batch names sectors that it lacks, beside its extents. From then on the target keeps there what it held before, until a later batch has
them: read by a trial, or written by the machine. Within a batch the names count behind the extents, as the agent takes them
(agent/stream/cutter.py): what it writes and names is missing.

`after` is one step of that: everything missing, less what the step writes, and what it names. For each sector the last event of the step
decides, and where there is none, the state before. So, like writes (coalesce.py), a step over many batches is the steps over each of
them one after another; and one that is done again, from any state within it or from its own end, ends in the same state. Whoever applies
an interval anew after a kill need not know whether it was noted.

It costs nothing while nothing is missing. More than `MOST_RUNS` runs are not kept: those that lie nearest to each other are joined over
the sectors between them, so a point's document has some 4 KiB of them at most, where an agent may name 2 million sectors, in half as many
runs. Then the ranges *cover* what is missing: they hold all of it, and the number of their sectors is a limit. What is written is taken out
of a cover, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from shared.batch import Batch, Extents, Range, named_rows
from shared.recovery.coalesce import DiskRuns, Ints, merge

MOST_RUNS: Final = 200
"""So the document of a point of some disks fits into its blob's metadata, and a listing reads it (point_store.py)."""
_END: Final = 1 << 55
"""No disk has such a sector: its byte's number would take more than 64 bits."""


class Unreadable(msgspec.Struct, frozen=True):
    """Ascending and apart, as `after` makes them."""

    ranges: tuple[Range, ...] = ()
    covers: bool = False
    """The ranges hold all that is missing, and other sectors between."""

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        sectors = sum(sectors for _, _, sectors in self.ranges)
        return f"{'up to ' if self.covers else ''}{sectors} sectors of the source could not be read"

    def of(self, disks: Collection[int]) -> Unreadable:
        ranges = tuple(r for r in self.ranges if r[0] in disks)
        return Unreadable(ranges, self.covers and bool(ranges))


def after(
    before: Unreadable, written: Mapping[int, Ints], named: Unreadable, most: int = MOST_RUNS
) -> Unreadable:
    """What is missing when `written`, rows of (first sector, sectors) by disk number in any order, and then `named` came."""
    old, new = _by_disk(before.ranges), _by_disk(named.ranges)
    if not old and not new:
        return Unreadable()
    nothing = np.empty((0, 2), np.int64)
    disks = sorted({*old, *new})
    left = [_after(old.get(n, nothing), written.get(n, nothing), new.get(n, nothing)) for n in disks]
    runs = np.concatenate([np.insert(rows, 0, n, axis=1) for n, rows in zip(disks, left, strict=True)])
    covers = before.covers or named.covers or len(runs) > most
    ranges = tuple((n, first, sectors) for n, first, sectors in _joined(runs, most).tolist())
    return Unreadable(ranges, covers and bool(ranges))


def as_written(ranges: tuple[Range, ...], covers: bool | msgspec.UnsetType) -> Unreadable:
    """What a document says. Older versions did not write `covers`, and only added to the ranges, as they came."""
    if covers is msgspec.UNSET:
        return after(Unreadable(ranges, bool(ranges)), {}, Unreadable())
    return Unreadable(ranges, covers)


def named_in(batches: Iterable[Batch]) -> Unreadable:
    """What these, consecutive and in stream order, name and do not write since."""
    found = Unreadable()
    for batch in batches:
        if found or batch.meta.unreadable:
            found = after(found, _rows(batch.extents), Unreadable(batch.meta.unreadable))
    return found


def written_by(runs: Mapping[int, DiskRuns]) -> dict[int, Ints]:
    """For `after`."""
    return {disk: np.concatenate([both.writes, both.clears]) for disk, both in runs.items()}


def _rows(extents: Extents) -> dict[int, Ints]:
    rows = np.stack([extents["sector"], extents["sectors"]], axis=1).astype(np.int64)
    return {int(disk): rows[extents["disk"] == disk] for disk in np.unique(extents["disk"])}


def _by_disk(ranges: Sequence[Range]) -> dict[int, Ints]:
    """Rows (first, sectors)."""
    rows = named_rows(ranges)
    rows = rows[rows[:, 2] > 0]
    return {int(disk): rows[rows[:, 0] == disk, 1:] for disk in np.unique(rows[:, 0])}


def _after(before: Ints, written: Ints, named: Ints) -> Ints:
    """Rows (first, sectors), of one disk. The ends of all ranges cut it into cells, each of which is in a range or not."""
    if len(before):
        begin, end = before[:, 0].min(), before.sum(axis=1).max()
        written = written[(written[:, 0] < end) & (written.sum(axis=1) > begin)]
    else:
        written = written[:0]
    every: Ints = np.concatenate([before, written, named])
    edges: Ints = np.unique(np.concatenate([every[:, 0], every.sum(axis=1)]))
    missing = (_depth(edges, before) > 0) & (_depth(edges, written) == 0) | (_depth(edges, named) > 0)
    cells = np.flatnonzero(missing)  # never the last, behind which there is none
    return merge(edges[cells], edges[cells + 1] - edges[cells])


def _depth(edges: Ints, rows: Ints) -> Ints:
    """By how many of the rows the cell behind each edge is covered."""
    steps = np.zeros(len(edges), np.int64)
    np.add.at(steps, np.searchsorted(edges, rows[:, 0]), 1)
    np.add.at(steps, np.searchsorted(edges, rows.sum(axis=1)), -1)
    return np.cumsum(steps)


def _joined(runs: Ints, most: int) -> Ints:
    """At most that many of (disk, first, sectors), which are ascending; or one a disk. The nearest are joined first."""
    if len(runs) <= most:
        return runs
    disk, first, end = runs[:, 0], runs[:, 1], runs[:, 1] + runs[:, 2]
    gap = np.where(disk[1:] == disk[:-1], first[1:] - end[:-1], _END)
    nearest = np.argsort(gap, kind="stable")[: len(runs) - most]
    heads = np.ones(len(runs), np.bool_)
    heads[1 + nearest[gap[nearest] < _END]] = False
    lasts = np.append(np.flatnonzero(heads)[1:], len(runs)) - 1
    return np.stack([disk[heads], first[heads], end[lasts] - first[heads]], axis=1)

"""Applying one interval of the log to the seed disks of a machine.

An interval (start, end] ends at a batch boundary; at every mark when the stream is ordered there. It is
brought to all disks in three steps, each complete on all disks before the next begins: begin (the end is
recorded), writes and clears, finish (the cursor moves). So after a crash the disks' cursors are `start` or
`end`, at least one `pending` names `end`, and `recovery` says what to do: (start, end] is applied again,
wholly, to those disks whose cursor is not there. Nothing else is applied before. Why that is enough is
argued in targets/state.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from master_target.bridge import BridgeSettings, bridge
from shared.recovery.coalesce import DiskRuns, Run, coalesce
from master_target.targets.base import Target
from master_target.targets.state import DiskState
from shared.batch import SECTOR, Batch
from shared.crashpoints import reach
from shared.errors import SeedDiskError
from shared.recovery.parallel import parallel
from shared.recovery.position import NOWHERE, Position

_WIDTH: Final = 8
"""Concurrent requests; Azure and Azurite get no faster with more."""

Step = Callable[[], Awaitable[None]]


class Interval(msgspec.Struct, frozen=True):
    """The batches of (start, end], consecutive and complete."""

    start: Position
    end: Position
    batches: Sequence[Batch]


class Applied(msgspec.Struct):
    """What applying an interval took. Bytes: `payload_b` in its batches; `needed_b` after coalescing;
    `written_b` with gaps.
    """

    payload_b: int = 0
    needed_b: int = 0
    written_b: int = 0
    cleared_b: int = 0
    requests: int = 0
    seconds: float = 0.0


def recovery(states: Sequence[DiskState]) -> tuple[Position, Position] | None:
    """The interval (start, end] that must be applied before anything else, from the states of a machine's
    disks; None when no interval was left unfinished.
    """
    end = max((s.pending for s in states), default=NOWHERE)
    unfinished = [s for s in states if s.cursor < end and s.pending == end]
    return (min(s.restart for s in unfinished), end) if unfinished else None


class DiskTarget(msgspec.Struct, frozen=True):
    """A source disk of the current epoch and where it goes."""

    number: int
    disk_b: int
    target: Target


async def apply(interval: Interval, disks: Sequence[DiskTarget], bridging: BridgeSettings | None) -> Applied:
    """Bring `disks` from the interval's start to its end. Raises StorageError; the interval is then
    unfinished and is applied again.

    Disks that are at its end already are left alone.
    """
    began = time.monotonic()
    runs = await asyncio.to_thread(coalesce, interval.batches)
    todo = [d for d in disks if d.target.state.cursor < interval.end]
    _check_fit(runs, disks)
    done = Applied(payload_b=sum(len(b.payload) for b in interval.batches))

    await asyncio.gather(*(d.target.begin(interval.start, interval.end, d.disk_b) for d in todo))
    reach("apply.after-begin")
    steps = (
        step for d in todo if d.number in runs for step in _steps(d.target, runs[d.number], bridging, done)
    )
    await parallel(steps, _WIDTH)
    reach("apply.before-finish")
    for d in todo:
        await d.target.finish()
        reach("apply.after-a-finish")
    done.seconds = time.monotonic() - began
    return done


def _steps(target: Target, runs: DiskRuns, bridging: BridgeSettings | None, done: Applied) -> Iterator[Step]:
    """All requests for one disk, in any order; `done` counts them as they are handed out."""
    for sector, sectors in runs.clears.tolist():
        done.requests += 1
        done.cleared_b += sectors * SECTOR
        yield partial(target.clear, sector * SECTOR, sectors * SECTOR)
    done.needed_b += len(runs.data) * SECTOR
    if bridging is None:
        for run in runs:
            yield _write(target, run, done)
        return
    each = iter(runs)
    for _, count in bridge(runs, bridging).tolist():
        members = [next(each) for _ in range(count)]
        yield _write(target, members[0], done) if count == 1 else _write_bridged(target, members, done)


def _write(target: Target, run: Run, done: Applied) -> Step:
    done.requests += 1
    done.written_b += len(run.data)

    async def step() -> None:
        await target.write(run.offset_b, run.data)
        reach("apply.after-a-write")

    return step


def _write_bridged(target: Target, members: Sequence[Run], done: Applied) -> Step:
    """One write over `members` and the gaps between them, which are read back."""
    first, last = members[0], members[-1]
    length_b = last.offset_b + len(last.data) - first.offset_b
    done.requests += 2
    done.written_b += length_b

    async def step() -> None:
        inner_b = len(first.data)
        data = bytearray(length_b)
        data[inner_b : length_b - len(last.data)] = await target.read(
            first.offset_b + inner_b, length_b - inner_b - len(last.data)
        )
        for run in members:
            at = run.offset_b - first.offset_b
            data[at : at + len(run.data)] = run.data
        await target.write(first.offset_b, memoryview(data))
        reach("apply.after-a-write")

    return step


def _check_fit(runs: Mapping[int, DiskRuns], disks: Sequence[DiskTarget]) -> None:
    sizes = {d.number: d.disk_b for d in disks}
    for number, disk_runs in runs.items():
        end_b = disk_runs.end_sector * SECTOR
        if number not in sizes or end_b > sizes[number]:
            raise SeedDiskError(
                f"The log writes to byte {end_b} of disk number {number}",
                cause=f"the epoch lists that disk with {sizes[number]} bytes"
                if number in sizes
                else "the epoch lists no such disk",
                action="This is a bug in the agent, or a foreign log. Resynchronise the machine.",
            )

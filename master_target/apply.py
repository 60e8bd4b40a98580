"""Applying the log to the seed disks of a machine, interval by interval.

An interval (start, end] ends at a batch boundary; at every mark when the stream is ordered there. It is brought to the disks in three
steps, each complete on all of them before the next begins: begin (the end is recorded), writes and clears, finish (the cursor
moves). After a crash each disk's own state says what is next for it, and `due` chooses: first the disks that are furthest behind; an
interval that was begun is applied again, wholly, before anything else reaches that disk. Why that is enough is argued in
targets/state.py. A disk that lost its state altogether (somebody deleted the blob) is behind by the whole epoch, and is rebuilt from
the log by the same rule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

import msgspec

from master_target.bridge import BridgeSettings, bridge
from master_target.targets.base import Target
from master_target.targets.state import DiskInterval, DiskState
from shared.batch import SECTOR, Batch
from shared.crashpoints import reach
from shared.errors import SeedDiskError
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochInfo
from shared.recovery.coalesce import DiskRuns, Run, coalesce
from shared.recovery.fit import check_extents
from shared.recovery.parallel import parallel
from shared.recovery.position import Position
from shared.recovery.unreadable import Unreadable, named_in

_WIDTH: Final = 8
"""Concurrent requests; Azure and Azurite get no faster with more."""

Step = Callable[[], Awaitable[None]]


class Interval(msgspec.Struct, frozen=True):
    """What all batches of (start, end] together do to the disks, by disk number; their payload in bytes."""

    start: Position
    end: Position
    claim: str
    """Of their epoch."""
    predecessor: str
    digest: str
    """Of the batches `start` and `end`, hex."""
    runs: Mapping[int, DiskRuns]
    payload_b: int
    unreadable: Unreadable = Unreadable()
    """What of it these batches name, and do not write since."""

    def on(self, disk: DiskTarget, missing: str) -> DiskInterval:
        return DiskInterval(
            start=self.start,
            end=self.end,
            disk_b=disk.disk_b,
            claim=self.claim,
            predecessor=self.predecessor,
            digest=self.digest,
            missing=missing,
        )


async def make_interval(
    start: Position, end: Position, batches: Sequence[Batch], epoch: EpochInfo, digest: str = ""
) -> Interval:
    """Coalesces `batches`, which are all of (start, end] of `epoch`. They are not needed any more afterwards.

    Raises LogMisfitError when the batches write outside of the disks.
    """
    check_extents(batches, epoch.disks)
    return Interval(
        start,
        end,
        epoch.claim,
        batches[0].predecessor.hex(),
        digest,
        await asyncio.to_thread(coalesce, batches),
        sum(len(batch.payload) for batch in batches),
        await asyncio.to_thread(named_in, batches),
    )


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


class Due(msgspec.Struct, frozen=True):
    """What is to be applied next: to the disks `members` (indices), behind `start`. Ends exactly at `end` if that is given, else
    at `limit` or before.
    """

    start: Position
    members: tuple[int, ...]
    end: Position | None
    limit: Position | None


def due(states: Sequence[DiskState], epoch: EpochId) -> Due:
    """What is next for the disks of a machine whose log of `epoch` is being applied. `states` must not be empty."""
    at = [s.reached(epoch) for s in states]
    start = min(at)
    members = tuple(i for i, position in enumerate(at) if position == start)
    begun = [states[i].pending for i in members if states[i].pending_epoch == epoch]
    end = max(begun, default=start)
    return Due(
        start=start,
        members=members,
        end=end if end > start else None,
        limit=min((position for position in at if position > start), default=None),
    )


class DiskTarget(msgspec.Struct, frozen=True):
    """A source disk of the current epoch and where it goes."""

    number: int
    disk_b: int
    target: Target
    serial: str = ""


async def apply(
    interval: Interval,
    disks: Sequence[DiskTarget],
    members: Sequence[int],
    bridging: BridgeSettings | None,
    missing: Mapping[int, str] = MappingProxyType({}),
) -> Applied:
    """Bring the `members` (indices) of `disks`, which are all disks of the epoch, from the interval's start to its end. `missing`: what
    each of them is to name as missing there, by disk number (unreadable.py).

    Raises StorageErrors; the interval is then unfinished, and `due` says so.
    """
    began = time.monotonic()
    runs = interval.runs
    behind = [disks[i] for i in members]
    done = Applied(payload_b=interval.payload_b)

    await parallel(
        (partial(d.target.begin, interval.on(d, missing.get(d.number, ""))) for d in behind), _WIDTH
    )
    reach("apply.after-begin")
    steps = (
        step for d in behind if d.number in runs for step in _steps(d.target, runs[d.number], bridging, done)
    )
    await parallel(steps, _WIDTH)
    reach("apply.before-finish")
    for d in behind:
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
        data = memoryview(
            bytearray(length_b)
        )  # whose slices, unlike a bytearray's, never shift what stands behind
        inner = slice(len(first.data), length_b - len(last.data))
        found = await target.read(first.offset_b + inner.start, inner.stop - inner.start)
        if len(found) != inner.stop - inner.start:
            raise SeedDiskError(
                f"Seed disk {target.name} could not be read",
                cause=f"{len(found)} bytes came for the {inner.stop - inner.start} at {first.offset_b + inner.start}",
            )
        data[inner] = found
        for run in members:
            at = run.offset_b - first.offset_b
            data[at : at + len(run.data)] = run.data
        await target.write(first.offset_b, data)
        reach("apply.after-a-write")

    return step

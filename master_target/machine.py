"""One machine: claim it, follow its log, apply it, make its points; and begin again after every failure.

Two tasks run side by side. *Follow* polls the index and documents new marks at once, however far behind apply is. *Apply* takes one
interval after the other; at a point, all disks stand still until its snapshots are taken.

Why no mark is passed without its snapshots (I6). An interval ends at the first mark that the follower knows, and it never knows an entry
of the index without the marks in it (follow.py). So the disks stand at each mark once, and apply goes on only when that was settled.
Whoever made the entry known holds `_looking` until the documents of all its marks are written; *settle* waits for that. So it finds the
document, or retention has removed it since, and the mark is no point any more. If it fails, or is killed, the disks still stand there,
and the next work begins with settling it.

Epochs. The epoch that the disks are in is applied to its end as long as it is the newest; then the newest epoch is taken up from its
first batch, when that is there. Those in between are left out: their points stay restorable from the log, and nothing of them is needed,
because each epoch begins with a full replication. For the same reason the rest of an epoch is left out when it cannot be applied: its
log is incomplete or damaged, or the seed disks do not fit it. So a resynchronisation heals whatever it was. As long as there is no
newer epoch to take up, the error stands, and the work begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec

from master_target.apply import DiskTarget, apply, due
from master_target.bridge import BridgeSettings
from master_target.claim import Claim
from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.retention import Pruner, RetentionPolicy
from master_target.status import MachineReport, Rates
from master_target.targets.base import Target
from shared import logging
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.errors import (
    IntegrityError,
    LeaseHeldError,
    LeaseLostError,
    SeedDiskError,
    StorageError,
    UnderstudyError,
)
from shared.log import epochs
from shared.log.epochs import EpochInfo
from shared.recovery.parallel import parallel
from shared.recovery.position import NOWHERE, Position
from shared.status import Problem
from shared.vault import Vault

_log = logging.get()

_TAKEN_S: Final = 5.0
"""How often to ask for a machine that another master target has."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0

OpenTarget = Callable[[BlobStore, str, str, int], Awaitable[Target]]
"""(store, machine, disk name, disk size in bytes) → the opened target, taken from whoever had it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    interval_b: int = 64 << 20
    behind_interval_b: int = 256 << 20
    poll_s: float = 1.0
    bridge: BridgeSettings = BridgeSettings()
    retention: RetentionPolicy = RetentionPolicy()


class Machine:
    """`run` works until it is told to stop. `report` is the status at any time."""

    def __init__(
        self, store: BlobStore, vault: Vault, name: str, settings: Settings, open_target: OpenTarget
    ) -> None:
        self.name = name
        self._vault = vault
        self._settings = settings
        self._open_target = open_target
        self._trouble: StorageError | None = None
        self._failure: UnderstudyError | None = None
        self._state = "starting"
        self._rates = Rates()
        self._work: _Work | None = None
        # A storage outage is waited out, not failed on: seed disks and cursors are safe meanwhile.
        self._store = store.patient(self._note_trouble)
        self._pruner = Pruner(self._store, name, settings.retention)

    async def run(self, stop: asyncio.Event) -> None:
        first = True
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            try:
                claim = await Claim.take(self._store, self.name, self._settings.owner, first=first)
                first = False
                try:
                    await self._work_on(claim, stop)
                finally:
                    await claim.release()
            except LeaseHeldError:
                self._state = "claimed by another master target"
                await wait_for(stop, _TAKEN_S)
                continue
            except UnderstudyError as exc:
                self._failure = exc
                self._state = "failed, will try again"
                _log.error("machine failed", machine=self.name, **exc.as_dict())
            except Exception as exc:  # noqa: BLE001 - a bug that one machine meets must not end the work on the others
                self._failure = UnderstudyError(
                    f"The work on machine {self.name} was interrupted",
                    cause=repr(exc),
                    action="This is a bug; it is tried again by itself. Report it, with the master target's log.",
                )
                self._state = "failed, will try again"
                _log.error("machine failed: this is a bug", machine=self.name, exc_info=exc)
            if time.monotonic() - began > 2 * _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await wait_for(stop, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def report(self) -> MachineReport:
        report = MachineReport(machine=self.name, state=self._state, rates=self._rates.report())
        if self._work is not None:
            self._work.describe(report)
        for error in (self._failure, self._trouble):
            if error is not None:
                report.errors.append(Problem(**error.as_dict(), object=self.name))
        return report

    async def _work_on(self, claim: Claim, stop: asyncio.Event) -> None:
        work = _Work(
            self._store,
            self._vault,
            self.name,
            self._settings,
            self._open_target,
            self._rates,
            self._pruner,
            claim,
        )
        self._work = work
        self._state = "following"
        stages = (
            partial(self._end_with, claim, stop, work),
            partial(work.follow, self._recovered),
            work.apply,
        )
        try:
            await parallel(stages, len(stages))
        finally:
            await work.close()
            self._state = "stopped"

    async def _end_with(self, claim: Claim, stop: asyncio.Event, work: _Work) -> None:
        """Set `work.ending` when the daemon stops; fail when the claim is lost."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, claim.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if claim.lost.is_set():
            raise LeaseLostError(
                f"The claim on machine {self.name} was lost", cause="another master target took it"
            )
        work.ending.set()

    def _note_trouble(self, error: StorageError | None) -> None:
        if error is not None and self._trouble is None:
            _log.warning("storage does not answer; waiting", machine=self.name, **error.as_dict())
        if error is None and self._trouble is not None:
            _log.info("storage answers again", machine=self.name)
        self._trouble = error

    def _recovered(self) -> None:
        self._failure = None


class _Work:
    """What is known and held while a machine is claimed."""

    def __init__(
        self,
        store: BlobStore,
        vault: Vault,
        name: str,
        settings: Settings,
        open_target: OpenTarget,
        rates: Rates,
        pruner: Pruner,
        claim: Claim,
    ) -> None:
        self.ending = asyncio.Event()
        self._store = store
        self._name = name
        self._settings = settings
        self._open_target = open_target
        self._rates = rates
        self._claim = claim
        self._log = Follower(store, vault, name)
        self._points = PointMaker(store, name)
        self._pruner = pruner
        self._epoch = 0
        """The epoch that is being applied; 0 until there is one."""
        self._disks: list[DiskTarget] = []
        self._left_at = NOWHERE
        """Where the disks stood when they were closed, for reports."""
        self._caught_up_at = time.monotonic()
        """When there was nothing left to apply."""
        self._looking = asyncio.Lock()
        self._settled = NOWHERE
        """The last point that was settled, or found to be."""
        self._news = asyncio.Event()

    async def close(self) -> None:
        await self._log.close()
        await self._close_disks()

    def describe(self, report: MachineReport) -> None:
        at = self._position()
        report.epoch, report.applied = at
        report.indexed = self._log.end(at.epoch).batch
        report.applied_captured_ns = self._log.captured_ns(at)
        report.lag_s, report.lag_b = self._log.behind(at)
        report.last_point = self._points.last.id if self._points.last else ""
        report.errors += [Problem(**error.as_dict(), object=self._name) for error in self._log.damaged]

    # ---- follow ----

    async def follow(self, worked: Callable[[], None]) -> None:
        """Poll the index until ending. `worked` is called after each poll that went well."""
        await self._points.load()
        while not self.ending.is_set():
            known = [e for e in (self._epoch, self._points.documented.epoch) if e]
            await self._look(min(known, default=1))
            self._news.set()
            worked()
            await wait_for(self.ending, self._settings.poll_s)
        self._news.set()

    async def _look(self, from_epoch: int) -> None:
        """See what is new in the index, and document the points in it, before `_settle` may ask for them."""
        async with self._looking:
            await self._points.document(await self._log.refresh(from_epoch))

    # ---- apply ----

    async def apply(self) -> None:
        """Apply what there is until ending; an interval that has begun is finished."""
        while not self.ending.is_set():
            self._news.clear()
            if self._log.newest_epoch and not self._epoch:
                await self._take_up(await self._epoch_of_disks())
            await self._prune_if_due()  # before a step, which may fail for want of the room that this makes
            while self._epoch and not self.ending.is_set() and await self._step():
                await self._prune_if_due()
            await self._news.wait()

    async def _prune_if_due(self) -> None:
        if self._pruner.due:
            await self._pruner.prune([d.target for d in self._disks], await self._claim.skew_s())

    async def _step(self) -> bool:
        """The next interval, or the next epoch; False when there is nothing to do."""
        try:
            return await self._apply_next() or await self._take_up_newest()
        except (IntegrityError, SeedDiskError) as exc:
            if not self._newer_epoch():
                raise
            _log.warning("rest of an epoch left out", machine=self._name, epoch=self._epoch, **exc.as_dict())
        # Opened anew: the failed step may have left them in another state than their owner here remembers.
        await self._close_disks()
        return await self._take_up_newest()

    async def _apply_next(self) -> bool:
        """The next interval of the epoch, with the point at its start or end; False when there is none."""
        states = [disk.target.state for disk in self._disks]
        next_ = due(states, self._epoch)
        # The disks are ours and only go forward. (One that somebody deletes is begun again by new work, which reads the index anew.)
        self._log.forget(next_.start)
        if all(s.settled and s.cursor == next_.start for s in states):
            await self._settle(next_.start)
        settings = self._settings
        behind = time.monotonic() - self._caught_up_at > settings.bridge.behind_s
        most_b = settings.behind_interval_b if behind else settings.interval_b
        if next_.end is not None:
            interval = await self._log.exactly(next_.start, next_.end)
        else:
            found = await self._log.next(next_.start, next_.limit, most_b)
            if found is None:
                self._caught_up_at = time.monotonic()
                return False
            interval = found
        await self._points.note_unreadable(self._epoch, interval.unreadable)
        done = await apply(interval, self._disks, next_.members, settings.bridge if behind else None)
        self._rates.add(done)
        _log.info(
            "interval applied",
            machine=self._name,
            epoch=self._epoch,
            start=interval.start.batch,
            end=interval.end.batch,
            payload_b=done.payload_b,
            written_b=done.written_b,
            requests=done.requests,
            seconds=round(done.seconds, 3),
        )
        states = [disk.target.state for disk in self._disks]
        if all(s.settled and s.cursor == interval.end for s in states):
            await self._settle(interval.end)
        return True

    async def _settle(self, position: Position) -> None:
        if position == self._settled or not self._log.is_mark(position):
            return
        async with self._looking:
            pass  # who showed us the mark has written its document now
        if await self._points.settle(position, self._disks):
            self._settled = position

    def _position(self) -> Position:
        if not self._disks:
            return self._left_at
        return due([disk.target.state for disk in self._disks], self._epoch).start

    # ---- epochs ----

    async def _epoch_of_disks(self) -> int:
        """The epoch that the seed disks are in, if it exists; else the newest."""
        newest = await epochs.read_epoch(self._store, self._name, self._log.newest_epoch)
        await self._open(newest)
        found = max((disk.target.state.pending.epoch for disk in self._disks), default=0)
        if found and self._log.epoch(found) is None:
            await self._look(found)
        return found if self._log.epoch(found) is not None else newest.epoch

    def _newer_epoch(self) -> int:
        """The newest epoch, when it is not the one we are in and its first batches are there; else 0."""
        newest = self._log.newest_epoch
        return newest if newest != self._epoch and self._log.end(newest).batch else 0

    async def _take_up_newest(self) -> bool:
        """Go on with the newest epoch, if there is a newer one."""
        newest = self._newer_epoch()
        if newest:
            await self._take_up(newest)
        return bool(newest)

    async def _take_up(self, epoch: int) -> None:
        info = self._log.epoch(epoch)
        assert info is not None
        await self._open(info)
        self._epoch = epoch
        _log.info(
            "epoch taken up", machine=self._name, epoch=epoch, reason=info.reason, at=str(self._position())
        )

    async def _close_disks(self) -> None:
        self._left_at = self._position()
        for disk in self._disks:
            await disk.target.close()
        self._disks = []

    async def _open(self, info: EpochInfo) -> None:
        """Open the targets of the epoch's disks; keep those that are open, close those that are not in it."""
        before = {disk.target.name: disk.target for disk in self._disks}
        self._disks = [
            DiskTarget(d.number, d.sectors * SECTOR, before.pop(d.name))
            for d in info.disks
            if d.name in before
        ]
        for target in before.values():
            await target.close()
        opened = {disk.target.name for disk in self._disks}
        for d in info.disks:
            if d.name not in opened:
                target = await self._open_target(self._store, self._name, d.name, d.sectors * SECTOR)
                self._disks.append(DiskTarget(d.number, d.sectors * SECTOR, target))


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Until `event` is set, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

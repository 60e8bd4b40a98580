"""One step of apply: read the next interval, bring it to the disks, take the snapshots of the point where they stand.

Why no mark is passed without its snapshots (I6). An interval ends at the first mark that the follower knows, and it never knows an entry
of the index without the marks in it (follow.py). So the disks stand at each mark once, and the next step begins only when its
snapshots are taken. Whoever made the entry known writes the documents of all its marks before `documented` returns; the snapshots wait
for that. So they find the document, or retention has removed it since, and the mark is no point any more. If taking them fails, or is
killed, the disks still stand there, and the next step begins with them.

Why a point is of one history of the log on all disks. A disk that is rebuilt meets the others where they stand, and these may have been
brought there by a log that was set back since, and went on otherwise: one number, two batches. So each disk that a point takes a snapshot
of must be at the batch that the log has there, by its digest, also where another disk was just brought there from this very log.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from master_target.apply import DiskTarget, Interval, apply, due
from master_target.bridge import BridgeSettings
from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.status import Rates
from shared.daemon import logging
from shared.log.epoch_id import EpochId
from shared.recovery.position import NOWHERE, Position

_log = logging.get()


class Stepper:
    """`documented` returns when all marks that the follower knows have their documents; `looking`: a look at the log is under way. An
    interval's payload is at most `interval_b`, and `behind_interval_b` while apply is behind.
    """

    def __init__(
        self,
        log: Follower,
        points: PointMaker,
        rates: Rates,
        documented: Callable[[], Awaitable[None]],
        looking: Callable[[], bool],
        *,
        interval_b: int,
        behind_interval_b: int,
        bridge: BridgeSettings,
    ) -> None:
        self._log = log
        self._points = points
        self._rates = rates
        self._documented = documented
        self._looking = looking
        self._interval_b = interval_b
        self._behind_interval_b = behind_interval_b
        self._bridge = bridge
        self._caught_up_at = time.monotonic()
        """When there was nothing left to apply."""
        self._applied, self._applied_digest = NOWHERE, ""
        """Where some of the disks were brought to last, and the digest of the batch there, of the log that the follower reads."""
        self._snapshotted = NOWHERE
        """The last point that has its snapshots, as far as was seen here."""

    async def step(self, epoch: EpochId, disks: Sequence[DiskTarget]) -> bool:
        """The next interval of `epoch` on all its `disks`, with the point at its start or end; False when there is none."""
        states = [disk.target.state for disk in disks]
        next_ = due(states, epoch)
        # The disks are ours and only go forward. (One that somebody deletes is begun again by new work, which reads the index anew.) A look
        # asks of all that it came to know, once, which may lie before the disks: then a later step forgets it.
        if not self._looking():
            self._log.forget(next_.start)
        await self._snapshot_at(next_.start, disks)
        behind = time.monotonic() - self._caught_up_at > self._bridge.behind_s
        interval: Interval | None
        if next_.end is not None:
            interval = await self._log.exactly(next_.start, next_.end)
        else:
            most_b = self._behind_interval_b if behind else self._interval_b
            interval = await self._log.next(next_.start, next_.limit, most_b)
        if interval is None:
            self._caught_up_at = time.monotonic()
            return False
        missing = await self._points.unreadable.note(interval, disks, next_.members)
        done = await apply(interval, disks, next_.members, self._bridge if behind else None, missing)
        self._rates.add(done)
        say = _log.info if done.requests else _log.debug  # a heartbeat changes nothing
        say(
            "interval applied",
            machine=self._log.machine,
            epoch=epoch.number,
            start=interval.start.batch,
            end=interval.end.batch,
            payload_b=done.payload_b,
            written_b=done.written_b,
            requests=done.requests,
            seconds=round(done.seconds, 3),
        )
        self._applied, self._applied_digest = interval.end, interval.digest
        await self._snapshot_at(interval.end, disks)
        return True

    async def _snapshot_at(self, position: Position, disks: Sequence[DiskTarget]) -> None:
        """Take the snapshots of the point at `position` that it lacks, of those disks that stand there: all, or some that are rebuilt."""
        there = [disk for disk in disks if disk.target.state.clean and disk.target.state.cursor == position]
        if not there:
            return
        if position == self._snapshotted or not self._log.is_mark(position):
            return
        known = position == self._applied
        digest = self._applied_digest if known else await self._log.digest(position)
        for disk in there:
            disk.target.state.check_is_at(position, digest)
        await self._documented()
        if len(there) < len(disks):
            await self._points.retake_snapshots(position, there)
        elif await self._points.take_snapshots(position, disks):
            self._snapshotted = position

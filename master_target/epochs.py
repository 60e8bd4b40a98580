"""Which epoch of a machine's log is applied, on which disks, and when the next one begins.

The epoch that the disks are in is applied to its end as long as it is the newest; then the newest epoch is taken up from its first
batch, when that is there. Those in between are left out: their points stay restorable from the log, and nothing of them is needed,
because each epoch begins with a full replication. For the same reason the rest of an epoch is left out when it cannot be applied: its
log is incomplete or damaged, or the seed disks do not fit it, or this program fails by it in a way that nobody expected. So a
resynchronisation heals whatever it was. As long as there is no
newer epoch to take up, the error stands, and the work begins again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from master_target.apply import DiskTarget, due
from master_target.follow import Follower
from master_target.targets.base import OpenTarget
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import IndexMissingError
from shared.log import epochs
from shared.log.epoch_id import NO_EPOCH, EpochId
from shared.log.epochs import EpochInfo
from shared.recovery.fit import check_disks
from shared.recovery.position import NOWHERE, Position

_log = logging.get()


class Epochs:
    """The epoch that is being applied, and its disks. `look(epoch)` has the follower read the index from that epoch on. `check_claim`
    raises LeaseLostError once the machine is another's.
    """

    def __init__(
        self,
        store: BlobStore,
        machine: str,
        log: Follower,
        open_target: OpenTarget,
        look: Callable[[int], Awaitable[None]],
        check_claim: Callable[[], Awaitable[None]],
    ) -> None:
        self.current = 0
        """0 until there is one."""
        self.disks: list[DiskTarget] = []
        """All disks of the current epoch, open; none after `close_disks`."""
        self._store = store
        self._machine = machine
        self._log = log
        self._open_target = open_target
        self._look = look
        self._check_claim = check_claim
        self._left_at = NOWHERE
        """Where the disks stood when they were closed, for reports."""

    @property
    def position(self) -> Position:
        """What all disks have reached."""
        if not self.disks:
            return self._left_at
        return due([disk.target.state for disk in self.disks], self.id).start

    @property
    def id(self) -> EpochId:
        """Of the current epoch, as its document says."""
        info = self._log.epoch(self.current)
        return info.id if info is not None else NO_EPOCH

    async def take_up_first(self) -> None:
        """Begin with the epoch that the seed disks are in, if it exists; else with the newest. There must be one. One with the same number
        and another claim is not the one that they are in."""
        newest = await epochs.read_epoch(self._store, self._log.newest_epoch)
        await self._open(newest)
        found = max((disk.target.state.pending.epoch for disk in self.disks), default=0)
        if found and self._log.epoch(found) is None:
            await self._look(found)
        info = self._log.epoch(found)
        theirs = info is not None and any(disk.target.state.pending_epoch == info.id for disk in self.disks)
        await self._take_up(found if theirs else newest.epoch)

    @property
    def newer(self) -> int:
        """The newest epoch, when it is not the one we are in and its first batches are there; else 0."""
        newest = self._log.newest_epoch
        return newest if newest != self.current and self._log.end(newest).batch else 0

    async def take_up_newest(self) -> bool:
        """Go on with the newest epoch, if there is a newer one."""
        newest = self.newer
        if newest:
            await self._take_up(newest)
        return bool(newest)

    async def close_disks(self) -> None:
        """All of them, also when one fails."""
        self._left_at = self.position
        disks, self.disks = self.disks, []
        async with contextlib.AsyncExitStack() as stack:
            for disk in disks:
                stack.push_async_callback(disk.target.close)

    async def _take_up(self, epoch: int) -> None:
        info = self._log.epoch(epoch)
        assert info is not None
        await self._open(info)
        self.current = epoch
        await self._check_end()
        _log.info(
            "epoch taken up",
            machine=self._machine,
            epoch=epoch,
            claim=info.claim,
            reason=info.reason,
            at=str(self.position),
        )

    async def _check_end(self) -> None:
        """Raises IndexMissingError when the disks have what the index does not: then it is an older one, or a part of it was lost. A newer
        epoch, which begins with a full replication, heals that.
        """
        at = self.position
        if at > self._log.end(at.epoch):
            await self._look(at.epoch)  # it may have grown until the disks became ours, and they with it
        end = self._log.end(at.epoch)
        if at > end and not self.newer:
            raise IndexMissingError(
                f"The log index of machine {self._machine}, epoch {at.epoch} is not whole",
                cause=f"it ends at batch {end.batch}, and the seed disks stand at batch {at.batch}",
            )

    async def _open(self, info: EpochInfo) -> None:
        """Open the targets of the epoch's disks; keep those that are open, close those that are not in it. Raises LogMisfitError.

        A disk is taken from whoever has it. So whoever was stopped meanwhile asks first whether the machine is still ours: it may be the
        real owner's.
        """
        check_disks(self._machine, info.epoch, info.disks)
        before = {disk.target.name: disk.target for disk in self.disks}
        self.disks = [
            DiskTarget(d.number, d.sectors * SECTOR, before.pop(d.name), d.serial)
            for d in info.disks
            if d.name in before
        ]
        for target in before.values():
            await target.close()
        opened = {disk.target.name for disk in self.disks}
        for d in info.disks:
            if d.name not in opened:
                await self._check_claim()
                target = await self._open_target(self._store, self._machine, d.name, d.sectors * SECTOR)
                self.disks.append(DiskTarget(d.number, d.sectors * SECTOR, target, d.serial))

"""Which batch may come next: numbering, digests, and what a batch may touch. Pure; used by the receiving end.

The rules, and why no write can be lost or applied twice under them:

- A batch is taken only when its number is last + 1 and its `predecessor` is the digest of the last one
  taken. So what is taken is one chain, and the chain is the sender's stream: no gap, no swap, no batch of
  another history.
- A number that was taken before, with the same digest, is the same batch again: it is dropped, and
  acknowledged. With another digest the machine's history has split: fault, new epoch. When the digest of so
  old a batch is no longer remembered, nothing can be said about it: fault, and the sender goes on behind
  Welcome's position, which is exact.
- A batch whose extents lie outside the machine's disks, or what it names unreadable, would fail at apply, for ever, with the log behind
  it: so it is refused here, where the sender can still be told. So is one that names more than any agent does: checking it would keep
  the other machines waiting.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from shared.batch import Batch, BatchNumber, Epoch, Op, Seq, named_rows
from shared.errors import BatchConflictError, BatchGapError, ContinuityError, MalformedFrameError
from shared.wire.messages import DiskInfo

REMEMBERED: Final = 1024
"""How many batches back a duplicate can be recognised."""
NAMED_MAX: Final = 1 << 14
"""Runs that one batch may name unreadable: four times as many as an agent does (4 chunks of 2048 sectors, every other one of them)."""
_Ints = npt.NDArray[np.integer]
_OPS: Final = np.array([op.value for op in Op], dtype=np.uint8)


class Sequence:
    """The receiving end's place in one epoch's chain of batches."""

    def __init__(
        self, epoch: Epoch, last: BatchNumber, end_seq: Seq, last_digest: bytes, disks: tuple[DiskInfo, ...]
    ) -> None:
        self.epoch = epoch
        self.last = last
        self.end_seq = end_seq
        self._digests: dict[BatchNumber, bytes] = {last: last_digest}
        # Sector counts by disk number; 0 for numbers that are no disk, so that one look-up checks both.
        self._sectors = np.zeros(1 + max((disk.number for disk in disks), default=0), dtype=np.uint64)
        for disk in disks:
            self._sectors[disk.number] = disk.sectors

    def take(self, batch: Batch, digest: bytes) -> bool:
        """True: `batch` is the next one and now counts as taken. False: it is a harmless duplicate.

        Raises ContinuityError, BatchGapError, BatchConflictError or MalformedFrameError; nothing is taken
        then.
        """
        if batch.epoch != self.epoch:
            raise MalformedFrameError(
                f"Batch {batch.number} came for epoch {batch.epoch}",
                cause=f"the session is for epoch {self.epoch}",
            )
        if batch.number <= self.last:
            self._check_duplicate(batch, digest)
            return False
        if batch.number != self.last + 1:
            raise BatchGapError(f"Batch {batch.number} came", cause=f"batch {self.last + 1} is the next one")
        if batch.predecessor != self._digests[self.last]:
            raise ContinuityError(
                f"Batch {batch.number} does not continue the stream",
                cause=f"it follows another batch {self.last} than the one that is stored here",
            )
        if not self.end_seq <= batch.end_seq < 2**63:
            raise MalformedFrameError(
                f"Batch {batch.number} goes back in the ring",
                cause=f"it ends at {batch.end_seq}, its predecessor at {self.end_seq}",
            )
        self._check_extents(batch)
        self.last, self.end_seq = batch.number, batch.end_seq
        self._digests[batch.number] = digest
        self._digests.pop(BatchNumber(batch.number - REMEMBERED), None)
        return True

    def _check_duplicate(self, batch: Batch, digest: bytes) -> None:
        known = self._digests.get(batch.number)
        if known is None:
            raise BatchGapError(
                f"Batch {batch.number} came again", cause=f"batch {self.last + 1} is the next one"
            )
        if known != digest:
            raise BatchConflictError(
                f"Batch {batch.number} came again with other content",
                cause="two histories bear one epoch's number",
            )

    def _check_extents(self, batch: Batch) -> None:
        extents = batch.extents
        disk, first, length = extents["disk"], extents["sector"], extents["sectors"]
        known = np.isin(extents["op"], _OPS) & (length > 0)
        wrong = np.flatnonzero(~(known & self._fits(disk, first, length)))
        if len(wrong):
            raise MalformedFrameError(
                f"Batch {batch.number} holds an extent that fits no disk",
                cause=f"(sector, sectors, disk, op, -) = {extents[wrong[0]]}",
            )
        if (count := len(batch.meta.unreadable)) > NAMED_MAX:
            raise MalformedFrameError(
                f"Batch {batch.number} names too much unreadable",
                cause=f"it names {count} ranges; at most {NAMED_MAX} are taken",
            )
        if batch.meta.unreadable:
            disk, first, length = named_rows(batch.meta.unreadable).T
            wrong = np.flatnonzero(~self._fits(disk, first.astype(np.uint64), length.astype(np.uint64)))
            if len(wrong):
                raise MalformedFrameError(
                    f"Batch {batch.number} names unreadable what is on no disk",
                    cause=f"(disk, sector, sectors) = {batch.meta.unreadable[wrong[0]]}",
                )

    def _fits(self, disk: _Ints, first: _Ints, length: _Ints) -> npt.NDArray[np.bool_]:
        """By subtraction, on the side that cannot wrap around: first + length may exceed 64 bits."""
        listed = disk < len(self._sectors)
        size = self._sectors[np.where(listed, disk, 0)]
        return listed & (size > 0) & (length <= size) & (first <= size - np.minimum(length, size))

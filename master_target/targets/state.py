"""What a seed disk records of itself, and the rules for changing it. Pure.

A disk is at `cursor`: it holds exactly the log of that epoch up to and with that batch. An interval (start,
end] is applied in three steps: *begun* (`pending` = end is recorded; only then may the first page be
written), written, *finished* (cursor = end).

Why every crash is recovered. Between begun and finished the disk holds the state at `start` with an
arbitrary part of the interval's runs on top. Let s be any sector. If the interval touches s, its final
content comes from the interval alone (shared/recovery/coalesce.py) and writing it again gives the same; if it
does not, nobody wrote s. So applying the whole of (start, end] again gives the state at `end`, however much
of it was there already, and it does not matter how often or where the earlier tries stopped. Applying a
longer interval (start, end'] with end' >= end does too, by the same argument; a shorter one does not:
sectors written by the part behind it would stay in the future. Hence the rules checked here: an interval
starts at the cursor, ends at or behind `pending`, and the disk may be snapshotted only when `cursor` =
`pending`.

A new epoch begins with a full replication, which writes every sector that a later point can show. So an
interval may also start at batch 0 of another epoch than the cursor's, whatever was on the disk.

Which epoch, number and claim say together (shared/log/epoch_id.py). Storage that was restored in part may have an epoch N with another
claim than the cursor N-1234: its batches 1 to 1234 are not on this disk, and it begins at its batch 0 as any new epoch does. The log is
what counts: which claim N has, its document says. What was begun of an epoch with another claim binds nobody, since every sector is
written anew. A lower number is always older: those that allocate look at the seed disks, too. A state without claims, or with garbled
ones, is of no epoch that can be gone on with.

Number and claim do not tell two histories of one epoch apart: a log that was set back to before the cursor, and went on otherwise from
there (its agent had not heard yet that the rest was uploaded), again has a batch of the cursor's number. So the digests of the batches at
both ends are remembered; each covers all batches before it. An interval begins behind the very batch that the disk is at, and one that was
begun ends at the very batch that it was begun for: else what was written of the other history would stay on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared.errors import SeedDiskError
from shared.log.epoch_id import UNKNOWN, EpochId
from shared.recovery.position import NOWHERE, Position
from shared.recovery.seed import DISK_B


class DiskInterval(msgspec.Struct, frozen=True):
    """What of the log is applied to a disk as one: (start, end]."""

    start: Position
    end: Position
    disk_b: int
    """Of the source disk, in bytes."""
    claim: str
    """Of its epoch."""
    predecessor: str = ""
    digest: str = ""
    """Those of the batches `start` and `end`; empty: not known."""
    missing: str = ""
    """What of the source the disk lacks at `end`, as a digest (master_target/unreadable.py)."""


class DiskState(msgspec.Struct, frozen=True, kw_only=True):
    """`disk_b`: size of the source disk in bytes. `sequence`: number of the last begun interval's fence;
    only grows. The claims are those of the epochs of `cursor` and `pending`; the digests those of the batches there (hex), empty
    where they are not known: at batch 0, and where an older version wrote the state.
    """

    disk_b: int
    cursor: Position = NOWHERE
    pending: Position = NOWHERE
    cursor_claim: str = UNKNOWN
    pending_claim: str = UNKNOWN
    cursor_digest: str = ""
    pending_digest: str = ""
    cursor_missing: str = ""
    pending_missing: str = ""
    """What of the source the disk lacks there, as a digest (master_target/unreadable.py); empty: an older version wrote it."""
    sequence: int = 0

    @property
    def cursor_epoch(self) -> EpochId:
        return EpochId(self.cursor.epoch, self.cursor_claim)

    @property
    def pending_epoch(self) -> EpochId:
        return EpochId(self.pending.epoch, self.pending_claim)

    @property
    def clean(self) -> bool:
        """Whether the disk is exactly at its cursor."""
        return self == self.finish()

    def is_shown_by(self, metadata: Mapping[str, str]) -> bool:
        """Whether a snapshot with these is of the place of the log where the disk is, exactly."""
        ours = self.encode()
        keys = (f"{end}{of}" for end in ("cursor", "pending") for of in ("", "_claim", "_digest"))
        return self.clean and all(metadata.get(key, "") == ours[key] for key in keys)

    def reached(self, epoch: EpochId) -> Position:
        """How much of the epoch is on the disk."""
        return self.cursor if self.cursor_epoch == epoch else Position.of(epoch.number, 0)

    @property
    def restart(self) -> Position:
        """Where the interval that ends at `pending` starts."""
        return self.reached(self.pending_epoch)

    def begin(self, interval: DiskInterval) -> DiskState:
        """The state in which the interval's runs may be written. Raises SeedDiskError when they may not."""
        start, end, claim, disk_b = interval.start, interval.end, interval.claim, interval.disk_b
        epoch = EpochId(start.epoch, claim)
        same_epoch = start == self.cursor and self.cursor_epoch == epoch == self.pending_epoch
        not_older = start.epoch >= max(self.cursor.epoch, self.pending.epoch)
        new_epoch = start.batch == 0 and not_older and epoch.is_known and self.cursor_epoch != epoch
        covers = end >= self.pending or self.pending_epoch != epoch
        reaches = end.epoch == start.epoch and end > start and covers
        if not reaches or not (same_epoch or new_epoch):
            raise SeedDiskError(
                f"The interval from {start} to {end} was not applied",
                cause=f"the seed disk is at {self.cursor}, with an interval to {self.pending} begun;"
                f" claims {self.cursor_claim or 'none'}, {self.pending_claim or 'none'}, and {claim} of the interval",
            )
        if same_epoch:
            self._check_history(start, self.cursor, self.cursor_digest, interval.predecessor)
            self._check_history(end, self.pending, self.pending_digest, interval.digest)
        if same_epoch and disk_b != self.disk_b:
            raise SeedDiskError(
                f"The interval from {start} to {end} was not applied",
                cause=f"the source disk's size changed from {self.disk_b} to {disk_b} bytes within an epoch",
            )
        return msgspec.structs.replace(
            self,
            pending=end,
            pending_claim=claim,
            pending_digest=interval.digest,
            pending_missing=interval.missing,
            disk_b=disk_b,
            sequence=self.sequence + 1,
        )

    def check_is_at(self, position: Position, digest: str) -> None:
        """Raises SeedDiskError when the disk is at another batch of that number than the log has, which has this digest."""
        self._check_history(position, self.cursor, self.cursor_digest, digest)

    def _check_history(self, at: Position, ours: Position, our_digest: str, digest: str) -> None:
        if at == ours and our_digest and digest and our_digest != digest:
            raise SeedDiskError(
                f"The log was not applied behind {self.cursor}",
                cause=f"its batch {at} is not the one that is on the seed disk: the log was set back, and went on otherwise",
                action="Resynchronise the machine: a new epoch does not need what is on the disk.",
            )

    def finish(self) -> DiskState:
        """The state after all runs of the begun interval are on the disk."""
        return msgspec.structs.replace(
            self,
            cursor=self.pending,
            cursor_claim=self.pending_claim,
            cursor_digest=self.pending_digest,
            cursor_missing=self.pending_missing,
        )

    def encode(self) -> dict[str, str]:
        """As blob metadata."""
        return {
            "cursor": str(self.cursor),
            "pending": str(self.pending),
            "cursor_claim": self.cursor_claim,
            "pending_claim": self.pending_claim,
            "cursor_digest": self.cursor_digest,
            "pending_digest": self.pending_digest,
            "cursor_missing": self.cursor_missing,
            "pending_missing": self.pending_missing,
            DISK_B: str(self.disk_b),
            "sequence": str(self.sequence),
        }


def decode(metadata: Mapping[str, str], disk: str) -> DiskState:
    """The state in a seed disk's metadata, or in its snapshot's. Raises SeedDiskError when it is not there
    or garbled.
    """
    try:
        cursor, pending = Position.parse(metadata["cursor"]), Position.parse(metadata["pending"])
        disk_b, sequence = int(metadata[DISK_B]), int(metadata["sequence"])
    except (KeyError, ValueError) as exc:
        raise _garbled(disk, f"its metadata lack {exc}") from exc
    if cursor is None or pending is None:
        raise _garbled(disk, f"its metadata name the positions {metadata['cursor']}, {metadata['pending']}")
    return DiskState(
        disk_b=disk_b,
        cursor=cursor,
        pending=pending,
        cursor_claim=metadata.get("cursor_claim", UNKNOWN),
        pending_claim=metadata.get("pending_claim", UNKNOWN),
        cursor_digest=metadata.get("cursor_digest", ""),
        pending_digest=metadata.get("pending_digest", ""),
        cursor_missing=metadata.get("cursor_missing", ""),
        pending_missing=metadata.get("pending_missing", ""),
        sequence=sequence,
    )


def _garbled(disk: str, cause: str) -> SeedDiskError:
    return SeedDiskError(
        f"The state of seed disk {disk} could not be read",
        cause=cause,
        action="Something else wrote it. Delete it: it is then rebuilt from the log.",
    )

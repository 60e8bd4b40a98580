"""Restoring a point of which nothing is left but its own document and its snapshots: its log, or its epoch's document, is gone (I8).

The document names the snapshots, and each snapshot says which position of which claim it shows, and how large its disk was. That is all
that its image needs. What else the epoch's document would say is taken from the point's where it says it, or is not known, and the
restore says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, SnapshotError
from shared.log.epochs import EpochDisk
from shared.recovery.points import PointDoc
from shared.recovery.seed import DISK_B, seed_blob, shown_claim, shown_digest, shown_position

_SHOWN: Final = 16
"""Ranges that a remark names; the point's document has them all."""
UNTOLD_DISKS: Final = "The serial numbers of the disks, and their numbers in the stream, are not known: their epoch's document is gone."
UNTOLD_SUSPICION: Final = (
    "Whether capture had missed writes by then is not known: what was said of it later is gone."
)


def numbered(doc: PointDoc, disks: Sequence[EpochDisk]) -> tuple[PointDoc, tuple[str, ...]]:
    """The document as base of a restore of `disks`, and what must be said of it. What catch-up could not read is told by the disks' numbers
    in the stream: it is said of none of several disks that were numbered here.
    """
    if doc.disks or len(disks) == 1 or not doc.unreadable:
        return doc, ()
    shown = [
        f"{sectors} from {first} on of disk {number}" for number, first, sectors in doc.unreadable[:_SHOWN]
    ]
    ranges = ", ".join([*shown, "…"] if len(doc.unreadable) > _SHOWN else shown)
    return msgspec.structs.replace(doc, unreadable=(), unreadable_covers=False), (
        f"{doc.missing}, and which disk a number means is not known: {ranges}.",
    )


async def disks_of(store: BlobStore, doc: PointDoc) -> tuple[EpochDisk, ...]:
    """The disks of a point's epoch, as the point says it, or else its snapshots. Raises SnapshotError."""
    if {disk.name for disk in doc.disks} == doc.snapshots.keys():
        return doc.disks
    found = []
    for number, (name, snapshot) in enumerate(sorted(doc.snapshots.items())):
        what = f"Recovery point {doc.id} has no valid snapshot of disk {name}"
        try:
            metadata = (await store.properties(seed_blob(name), snapshot)).metadata
        except BlobNotFoundError as exc:
            raise SnapshotError(what, cause=f"snapshot {snapshot} does not exist") from exc
        size_b = metadata.get(DISK_B, "")
        if not size_b.isdecimal():
            raise SnapshotError(what, cause=f"snapshot {snapshot} does not say how large the disk was")
        found.append(EpochDisk(number, name, "", int(size_b) // SECTOR))
    if len(found) == 1 and doc.unreadable:
        found = [msgspec.structs.replace(found[0], number=doc.unreadable[0][0])]
    if not found:
        raise SnapshotError(f"Recovery point {doc.id} names no snapshots")
    return tuple(found)


async def check_snapshots(store: BlobStore, disks: Sequence[EpochDisk], doc: PointDoc) -> None:
    """Raises SnapshotError unless every disk of the epoch has its snapshot and each names the point's position, in the point's
    history of the log as far as both say it (I6).
    """
    for disk in disks:
        what = f"Recovery point {doc.id} has no valid snapshot of disk {disk.name}"
        snapshot = doc.snapshots.get(disk.name)
        if snapshot is None:
            raise SnapshotError(what, cause="its document names none")
        try:
            info = await store.properties(seed_blob(disk.name), snapshot)
        except BlobNotFoundError as exc:
            raise SnapshotError(what, cause=f"snapshot {snapshot} does not exist") from exc
        shown = shown_position(info.metadata)
        claim = shown_claim(info.metadata)
        if (shown, claim) != (doc.position, doc.claim):
            raise SnapshotError(
                what,
                cause=f"snapshot {snapshot} shows position {shown} of claim {claim or 'unknown'}, "
                f"not {doc.position} of claim {doc.claim}",
            )
        if "" not in (batch := shown_digest(info.metadata), doc.digest) and batch != doc.digest:
            raise SnapshotError(
                what,
                cause=f"snapshot {snapshot} is of another history of the log: it was taken behind another batch {doc.batch}",
            )
        if info.size_b < disk.sectors * SECTOR:
            raise SnapshotError(what, cause=f"snapshot {snapshot} has {info.size_b} bytes, the disk has more")

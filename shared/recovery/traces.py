"""Which epochs left traces in storage beside their logs: seed disks and points outlive a log that was deleted or restored from a copy."""

from __future__ import annotations

from shared.blob import BlobStore
from shared.recovery import points
from shared.recovery.position import Position
from shared.recovery.seed import SEED_DISKS


async def highest_epoch(store: BlobStore) -> int:
    """The highest epoch number that a seed disk of the machine or a point of it names; 0: none does. Two lists."""
    found = [0]
    async for info in store.list(points.FOLDER):
        if (position := points.position_of(info.name)) is not None:
            found.append(position.epoch)
    async for info in store.list(SEED_DISKS):
        for key in ("cursor", "pending"):
            if (position := Position.parse(info.metadata.get(key, ""))) is not None:
                found.append(position.epoch)
    return max(found)

"""What a restore must know of seed disks: their blob names, and which position a snapshot shows."""

from __future__ import annotations

from collections.abc import Mapping

from shared.recovery.position import Position


def seed_blob(machine: str, disk: str) -> str:
    """The name of a disk's page blob."""
    return f"disks/{machine}/{disk}.vhd"


def shown_position(metadata: Mapping[str, str]) -> Position | None:
    """The position whose state a snapshot with these metadata shows; None when it was taken in mid-interval
    or is foreign.

    Keys and their meaning: master_target/targets/FORMAT.md.
    """
    cursor = Position.parse(metadata.get("cursor", ""))
    return cursor if cursor is not None and metadata.get("pending") == str(cursor) else None

"""What others must know of seed disks: their blob names, and which position a snapshot shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shared.recovery.position import Position

SEED_DISKS: Final = "disks/"
"""Their folder."""
SUFFIX: Final = ".vhd"
DISK_B: Final = "disk_b"
"""In their metadata: the size of the source disk, bytes."""


def seed_blob(disk: str) -> str:
    """The name of a disk's page blob, in the machine's container."""
    return f"{SEED_DISKS}{disk}{SUFFIX}"


def shown_position(metadata: Mapping[str, str]) -> Position | None:
    """The position whose state a snapshot with these metadata shows; None when it was taken in mid-interval
    or is foreign.

    Keys and their meaning: master_target/targets/FORMAT.md.
    """
    cursor = Position.parse(metadata.get("cursor", ""))
    whole = cursor is not None and metadata.get("pending") == str(cursor)
    return cursor if whole and metadata.get("pending_claim", "") == shown_claim(metadata) else None


def shown_claim(metadata: Mapping[str, str]) -> str:
    """Of the epoch of that position; empty where it is not known."""
    return metadata.get("cursor_claim", "")


def shown_digest(metadata: Mapping[str, str]) -> str:
    """Of the batch there (hex); empty where it is not known."""
    return metadata.get("cursor_digest", "")

"""What Azure's storage cannot hold. Pure: preflight, protection and the master target ask the same functions."""

from __future__ import annotations

from typing import Final

from shared.errors import DiskTooLargeError

PAGE_BLOB_MAX_B: Final = 8 << 40
_MIB: Final = 1 << 20
_FOOTER_B: Final = 512
SEED_DISK_MAX_B: Final = PAGE_BLOB_MAX_B - _MIB
"""The largest disk with a page blob as target: a fixed VHD is whole mebibytes and a footer behind them."""


def check_page_blob_target(disk: str, disk_b: int) -> None:
    """Raises DiskTooLargeError for a disk of `disk_b` bytes that no page blob can hold as a VHD."""
    if -(-disk_b // _MIB) * _MIB + _FOOTER_B > PAGE_BLOB_MAX_B:
        raise DiskTooLargeError(
            f"Disk {disk} cannot have a page blob as its target",
            cause=f"it has {disk_b} bytes; a page blob holds 8 TiB, and so a disk of {SEED_DISK_MAX_B} bytes",
        )

"""Whether disks can be protected as they are: none that can be written past the hooks, none twice.

Pure reading of sysfs, like disks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.capture.device_program import text
from agent.capture.disks import HANDING_ON_UNCOUNTED, SYSFS, Disk, lying_on
from shared.errors import UnsuitableDiskError, UsageError

MIN_SECTORS: Final = 8
MAX_BLOCK_B: Final = 4096
"""What one record of the ring holds, and calibration reads."""
_GIVEN_PAGES: Final = ("pmem", "ndblk", "zram", "ram")
"""How the disks of the drivers are called that have ever taken single pages (`given_pages`). The list is closed: the kernel gave it up."""


def check(disk: Disk, *, sysfs: Path = SYSFS, is_captured: bool = False) -> None:
    """Raises UnsuitableDiskError if the disk cannot be protected as it is. One that is captured may have become read-only: nothing is
    written to it past capture, and it goes on."""
    for wrong, cause, action in (
        (
            disk.sectors < MIN_SECTORS,
            "its size is zero",
            "Attach a medium, or a file in the case of a loop device.",
        ),
        (
            disk.block_b > MAX_BLOCK_B,
            f"its logical blocks have {disk.block_b} bytes; more than {MAX_BLOCK_B} are not supported",
            "Format it with blocks of 512 or 4096 bytes, or leave it out.",
        ),
        (
            disk.read_only and not is_captured,
            "it is read-only",
            "What is never written needs no protection; make it writable, or leave it out.",
        ),
        (
            disk.dax,
            "it is accessed directly (DAX), past the block layer",
            "Use it through a namespace without DAX: in sector mode, with a kernel from 6.3 on.",
        ),
        (
            given_pages(disk.name, sysfs=sysfs),
            "this kernel gives its driver single pages (rw_page), past the block layer",
            "Use a kernel from 6.3 on, or protect a volume on it (LVM, md), which is given none.",
        ),
        (
            disk.zoned,
            "it is a zoned disk, whose writes choose their own place",
            "Only conventional disks can be protected.",
        ),
        (
            bool(disk.multipath_holder),
            f"it is one path of the multipath device {disk.multipath_holder}",
            f"Protect /dev/{disk.multipath_holder}.",
        ),
        (
            bool(disk.hidden_by),
            f"{disk.hidden_by} lies on it, and this kernel does not show what comes through that: it hands on the bios that it is given",
            f"Protect /dev/{disk.hidden_by}{_or_count(disk.hidden_by, sysfs)}.",
        ),
    ):
        if wrong:
            raise UnsuitableDiskError(f"{disk.path} cannot be protected", cause=cause, action=action)


def _or_count(name: str, sysfs: Path) -> str:
    folder = sysfs / "block" / name
    is_enough = text(folder / "md/level") == HANDING_ON_UNCOUNTED
    return f", or switch on that it counts: echo 1 > {folder}/queue/iostats" if is_enough else ""


def check_set(disks: Sequence[Disk], *, sysfs: Path = SYSFS, are_captured: bool = False) -> None:
    """Raises UsageError if the disks cannot be protected together: named twice, or one lies on another; UnsuitableDiskError if one
    cannot be protected by itself (`check`)."""
    seen: dict[str, Disk] = {}
    for disk in disks:
        check(disk, sysfs=sysfs, is_captured=are_captured)
        if disk.name in seen:
            raise UsageError(
                f"{disk.path} and {seen[disk.name].path} are the same disk", action="Name each disk once."
            )
        seen[disk.name] = disk
    for upper, lower in lying_on(disks, sysfs=sysfs):
        raise UsageError(
            f"{upper.path} and {lower.path} cannot be protected together",
            cause=f"{upper.name} lies on {lower.name}: its writes would be captured twice",
            action="Protect either the upper or the lower one.",
        )


def given_pages(name: str, *, sysfs: Path = SYSFS) -> bool:
    """Whether this kernel may write to a disk of this name without a bio, past every hook.

    Kernels before 6.3 gave single pages right to the driver where it had `rw_page` (NVDIMMs in sector mode, zram, brd): what
    is swapped out, and what FAT and others that write through mpage write back. No hook sees that, and NVDIMMs do not even count it, so
    no audit finds it. Distributions took the removal into older kernels: the kernel's own types tell, not its version.
    """
    btf = sysfs / "kernel/btf/vmlinux"
    return name.startswith(_GIVEN_PAGES) and btf.exists() and b"\0rw_page\0" in btf.read_bytes()

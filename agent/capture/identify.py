"""What stands on this machine: every whole disk with all that can identify it (`binding.Identity`).

From sysfs, /dev/disk/by-path, and what `answer` was told by the disk itself: its names, its partition table, the file behind a loop
device. Nothing here asks a device, nor reads an attribute whose driver may: it may hang.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.capture.answer import NOTHING, Answer
from agent.capture.binding import Identity, Kind, Standing
from agent.capture.device_program import text
from agent.capture.disks import SYSFS, AttributesOf, Disk, describe, entries, read_attributes, said
from agent.capture.layout import kernel_dev
from shared.errors import UnderstudyError

BY_PATH: Final = Path("/dev/disk/by-path")
DEV: Final = Path("/dev")
_BY_NUMBER: Final = ("block", "char")
"""Folders of it with a link for each device, by a number that a boot gives."""
_NAMES: Final = (
    (Kind.WWID, ("wwid", "device/wwid")),
    (Kind.SERIAL, ("serial", "device/serial", "device/vpd_pg80")),
    (Kind.DM, ("dm/uuid",)),
    (Kind.MD, ("md/uuid",)),
)
_MBR_SIGNATURE_AT: Final = 0x1B8


def links() -> dict[str, list[str]]:
    """By path of the device, the links that lead to it, by whichever of them people name it: also `/dev/GROUP/VOLUME`, and those of udev
    rules. What is mounted below (`/dev/shm`) is no part of it: anybody may write there."""
    found: dict[str, list[str]] = {}
    for folder in sorted(_folders(DEV)):
        for link in entries(folder):
            if link.is_symlink():
                found.setdefault(os.path.realpath(link), []).append(str(link))
    return found


def _folders(above: Path) -> Iterator[Path]:
    yield above
    for folder in entries(above):
        if folder.is_dir() and not (folder.is_symlink() or folder.is_mount() or folder.name in _BY_NUMBER):
            yield from _folders(folder)


def all_disks(*, sysfs: Path = SYSFS, attributes_of: AttributesOf = read_attributes) -> list[Disk]:
    """Every whole disk that is not hidden, empty, or one path of a multipath device."""
    found = []
    for folder in sorted((sysfs / "block").iterdir()):
        try:
            major, minor = (folder / "dev").read_text().split(":")
            path = Path("/dev") / folder.name.replace("!", "/")
            disk = describe(path, folder.resolve(), int(major), int(minor), attributes_of, sysfs=sysfs)
        except (OSError, ValueError, UnderstudyError):  # it went away just now
            continue
        if disk.sectors and not disk.multipath_holder and text(folder / "hidden") != "1":
            found.append(disk)
    return found


def identities(disk: Disk, told: Answer = NOTHING, *, by_path: Path = BY_PATH) -> tuple[Identity, ...]:
    """All identities of the disk, strongest first; at least its name. `told`: what the disk itself said, if it was asked."""
    found: list[Identity] = []
    for kind, attributes in _NAMES:
        texts = [said(disk.names, attribute).strip("\0") for attribute in attributes]
        if text := next(filter(None, texts), ""):
            found.append(Identity(kind, " ".join(text.split())))
    if told.file and (path := disk.names.get("loop/backing_file")):
        found.append(Identity(Kind.LOOP, f"{told.file} {path}"))
    found += partition_table(told.head, disk.block_b)
    if port := _port(disk, by_path):
        found.append(Identity(Kind.BY_PATH, port))
    return (*found, Identity(Kind.NAME, f"{disk.name}, {disk.sectors} sectors"))


def standing(
    disk: Disk, found: tuple[Identity, ...], *, is_read: bool = True, is_named: bool = True
) -> Standing:
    return Standing(
        path=str(disk.path),
        name=disk.name,
        dev=kernel_dev(disk.major, disk.minor),
        diskseq=disk.diskseq,
        sectors=disk.sectors,
        identities=found,
        is_read=is_read,
        is_named=is_named,
        is_empty=disk.is_empty,
    )


def partition_table(head: bytes, block_b: int) -> list[Identity]:
    """The GUID or the signature of the partition table in a disk's first bytes. Pure."""
    if head[block_b : block_b + 8] == b"EFI PART" and len(head) >= block_b + 72:
        return [Identity(Kind.GPT, str(uuid.UUID(bytes_le=head[block_b + 56 : block_b + 72])))]
    if head[510:512] == b"\x55\xaa" and any(head[_MBR_SIGNATURE_AT : _MBR_SIGNATURE_AT + 4]):
        (signature,) = struct.unpack_from("<I", head, _MBR_SIGNATURE_AT)
        return [Identity(Kind.MBR, f"{signature:08x}")]
    return []


def _port(disk: Disk, by_path: Path) -> str:
    return next(
        (link.name for link in entries(by_path) if Path(os.path.realpath(link)).name == disk.name), ""
    )

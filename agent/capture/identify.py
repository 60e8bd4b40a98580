"""What stands on this machine: every whole disk with all that can identify it (`binding.Identity`).

From sysfs, /dev/disk/by-path and, for loop devices, an ioctl. Partition tables are read by `answer`, since a disk may hang.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.capture.binding import Identity, Kind, Standing
from agent.capture.disks import SYSFS, Disk, describe
from agent.capture.layout import kernel_dev
from shared.errors import UnderstudyError

BY_PATH: Final = Path("/dev/disk/by-path")
_FILES: Final = (
    (Kind.WWID, ("wwid", "device/wwid")),
    (Kind.SERIAL, ("serial", "device/serial")),
    (Kind.DM, ("dm/uuid",)),
    (Kind.MD, ("md/uuid",)),
)
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64_B: Final = 232
_MBR_SIGNATURE_AT: Final = 0x1B8


def all_disks(*, sysfs: Path = SYSFS) -> list[Disk]:
    """Every whole disk that is not hidden, empty, or one path of a multipath device."""
    found = []
    for folder in sorted((sysfs / "block").iterdir()):
        try:
            major, minor = (folder / "dev").read_text().split(":")
            disk = describe(
                Path("/dev") / folder.name.replace("!", "/"), folder.resolve(), int(major), int(minor)
            )
        except (OSError, ValueError, UnderstudyError):  # it went away just now
            continue
        hidden = folder / "hidden"
        if (
            disk.sectors
            and not disk.multipath_holder
            and not (hidden.exists() and hidden.read_text()[:1] == "1")
        ):
            found.append(disk)
    return found


def identities(
    disk: Disk, head: bytes = b"", *, sysfs: Path = SYSFS, by_path: Path = BY_PATH
) -> tuple[Identity, ...]:
    """All identities of the disk, strongest first; at least its name. `head`: its first bytes, if they were read."""
    folder = sysfs / "block" / disk.name.replace("/", "!")
    found: list[Identity] = []
    for kind, files in _FILES:
        text = next((text for text in (_text(folder / file) for file in files) if text), "")
        if kind is Kind.SERIAL and not text:
            text = _text(folder / "device/vpd_pg80")[4:].strip()
        if text:
            found.append(Identity(kind, " ".join(text.split())))
    if loop := _loop(disk, folder):
        found.append(Identity(Kind.LOOP, loop))
    found += partition_table(head, disk.block_b)
    if port := _port(disk, by_path):
        found.append(Identity(Kind.BY_PATH, port))
    return (*found, Identity(Kind.NAME, f"{disk.name}, {disk.sectors} sectors"))


def standing(disk: Disk, found: tuple[Identity, ...]) -> Standing:
    return Standing(
        path=str(disk.path),
        name=disk.name,
        dev=kernel_dev(disk.major, disk.minor),
        diskseq=disk.diskseq,
        sectors=disk.sectors,
        identities=found,
    )


def partition_table(head: bytes, block_b: int) -> list[Identity]:
    """The GUID or the signature of the partition table in a disk's first bytes. Pure."""
    if head[block_b : block_b + 8] == b"EFI PART" and len(head) >= block_b + 72:
        return [Identity(Kind.GPT, str(uuid.UUID(bytes_le=head[block_b + 56 : block_b + 72])))]
    if head[510:512] == b"\x55\xaa" and any(head[_MBR_SIGNATURE_AT : _MBR_SIGNATURE_AT + 4]):
        (signature,) = struct.unpack_from("<I", head, _MBR_SIGNATURE_AT)
        return [Identity(Kind.MBR, f"{signature:08x}")]
    return []


def _loop(disk: Disk, folder: Path) -> str:
    path = _text(folder / "loop/backing_file")
    if not path:
        return ""
    with suppress(OSError):
        fd = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_B))
        finally:
            os.close(fd)
        device, inode = struct.unpack_from("<QQ", info)
        return f"{os.major(device)}:{os.minor(device)}:{inode} {path}"
    return ""


def _port(disk: Disk, by_path: Path) -> str:
    links: Mapping[str, Path] = {link.name: link for link in by_path.iterdir()} if by_path.is_dir() else {}
    for name in sorted(links):
        if links[name].resolve().name == disk.name:
            return name
    return ""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip().rstrip("\0")
    except OSError:
        return ""

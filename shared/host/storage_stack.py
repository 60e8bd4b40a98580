"""On which disks does a path lie? Asked before anything is written beside, or frozen with, a protected disk.

Whoever writes to a disk that he protects makes a write for every write, without end. So the whole stack counts:

    path ─ mount (bind mounts, subvolumes) ─┬─ block device ─┬─ partition → its disk
                                            │                ├─ device mapper, md, bcache → what they are made of
                                            │                ├─ zram → its backing device
                                            │                └─ loop → its backing file: a path again
                                            ├─ btrfs (also of several devices) → all its devices
                                            ├─ overlay → the folder that takes the writes
                                            └─ mounts whose source is a path (ecryptfs, bindfs, mergerfs, …) → that path

A mount is found by the id that the kernel gives for the opened path: the device number of `stat` says nothing on btrfs and
overlay, and prefixes of mount points say nothing of what was mounted over them.

What cannot be seen from here: what a network file system or a virtual machine's disk lies on, ZFS (its pools are in no table of
the kernel's), an overlay whose upper folder is in another mount namespace (a container's root). Then nothing is found for it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

_BLOCK: Final = Path("/sys/dev/block")
_BTRFS: Final = Path("/sys/fs/btrfs")
_BTRFS_IOC_FS_INFO: Final = 0x8400941F
"""_IOR(0x94, 31, 1024 bytes): the file system's UUID is at byte 16."""
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO: Final = struct.Struct("=QQQ208x")
"""Device and inode of the backing file, and its device number if it is a device."""


def disks_below(path: Path) -> set[str]:
    """The kernel's names ("sda", "loop3", "dm-0") of all whole disks on which `path` lies, in every layer of its stack.

    A path that does not exist yet lies where its nearest existing folder does. A block device lies on itself. Empty for memory
    (tmpfs) and for what cannot be seen (see above).
    """
    found: set[str] = set()
    _add_path(path, found)
    return found


def whole_disk(device: Path) -> str:
    """The kernel's name of the whole disk that the block device `device` is, or is a partition of; empty if it is none."""
    try:
        status = device.stat()
    except (OSError, ValueError):
        return ""
    folder = _folder(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
    return "" if folder is None else _name(_disk_of(folder))


def mounts_below(folder: Path) -> list[Path]:
    """Where something is mounted below `folder`, itself left out; the innermost first, as they would be unmounted."""
    whole = Path(os.path.realpath(folder))
    points = {
        Path(_plain(line.split(b" ")[4])) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()
    }
    return sorted((point for point in points if whole in point.parents), key=lambda point: -len(point.parts))


# ---- paths and mounts


def _add_path(path: Path, found: set[str], through: frozenset[int] = frozenset()) -> None:
    """`through`: the mounts that lead here."""
    existing = _nearest(path)
    status = existing.stat()
    if stat.S_ISBLK(status.st_mode):
        _add_device(status.st_rdev, found)
    elif os.major(status.st_dev):
        _add_device(status.st_dev, found)
    elif (mount := _mount_of(existing)) is not None:
        if mount.number in through:
            _add_below(mount, found, through)
        else:
            _add_mount(existing, mount, found, through | {mount.number})


def _nearest(path: Path) -> Path:
    """The path itself with all links followed, or the nearest folder above it that exists."""
    whole = Path(os.path.realpath(path))  # unlike Path.resolve, it bears links in a circle
    return next(place for place in (whole, *whole.parents) if _exists(place))


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False  # also one that we may not see: then its folder answers
    return True


@dataclass(frozen=True)
class _Mount:
    number: int
    parent: int
    """Of the mount that it is on; not to be found where that is in another namespace, as that of a container's root."""
    point: str
    device: int
    kind: str
    source: str
    options: tuple[str, ...]
    """Of the file system."""


def _mount_of(path: Path) -> _Mount | None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    wanted = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    return _mount_numbered(int(wanted))


def _mount_numbered(wanted: int) -> _Mount | None:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        head, _, tail = line.partition(b" - ")
        fields, (kind, source, options) = head.split(b" "), tail.split(b" ", 2)
        if int(fields[0]) == wanted:
            major, _, minor = fields[2].partition(b":")
            return _Mount(
                wanted,
                int(fields[1]),
                _plain(fields[4]),
                os.makedev(int(major), int(minor)),
                kind.decode(),
                _plain(source),
                tuple(_plain(option) for option in options.split(b",")),
            )
    return None  # mounted in another namespace


def _plain(escaped: bytes) -> str:
    """The kernel writes spaces, line ends, backslashes and commas as \\ and three octal digits."""
    first, *others = escaped.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in others))


def _add_below(mount: _Mount, found: set[str], through: frozenset[int]) -> None:
    """What it lies on is under itself (ecryptfs on its own folder): in the mount that it is on."""
    below = _mount_numbered(mount.parent)
    if below is not None and below.number not in through:
        _add_mount(Path(below.point), below, found, through | {below.number})


def _add_mount(path: Path, mount: _Mount, found: set[str], through: frozenset[int]) -> None:
    if mount.kind == "btrfs" and (devices := list(_btrfs_devices(path))):
        for folder in devices:
            _add_folder(folder, found)
    elif mount.kind == "overlay":
        # Nothing is ever written to its lower folders.
        for option in mount.options:
            if option.startswith("upperdir="):
                named = option.removeprefix("upperdir=")
                # As it was typed on some kernels: with a \ before a comma or a colon.
                uppers = [
                    upper for upper in map(Path, (named, re.sub(r"\\(.)", r"\1", named))) if _exists(upper)
                ]
                if uppers:
                    _add_path(uppers[0], found, through)
                elif Path(named).is_relative_to(mount.point):
                    _add_below(mount, found, through)
    elif os.major(mount.device):
        _add_device(mount.device, found)
    elif mount.source.startswith("/") and not mount.source.startswith("//"):
        for source in mount.source.split(":"):
            if _exists(Path(source)):
                _add_path(Path(source), found, through)


def _btrfs_devices(path: Path) -> Iterator[Path]:
    """sysfs folders of all devices of the btrfs on which `path` lies; none if it may not be asked."""
    answer = bytearray(1024)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, answer)
        finally:
            os.close(fd)
        devices = _BTRFS / str(UUID(bytes=bytes(answer[16:32]))) / "devices"
        yield from (device.resolve() for device in devices.iterdir())
    except OSError:
        return  # the mount's source names one of them


# ---- devices


def _add_device(number: int, found: set[str]) -> None:
    if (folder := _folder(number)) is not None:
        _add_folder(folder, found)


def _folder(number: int) -> Path | None:
    """The device's folder in sysfs."""
    link = _BLOCK / f"{os.major(number)}:{os.minor(number)}"
    return link.resolve() if link.exists() else None


def _disk_of(folder: Path) -> Path:
    return folder.parent if (folder / "partition").exists() else folder


def _name(folder: Path) -> str:
    return folder.name.replace("!", "/")


def _add_folder(folder: Path, found: set[str]) -> None:
    disk = _disk_of(folder)
    if _name(disk) in found:
        return
    found.add(_name(disk))
    # A device mapper's or md's partitions have the slaves of their disk.
    slaves = disk / "slaves"
    for slave in slaves.iterdir() if slaves.is_dir() else ():
        _add_folder(slave.resolve(), found)
    if backing := _text(disk / "loop/backing_file"):
        _add_backing(_name(disk), backing, found)
    if (backing := _text(disk / "backing_dev")) and backing != "none":
        _add_path(Path(backing), found)


def _add_backing(loop: str, named: str, found: set[str]) -> None:
    """What lies below a loop device. Its file may be deleted, or its name may be another file's by now."""
    path = Path(named.removesuffix(" (deleted)"))
    device, inode, special = _loop_status(loop)
    if os.major(special):
        _add_device(special, found)
    elif os.major(device) and not _is_file(path, device, inode):
        _add_device(device, found)
    else:
        _add_path(path, found)


def _loop_status(loop: str) -> tuple[int, int, int]:
    """Device and inode of the backing file, and its own number if it is a device; zeros if we may not ask."""
    answer = bytearray(_LOOP_INFO.size)
    try:
        fd = os.open(f"/dev/{loop}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, answer)
        finally:
            os.close(fd)
    except OSError:
        return 0, 0, 0
    device, inode, special = _LOOP_INFO.unpack(answer)
    return device, inode, special


def _is_file(path: Path, device: int, inode: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def _text(file: Path) -> str:
    try:
        return os.fsdecode(file.read_bytes()).rstrip("\n")
    except OSError:
        return ""

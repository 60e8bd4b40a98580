"""What is asked of a device, as a program of its own (nothing but the standard library): `answer` runs it, and can leave it behind.

head DEVICE          its first bytes, and of a loop device the file behind it: one line, "ok HEAD FILE" or "error CAUSE FILE"
pages FD DISK        reads into the page that FD is: a sector a line on standard input, "ok" or "error CAUSE" a line;
                     DISK is MAJOR MINOR DISKSEQ PATH…: no other is read, whatever stands at these paths by now
attributes NAME…     what sysfs says of these disks and may hang on: for each, in this order, a line:
                     ['DISKSEQ', 'QUEUE'…, 'OVER'…, 'NAMES'…], as Python writes it in ASCII; [] when another disk took the name meanwhile
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import sys

# It is started for each disk at each look: what takes longer to load than all that it does is not loaded (json, pathlib, typing).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

HEAD_B = 8192
"""Room for a partition table with logical blocks of 512 or 4096 bytes."""
QUEUE = ("logical_block_size", "iostats", "dax", "zoned")
OVER = ("md/level", "bcache/state")
"""What a device that lies on others does with a bio (`disks.hider`). bcache answers under the lock under which it reads its devices."""
NAMES = (
    *("wwid", "device/wwid", "serial", "device/serial", "device/vpd_pg80"),
    *("dm/uuid", "md/uuid", "loop/backing_file"),
)
"""What may identify a disk. A driver gives these as it likes: `serial` of a virtio disk is a request to it, without time limit."""
BLOCK_B = 4096
"""What is read at once: no disk has larger logical blocks."""
_TRIES = 4
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_B = 232
_BLKGETDISKSEQ = 0x80081280


class OtherDisk(OSError):
    """What was opened is not the disk that is meant."""


def open_disk(paths: Iterable[str], major: int, minor: int, diskseq: int) -> int:
    """Opens the disk that has this device number and diskseq (0: not known), by the first of the paths at which it stands; a path is a
    label, which may be another's by now. Raises OSError: that of the last path, `OtherDisk` before others. May hang."""
    failed = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for path in dict.fromkeys(paths):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as exc:
            if not isinstance(failed, OtherDisk):
                failed = exc
            continue
        try:
            check_is(fd, major, minor, diskseq)
        except OtherDisk as exc:
            failed = exc
            os.close(fd)
        else:
            return fd
    raise failed


def check_is(fd: int, major: int, minor: int, diskseq: int) -> None:
    """Raises OtherDisk unless the descriptor is this disk. Asks the kernel, never the device."""
    number = os.fstat(fd).st_rdev
    if (os.major(number), os.minor(number)) != (major, minor):
        found = f"it has the number {os.major(number)}:{os.minor(number)}, not {major}:{minor}"
        raise OtherDisk(errno.ENODEV, f"another disk stands there: {found}")
    if not diskseq:
        return
    try:
        (now,) = struct.unpack("<Q", fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)))
    except OSError as exc:
        raise OtherDisk(
            exc.errno, f"whether it is still the same disk cannot be told: {exc.strerror}"
        ) from exc
    if now != diskseq:
        raise OtherDisk(errno.ENODEV, f"another disk stands there: its diskseq is {now}, not {diskseq}")


def head(device: str) -> str:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        return f"error it cannot be opened: {exc.strerror}"
    file = _loop_file(fd)
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK_B
    room = mmap.mmap(-1, HEAD_B)
    cause = "it is empty"
    try:
        count = os.preadv(fd, [memoryview(room)[: min(HEAD_B, blocks * BLOCK_B)]], 0)
        if count:
            return f"ok {room[:count].hex()} {file}"
    except OSError as exc:
        cause = exc.strerror or str(exc)
    import random  # seldom, and it takes its time to load

    for _ in range(_TRIES if blocks else 0):  # a bad sector is no bad disk
        try:
            os.preadv(fd, [memoryview(room)[:BLOCK_B]], random.randrange(blocks) * BLOCK_B)
        except OSError as exc:
            cause = exc.strerror or str(exc)
        else:
            return f"ok  {file}"
    return f"error reads of it fail: {cause}"


def _loop_file(fd: int) -> str:
    """Device and inode of the file behind a loop device. This may hang where reads do not: the file may lie on a server."""
    number = os.fstat(fd).st_rdev
    if not os.path.isdir(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/loop"):  # noqa: PTH112
        return ""
    try:
        device, inode = struct.unpack_from("<QQ", fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_B)))
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}:{inode}"


def pages(page: int, disk: Sequence[str]) -> None:
    major, minor, diskseq = (int(part) for part in disk[:3])
    try:
        fd = open_disk(disk[3:], major, minor, diskseq)
        cause = ""
    except OSError as exc:
        cause = f"error it cannot be opened: {exc.strerror}"
    room = mmap.mmap(page, mmap.PAGESIZE)
    for line in sys.stdin:
        if not cause:
            try:
                os.preadv(fd, [memoryview(room)[:BLOCK_B]], int(line) * 512)
            except OSError as exc:
                print("error", exc.strerror or exc, flush=True)
            else:
                print("ok", flush=True)
        else:
            print(cause, flush=True)


def attributes(names: list[str], sysfs: str | Path = "/sys") -> None:
    for name in names:
        folder = f"{sysfs}/block/{name}"
        files = [
            *(f"{folder}/queue/{attribute}" for attribute in QUEUE),
            *(f"{folder}/{name}" for name in OVER + NAMES),
        ]
        diskseq = text(f"{folder}/diskseq")
        texts = [text(file) for file in files]
        is_same = text(f"{folder}/diskseq") == diskseq
        print(ascii([diskseq, *texts] if is_same else []), flush=True)


def text(file: str | Path) -> str:
    """Stripped; empty if it is not there. (Attributes of a disk come and go with kernels and drivers.)"""
    try:
        with open(file, errors="replace") as read:  # noqa: PTH123
            return read.read().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    if sys.argv[1] == "head":
        print(head(sys.argv[2]))
    elif sys.argv[1] == "pages":
        pages(int(sys.argv[2]), sys.argv[3:])
    else:
        attributes(sys.argv[2:])

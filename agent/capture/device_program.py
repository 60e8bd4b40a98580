"""What is asked of a device, as a program of its own (nothing but the standard library): `answer` runs it, and can leave it behind.

head DEVICE          its first bytes, and of a loop device the file behind it: one line, "ok HEAD FILE" or "error CAUSE FILE"
pages DEVICE FD      reads into the page that FD is: a sector a line on standard input, "ok" or "error CAUSE" a line
queues NAME…         the attributes of these disks' queues that are asked for, "BLOCK_B IOSTATS DAX ZONED" a line, in this order
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import sys
from pathlib import Path

HEAD_B = 8192
"""Room for a partition table with logical blocks of 512 or 4096 bytes."""
QUEUE = ("logical_block_size", "iostats", "dax", "zoned")
_BLOCK_B = 4096
_TRIES = 4
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_B = 232


def head(device: str) -> str:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        return f"error it cannot be opened: {exc.strerror}"
    file = _loop_file(fd)
    blocks = os.lseek(fd, 0, os.SEEK_END) // _BLOCK_B
    room = mmap.mmap(-1, HEAD_B)
    cause = "it is empty"
    try:
        count = os.preadv(fd, [memoryview(room)[: min(HEAD_B, blocks * _BLOCK_B)]], 0)
        if count:
            return f"ok {room[:count].hex()} {file}"
    except OSError as exc:
        cause = exc.strerror or str(exc)
    for _ in range(_TRIES if blocks else 0):  # a bad sector is no bad disk
        try:
            os.preadv(fd, [memoryview(room)[:_BLOCK_B]], random.randrange(blocks) * _BLOCK_B)
        except OSError as exc:
            cause = exc.strerror or str(exc)
        else:
            return f"ok  {file}"
    return f"error reads of it fail: {cause}"


def _loop_file(fd: int) -> str:
    """Device and inode of the file behind a loop device. This may hang where reads do not: the file may lie on a server."""
    number = os.fstat(fd).st_rdev
    if not Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/loop").is_dir():
        return ""
    try:
        device, inode = struct.unpack_from("<QQ", fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_B)))
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}:{inode}"


def pages(device: str, page: int) -> None:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        cause = ""
    except OSError as exc:
        cause = f"error it cannot be opened: {exc.strerror}"
    room = mmap.mmap(page, mmap.PAGESIZE)
    for line in sys.stdin:
        if not cause:
            try:
                os.preadv(fd, [memoryview(room)[:_BLOCK_B]], int(line) * 512)
            except OSError as exc:
                print("error", exc.strerror or exc, flush=True)
            else:
                print("ok", flush=True)
        else:
            print(cause, flush=True)


def queues(names: list[str], sysfs: Path = Path("/sys")) -> None:
    for name in names:
        print(
            " ".join(_text(sysfs / "block" / name / "queue" / attribute) for attribute in QUEUE), flush=True
        )


def _text(file: Path) -> str:
    try:
        return file.read_text().strip() or "-"
    except OSError:
        return "-"


if __name__ == "__main__":
    if sys.argv[1] == "head":
        print(head(sys.argv[2]))
    elif sys.argv[1] == "pages":
        pages(sys.argv[2], int(sys.argv[3]))
    else:
        queues(sys.argv[2:])

"""Reads one chunk of a disk, and finds out which of its sectors cannot be read. Blocks on the disk: for `disk_threads`."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from typing import Final

from agent.stream.catchup import Chunk
from shared.batch import SECTOR
from shared.errors import DeviceError, cause_of

_BLKSSZGET: Final = 0x1268


def read_span(fd: int, chunk: Chunk, buffer: mmap.mmap, moved: Callable[[], None]) -> list[tuple[int, int]]:
    """Reads the chunk's span into `buffer`; returns the runs of sectors that could not be read, zeroed. Calls `moved` whenever the disk
    has answered.

    Raises DeviceError when the disk is gone, shorter than it was, or does not give any data at all.
    """
    with memoryview(buffer)[: chunk.sectors * SECTOR] as view:
        if _read_exactly(fd, view, chunk.first_sector):
            moved()
            return []
        # Something in the span is unreadable: block by block, so that the list names exactly what is lost.
        bad: list[tuple[int, int]] = []
        block = _block_sectors(fd)

        def is_readable(into: memoryview, sector: int) -> bool:
            readable = _read_exactly(fd, into, sector)
            moved()
            return readable

        with mmap.mmap(-1, mmap.PAGESIZE) as one, memoryview(one) as aligned:
            if not any(is_readable(aligned[: block * SECTOR], at) for at in _samples(fd, block)):
                raise DeviceError(
                    f"Catch-up could not read a protected disk, neither at sector {chunk.first_sector} nor elsewhere",
                    cause="it gives errors only",
                    action="Check the disk and what connects it (dmesg). Other disks are copied meanwhile; this one when it answers.",
                )
            for i in range(0, chunk.sectors, block):
                sector, count = chunk.first_sector + i, min(block, chunk.sectors - i)
                here = view[i * SECTOR : (i + count) * SECTOR]
                if is_readable(aligned[: len(here)], sector):
                    here[:] = aligned[: len(here)]
                    continue
                here[:] = bytes(len(here))
                if bad and sum(bad[-1]) == sector:
                    bad[-1] = (bad[-1][0], bad[-1][1] + count)
                else:
                    bad.append((sector, count))
        return bad


def _samples(fd: int, block: int) -> list[int]:
    """First sectors of some blocks all over the disk: one that gives none of them is not damaged here and there, but does not work."""
    blocks = os.lseek(fd, 0, os.SEEK_END) // SECTOR // block
    return [blocks * i // 8 * block for i in range(8)]


def _block_sectors(fd: int) -> int:
    """Sectors in a logical block, the least that can be read with O_DIRECT."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(fd, _BLKSSZGET, answer)
    except OSError as exc:
        if exc.errno != errno.ENOTTY:  # a file
            raise
        return 1
    return int.from_bytes(answer, sys.byteorder) // SECTOR


def _read_exactly(fd: int, view: memoryview, sector: int) -> bool:
    """True when all was read; False when the medium refused (EIO)."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], sector * SECTOR + done)
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ENODATA, errno.EILSEQ):
                return False
            raise DeviceError(
                f"Catch-up could not read a protected disk at sector {sector}",
                cause=cause_of(exc),
                action="Check that the disk is still attached; replication goes on when it is.",
            ) from exc
        if count == 0:
            raise DeviceError(
                f"A protected disk ends at sector {sector + done // SECTOR}, earlier than when it was protected",
                cause="it was made smaller or replaced",
                action="Unprotect the machine and protect it again with the new size.",
            )
        done += count
    return True

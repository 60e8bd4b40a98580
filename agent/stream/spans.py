"""Reads one chunk of a disk, and finds out which of its sectors cannot be read. Blocks on the disk: for `disk_threads`.

A sector is lost only if it fails while the disk demonstrably works. A disk may fail for milliseconds (a path fails over, a cable), with the
very errors that a damaged medium gives; then nothing of it is lost, and all of it can be read a moment later. So a block that was refused
is asked for once more behind a *sample*, a block elsewhere that the disk did give: only what fails on both sides of that is called
unreadable. If no sample is given, it is the disk that fails: nothing is called anything, and the chunk is left to a later round. Where much
is refused, a part of the disk may be away: `refusals` says of how much it is believed now, and beyond that nothing is called anything
either. (Two failures of the disk, one around each of the two reads, still deceive this: `unreadable` asks again later.)

To find out costs reads: by granules first, then block by block in those that are refused, and only until more is refused than may be
declared. So a chunk of a part that is away costs a few reads a round, and a chunk with one bad sector a hundred.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from agent.capture.layout import GRANULE_SECTORS
from agent.stream.catchup import Chunk
from agent.stream.unreadable import Runs, Trial
from shared.batch import SECTOR
from shared.errors import DeviceError, cause_of

SAMPLES: Final = 16
_GOLDEN: Final = (5**0.5 - 1) / 2
_BLKSSZGET: Final = 0x1268
_NOT_THE_SECTOR: Final = frozenset(
    {
        *(errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EBADF, errno.EPERM, errno.EACCES),  # the disk
        *(errno.EINVAL, errno.EFAULT, errno.EOVERFLOW),  # the question
        *(errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EMFILE, errno.ENFILE),  # this machine
    }
)
"""Errors of a read that say nothing of the sectors that were asked for. All others do, of which the block layer has a dozen: EIO, ENODATA
and EILSEQ of a medium, but also EREMOTEIO, ETIMEDOUT, ENOLINK, EBADE, ETIME, as a driver likes; and a layer above it may have more."""


class TooMuchRefused(Exception):
    """More of a chunk is refused than may be declared now; `sector` and others that the round wants."""

    def __init__(self, chunk: Chunk, sector: int) -> None:
        super().__init__(f"sector {sector} and more")
        self.chunk = chunk
        self.sector = sector


def read_span(
    fd: int,
    chunk: Chunk,
    buffer: mmap.mmap,
    moved: Callable[[], None],
    known_bad: Sequence[tuple[int, int]],
    may_lose: int,
) -> Runs:
    """Reads what the round wants of the chunk's span into `buffer`; returns the runs of sectors of it that could not be read, zeroed. Calls
    `moved` whenever the disk has answered. `known_bad`: runs that are not asked for.

    Raises TooMuchRefused as soon as more than `may_lose` sectors are unreadable; DeviceError when the disk is gone, shorter than it was, or
    does not give any data at all.
    """
    with memoryview(buffer)[: chunk.sectors * SECTOR] as view:
        if not known_bad and _read_exactly(fd, view, chunk.first_sector):
            moved()
            return []
        bad: Runs = []
        lost = 0
        block = block_sectors(fd)
        aligned = _page()
        disk = _Disk(fd, block, aligned, moved, chunk)
        for first, sectors in _granules(chunk):
            at = (first - chunk.first_sector) * SECTOR
            granule = view[at : at + sectors * SECTOR]
            if not _overlap(known_bad, first, sectors) and disk.gives_all(granule, first):
                continue
            # Something in it is unreadable: block by block, so that the list names exactly what is lost.
            for sector in range(first, first + sectors, block):
                count = min(block, first + sectors - sector)
                here = granule[(sector - first) * SECTOR :][: count * SECTOR]
                if not _overlap(known_bad, sector, count) and disk.gives(sector, count):
                    here[:] = aligned[: len(here)]
                    continue
                here[:] = bytes(len(here))
                append(bad, sector, count)
                lost += count
                if lost > may_lose:
                    raise TooMuchRefused(chunk, bad[0][0])
        return bad


def _granules(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """(first sector, sectors) of those that the round wants. Others may lie between them."""
    low = (chunk.mask & -chunk.mask).bit_length() - 1
    for at in range(0, chunk.sectors, GRANULE_SECTORS):
        if chunk.mask >> (low + at // GRANULE_SECTORS) & 1:
            yield chunk.first_sector + at, min(GRANULE_SECTORS, chunk.sectors - at)


def read_again(fd: int, trial: Trial, moved: Callable[[], None], until: float) -> Runs:
    """Asks again for sectors that could not be read once; what is given is put into `trial.given` at once, for a read behind it may hang.
    Begins no read after `until` (monotonic). Returns all that was given."""
    found: Runs = []
    block = block_sectors(fd)
    aligned = _page()
    for first, sectors in trial.runs:
        for sector in range(first, first + sectors, block):
            count = min(block, first + sectors - sector)
            if time.monotonic() > until:
                return found
            trial.behind = sector + count
            if _read_exactly(fd, aligned[: count * SECTOR], sector):
                trial.given.append((sector, count))
                append(found, sector, count)
            moved()
    return found


def _page() -> memoryview:
    """A page of its own, as O_DIRECT wants it. It is given back with the last view of it, and not closed before: the traceback of a read
    that failed holds one, so that closing would fail, with a BufferError in place of what the disk said."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE))


def append(runs: Runs, sector: int, count: int) -> None:
    if runs and sum(runs[-1]) == sector:
        runs[-1] = (runs[-1][0], runs[-1][1] + count)
    else:
        runs.append((sector, count))


class _Disk:
    """Reads blocks into `aligned`."""

    def __init__(
        self, fd: int, block: int, aligned: memoryview, moved: Callable[[], None], chunk: Chunk
    ) -> None:
        self._fd = fd
        self._block = block
        self._aligned = aligned
        self._moved = moved
        self._chunk = chunk
        blocks = os.lseek(fd, 0, os.SEEK_END) // SECTOR // block
        self._samples = [int(blocks * (i * _GOLDEN % 1)) * block for i in range(SAMPLES)]
        """First sectors of some blocks all over the disk, and at no regular distance, for these may all lie on one leg of a striped volume;
        a disk that gives none of them is not damaged here and there, but does not work."""
        self._given: list[int] = []
        """The one that was given last."""

    def gives_all(self, view: memoryview, sector: int) -> bool:
        given = _read_exactly(self._fd, view, sector)
        self._moved()
        if given:
            self._given = [sector]
        return given

    def gives(self, sector: int, count: int) -> bool:
        if self._read(sector, count):
            return True
        self._give_a_sample()
        return self._read(sector, count)

    def _give_a_sample(self) -> None:
        for sector in (*self._given, *self._samples):
            if self._read(sector, self._block):
                self._given = [sector]
                return
        raise DeviceError(
            f"Catch-up could not read a protected disk, neither at sector {self._chunk.first_sector} nor elsewhere",
            cause="it gives errors only",
            action="Check the disk and what connects it (dmesg). Other disks are copied meanwhile; this one when it answers.",
        )

    def _read(self, sector: int, count: int) -> bool:
        given = _read_exactly(self._fd, self._aligned[: count * SECTOR], sector)
        self._moved()
        return given


def _overlap(runs: Iterable[tuple[int, int]], sector: int, count: int) -> bool:
    return any(first < sector + count and sector < first + n for first, n in runs)


def block_sectors(fd: int) -> int:
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
    """True when all was read; False when these sectors were refused."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], sector * SECTOR + done)
        except OSError as exc:
            if exc.errno not in _NOT_THE_SECTOR:
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

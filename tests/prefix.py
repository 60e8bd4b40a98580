"""The master check: numbered, chained writes over several disks, and whether an image is the state after some k of them.

Write i is issued when write i-1 has completed, so every crash-consistent image of the machine is the state after some k. Every sector
that write i puts on a disk is filled from (i, disk, sector), beginning with i itself; some writes are zero-outs. The schedule follows
from a seed: the writer and the checker need nothing but that in common.

    python -m tests.prefix --seed 7 --progress FILE [--rate-mb 10] [--seconds 60] /dev/loop0 /dev/loop1

writes until SIGTERM or until the time is over. FILE holds two 64-bit numbers: writes begun and writes completed.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

SECTOR: Final = 512
MAX_SECTORS: Final = 256
_BLOCK: Final = 1 << 16
BLKZEROOUT: Final = 0x127F
_ZERO_PERCENT: Final = 2
_WORDS: Final = SECTOR // 8


@dataclass(frozen=True)
class Schedule:
    seed: int
    disk_sectors: tuple[int, ...]

    def writes(self) -> Iterator[tuple[int, int, int, int, bool]]:
        """(number from 1, disk, first sector, sectors, is a zero-out), for ever."""
        number = 0
        for block in range(1 << 30):
            rng = np.random.default_rng((self.seed, block))
            disk = rng.integers(0, len(self.disk_sectors), _BLOCK)
            # Most writes are small, some are large: 1 << 0…8 sectors, at most 128 KiB.
            sectors = 1 << rng.integers(0, 9, _BLOCK)
            size = np.array(self.disk_sectors)[disk]
            first = (rng.random(_BLOCK) * (size - sectors)).astype(np.int64)
            zero = rng.integers(0, 100, _BLOCK) < _ZERO_PERCENT
            for d, f, n, z in zip(
                disk.tolist(), first.tolist(), sectors.tolist(), zero.tolist(), strict=True
            ):
                number += 1
                yield number, d, f, n, z


def content(numbers: npt.NDArray[np.uint64], disk: int, first: int) -> npt.NDArray[np.uint64]:
    """(n, 64) words: what sectors first, first+1, … of `disk` hold when last written by write `numbers[…]` (0: zeroes)."""
    sector = np.arange(first, first + len(numbers), dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (numbers * np.uint64(0x9E3779B97F4A7C15)) ^ (
            sector * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(disk)
        )
        words = mixed[:, None] * (np.arange(_WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1))
    words[:, 0] = numbers
    words[numbers == 0] = 0
    result: npt.NDArray[np.uint64] = words
    return result


def write(
    schedule: Schedule,
    devices: Sequence[str],
    progress: Path,
    rate_b: float,
    seconds: float,
    after: int = 0,
) -> int:
    """Runs the schedule on the devices, from the write that follows `after`. Returns the number of the last one that completed."""
    stop = False

    def on_signal(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    fds = [os.open(device, os.O_RDWR | os.O_DIRECT) for device in devices]
    with progress.open("r+b") as file:  # whoever started us reads it already
        shared = mmap.mmap(file.fileno(), 16)
    buffer = mmap.mmap(-1, MAX_SECTORS * SECTOR)
    view = memoryview(buffer)
    array = np.frombuffer(buffer, np.uint64).reshape(MAX_SECTORS, _WORDS)
    began = time.monotonic()
    written = 0
    for number, disk, first, sectors, zero in itertools.islice(schedule.writes(), after, None):
        if stop or (seconds and time.monotonic() - began > seconds):
            return number - 1
        if rate_b and (ahead := written / rate_b - (time.monotonic() - began)) > 0.002:
            time.sleep(ahead)
        struct.pack_into("<Q", shared, 0, number)
        if zero:
            fcntl.ioctl(fds[disk], BLKZEROOUT, struct.pack("<QQ", first * SECTOR, sectors * SECTOR))
        else:
            array[:sectors] = content(np.full(sectors, number, np.uint64), disk, first)
            if os.pwrite(fds[disk], view[: sectors * SECTOR], first * SECTOR) != sectors * SECTOR:
                raise OSError(f"short write to {devices[disk]}")
        struct.pack_into("<Q", shared, 8, number)
        written += sectors * SECTOR
    raise AssertionError("the schedule never ends")


class Writer:
    """The writer as a process of its own; a context manager."""

    def __init__(
        self,
        devices: Sequence[str],
        progress: Path,
        seed: int,
        *,
        rate_mb: float = 0,
        seconds: float = 0,
        after: int = 0,
    ) -> None:
        self._progress = progress
        progress.write_bytes(struct.pack("<QQ", after, after))
        command = [sys.executable, "-m", "tests.prefix", "--seed", str(seed), "--progress", str(progress)]
        command += ["--rate-mb", str(rate_mb), "--seconds", str(seconds), "--after", str(after)]
        command += devices
        self.process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """A writer that was not stopped in order is killed: it would keep its devices busy."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def completed(self) -> int:
        """Writes that have completed until now."""
        return int(struct.unpack_from("<Q", self._progress.read_bytes(), 8)[0])

    def wait_for(self, count: int, deadline_s: float = 60) -> None:
        """Until `count` writes have completed."""
        deadline = time.monotonic() + deadline_s
        while self.completed < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"only {self.completed} of {count} writes completed in {deadline_s} s")
            time.sleep(0.01)

    def stop(self) -> int:
        """Ends the writer; the number of writes that were made."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            raise AssertionError(f"the prefix writer failed with exit code {self.process.returncode}")
        return self.completed


class PrefixError(AssertionError):
    """An image is no state that the disks ever had."""


class PrefixChecker:
    """Finds the k of an image. Cheapest when images are checked in the order of their points."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._restart()

    def _restart(self) -> None:
        self._writes = self._schedule.writes()
        self._k = 0
        self._state = [np.zeros(sectors, np.uint64) for sectors in self._schedule.disk_sectors]

    def _advance(self) -> None:
        self._k, disk, first, sectors, zero = next(self._writes)
        self._state[disk][first : first + sectors] = 0 if zero else self._k

    def check(self, images: Sequence[Path], *, at_least: int, at_most: int) -> int:
        """The k of the images (one file per disk, in order), which must lie between the bounds. Raises PrefixError."""
        words = [np.fromfile(image, np.uint64).reshape(-1, _WORDS) for image in images]
        for disk, (found, sectors) in enumerate(zip(words, self._schedule.disk_sectors, strict=True)):
            if len(found) != sectors:
                raise PrefixError(f"image {images[disk]} has {len(found)} sectors, the disk {sectors}")
        stamps = [found[:, 0] for found in words]
        newest = max(int(stamp.max()) for stamp in stamps)
        if newest > at_most:
            raise PrefixError(f"the image has write {newest}; only {at_most} were ever made")
        if newest < self._k:
            self._restart()
        while self._k < newest:
            self._advance()
        # Zero-outs leave no number: the state may be that after some of those that follow the newest stamp.
        tried = 0
        while not all(np.array_equal(a, b) for a, b in zip(stamps, self._state, strict=True)):
            if tried == 50:
                raise PrefixError(self._describe(stamps, newest))
            tried += 1
            self._advance()
        while self._k < at_least and tried < 50:
            # Zero-outs of what is zero already change nothing: the image is the state after them, too.
            tried += 1
            self._advance()
            if not all(np.array_equal(a, b) for a, b in zip(stamps, self._state, strict=True)):
                break
        k = self._k
        for disk, found in enumerate(words):
            step = 1 << 15
            for first in range(0, len(found), step):
                part = found[first : first + step]
                if not np.array_equal(part, content(part[:, 0], disk, first)):
                    raise PrefixError(
                        f"{images[disk]}: contents between sectors {first} and {first + step} are damaged"
                    )
        if k < at_least:
            raise PrefixError(f"the image is the state after {k} writes; {at_least} had completed before")
        return k

    def _describe(self, stamps: Sequence[npt.NDArray[np.uint64]], newest: int) -> str:
        self._restart()
        while self._k < newest:
            self._advance()
        wrong = [
            f"disk {disk} sector {sector}: has write {int(stamp[sector])}, after {newest} writes it is {int(state[sector])}"
            for disk, (stamp, state) in enumerate(zip(stamps, self._state, strict=True))
            for sector in np.flatnonzero(stamp != state)[:5].tolist()
        ]
        total = sum(int((a != b).sum()) for a, b in zip(stamps, self._state, strict=True))
        return (
            f"no prefix: {total} sectors differ from the state after {newest} writes, e.g. {'; '.join(wrong)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--progress", type=Path, required=True)
    parser.add_argument("--rate-mb", type=float, default=0, help="MB/s; 0: full speed")
    parser.add_argument("--seconds", type=float, default=0, help="0: until SIGTERM")
    parser.add_argument("--after", type=int, default=0, help="writes that the disks hold already")
    parser.add_argument("devices", nargs="+")
    options = parser.parse_args()
    sizes = []
    for device in options.devices:
        fd = os.open(device, os.O_RDONLY)
        sizes.append(os.lseek(fd, 0, os.SEEK_END) // SECTOR)
        os.close(fd)
    schedule = Schedule(options.seed, tuple(sizes))
    if not options.progress.exists():
        options.progress.write_bytes(bytes(16))
    write(schedule, options.devices, options.progress, options.rate_mb * 1e6, options.seconds, options.after)
    return 0


if __name__ == "__main__":
    sys.exit(main())

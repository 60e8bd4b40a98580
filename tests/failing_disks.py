"""Disks that fail as real ones do: full, with I/O errors, turned read-only by the kernel."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class Failing(Protocol):
    """A disk of its own at `where`; `fail` makes every write fail from then on, `heal` ends that where it can end."""

    where: Path
    heals: bool

    def fail(self) -> None: ...
    def heal(self) -> None: ...


class Full:
    """ENOSPC: a tmpfs without room, neither for bytes nor for names."""

    heals = True

    def __init__(self, where: Path) -> None:
        self.where = where

    def fail(self) -> None:
        with (self.where / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with contextlib.suppress(OSError):
            for number in itertools.count():
                (self.where / f"filler{number}").touch()

    def heal(self) -> None:
        for filler in self.where.glob("filler*"):
            filler.unlink()


class ReadOnly:
    """EROFS: ext4 that the kernel aborted, as it does after an error. Only a new mount ends that."""

    heals = False

    def __init__(self, where: Path) -> None:
        self.where = where

    def fail(self) -> None:
        subprocess.run(["mount", "-o", "remount,abort", self.where], check=True)

    def heal(self) -> None:
        raise AssertionError("it stays read-only")


@contextlib.contextmanager
def full_disk() -> Iterator[Failing]:
    with _folder() as where:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=64", "none", where], check=True)
        try:
            yield Full(where)
        finally:
            subprocess.run(["umount", where], check=True)


@contextlib.contextmanager
def read_only_disk() -> Iterator[Failing]:
    with _folder() as where:
        image = where.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(32 << 20)
        try:
            subprocess.run(["mkfs.ext4", "-q", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, where], check=True)
            try:
                yield ReadOnly(where)
            finally:
                subprocess.run(["umount", where], check=True)
        finally:
            image.unlink()


FAILING = {"No space left on device": full_disk, "Read-only file system": read_only_disk}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    where = Path("/dev/shm") / f"understudy-disk-{secrets.token_hex(3)}"
    where.mkdir()
    try:
        yield where
    finally:
        where.rmdir()

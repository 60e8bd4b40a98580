"""Loop disks for tests: a backing file in RAM, attached and always detached again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOOP_CTL_ADD: Final = 0x4C80
_LOOP_CTL_REMOVE: Final = 0x4C81


@contextmanager
def loop_disk(backing: Path, size_b: int) -> Iterator[str]:
    """A loop device (e.g. "/dev/loop3") of `size_b` bytes over the sparse file `backing`, which is removed afterwards."""
    with backing.open("wb") as file:
        file.truncate(size_b)
    try:
        with attached(backing) as device:
            yield device
    finally:
        backing.unlink(missing_ok=True)


@contextmanager
def attached(backing: Path, *options: str) -> Iterator[str]:
    """A loop device over a file that exists and stays. `options` are losetup's."""
    device = subprocess.run(
        ["losetup", "--find", "--show", *options, str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def own_device() -> Iterator[str]:
    """A loop device with nothing attached, of a number that `losetup --find` gives nobody while lower ones are free: for tests that
    detach and attach again."""
    number = 500_000 + secrets.randbelow(500_000)
    device = f"/dev/loop{number}"
    with Path("/dev/loop-control").open("rb") as control:
        fcntl.ioctl(control, _LOOP_CTL_ADD, number)
        try:
            yield device
        finally:
            subprocess.run(["losetup", "--detach", device], check=False, stderr=subprocess.DEVNULL)
            with contextlib.suppress(OSError):  # somebody still has it open, or it was removed
                fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)


def remove_device(device: str) -> None:
    """One of `own_device` is no more, as a disk that was pulled out. What is detached may stay in use for a moment."""
    deadline = time.monotonic() + 20
    with Path("/dev/loop-control").open("rb") as control:
        while True:
            try:
                fcntl.ioctl(control, _LOOP_CTL_REMOVE, int(device.removeprefix("/dev/loop")))
            except OSError as exc:
                if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
            else:
                return

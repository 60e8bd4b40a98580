"""Loop disks for tests: a backing file in RAM, attached and always detached again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

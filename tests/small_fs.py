"""A tiny file system of its own for tests: full, read-only, and always unmounted again. Needs root."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_fs(folder: Path, size_b: int = 64 << 10) -> Iterator[Path]:
    """A tmpfs of `size_b` bytes on `folder`, which is made."""
    folder.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_b}", "understudy-test", folder)
    try:
        yield folder
    finally:
        _run("umount", folder)


def fill(folder: Path) -> Path:
    """Leave no room; the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
    return ballast


def remount(folder: Path, mode: str) -> None:
    """`ro` or `rw`."""
    _run("mount", "-o", f"remount,{mode}", folder)


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True)

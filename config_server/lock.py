"""The lock of a data folder: one config server at a time. Two would each admit what was revoked at the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared import durable
from shared.errors import DataFolderInUseError

NAME: Final = "config-server.lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Raises DataFolderInUseError, StateFileError."""
    path = folder / NAME
    with durable.named(f"The lock {path} could not be made"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with durable.named(f"The lock {path} could not be taken"):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise DataFolderInUseError(
                    f"The config server was not started on {folder}", cause=f"another one holds {path}"
                ) from exc
        yield
    finally:
        os.close(fd)

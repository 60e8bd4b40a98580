"""The lock of a data folder: one config server at a time. Two would each admit what was revoked at the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.errors import DataFolderInUseError
from shared.host import durable

NAME: Final = "config-server.lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Raises DataFolderInUseError, StateFileError."""
    path = folder / NAME
    with durable.named(f"The lock {path} could not be made"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with _locked(
        fd, fcntl.LOCK_EX, path, f"The config server was not started on {folder}", f"another one holds {path}"
    ):
        yield


@contextlib.contextmanager
def still(folder: Path) -> Iterator[None]:
    """No restore moves the parts meanwhile; a server may run, whose lock is the other one. For backups. Raises as `held`."""
    with _folder_locked(
        folder, fcntl.LOCK_SH, f"The data folder {folder} was not backed up", "it is being restored"
    ):
        yield


@contextlib.contextmanager
def moving(folder: Path) -> Iterator[None]:
    """For the restore, beside `held`. Raises as that."""
    with _folder_locked(
        folder, fcntl.LOCK_EX, f"The data folder {folder} was not restored", "it is being backed up"
    ):
        yield


@contextlib.contextmanager
def _folder_locked(folder: Path, how: int, what: str, cause: str) -> Iterator[None]:
    with durable.named(f"The data folder {folder} could not be locked"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _locked(fd, how, folder, what, cause, action="Run the command again when that is done."):
        yield


@contextlib.contextmanager
def _locked(fd: int, how: int, path: Path, what: str, cause: str, action: str = "") -> Iterator[None]:
    try:
        with durable.named(f"The lock {path} could not be taken"):
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise DataFolderInUseError(what, cause=cause, action=action) from exc
        yield
    finally:
        os.close(fd)

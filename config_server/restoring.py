"""The data folder from a backup (backup.py). Everything of the folder is moved aside first; until it is done the server does not start
there (`restoring`)."""

from __future__ import annotations

import contextlib
import datetime as dt
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from config_server import lock
from config_server.backup import PARTS, as_owner, check
from config_server.belonging import RESTORING
from config_server.config import ConfigServerConfig
from config_server.database import DATABASE_FILE
from shared import durable
from shared.crashpoints import reach
from shared.errors import ConfigError, DataFolderInUseError, StateFileError

_BESIDE: Final = (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm")


def restore(config: ConfigServerConfig, source: Path) -> Path | None:
    """Puts the parts of a backup into the data folder; where what was there is now. Killed anywhere it is run again. Raises ConfigError,
    StateFileError, DataFolderInUseError."""
    parts = _read(source)
    check(parts, f"Nothing was restored from {source}")
    folder = config.data_dir
    with durable.named(f"The data folder {folder} could not be restored", action="Run the command again."):
        durable.make_folder(folder)
        with as_owner(folder), _held(folder):
            durable.replace_file(folder / RESTORING, b"")
            aside = _set_aside(folder)
            for name, mode in PARTS.items():
                reach("restore.part")
                durable.replace_file(folder / name, parts[name], mode=mode)
            reach("restore.part")
            (folder / RESTORING).unlink()
            durable.sync_folder(folder)
    return aside


def _read(source: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(source) as archive:
            members = {name: archive.extractfile(name) for name in PARTS}
            return {name: file.read() for name, file in members.items() if file is not None}
    except OSError as exc:
        raise StateFileError(f"The backup {source} could not be read", cause=str(exc)) from exc
    except (tarfile.TarError, KeyError) as exc:
        raise ConfigError(
            f"{source} is no backup of a config server",
            cause=str(exc),
            action="Give a file that `python -m config_server backup` wrote.",
        ) from exc


def _set_aside(folder: Path) -> Path | None:
    """Moves whatever a backup replaces into a folder of its own: the old write-ahead log goes with its database."""
    there = [name for name in (*_BESIDE, *PARTS) if (folder / name).exists()]
    if not there:
        return None
    aside = folder / f"replaced-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}"
    durable.make_folder(aside)
    for name in there:
        reach("restore.part")
        (folder / name).rename(aside / name)
    durable.sync_folder(aside)
    durable.sync_folder(folder)
    return aside


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(folder))
        except DataFolderInUseError as exc:
            raise DataFolderInUseError(
                f"The data folder {folder} was not restored",
                cause=exc.cause,
                action="Stop the config server first (systemctl stop understudy-config-server).",
            ) from exc
        yield

"""The data folder from a backup (backup.py), with what must end in a database that is put back (restored.py).

What is there is moved aside first, into one folder: a database parted from its write-ahead log is valid, and lacks its last commits. The
file `restoring` says how far it is, and a second run, of whatever backup, goes on there; until it is done the server does not start.

    restoring: {aside, moved: false}   what is there is moved to `aside`: each file is in one of the two places, whole
    restoring: {aside, moved: true}    `aside` holds all that was there; what lies in the folder itself comes from a backup, and gives way
    none                               all parts are of one backup
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from config_server import audit, database, lock, restored, tokens
from config_server.backup import PARTS, as_owner, check
from config_server.belonging import OPERATOR, RESTORING, TOKEN_FILE
from config_server.config import ConfigServerConfig
from config_server.database import DATABASE_FILE
from config_server.restored import Restored
from config_server.view import SELF
from shared import decoding, durable
from shared.crashpoints import reach
from shared.errors import UNDECODABLE, ConfigError, DataFolderInUseError, StateFileError

_BESIDE: Final = (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm")
_MOST_B: Final = {name: 1 << 20 for name in PARTS} | {DATABASE_FILE: 1 << 31}
"""It is read into memory; SQLite takes no larger database from there."""


class _Stage(msgspec.Struct, frozen=True):
    aside: str
    """A folder in the data folder; empty where nothing was there."""
    moved: bool = False


class Done(NamedTuple):
    aside: Path | None
    """Where what was there is now."""
    restored: Restored


def restore(config: ConfigServerConfig, source: Path, *, new_operator_token: bool = False) -> Done:
    """Puts the parts of a backup into the data folder. Killed anywhere it is run again. Raises ConfigError, StateFileError,
    DataFolderInUseError."""
    parts = _read(source)
    check(parts, f"Nothing was restored from {source}")
    if new_operator_token:
        parts[TOKEN_FILE] = tokens.new_operator_token().encode() + b"\n"
    try:
        parts[DATABASE_FILE], found = _prepared(
            parts[DATABASE_FILE], parts[TOKEN_FILE], new=new_operator_token
        )
    except sqlite3.Error as exc:  # whole, and not what a config server of any version wrote
        raise ConfigError(
            f"Nothing was restored from {source}", cause=str(exc), action="Take another backup."
        ) from exc
    return Done(put(config.data_dir, parts), found)


def put(folder: Path, parts: dict[str, bytes]) -> Path | None:
    """Where what was there is now. Raises StateFileError, DataFolderInUseError."""
    with durable.named(f"The data folder {folder} could not be restored", action="Run the command again."):
        durable.make_folder(folder)
        with as_owner(folder), _held(folder):
            stage = _stage(folder)
            if not stage.moved:
                _set_aside(folder, stage)
            for name, mode in PARTS.items():
                reach("restore.part")
                durable.replace_file(folder / name, parts[name], mode=mode)
            reach("restore.part")
            (folder / RESTORING).unlink()
            durable.sync_folder(folder)
    return folder / stage.aside if stage.aside else None


def _prepared(data: bytes, token: bytes, *, new: bool) -> tuple[bytes, Restored]:
    """The database as it shall be put in place: of this version, and with what must end. Raises ConfigError."""
    now_ns = time.time_ns()
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        db.deserialize(data)
        database.migrate(db, "of the backup")
        db.execute("BEGIN")
        found = restored.prepare(db, now_ns)
        if new:
            tokens.set_operator(db, OPERATOR, token.decode().strip(), now_ns)
            audit.add(db, SELF, "operator.token", OPERATOR, {}, now_ns)
        db.execute("COMMIT")
        return db.serialize(), found


def _read(source: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(source, mode="r:") as archive:
            return _members(archive)
    except OSError as exc:
        raise StateFileError(f"The backup {source} could not be read", cause=str(exc)) from exc
    except (tarfile.TarError, EOFError, *UNDECODABLE) as exc:
        raise ConfigError(
            f"{source} is no backup of a config server",
            cause=str(exc),
            action="Give a file that `python -m config_server backup` wrote; if it was compressed since, unpack it first.",
        ) from exc


def _members(archive: tarfile.TarFile) -> dict[str, bytes]:
    """Nothing but the parts, each once, as plain files: they are read, not unpacked. Raises ValueError for others."""
    parts: dict[str, bytes] = {}
    for member in archive:
        file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
        if member.name not in PARTS or member.name in parts or file is None:
            raise ValueError(f"it holds {member.name!r}, which is no part of one, or none as it should be")
        if member.size > _MOST_B[member.name]:
            raise ValueError(f"{member.name} has {member.size} bytes, which is more than one can have")
        parts[member.name] = file.read()
    if missing := PARTS.keys() - parts.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return parts


def _stage(folder: Path) -> _Stage:
    """How far an earlier run came; else this one begins."""
    with contextlib.suppress(FileNotFoundError, *UNDECODABLE):  # empty: an earlier version's
        return decoding.decode((folder / RESTORING).read_bytes(), type=_Stage)
    aside = f"replaced-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}"
    stage = _Stage(aside if _there(folder) else "")
    _note(folder, stage)
    return stage


def _note(folder: Path, stage: _Stage) -> None:
    durable.replace_file(folder / RESTORING, msgspec.json.encode(stage))


def _there(folder: Path) -> list[str]:
    """What a backup replaces; the log is named before its database."""
    return [name for name in (*_BESIDE, *PARTS) if os.path.lexists(folder / name)]


def _set_aside(folder: Path, stage: _Stage) -> None:
    if stage.aside:
        aside = folder / stage.aside
        durable.make_folder(aside)
        for name in _there(folder):
            reach("restore.part")
            (folder / name).rename(aside / name)
        durable.sync_folder(aside)
        durable.sync_folder(folder)
    reach("restore.part")
    _note(folder, msgspec.structs.replace(stage, moved=True))


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

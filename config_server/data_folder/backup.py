"""`python -m config_server backup` and `restore`: the data folder as one file, and back.

What cannot be made again: the CA, the database, the operator token. They belong together, and are only taken and given back
together. A file copy of a database that is in use is none (what was committed last is in `state.db-wal`), and a database beside
another one's `-wal` is damaged by it. So the database is read through SQLite, while the server runs, and a restore moves everything
of the folder aside first; until it is done the server does not start there, and nothing is backed up (`restoring`).

Both run as root or as the config server's user: whatever they touch in the data folder, they do as its owner.
"""

from __future__ import annotations

import contextlib
import io
import sqlite3
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from config_server.config import ConfigServerConfig
from config_server.data_folder import lock
from config_server.data_folder.belonging import PARTS, TOKEN_FILE, check_folder, check_parts
from config_server.identity.ca import CertificateAuthority
from config_server.store import sqlite
from config_server.store.files import DATABASE_FILE
from shared.errors import ConfigError
from shared.host import durable
from shared.host.owner import as_owner

_ELSEWHERE: Final = "Give the name of a file, new or an older backup, outside of the data folder."


def backup(config: ConfigServerConfig, target: Path) -> int:
    """Puts the data folder's parts into `target`, whole or not at all; its size. Raises StateFileError, DatabaseError, ConfigError,
    DataFolderInUseError."""
    folder = config.data_dir
    refuse_elsewhere(config, "Nothing was backed up")
    target = _place(target, folder)
    with durable.named(f"The data folder {folder} could not be read"), as_owner(folder):
        parts = parts_of(folder)
    check(parts, f"The data folder {folder} was not backed up")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, mode in PARTS.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(parts[name]), mode
            archive.addfile(member, io.BytesIO(parts[name]))
    with durable.named(f"The backup {target} could not be written"):
        durable.replace_file(target, packed.getbuffer(), mode=0o600)
    return packed.tell()


def parts_of(
    folder: Path, database: Callable[[Path], bytes] | None = None, *, has_database: bool = True
) -> dict[str, bytes]:
    """What belongs together of the data folder, by name, while no restore moves it. `database` gives the database in place of the file that
    it is (`has_database`: it is one of this folder). Raises StateFileError, DatabaseError, ConfigError, DataFolderInUseError."""
    with durable.named(f"The data folder {folder} could not be read"), lock.still(folder):
        # A half restored one may have its database, and not the log with the last commits.
        check_folder(folder, has_database=has_database)
        parts = {name: (folder / name).read_bytes() for name in PARTS if name != DATABASE_FILE}
        parts[DATABASE_FILE] = (database or snapshot)(folder / DATABASE_FILE)
    return parts


def refuse_elsewhere(config: ConfigServerConfig, what: str) -> None:
    """A backup is of a database in the data folder. Raises ConfigError for another one."""
    if not config.database.is_file:
        raise ConfigError(
            what,
            cause=f"the database is not in {config.data_dir}: it is {config.database.place}",
            action="Stop the config server; take pg_dump of the database, and a copy of ca.key, ca.pem and operator.token, which belong"
            " to it (docs/operations/database.md).",
        )


def _place(target: Path, folder: Path) -> Path:
    """Where links lead, if a file can be put there. Raises ConfigError: what is a pipe or a device would be replaced by a file of private
    keys, and one in the data folder be part of it, or in the place of the database."""
    what = f"No backup was written to {target}"
    try:
        place = target.resolve()
        exists, is_file = target.exists(), place.is_file()  # (/dev/stdout leads to no name of its pipe)
        is_inside = place.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as exc:  # (links in a circle)
        raise ConfigError(what, cause=str(exc), action=_ELSEWHERE) from exc
    if exists and not is_file:
        raise ConfigError(what, cause=f"{place} is no regular file", action=_ELSEWHERE)
    if is_inside:
        raise ConfigError(what, cause=f"{place} lies in the data folder {folder}", action=_ELSEWHERE)
    return place


def snapshot(path: Path) -> bytes:
    """The database as it is at one moment, whoever writes to it."""
    try:
        with contextlib.closing(sqlite.copied(path)) as copy:
            return sqlite.serialised(copy)
    except sqlite3.Error as exc:
        raise sqlite.translated(exc, path) from exc


def check(parts: Mapping[str, bytes], what: str) -> None:
    """Raises ConfigError where the parts do not belong together, or one cannot be read."""
    try:
        ca = CertificateAuthority.loaded(parts["ca.key"], parts["ca.pem"])
        with sqlite.of_bytes(parts[DATABASE_FILE]) as db:
            sqlite.check(sqlite.raw_of(db), thoroughly=True)
            check_parts(db, ca, parts[TOKEN_FILE])
    except (*sqlite.ERRORS, ValueError, TypeError) as exc:
        raise ConfigError(what, cause=str(exc), action="Take another backup.") from exc
    except ConfigError as exc:
        raise ConfigError(what, cause=f"{exc.what}: {exc.cause}", action="Take another backup.") from exc

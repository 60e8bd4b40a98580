"""`python -m config_server backup` and `restore`: the data folder as one file, and back.

What cannot be made again: the CA, the database, the operator token. They belong together, and are only taken and given back
together. A file copy of a database that is in use is none (what was committed last is in `state.db-wal`), and a database beside
another one's `-wal` is damaged by it. So the database is read through SQLite, while the server runs, and a restore moves everything
of the folder aside first; until it is done the server does not start there (`restoring`).

Both run as root or as the config server's user: whatever they touch in the data folder, they do as its owner.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import io
import os
import sqlite3
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from config_server import database, lock
from config_server.belonging import RESTORING, TOKEN_FILE, check_parts
from config_server.ca import CertificateAuthority
from config_server.config import ConfigServerConfig
from config_server.database import DATABASE_FILE, translated
from shared import durable
from shared.crashpoints import reach
from shared.errors import ConfigError, DataFolderInUseError, StateFileError, UnderstudyError
from shared.service import load_config

PARTS: Final = {"ca.key": 0o600, "ca.pem": 0o644, DATABASE_FILE: 0o600, TOKEN_FILE: 0o600}
"""In a backup, and with which modes they go back."""
_BESIDE: Final = (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm")
_JOURNAL_MODE: Final = slice(18, 20)
"""In the header of a database: 2, 2 while it has a write-ahead log, which a backup has not."""


def backup(config: ConfigServerConfig, target: Path) -> int:
    """Puts the data folder's parts into `target`, whole or not at all; its size. Raises StateFileError, DatabaseError, ConfigError."""
    folder = config.data_dir
    with durable.named(f"The data folder {folder} could not be read"), _as_owner(folder):
        parts = {name: (folder / name).read_bytes() for name in PARTS if name != DATABASE_FILE}
        parts[DATABASE_FILE] = snapshot(folder / DATABASE_FILE)
    _check(parts, f"The data folder {folder} was not backed up")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, mode in PARTS.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(parts[name]), mode
            archive.addfile(member, io.BytesIO(parts[name]))
    with durable.named(f"The backup {target} could not be written"):
        durable.replace_file(target, packed.getbuffer(), mode=0o600)
    return packed.tell()


def restore(config: ConfigServerConfig, source: Path) -> Path | None:
    """Puts the parts of a backup into the data folder; where what was there is now. Killed anywhere it is run again. Raises ConfigError,
    StateFileError, DataFolderInUseError."""
    parts = _read(source)
    _check(parts, f"Nothing was restored from {source}")
    folder = config.data_dir
    with durable.named(f"The data folder {folder} could not be restored", action="Run the command again."):
        durable.make_folder(folder)
        with _as_owner(folder), _held(folder):
            durable.replace_file(folder / RESTORING, b"")
            aside = _set_aside(folder)
            for name, mode in PARTS.items():
                reach("restore.part")
                durable.replace_file(folder / name, parts[name], mode=mode)
            reach("restore.part")
            (folder / RESTORING).unlink()
            durable.sync_folder(folder)
    return aside


def snapshot(path: Path) -> bytes:
    """The database as it is at one moment, whoever writes to it."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            found = bytearray(copy.serialize())
    except sqlite3.Error as exc:
        raise translated(exc, path) from exc
    found[_JOURNAL_MODE] = b"\x01\x01"
    return bytes(found)


def _check(parts: Mapping[str, bytes], what: str) -> None:
    """Raises ConfigError where the parts do not belong together, or one cannot be read."""
    try:
        ca = CertificateAuthority.loaded(parts["ca.key"], parts["ca.pem"])
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.row_factory = sqlite3.Row
            db.deserialize(parts[DATABASE_FILE])
            database.check(db, thoroughly=True)
            check_parts(db, ca, parts[TOKEN_FILE])
    except (sqlite3.Error, ValueError, TypeError) as exc:
        raise ConfigError(what, cause=str(exc), action="Take another backup.") from exc
    except ConfigError as exc:
        raise ConfigError(what, cause=f"{exc.what}: {exc.cause}", action="Take another backup.") from exc


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


@contextlib.contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """Root would leave files that the server's user cannot open."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def main(verb: str, argv: list[str]) -> int:
    way, says = ("to", "file to write") if verb == "backup" else ("from", "file that `backup` wrote")
    parser = argparse.ArgumentParser(
        prog=f"python -m config_server {verb}", description="The data folder as one file."
    )
    parser.add_argument("--config", type=Path, required=True, help="config-server.toml")
    parser.add_argument(f"--{way}", dest="file", type=Path, required=True, metavar="FILE", help=says)
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, ConfigServerConfig)
        if verb == "backup":
            size_b = backup(config, options.file)
            print(
                f"{config.data_dir} is backed up in {options.file} ({size_b} bytes). It holds private keys."
            )
        else:
            aside = restore(config, options.file)
            kept = f"; what was there is in {aside}" if aside is not None else ""
            print(f"{config.data_dir} is restored from {options.file}{kept}. Start the config server.")
    except UnderstudyError as exc:
        print(f"config-server: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0

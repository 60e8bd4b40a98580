"""What goes into the control state (FORMAT.md), and what it is of.

The data folder's parts are those of a backup (data_folder/backup.py), but for the database, of which is left out what is said again, or
says nothing on another host (store/whole.py). With the vault file and what of the configuration another host needs they are all that a
config server begins with, beside the account's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, belonging
from config_server.identity.ca import CertificateAuthority
from config_server.rules.ca_renewal import Stage
from config_server.store import ca as stored_ca
from config_server.store import inventory, sqlite, whole
from config_server.store.database import Database
from config_server.store.files import DATABASE_FILE
from shared import decoding
from shared.daemon.threads import in_thread
from shared.errors import UNDECODABLE, CaFilesError, ConfigError
from shared.host import durable
from shared.keys.vault import FileVault
from shared.trust import identity

VAULT: Final = "vault.json"
SETTINGS: Final = "settings.json"
_CA: Final = ("ca.key", "ca.pem")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the configuration (config.py says what each is)."""

    v: int = 1
    name: str
    hosts: tuple[str, ...]
    listen: str
    port: int
    certificate_days: float
    grant_hours: float


class Gathered(NamedTuple):
    parts: dict[str, bytes]
    digest: bytes
    """Of what counts as a change."""


def settings_of(config: ConfigServerConfig) -> Settings:
    return Settings(
        name=config.name,
        hosts=tuple(config.hosts),
        listen=config.listen,
        port=config.port,
        certificate_days=config.certificate_days,
        grant_hours=config.grant_hours,
    )


async def digest(db: Database, config: ConfigServerConfig, vault: FileVault) -> bytes:
    """Another one when something has changed that is worth keeping. Raises DatabaseError, StateFileError."""
    files = await in_thread(_files, config, vault) | await in_thread(_of_ca, config)
    return _whole_digest(await db.aside(whole.digest), files)


async def gathered(db: Database, config: ConfigServerConfig, vault: FileVault) -> Gathered:
    """All of it, of one moment of the database, and checked as a backup is: a state that could not be put back is none. Raises
    DatabaseError, StateFileError, ConfigError, CaFilesError, DataFolderInUseError."""

    def read(opened: Connection) -> tuple[bytes, bytes]:
        return whole.digest(opened), whole.as_sqlite(opened)

    of_database, copy = await db.aside(read)
    return await in_thread(_gathered, config, vault, of_database, copy)


def _gathered(config: ConfigServerConfig, vault: FileVault, of_database: bytes, copy: bytes) -> Gathered:
    parts = backup.parts_of(config.data_dir, lambda _path: copy, has_database=config.database.is_file)
    backup.check(parts, "The control state was not put into storage")
    _check_ca(parts)
    files = _files(config, vault)
    return Gathered(parts | files, _whole_digest(of_database, files | {name: parts[name] for name in _CA}))


def _check_ca(parts: Mapping[str, bytes]) -> None:
    """Of one moment, whatever this server knew before. Raises CaFilesError where the files lack what the database says signs."""
    with sqlite.of_bytes(parts[DATABASE_FILE]) as db:
        renewal = stored_ca.renewal(db)
    if renewal is None or renewal.stage not in (Stage.SWITCHED, Stage.DROPPED):
        return
    ca = CertificateAuthority.loaded(*(parts[name] for name in _CA))
    if not ca.has_key_of(identity.only_certificate(renewal.new)):
        raise CaFilesError(
            "The control state was not put into storage",
            cause="this server has not the key of the CA by which daemons have certificates: whoever began with it would lock them out",
        )


def _of_ca(config: ConfigServerConfig) -> dict[str, bytes]:
    """They change while the CA is renewed, and not in one moment with the database."""
    with durable.named(f"The data folder {config.data_dir} could not be read"):
        return {name: (config.data_dir / name).read_bytes() for name in _CA}


def _files(config: ConfigServerConfig, vault: FileVault) -> dict[str, bytes]:
    with durable.named(f"The vault file {vault.path} could not be read"):
        return {VAULT: vault.path.read_bytes(), SETTINGS: msgspec.json.encode(settings_of(config))}


def _whole_digest(of_database: bytes, files: Mapping[str, bytes]) -> bytes:
    found = hashlib.blake2b(of_database, digest_size=16)
    for name in sorted(files):
        found.update(hashlib.blake2b(files[name]).digest())
    return found.digest()


class Content(NamedTuple):
    """What a state holds, as it is put back."""

    folder: dict[str, bytes]
    """The data folder's parts."""
    vault: bytes
    settings: Settings
    machines: list[str]


def content(parts: Mapping[str, bytes], what: str) -> Content:
    """`what`: where the state is from, for errors. Raises ConfigError for one that cannot be put back."""
    if missing := {*belonging.PARTS, VAULT, SETTINGS} - parts.keys():
        raise ConfigError(what, cause=f"it lacks {', '.join(sorted(missing))}", action=_OLDER)
    folder = {name: parts[name] for name in belonging.PARTS}
    backup.check(folder, what)
    try:
        found = decoding.decode(parts[SETTINGS], type=Settings)
        with sqlite.of_bytes(folder[DATABASE_FILE]) as db:
            sqlite.migrate(db, "of the control state")
            machines = [machine.name for machine in inventory.machines(db)]
    except (*sqlite.ERRORS, *UNDECODABLE) as exc:
        raise ConfigError(what, cause=str(exc), action=_OLDER) from exc
    return Content(folder, parts[VAULT], found, machines)


_OLDER: Final = "Take an older one (--generation N), if there is any, or an older version of the blob; or a backup of the config server."

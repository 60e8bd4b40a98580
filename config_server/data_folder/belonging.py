"""Whether what lies in a data folder is whole, and of one installation: a server that starts on an empty, damaged or foreign database
admits who was revoked, without a word."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from config_server.identity.ca import CertificateAuthority
from config_server.store import ca as stored_ca
from config_server.store import certificates, operators, replicas
from config_server.store.database import Connection
from config_server.store.files import DATABASE_FILE, RESTORE, WITHOUT_BACKUP
from config_server.store.files import TOKEN_FILE as TOKEN_FILE
from shared import decoding
from shared.errors import UNDECODABLE, ConfigError
from shared.trust import anchors

PARTS: Final = {"ca.key": 0o600, "ca.pem": 0o644, DATABASE_FILE: 0o600, TOKEN_FILE: 0o600}
"""In a backup, and with which modes they go back."""
LOGS: Final = tuple(f"{DATABASE_FILE}-{log}" for log in ("wal", "shm", "journal"))
"""SQLite applies them to whatever database they lie beside; a restored one has the last until its server made the first."""
OPERATOR: Final = "admin"
"""Whose it is."""
RESTORING: Final = "restoring"
"""In the data folder, while a restore of it is not done."""


class Stage(msgspec.Struct, frozen=True):
    """The file `restoring` (restoring.py)."""

    aside: str
    """A folder in the data folder, made when something is moved there; empty: an earlier version found nothing to move."""
    moved: bool = False
    names: tuple[str, ...] | None = None
    """What was there; None: an earlier version did not say."""

    @property
    def since(self) -> str:
        """How the names of the folders begin in which is what was not there."""
        return f"since-{self.aside.removeprefix('replaced-')}-"


def stage_of(folder: Path) -> Stage | None:
    """None where no restore is under way, or an earlier version began it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, *UNDECODABLE):
        return decoding.decode((folder / RESTORING).read_bytes(), type=Stage)
    return None


def there(folder: Path) -> list[str]:
    """What a restore replaces; a log is named before its database."""
    return [name for name in (*LOGS, *PARTS) if os.path.lexists(folder / name)]


def came_since(folder: Path, stage: Stage) -> list[str]:
    """Of what is there, that which was not before the restore: a backup's, or somebody made it or put it there. The rest is what is not
    aside yet, or was moved back by hand. A log is its database's; one without a database was moved back before it, or is nobody's."""
    aside, names = folder / stage.aside, stage.names
    found = there(folder)

    def was_there(name: str) -> bool:
        if os.path.lexists(aside / name):
            return False
        if name in LOGS and DATABASE_FILE in found:
            return was_there(DATABASE_FILE)
        if stage.moved and not aside.is_dir():
            return False  # somebody has removed it: what is here may be all that is left, or a backup's
        if name in LOGS:
            return name in (names or ())
        return not stage.moved or names is None or name in names

    return [name for name in found if not was_there(name)]


def way_back(folder: Path) -> str:
    """Of a data folder that is half restored, for people: nothing that they move goes over what lies there."""
    with contextlib.suppress(OSError):
        stage = stage_of(folder)
        if stage is None or not stage.aside:
            return ""
        aside, since, mark = folder / stage.aside, came_since(folder, stage), folder / RESTORING
        if stage.moved and stage.names != () and not aside.is_dir():
            return f" What was there is not in {aside} any more; if somebody moved all of it back, delete {mark}."
        steps = [f"move {', '.join(since)} away from {folder} (of a backup, or came since)"] if since else []
        if aside.is_dir():
            steps.append(f"move all files from {aside} to {folder}, state.db first, and its logs with it")
        return f" Or, to have back what was there: {'; '.join([*steps, f'delete {mark} last'])}."
    return ""


def check_folder(folder: Path, *, has_database: bool = True) -> None:
    """The operator token is written last: where it is, there was a database. A new one in its place would admit every certificate
    that was ever revoked. `has_database`: it is a file of this folder. Raises ConfigError."""
    if os.path.lexists(folder / RESTORING):
        raise ConfigError(
            f"The data folder {folder} is half restored",
            cause="the restore was cut off",
            action=f"Run it again: {RESTORE}.{way_back(folder)}",
        )
    if not has_database:
        if (folder / DATABASE_FILE).exists():
            raise ConfigError(
                f"The data folder {folder} has a database of its own",
                cause=f"the configuration names another one ([database]), and what is in {DATABASE_FILE} would be forgotten: also who was"
                " revoked",
                action="Leave [database] out. Data cannot be brought from one to the other yet.",
            )
    elif (folder / TOKEN_FILE).exists() and not (folder / DATABASE_FILE).exists():
        raise ConfigError(
            f"The database {folder / DATABASE_FILE} is gone",
            cause=f"the installation is not new ({TOKEN_FILE} is there); an empty database would know no machine, and would admit"
            " every certificate that was revoked",
            action=f"Restore a backup: {RESTORE}. {WITHOUT_BACKUP}",
        )


def check_parts(
    db: Connection, ca: CertificateAuthority, token: bytes | None, *, is_noted: bool = False
) -> None:
    """`is_noted`: beside the vault it stands that this is the CA. Raises ConfigError where the database is not that of this CA and this
    operator token (None: there is none, and a new one is made)."""
    pem = certificates.newest_pem(db)
    if pem is not None and not _is_of(pem, ca, db) and not (is_noted and _is_behind(db, ca, token)):
        raise ConfigError(
            "The database and the CA are of two installations",
            cause="the last certificate in state.db was issued by another CA than ca.pem",
            action=f"Restore a backup, which has both: {RESTORE}. Of several config servers, where the CA was renewed while this one was"
            " away: copy ca.key and ca.pem from the data folder of one that runs (docs/operations/keys.md).",
        )
    if token is None or operators.is_first(db, token.decode(errors="replace").strip()):
        return
    if not operators.has_any(db):
        raise ConfigError(
            "The database is empty",
            cause=f"the installation is not new ({TOKEN_FILE} is there); it would know no machine, and would admit every certificate that"
            " was revoked",
            action=f"Restore a backup: {RESTORE}. {WITHOUT_BACKUP}",
        )
    raise ConfigError(
        "The database does not belong to this data folder",
        cause=f"it does not know the token in {TOKEN_FILE}: the two are of different times, or of two installations",
        action=f"Restore a backup, which has both: {RESTORE}. If the database is the right one, and somebody changed {TOKEN_FILE}:"
        " delete that file, and the next start writes a new token.",
    )


def check_beside(db: Connection, token: bytes | None) -> None:
    """Raises ConfigError for a folder that was not given what is the same on each host, while other servers use the database: this one
    would make another operator's token, and end theirs."""
    if token is None and (others := replicas.living(db)):
        raise ConfigError(
            "This config server has not the files of the others",
            cause=f"{TOKEN_FILE} is not in its data folder, and others use its database: {', '.join(others)}",
            action=f"Copy ca.key, ca.pem and {TOKEN_FILE} from the data folder of one of them, and the vault file"
            " (docs/operations/database.md).",
        )


def _is_behind(db: Connection, ca: CertificateAuthority, token: bytes | None) -> bool:
    """Whether the database is this installation's, by its operator's token, and was put back from before the renewal that made this CA: it
    knows nothing of it. (Of a CA that it knows it has more to say than the files, which are the older ones then.)"""
    if token is None or not operators.is_first(db, token.decode(errors="replace").strip()):
        return False
    found = stored_ca.renewal(db)
    known = (
        () if found is None else (*anchors.loaded(found.old.encode()), *anchors.loaded(found.new.encode()))
    )
    return ca.certificate not in (*known, *stored_ca.former(db))


def _is_of(pem: str, ca: CertificateAuthority, db: Connection) -> bool:
    """Whether it was issued by this CA, or by one that was this installation's before."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return False
    return ca.has_issued(certificate) or anchors.issuer_of(certificate, stored_ca.former(db)) is not None

"""Which CA this installation has, noted beside the vault file: so that a server does not begin anew where it was before.

The vault lies in /etc, the data in /var, often on a file system of its own. Where that is not mounted, or its disk is lost, the data folder
is empty, as that of a first start; but a new CA would lock out every daemon, and an empty database would admit who was revoked. And where
another installation's is mounted in its place, all is whole, and nothing is right. Storage is not asked: it may be away.

    <vault file>.ca    {"v": 1, "ca": the SHA-256 of the CA's certificate, as in enrolment tokens}

It is written after database, CA and operator's token, so whoever is killed before begins as if for the first time. Where the vault file
lies in the data folder, it is lost with it, and says nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from config_server.identity.ca import CERTIFICATE_FILE, CertificateAuthority
from config_server.store.files import DATABASE_FILE, RESTORE
from shared import decoding
from shared.control.enrol import fingerprint
from shared.daemon import logging
from shared.errors import UNDECODABLE, ConfigError, cause_of
from shared.host import durable
from shared.host.owner import as_owner

_log = logging.get()


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """The note."""

    v: int = 1
    ca: str


def note_of(vault_file: Path) -> Path:
    return vault_file.with_name(f"{vault_file.name}.ca")


def noted(vault_file: Path | None) -> str:
    """The CA's fingerprint; "": none is noted. Raises ConfigError."""
    if vault_file is None:
        return ""
    note = note_of(vault_file)
    try:
        return decoding.decode(note.read_bytes(), type=Noted).ca
    except FileNotFoundError:
        return ""
    except (OSError, *UNDECODABLE) as exc:
        raise ConfigError(
            f"The note {note} of this installation's CA cannot be read",
            cause=cause_of(exc) if isinstance(exc, OSError) else str(exc),
            action="Is the data folder this installation's, with all that was in it: delete the note, and it is written anew.",
        ) from exc


def check_there(folder: Path, vault_file: Path | None, *, has_database: bool = True) -> None:
    """Before a CA or database is made. `has_database`: it is a file of this folder. Raises ConfigError where there was one."""
    there = folder / (DATABASE_FILE if has_database else CERTIFICATE_FILE)
    if vault_file is None or there.exists() or not noted(vault_file):
        return
    note = note_of(vault_file)
    raise ConfigError(
        f"The data folder {folder} is gone, or is empty",
        cause=f"the installation is not new ({note} names its CA): a new CA would lock out every daemon, and an empty database would admit"
        " who was revoked",
        action=f"If it lies on a file system of its own: mount that, and start again. If it is lost, restore a backup: {RESTORE}. Without"
        f" a backup: understudy init --new-ca (or delete {note}, and ca.pem where that was left, and start); then every daemon has to be"
        " enrolled anew, and what is replicated stays in storage.",
    )


def check_same(
    folder: Path, ca: CertificateAuthority, vault_file: Path | None, former: Sequence[x509.Certificate] = ()
) -> None:
    """`former`: which were the CA's before, by a database that lies elsewhere: this server may have been away when it was renewed. Raises
    ConfigError where the CA is another one than was noted."""
    if vault_file is None or (found := noted(vault_file)) in ("", *_fingerprints((*ca.trusted, *former))):
        return
    note = note_of(vault_file)
    raise ConfigError(
        f"The CA in {folder} is not the one that this installation had",
        cause=f"its fingerprint is {_fingerprint(ca)}, and {note} has {found}: the daemons that enrolled there trust none of this CA",
        action="If another file system is mounted there, or none: mount the right one, and start again. If a server has begun anew in an"
        f" empty folder: move that away, and restore a backup ({RESTORE}), or put back what was there. If this CA is right:"
        f" understudy init --new-ca (or delete {note}), and start.",
    )


def note(ca: CertificateAuthority, vault_file: Path) -> None:
    """Raises OSError."""
    with as_owner(vault_file.parent):
        durable.replace_file(note_of(vault_file), msgspec.json.encode(Noted(ca=_fingerprint(ca))), mode=0o600)


def note_if_possible(ca: CertificateAuthority, vault_file: Path | None) -> None:
    """A server works without: it may not be allowed to write there."""
    if vault_file is None:
        return
    with contextlib.suppress(ConfigError):  # one that cannot be read is written anew
        if noted(vault_file) == _fingerprint(ca):
            return
    try:
        note(ca, vault_file)
    except OSError as exc:
        _log.warning(
            "the CA was not noted",
            file=str(note_of(vault_file)),
            cause=cause_of(exc),
            action="Let this server write there, or run `understudy init`: without it, it would begin anew in an empty data folder.",
        )


def is_of_this(ca: CertificateAuthority, vault_file: Path | None) -> bool:
    """Whether that which signs now is the noted one. Raises ConfigError."""
    return noted(vault_file) == _fingerprint(ca)


def is_of_another(ca: CertificateAuthority, vault_file: Path | None) -> bool:
    """Whether another one is noted than that which signs now. Raises ConfigError."""
    return vault_file is not None and noted(vault_file) not in ("", _fingerprint(ca))


def _fingerprints(certificates: Sequence[x509.Certificate]) -> list[str]:
    """While it is renewed, either may be noted."""
    return [fingerprint(each.public_bytes(serialization.Encoding.DER)).hex() for each in certificates]


def _fingerprint(ca: CertificateAuthority) -> str:
    return fingerprint(ca.der).hex()

"""Certificates that were issued here, or shown by their owners, and how people see them. Which of them are refused: revocation.py."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, Insert, Row, and_, bindparam, exists, func, insert, or_, select

from config_server.rules.certificates import BACKDATED, fingerprint_of
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import certificates, revocations
from config_server.store.statements import Into, Put
from shared.api.certificates import CertificateView
from shared.errors import NotFoundError
from shared.vocabulary import Role

OF_NAME: Final = (certificates.c.role == bindparam("of_role"), certificates.c.name == bindparam("of_name"))
_NOTE: Final = insert(certificates)
_BEGINS: Final = select(certificates.c.serial, certificates.c.issued_ns).where(*OF_NAME)
_STANDS: Final = exists(
    select(revocations).where(
        revocations.c.subject == bindparam("of_subject"), revocations.c.before_s.is_(None)
    )
)
"""The name is revoked, all of it."""
_KNOWN: Final = select(certificates.c.serial).where(*OF_NAME, ~_STANDS).limit(1)
_ENROLMENTS: Final = select(func.count()).where(
    *OF_NAME, certificates.c.pem != "", certificates.c.renews == ""
)
_LIVING: Final = (
    select(certificates)
    .where(certificates.c.expires_ns > bindparam("now_ns"), certificates.c.pem != "")
    .order_by(certificates.c.issued_ns, certificates.c.rowid)
)
_UNEXPIRED: Final = (
    select(certificates)
    .where(certificates.c.expires_ns > bindparam("now_ns"))
    .order_by(certificates.c.issued_ns, certificates.c.rowid)
)
_NEWEST_PEM: Final = (
    select(certificates.c.pem)
    .where(certificates.c.pem != "")
    .order_by(certificates.c.issued_ns.desc())
    .limit(1)
)
_KEY_OF: Final = (
    select(certificates.c.key).where(certificates.c.serial == bindparam("of_serial")).scalar_subquery()
)
_SAME_KEY: Final = select(certificates.c.serial).where(
    certificates.c.key == _KEY_OF, certificates.c.key != ""
)
_OWN, _NAMES = revocations.alias("own"), revocations.alias("names")
_VIEWS: Final = (
    select(
        certificates,
        func.coalesce(_OWN.c.revoked_ns, _NAMES.c.revoked_ns).label("revoked_ns"),
        func.coalesce(_OWN.c.reason, _NAMES.c.reason).label("reason"),
    )
    .outerjoin(_OWN, _OWN.c.subject == certificates.c.serial)
    .outerjoin(
        _NAMES,
        and_(
            _NAMES.c.subject == certificates.c.role + ":" + certificates.c.name, _NAMES.c.before_s.is_(None)
        ),
    )
    .order_by(certificates.c.issued_ns.desc(), certificates.c.serial)
)
_VIEWS_OF_NAME: Final = _VIEWS.where(*OF_NAME)
_VIEWS_OF_KEY: Final = _VIEWS.where(
    or_(
        certificates.c.serial == bindparam("of_serial"),
        and_(certificates.c.key == _KEY_OF, certificates.c.key != ""),
    )
)
_THAT: Final = certificates.alias("that")
_BEHIND: Final = and_(
    _THAT.c.serial == bindparam("before"),
    or_(
        certificates.c.issued_ns < _THAT.c.issued_ns,
        and_(certificates.c.issued_ns == _THAT.c.issued_ns, certificates.c.serial > _THAT.c.serial),
    ),
)
_NEWEST: Final = _VIEWS.limit(bindparam("most"))
_THERE: Final = select(_THAT.c.serial).where(_THAT.c.serial == bindparam("before"))
_NEXT: Final = _NEWEST.where(exists().where(_BEHIND))


def _presented(into: Into) -> Insert:
    new = into(certificates)
    return new.on_conflict_do_update(
        index_elements=[certificates.c.serial], set_={"key": new.excluded.key}, where=certificates.c.key == ""
    )


_NOTE_PRESENTED: Final = Put(_presented)


class Issued(NamedTuple):
    """A certificate that was issued here."""

    serial: int
    role: Role
    name: str
    key: str
    """The fingerprint of its public key."""
    issued_ns: int
    expires_ns: int
    renews: int = 0
    """The serial number of what it was renewed from; 0 for none."""
    pem: str = ""


def note_certificate(db: Connection, issued: Issued) -> None:
    renews = f"{issued.renews:x}" if issued.renews else ""
    db.execute(_NOTE, {**issued._asdict(), "serial": f"{issued.serial:x}", "renews": renews})


def is_known(db: Connection, role: Role, name: str) -> bool:
    """Whether a certificate of it was ever issued, or shown, here, and it may come: its name does not stand revoked."""
    return (
        db.execute(_KNOWN, {"of_role": role, "of_name": name, "of_subject": f"{role}:{name}"}).first()
        is not None
    )


def enrolments(db: Connection, role: Role, name: str) -> int:
    """How often something was enrolled as it here, with a token each time. No certificate is ever taken out, so the number only rises."""
    found: int = db.execute(_ENROLMENTS, {"of_role": role, "of_name": name}).scalar_one()
    return found


def begins_of(db: Connection, role: str, name: str) -> list[tuple[int, int]]:
    """The serial number of each that is known of it, and when it begins (Unix seconds)."""
    found = db.execute(_BEGINS, {"of_role": role, "of_name": name})
    backdated_s = int(BACKDATED.total_seconds())
    return [(int(row.serial, 16), row.issued_ns // SECOND_NS - backdated_s) for row in found]


def living(db: Connection, now_ns: int) -> list[Issued]:
    """What was issued and has not expired, in that order."""
    return [
        Issued(
            int(row.serial, 16),
            Role(row.role),
            row.name,
            row.key,
            row.issued_ns,
            row.expires_ns,
            int(row.renews or "0", 16),
            row.pem,
        )
        for row in db.execute(_LIVING, {"now_ns": now_ns})
    ]


class Party(NamedTuple):
    """One that may take part."""

    role: Role
    name: str
    serial: int
    begins_s: int
    pem: str
    """Empty: it was shown, and not issued, here."""


def parties(db: Connection, now_ns: int) -> list[Party]:
    """By each certificate that has not expired, issued or shown here, refused or not; in the order in which they were issued."""
    backdated_s = int(BACKDATED.total_seconds())
    return [
        Party(
            Role(row.role), row.name, int(row.serial, 16), row.issued_ns // SECOND_NS - backdated_s, row.pem
        )
        for row in db.execute(_UNEXPIRED, {"now_ns": now_ns})
    ]


def newest_pem(db: Connection) -> str | None:
    """The certificate that was issued last; None: none was."""
    found: str | None = db.scalar(_NEWEST_PEM)
    return found


def note_presented(db: Connection, role: str, name: str, der: bytes) -> None:
    """Of a certificate that its owner shows: one from before keys were noted, or that a database from a backup does not know. What is
    renewed from it shall be refused with it.
    """
    shown = x509.load_der_x509_certificate(der)
    key = shown.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("this CA signs EC keys only")
    # Whole seconds stand in it, and a name may have been revoked in that very one: the readmitted shall not be taken for who was before.
    issued_ns = (_unix_s(shown.not_valid_before_utc + BACKDATED) + 1) * SECOND_NS - 1
    new = {
        "serial": f"{shown.serial_number:x}",
        "role": role,
        "name": name,
        "key": fingerprint_of(key),
        "issued_ns": issued_ns,
        "expires_ns": _unix_s(shown.not_valid_after_utc) * SECOND_NS,
    }
    _NOTE_PRESENTED(db, new)


def _unix_s(time: dt.datetime) -> int:
    return int(time.timestamp())


def same_key(db: Connection, serial: str) -> list[str]:
    """The serial numbers of its key, itself first."""
    return [serial, *(other for other in db.scalars(_SAME_KEY, {"of_serial": serial}) if other != serial)]


def newest(db: Connection, limit: int, before: str = "") -> list[CertificateView]:
    """`before`: the serial number of the last one of the page before. Raises NotFoundError."""
    if not before:
        return _views(db.execute(_NEWEST, {"most": limit}))
    if db.scalar(_THERE, {"before": before}) is None:
        raise NotFoundError(f"Certificate '{before}' was not found")
    return _views(db.execute(_NEXT, {"most": limit, "before": before}))


def of_name(db: Connection, role: str, name: str) -> list[CertificateView]:
    return _views(db.execute(_VIEWS_OF_NAME, {"of_role": role, "of_name": name}))


def of_key(db: Connection, serial: str) -> list[CertificateView]:
    """Those of the key of the certificate with this serial number, itself included."""
    return _views(db.execute(_VIEWS_OF_KEY, {"of_serial": serial}))


def _views(rows: Iterable[Row[Any]]) -> list[CertificateView]:
    return [
        CertificateView(
            serial=row.serial,
            name=f"{row.role}:{row.name}",
            issued=rfc3339(row.issued_ns),
            expires=rfc3339(row.expires_ns),
            revoked=None if row.revoked_ns is None else rfc3339(row.revoked_ns),
            reason=row.reason or "",
        )
        for row in rows
    ]

"""Certificates that were issued, and those of them that are refused.

A revocation names a certificate by its serial number, or a ROLE:NAME. It is entered whether or not this database knows what it
names: it may have been restored from a backup.

A *serial number* stands for the key: whoever has stolen a certificate has its key, and could use every other certificate of that key.
So all of them are refused, earlier ones and those that were renewed from it (a renewal keeps the key, identity.py sees to it), and no
other is issued, neither for a token nor as a renewal.

Of a *name* every certificate is refused, those of which this database knows nothing too, and its tokens are void. Who shall take part
again enrols with a token that was made afterwards: that admits certificates which begin no earlier than the one that he gets, so
older ones stay refused for ever, and of those that are known the serial numbers, too. What was said of a name last, a revocation or a
readmission, holds; so each is given a later time (`revoked_ns`, `readmitted_ns`) than the one before it, whatever the clock did.

What of this is in storage, too, `recorded_revocations` says (revocation_record.py, revoking.py).

How what storage tells of another time is put in order with that, taking_in.py says.

Nothing is ever deleted here because of the time of day: a clock that was ahead for a moment would readmit who was revoked. There are
as many entries as operators made, and as those names and keys had certificates.
"""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.rules.certificates import BACKDATED, fingerprint_of
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.revocations import Record
from config_server.store.restored import mark as mark_of
from shared import decoding
from shared.api.certificates import CertificateView, Revocations
from shared.errors import CertificateRevokedError, RequestError
from shared.naming import SAYS, is_name
from shared.vocabulary import ENROLLED, Role

LAST_NS: Final = "max(revocations.revoked_ns, coalesce(revocations.readmitted_ns, 0))"
"""Of a row: when the last thing was said of its name."""
_SERIAL: Final = re.compile(r"[0-9a-f]{1,40}\Z")


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


def note_certificate(db: sqlite3.Connection, issued: Issued) -> None:
    db.execute(
        "INSERT INTO certificates (serial, role, name, key, issued_ns, expires_ns, renews, pem) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            f"{issued.serial:x}",
            issued.role,
            issued.name,
            issued.key,
            issued.issued_ns,
            issued.expires_ns,
            f"{issued.renews:x}" if issued.renews else "",
            issued.pem,
        ),
    )


def is_known(db: sqlite3.Connection, role: Role, name: str) -> bool:
    """Whether a certificate of it was ever issued, or shown, here, and it may come: its name does not stand revoked."""
    found = db.execute(
        "SELECT 1 FROM certificates WHERE role = ? AND name = ?"
        " AND NOT EXISTS (SELECT 1 FROM revocations WHERE subject = ? AND before_s IS NULL)",
        (role, name, f"{role}:{name}"),
    )
    return found.fetchone() is not None


def last_enrolled(db: sqlite3.Connection, role: Role, name: str) -> int:
    """The number (rowid) of the newest certificate that it was enrolled with here; 0: none."""
    found = "SELECT coalesce(max(rowid), 0) FROM certificates WHERE role = ? AND name = ? AND pem != '' AND renews = ''"
    return int(db.execute(found, (role, name)).fetchone()[0])


def living(db: sqlite3.Connection, now_ns: int) -> list[Issued]:
    """What was issued and has not expired, in that order."""
    rows = db.execute(
        "SELECT * FROM certificates WHERE expires_ns > ? AND pem != '' ORDER BY issued_ns, rowid", (now_ns,)
    )
    return [
        Issued(
            int(row["serial"], 16),
            Role(row["role"]),
            row["name"],
            row["key"],
            row["issued_ns"],
            row["expires_ns"],
            int(row["renews"] or "0", 16),
            row["pem"],
        )
        for row in rows
    ]


def note_presented(db: sqlite3.Connection, role: str, name: str, der: bytes) -> None:
    """Of a certificate that its owner shows: one from before keys were noted, or that a database from a backup does not know. What is
    renewed from it shall be refused with it.
    """
    shown = x509.load_der_x509_certificate(der)
    key = shown.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("this CA signs EC keys only")
    # Whole seconds stand in it, and a name may have been revoked in that very one: the readmitted shall not be taken for who was before.
    issued_ns = (_unix_s(shown.not_valid_before_utc + BACKDATED) + 1) * SECOND_NS - 1
    db.execute(
        "INSERT INTO certificates (serial, role, name, key, issued_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (serial) DO UPDATE SET key = excluded.key WHERE key = ''",
        (
            f"{shown.serial_number:x}",
            role,
            name,
            fingerprint_of(key),
            issued_ns,
            _unix_s(shown.not_valid_after_utc) * SECOND_NS,
        ),
    )


def _unix_s(time: dt.datetime) -> int:
    return int(time.timestamp())


def revoke(
    db: sqlite3.Connection, subject: str, reason: str, now_ns: int, who: str = ""
) -> list[CertificateView]:
    """Refuse the certificate or the ROLE:NAME (see `subject_of`) from now on; what is known of what that covers. Again is harmless."""
    role, colon, name = subject.partition(":")
    if colon:
        db.execute("DELETE FROM tokens WHERE role = ? AND name = ?", (role, name))
        # Later than what it covers, also where the clock was ahead at that time: so it is read from storage.
        [last_ns] = db.execute(
            "SELECT coalesce(max(issued_ns), 0) FROM certificates WHERE role = ? AND name = ?", (role, name)
        ).fetchone()
        now_ns = max(now_ns, last_ns + 1)
        db.execute(
            "INSERT INTO revocations (subject, reason, revoked_ns, who, mark) VALUES (?, ?, ?, ?, ?) ON CONFLICT (subject) DO UPDATE"
            f" SET reason = excluded.reason, revoked_ns = max(excluded.revoked_ns, {LAST_NS} + 1), who = excluded.who,"
            " before_s = NULL, readmitted_ns = NULL, mark = excluded.mark WHERE before_s IS NOT NULL OR mark != excluded.mark",
            (subject, reason, now_ns, who, mark_of_restore(db)),
        )
    else:
        db.executemany(
            "INSERT OR IGNORE INTO revocations (subject, reason, revoked_ns, who) VALUES (?, ?, ?, ?)",
            [(serial, reason, now_ns, who) for serial in _same_key(db, subject)],
        )
    return covered(db, subject)[1]


def covered(db: sqlite3.Connection, subject: str) -> tuple[list[str], list[CertificateView]]:
    """The serial numbers that go with this one, itself included (none for a name); and what is known of all that it covers."""
    role, colon, name = subject.partition(":")
    if colon:
        return [], _views(db, "role = ? AND name = ?", (role, name), -1)
    serials = _same_key(db, subject)
    found = (_views(db, "serial = ?", (serial,), 1) for serial in serials)
    return serials, [view for views in found for view in views]


def _same_key(db: sqlite3.Connection, serial: str) -> list[str]:
    known = "SELECT serial FROM certificates WHERE key = (SELECT key FROM certificates WHERE serial = ?) AND key != ''"
    return [serial, *(row["serial"] for row in db.execute(known, (serial,)) if row["serial"] != serial)]


def rows(db: sqlite3.Connection) -> list[Record]:
    """All, as storage records them."""
    found = db.execute("SELECT subject, reason, who, revoked_ns, mark FROM revocations WHERE revoked_ns > 0")
    records = [decoding.convert(dict(row), Record) for row in found]
    readmitted = db.execute(
        "SELECT subject, readmitted_ns AS revoked_ns, before_s AS begins_s, mark FROM revocations"
        " WHERE readmitted_ns IS NOT NULL AND before_s IS NOT NULL"
    )
    return [*records, *(decoding.convert(dict(row), Record) for row in readmitted)]


def recorded(db: sqlite3.Connection) -> set[str]:
    """The blobs of which this database knows that storage has them, and whose content it has."""
    return {row["blob"] for row in db.execute("SELECT blob FROM recorded_revocations")}


def note_recorded(db: sqlite3.Connection, blobs: Iterable[str]) -> None:
    db.executemany("INSERT OR IGNORE INTO recorded_revocations VALUES (?)", [(blob,) for blob in blobs])


def forget_recorded(db: sqlite3.Connection, blobs: Iterable[str]) -> None:
    """Storage does not have them any more."""
    db.executemany("DELETE FROM recorded_revocations WHERE blob = ?", [(blob,) for blob in blobs])


def readmit(db: sqlite3.Connection, role: str, name: str, serial: int, begins_s: int, now_ns: int) -> None:
    """ROLE:NAME got this certificate for a token that was made after its revocation: only earlier ones stay refused. That is said also
    where the revocation was taken in from storage: whoever was told of it first hand refuses the name until he is told."""
    refuse_known(db, role, name, f"c.serial != '{serial:x}'")
    db.execute(
        f"UPDATE revocations SET before_s = ?, readmitted_ns = max(?, {LAST_NS} + 1), mark = ?"
        " WHERE subject = ? AND readmitted_ns IS NULL",
        (begins_s, now_ns, mark_of_restore(db), f"{role}:{name}"),
    )


def refuse_known(
    db: sqlite3.Connection, role: str, name: str, which: str, until_ns: int | None = None
) -> None:
    """ROLE:NAME stands revoked (and was before `until_ns`): certificates of it that are known, by their serial numbers, too. `which` is a
    condition of this module's own."""
    db.execute(
        "INSERT OR IGNORE INTO revocations (subject, reason, revoked_ns, who) SELECT c.serial, r.reason, r.revoked_ns, r.who"
        " FROM certificates c, revocations r WHERE r.subject = ? AND r.before_s IS NULL AND c.role = ? AND c.name = ?"
        f" AND {which} AND (? IS NULL OR r.revoked_ns < ?)",
        (f"{role}:{name}", role, name, until_ns, until_ns),
    )


def admit_from(db: sqlite3.Connection, role: str, name: str, begins_s: int) -> None:
    """A certificate was issued to ROLE:NAME that begins then. It is good, also if this host's clock was ahead when the name was
    readmitted and has been set right since: that is readmitting it again."""
    db.execute(
        f"UPDATE revocations SET before_s = ?, readmitted_ns = {LAST_NS} + 1, mark = ? WHERE subject = ? AND before_s > ?",
        (begins_s, mark_of_restore(db), f"{role}:{name}", begins_s),
    )


def mark_of_restore(db: sqlite3.Connection) -> str:
    restored = mark_of(db)
    return restored.id if restored is not None else ""


def current(db: sqlite3.Connection) -> Revocations:
    rows = db.execute(
        f"SELECT subject, before_s, {LAST_NS} AS last_ns FROM revocations ORDER BY subject"
    ).fetchall()
    names = [row for row in rows if ":" in row["subject"]]
    return Revocations(
        serials=[row["subject"] for row in rows if ":" not in row["subject"]],
        names=[row["subject"] for row in names if row["before_s"] is None],
        before={row["subject"]: row["before_s"] for row in names if row["before_s"] is not None},
        since={row["subject"]: row["last_ns"] for row in names},
    )


def check(db: sqlite3.Connection, serial: int, name: str, begins_s: int) -> None:
    """Raises CertificateRevokedError for who may not have what this transaction gives."""
    if current(db).covers(serial, name, begins_s):
        raise CertificateRevokedError(f"The certificate of {name} was refused")


def is_refused(db: sqlite3.Connection, role: str, name: str) -> bool:
    """Whether ROLE:NAME is by every certificate of it that is known here: it has to be enrolled anew."""
    revoked, subject = current(db), f"{role}:{name}"
    found = db.execute("SELECT serial, issued_ns FROM certificates WHERE role = ? AND name = ?", (role, name))
    begins = [
        (int(row["serial"], 16), row["issued_ns"] // SECOND_NS - int(BACKDATED.total_seconds()))
        for row in found
    ]
    is_said = subject in revoked.since or bool(begins)
    return is_said and all(revoked.covers(serial, subject, begins_s) for serial, begins_s in begins)


def is_key_revoked(db: sqlite3.Connection, key: str) -> bool:
    """Whether a certificate of this key, as far as it is known here, is refused: then no other of it may be issued."""
    found = db.execute(
        "SELECT 1 FROM certificates c JOIN revocations r"
        " ON r.subject = c.serial OR (r.subject = c.role || ':' || c.name AND r.before_s IS NULL) WHERE c.key = ? AND c.key != ''",
        (key,),
    )
    return found.fetchone() is not None


def newest(db: sqlite3.Connection, limit: int) -> list[CertificateView]:
    return _views(db, "TRUE", (), limit)


def subject_of(certificate: str) -> str:
    """What is revoked by these words. Raises RequestError when they are neither a serial number nor ROLE:NAME."""
    role, colon, name = certificate.partition(":")
    if colon and role in ENROLLED and is_name(name):
        return certificate
    serial = certificate.lower().lstrip("0")
    if not colon and _SERIAL.match(serial):
        return serial
    roles = ", ".join(ENROLLED)
    raise RequestError(
        f"'{certificate}' was not revoked",
        cause=f"it is neither a serial number (hexadecimal) nor ROLE:NAME (the roles are {roles}; {SAYS})",
        action="`understudy certificate list` shows what was issued.",
    )


def _views(db: sqlite3.Connection, which: str, values: tuple[str, ...], limit: int) -> list[CertificateView]:
    """`which` is one of the conditions above, never anybody's input."""
    rows = db.execute(
        "SELECT c.*, r.revoked_ns, r.reason FROM certificates c LEFT JOIN revocations r"
        " ON r.subject = c.serial OR (r.subject = c.role || ':' || c.name AND r.before_s IS NULL)"
        f" WHERE {which}"
        " GROUP BY c.serial ORDER BY c.issued_ns DESC, c.serial LIMIT ?",
        (*values, limit),
    )
    return [
        CertificateView(
            serial=row["serial"],
            name=f"{row['role']}:{row['name']}",
            issued=rfc3339(row["issued_ns"]),
            expires=rfc3339(row["expires_ns"]),
            revoked=None if row["revoked_ns"] is None else rfc3339(row["revoked_ns"]),
            reason=row["reason"] or "",
        )
        for row in rows
    ]

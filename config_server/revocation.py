"""Certificates that were issued, and those of them that are refused.

A revocation names a certificate by its serial number, or a ROLE:NAME: then every certificate of that name is refused, those of which this
database knows nothing (it may have been restored from a backup) too, and its unused tokens are void. Who shall take
part again enrols with a new token: that lifts the revocation of the name and leaves one for each earlier
certificate. An entry never goes: whether a certificate has expired says only a clock, and one that is years ahead would readmit everybody
wherever the clock is right.
"""

from __future__ import annotations

import sqlite3

from config_server.clock import rfc3339
from shared.errors import NotFoundError
from shared.messages import CertificateView, Revocations


def note_certificate(
    db: sqlite3.Connection, serial: int, role: str, name: str, issued_ns: int, expires_ns: int
) -> None:
    db.execute(
        "INSERT INTO certificates VALUES (?, ?, ?, ?, ?)", (f"{serial:x}", role, name, issued_ns, expires_ns)
    )


def revoke(db: sqlite3.Connection, subject: str, reason: str, now_ns: int) -> list[CertificateView]:
    """Refuse the certificate or the ROLE:NAME `subject` from now on; what that covers. Again is harmless. Raises NotFoundError."""
    role, colon, name = subject.partition(":")
    if colon:
        covered = "role = ? AND name = ?"
        values: tuple[str, ...] = (role, name)
        db.execute("DELETE FROM tokens WHERE role = ? AND name = ? AND used_ns IS NULL", values)
        expires_ns = None
    else:
        subject = subject.lower().lstrip("0")
        covered, values = "serial = ?", (subject,)
        row = db.execute("SELECT expires_ns FROM certificates WHERE serial = ?", values).fetchone()
        expires_ns = row["expires_ns"] if row is not None else None
    views = _views(db, covered, values, -1)
    if not views:
        raise NotFoundError(
            f"No certificate of '{subject}' was revoked",
            cause="none was ever issued here under this name or serial number",
            action="`understudy certificate list` shows those that were.",
        )
    db.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, ?)", (subject, reason, now_ns, expires_ns))
    return _views(db, covered, values, -1)


def readmit(db: sqlite3.Connection, role: str, name: str) -> None:
    """ROLE:NAME enrols with a token that was made after its revocation: only its earlier certificates stay refused."""
    subject = f"{role}:{name}"
    db.execute(
        "INSERT OR IGNORE INTO revocations SELECT c.serial, r.reason, r.revoked_ns, c.expires_ns"
        " FROM certificates c, revocations r WHERE r.subject = ? AND c.role = ? AND c.name = ?",
        (subject, role, name),
    )
    db.execute("DELETE FROM revocations WHERE subject = ?", (subject,))


def current(db: sqlite3.Connection) -> Revocations:
    subjects = [row["subject"] for row in db.execute("SELECT subject FROM revocations ORDER BY subject")]
    return Revocations(
        serials=[subject for subject in subjects if ":" not in subject],
        names=[subject for subject in subjects if ":" in subject],
    )


def newest(db: sqlite3.Connection, limit: int) -> list[CertificateView]:
    return _views(db, "TRUE", (), limit)


def _views(db: sqlite3.Connection, which: str, values: tuple[str, ...], limit: int) -> list[CertificateView]:
    """`which` is one of the conditions above, never anybody's input."""
    rows = db.execute(
        "SELECT c.*, r.revoked_ns, r.reason FROM certificates c LEFT JOIN revocations r"
        f" ON r.subject IN (c.serial, c.role || ':' || c.name) WHERE {which}"
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

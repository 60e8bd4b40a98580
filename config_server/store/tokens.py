"""Who may call: the operator token, and one-time enrolment tokens. Only hashes are stored.

An enrolment token is single use: `redeem` marks it in the transaction that checks it, and the database has
one writer, so of two simultaneous uses one is refused. A token whose request was refused for another reason
(a bad certificate request) stays usable, because that transaction is rolled back. Who asks again with the same key gets the same
answer.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from typing import Final

import msgspec

from shared import decoding
from shared.errors import TokenExpiredError, TokenUnknownError, TokenUsedError
from shared.vocabulary import Role

OPERATOR_PREFIX: Final = "uso1."
_WHAT: Final = "The enrolment was refused"


class Grant(msgspec.Struct, frozen=True):
    """What an enrolment token entitles to."""

    role: Role
    name: str
    hosts: tuple[str, ...]


def new_operator_token() -> str:
    return OPERATOR_PREFIX + secrets.token_urlsafe(32)


def set_operator(db: sqlite3.Connection, name: str, token: str, now_ns: int) -> None:
    """From now on `token` is the only one of operator `name`."""
    db.execute("INSERT OR REPLACE INTO operators VALUES (?, ?, ?)", (name, _operator_hash(token), now_ns))


def operator_of(db: sqlite3.Connection, token: str) -> str | None:
    """The operator to whom `token` belongs."""
    given = _operator_hash(token)
    for row in db.execute("SELECT name, hash FROM operators"):
        if hmac.compare_digest(given, row["hash"]):
            return str(row["name"])
    return None


def add(db: sqlite3.Connection, token_hash: bytes, grant: Grant, now_ns: int, expires_ns: int) -> None:
    """Register an enrolment token; forgets those that are long over and not among the newest (the clock may be years ahead)."""
    db.execute(
        "DELETE FROM tokens WHERE expires_ns < ? AND rowid <= (SELECT max(rowid) FROM tokens) - 1000",
        (now_ns - 30 * 86_400 * 1_000_000_000,),
    )
    db.execute(
        "INSERT INTO tokens (hash, role, name, hosts, created_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?)",
        (token_hash, grant.role, grant.name, msgspec.json.encode(grant.hosts).decode(), now_ns, expires_ns),
    )


def make_void(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """All that were not used; role and name of each."""
    unused = [
        (row["role"], row["name"])
        for row in db.execute("SELECT role, name FROM tokens WHERE used_ns IS NULL")
    ]
    db.execute("DELETE FROM tokens WHERE used_ns IS NULL")
    return unused


class Answered(msgspec.Struct, frozen=True):
    """What the token was exchanged for."""

    grant: Grant
    certificate: str


def answered(db: sqlite3.Connection, token_hash: bytes, key: str, now_ns: int) -> Answered | None:
    """The answer that was given already for this token and this key (its fingerprint), until the token expires: it may not have
    arrived, or its receiver may have died. Nobody else can use it."""
    row = db.execute(
        "SELECT * FROM tokens WHERE hash = ? AND used_ns IS NOT NULL AND key = ? AND key != '' AND expires_ns > ?",
        (token_hash, key, now_ns),
    ).fetchone()
    return Answered(_grant(row), row["certificate"]) if row else None


def note_answer(db: sqlite3.Connection, token_hash: bytes, key: str, certificate: str) -> None:
    db.execute("UPDATE tokens SET key = ?, certificate = ? WHERE hash = ?", (key, certificate, token_hash))


def exists(db: sqlite3.Connection, token_hash: bytes) -> bool:
    return db.execute("SELECT 1 FROM tokens WHERE hash = ?", (token_hash,)).fetchone() is not None


def redeem(db: sqlite3.Connection, token_hash: bytes, now_ns: int) -> Grant:
    """Use the token up. Raises TokenUnknownError, TokenUsedError or TokenExpiredError."""
    row = db.execute("SELECT * FROM tokens WHERE hash = ?", (token_hash,)).fetchone()
    if row is None:
        raise TokenUnknownError(_WHAT)
    if row["used_ns"] is not None:
        raise TokenUsedError(_WHAT)
    if row["expires_ns"] <= now_ns:
        raise TokenExpiredError(_WHAT)
    db.execute("UPDATE tokens SET used_ns = ? WHERE hash = ?", (now_ns, token_hash))
    return _grant(row)


def _grant(row: sqlite3.Row) -> Grant:
    return Grant(Role(row["role"]), row["name"], decoding.decode(row["hosts"], type=tuple[str, ...]))


def subject_of(db: sqlite3.Connection, token_hash: bytes) -> str:
    """ROLE:NAME that the token was made for, usable or not; "" when it is not known."""
    row = db.execute("SELECT role, name FROM tokens WHERE hash = ?", (token_hash,)).fetchone()
    return f"{row['role']}:{row['name']}" if row else ""


def _operator_hash(token: str) -> bytes:
    return hashlib.sha256(b"understudy operator\0" + token.encode(errors="surrogateescape")).digest()

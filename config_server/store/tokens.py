"""One-time enrolment tokens. Only hashes are stored.

An enrolment token is single use: `redeem` marks it in the transaction that checks it, so of two simultaneous
uses one is refused. A token whose request was refused for another reason
(a bad certificate request) stays usable, because that transaction is rolled back. Who asks again with the same key gets the same
answer.
"""

from __future__ import annotations

import string
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import tokens
from config_server.store.statements import BEHIND_ALL
from shared import decoding
from shared.api.certificates import TokenView
from shared.errors import NotFoundError, RequestError, TokenExpiredError, TokenUnknownError, TokenUsedError
from shared.vocabulary import Role

_WHAT: Final = "The enrolment was refused"
_KEPT: Final = 1000
"""As many tokens are kept, however old they are."""

_BY_HASH: Final = tokens.c.hash == bindparam("token_hash")
_FIND: Final = select(tokens).where(_BY_HASH)
_ADD: Final = insert(tokens)
_FORGET_OLD: Final = delete(tokens).where(
    tokens.c.expires_ns < bindparam("until_ns"),
    tokens.c.rowid <= select(func.max(tokens.c.rowid)).scalar_subquery() - _KEPT,
)
_UNUSED: Final = (
    select(tokens.c.role, tokens.c.name).where(tokens.c.used_ns.is_(None)).order_by(tokens.c.rowid)
)
_FORGET_UNUSED: Final = delete(tokens).where(tokens.c.used_ns.is_(None))
_USE: Final = update(tokens).where(_BY_HASH).values(used_ns=bindparam("now_ns"))
_ANSWER: Final = update(tokens).where(_BY_HASH)
_NEWEST: Final = (
    select(tokens)
    .where(tokens.c.rowid < bindparam("before"))
    .order_by(tokens.c.rowid.desc())
    .limit(bindparam("most"))
)
_OF_ID: Final = select(tokens).where(tokens.c.hash >= bindparam("first"), tokens.c.hash <= bindparam("last"))
_END: Final = delete(tokens).where(_BY_HASH)
_ID_B: Final = 8
"""So much of a token's hash is its id."""
_HASH_B: Final = 32


class Grant(msgspec.Struct, frozen=True):
    """What an enrolment token entitles to."""

    role: Role
    name: str
    hosts: tuple[str, ...]


def add(db: Connection, token_hash: bytes, grant: Grant, now_ns: int, expires_ns: int) -> None:
    """Register an enrolment token; forgets those that are long over and not among the newest (the clock may be years ahead)."""
    db.execute(_FORGET_OLD, {"until_ns": now_ns - 30 * 86_400 * SECOND_NS})
    new = {
        "hash": token_hash,
        "role": grant.role,
        "name": grant.name,
        "hosts": msgspec.json.encode(grant.hosts).decode(),
        "created_ns": now_ns,
        "expires_ns": expires_ns,
    }
    db.execute(_ADD, new)


def make_void(db: Connection) -> list[tuple[str, str]]:
    """All that were not used; role and name of each."""
    unused = [(role, name) for role, name in db.execute(_UNUSED)]
    db.execute(_FORGET_UNUSED)
    return unused


class Answered(msgspec.Struct, frozen=True):
    """What the token was exchanged for."""

    grant: Grant
    certificate: str


def answered(db: Connection, token_hash: bytes, key: str, now_ns: int) -> Answered | None:
    """The answer that was given already for this token and this key (its fingerprint), until the token expires: it may not have
    arrived, or its receiver may have died. Nobody else can use it."""
    row = _found(db, token_hash)
    if row is None or row.used_ns is None or not key or row.key != key or row.expires_ns <= now_ns:
        return None
    return Answered(_grant(row), row.certificate)


def note_answer(db: Connection, token_hash: bytes, key: str, certificate: str) -> None:
    db.execute(_ANSWER, {"token_hash": token_hash, "key": key, "certificate": certificate})


def exists(db: Connection, token_hash: bytes) -> bool:
    return _found(db, token_hash) is not None


def redeem(db: Connection, token_hash: bytes, now_ns: int) -> Grant:
    """Use the token up. Raises TokenUnknownError, TokenUsedError or TokenExpiredError."""
    row = _found(db, token_hash)
    if row is None:
        raise TokenUnknownError(_WHAT)
    if row.used_ns is not None:
        raise TokenUsedError(_WHAT)
    if row.expires_ns <= now_ns:
        raise TokenExpiredError(_WHAT)
    db.execute(_USE, {"token_hash": token_hash, "now_ns": now_ns})
    return _grant(row)


def _found(db: Connection, token_hash: bytes) -> Row[Any] | None:
    return db.execute(_FIND, {"token_hash": token_hash}).first()


def _grant(row: Row[Any]) -> Grant:
    return Grant(Role(row.role), row.name, decoding.decode(row.hosts, type=tuple[str, ...]))


def newest(db: Connection, limit: int, before: str = "") -> list[TokenView]:
    """`before`: the id of the last one of the page before. Raises NotFoundError."""
    last = BEHIND_ALL if not before else _of_id(db, before).rowid
    return [_view(row) for row in db.execute(_NEWEST, {"most": limit, "before": last})]


def end(db: Connection, id_: str) -> TokenView:
    """What it was. Raises NotFoundError, RequestError for one that was used."""
    row = _of_id(db, id_)
    if row.used_ns is not None:
        raise RequestError(
            f"The enrolment token {id_} was not ended",
            cause=f"{row.role}:{row.name} has enrolled with it, so nobody can any more",
            action=f"To refuse what it got: understudy certificate revoke {row.role}:{row.name}.",
        )
    db.execute(_END, {"token_hash": row.hash})
    return _view(row)


def subject_of(db: Connection, token_hash: bytes) -> str:
    """ROLE:NAME that the token was made for, usable or not; "" when it is not known."""
    row = _found(db, token_hash)
    return "" if row is None else f"{row.role}:{row.name}"


def _of_id(db: Connection, id_: str) -> Row[Any]:
    row = None
    if len(id_) == 2 * _ID_B and set(id_) <= set(string.hexdigits.lower()):
        begins = bytes.fromhex(id_)
        rest = _HASH_B - _ID_B
        row = db.execute(_OF_ID, {"first": begins + b"\0" * rest, "last": begins + b"\xff" * rest}).first()
    if row is None:
        raise NotFoundError(
            f"There is no enrolment token {id_!r}", action="See which there are: understudy token list."
        )
    return row


def _view(row: Row[Any]) -> TokenView:
    return TokenView(
        id=row.hash[:_ID_B].hex(),
        role=Role(row.role),
        name=row.name,
        hosts=decoding.decode(row.hosts, type=list[str]),
        created=rfc3339(row.created_ns),
        expires=rfc3339(row.expires_ns),
        used=None if row.used_ns is None else rfc3339(row.used_ns),
    )

"""Operators, and the tokens by which they are told. Only hashes are stored.

The first operator's token is a file of the config server (data_folder/first_operator.py): there is one, and it does not expire. The others
are rows, of him or of anybody else: an operator is whoever has a token. One that has ended is deleted; the audit log has who made it, and
who ended it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, or_, select, update

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import operator_tokens, operators
from config_server.store.statements import replacing
from shared.api.operators import OperatorTokenView, OperatorView
from shared.errors import NotFoundError, RequestError

PREFIX: Final = "uso1."
MOST: Final = 100
"""Tokens of one operator."""
FILE: Final = "file"
"""The id of the first operator's."""
_USED_NS: Final = 3600 * SECOND_NS
"""That a token is used is written down at most so often."""

_SET_FIRST: Final = replacing(operators)
_FIRST: Final = select(operators.c.name, operators.c.hash, operators.c.created_ns)
_BY_HASH: Final = select(operator_tokens).where(operator_tokens.c.hash == bindparam("given"))
_USE: Final = (
    update(operator_tokens)
    .where(
        operator_tokens.c.id == bindparam("of_id"),
        or_(operator_tokens.c.used_ns.is_(None), operator_tokens.c.used_ns < bindparam("before_ns")),
    )
    .values(used_ns=bindparam("now_ns"))
)
_COUNT: Final = select(func.count()).where(operator_tokens.c.operator == bindparam("of_operator"))
_ADD: Final = insert(operator_tokens)
_ALL: Final = select(operator_tokens).order_by(
    operator_tokens.c.operator, operator_tokens.c.created_ns, operator_tokens.c.id
)
_ONE: Final = select(operator_tokens).where(
    operator_tokens.c.id == bindparam("of_id"), operator_tokens.c.operator == bindparam("of_operator")
)
_END: Final = delete(operator_tokens).where(operator_tokens.c.id == bindparam("of_id"))
_END_ALL: Final = delete(operator_tokens)


class Owner(NamedTuple):
    """Whose token it is."""

    name: str
    expires_ns: int | None
    """None: it does not."""


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def set_first(db: Connection, name: str, token: str, now_ns: int) -> None:
    """From now on `token` is the one of operator `name` that is a file."""
    _SET_FIRST(db, {"name": name, "hash": _hash(token), "created_ns": now_ns})


def is_first(db: Connection, token: str) -> bool:
    """Whether it is the one that is a file."""
    return _first_of(db, _hash(token)) is not None


def has_any(db: Connection) -> bool:
    return db.execute(_FIRST).first() is not None


def owner_of(db: Connection, token: str, now_ns: int) -> Owner | None:
    """Of an expired one, too; None: nobody's. That a valid one was used is written down."""
    given = _hash(token)
    if (name := _first_of(db, given)) is not None:
        return Owner(name, None)
    row = db.execute(_BY_HASH, {"given": given}).first()
    if row is None:
        return None
    if now_ns < row.expires_ns and (row.used_ns is None or row.used_ns < now_ns - _USED_NS):
        db.execute(_USE, {"of_id": row.id, "before_ns": now_ns - _USED_NS, "now_ns": now_ns})
    return Owner(row.operator, row.expires_ns)


def give(
    db: Connection, token: str, new: OperatorTokenView, operator: str, now_ns: int, expires_ns: int
) -> None:
    """`token` is another one of `operator`. Raises RequestError where he has too many."""
    if (db.scalar(_COUNT, {"of_operator": operator}) or 0) >= MOST:
        raise RequestError(
            f"No token was made for operator '{operator}'",
            cause=f"he has {MOST} of them",
            action=f"End those that nobody needs: understudy operator list, understudy operator end {operator} ID.",
        )
    row = {
        "id": new.id,
        "operator": operator,
        "hash": _hash(token),
        "words": new.words,
        "who": new.who,
        "created_ns": now_ns,
        "expires_ns": expires_ns,
    }
    db.execute(_ADD, row)


def end(db: Connection, operator: str, id_: str) -> OperatorTokenView:
    """What it was. Raises NotFoundError."""
    row = db.execute(_ONE, {"of_id": id_, "of_operator": operator}).first()
    if row is None:
        raise NotFoundError(
            f"Operator '{operator}' has no token {id_}",
            action="See which there are: understudy operator list.",
        )
    db.execute(_END, {"of_id": id_})
    return _view(row)


def end_all(db: Connection) -> list[tuple[str, str]]:
    """But for the first operator's file: operator and id of each."""
    found = [(row.operator, row.id) for row in db.execute(_ALL)]
    db.execute(_END_ALL)
    return found


def views(db: Connection) -> list[OperatorView]:
    """By name; of each his tokens, the oldest first."""
    found = dict[str, list[OperatorTokenView]]()
    for name, _, created_ns in db.execute(_FIRST):
        found[name] = [OperatorTokenView(id=FILE, created=rfc3339(created_ns))]
    for row in db.execute(_ALL):
        found.setdefault(row.operator, []).append(_view(row))
    return [OperatorView(name=name, tokens=found[name]) for name in sorted(found)]


def _first_of(db: Connection, given: bytes) -> str | None:
    return next((name for name, known, _ in db.execute(_FIRST) if hmac.compare_digest(given, known)), None)


def _view(row: Row[Any]) -> OperatorTokenView:
    return OperatorTokenView(
        id=row.id,
        words=row.words,
        who=row.who,
        created=rfc3339(row.created_ns),
        expires=rfc3339(row.expires_ns),
        used=None if row.used_ns is None else rfc3339(row.used_ns),
    )


def _hash(token: str) -> bytes:
    return hashlib.sha256(b"understudy operator\0" + token.encode(errors="surrogateescape")).digest()

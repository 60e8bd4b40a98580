"""Operators, and the tokens by which they are told. Only hashes are stored.

The first operator's token is a file of the config server (data_folder/first_operator.py): there is one, and it does not expire.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from sqlalchemy import Connection, select

from config_server.store.schema import operators
from config_server.store.statements import replacing

PREFIX: Final = "uso1."

_SET_FIRST: Final = replacing(operators)
_FIRST: Final = select(operators.c.name, operators.c.hash)


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def set_first(db: Connection, name: str, token: str, now_ns: int) -> None:
    """From now on `token` is the one of operator `name` that is a file."""
    _SET_FIRST(db, {"name": name, "hash": _hash(token), "created_ns": now_ns})


def owner_of(db: Connection, token: str) -> str | None:
    """The operator to whom `token` belongs."""
    given = _hash(token)
    for name, known in db.execute(_FIRST):
        if hmac.compare_digest(given, known):
            return str(name)
    return None


def has_any(db: Connection) -> bool:
    return db.execute(_FIRST).first() is not None


def _hash(token: str) -> bytes:
    return hashlib.sha256(b"understudy operator\0" + token.encode(errors="surrogateescape")).digest()

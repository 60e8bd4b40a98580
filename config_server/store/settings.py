"""What there is one of: a word by its name."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, delete, select

from config_server.store.schema import settings
from config_server.store.statements import replacing

USED_BY: Final = "used-by"
"""Which server has the database in PostgreSQL (sole_server.py)."""

_GET: Final = select(settings.c.value).where(settings.c.name == bindparam("wanted"))
_PUT: Final = replacing(settings)
_FORGET: Final = delete(settings).where(settings.c.name == bindparam("wanted"))


def get(db: Connection, name: str) -> str | None:
    found: str | None = db.scalar(_GET, {"wanted": name})
    return found


def put(db: Connection, name: str, value: str) -> None:
    _PUT(db, {"name": name, "value": value})


def forget(db: Connection, name: str) -> None:
    db.execute(_FORGET, {"wanted": name})

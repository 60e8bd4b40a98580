"""The containers that were deleted with their machines, for daemons that still have something of them. Functions of a transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select

from config_server.store import incarnations
from config_server.store.schema import deleted
from config_server.store.statements import replacing

_AT_ONCE: Final = 500
"""Databases take so many parameters, and a daemon names what it likes."""

_NOTE: Final = replacing(deleted)
_AMONG: Final = select(deleted.c.container, deleted.c.machine).where(
    deleted.c.incarnation == bindparam("current"),
    deleted.c.container.in_(bindparam("asked", expanding=True)),
)
_FORGET: Final = delete(deleted).where(deleted.c.container == bindparam("it"))


def note(db: Connection, container: str, machine: str, now_ns: int) -> None:
    current = incarnations.history(db)[-1]
    _NOTE(db, {"container": container, "machine": machine, "incarnation": current, "deleted_ns": now_ns})


def among(db: Connection, containers: Collection[str]) -> dict[str, str]:
    """Of these, those that were deleted in this incarnation of the database; and with which machine."""
    current, found = incarnations.history(db)[-1], dict[str, str]()
    asked = sorted(containers)
    for begin in range(0, len(asked), _AT_ONCE):
        some = {"current": current, "asked": asked[begin : begin + _AT_ONCE]}
        found |= {row.container: row.machine for row in db.execute(_AMONG, some)}
    return dict(sorted(found.items()))


def forget(db: Connection, container: str) -> None:
    db.execute(_FORGET, {"it": container})

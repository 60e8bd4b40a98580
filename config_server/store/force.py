"""What the database knows of which config server is in force (rules/force.py). Functions of a transaction.

It goes with the database: a copy of it on another host is the same server for storage, until it is put back as a restore does it.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec
from sqlalchemy import Connection

from config_server.rules.force import Generation, Ours
from config_server.store import settings
from shared import decoding

_HOLDER: Final = "control holder"
_GENERATION: Final = "control generation"
_TAKES_OVER: Final = "control takes over"
_AT_MOST: Final = "at most "
_SUPERSEDED: Final = "control superseded"
_FROM: Final = "control recovered from"


def ours(db: Connection) -> Ours:
    """A holder is drawn where there is none."""
    holder = settings.get(db, _HOLDER)
    if holder is None:
        holder = secrets.token_hex(16)
        settings.put(db, _HOLDER, holder)
    return Ours(
        holder,
        int(settings.get(db, _GENERATION) or 0),
        (said := settings.get(db, _TAKES_OVER)) is not None,
        int(said.removeprefix(_AT_MOST)) if said is not None and said.startswith(_AT_MOST) else None,
        0 if (by := superseded(db)) is None else by.generation,
    )


def take_over(db: Connection, recovered_from: str = "", over: int | None = None) -> None:
    """This database is another server's from now on, which is to be in force. `recovered_from`: which state it is of, if it is of one;
    `over`: see Ours."""
    settings.put(db, _HOLDER, secrets.token_hex(16))
    settings.put(db, _TAKES_OVER, "1" if over is None else f"{_AT_MOST}{over}")
    settings.forget(db, _SUPERSEDED)
    settings.put(db, _FROM, recovered_from)


def recovered_from(db: Connection) -> str:
    return settings.get(db, _FROM) or ""


def taken(db: Connection, generation: int) -> None:
    """Storage says that this one is in force."""
    settings.put(db, _GENERATION, str(generation))
    settings.forget(db, _TAKES_OVER)
    settings.forget(db, _SUPERSEDED)


def lost(db: Connection, by: Generation) -> None:
    """Storage says that another one is: this one knows it, too, when it begins without storage."""
    settings.put(db, _SUPERSEDED, msgspec.json.encode(by).decode())


def superseded(db: Connection) -> Generation | None:
    value = settings.get(db, _SUPERSEDED)
    return None if value is None else decoding.decode(value, type=Generation)

"""How long what nobody complains of has lasted, over a restart of this server: a setting of its database, written each minute."""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import Connection

from config_server.rules.lasting import Kept
from config_server.store import settings
from shared import decoding
from shared.daemon import logging
from shared.errors import UNDECODABLE

_log = logging.get()

SETTING: Final = "lasting"
_FORMAT: Final = 1
"""Another one when a condition's words about its work (sights.py) mean something else: then everybody begins anew."""


class _Record(msgspec.Struct, frozen=True):
    format: int
    machines: Kept


def encode(kept: Kept) -> str:
    return msgspec.json.encode(_Record(_FORMAT, kept)).decode()


def decode(text: str) -> Kept:
    """Nothing, of another version's: that costs time only."""
    try:
        record = decoding.decode(text.encode(), type=_Record)
    except UNDECODABLE as exc:
        _log.warning("it is not known how long what was not well has lasted", cause=str(exc))
        return {}
    return record.machines if record.format == _FORMAT else {}


def save(db: Connection, kept: Kept) -> None:
    settings.put(db, SETTING, encode(kept))


def forget(db: Connection) -> None:
    """The database is from a backup: what lasted then says nothing of today."""
    settings.forget(db, SETTING)


def load(db: Connection) -> Kept:
    value = settings.get(db, SETTING)
    return {} if value is None else decode(value)

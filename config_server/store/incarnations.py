"""Which databases this one was: its incarnations. One is drawn when a database is made, and another whenever it is put back from a backup.

What a database says is later than what one of its earlier incarnations said, and than what an incarnation said of which it knows nothing:
that one was before the backup was put back. So acts of operators bear the incarnation in which they were made (shared/desired.py), and
wishes.py tells by the history which of two is the later.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec
from sqlalchemy import Connection

from config_server.store import settings
from shared import decoding

_SETTING: Final = "incarnations"
"""A JSON list of words, the first one first. The migration that brought it has drawn one."""


def history(db: Connection) -> tuple[str, ...]:
    """The current one is the last; there is always one."""
    value = settings.get(db, _SETTING)
    assert value is not None
    return decoding.decode(value, type=tuple[str, ...])


def begin(db: Connection) -> str:
    """Another one, from now on."""
    drawn = secrets.token_hex(8)
    settings.put(db, _SETTING, msgspec.json.encode((*history(db), drawn)).decode())
    return drawn

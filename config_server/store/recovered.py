"""Where a database of this host is from, whoever uses it just now: it is read from a copy, and nothing of it is changed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from config_server.rules.force import Ours
from config_server.store import force, sqlite


class Origin(NamedTuple):
    ours: Ours
    recovered_from: str
    """Which state in storage; empty: none."""


def origin_of(path: Path) -> Origin:
    """Raises DatabaseError."""
    try:
        with contextlib.closing(sqlite.over(sqlite.copied(path))) as db:
            return Origin(force.ours(db), force.recovered_from(db))
    except sqlite.ERRORS as exc:
        raise sqlite.translated(exc, path) from exc

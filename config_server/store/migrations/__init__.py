"""How a database comes to schema.py: one revision after the other, each a file in versions/, by alembic. The program does it itself when it
opens the database; there is no command for it.

**Expand, later contract.** Of two config servers on one database one is upgraded first: the old program goes on working on what the new one
has made of it. So a revision only adds: tables, indexes, columns that may be NULL or have a server default. What nobody writes any more, or
what only the newest may write, goes one version later (the contract), when no program runs that knows it. Nothing is renamed; nothing
changes what it means. A revision that fills what it has added says what rows get that the old program writes meanwhile. In a row
that this one changes, a new column keeps what it had: so it repeats nothing that an old column says, too. A revision is quick: who wants
its tables waits for it (postgresql.py).

**Which older programs may use it.** Each revision says down to which one (`usable_from`): of programs that know that one, but not the
newest. It is in the database (`USABLE_FROM`), since they cannot ask a revision that they do not know. So the older one of two servers can
be started again behind the newer, and a program that does not please gives way to the one of before. A contract says itself: whoever does
not know it is refused, and it waits until no such one runs (US552): in PostgreSQL each server's session says what it knows
(older_servers.py). Numbers of revisions rise, so whoever knows one knows all that are lower.

**Forward only.** Nothing takes a revision back. The programs of before alembic look at SQLite's `user_version` alone:
revision 0001 leaves it as they have it, since it changes nothing for them; the first contract raises it, so that they refuse, too. (0002
adds columns to `jobs`, into which they INSERT without naming any: they make no job any more, and do all else. Better so than that nobody
can be revoked: docs/operations/database.md.)

Each revision is frozen: it imports nothing of the program, which goes on, and its SQL is what it was. It works on both databases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

from shared.errors import ConfigError

NEWEST: Final = "0002"
"""The revision that databases have then. (A test compares it with versions/: only to bring one up loads alembic.)"""
USABLE_FROM: Final = "schema usable from"
"""The setting with the oldest revision whose programs may use the database as it is."""
_REVISION: Final = table("alembic_version", column("version_num"))


def _nobody_else(_usable_from: str) -> None:
    """Has it open."""


def upgrade(
    db: Connection, named: str, *, has_first: bool = False, check_older: Callable[[str], None] = _nobody_else
) -> None:
    """To the newest revision, in the caller's transaction, which nobody else's may run beside. `has_first`: it is a database of before
    alembic, which has all of FIRST. `check_older` raises where a program has it open that knows less than a revision. Raises ConfigError
    for one of a newer program that this one may not use; `named` is the database, for people."""
    current = db.scalar(select(_REVISION.c.version_num)) if inspect(db).has_table(_REVISION.name) else None
    if current == NEWEST:
        return
    from config_server.store.migrations import missing

    missing.bring_up(db, named, current, has_first=has_first, check_older=check_older)


def is_known(usable_from: str | None) -> bool:
    """Whether a program that knows no more than this one may use such a database."""
    return bool(usable_from) and str(usable_from) <= NEWEST


def newer(named: str, version: str, known: str, usable_from: str | None = None) -> ConfigError:
    least = f", and programs from {usable_from} on can use it" if usable_from else ""
    return ConfigError(
        f"The database {named} could not be opened",
        cause=f"its schema has version {version}, this program knows {known}{least}",
        action="A newer version of Understudy has used it, and this one would damage what that wrote. Install the newer one"
        " again, or restore a backup of before.",
    )

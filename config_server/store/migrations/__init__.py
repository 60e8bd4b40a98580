"""How a database comes to schema.py: one revision after the other, each a file in versions/, by alembic. The program does it itself when it
opens the database; there is no command for it.

**Expand, later contract.** Of two config servers on one database one is upgraded first: the old program goes on working on what the new one
has made of it. So a revision only adds: tables, indexes, columns that may be NULL or have a server default. What nobody writes any more, or
what only the newest may write, goes one version later (the contract), when no program runs that knows it. Nothing is renamed; nothing
changes what it means. A revision that fills what it has added says what rows get that the old program writes meanwhile.

**Forward only.** There is no way back but a backup. A program refuses to open a database with a revision that it does not know: it cannot
tell whether that was a contract. (One that runs already goes on.) The programs of before alembic look at SQLite's `user_version` alone:
revision 0001 leaves it as they have it, since it changes nothing for them; the first contract raises it, so that they refuse, too. (0002
adds columns to `jobs`, into which they INSERT without naming any: they make no job any more, and do all else. Better so than that nobody
can be revoked: docs/operations/database.md.)

Each revision is frozen: it imports nothing of the program, which goes on, and its SQL is what it was. It works on both databases.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

from shared.errors import ConfigError

NEWEST: Final = "0002"
"""The revision that databases have then. (A test compares it with versions/: only to bring one up loads alembic.)"""
_REVISION: Final = table("alembic_version", column("version_num"))


def upgrade(db: Connection, named: str, *, has_first: bool = False) -> None:
    """To the newest revision, in the caller's transaction, which nobody else's may run beside. `has_first`: it is a database of before
    alembic, which has all of FIRST. Raises ConfigError for one of a newer program; `named` is the database, for people."""
    current = db.scalar(select(_REVISION.c.version_num)) if inspect(db).has_table(_REVISION.name) else None
    if current == NEWEST:
        return
    from config_server.store.migrations import missing

    missing.bring_up(db, named, current, has_first=has_first)


def newer(named: str, version: str, known: str) -> ConfigError:
    return ConfigError(
        f"The database {named} could not be opened",
        cause=f"its schema has version {version}, this program knows {known}",
        action="Install the newer version of Understudy again, or restore a backup.",
    )

"""The config server's databases without a server: SQLite's in memory, copies of them, and beside one that runs; of older revisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from config_server.store import migrations, schema, settings, sqlite

REVISIONS: Final = ScriptDirectory(str(Path(migrations.__file__).parent))


def copied(db: Connection) -> Connection:
    """As it is now, in memory."""
    db.commit()
    return sqlite.of_bytes(sqlite.raw_of(db).serialize())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """In a transaction, which is committed at the end."""
    with contextlib.closing(sqlite.connect(path)) as db:
        yield db
        db.commit()


def begin_with(db: Connection, revision: str) -> None:
    """Instead of what there is: an empty database of this revision."""
    schema.METADATA.drop_all(db)
    db.exec_driver_sql("DROP TABLE alembic_version")
    steps = [
        MigrationStep.upgrade_from_script(REVISIONS.revision_map, one)
        for one in REVISIONS.iterate_revisions(revision, "base")
    ]
    context = MigrationContext.configure(db, opts={"fn": lambda *_: reversed(steps)})
    with Operations.context(context):
        context.run_migrations()


def left_by_a_newer_program(db: Connection, usable_from: str = "9999") -> None:
    """Whose revision is 9999, and which says so of the oldest one that may use it."""
    db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    settings.put(db, migrations.USABLE_FROM, usable_from)

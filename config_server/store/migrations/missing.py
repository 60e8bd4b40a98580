"""The revisions that a database lacks, one after the other, by alembic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from config_server.store import migrations, settings
from shared.daemon import logging

_log = logging.get()

FIRST: Final = "0001"
"""What databases of before alembic have (sqlite_steps.py)."""
_operations: Final = threading.Lock()
"""Alembic's `op` is one for all threads, and the control state is made by several where a process has several databases."""


def bring_up(
    db: Connection, named: str, current: str | None, *, has_first: bool, check_older: Callable[[str], None]
) -> None:
    """From `current` (None: alembic does not know it) on. See `migrations.upgrade`."""
    script = ScriptDirectory(str(Path(__file__).parent))
    known = [revision.revision for revision in script.walk_revisions()]  # the newest first

    def steps(heads: tuple[str, ...] | Any, _context: MigrationContext) -> Iterable[MigrationStep]:
        lower = heads[-1] if heads else "base"
        lacking = [*script.iterate_revisions("head", lower)]
        return [MigrationStep.upgrade_from_script(script.revision_map, one) for one in reversed(lacking)]

    context = MigrationContext.configure(db, opts={"fn": steps, "transactional_ddl": True})
    if current is None and has_first:
        context.stamp(script, FIRST)
    elif current is not None and current not in known:
        floor = settings.get(db, migrations.USABLE_FROM)
        if not migrations.is_known(floor):
            raise migrations.newer(named, current, known[0], floor)
        _log.info(
            "a newer version has used the database, and this one may, too", database=named, schema=current
        )
        return
    usable_from: str = script.get_revision(known[0]).module.usable_from
    check_older(usable_from)
    with _operations, Operations.context(context):
        context.run_migrations()
    settings.put(db, migrations.USABLE_FROM, usable_from)

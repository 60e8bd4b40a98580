"""A database that was put back past this program, with `pg_restore` or as a copy of its file: what `restore` does to a backup's is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from config_server.config import ConfigServerConfig
from config_server.data_folder import lock
from config_server.store import replicas, restored
from config_server.store.database import Connection, Database
from config_server.store.files import DATABASE_FILE
from config_server.store.restored import Restored
from shared.errors import DataFolderInUseError

_BEATS_S: Final = 4.0
"""A server that lives writes each second."""


def put_back(config: ConfigServerConfig) -> Restored:
    """Before its config server is started, on one host alone. Raises ConfigError, DatabaseError, DataFolderInUseError while one uses it,
    StateFileError."""
    with lock.held(config.data_dir):
        return asyncio.run(_put_back(config))


async def _put_back(config: ConfigServerConfig) -> Restored:
    db = await Database.configured(config.database, config.data_dir / DATABASE_FILE)
    try:
        before = await db.run(replicas.batches)
        if before:  # of the time of the dump, or of servers that have just ended, or live
            await asyncio.sleep(_BEATS_S)
        return await db.run(lambda opened: _work(opened, before))
    finally:
        await db.close()


def _work(db: Connection, before: Mapping[str, tuple[str, int]]) -> Restored:
    now = replicas.batches(db)
    living = sorted({name for id_, (name, batch) in now.items() if before.get(id_) != (name, batch)})
    if living:
        raise DataFolderInUseError(
            "The database was not marked as put back",
            cause=f"a config server uses it: {', '.join(living)}",
            action="Stop the config servers on all hosts, put the database back, and run the command again.",
        )
    replicas.forget_all(db)
    return restored.prepare(db, time.time_ns())

"""A database that was put back past this program, with `pg_restore` or as a copy of its file: what `restore` does to a backup's is done."""

from __future__ import annotations

import asyncio
import time

from config_server.config import ConfigServerConfig
from config_server.data_folder import lock
from config_server.store import replicas, restored
from config_server.store.database import Connection, Database
from config_server.store.files import DATABASE_FILE
from config_server.store.restored import Restored
from shared.errors import DataFolderInUseError


def put_back(config: ConfigServerConfig) -> Restored:
    """Before its config server is started, on one host alone. Raises ConfigError, DatabaseError, DataFolderInUseError while one uses it,
    StateFileError."""
    with lock.held(config.data_dir):
        return asyncio.run(_put_back(config))


async def _put_back(config: ConfigServerConfig) -> Restored:
    db = await Database.configured(config.database, config.data_dir / DATABASE_FILE)
    try:
        return await db.run(_work)
    finally:
        await db.close()


def _work(db: Connection) -> Restored:
    # (Those of the dump wrote long ago.)
    if living := replicas.living(db):
        raise DataFolderInUseError(
            "The database was not marked as put back",
            cause=f"a config server uses it: {', '.join(living)}",
            action="Stop the config servers on all hosts, put the database back, and run the command again. (One that has ended counts for"
            " a quarter of a minute.)",
        )
    replicas.forget_all(db)
    return restored.prepare(db, time.time_ns())

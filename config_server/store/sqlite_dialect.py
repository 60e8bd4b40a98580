"""SQLite whose transactions take its lock where they begin: what reads and then writes has nobody's writing in between, and fails as
busy, if at all, before it has done anything. (Python's driver would begin a transaction before the first write.)"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

URL: Final = "sqlite+immediate://"


class Immediate(SQLiteDialect_pysqlite):
    supports_statement_cache = True

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.execute("BEGIN IMMEDIATE")


registry.register("sqlite.immediate", __name__, Immediate.__name__)

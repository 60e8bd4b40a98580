"""What the statements of this package share: being compiled once, writing what may be there already, and expressions that both databases
know.

Statements are built once, where a module is loaded: to build one takes longer than to run it. Those of each report are `Prepared`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    ColumnElement,
    Compiled,
    Connection,
    CursorResult,
    Executable,
    Insert,
    Table,
    case,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from config_server.store.schema import IMPLICIT

Into = Callable[[Table], sqlite.Insert]
"""The beginning of such an INSERT, of either database."""
BEHIND_ALL: Final = (1 << 63) - 1
"""A number that no row has: they are all before it."""
_COUNTED: Final = {"preserve_rowcount": True}
"""Of an INSERT, drivers forget how many rows it put."""


class Prepared:
    """A statement that keeps what it was compiled to, for each database. (SQLAlchemy remembers that itself, but to look for it takes a
    fifth of the time that a statement takes.) Called with the values of its parameters it is run."""

    _options: Mapping[str, Any] = {}

    def __init__(self, statement: ClauseElement) -> None:
        self._by_dialect: Mapping[str, ClauseElement] = dict.fromkeys(("sqlite", "postgresql"), statement)
        self._compiled: Final = dict[tuple[str | bool, ...], Compiled]()

    def __call__(
        self, db: Connection, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> CursorResult[Any]:
        """`values`: of a row, or of several (not of none), or of the parameters where rows are selected."""
        first, many = (values, False) if isinstance(values, Mapping) else (values[0], len(values) > 1)
        dialect = db.dialect
        compiled = self._compiled.get((dialect.name, many, *first))
        if compiled is None:
            compiled = self._by_dialect[dialect.name].compile(
                dialect=dialect, column_keys=list(first), for_executemany=many
            )
            self._compiled[dialect.name, many, *first] = compiled
        return db.execute(cast("Executable", compiled), values, execution_options=self._options)


class Put(Prepared):
    """An INSERT that says what is done about a row that is there. Each database has its own class for it, and SQLAlchemy does not remember
    what it has compiled of these at all."""

    _options = _COUNTED

    def __init__(self, build: Callable[[Into], Insert]) -> None:
        theirs = cast("Into", postgresql.insert)  # which has the same methods
        statement = build(sqlite.insert)
        super().__init__(statement)
        self._by_dialect = {"sqlite": statement, "postgresql": build(theirs)}


def replacing(table: Table) -> Put:
    """The row of this primary key becomes this one."""
    keys = list(table.primary_key.columns)

    def build(into: Into) -> Insert:
        new = into(table)
        rest = {column.name: new.excluded[column.name] for column in table.c if column not in keys}
        rest.pop(IMPLICIT, None)
        return new.on_conflict_do_update(index_elements=keys, set_=rest)

    return Put(build)


def unless_there(table: Table) -> Put:
    """The row is put where there is none of this primary key, nor of any other that must be one alone. `rowcount` says how many were."""
    return Put(lambda into: into(table).on_conflict_do_nothing())


def later(one: ColumnElement[int], other: ColumnElement[int]) -> ColumnElement[int]:
    """The greater of two, neither of them NULL. (The functions for that have other names on each, and take NULL otherwise.)"""
    return case((one > other, one), else_=other)


class clock_ns(FunctionElement[int]):
    """What the database's own clock says now, in nanoseconds of Unix time; not when the transaction began."""

    type = BigInteger()
    inherit_cache = True


@compiles(clock_ns, "sqlite")
def _on_sqlite(_element: clock_ns, _compiler: SQLCompiler, **_: Any) -> str:
    return "clock_ns()"  # sqlite.py gives it to each connection


@compiles(clock_ns, "postgresql")
def _on_postgresql(_element: clock_ns, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000000 AS BIGINT)"

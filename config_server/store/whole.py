"""The database as a whole, read beside its transactions (Database.aside): a copy of it as a file of SQLite, whatever it is kept in, and
whether it is another one than before.

Not in the copy is what daemons say again within seconds, or what says nothing after a restore: their reports, and how long what they do not
complain of has lasted; and what config servers of one database say to one another. Nor does a change count that this server makes every few
seconds by itself: an event that is told in other words, the progress of a job, how much of a deletion's delay has passed. With what counts
they are in the copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Column, Connection, Table, delete, func, insert, select

from config_server.store import lasting_record, schema, settings, sqlite
from shared import decoding

_SAID_AGAIN: Final = (schema.reports, schema.replicas, schema.rings, schema.leases)
"""By daemons, and by config servers that share the database to one another."""
_OF_NOW: Final = (lasting_record.SETTING, settings.USED_BY)
"""Settings that say nothing of another time, or host."""
_BY_ITSELF: Final[Mapping[Table, Iterable[Column[Any]]]] = {
    schema.events: [schema.events.c[name] for name in ("what", "cause", "action", "last_ns", "count")],
    schema.jobs: [
        schema.jobs.c[name] for name in ("progress", "detail", "updated_ns", "lease_ns", "wake_ns", "waits")
    ],
    schema.operator_tokens: [schema.operator_tokens.c.used_ns],
    schema.steps: [schema.steps.c[name] for name in ("tries", "changed_ns")],
    schema.certificates: [schema.certificates.c.pem],  # never another one of a serial number
}
_COUNTED: Final = ("passed_ns", "counted_ns", "given_up")
"""Of a deletion."""
_ONLY_MORE: Final = schema.audit
"""Never changed, never removed."""
_AT_ONCE: Final = 500


def digest(db: Connection) -> bytes:
    """Another one when something has changed that is worth keeping."""
    found = hashlib.blake2b(digest_size=16)
    for table in schema.METADATA.sorted_tables:
        if table in _SAID_AGAIN:
            continue
        found.update(table.name.encode())
        if table is _ONLY_MORE:
            found.update(str(db.scalar(select(func.max(table.c.id)))).encode())
            continue
        left_out = [column.name for column in _BY_ITSELF.get(table, ())]
        columns = [column for column in table.c if column.name not in left_out]
        order = list(table.primary_key.columns)
        for row in db.execute(select(*columns).order_by(*order)):
            found.update(msgspec.msgpack.encode(_worth(table, row._asdict())))
    return found.digest()


def as_sqlite(db: Connection) -> bytes:
    """A copy, without what is said again."""
    if db.dialect.name == "sqlite":
        return _without(db)
    with contextlib.closing(sqlite.connect(":memory:")) as copy:
        with copy.begin():
            for table in schema.METADATA.sorted_tables:
                copy.execute(delete(table))  # what the migrations put there
                if table in _SAID_AGAIN:
                    continue
                rows = (
                    row._asdict() for row in db.execution_options(yield_per=_AT_ONCE).execute(select(table))
                )
                while some := list(itertools.islice(rows, _AT_ONCE)):
                    copy.execute(insert(table), some)
        return _without(copy)


def _without(db: Connection) -> bytes:
    db.rollback()  # of what was only read
    raw = sqlite.raw_of(db)
    db.rollback()
    with db.begin():
        for table in _SAID_AGAIN:
            db.execute(delete(table))
        db.execute(delete(schema.settings).where(schema.settings.c.name.in_(_OF_NOW)))
    raw.execute("VACUUM")
    return sqlite.serialised(raw)


def _worth(table: Table, row: dict[str, Any]) -> list[Any]:
    if table is schema.settings and row["name"] in _OF_NOW:
        return []
    if table is schema.machines and row["deletion"] is not None:
        deletion = decoding.decode(row["deletion"], type=dict[str, Any])
        row["deletion"] = {name: value for name, value in deletion.items() if name not in _COUNTED}
    return list(row.values())

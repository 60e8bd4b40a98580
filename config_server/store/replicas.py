"""Config servers that use one database at the same time: what each has heard, for the others, and who does what one alone may do.

Each start of a server is a row, with a number of its own that rises with each of its batches: what it heard and rang since the last. A
reader asks, of each other server, for what has a higher number than he has read of that one. The number is drawn from that row, which stays
locked until the commit: so of one server what has the lower number is committed first, and nobody who has read a higher one has missed it.
(Of a number over all servers that is not so: of two transactions at a time the later may have the lower number.)

A lease is claimed, and renewed, by an UPDATE that is first in the transaction whose right it is. Its owner is one start of a server: who
was stopped for so long that another one has it changes no row, and does nothing else.

With SQLite there is one server, and none of this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, case, delete, insert, or_, select, update

from config_server.rules.clock import SECOND_NS
from config_server.store import inventory, schema
from config_server.store.inventory import StoredReport
from config_server.store.schema import leases, replicas, rings
from config_server.store.statements import Prepared, clock_ns, unless_there

KEPT: Final = 300
"""So many batches of a server what it rang is kept: whoever has not looked for longer takes it that everything was rung."""
LIVING_NS: Final = 15 * SECOND_NS
"""A server that has written lately: it does each second."""
_MORE_NS: Final = 120 * SECOND_NS
"""Than four times as long as it is taken for no lease lasts, and so much: else the database's clock was set back since."""
BURIED_NS: Final = 600 * SECOND_NS
"""A server that has written nothing for so long is forgotten."""

_IT: Final = replicas.c.id == bindparam("it")
_JOIN: Final = insert(replicas)
_NEXT: Final = Prepared(
    update(replicas)
    .where(_IT)
    .values(batch=replicas.c.batch + 1, beat_ns=clock_ns(), said=bindparam("says"))
    .returning(replicas.c.batch)
)
_SHARE: Final = inventory.saving("writer", "batch")
_RING: Final = unless_there(rings)
_TRIM: Final = Prepared(
    delete(rings).where(rings.c.writer == bindparam("of_writer"), rings.c.batch < bindparam("below"))
)
_OTHERS: Final = Prepared(
    select(
        replicas.c.id,
        replicas.c.name,
        replicas.c.batch,
        replicas.c.beat_ns,
        replicas.c.said,
        clock_ns().label("clock_ns"),
    )
    .where(replicas.c.id != bindparam("it"))
    .order_by(replicas.c.id)
)
_CLOCK: Final = Prepared(select(clock_ns()))
_REPORTS: Final = Prepared(
    select(
        *(schema.reports.c[name] for name in ("role", "name", "received_ns", "report", "state", "start")),
        *(schema.reports.c[name] for name in ("number", "address", "told", "heard_ns")),
        (clock_ns() - schema.reports.c.heard_ns).label("age_ns"),
    ).where(schema.reports.c.writer == bindparam("of_writer"), schema.reports.c.batch > bindparam("above"))
)
_RINGS: Final = Prepared(
    select(rings.c.name)
    .where(rings.c.writer == bindparam("of_writer"), rings.c.batch > bindparam("above"))
    .order_by(rings.c.batch)
)
_DEAD: Final = select(replicas.c.id).where(replicas.c.beat_ns < clock_ns() - BURIED_NS)
_LIVING: Final = (
    select(replicas.c.name).where(replicas.c.beat_ns > clock_ns() - LIVING_NS).order_by(replicas.c.name)
)
_BATCHES: Final = select(replicas.c.id, replicas.c.name, replicas.c.batch).where(
    replicas.c.beat_ns > clock_ns() - LIVING_NS
)
_FREE: Final = (
    update(leases)
    .where(
        leases.c.until_ns > clock_ns(),
        leases.c.owner.not_in(select(replicas.c.id).where(replicas.c.beat_ns > clock_ns() - LIVING_NS)),
    )
    .values(until_ns=0)
)
_TAKE: Final = unless_there(leases)
_HOLD: Final = Prepared(
    update(leases)
    .where(
        leases.c.name == bindparam("of_name"),
        or_(
            leases.c.owner == bindparam("mine"),
            leases.c.until_ns < clock_ns(),
            # The clock of PostgreSQL's host was set back since: nobody holds it for so long.
            leases.c.until_ns > clock_ns() + bindparam("too_long_ns"),
        ),
    )
    .values(
        term=case((leases.c.owner == bindparam("mine"), leases.c.term), else_=leases.c.term + 1),
        owner=bindparam("mine"),
        until_ns=clock_ns() + bindparam("for_ns"),
    )
)
_HELD: Final = Prepared(
    select(leases.c.name).where(
        leases.c.name == bindparam("of_name"),
        leases.c.owner != bindparam("mine"),
        leases.c.until_ns.between(clock_ns(), clock_ns() + bindparam("too_long_ns")),
    )
)
_RELEASE: Final = Prepared(
    delete(leases).where(leases.c.name == bindparam("of_name"), leases.c.owner == bindparam("mine"))
)
_LET_GO: Final = Prepared(update(leases).where(leases.c.owner == bindparam("mine")).values(until_ns=0))


class Other(msgspec.Struct, frozen=True):
    """Another server, as it is now."""

    id: str
    name: str
    batch: int
    said: str
    beat_ns: int = 0
    """When it wrote that batch, by the database's clock."""
    reports: tuple[StoredReport, ...] = ()
    """That it heard since the batch that was asked for, but for those that another server has replaced by later ones."""
    rung: tuple[str, ...] = ()
    """Since then."""


class News(msgspec.Struct, frozen=True):
    clock_ns: int
    """The database's."""
    others: tuple[Other, ...]


def join(db: Connection, id_: str, name: str, said: str = "") -> None:
    """From now on there is this one, too."""
    db.execute(_JOIN, {"id": id_, "name": name, "batch": 0, "beat_ns": clock(db), "said": said})


def clock(db: Connection) -> int:
    found = db.scalar(select(clock_ns()))
    assert found is not None
    return found


def write(
    db: Connection, id_: str, said: str, reports: Sequence[StoredReport], rung: Sequence[str]
) -> int | None:
    """The number of this batch. None where this server is not known any more, and nothing was written: it was away for too long, or the
    database was put back."""
    batch: int | None = _NEXT(db, {"it": id_, "says": said}).scalar()
    if batch is None:
        return None
    if reports:
        _SHARE(db, [{**inventory.row_of(one), "writer": id_, "batch": batch} for one in reports])
    if rung:
        _RING(db, [{"writer": id_, "batch": batch, "name": name} for name in sorted({*rung})])
    if batch % KEPT == 0:
        _TRIM(db, {"of_writer": id_, "below": batch - KEPT})
    return batch


def read(db: Connection, id_: str, known: Mapping[str, int]) -> News:
    """What the others have written since. `known`: by server, the batch that was read last."""
    found: list[Other] = []
    now_ns = 0
    for row in _OTHERS(db, {"it": id_}).all():
        now_ns = row.clock_ns
        above = known.get(row.id, 0)
        other = Other(id=row.id, name=row.name, batch=row.batch, said=row.said, beat_ns=row.beat_ns)
        if row.batch > above:
            since = {"of_writer": row.id, "above": above}
            other = msgspec.structs.replace(
                other,
                reports=tuple(inventory.report_of(one) for one in _REPORTS(db, since)),
                rung=tuple(dict.fromkeys(_RINGS(db, since).scalars())),
            )
        found.append(other)
    return News(clock_ns=now_ns or clock(db), others=tuple(found))


def living(db: Connection) -> list[str]:
    """The names of the servers that have written something lately."""
    return list(db.scalars(_LIVING))


def batches(db: Connection) -> dict[str, tuple[str, int]]:
    """By its id, of each that has written something lately: its name, and how often it has. Of one that lives that rises each second."""
    found = db.execute(_BATCHES)
    return {id_: (name, batch) for id_, name, batch in found}


def forget_all(db: Connection) -> None:
    """None of them uses the database as it is now."""
    for table in (rings, replicas, leases):
        db.execute(delete(table))


def bury(db: Connection, there: Collection[str] = ()) -> list[str]:
    """Servers of which nothing was heard for long are forgotten, with what they rang; what they heard stays. Their ids. What one has leased
    that writes nothing is anybody's before that: should it live, it does nothing more by it than it is let. `there`: those that write, as
    is known otherwise: the database's clock may have been set."""
    db.execute(_FREE)
    dead = [id_ for id_ in db.scalars(_DEAD) if id_ not in there]
    if dead:
        db.execute(delete(rings).where(rings.c.writer.in_(dead)))
        db.execute(delete(replicas).where(replicas.c.id.in_(dead)))
    return dead


def hold(db: Connection, name: str, id_: str, for_ns: int) -> bool:
    """Whether this server alone does that, from now on for so long; first in the transaction that does it."""
    asked = {"of_name": name, "mine": id_, "for_ns": for_ns, "too_long_ns": _too_long_ns(for_ns)}
    if _HOLD(db, asked).rowcount:
        return True
    _TAKE(db, {"name": name, "owner": "", "term": 0, "until_ns": 0})
    return bool(_HOLD(db, asked).rowcount)


def is_held(db: Connection, name: str, id_: str, for_ns: int) -> bool:
    """Whether another server than this one does that now; `for_ns` as it is held."""
    asked = {"of_name": name, "mine": id_, "too_long_ns": _too_long_ns(for_ns)}
    return _HELD(db, asked).first() is not None


def release(db: Connection, name: str, id_: str) -> None:
    """That is done; nothing stays of it."""
    _RELEASE(db, {"of_name": name, "mine": id_})


def let_go(db: Connection, id_: str) -> None:
    """Of all that it has: it ends."""
    _LET_GO(db, {"mine": id_})


def _too_long_ns(for_ns: int) -> int:
    return 4 * for_ns + _MORE_NS

"""Machines: what is wanted of them, and their policies; and the last report of every daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Insert, Row, and_, bindparam, delete, or_, select, text, update
from sqlalchemy import false as no

from config_server.rules import wishes
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion
from config_server.rules.machine import Machine
from config_server.store import incarnations, policies, schema
from config_server.store.statements import Into, Prepared, Put, clock_ns, unless_there
from shared import decoding
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import MachineNotFoundError
from shared.vocabulary import Role

MOST_DISKS: Final = 256
"""As many as an operator may name: what agents say is anything."""

_READ_DISKS: Final = decoding.json_decoder(tuple[WantedDisk, ...])
_READ_WISH: Final = decoding.json_decoder(Wish)

_IT: Final = schema.machines.c.name == bindparam("machine")
_C: Final = schema.machines.c
_ALL: Final = select(
    *(
        _C.name,
        _C.created_ns,
        _C.protected,
        _C.ended,
        _C.disks,
        _C.dropped,
        _C.moved,
        _C.identity,
        _C.deletion,
    ),
    *(_C.wish, _C.wish_ns, _C.wish_incarnation, _C.policy_name, _C.policy, policies.BODY),
)
_FIND: Final = Prepared(_ALL.where(_IT))
_ENSURE: Final = unless_there(schema.machines)
_CHANGE: Final = update(schema.machines).where(_IT)
_HEARD: Final = {"dropped": "[]", "moved": no()}
_HEAR: Final = _CHANGE.values(_HEARD)
_HEAR_ALL: Final = update(schema.machines).values(_HEARD)
_FORGET: Final = delete(schema.machines).where(_IT)
_R: Final = schema.reports.c
_REPORTS: Final = select(
    _R.role, _R.name, _R.received_ns, _R.report, _R.state, _R.start, _R.number, _R.address, _R.told,
    (clock_ns() - _R.heard_ns).label("age_ns"), _R.heard_ns,
)  # fmt: skip
_STATE: Final = select(_R.state).where(_R.role == bindparam("of_role"), _R.name == bindparam("of_name"))
_FORGET_REPORT: Final = delete(schema.reports).where(
    schema.reports.c.role == Role.AGENT, schema.reports.c.name == bindparam("machine")
)


COUNTS_ANEW_NS: Final = 60 * SECOND_NS
"""A daemon of whom nothing was heard for so long may count its reports from a lower number: it was put back (rules/twins.py)."""


class StoredReport(msgspec.Struct, frozen=True):
    role: Role
    name: str
    received_ns: int
    report: bytes
    """JSON as the daemon sent it; empty: the daemon takes part no more."""
    state: str = ""
    start: str = ""
    number: int = 0
    age_ns: int | None = None
    """How long ago it was heard: before it is stored, or by the time of this look. None: not known."""
    address: str = ""
    told: str = ""
    """See rules/wishes.py."""


def saving(*more: str) -> Put:
    """Stores a report unless a later one of its daemon is there; with these columns beside it. Of one start of the daemon the higher
    number is the later one, of two starts the one that was heard later; `age_ns` says how long ago that was. One whose time is to come
    was written before the clock was set back."""
    names = ("received_ns", "report", "state", "start", "number", "heard_ns", "address", "told", *more)

    def build(into: Into) -> Insert:
        new = into(schema.reports).values(heard_ns=clock_ns() - bindparam("age_ns", type_=_R.heard_ns.type))
        said = new.excluded
        is_later = or_(
            and_(said.start == _R.start, said.start != text("''"), said.number >= _R.number),
            and_(or_(said.start != _R.start, said.start == text("''")), said.heard_ns >= _R.heard_ns),
            said.heard_ns > _R.heard_ns + COUNTS_ANEW_NS,
            _R.heard_ns > clock_ns(),
        )
        return new.on_conflict_do_update(
            index_elements=[_R.role, _R.name], set_={name: said[name] for name in names}, where=is_later
        )

    return Put(build)


_SAVE: Final = saving()


def machines(db: Connection) -> list[Machine]:
    """By name."""
    return sorted((_machine(row) for row in db.execute(_ALL)), key=lambda machine: machine.name)


def machine(db: Connection, name: str) -> Machine:
    """Raises MachineNotFoundError."""
    found = find(db, name)
    if found is None:
        raise MachineNotFoundError(f"Machine '{name}' was not found")
    return found


def find(db: Connection, name: str) -> Machine | None:
    row = _FIND(db, {"machine": name}).first()
    return None if row is None else _machine(row)


def ensure_machine(db: Connection, name: str, now_ns: int) -> None:
    """A machine whose agent reports is known, protected or not."""
    _ENSURE(db, {"name": name, "protected": False, "disks": "[]", "created_ns": now_ns})


def note_identity(db: Connection, name: str, identity: str) -> None:
    """It was not known whose disks these are, and they are this one's."""
    db.execute(_CHANGE, {"machine": name, "identity": identity})


def begin_anew(
    db: Connection, name: str, identity: str, now_ns: int, wish: Wish | None, over: Sequence[Mark]
) -> Machine:
    """It is other hardware: what was noted of disks was the former one's. `wish` is what is wanted from now on, as an act later than those
    of `over`; None: no opinion, as before."""
    note_identity(db, name, identity)
    db.execute(_CHANGE, {"machine": name, "disks": "[]", "dropped": "[]", "moved": False})
    if wish is not None:
        current = incarnations.history(db)[-1]
        wish = msgspec.structs.replace(wish, mark=wishes.next_mark(current, over, now_ns))
        _put_wish(db, name, wish, now_ns, current)
    return machine(db, name)


def settle(db: Connection, before: Machine, after: Machine) -> Machine:
    """The same machine, its disks by what is known of them since (settling.py)."""
    if after == before:
        return before
    _put_disks(db, after.name, after.disks)
    _drop(db, after.name, after.dropped)
    if after.wish is not None and after.wish != before.wish:
        db.execute(_CHANGE, {"machine": after.name, "wish": _json(after.wish)})
    return machine(db, after.name)


def act(
    db: Connection,
    name: str,
    verb: Verb,
    now_ns: int,
    *,
    disks: tuple[WantedDisk, ...] = (),
    process_servers: tuple[str, ...] = (),
    known: Mark | None = None,
    identity: str = "",
) -> Machine:
    """An operator's act: from now on this is wanted of the machine, also where it is what was wanted before. `known`: a mark of which its
    agent spoke, if it did; `identity`: of the hardware whose disks are meant, where that is known. One to stop keeps what was to be
    protected, and by whom, for the day when it is to be protected again. Of the disks that were known, those that it leaves out are
    dropped; of others nothing is said. One that names the same process servers as before says nothing of these."""
    ensure_machine(db, name, now_ns)
    known_before = machine(db, name)
    before = known_before.wish
    current = incarnations.history(db)[-1]
    marks = [mark for mark in (before.mark if before is not None else None, known) if mark is not None]
    mark = wishes.next_mark(current, marks, now_ns)
    wish = Wish(mark=mark, verb=verb, disks=wishes.once(disks), process_servers=process_servers)
    _put_wish(db, name, _keeping(before, wish), now_ns, current)
    gone = () if known_before.ended else wishes.without(known_before.disks, known_before.dropped)
    _drop(db, name, wishes.without((*known_before.dropped, *gone), disks))
    servers_before = before.process_servers if before is not None else ()
    if verb is Verb.PROTECT and process_servers != servers_before:
        db.execute(_CHANGE, {"machine": name, "moved": True})
    if identity:
        note_identity(db, name, identity)
    return machine(db, name)


def adopt(db: Connection, name: str, wish: Wish, now_ns: int) -> None:
    """What its agent goes by is what is wanted of the machine."""
    ensure_machine(db, name, now_ns)
    wish = _keeping(machine(db, name).wish, wish)
    _put_wish(db, name, wish, now_ns, incarnations.history(db)[-1])
    heard(db, name)


def withdraw(db: Connection, name: str) -> None:
    """Nobody knows whether its act still counts: no opinion, until somebody says what is wanted."""
    none = {"wish": None, "wish_ns": None, "wish_incarnation": None, "protected": False, "ended": False}
    db.execute(_CHANGE, {"machine": name, **none})


def take_back(db: Connection, name: str) -> Machine:
    """Nobody was told of its act, and nothing was known of its disks before: it is as if nothing had been said."""
    withdraw(db, name)
    db.execute(_CHANGE, {"machine": name, "disks": "[]", "dropped": "[]", "moved": False})
    return machine(db, name)


def keep(
    db: Connection,
    name: str,
    disks: Sequence[WantedDisk],
    servers: tuple[str, ...],
    over: Mark | None,
) -> Wish:
    """The same act, with disks that its agent protects and of which nothing was said, by these process servers, and with a higher number
    than before: its agent may have been told already."""
    known = machine(db, name)
    assert known.wish is not None
    _put_disks(db, name, (*known.disks, *disks))
    wish = msgspec.structs.replace(known.wish, disks=machine(db, name).disks, process_servers=servers)
    return renumber(db, name, wish, over or wish.mark)


def heard(db: Connection, name: str) -> None:
    """Its agent goes by what it was told."""
    db.execute(_HEAR, {"machine": name})


def forget_unheard(db: Connection) -> None:
    """Of all machines: the database is older than what their agents know, so what was said of their disks and process servers may not be
    the last word."""
    db.execute(_HEAR_ALL)


def _drop(db: Connection, name: str, disks: Sequence[WantedDisk]) -> None:
    db.execute(_CHANGE, {"machine": name, "dropped": _json(disks)})


def renumber(db: Connection, name: str, wish: Wish, over: Mark) -> Wish:
    """The same act, with a number above `over`, which its agent goes by and this database did not know when the act was made: an agent
    takes no lower number for news."""
    current = incarnations.history(db)[-1]
    number = wishes.next_number((wish.mark, over))
    again = msgspec.structs.replace(wish, mark=Mark(current, number, wish.mark.act))
    db.execute(_CHANGE, {"machine": name, "wish": _json(again), "wish_incarnation": current})
    return again


def _keeping(before: Wish | None, wish: Wish) -> Wish:
    if wish.verb is not Verb.STOP or before is None:
        return wish
    return msgspec.structs.replace(wish, disks=before.disks, process_servers=before.process_servers)


def _put_wish(db: Connection, name: str, wish: Wish, now_ns: int, incarnation: str) -> None:
    protected = wish.verb is Verb.PROTECT
    now = {"wish": _json(wish), "wish_ns": now_ns, "wish_incarnation": incarnation}
    db.execute(_CHANGE, {"machine": name, **now, "protected": protected, "ended": not protected})
    if protected:  # of one that is stopped it stays known which they were
        _put_disks(db, name, wish.disks)


def _put_disks(db: Connection, name: str, disks: Sequence[WantedDisk]) -> None:
    """No disk twice."""
    known = wishes.once(disks)[:MOST_DISKS]
    db.execute(_CHANGE, {"machine": name, "disks": _json(known)})


def put_deletion(db: Connection, name: str, deletion: Deletion | None) -> None:
    """For deletions.py."""
    plain = None if deletion is None else _json(deletion)
    db.execute(_CHANGE, {"machine": name, "deletion": plain})


def forget(db: Connection, name: str) -> None:
    """The machine, and what its agent reported."""
    db.execute(_FORGET, {"machine": name})
    db.execute(_FORGET_REPORT, {"machine": name})


def save_report(db: Connection, stored: StoredReport) -> None:
    """Unless a later one is there."""
    _SAVE(db, row_of(stored))


def row_of(stored: StoredReport) -> dict[str, Any]:
    """For `saving`."""
    plain = msgspec.structs.asdict(stored)
    return {**plain, "report": stored.report.decode(), "age_ns": stored.age_ns or 0}


def reports(db: Connection) -> list[StoredReport]:
    """Of all daemons that take part."""
    return [found for row in db.execute(_REPORTS) if (found := report_of(row)).report]


def reported_state(db: Connection, role: Role, name: str) -> str:
    """Of the daemon's last report that is stored; empty where none is, or it does not say so."""
    found: str | None = db.scalar(_STATE, {"of_role": role, "of_name": name})
    return found or ""


def report_of(row: Row[Any]) -> StoredReport:
    return StoredReport(
        role=Role(row.role),
        name=row.name,
        received_ns=row.received_ns,
        report=row.report.encode(),
        state=row.state,
        start=row.start,
        number=row.number,
        age_ns=max(0, row.age_ns) if row.heard_ns else None,
        address=row.address,
        told=row.told,
    )


def _machine(row: Row[Any]) -> Machine:
    # Taken apart in the order of _ALL: to ask a row for each by its name takes as long as all the rest.
    name, created_ns, protected, ended, disks, dropped, moved, identity, deletion, *more = row
    wish, wish_ns, wish_incarnation, policy_name, policy, policy_body = more
    assigned = policies.assigned(policy_name, policy, policy_body)
    return Machine(
        name=name,
        protected=bool(protected),
        disks=_READ_DISKS.decode(disks),
        policy=assigned.policy,
        created_ns=created_ns,
        ended=bool(ended),
        policy_name=assigned.name,
        wish=None if wish is None else _READ_WISH.decode(wish),
        wish_ns=wish_ns or 0,
        wish_incarnation=wish_incarnation or "",
        identity=identity,
        dropped=_READ_DISKS.decode(dropped),
        deletion=None if deletion is None else decoding.decode(deletion, type=Deletion),
        moved=bool(moved),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

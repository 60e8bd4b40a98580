"""Machines: what is wanted of them, and their policies; and the last report of every daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from config_server.rules import wishes
from config_server.rules.deletion import Deletion
from config_server.rules.machine import Machine
from config_server.store import incarnations, policies
from shared import decoding
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import MachineNotFoundError
from shared.vocabulary import Role

MOST_DISKS: Final = 256
"""As many as an operator may name: what agents say is anything."""


class StoredReport(msgspec.Struct, frozen=True):
    role: Role
    name: str
    received_ns: int
    report: bytes
    """JSON as the daemon sent it."""


def machines(db: sqlite3.Connection) -> list[Machine]:
    return [_machine(db, row) for row in db.execute("SELECT * FROM machines ORDER BY name").fetchall()]


def machine(db: sqlite3.Connection, name: str) -> Machine:
    """Raises MachineNotFoundError."""
    found = find(db, name)
    if found is None:
        raise MachineNotFoundError(f"Machine '{name}' was not found")
    return found


def find(db: sqlite3.Connection, name: str) -> Machine | None:
    row = db.execute("SELECT * FROM machines WHERE name = ?", (name,)).fetchone()
    return None if row is None else _machine(db, row)


def ensure_machine(db: sqlite3.Connection, name: str, now_ns: int) -> None:
    """A machine whose agent reports is known, protected or not."""
    db.execute(
        "INSERT OR IGNORE INTO machines (name, protected, disks, policy, created_ns) VALUES (?, 0, '[]', NULL, ?)",
        (name, now_ns),
    )


def note_identity(db: sqlite3.Connection, name: str, identity: str) -> None:
    """It was not known whose disks these are, and they are this one's."""
    db.execute("UPDATE machines SET identity = ? WHERE name = ?", (identity, name))


def begin_anew(
    db: sqlite3.Connection, name: str, identity: str, now_ns: int, wish: Wish | None, over: Sequence[Mark]
) -> Machine:
    """It is other hardware: what was noted of disks was the former one's. `wish` is what is wanted from now on, as an act later than those
    of `over`; None: no opinion, as before."""
    note_identity(db, name, identity)
    db.execute("UPDATE machines SET disks = '[]', dropped = '[]', moved = 0 WHERE name = ?", (name,))
    if wish is not None:
        current = incarnations.history(db)[-1]
        wish = msgspec.structs.replace(wish, mark=wishes.next_mark(current, over, now_ns))
        _put_wish(db, name, wish, now_ns, current)
    return machine(db, name)


def settle(db: sqlite3.Connection, before: Machine, after: Machine) -> Machine:
    """The same machine, its disks by what is known of them since (settling.py)."""
    if after == before:
        return before
    _put_disks(db, after.name, after.disks)
    _drop(db, after.name, after.dropped)
    if after.wish is not None and after.wish != before.wish:
        db.execute("UPDATE machines SET wish = ? WHERE name = ?", (_json(after.wish), after.name))
    return machine(db, after.name)


def act(
    db: sqlite3.Connection,
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
        db.execute("UPDATE machines SET moved = 1 WHERE name = ?", (name,))
    if identity:
        note_identity(db, name, identity)
    return machine(db, name)


def adopt(db: sqlite3.Connection, name: str, wish: Wish, now_ns: int) -> None:
    """What its agent goes by is what is wanted of the machine."""
    ensure_machine(db, name, now_ns)
    wish = _keeping(machine(db, name).wish, wish)
    _put_wish(db, name, wish, now_ns, incarnations.history(db)[-1])
    heard(db, name)


def withdraw(db: sqlite3.Connection, name: str) -> None:
    """Nobody knows whether its act still counts: no opinion, until somebody says what is wanted."""
    db.execute(
        "UPDATE machines SET wish = NULL, wish_ns = NULL, wish_incarnation = NULL, protected = 0, ended = 0 WHERE name = ?",
        (name,),
    )


def keep(
    db: sqlite3.Connection,
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


def heard(db: sqlite3.Connection, name: str) -> None:
    """Its agent goes by what it was told."""
    db.execute("UPDATE machines SET dropped = '[]', moved = 0 WHERE name = ?", (name,))


def forget_unheard(db: sqlite3.Connection) -> None:
    """Of all machines: the database is older than what their agents know, so what was said of their disks and process servers may not be
    the last word."""
    db.execute("UPDATE machines SET dropped = '[]', moved = 0")


def _drop(db: sqlite3.Connection, name: str, disks: Sequence[WantedDisk]) -> None:
    db.execute("UPDATE machines SET dropped = ? WHERE name = ?", (_json(disks), name))


def renumber(db: sqlite3.Connection, name: str, wish: Wish, over: Mark) -> Wish:
    """The same act, with a number above `over`, which its agent goes by and this database did not know when the act was made: an agent
    takes no lower number for news."""
    current = incarnations.history(db)[-1]
    number = wishes.next_number((wish.mark, over))
    again = msgspec.structs.replace(wish, mark=Mark(current, number, wish.mark.act))
    db.execute(
        "UPDATE machines SET wish = ?, wish_incarnation = ? WHERE name = ?", (_json(again), current, name)
    )
    return again


def _keeping(before: Wish | None, wish: Wish) -> Wish:
    if wish.verb is not Verb.STOP or before is None:
        return wish
    return msgspec.structs.replace(wish, disks=before.disks, process_servers=before.process_servers)


def _put_wish(db: sqlite3.Connection, name: str, wish: Wish, now_ns: int, incarnation: str) -> None:
    protected = wish.verb is Verb.PROTECT
    db.execute(
        "UPDATE machines SET wish = ?, wish_ns = ?, wish_incarnation = ?, protected = ?, ended = ? WHERE name = ?",
        (_json(wish), now_ns, incarnation, protected, not protected, name),
    )
    if protected:  # of one that is stopped it stays known which they were
        _put_disks(db, name, wish.disks)


def _put_disks(db: sqlite3.Connection, name: str, disks: Sequence[WantedDisk]) -> None:
    """No disk twice."""
    known = wishes.once(disks)[:MOST_DISKS]
    db.execute("UPDATE machines SET disks = ? WHERE name = ?", (_json(known), name))


def save_report(db: sqlite3.Connection, stored: StoredReport) -> None:
    db.execute(
        "INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?)",
        (stored.role, stored.name, stored.received_ns, stored.report.decode()),
    )


def reports(db: sqlite3.Connection) -> list[StoredReport]:
    return [
        StoredReport(Role(row["role"]), row["name"], row["received_ns"], row["report"].encode())
        for row in db.execute("SELECT * FROM reports")
    ]


def _machine(db: sqlite3.Connection, row: sqlite3.Row) -> Machine:
    assigned = policies.of_row(db, row)
    return Machine(
        name=row["name"],
        protected=bool(row["protected"]),
        disks=decoding.decode(row["disks"], type=tuple[WantedDisk, ...]),
        policy=assigned.policy,
        created_ns=row["created_ns"],
        ended=bool(row["ended"]),
        policy_name=assigned.name,
        wish=None if row["wish"] is None else decoding.decode(row["wish"], type=Wish),
        wish_ns=row["wish_ns"] or 0,
        wish_incarnation=row["wish_incarnation"] or "",
        identity=row["identity"],
        dropped=decoding.decode(row["dropped"], type=tuple[WantedDisk, ...]),
        deletion=None if row["deletion"] is None else decoding.decode(row["deletion"], type=Deletion),
        moved=bool(row["moved"]),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

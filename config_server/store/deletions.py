"""Deletions of machines in the database: asked for, counted, taken back, done. Functions of a transaction.

A deletion is kept with its machine. Whoever changes it names the one that he means, and the stage in which he saw it: what was taken
back, or asked for again, since he looked is not changed.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from config_server.rules.deletion import Deletion, Stage, of_acts
from config_server.rules.facts import SELF
from config_server.rules.machine import Machine
from config_server.store import commands, events, grants, incarnations, inventory, jobs
from shared.api.events import EventKind
from shared.errors import BeingDeletedError
from shared.status import Problem
from shared.vocabulary import Role, Severity


def all_(db: Connection) -> list[tuple[Machine, Deletion]]:
    """The machines that are to be deleted."""
    found = inventory.machines(db)
    return [(machine, machine.deletion) for machine in found if machine.deletion is not None]


def put(db: Connection, name: str, deletion: Deletion | None) -> None:
    inventory.put_deletion(db, name, deletion)


def current(db: Connection, name: str, id_: str) -> Machine | None:
    """The machine, if this deletion of it stands, by the word of somebody in this incarnation, and nothing else is wanted since."""
    machine = inventory.find(db, name)
    if machine is None or machine.deletion is None or machine.deletion.id != id_:
        return None
    return None if of_acts(name, machine.deletion, machine.wish, incarnations.history(db)[-1]) else machine


def count(db: Connection, name: str, id_: str, passed_ns: int, now_ns: int) -> Deletion | None:
    """So much more of the delay has passed. None: it does not stand any more."""
    machine = current(db, name, id_)
    if machine is None or machine.deletion is None:
        return None
    deletion = msgspec.structs.replace(
        machine.deletion, passed_ns=machine.deletion.passed_ns + passed_ns, counted_ns=now_ns
    )
    put(db, name, deletion)
    return deletion


def advance(
    db: Connection, name: str, seen: Deletion, to: Stage, now_ns: int, said_ns: int | None = None
) -> list[str] | None:
    """From the stage in which it was `seen` to another one, with `said_ns` where that is given; unless the machine is in use: then by
    what. None: the deletion is not as it was seen."""
    machine = current(db, name, seen.id)
    if machine is None or machine.deletion is None or machine.deletion.stage is not seen.stage:
        return None
    if to is not Stage.CLOSED and (found := running(db, name, now_ns)):
        return found
    said_ns = machine.deletion.said_ns if said_ns is None else said_ns
    put(db, name, msgspec.structs.replace(machine.deletion, stage=to, said_ns=said_ns))
    return []


def running(db: Connection, name: str, now_ns: int) -> list[str]:
    """What reads the machine in storage, in words. `now_ns` is storage's time of day, by which grants end."""
    return [
        *(f"a {kind} of it runs (job {id_})" for id_, kind in jobs.running(db, name)),
        *(f"{who} may read it by a grant (grant {id_})" for id_, who in grants.living_of(db, name, now_ns)),
    ]


def check_readable(db: Connection, name: str) -> None:
    """Before somebody is given access. Raises BeingDeletedError."""
    machine = inventory.find(db, name)
    if machine is not None and is_past_recall(db, machine):
        raise being_deleted(name, f"Access to machine '{name}' was not granted")


def is_past_recall(db: Connection, machine: Machine) -> bool:
    """Storage was asked to delete it, as far as this database knows how things are now."""
    deletion = machine.deletion
    return (
        deletion is not None
        and deletion.stage is Stage.REMOVING
        and deletion.incarnation == incarnations.history(db)[-1]
    )


def being_deleted(name: str, what: str) -> BeingDeletedError:
    return BeingDeletedError(
        what, cause=f"'{name}' is being deleted: storage was asked to delete its container"
    )


def note(db: Connection, name: str, what: str, action: str, now_ns: int) -> None:
    """As an event."""
    happened = Problem(code="", what=what, action=action, severity=Severity.WARNING, object=name)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)


def follow(db: Connection, before: Machine, after: Machine) -> None:
    """Somebody has said again that it is to stop, as was said with its deletion."""
    deletion = before.deletion
    if deletion is None or before.wish is None or after.wish is None or before.wish.mark.act != deletion.act:
        return
    put(db, after.name, msgspec.structs.replace(deletion, act=after.wish.mark.act))


def remove(db: Connection, name: str) -> None:
    """All that is kept of the machine but what happened: events, jobs, and the audit log."""
    inventory.forget(db, name)
    grants.forget_all(db, name)
    commands.forget(db, f"{Role.AGENT}:{name}")

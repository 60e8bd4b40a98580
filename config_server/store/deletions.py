"""Deletions of machines in the database: asked for, counted, taken back, done. Functions of a transaction.

A deletion is kept with its machine. Whoever changes it names the one that he means, and the stage in which he saw it: what was taken
back, or asked for again, since he looked is not changed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
from sqlalchemy import Connection

from config_server.rules import deletion as rules
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Stage, of_acts
from config_server.rules.facts import SELF
from config_server.rules.lanes import WATCHES
from config_server.rules.machine import Machine
from config_server.rules.wishes import made_ns
from config_server.store import audit, commands, events, grants, incarnations, inventory, jobs
from shared.api.events import EventKind
from shared.desired import Mark
from shared.errors import BeingDeletedError
from shared.status import Problem
from shared.vocabulary import Role, Severity

DONE: Final = "machine.deleted"
"""In the audit log; with it stays which act it was (`was_done`)."""


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
    """So much more of the delay has passed (when it is over, nothing more is counted of it), and since its jobs were given up. None: it
    does not stand any more."""
    machine = current(db, name, id_)
    if machine is None or machine.deletion is None:
        return None
    before = deletion = machine.deletion
    since = {job: before.given_up.get(job, -passed_ns) + passed_ns for job in jobs.given_up(db, name)}
    deletion = msgspec.structs.replace(deletion, given_up=since)
    if not before.is_due:
        deletion = msgspec.structs.replace(
            deletion, passed_ns=before.passed_ns + passed_ns, counted_ns=now_ns
        )
    if deletion != before:
        put(db, name, deletion)
    return deletion


def stands(db: Connection, name: str, seen: Deletion) -> Deletion | None:
    """It, if it is as it was seen."""
    machine = current(db, name, seen.id)
    if machine is None or machine.deletion is None or machine.deletion.stage is not seen.stage:
        return None
    return machine.deletion


def advance(
    db: Connection, name: str, seen: Deletion, to: Stage, now_ns: int, *, dry_run: bool = False
) -> list[str] | None:
    """From the stage in which it was `seen` to another one; unless the machine is in use: then by what (`running`). None: the deletion is
    not as it was seen. `dry_run`: only say so."""
    deletion = stands(db, name, seen)
    if deletion is None:
        return None
    over = {job for job, since_ns in deletion.given_up.items() if since_ns >= rules.GIVEN_UP_S * SECOND_NS}
    # Back to closed, and behind a request that was done, nobody is asked.
    is_begun = deletion.stage is Stage.REMOVING or to is Stage.CLOSED
    if not is_begun and (found := running(db, name, now_ns, over)):
        return found
    if not dry_run:
        put(db, name, msgspec.structs.replace(deletion, stage=to))
    return []


def running(db: Connection, name: str, now_ns: int, over: Collection[str] = ()) -> list[str]:
    """What reads the machine in storage, or may, in words. `now_ns` is storage's time of day, by which grants end; `over`: jobs that were
    given up for good. (One that waits for an agent that never comes reads nothing.)"""
    return [
        *(f"a {kind} of it runs (job {id_})" for id_, kind in jobs.running(db, name) if kind not in WATCHES),
        *(
            f"job {id_}, of which nothing is heard, may go on"
            for id_ in jobs.given_up(db, name)
            if id_ not in over
        ),
        *(f"{who} may read it by a grant (grant {id_})" for id_, who in grants.living_of(db, name, now_ns)),
    ]


def check_not_removed(db: Connection, name: str, place: str, what: str) -> Machine | None:
    """The machine. Raises BeingDeletedError with these words where storage was asked to delete it, as far as this database knows how things
    are now; `place` is where storage is."""
    machine = inventory.find(db, name)
    deletion = None if machine is None else machine.deletion
    if deletion is not None and deletion.is_past_recall and not is_of_before(db, deletion, place):
        so_far = (
            "its container has gone, and its entry in the registry goes, too"
            if deletion.stage is Stage.GONE
            else "storage was asked to delete its container"
        )
        raise BeingDeletedError(what, cause=f"'{name}' is being deleted: {so_far}")
    return machine


def check_readable(db: Connection, name: str, place: str) -> None:
    """Before somebody is given access. Raises BeingDeletedError."""
    check_not_removed(db, name, place, f"Access to machine '{name}' was not granted")


def is_of_before(db: Connection, deletion: Deletion, place: str) -> bool:
    """Whether this database was put back since, or storage is another account: then what became of it is not known here, whatever its
    stage."""
    return deletion.incarnation != incarnations.history(db)[-1] or deletion.place not in ("", place)


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


def note_enrolled(db: Connection, name: str) -> None:
    """An agent was enrolled under the machine's name: it may be another machine's, and nobody has said of it that it shall go."""
    machine = inventory.find(db, name)
    if machine is not None and machine.deletion is not None:
        put(db, name, msgspec.structs.replace(machine.deletion, is_enrolled=True))


def was_done(db: Connection, name: str, mark: Mark) -> bool:
    """Whether a machine of this name was deleted, and this is an act to stop of it: the one that was made with the deletion, or an earlier
    one of this database, which its agent kept because it heard of none since."""
    acts = [detail["act"] for detail in audit.details(db, DONE, name) if "act" in detail]
    made = made_ns(mark.act) if mark.incarnation in incarnations.history(db) else None
    later = (last for act in acts if (last := made_ns(act)) is not None)
    return mark.act in acts or (made is not None and any(made < last for last in later))


def is_done(db: Connection, name: str, id_: str) -> bool:
    """Whether this deletion of a machine of that name was done."""
    return any(detail.get("deletion") == id_ for detail in audit.details(db, DONE, name))


def remove(db: Connection, name: str, now_ns: int) -> None:
    """All that is kept of the machine goes, but what happened: events, jobs, and the audit log. Nobody else says that what its agent
    reported is over."""
    agent = f"{Role.AGENT}:{name}"
    events.reconcile(db, agent, (), now_ns)
    inventory.forget(db, name)
    grants.forget_all(db, name)
    commands.forget(db, agent)

"""What the config server judges every few seconds: problems that nobody reports of himself, jobs that were left, what has expired."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from config_server.operations.control import Control
from config_server.operations.jobs import Jobs
from config_server.operations.reporting import log_changes
from config_server.operations.restores import note_ended
from config_server.operations.sides import Sides
from config_server.rules import wrong
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import SELF, facts_of, replicates, reported_ns
from config_server.rules.machine import Machine
from config_server.store import commands, events, inventory, jobs, lasting_record, replicas
from config_server.store.database import Connection
from shared.api.events import EventView
from shared.api.points import PointView
from shared.daemon import logging
from shared.errors import (
    LookFailedError,
    UnderstudyError,
)
from shared.status import Problem

_log = logging.get()

THOUGHT_OF: Final = (UnderstudyError, OSError)
_LEASE_S: Final = 15.0
"""Of several config servers the one that swept last goes on, until it has not for so long."""
_LASTING_NS: Final = 60 * SECOND_NS
"""How often it is written down what is not well and how long it has lasted: so much of it a restart may forget."""


async def once(control: Control, sides: Sides, known_jobs: Jobs) -> None:
    known = await control.db.run(inventory.machines)
    last_points = await _last_points(control, known)
    now_ns, mono_ns = control.now_ns(), control.mono_ns()

    more = control.others.more_problems() if control.others is not None else ()
    problems = [*more, *sides.problems(), *control.presence.twins(mono_ns), *control.own_problems()]
    for machine in known:
        problems += _judged(control, machine, last_points.get(machine.name), mono_ns)

    kept = control.lasting.kept() if mono_ns - control.lasting_saved_ns > _LASTING_NS else None

    def work(db: Connection) -> tuple[jobs.Heard, list[EventView], list[str]]:
        heard = jobs.heard(db, control.job_heard, mono_ns)
        if not control.holds(db, "sweep", _LEASE_S):
            return heard, [], []  # another server has the sweep; this one has looked, and can go on with it
        if kept is not None:
            lasting_record.save(db, kept)
        changed = events.reconcile(db, SELF, [*problems, *known_jobs.standing(db)], now_ns)
        for job in jobs.fail_silent(db, heard, mono_ns, now_ns):
            note_ended(db, job, SELF, now_ns)
        events.trim(db, now_ns)
        if control.others is not None:
            replicas.bury(db, control.others.there())
        return heard, changed, commands.expire(db, now_ns)

    control.job_heard, changed, expired = await control.db.run(work)
    if kept is not None:
        control.lasting_saved_ns = mono_ns
    log_changes(changed)
    for id_ in expired:
        control.bell.ring(id_)


def _judged(control: Control, machine: Machine, last_point: PointView | None, mono_ns: int) -> list[Problem]:
    """Each machine for itself: what cannot be judged of one is a problem of that one."""
    try:
        return list(wrong.derived_problems(machine, control.facts(machine, last_point), mono_ns))
    except Exception as exc:  # noqa: BLE001 - whatever its daemons reported
        error = explained(f"The state of {machine.name} could not be judged", exc)
        _log.error("machine not judged", exc_info=exc, **error.as_dict())
        return [Problem(**error.as_dict(), object=machine.name)]


async def _last_points(control: Control, machines: Sequence[Machine]) -> dict[str, PointView | None]:
    """The newest points of the machines that replicate, or should, and whose daemons do not know what storage holds: for the others it
    is not asked."""
    mono_ns = control.mono_ns()
    known = ((machine, facts_of(control.presence, machine.name, mono_ns)) for machine in machines)
    silent = [
        machine.name
        for machine, facts in known
        if (machine.protected or replicates(machine, facts, mono_ns)) and not reported_ns(facts)
    ]
    found = await asyncio.gather(*(control.storage.last_point(name) for name in silent))
    return dict(zip(silent, found, strict=True))


def explained(what: str, exc: Exception) -> UnderstudyError:
    if isinstance(exc, UnderstudyError):
        return exc
    thought_of = isinstance(exc, THOUGHT_OF)  # a full disk, say
    return LookFailedError(
        what, cause=str(exc) if thought_of else f"an error inside the config server: {type(exc).__name__}"
    )

"""The jobs that see whether operators' acts came true: begun in the transactions of these acts, which wait for none of them; and an act is
taken back. Functions of a transaction.

Who says the same again while its job goes on has that job, which sees to the later act from then on: scripts say `machine protect` every
hour. Who says something else has a job that takes the other's place (`journal.supersede`). Where what is said is so already there is
nothing to see to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple, TypeGuard, TypeVar

import msgspec

from config_server.jobs.kinds import Waits
from config_server.operations.control import Control, new_id
from config_server.rules import acts as rules
from config_server.rules.acts import Act, Rebound, Said
from config_server.rules.facts import Facts, facts_of
from config_server.rules.lanes import Lane, Watch
from config_server.rules.machine import Machine
from config_server.rules.sights import goes_by
from config_server.store import audit, incarnations, inventory, journal
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared import decoding
from shared.api.jobs import Direction, StepState
from shared.desired import Mark, Verb
from shared.status import AgentReport

_T = TypeVar("_T")
VERSION: Final = 1
"""Of the steps of each of these kinds."""
SET: Final = "set"
"""Their first step: what the act's own transaction does."""
LOOK_S: Final = 10.0
"""Between two looks at what an agent does. (What it does otherwise than before wakes the job, and so does an agent that comes back:
reporting.py.)"""
RARELY_S: Final = 300.0
"""The same while that is not heard: perhaps for weeks, and of many machines."""


def facts(control: Control, machine: str) -> Facts:
    """What its daemons report, and what they were told."""
    found = facts_of(control.presence, machine, control.mono_ns())
    return msgspec.structs.replace(
        found, untaken=control.untaken.of(machine), withheld_ns=control.untaken.withheld_ns(machine)
    )


class Moment(NamedTuple):
    """What was known when somebody spoke."""

    who: str
    now_ns: int
    mono_ns: int
    facts: Facts
    report: AgentReport | None
    """The last one of its agent, if that speaks for the machine."""


def moment(control: Control, machine: str, who: str, report: AgentReport | None = None) -> Moment:
    return Moment(who, control.now_ns(), control.mono_ns(), facts(control, machine), report)


def begin(db: Connection, kind: Watch, before: Machine | None, after: Machine, at: Moment) -> str:
    """The id of the job that sees to an act, by which the machine was `before` and is `after`; empty where there is nothing to be done. In
    the transaction of the act."""
    assert after.wish is not None
    act = rules.act_over(before, after.wish, at.report)
    there = journal.in_lane(db, after.name, Lane.LIFE)
    if kind is Watch.UNPROTECT and _is_of_deletion(there):
        return (
            there.id
        )  # that it is to stop was said with its deletion, too, which goes on (deletions.follow)
    its_act = _readable(act_of, there)
    if before is not None and before.wish is not None:
        is_its_own = its_act is not None and its_act.act == before.wish.mark.act
        if rules.is_same(before.wish, after.wish):
            if there is not None and its_act is not None and is_its_own and goes_on(there):
                again = msgspec.structs.replace(
                    its_act, act=act.act, wants=act.wants, incarnation=act.incarnation
                )
                journal.say_again(db, there.id, msgspec.to_builtins(again), at.now_ns)
                return there.id
            if at.report is not None and rules.is_done(before, at.facts, at.mono_ns):
                return ""
            if there is not None and there.kind == Watch.REBIND and goes_on(there):
                return there.id  # what was wanted already takes nobody's place
        if there is not None and its_act is not None and is_its_own and there.cancelled_by:
            # Its act is to be taken back, and that is only not done yet.
            act = msgspec.structs.replace(
                act, before=its_act.before, captured=its_act.captured, instead_of=its_act.instead_of
            )
    lanes = (Lane.LIFE, Lane.DATA) if kind is Watch.UNPROTECT else (Lane.LIFE,)
    return _instead(db, kind, after.name, lanes, act, at)


def begin_rebind(
    db: Connection, name: str, machine: Machine | None, rebound: Rebound, at: Moment, *, is_repeated: bool
) -> str:
    """As `begin`. `machine`: None where nothing is known of it but in storage; `is_repeated`: it was that hardware before. Of one
    that is to be deleted the deletion's job sees whose it is by now."""
    there = journal.in_lane(db, name, Lane.LIFE)
    if _is_of_deletion(there):
        return there.id
    if is_repeated:
        of_there = _readable(rebound_of, there) if there is not None and goes_on(there) else None
        if there is not None and of_there is not None and of_there.identity == rebound.identity:
            return there.id
        if not rules.unserved(machine, rebound.identity, at.facts, at.mono_ns):
            return ""
    return _instead(db, Watch.REBIND, name, (Lane.LIFE,), rebound, at)


def act_of(job: Job) -> Act | None:
    """None: it is none that sees to a `protect` or `unprotect`, or one of another version. Raises msgspec.ValidationError for arguments
    that this program did not write."""
    is_one = job.kind in (Watch.PROTECT, Watch.UNPROTECT) and job.version == VERSION
    return decoding.convert(job.args, type=Act) if is_one else None


def rebound_of(job: Job) -> Rebound | None:
    """As `act_of`."""
    is_one = job.kind == Watch.REBIND and job.version == VERSION
    return decoding.convert(job.args, type=Rebound) if is_one else None


def take_back(
    db: Connection, job: Job, report: AgentReport | None, now_ns: int, *, is_heard: bool
) -> bool | Waits:
    """A person has cancelled the job: unless something else holds by now, what was wanted before its act is said again, with the mark of
    another act, so that it is done once. Whether it was. `report`: the last one of the machine's agent; `is_heard`: it is no older one.
    Raises RequestError for what this version cannot say.

    Where the database was put back since the act was said, the job may have come to its end in what was lost, weeks ago: what its agent
    goes by is not taken from it. So it has to be heard first.
    """
    if job.superseded_by or not job.cancelled_by:
        return False
    act, machine = act_of(job), inventory.find(db, job.machine)
    if act is None or machine is None or machine.wish is None or machine.wish.mark.act != act.act:
        return False
    if _is_of_before(db, act):
        if report is None or not is_heard:
            why = (
                f"the agent of {job.machine}, to say whether it goes by this: the database was put back since"
            )
            return Waits(why, RARELY_S)
        if goes_by(report, machine.wish):
            raise rules.may_have_ended(job.machine)
    said = rules.as_before(job.machine, act, machine.wish, is_heard=report is not None)
    if said is not None and said.is_wanted(machine.wish):
        return False
    if said is None:
        action, after = "machine.wish.withdrawn", inventory.take_back(db, job.machine)
    else:
        action = "machine.protect" if said.verb is Verb.PROTECT else "machine.unprotect"
        known = report.wish.mark if report is not None and report.wish is not None else None
        after = _say(db, job.machine, said, known, now_ns)
    detail = {"before": rules.plain(machine), "after": rules.plain(after), "cancelled": job.id}
    audit.add(db, job.cancelled_by, action, job.machine, detail, now_ns)
    return True


def goes_on(job: Job) -> bool:
    """One that stands still sees to nothing."""
    return job.direction is Direction.FORWARD and not job.attention


# ---- inside


def _readable(read: Callable[[Job], _T | None], there: Job | None) -> _T | None:
    """None also where its arguments cannot be read: it is in the way of nothing that is said of the machine."""
    try:
        return None if there is None else read(there)
    except msgspec.ValidationError:
        return None


def _is_of_deletion(there: Job | None) -> TypeGuard[Job]:
    """Whether the job is one of a deletion that holds, also where that stands still for a person's word."""
    return there is not None and there.kind == Watch.DELETE and there.direction is Direction.FORWARD


def _is_of_before(db: Connection, act: Act) -> bool:
    """Whether the database was put back since the act was said."""
    *former, current = incarnations.history(db)
    return act.incarnation != current if act.incarnation else bool(former)


def _instead(
    db: Connection, kind: Watch, machine: str, lanes: Collection[Lane], args: Act | Rebound, at: Moment
) -> str:
    """A new job, in the place of all that have one of these lanes; its own is LIFE."""
    id_ = new_id()
    journal.supersede(db, machine, lanes, at.who, id_, at.now_ns)
    return journal.create(
        db,
        kind=kind,
        version=VERSION,
        machine=machine,
        lane=Lane.LIFE,
        who=at.who,
        args=msgspec.to_builtins(args),
        now_ns=at.now_ns,
        id_=id_,
        begun=[(SET, StepState.DONE)],
    )


def _say(db: Connection, machine: str, said: Said, known: Mark | None, now_ns: int) -> Machine:
    def act(verb: Verb) -> Machine:
        return inventory.act(
            db,
            machine,
            verb,
            now_ns,
            disks=said.disks,
            process_servers=said.process_servers,
            known=known,
        )

    if said.verb is Verb.STOP:
        act(Verb.PROTECT)  # nobody hears it: a stop keeps what was to be protected until then
    return act(said.verb)

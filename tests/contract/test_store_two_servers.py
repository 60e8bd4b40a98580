"""Two config servers at once: whatever reads and then writes, interleaved at every statement with what would be in its way.

One server is held before its n-th statement, for each n, and before its commit; the other does all of its own meanwhile, as far as it is
let; then the first goes on. What both were told, and what the database then holds, is what it would be had one of them been first. On
SQLite nobody gets in between: that is shown at each of the same places.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, event, select, update

from config_server.operations import act_jobs
from config_server.rules import deletion as rules
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Stage
from config_server.rules.facts import Facts
from config_server.rules.lanes import Watch
from config_server.rules.revocations import Record
from config_server.store import (
    audit,
    certificates,
    commands,
    deleted,
    deletions,
    events,
    grants,
    incarnations,
    inventory,
    jobs,
    journal,
    operators,
    policies,
    postgresql,
    replicas,
    restored,
    restores,
    revocation,
    schema,
    settings,
    sqlite,
    taking_in,
    tokens,
)
from config_server.store.certificates import Issued
from config_server.store.config import DatabaseConfig
from config_server.store.database import Engine
from config_server.store.grants import Grant
from config_server.store.inventory import StoredReport
from config_server.store.postgresql import Postgresql
from config_server.store.sqlite import Sqlite
from shared.api.commands import CommandKind
from shared.api.jobs import Direction, JobProgress, JobState, StepState, WorkerState
from shared.api.policies import Policy
from shared.api.route import Failure
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import JobGivenUpError, RequestError, UnderstudyError
from shared.status import Problem
from shared.vocabulary import Role
from tests import older_jobs
from tests.postgres import Postgres

NOW: Final = 1_700_000_000 * SECOND_NS
WEB1: Final = "agent:web1"
SDA, SDB = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")
TOKEN: Final = tokens.Grant(Role.AGENT, "web1", ())
GRANT: Final = Grant(
    id="g1", machine="web1", container="c1", who="operator:admin", host="h", given_ns=NOW, expires_ns=NOW + 10, request="r1"
)  # fmt: skip
BROKE: Final = Problem(code="US410", what="it broke", object="web1")

Work = Callable[[Connection], Any]


class Case(NamedTuple):
    given: Work
    one: Work
    other: Work


# ---- what there is, and what is done with it


def nothing(_db: Connection) -> None:
    pass


def a_token(db: Connection) -> None:
    tokens.add(db, b"token", TOKEN, NOW, NOW + SECOND_NS)


def protected(db: Connection) -> None:
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,), identity="hw")


def protect(number: int, *disks: WantedDisk) -> Work:
    return lambda db: inventory.act(db, "web1", Verb.PROTECT, NOW + number, disks=disks)


def stop(db: Connection) -> Any:
    return inventory.act(db, "web1", Verb.STOP, NOW + 5)


def adopt(db: Connection) -> None:
    inventory.adopt(db, "web1", Wish(mark=Mark("other", 9, "y"), verb=Verb.STOP), NOW)


def withdraw(db: Connection) -> None:
    inventory.withdraw(db, "web1")


def begin_anew(db: Connection) -> Any:
    before = inventory.machine(db, "web1").wish
    assert before is not None
    return inventory.begin_anew(db, "web1", "new", NOW, replace(before, disks=()), [before.mark])


def settle(db: Connection) -> None:
    """As operations/desired_state.py."""
    inventory.ensure_machine(db, "web1", NOW)
    known = inventory.machine(db, "web1")
    inventory.settle(db, known, replace(known, disks=(*known.disks, SDB)))


def to_be_deleted(stage: Stage) -> Work:
    def given(db: Connection) -> None:
        protected(db)
        wish = stop(db).wish
        deletion = Deletion(
            id="d1", incarnation=incarnations.history(db)[-1], who="operator:admin", asked_ns=NOW, after_ns=10, counted_ns=NOW,
            act=wish.mark.act, container="c1", identity="hw", stage=stage,
        )  # fmt: skip
        deletions.put(db, "web1", deletion)

    return given


def seen(db: Connection) -> Deletion:
    found = inventory.machine(db, "web1").deletion
    assert found is not None
    return found


def advance(stage: Stage, to: Stage) -> Work:
    """As one that was seen in that stage before."""

    def work(db: Connection) -> Any:
        deletion = inventory.machine(db, "web1").deletion
        return deletion and deletions.advance(db, "web1", replace(deletion, stage=stage), to, NOW)

    return work


def ask(db: Connection) -> None:
    """As operations/deleting.py, of one that nobody had enrolled when it was looked at."""
    if certificates.enrolments(db, Role.AGENT, "web1"):
        raise RequestError("an agent was enrolled meanwhile")
    to_be_deleted(Stage.WAITING)(db)


def keep(db: Connection) -> bool:
    """As operations/deleting.py; whether its agent has to be enrolled anew."""
    deletions.check_not_removed(db, "web1", "vault", "too late")
    deletions.put(db, "web1", None)
    return revocation.is_refused(db, Role.AGENT, "web1")


def revoke_closing(db: Connection) -> bool:
    """As operations/deletion_sweep.py: of one that stands as it was seen."""
    deletion = inventory.machine(db, "web1").deletion
    stands = deletion is not None and deletions.stands(db, "web1", replace(deletion, stage=Stage.CLOSING))
    if stands:
        revoke(WEB1)(db)
    return bool(stands)


def finish(db: Connection) -> None:
    """As operations/deletion_sweep.py."""
    deletion = inventory.machine(db, "web1").deletion
    if deletion is not None:
        audit.add(db, "config-server", deletions.DONE, "web1", {"act": "x"}, NOW)
        deleted.note(db, deletion.container, "web1", NOW)
        deletions.remove(db, "web1", NOW)


def what_was_deleted(db: Connection) -> dict[str, str]:
    return deleted.among(db, ["c1"])


def give(db: Connection) -> None:
    """As operations/granting.py."""
    deletions.check_readable(db, "web1", "vault")
    grants.add(db, GRANT)


def give_asked(id_: str) -> Work:
    def work(db: Connection) -> str:
        before = grants.asked_for(db, "r1")
        if before is None:
            grants.add(db, replace(GRANT, id=id_))
        return id_ if before is None else before.id

    return work


def granted(db: Connection) -> None:
    grants.add(db, GRANT)


def extend(db: Connection) -> None:
    if grants.get(db, "web1", "g1").ended_ns is None:
        grants.extend(db, "g1", NOW + 20)


def reported(*problems: Problem, at: int = 0) -> Work:
    def work(db: Connection) -> list[tuple[str, bool]]:
        changed = events.reconcile(db, WEB1, problems, NOW + at)
        return [(view.what, view.resolved is None) for view in changed]

    return work


def a_policy(db: Connection) -> None:
    policies.put(db, "gold", Policy(rpo_threshold_s=60))
    inventory.ensure_machine(db, "web1", NOW)


def command(kind: CommandKind = CommandKind.MARK) -> Work:
    return lambda db: commands.add(db, "c1", WEB1, kind, {}, NOW)


def resync(id_: str) -> Work:
    """As operations/points.py: once is enough."""

    def work(db: Connection) -> str:
        same = commands.waiting(db, WEB1, CommandKind.RESYNC)
        return (same or commands.add(db, id_, WEB1, CommandKind.RESYNC, {}, NOW)).id

    return work


def a_job(db: Connection) -> None:
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)


def silent(db: Connection) -> None:
    """A job that was given up for good, over a machine that is to be deleted."""
    to_be_deleted(Stage.CLOSED)(db)
    a_job(db)
    jobs.fail_silent(db, {"j1": (NOW, 0)}, 10**15, NOW)
    for passed_ns in (0, int(rules.GIVEN_UP_S * SECOND_NS)):
        deletions.count(db, "web1", "d1", passed_ns, NOW)


def counted_with_a_job(db: Connection) -> None:
    to_be_deleted(Stage.WAITING)(db)
    a_job(db)


def job(state: WorkerState) -> Work:
    return lambda db: jobs.update(db, "j1", JobProgress(state=state), NOW + 1)


MINE: Final = journal.Held("j1", 1, "mine")
"""Of who has a job that is driven."""
HOUR_NS: Final = 3600 * SECOND_NS


def begin_job(db: Connection) -> None:
    journal.create(
        db, kind="resync", version=1, machine="web1", lane="data", who="operator:o", args={}, now_ns=NOW
    )


def a_driven_job(db: Connection) -> None:
    begin_job(db)
    db.execute(update(schema.jobs).values(id=MINE.id))


def a_claimed_job(lease_ns: int) -> Work:
    def given(db: Connection) -> None:
        a_driven_job(db)
        journal.claim(db, MINE.id, "cs1", lease_ns)
        db.execute(update(schema.jobs).values(word=MINE.word))

    return given


def claim(owner: str) -> Work:
    return lambda db: journal.claim(db, MINE.id, owner, HOUR_NS)


def a_job_stands(db: Connection) -> None:
    a_claimed_job(HOUR_NS)(db)
    journal.ask_for_attention(db, MINE, waits="a person", error=Failure("US1", "x"))


def put_step(db: Connection) -> str:
    """As jobs/runner.py: what it does next is by what it hears."""
    return journal.put(db, MINE, HOUR_NS, "ask", journal.Entry(state=StepState.BEGUN, tries=0), NOW).direction


def end_job(db: Connection) -> bool:
    """As jobs/runner.py."""
    is_forward = journal.renew(db, MINE, HOUR_NS).direction is Direction.FORWARD
    if is_forward:
        journal.end(db, MINE, JobState.DONE, {}, NOW)
    return is_forward


def a_restore_that_is_driven(db: Connection) -> None:
    args = {restores.GRANT: "g1"}
    journal.create(
        db, kind=restores.KIND, version=restores.VERSION, machine="web1", lane="", who="operator:o", args=args, now_ns=NOW, id_=MINE.id
    )  # fmt: skip
    journal.claim(db, MINE.id, "cs1", HOUR_NS)
    db.execute(update(schema.jobs).where(schema.jobs.c.id == MINE.id).values(word=MINE.word))


def a_restore_that_stands(db: Connection) -> None:
    to_be_deleted(Stage.CLOSED)(db)
    a_restore_that_is_driven(db)
    given_up = restores.failure_of(JobGivenUpError("x"))
    journal.ask_for_attention(db, MINE, waits="a word", error=given_up)
    for passed_ns in (0, int(rules.GIVEN_UP_S * SECOND_NS)):
        deletions.count(db, "web1", "d1", passed_ns, NOW)


def heard(state: WorkerState, at: int = 1) -> Work:
    said = JobProgress(state=state, result={"at": at}, error=Failure("US1", f"{at}"))
    return lambda db: restores.hear(db, MINE.id, said, "operator:o", NOW + at).is_end


def let_go(*, stands: bool = False) -> Work:
    """As jobs/runner.py, of a restore of which nothing was heard until it was looked at."""

    def work(db: Connection) -> str:
        if journal.renew(db, MINE, HOUR_NS).direction is not Direction.FORWARD:
            return "turned"
        if restores.worker(db, MINE.id).heard_ns:
            return "heard"
        if stands:
            journal.stand(db, MINE, waits="a word", error=restores.failure_of(JobGivenUpError("x")))
        else:
            journal.pause(db, MINE, waits="the command", pause_ns=HOUR_NS, now_ns=None)
        # When it is woken is by the clock, so it cannot be compared; whether it was is.
        row = update(schema.jobs).where(schema.jobs.c.id == MINE.id, schema.jobs.c.wake_ns > 0)
        db.execute(row.values(wake_ns=1))
        return "let go"

    return work


def another_by_its_grant(db: Connection) -> None:
    args = {restores.GRANT: "g1"}
    journal.create(
        db, kind=restores.KIND, version=restores.VERSION, machine="web1", lane="", who="operator:o", args=args, now_ns=NOW, id_="other"
    )  # fmt: skip


def end_unless_shared(db: Connection) -> None:
    """As operations/granting.py."""
    if not restores.have_grant(db, "web1", "g1", MINE.id):
        grants.end(db, "g1", "operator:o", NOW, returned=True)


def begin_by_a_grant(db: Connection) -> None:
    """As operations/restores.py."""
    if grants.get(db, "web1", "g1").lives(NOW):
        another_by_its_grant(db)


def granted_and_driven(db: Connection) -> None:
    granted(db)
    a_restore_that_is_driven(db)


def a_restore_that_was_cancelled(db: Connection) -> None:
    a_restore_that_is_driven(db)
    cancel_job(db)


def two_of_one_grant(db: Connection) -> None:
    """One of them was cancelled."""
    granted_and_driven(db)
    another_by_its_grant(db)
    cancel_job(db)


def cancel_job(db: Connection) -> bool:
    return journal.cancel(db, MINE.id, "operator:a", NOW)


def supersede(by: str) -> Work:
    return lambda db: journal.supersede(db, "web1", ("data",), f"operator:{by}", by, NOW)


def begin_instead(id_: str) -> Work:
    """As operations/act_jobs.py."""

    def work(db: Connection) -> list[str]:
        gone = journal.supersede(db, "web1", ("data",), "operator:o", id_, NOW)
        journal.create(
            db, kind="resync", version=1, machine="web1", lane="data", who="operator:o", args={}, now_ns=NOW, id_=id_,
            begun=[("set", StepState.DONE)],
        )  # fmt: skip
        return gone

    return work


def say_again(db: Connection) -> bool:
    """As operations/act_jobs.py: whether it was that job's."""
    found = journal.in_lane(db, "web1", "data")
    is_its_own = found is not None and found.direction is Direction.FORWARD
    if found is not None and is_its_own:
        journal.say_again(db, found.id, {"said": 2}, NOW)
    return is_its_own


def pause_job(db: Connection) -> bool:
    """As jobs/runner.py."""
    is_forward = journal.renew(db, MINE, HOUR_NS).direction is Direction.FORWARD
    if is_forward:
        journal.pause(db, MINE, waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    return is_forward


def fail_job(db: Connection) -> bool:
    """As jobs/runner.py, past the fence."""
    is_forward = put_step(db) is Direction.FORWARD
    if is_forward:
        journal.ask_for_attention(db, MINE, waits="a person", error=Failure("US1", "x"))
    return is_forward


def seen_to(number: int, *disks: WantedDisk, verb: Verb = Verb.PROTECT) -> Work:
    """As operations/protecting.py: an act, and the job that sees to it; whether there is one."""

    def work(db: Connection) -> bool:
        before = inventory.find(db, "web1")
        after = inventory.act(db, "web1", verb, NOW + number, disks=disks)
        kind = Watch.PROTECT if verb is Verb.PROTECT else Watch.UNPROTECT
        at = act_jobs.Moment("operator:o", NOW + number, NOW, Facts(None, None, None), None)
        return bool(act_jobs.begin(db, kind, before, after, at))

    return work


def an_act_is_seen_to(db: Connection) -> None:
    seen_to(1, SDA)(db)
    seen_to(2, SDA, SDB)(db)


def an_act_is_cancelled(db: Connection) -> None:
    an_act_is_seen_to(db)
    cancel_its_job(db)


def the_cancelled(db: Connection) -> journal.Job:
    its = schema.jobs.c.cancelled_by == "operator:a"
    return journal.find(db, db.scalars(select(schema.jobs.c.id).where(its)).one())


def cancel_its_job(db: Connection) -> bool:
    its = schema.jobs.c.created_ns == NOW + 2
    return journal.cancel(
        db, db.scalars(select(schema.jobs.c.id).where(its)).one(), "operator:a", NOW
    )  # fmt: skip


def take_back(db: Connection) -> bool:
    return act_jobs.take_back(db, the_cancelled(db), None, NOW + 3, is_heard=False) is True


def issued(serial: int, renews: int = 0) -> Issued:
    return Issued(serial, Role.AGENT, "web1", "key", NOW + serial, NOW + 10**18, renews, "pem")


def restore(db: Connection) -> None:
    """As operations/restores.py."""
    deletions.check_readable(db, "web1", "vault")
    a_job(db)


def was_restored(db: Connection) -> None:
    a_certificate(db)
    restored.prepare(db, NOW)


def a_certificate(db: Connection) -> None:
    certificates.note_certificate(db, issued(1))
    a_token(db)


def enrol(key: str) -> Work:
    """As operations/enrolment.py."""

    def work(db: Connection) -> None:
        if revocation.is_key_revoked(db, key):
            raise RequestError("revoked")
        tokens.redeem(db, b"token", NOW)
        certificates.note_certificate(db, issued(2)._replace(key=key))
        revocation.admit_from(db, Role.AGENT, "web1", NOW // SECOND_NS)
        revocation.readmit(db, Role.AGENT, "web1", 2, NOW // SECOND_NS, NOW + 2)
        deletions.check_not_removed(db, "web1", "vault", "too late")
        deletions.note_enrolled(db, "web1")

    return work


def renew(db: Connection) -> None:
    """As operations/enrolment.py."""
    revocation.check(db, 1, WEB1, NOW // SECOND_NS)
    if revocation.is_key_revoked(db, "key"):
        raise RequestError("revoked")
    certificates.note_certificate(db, issued(3, 1))


def revoke(subject: str) -> Work:
    return lambda db: revocation.revoke(db, subject, "stolen", NOW + 1, "operator:admin")


def took_in(*said_ns: int) -> Work:
    records = [Record(subject=WEB1, reason="in storage", revoked_ns=NOW + ns) for ns in said_ns]
    return lambda db: [record.revoked_ns for record in taking_in.take_in(db, records)]


def was_revoked(db: Connection) -> None:
    a_certificate(db)
    revoke(WEB1)(db)
    a_token(db)


def first_operator(token: str) -> Work:
    return lambda db: operators.set_first(db, "admin", token, NOW)


def setting(value: str) -> Work:
    return lambda db: settings.put(db, "x", f"{settings.get(db, 'x') or ''}{value}")


def report(said: bytes) -> Work:
    return lambda db: inventory.save_report(db, StoredReport(Role.AGENT, "web1", NOW, said))


def two_replicas(db: Connection) -> None:
    replicas.join(db, "a", "config1")
    replicas.join(db, "b", "config2")


def share(id_: str, number: int) -> Work:
    """One report of web1; what both leave is the later, whoever is first."""
    one = StoredReport(Role.AGENT, "web1", NOW, b"{}", start="s", number=number, age_ns=0)

    def work(db: Connection) -> list[str]:
        replicas.write(db, id_, "", [one], [])
        return [found.start for found in inventory.reports(db)]

    return work


def hold(id_: str) -> Work:
    return lambda db: replicas.hold(db, "sweep", id_, HOUR_NS)


CASES: Final = {
    "a token is used once": Case(
        a_token, lambda db: tokens.redeem(db, b"token", NOW), lambda db: tokens.redeem(db, b"token", NOW)
    ),
    "a token is used, or void": Case(a_token, lambda db: tokens.redeem(db, b"token", NOW), tokens.make_void),
    "one operator's token": Case(nothing, first_operator("a"), first_operator("b")),
    "a machine is known": Case(
        nothing,
        lambda db: inventory.ensure_machine(db, "web1", NOW),
        lambda db: inventory.ensure_machine(db, "web1", NOW + 1),
    ),
    "two acts": Case(protected, protect(1, SDB), protect(2, SDA, SDB)),
    "two first acts": Case(nothing, protect(1, SDB), protect(2, SDA)),
    "an act, and one that its agent tells of": Case(protected, protect(1, SDB), adopt),
    "an act, and one is withdrawn": Case(protected, protect(1, SDB), withdraw),
    "what an agent tells of, and it is withdrawn": Case(protected, adopt, withdraw),
    "an act, and nothing is as if it had been said": Case(
        protected, protect(1, SDB), lambda db: inventory.take_back(db, "web1")
    ),
    "an act, and other hardware": Case(protected, stop, begin_anew),
    "an act, and disks that stay": Case(
        protected, stop, lambda db: inventory.keep(db, "web1", [SDB], ("ps1:9443",), None)
    ),
    "an act, and a report of disks": Case(nothing, protect(1, SDA), settle),
    "an act, and what was heard": Case(protected, protect(1, SDB), lambda db: inventory.heard(db, "web1")),
    "two reports": Case(nothing, report(b"{}"), report(b"[]")),
    "a report each, of one daemon": Case(two_replicas, share("a", 5), share("b", 6)),
    "two batches of one server": Case(two_replicas, share("a", 5), share("a", 6)),
    "one lease, and two who want it": Case(two_replicas, hold("a"), hold("b")),
    "a grant that is asked for twice": Case(nothing, give_asked("g1"), give_asked("g2")),
    "a grant ends twice": Case(
        granted,
        lambda db: grants.end(db, "g1", "a", NOW, returned=False),
        lambda db: grants.end(db, "g1", "b", NOW + 1, returned=True),
    ),
    "a grant is made longer, and ends": Case(
        granted,
        extend,
        lambda db: grants.end(db, "g1", "b", NOW + 1, returned=True),
    ),
    "access, or deletion": Case(to_be_deleted(Stage.CLOSED), give, advance(Stage.CLOSED, Stage.REMOVING)),
    "a restore, or deletion": Case(
        to_be_deleted(Stage.CLOSED),
        restore,
        advance(Stage.CLOSED, Stage.REMOVING),
    ),
    "kept, or deleted": Case(to_be_deleted(Stage.CLOSED), keep, advance(Stage.CLOSED, Stage.REMOVING)),
    "deleted, and enrolled": Case(
        to_be_deleted(Stage.REMOVING), finish, lambda db: deletions.note_enrolled(db, "web1")
    ),
    "deleted, and a report": Case(to_be_deleted(Stage.REMOVING), finish, reported(BROKE)),
    "deleted, and asked which was": Case(to_be_deleted(Stage.REMOVING), finish, what_was_deleted),
    "deleted, and there again": Case(
        to_be_deleted(Stage.REMOVING), finish, lambda db: deleted.forget(db, "c1")
    ),
    "deleted, and its agent asks whether it was": Case(
        to_be_deleted(Stage.REMOVING),
        finish,
        lambda db: deletions.was_done(db, "web1", Mark("other", 1, "x")),
    ),
    "asked for, or enrolled": Case(a_token, ask, enrol("key")),
    "its agent is revoked, or it is kept": Case(to_be_deleted(Stage.CLOSING), revoke_closing, keep),
    "counted, while a job is given up": Case(
        counted_with_a_job,
        lambda db: deletions.count(db, "web1", "d1", 5, NOW + 1),
        lambda db: jobs.fail_silent(db, {"j1": (NOW, 0)}, 10**15, NOW),
    ),
    "removed, or a job goes on": Case(
        silent,
        lambda db: deletions.advance(db, "web1", seen(db), Stage.REMOVING, NOW),
        job(WorkerState.RUNNING),
    ),
    "two looks at a deletion": Case(
        to_be_deleted(Stage.WAITING),
        lambda db: deletions.count(db, "web1", "d1", 5, NOW),
        lambda db: deletions.count(db, "web1", "d1", 5, NOW + 1),
    ),
    "one stage, once": Case(
        to_be_deleted(Stage.WAITING),
        advance(Stage.WAITING, Stage.CLOSING),
        advance(Stage.WAITING, Stage.CLOSING),
    ),
    "a deletion, and another act": Case(
        to_be_deleted(Stage.CLOSED), protect(9, SDA), advance(Stage.CLOSED, Stage.REMOVING)
    ),
    "two servers open one event": Case(nothing, reported(BROKE), reported(BROKE, at=1)),
    "an event is resolved once": Case(reported(BROKE), reported(at=1), reported(at=2)),
    "an event is resolved, or said otherwise": Case(
        reported(BROKE), reported(at=1), reported(replace(BROKE, what="worse"), at=2)
    ),
    "a policy is deleted, or given": Case(
        a_policy, lambda db: policies.delete(db, "gold"), lambda db: policies.assign(db, "web1", "gold")
    ),
    "a policy is deleted, or changed": Case(
        a_policy, lambda db: policies.delete(db, "gold"), lambda db: policies.put(db, "gold", Policy())
    ),
    "one command, twice": Case(nothing, command(), command()),
    "two commands of one id": Case(nothing, command(), command(CommandKind.FLUSH)),
    "a resync, once": Case(nothing, resync("c1"), resync("c2")),
    "a result, and nobody waits": Case(
        command(),
        lambda db: commands.finish(db, WEB1, {"c1": {"batch": 3}}, NOW),
        lambda db: commands.withdraw(db, "c1", NOW),
    ),
    "a result, and it is too late": Case(
        command(),
        lambda db: commands.finish(db, WEB1, {"c1": {"batch": 3}}, NOW),
        lambda db: commands.expire(db, NOW + 10**15),
    ),
    "a result, twice": Case(
        command(),
        lambda db: commands.finish(db, WEB1, {"c1": {"batch": 3}}, NOW),
        lambda db: commands.finish(db, WEB1, {"c1": {"batch": 4}}, NOW),
    ),
    "a job ends once": Case(a_job, job(WorkerState.DONE), job(WorkerState.FAILED)),
    "a job ends, or is given up": Case(
        a_job, job(WorkerState.DONE), lambda db: jobs.fail_silent(db, {"j1": (NOW, 0)}, 10**15, NOW)
    ),
    "two jobs of one lane": Case(nothing, begin_job, begin_job),
    "two servers take a job": Case(a_driven_job, claim("cs1"), claim("cs2")),
    "its lease is over, and both go on": Case(a_claimed_job(-SECOND_NS), put_step, claim("cs2")),
    "a job is cancelled, or begins a step": Case(a_claimed_job(HOUR_NS), put_step, cancel_job),
    "a job is cancelled, or done": Case(a_claimed_job(HOUR_NS), end_job, cancel_job),
    "a job is cancelled twice": Case(a_claimed_job(HOUR_NS), cancel_job, cancel_job),
    "a job that stands goes on, or is abandoned": Case(
        a_job_stands,
        lambda db: journal.again(db, MINE.id),
        lambda db: journal.abandon(db, MINE.id, NOW),
    ),
    "a restore is done, or failed": Case(
        a_restore_that_is_driven, heard(WorkerState.DONE), heard(WorkerState.FAILED, 2)
    ),
    "a restore is done, or cancelled": Case(a_restore_that_is_driven, heard(WorkerState.DONE), cancel_job),
    "two reports of a restore": Case(
        a_restore_that_is_driven, heard(WorkerState.RUNNING), heard(WorkerState.RUNNING, 2)
    ),
    "a restore is heard, and let go": Case(a_restore_that_is_driven, heard(WorkerState.DONE), let_go()),
    "a restore is heard, and stands": Case(
        a_restore_that_is_driven, heard(WorkerState.RUNNING), let_go(stands=True)
    ),
    "a restore goes on, or its machine is removed": Case(
        a_restore_that_stands,
        lambda db: deletions.advance(db, "web1", seen(db), Stage.REMOVING, NOW),
        heard(WorkerState.RUNNING),
    ),
    "a restore that stands goes on, or is abandoned": Case(
        a_restore_that_stands,
        heard(WorkerState.RUNNING),
        lambda db: journal.abandon(db, MINE.id, NOW),
    ),
    "a restore answers, or is told of": Case(
        a_restore_that_was_cancelled,
        heard(WorkerState.CANCELLED),
        lambda db: restores.give_up(db, MINE.id, JobGivenUpError("x")) is not None,
    ),
    "a grant is taken back, or somebody reads by it": Case(
        granted_and_driven, end_unless_shared, begin_by_a_grant
    ),
    "two of one grant end": Case(
        two_of_one_grant,
        end_unless_shared,
        lambda db: journal.cancel(db, "other", "operator:o", NOW),
    ),
    "a job is superseded, or begins a step": Case(a_claimed_job(HOUR_NS), put_step, supersede("j2")),
    "a job is superseded, or waits": Case(a_claimed_job(HOUR_NS), pause_job, supersede("j2")),
    "a job is superseded, or needs attention": Case(a_claimed_job(HOUR_NS), fail_job, supersede("j2")),
    "a job is superseded, or done": Case(a_claimed_job(HOUR_NS), end_job, supersede("j2")),
    "a job is superseded, or cancelled": Case(a_claimed_job(HOUR_NS), cancel_job, supersede("j2")),
    "a job is superseded, or taken": Case(a_driven_job, claim("cs1"), supersede("j2")),
    "a job is superseded, or abandoned": Case(
        a_job_stands, lambda db: journal.abandon(db, MINE.id, NOW), supersede("j2")
    ),
    "a job is superseded twice": Case(a_claimed_job(HOUR_NS), supersede("j2"), supersede("j3")),
    "a job, and two that take its place": Case(
        a_claimed_job(HOUR_NS), begin_instead("j2"), begin_instead("j3")
    ),
    "two jobs, each in place of whatever there is": Case(nothing, begin_instead("j2"), begin_instead("j3")),
    "a job takes a place that another takes": Case(nothing, begin_instead("j2"), begin_job),
    "the same again, or superseded": Case(a_claimed_job(HOUR_NS), say_again, begin_instead("j2")),
    "the same again, or cancelled": Case(a_claimed_job(HOUR_NS), say_again, cancel_job),
    "the same again, or done": Case(a_claimed_job(HOUR_NS), say_again, end_job),
    "two acts that are seen to": Case(nothing, seen_to(1, SDA), seen_to(2, SDB)),
    "the same act twice, and seen to": Case(nothing, seen_to(1, SDA), seen_to(2, SDA)),
    "an act is taken back, or another one made": Case(an_act_is_cancelled, take_back, seen_to(9, SDB)),
    "an act is taken back, or said again": Case(an_act_is_cancelled, take_back, seen_to(9, SDA, SDB)),
    "an act is taken back, or protection ends": Case(
        an_act_is_cancelled, take_back, seen_to(9, verb=Verb.STOP)
    ),
    "an act is taken back, or its agent tells of another": Case(an_act_is_cancelled, take_back, adopt),
    "an act is taken back twice": Case(an_act_is_cancelled, take_back, take_back),
    "an act is cancelled, or said again": Case(an_act_is_seen_to, cancel_its_job, seen_to(9, SDA, SDB)),
    "an act is cancelled, or another one made": Case(an_act_is_seen_to, cancel_its_job, seen_to(9, SDB)),
    "a job that is driven, or deletion": Case(
        to_be_deleted(Stage.CLOSED), begin_job, advance(Stage.CLOSED, Stage.REMOVING)
    ),
    "revoked while it enrols": Case(a_certificate, revoke(WEB1), enrol("key")),
    "enrolled anew behind a revocation": Case(was_revoked, took_in(3), enrol("another")),
    "a key is revoked while it is renewed": Case(a_certificate, revoke("1"), renew),
    "a name is revoked while it is renewed": Case(a_certificate, revoke(WEB1), renew),
    "revoked twice": Case(a_certificate, revoke(WEB1), revoke(WEB1)),
    "revoked here, and elsewhere": Case(a_certificate, revoke(WEB1), took_in(3)),
    "taken in twice": Case(a_certificate, took_in(3), took_in(3, 4)),
    "compared, while something is noted": Case(
        nothing,
        lambda db: revocation.note_recorded(db, ["a", "b"]),
        lambda db: revocation.forget_recorded(db, ["a"]),
    ),
    "a setting": Case(nothing, setting("a"), setting("b")),
    "two incarnations": Case(
        nothing, lambda db: bool(incarnations.begin(db)), lambda db: bool(incarnations.begin(db))
    ),
    "a mark is forgotten, and somebody revoked": Case(was_restored, restored.forget, revoke(WEB1)),
    "what happened, twice": Case(
        nothing,
        lambda db: deletions.note(db, "web1", "a", "", NOW),
        lambda db: audit.add(db, "a", "b", "c", {}, NOW),
    ),
}


# ---- one server and another


class Server:
    """One server's engine, which can be held before a statement, or before its commit."""

    def __init__(self, config: DatabaseConfig) -> None:
        self.engine = Postgresql(config).open()
        self._hold_at: int | None = None
        self._held, self._may_go = threading.Event(), threading.Event()
        self._passed = 0
        event.listen(self.engine.engine, "before_cursor_execute", self._pass)
        event.listen(self.engine.engine, "commit", self._pass)

    def _pass(self, *_: object) -> None:
        number, self._passed = self._passed, self._passed + 1
        if number == self._hold_at:
            self._held.set()
            assert self._may_go.wait(30)

    def begin(self, work: Work, hold_at: int | None = None) -> Running:
        self._held.clear()
        self._may_go.clear()
        self._passed, self._hold_at = 0, hold_at
        return Running(self.engine, work)

    def is_held(self, running: Running) -> bool:
        """False: it has ended before."""
        while not running.ended.wait(0.001):
            if self._held.is_set():
                return True
        return self._held.is_set()

    def let_go(self) -> None:
        self._hold_at = None
        self._may_go.set()


class Running:
    def __init__(self, engine: Engine, work: Work) -> None:
        self.told: object = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(engine, work))
        self._thread.start()

    def _run(self, engine: Engine, work: Work) -> None:
        try:
            self.told = told_by(engine, work)
        finally:
            self.ended.set()

    def result(self) -> object:
        self._thread.join()
        return self.told


def told_by(engine: Engine, work: Work) -> object:
    try:
        return scrubbed(repr(engine.transact(work, vital=False)))
    except UnderstudyError as exc:
        return scrubbed(f"{exc.code}: {exc.cause}")


def scrubbed(said: str) -> str:
    """Without what chance decides."""
    return re.sub(r"[0-9a-f]{16}|\bid=\d+", "…", said)


@pytest.fixture(scope="module")
def config(postgres: Postgres) -> DatabaseConfig:
    return postgres.config(postgres.made())


@pytest.fixture(scope="module")
def servers(config: DatabaseConfig) -> Iterator[tuple[Server, Server]]:
    one, other = Server(config), Server(config)
    yield one, other
    one.engine.close()
    other.engine.close()


def begin_with(engine: Engine, given: Work) -> None:
    def work(db: Connection) -> None:
        for table in schema.METADATA.sorted_tables:
            db.execute(table.delete())
        settings.put(db, "incarnations", '["first"]')
        given(db)

    engine.transact(work, vital=False)


def left(engine: Engine) -> list[str]:
    """All that the database holds, but for numbers that it gives by itself."""

    def work(db: Connection) -> list[str]:
        found = []
        for table in schema.METADATA.sorted_tables:
            columns = [column for column in table.c if column.name not in ("id", schema.IMPLICIT)]
            found += [f"{table.name}: {scrubbed(str(tuple(row)))}" for row in db.execute(select(*columns))]
        return sorted(found)

    return engine.transact(work, vital=False)


Outcome = tuple[object, object, list[str]]


def one_after_the_other(servers: tuple[Server, Server], case: Case) -> list[Outcome]:
    engine = servers[0].engine
    begin_with(engine, case.given)
    first: Outcome = (told_by(engine, case.one), told_by(engine, case.other), left(engine))
    begin_with(engine, case.given)
    other, one = told_by(engine, case.other), told_by(engine, case.one)
    return [first, (one, other, left(engine))]


def interleaved(
    servers: tuple[Server, Server], case: Case, config: DatabaseConfig
) -> Iterator[tuple[int, Outcome]]:
    """At each place where the first can be held: what becomes of both."""
    one, other = servers
    at = 0
    while True:
        begin_with(other.engine, case.given)
        held = one.begin(case.one, hold_at=at)
        is_held = one.is_held(held)
        if is_held:
            meanwhile = other.begin(case.other)
            while not meanwhile.ended.wait(0.002) and not waits_for_a_lock(config):
                pass
            one.let_go()
            yield at, (held.result(), meanwhile.result(), left(other.engine))
        else:
            held.result()
            one.let_go()
            return
        at += 1


def waits_for_a_lock(config: DatabaseConfig) -> bool:
    with psycopg.connect(config.url, autocommit=True) as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        row = admin.execute(query).fetchone()
    return row is not None and row[0] > 0


def swapped(case: Case) -> Case:
    return Case(case.given, case.other, case.one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", ["one is held", "the other is held"])
def test_two_servers_at_once_leave_what_one_after_the_other_leaves(
    servers: tuple[Server, Server], config: DatabaseConfig, name: str, order: str
) -> None:
    case = CASES[name] if order == "one is held" else swapped(CASES[name])
    expected = one_after_the_other(servers, case)
    places = 0
    for at, outcome in interleaved(servers, case, config):
        assert outcome in expected, f"held before statement {at}"
        places += 1
    assert places >= 2, "a statement, and the commit"


def test_who_has_read_a_batch_has_missed_none_before_it(
    servers: tuple[Server, Server], config: DatabaseConfig
) -> None:
    """One server writes two at a time; whoever reads in between, wherever the first is held, has both in the end."""
    one, other = servers

    def heard(name: str) -> Work:
        report = StoredReport(Role.AGENT, name, NOW, b"{}", start="s", number=1, age_ns=0)
        return lambda db: replicas.write(db, "a", "", [report], [name])

    def read(above: int) -> tuple[int, list[str]]:
        [a] = other.engine.transact(lambda db: replicas.read(db, "b", {"a": above}), vital=False).others
        return a.batch, [report.name for report in a.reports]

    for at in itertools.count():
        begin_with(other.engine, two_replicas)
        first = one.begin(heard("web1"), hold_at=at)
        is_held = one.is_held(first)
        second = other.begin(heard("web2"))
        while is_held and not second.ended.wait(0.002) and not waits_for_a_lock(config):
            pass
        batch, before = read(0)
        one.let_go()
        first.result(), second.result()
        assert sorted(before + read(batch)[1]) == ["web1", "web2"], f"held before statement {at}"
        if not is_held:
            break
    assert at > 2


NEED_IT: Final = [
    "a token is used once",
    "two acts",
    "access, or deletion",
    "kept, or deleted",
    "asked for, or enrolled",
    "its agent is revoked, or it is kept",
    "two looks at a deletion",
    "a policy is deleted, or given",
    "a resync, once",
    "revoked while it enrols",
    "a key is revoked while it is renewed",
    "a job ends once",
    "a setting",
]


@pytest.mark.parametrize("name", NEED_IT)
def test_without_serializable_transactions_it_would_not_be_so(
    monkeypatch: pytest.MonkeyPatch, config: DatabaseConfig, name: str
) -> None:
    monkeypatch.setattr(postgresql, "_ISOLATION", "READ COMMITTED")
    servers = Server(config), Server(config)
    try:
        case = CASES[name]
        expected = one_after_the_other(servers, case)
        outcomes = [outcome for each in (case,) for _, outcome in interleaved(servers, each, config)]
        assert any(outcome not in expected for outcome in outcomes)
    finally:
        for server in servers:
            server.engine.close()


@pytest.mark.parametrize("name", CASES)
def test_on_sqlite_nobody_comes_between(tmp_path: Path, name: str) -> None:
    engine = Sqlite(tmp_path / "state.db").open()
    begin_with(engine, CASES[name].given)
    other = sqlite3.connect(tmp_path / "state.db", timeout=0, isolation_level=None)
    places = 0

    def at_each_statement(*_: object) -> None:
        nonlocal places
        places += 1
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            other.execute("BEGIN IMMEDIATE")

    event.listen(sqlite._ENGINE, "before_cursor_execute", at_each_statement)
    try:
        told_by(engine, CASES[name].one)
    finally:
        event.remove(sqlite._ENGINE, "before_cursor_execute", at_each_statement)
    assert places
    other.execute("BEGIN IMMEDIATE")
    other.close()
    engine.close()

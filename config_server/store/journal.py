"""The journal of jobs: which job there is, who has it, and which of its steps were begun, done, undone.

A job is claimed by one owner at a time, until its lease ends. Each claim has a term, one more than the last, and a random word of its own:
an owner that was stopped for long, and comes back after somebody else took the job, or after a database from a backup gave the same term
once more, is told apart from whoever has it now. Every transaction of an owner begins with `renew`: an UPDATE of the row of the job where
it still has this term and this word. Where it has not, no row is changed, and nothing else of the transaction is done (`LostJobError`).
Since that UPDATE holds the row until the transaction ends, no other owner's claim comes between it and what follows. (To look first
whether the claim still holds, and then to write, is not enough: a claim by another may be committed in between.)

Leases are compared by the clock of the database (`clock_ns`): the hosts' clocks do not matter, and no transaction sees an old `now()`.
On SQLite there is one process, whose clock does not jump (sqlite.py); what one before it had is free at its first look (`free_all`).
PostgreSQL's host may have its clock set back: what then seems to wait for longer than anything does is woken, and what a dead owner
seems to have leased for longer is freed (`wake_early`).

Something that is wanted of a machine now waits for no job that saw to something else: such a job is *superseded* (`supersede`) in the
transaction that says it. It turns back and gives up its lane at once; what it does back is seen by whoever has it, as with a cancel.

What this database loses (it is put back from a backup) is: jobs that end differently than they did. So those that had not ended stay
as they are until somebody says otherwise (restored.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    and_,
    bindparam,
    case,
    exists,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)

from config_server.rules.clock import SECOND_NS
from config_server.rules.words import bounded
from config_server.store.schema import jobs, steps
from config_server.store.statements import clock_ns, replacing, unless_there
from shared import decoding
from shared.api.jobs import Direction, JobState, StepState
from shared.api.route import Failure
from shared.errors import KeyUsedError, LaneTakenError, LostJobError

OF_WORKER: Final = 0
"""The version of a job that nobody here drives: whoever runs it reports how it goes."""


class Held(msgspec.Struct, frozen=True):
    """What an owner has of a job that it claimed."""

    id: str
    term: int
    word: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    version: int
    machine: str
    who: str
    args: dict[str, Any]
    direction: Direction
    cancelled_by: str
    superseded_by: str
    """What took its place while it went forward; empty: nothing."""
    attention: bool
    """It is nobody's until a person says how it goes on."""
    error: Failure | None
    """Why it turned back, or stands still."""
    in_doubt: bool
    """The journal may be older than the world."""
    term: int
    word: str
    """Of whoever had it when it was read."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Of one step."""

    state: StepState
    tries: int
    """How often it has failed since it last did not."""
    result: Any = None
    undone_ns: int = 0
    """Since when nothing of it was seen; 0 where it is not undone."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    job: Job
    journal: dict[str, Entry]


_IT: Final = jobs.c.id == bindparam("it")
_ACTIVE: Final = jobs.c.state == text(
    f"'{JobState.RUNNING}'"
)  # as the index has it, which no parameter would match
_NOW: Final = select(clock_ns()).scalar_subquery()
"""Read once in a statement, so that an index can be looked up by it."""
LONGEST_NS: Final = 3600 * SECOND_NS
"""Nothing waits for longer without being looked at. So what seems to was paused by a clock that was ahead."""
_DRIVEN: Final = and_(_ACTIVE, jobs.c.version > OF_WORKER)
_FOR_ANYBODY: Final = and_(
    _DRIVEN,
    jobs.c.wake_ns <= _NOW,
    jobs.c.lease_ns < _NOW,
    jobs.c.attention.is_(False),
)
_MINE: Final = and_(_IT, jobs.c.term == bindparam("mine"), jobs.c.word == bindparam("my_word"))
_CREATE: Final = unless_there(jobs)
_KNOWN: Final = tuple_(jobs.c.kind, jobs.c.version).in_(bindparam("known", expanding=True))
_DUE: Final = (
    select(jobs.c.id)
    .where(_FOR_ANYBODY, _KNOWN)
    .order_by(jobs.c.wake_ns, jobs.c.created_ns, jobs.c.id)
    .limit(bindparam("most"))
)
_PARKED: Final = "a config server that knows such jobs: a newer version has begun it"
_PARK_NS: Final = 60 * SECOND_NS
"""Where two versions run for a while, the newer one takes its jobs before that."""
_PARK: Final = (
    update(jobs)
    .where(
        _DRIVEN,
        not_(_KNOWN),
        jobs.c.attention.is_(False),
        *(since < clock_ns() - _PARK_NS for since in (jobs.c.lease_ns, jobs.c.wake_ns, jobs.c.updated_ns)),
    )
    .values(attention=True, waits=_PARKED)
    .returning(jobs.c.id)
)
_WAKE_EARLY: Final = update(jobs).where(_DRIVEN, jobs.c.wake_ns > _NOW + LONGEST_NS).values(wake_ns=0)
_TOO_LONG: Final = 4
"""Leases: who lives renews his long before it ends."""
_GO_ON: Final = (
    update(jobs)
    .where(_DRIVEN, _KNOWN, jobs.c.attention.is_(True), jobs.c.waits == _PARKED)
    .values(attention=False, waits="", wake_ns=0)
)
_CLAIM: Final = (
    update(jobs)
    .where(_IT, _FOR_ANYBODY)
    .values(
        term=jobs.c.term + 1,
        word=bindparam("new_word"),
        owner=bindparam("new_owner"),
        lease_ns=clock_ns() + bindparam("for_ns"),
        wake_ns=0,
        waits="",
    )
    .returning(jobs.c.term)
)
_RENEW: Final = (
    update(jobs).where(_MINE, _ACTIVE).values(lease_ns=clock_ns() + bindparam("for_ns")).returning(*jobs.c)
)
_STILL: Final = update(jobs).where(_MINE, _ACTIVE).values(term=jobs.c.term).returning(*jobs.c)
_GET: Final = select(jobs).where(_IT)
_ITS_LANE: Final = and_(
    _DRIVEN, jobs.c.machine == bindparam("of_machine"), jobs.c.lane == bindparam("the_lane")
)
_IN_LANE: Final = select(jobs).where(_ITS_LANE)
WOKEN: Final = -1
"""As `wake_ns`: since its owner took it. What he saw before that is no reason to wait."""
_HAS_FAILED: Final = and_(
    jobs.c.lease_ns == 0, exists().where(steps.c.job == jobs.c.id, steps.c.tries > 0).correlate(jobs)
)
"""And waits to be tried again."""
_WAKE: Final = update(jobs).where(_ITS_LANE, not_(_HAS_FAILED)).values(wake_ns=WOKEN)
_TURNED: Final = select(jobs.c.id).where(
    jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.direction == Direction.BACK
)
_STEPS: Final = select(steps).where(steps.c.job == bindparam("it"))
_PUT_STEP: Final = replacing(steps)
_UNREADABLE: Final = Failure(code="", what="What the database has of this job's error cannot be read")
_FREE: Final = {"lease_ns": 0, "owner": "", "word": ""}
"""Nobody's: also a renewal that its last owner had sent before, and that is carried out after this, finds nothing."""


def create(
    db: Connection,
    *,
    kind: str,
    version: int,
    machine: str,
    lane: str,
    who: str,
    args: Mapping[str, Any],
    now_ns: int,
    id_: str = "",
    begun: Iterable[tuple[str, StepState]] = (),
) -> str:
    """The id of the new job: `id_` where it is given, which no other has (`is_there`). `begun`: steps that this
    transaction does by itself (DONE), or of which something may be there already (BEGUN), so that they are undone also where nobody drove
    the job before it turned back. Raises LaneTakenError where another job of the machine has the lane; nothing was written then."""
    id_ = id_ or secrets.token_hex(8)
    new = {
        "id": id_, "kind": kind, "version": version, "machine": machine, "lane": lane, "who": who,
        "state": JobState.RUNNING, "detail": "", "args": msgspec.json.encode(args).decode(),
        "created_ns": now_ns, "updated_ns": now_ns,
    }  # fmt: skip
    if not _CREATE(db, new).rowcount:
        kind_there, there = db.execute(
            select(jobs.c.kind, jobs.c.id).where(jobs.c.machine == machine, jobs.c.lane == lane, _ACTIVE)
        ).one()
        raise LaneTakenError(
            f"The {kind} of '{machine}' was not begun", cause=f"its {kind_there} is under way (job {there})"
        )
    for step, state in begun:
        _write(db, id_, step, Entry(state=state, tries=0), now_ns)
    return id_


def is_there(db: Connection, id_: str, *, kind: str, machine: str) -> bool:
    """Whether this job was begun, ended or not. Raises KeyUsedError where the id is another's."""
    found = db.execute(_GET, {"it": id_}).first()
    if found is not None and (found.kind, found.machine) != (kind, machine):
        raise KeyUsedError(
            f"The {kind} of '{machine}' was not begun",
            cause=f"with this key the {found.kind} of '{found.machine}' was begun (job {id_})",
        )
    return found is not None


def find(db: Connection, id_: str) -> Job:
    """As it is now: for a step that reads it together with what it sees to. (What its owner has been told may have changed since:
    `say_again`.) It is there."""
    return _job(db.execute(_GET, {"it": id_}).one())


def in_lane(db: Connection, machine: str, lane: str) -> Job | None:
    """The one that has not ended."""
    row = db.execute(_IN_LANE, {"of_machine": machine, "the_lane": lane}).first()
    return None if row is None else _job(row)


def due(db: Connection, kinds: Collection[tuple[str, int]], most: int) -> list[str]:
    """Jobs that somebody who knows these kinds and versions could claim now. None of them is his yet."""
    return list(db.scalars(_DUE, {"known": list(kinds), "most": most}))


def claim(db: Connection, id_: str, owner: str, lease_ns: int) -> Held | None:
    """None where somebody else has it, it has ended, or it waits: whoever had it meanwhile may have written that down."""
    word = secrets.token_hex(8)
    term = db.scalar(_CLAIM, {"it": id_, "new_word": word, "new_owner": owner, "for_ns": lease_ns})
    return None if term is None else Held(id_, term, word)


def renew(db: Connection, held: Held, lease_ns: int) -> Job:
    """The job as it is now: it may have been cancelled. First in every transaction of an owner. Raises LostJobError."""
    row = db.execute(
        _RENEW, {"it": held.id, "mine": held.term, "my_word": held.word, "for_ns": lease_ns}
    ).first()
    if row is None:
        raise LostJobError(f"Job '{held.id}' is not this server's any more")
    return _job(row)


def look(db: Connection, held: Held, lease_ns: int) -> Look:
    """Raises LostJobError."""
    return Look(job=renew(db, held, lease_ns), journal=entries(db, held.id))


def turned(db: Connection, ids: Sequence[str]) -> list[str]:
    """Those of these that go back."""
    return list(db.scalars(_TURNED, {"ids": ids}))


def entries(db: Connection, id_: str) -> dict[str, Entry]:
    return {
        row.step: Entry(
            state=StepState(row.state),
            tries=row.tries,
            result=read(row.result, Any, None),
            undone_ns=row.undone_ns,
        )
        for row in db.execute(_STEPS, {"it": id_})
    }


def put(db: Connection, held: Held, lease_ns: int, step: str, entry: Entry, now_ns: int) -> Job:
    """The step is so now. Raises LostJobError."""
    job = renew(db, held, lease_ns)
    _write(db, held.id, step, entry, now_ns)
    return job


def _write(db: Connection, id_: str, step: str, entry: Entry, now_ns: int) -> None:
    row = {
        "job": id_, "step": step, "state": entry.state, "tries": entry.tries, "changed_ns": now_ns,
        "result": None if entry.result is None else msgspec.json.encode(entry.result).decode(),
        "undone_ns": entry.undone_ns,
    }  # fmt: skip
    _PUT_STEP(db, row)


_CHANGE: Final = update(jobs).where(_IT)


def pause(
    db: Connection,
    held: Held,
    *,
    waits: str,
    pause_ns: int,
    now_ns: int | None,
    progress: float | None = None,
    error: Failure | None = None,
) -> None:
    """It is nobody's until `pause_ns` from now, or somebody wakes it, or did so since it was claimed. `now_ns`: None: others say when it
    changed last. `error`: it failed, and is tried again so often in so much time: that nobody shortens but a person. Behind a `renew` of
    the same transaction."""
    until_ns = clock_ns() + min(pause_ns, LONGEST_NS)
    wake_ns = until_ns if error is not None else case((jobs.c.wake_ns == WOKEN, 0), else_=until_ns)
    values: dict[str, Any] = {
        **_FREE, "waits": bounded(waits), "wake_ns": wake_ns, "progress": progress,
    }  # fmt: skip
    if now_ns is not None:
        values["updated_ns"] = now_ns
    if error is not None:
        values["error"] = _told(error)
    db.execute(_CHANGE.values(**values), {"it": held.id})


def ask_for_attention(db: Connection, held: Held, *, waits: str, error: Failure) -> None:
    """It is nobody's until a person says what is to become of it. Behind a `renew` of the same transaction."""
    values = {**_FREE, "waits": bounded(waits), "attention": True, "error": _told(error)}
    db.execute(_CHANGE.values(**values), {"it": held.id})


def stand(db: Connection, held: Held, *, waits: str, error: Failure) -> None:
    """As `ask_for_attention`, unless somebody woke it since it was claimed: then it is due at once. Behind a `renew` of the same
    transaction."""
    woken = db.execute(_CHANGE.where(jobs.c.wake_ns == WOKEN).values(**_FREE, wake_ns=0), {"it": held.id})
    if not woken.rowcount:
        ask_for_attention(db, held, waits=waits, error=error)


def turn(db: Connection, held: Held, error: Failure) -> None:
    """Backwards, since a step failed. Behind a `renew` of the same transaction."""
    values = {"direction": Direction.BACK, "error": _told(error)}
    db.execute(_CHANGE.values(**values), {"it": held.id})


def _told(error: Failure) -> str:
    words = {name: bounded(getattr(error, name)) for name in ("code", "what", "cause", "action")}
    return msgspec.json.encode(msgspec.structs.replace(error, **words)).decode()


def end(db: Connection, held: Held, state: JobState, result: Mapping[str, Any] | None, now_ns: int) -> None:
    """Behind a `renew` of the same transaction."""
    values: dict[str, Any] = {**_FREE, "state": state, "waits": "", "ended_ns": now_ns, "updated_ns": now_ns}
    if result is not None:
        values["result"] = msgspec.json.encode(result).decode()
    db.execute(_CHANGE.values(**values), {"it": held.id})


def doubt(db: Connection, held: Held, lease_ns: int, names: Iterable[str], now_ns: int) -> None:
    """Whatever the journal says, each step may have been begun, or undone: all are looked at again. Raises LostJobError."""
    job, known = renew(db, held, lease_ns), entries(db, held.id)
    state = StepState.BEGUN if job.direction is Direction.FORWARD else StepState.UNDOING
    for name in names:
        result = known[name].result if name in known else None
        _write(db, held.id, name, Entry(state=state, tries=0, result=result), now_ns)
    db.execute(_CHANGE.values(in_doubt=False), {"it": held.id})


# ---- what others than the owner do


def wake_early(db: Connection, lease_ns: int) -> bool:
    """What seems to wait for longer than anything does is due, and what seems leased for longer than anybody leases it (`lease_ns`) is
    nobody's: the clock was set back since, and whoever leased it is no more. Whether there was any."""
    is_left = and_(_DRIVEN, jobs.c.lease_ns > _NOW + _TOO_LONG * lease_ns)
    found = [
        db.execute(_WAKE_EARLY).rowcount,
        db.execute(update(jobs).where(is_left).values(**_FREE)).rowcount,
    ]
    return any(found)


def park(db: Connection, kinds: Collection[tuple[str, int]]) -> list[str]:
    """Jobs of kinds, or versions, that are none of these, and that nobody has taken for a while, ask for a person: a newer program began
    them, which is no more. Their ids. Those that were parked so, and are of these, go on."""
    known = {"known": list(kinds)}
    db.execute(_GO_ON, known)
    return list(db.scalars(_PARK, known))


def cancel(db: Connection, id_: str, who: str, now_ns: int) -> bool:
    """It is undone from now on; its owner sees that with his next transaction. One whose worker is a command has ended, and the command
    hears that with its next report. False where it was turned before, or has ended: then nothing is changed."""
    turn_back = update(jobs).where(_IT, _DRIVEN, jobs.c.direction == Direction.FORWARD)
    turned = db.execute(
        turn_back.values(
            direction=Direction.BACK,
            cancelled_by=who,
            wake_ns=0,
            waits="",
            attention=False,
            updated_ns=now_ns,
        ),
        {"it": id_},
    )
    if turned.rowcount:
        return True
    end_it = update(jobs).where(_IT, _ACTIVE, jobs.c.version == OF_WORKER)
    ended = db.execute(
        end_it.values(state=JobState.CANCELLED, cancelled_by=who, ended_ns=now_ns, updated_ns=now_ns),
        {"it": id_},
    )
    return bool(ended.rowcount)


def supersede(
    db: Connection, machine: str, lanes: Collection[str], who: str, by: str, now_ns: int
) -> list[str]:
    """Something else is wanted of the machine: whatever has these lanes of it is in nobody's way any more, when this transaction is
    committed. Each such job has no lane from now on and turns back, if it does not already; it is due at once, also one that stood still
    for a person's word, and its owner sees that with his next transaction, as with `cancel`. Of one that went forward it is written down
    that `who` said so, and what took its place: `by`, a job's id or `deletion`. (One that was going back before that goes back for the
    reason that it had.) The ids of all."""
    in_lanes = and_(_DRIVEN, jobs.c.machine == machine, jobs.c.lane.in_(lanes))
    db.execute(
        update(jobs)
        .where(in_lanes, jobs.c.direction == Direction.FORWARD)
        .values(direction=Direction.BACK, cancelled_by=who, superseded_by=by)
    )
    out_of_the_way = (
        update(jobs)
        .where(in_lanes)
        .values(lane="", wake_ns=0, waits="", attention=False, updated_ns=now_ns)
        .returning(jobs.c.id)
    )
    return sorted(db.scalars(out_of_the_way))


def say_again(db: Connection, id_: str, args: Mapping[str, Any], now_ns: int) -> None:
    """The same was asked for once more while the job goes forward: it sees to that from now on, looks at once, and what failed is tried as
    often as at first."""
    said = update(jobs).where(_IT, _DRIVEN, jobs.c.direction == Direction.FORWARD)
    plain = msgspec.json.encode(args).decode()
    values = {"args": plain, "wake_ns": WOKEN, "waits": "", "updated_ns": now_ns}
    if db.execute(said.values(**values), {"it": id_}).rowcount:
        _forget_failures(db, id_)


def complete(db: Connection, id_: str, step: str, result: Mapping[str, Any] | None, now_ns: int) -> None:
    """What a job that goes forward was to see to its end was done by this transaction, with its last step. Whoever has it finds that it is
    not his any more."""
    done = update(jobs).where(_IT, _DRIVEN, jobs.c.direction == Direction.FORWARD)
    values: dict[str, Any] = {
        **_FREE, "state": JobState.DONE, "progress": 1.0, "waits": "", "attention": False, "term": jobs.c.term + 1,
        "ended_ns": now_ns, "updated_ns": now_ns, "result": msgspec.json.encode(result).decode(),
    }  # fmt: skip
    if db.execute(done.values(**values), {"it": id_}).rowcount:
        _write(db, id_, step, Entry(state=StepState.DONE, tries=0, result=result), now_ns)


def wake(db: Connection, machine: str, lane: str) -> None:
    """What the job of this lane waits for may have come: it is due at once, unless it waits for a person; also where its owner is just
    about to let it go, since it had not come yet when he looked. One that waits since a step failed has its pause: by machines that come
    and go its tries would be over in seconds."""
    db.execute(_WAKE, {"of_machine": machine, "the_lane": lane})


def leave_lane(db: Connection, machine: str, lane: str) -> None:
    """A job that goes back is in nobody's way: it has no lane any more. For kinds whose undoing minds no other job."""
    left = update(jobs).where(
        _DRIVEN, jobs.c.machine == machine, jobs.c.lane == lane, jobs.c.direction == Direction.BACK
    )
    db.execute(left.values(lane=""))


def still(db: Connection, job: Job) -> Job:
    """As it is now, until this transaction is committed: who cancels it waits for that. First in what a step itself writes here: one that
    stood still meanwhile, and whose job is somebody else's by now, writes nothing. Raises LostJobError."""
    row = db.execute(_STILL, {"it": job.id, "mine": job.term, "my_word": job.word}).first()
    if row is None:
        raise LostJobError(f"Job '{job.id}' is not this server's any more")
    return _job(row)


def is_over(db: Connection, id_: str) -> bool:
    """Whether this is a job that goes back, or has ended."""
    row = db.execute(_GET, {"it": id_}).first()
    return row is not None and (row.state, row.direction) != (JobState.RUNNING, Direction.FORWARD)


def again(db: Connection, id_: str) -> bool:
    """It goes on at once, and what failed is tried as often as at first. False where it does not wait: then nothing is changed."""
    woken = db.execute(
        update(jobs)
        .where(_IT, _DRIVEN, or_(jobs.c.attention.is_(True), jobs.c.waits != ""))
        .values(attention=False, wake_ns=0, waits=""),
        {"it": id_},
    )
    if not woken.rowcount:
        return False
    _forget_failures(db, id_)
    return True


def _forget_failures(db: Connection, id_: str) -> None:
    db.execute(update(steps).where(steps.c.job == id_).values(tries=0))


def abandon(db: Connection, id_: str, now_ns: int) -> bool:
    """A person says that what is left is his. False where it does not need attention: then nothing is changed."""
    given_up = db.execute(
        update(jobs)
        .where(_IT, _DRIVEN, jobs.c.attention.is_(True))
        .values(state=JobState.FAILED, ended_ns=now_ns, updated_ns=now_ns, **_FREE),
        {"it": id_},
    )
    return bool(given_up.rowcount)


def free_all(db: Connection) -> None:
    """Nobody has any, and all are looked at: before the only process claims its first. By which clock the one before wrote down when,
    nobody knows. Where there is none of either, nothing is written."""
    waits_or_is_leased = or_(jobs.c.lease_ns > 0, jobs.c.wake_ns > _NOW)
    db.execute(update(jobs).where(_DRIVEN, waits_or_is_leased).values(**_FREE, wake_ns=0))


def hold_unended(db: Connection, waits: str) -> list[str]:
    """This database was put back: what it calls unended may have gone on, or back, or ended. Nobody has these jobs any more, also who had
    them before the backup, and a person says how they go on; then each step is looked at again (`doubt`). Their ids."""
    held = (
        update(jobs)
        .where(_DRIVEN)
        .values(**_FREE, attention=True, in_doubt=True, waits=waits, term=jobs.c.term + 1)
        .returning(jobs.c.id)
    )
    return list(db.scalars(held))


_ENDED_UNDONE: Final = and_(
    jobs.c.state.in_((JobState.CANCELLED, JobState.FAILED)), jobs.c.attention.is_(False)
)


def undone(db: Connection) -> list[Job]:
    """Those that have ended, and of which something may come yet."""
    late = select(steps.c.job).where(steps.c.state == StepState.UNDONE)
    found = db.execute(
        select(jobs).where(jobs.c.version > OF_WORKER, _ENDED_UNDONE, jobs.c.id.in_(late)).order_by(jobs.c.id)
    )
    return [_job(row) for row in found]


def put_undone(db: Connection, id_: str, step: str, before: Entry, entry: Entry, now_ns: int) -> None:
    """Of a job that has ended, where nobody has written otherwise since it was looked at, and was `before`: another server that found
    something meanwhile looks for longer."""
    if entries(db, id_).get(step) == before:
        _write(db, id_, step, entry, now_ns)


# ---- what of a row is JSON; somebody may have edited it, and one job that cannot be read hides no other, and ends as any


def read(plain: str | None, type_: Any, other: Any) -> Any:
    """`other` where it is not there, or no JSON of this type."""
    if plain is None:
        return other
    try:
        return decoding.decode(plain, type=type_)
    except msgspec.DecodeError:
        return other


def args_of(plain: str) -> dict[str, Any]:
    """Empty where they cannot be read: the job's own step misses them then, and a person decides (JobBugError)."""
    found: dict[str, Any] = read(plain, dict[str, Any], {})
    return found


def error_of(plain: str | None) -> Failure | None:
    found: Failure | None = read(plain, Failure, None if plain is None else _UNREADABLE)
    return found


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        version=row.version,
        machine=row.machine,
        who=row.who,
        args=args_of(row.args),
        direction=Direction(row.direction),
        cancelled_by=row.cancelled_by,
        superseded_by=row.superseded_by,
        attention=bool(row.attention),
        in_doubt=bool(row.in_doubt),
        term=row.term,
        word=row.word,
        error=error_of(row.error),
    )

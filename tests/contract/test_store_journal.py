"""The journal of jobs, over both databases: who has a job, which of its steps were begun, and what others than its owner say. What follows
from it all when servers die and come back, the property test says (tests/property/test_jobs_model.py)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from sqlalchemy import Connection, event, select, text, update

from config_server.rules.clock import SECOND_NS
from config_server.store import jobs, journal, schema
from config_server.store.journal import Entry, Held
from config_server.store.statements import clock_ns
from shared.api.jobs import Direction, JobAct, JobProgress, JobState, StepState, WorkerState
from shared.api.route import Failure
from shared.errors import KeyUsedError, LaneTakenError, LostJobError
from tests import older_jobs

NOW: Final = 1_700_000_000 * SECOND_NS
HOUR_NS: Final = 3600 * SECOND_NS
OVER_NS: Final = -SECOND_NS
"""Of a lease that has ended, by the database's clock."""
KINDS: Final = {("resync", 1)}
FAILED: Final = Failure("US1", "x", cause="it broke")
BEGUN, DONE = Entry(state=StepState.BEGUN, tries=0), Entry(state=StepState.DONE, tries=2, result={"n": 1})


def begun(db: Connection, machine: str = "web1", lane: str = "data", version: int = 1) -> str:
    return journal.create(
        db, kind="resync", version=version, machine=machine, lane=lane, who="operator:o", args={"after": 1}, now_ns=NOW
    )  # fmt: skip


def claimed(db: Connection, id_: str, lease_ns: int = HOUR_NS) -> Held:
    held = journal.claim(db, id_, "cs1", lease_ns)
    assert held is not None
    return held


def due(db: Connection) -> list[str]:
    return journal.due(db, KINDS, 9)


def test_a_job_is_its_owners_until_the_lease_ends_and_a_former_owner_writes_nothing(db: Connection) -> None:
    id_ = begun(db)
    assert due(db) == [id_]
    assert journal.due(db, {("resync", 2)}, 9) == [], "a server drives what it knows"
    held = claimed(db, id_)
    assert held.term == 1
    assert (due(db), journal.claim(db, id_, "cs2", HOUR_NS)) == ([], None)
    job = journal.renew(db, held, OVER_NS)
    assert (job.machine, job.who, job.args, job.direction) == ("web1", "operator:o", {"after": 1}, "forward")
    assert due(db) == [id_]
    other = journal.claim(db, id_, "cs2", HOUR_NS)
    assert other is not None
    assert (other.term, other.word != held.word) == (2, True)
    for former in (held, Held(id_, 2, held.word), Held(id_, 1, other.word), Held("none", 2, other.word)):
        with pytest.raises(LostJobError):
            journal.look(db, former, HOUR_NS)
        with pytest.raises(LostJobError):
            journal.put(db, former, HOUR_NS, "ask", BEGUN, NOW)
        with pytest.raises(LostJobError):
            journal.doubt(db, former, HOUR_NS, ["ask"], NOW)
    assert journal.look(db, other, HOUR_NS).journal == {}


def test_before_the_only_process_has_any_every_job_is_free(db: Connection) -> None:
    driven, ended, of_worker = begun(db), begun(db, "web2"), "j1"
    older_jobs.create(db, of_worker, "restore", "web1", "operator:o", {}, NOW)
    journal.end(db, claimed(db, ended), JobState.DONE, None, NOW)
    claimed(db, driven)
    assert due(db) == []
    journal.free_all(db)
    assert due(db) == [driven]


def test_a_process_before_this_one_may_have_had_another_clock(db: Connection) -> None:
    waits, ended = begun(db), begun(db, "web2")
    for id_ in (waits, ended):
        journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    journal.cancel(db, ended, "operator:o", NOW)
    journal.end(db, claimed(db, ended), JobState.CANCELLED, None, NOW)
    assert due(db) == []
    journal.free_all(db)
    assert due(db) == [waits]


@pytest.mark.parametrize(("ahead_ns", "is_due"), [(HOUR_NS - SECOND_NS, False), (2 * HOUR_NS, True)])
def test_what_seems_to_wait_for_longer_than_anything_does_is_woken(
    db: Connection, ahead_ns: int, is_due: bool
) -> None:
    """The clock was so far ahead when it began to wait, for no time at all."""
    id_ = begun(db)
    journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=1, now_ns=NOW)
    db.execute(update(schema.jobs).values(wake_ns=clock_ns() + ahead_ns))
    assert journal.wake_early(db, HOUR_NS) == is_due
    assert due(db) == ([id_] if is_due else [])
    assert (journal.claim(db, id_, "cs1", HOUR_NS) is not None) == is_due


@pytest.mark.parametrize(("ahead_ns", "is_free"), [(2 * HOUR_NS, False), (24 * HOUR_NS, True)])
def test_what_seems_leased_for_longer_than_anything_is_belongs_to_nobody(
    db: Connection, ahead_ns: int, is_free: bool
) -> None:
    """Its owner was killed, and the clock was set back then: also a cancel waits for that owner."""
    id_ = begun(db)
    former = claimed(db, id_)
    journal.cancel(db, id_, "operator:o", NOW)
    db.execute(update(schema.jobs).values(lease_ns=clock_ns() + ahead_ns))
    assert journal.wake_early(db, HOUR_NS) == is_free
    assert due(db) == ([id_] if is_free else [])
    if is_free:
        with pytest.raises(LostJobError):
            journal.renew(db, former, HOUR_NS)


def test_nothing_waits_for_longer_than_the_longest(db: Connection) -> None:
    id_ = begun(db)
    journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=24 * HOUR_NS, now_ns=NOW)
    assert not journal.wake_early(db, HOUR_NS)
    assert due(db) == []


def test_of_one_that_waits_for_its_turn_only_it_can_be_said_that_it_goes_on_now(db: Connection) -> None:
    """Its time has come, and nobody has looked at it yet: there are many."""
    id_ = begun(db)
    journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=OVER_NS, now_ns=NOW)
    assert JobAct.RETRY in jobs.get(db, id_).allowed
    assert journal.again(db, id_)
    assert JobAct.RETRY not in jobs.get(db, id_).allowed
    assert not journal.again(db, id_)


def test_a_look_reads_what_is_due_and_not_what_waits(db: Connection) -> None:
    for number in range(200):
        id_ = begun(db, f"web{number}")
        journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    db.execute(text("ANALYZE jobs"))
    said = list[tuple[str, Any]]()
    event.listen(db, "before_cursor_execute", lambda *call: said.append((call[2], call[3])))
    assert due(db) == []
    is_file = db.dialect.name == "sqlite"
    how = "EXPLAIN QUERY PLAN" if is_file else "EXPLAIN"
    [[statement, values]] = said
    plan = str(db.exec_driver_sql(f"{how} {statement}", values).all())
    assert "jobs_due" in plan
    assert ("(wake_ns<?)" if is_file else "Index Cond: (wake_ns <=") in plan


def test_a_machine_has_one_active_job_of_a_lane(db: Connection) -> None:
    id_ = begun(db)
    with pytest.raises(LaneTakenError) as taken:
        begun(db)
    assert id_ in taken.value.cause
    for machine, lane in (("web1", "other"), ("web2", "data"), ("web1", ""), ("web1", "")):
        begun(db, machine, lane)
    journal.end(db, claimed(db, id_), JobState.DONE, None, NOW)
    assert begun(db) != id_


def test_what_a_step_is_stays_known_and_is_shown_in_the_order_of_their_beginning(db: Connection) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    for step in ("copy", "ask"):
        journal.put(db, held, HOUR_NS, step, BEGUN, NOW)
    job = journal.put(db, held, HOUR_NS, "copy", DONE, NOW + SECOND_NS)
    assert job.id == id_
    assert journal.entries(db, id_) == {"copy": DONE, "ask": BEGUN}
    assert journal.look(db, held, HOUR_NS).journal == journal.entries(db, id_)
    assert [(step.name, step.state, step.tries) for step in jobs.get(db, id_).steps] == [
        ("copy", StepState.DONE, 2),
        ("ask", StepState.BEGUN, 0),
    ]
    assert journal.entries(db, "none") == {}


def test_the_clock_of_leases_goes_on_in_a_transaction(db: Connection) -> None:
    """One that stood still in its midst would find a lease good that is over."""
    seen = {db.scalar(select(clock_ns())) for _ in range(1000)}
    assert len(seen) > 1


def test_those_that_nobody_here_knows_stand_in_nobodys_way(db: Connection) -> None:
    for number in range(40):  # which of them is the first of all, their random ids say
        begun(db, f"new{number}", version=2)
    known = [begun(db, f"web{number}") for number in range(2, 4)]
    assert journal.due(db, KINDS, 1)[0] in known
    assert journal.due(db, KINDS, 0) == []


def test_one_that_waits_is_nobodys_until_its_time_or_until_somebody_wakes_it(db: Connection) -> None:
    id_ = begun(db)
    assert not journal.again(db, id_), "it does not wait"
    held = claimed(db, id_)
    journal.put(db, held, HOUR_NS, "copy", DONE, NOW)
    journal.pause(db, held, waits="the agent", pause_ns=HOUR_NS, now_ns=NOW, progress=0.5, error=FAILED)
    seen = jobs.get(db, id_)
    assert (seen.state, seen.waits, seen.progress, seen.error) == (JobState.WAITING, "the agent", 0.5, FAILED)
    assert due(db) == []
    assert journal.claim(db, id_, "cs2", HOUR_NS) is None, "as whoever saw it due a moment before would"
    assert journal.again(db, id_)
    assert journal.entries(db, id_)["copy"].tries == 0
    assert due(db) == [id_]
    assert jobs.get(db, id_).state is JobState.RUNNING
    journal.pause(db, claimed(db, id_), waits="a moment", pause_ns=OVER_NS, now_ns=NOW)
    assert due(db) == [id_]
    assert jobs.get(db, id_).error == FAILED, "why it waited stays until it is said otherwise"


def test_who_does_what_a_job_waits_for_wakes_it_but_none_that_a_person_has_to_wake(db: Connection) -> None:
    ids = [begun(db), begun(db, lane="life"), begun(db, "web2")]
    for id_ in ids:
        journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    journal.wake(db, "web1", "data")
    assert due(db) == ids[:1]
    journal.pause(db, claimed(db, ids[0]), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    assert due(db) == [], "he has seen what it was woken for"
    journal.again(db, ids[0])
    journal.ask_for_attention(db, claimed(db, ids[0]), waits="a person", error=FAILED)
    journal.wake(db, "web1", "data")
    assert (due(db), jobs.get(db, ids[0]).state) == ([], JobState.ATTENTION)


@pytest.mark.parametrize("is_said_again", [False, True])
def test_who_wakes_a_job_while_its_owner_looks_is_not_overheard(db: Connection, is_said_again: bool) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    if is_said_again:
        journal.say_again(db, id_, {"after": 2}, NOW)
    else:
        journal.wake(db, "web1", "data")
    journal.pause(db, held, waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    assert due(db) == [id_]
    journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    assert due(db) == [], "once"


FAILING: Final = Entry(state=StepState.BEGUN, tries=1)


def test_one_that_has_failed_is_woken_by_a_person_alone_or_its_tries_would_be_over_in_seconds(
    db: Connection,
) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    journal.put(db, held, HOUR_NS, "copy", FAILING, NOW)
    journal.wake(db, "web1", "data")  # while its owner looks
    journal.pause(db, held, waits="copy: busy", pause_ns=HOUR_NS, now_ns=NOW, error=FAILED)
    assert due(db) == []
    journal.wake(db, "web1", "data")
    assert due(db) == []
    journal.say_again(db, id_, {"after": 2}, NOW)
    assert (due(db), journal.entries(db, id_)["copy"].tries) == ([id_], 0)
    held = claimed(db, id_)
    journal.put(db, held, HOUR_NS, "copy", FAILING, NOW)
    journal.pause(db, held, waits="copy: busy", pause_ns=HOUR_NS, now_ns=NOW, error=FAILED)
    assert journal.again(db, id_)
    held = claimed(db, id_)
    journal.pause(db, held, waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    journal.wake(db, "web1", "data")
    assert due(db) == [id_], "it fails no more"


@pytest.mark.parametrize("is_woken", [False, True])
def test_one_that_stands_still_does_not_where_it_was_woken_since_it_was_taken(
    db: Connection, is_woken: bool
) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    if is_woken:
        journal.wake(db, "web1", "data")
    journal.stand(db, held, waits="a word", error=FAILED)
    seen = jobs.get(db, id_)
    assert (seen.state is JobState.ATTENTION, seen.waits == "a word", seen.error == FAILED) == (
        (not is_woken,) * 3
    )
    assert due(db) == ([id_] if is_woken else [])
    with pytest.raises(LostJobError):
        journal.renew(db, held, HOUR_NS)


@pytest.mark.parametrize("gives", ["waits", "attention", "free"])
def test_who_gave_a_job_up_renews_nothing(db: Connection, gives: str) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    match gives:
        case "waits":
            journal.pause(db, held, waits="the agent", pause_ns=OVER_NS, now_ns=NOW)
        case "attention":
            journal.ask_for_attention(db, held, waits="a person", error=FAILED)
        case _:
            journal.free_all(db)
    with pytest.raises(LostJobError):
        journal.renew(db, held, HOUR_NS)
    journal.again(db, id_)
    assert due(db) == [id_]


def test_one_that_needs_attention_stands_until_a_person_says_how_it_goes_on(db: Connection) -> None:
    id_, other = begun(db), begun(db, "web2")
    assert not journal.abandon(db, id_, NOW)
    journal.ask_for_attention(db, claimed(db, id_), waits="a person", error=FAILED)
    [stands] = jobs.that_need_attention(db)
    assert (stands.id, stands.state, stands.waits, stands.error) == (
        id_,
        JobState.ATTENTION,
        "a person",
        FAILED,
    )
    assert stands.allowed == list(JobAct)
    assert (due(db), journal.claim(db, id_, "cs2", HOUR_NS)) == ([other], None)
    assert journal.again(db, id_)
    assert jobs.that_need_attention(db) == []
    journal.ask_for_attention(db, claimed(db, id_), waits="a person", error=FAILED)
    assert journal.abandon(db, id_, NOW)
    assert not journal.abandon(db, id_, NOW)
    assert not journal.again(db, id_)
    assert (jobs.get(db, id_).state, jobs.get(db, id_).allowed) == (JobState.ABANDONED, [])


def test_of_those_at_work_it_is_told_which_go_back(db: Connection) -> None:
    ids = [begun(db, f"web{number}") for number in range(3)]
    assert journal.turned(db, ids) == []
    journal.cancel(db, ids[1], "operator:o", NOW)
    journal.cancel(db, ids[2], "operator:o", NOW)
    assert journal.turned(db, ids[:2]) == [ids[1]]
    assert journal.turned(db, []) == []


def test_one_that_goes_back_leaves_its_lane_and_is_over(db: Connection) -> None:
    id_, other = begun(db), begun(db, "web2")
    journal.leave_lane(db, "web1", "data")
    with pytest.raises(LaneTakenError):
        begun(db)
    assert not journal.is_over(db, id_)
    for each in (id_, other):
        journal.cancel(db, each, "operator:o", NOW)
    journal.leave_lane(db, "web1", "data")
    again = begun(db)
    assert [journal.is_over(db, each) for each in (id_, again, "none")] == [True, False, False]
    with pytest.raises(LaneTakenError):
        begun(db, "web2")
    journal.end(db, claimed(db, again), JobState.DONE, None, NOW)
    assert journal.is_over(db, again)


def test_a_step_writes_only_while_the_job_is_its_servers(db: Connection) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    job = journal.look(db, held, HOUR_NS).job
    assert journal.still(db, job).direction is Direction.FORWARD
    journal.cancel(db, id_, "operator:o", NOW)
    assert journal.still(db, job).direction is Direction.BACK
    journal.pause(db, held, waits="it", pause_ns=0, now_ns=NOW)
    with pytest.raises(LostJobError):
        journal.still(db, job)
    again = journal.look(db, claimed(db, id_), HOUR_NS).job
    assert journal.still(db, again).direction is Direction.BACK
    with pytest.raises(LostJobError):
        journal.still(db, job)


def test_of_kinds_that_nobody_here_knows_those_that_nobody_has_taken_for_a_while_are_parked(
    db: Connection,
) -> None:
    now_ns = db.execute(select(clock_ns())).scalar_one()
    left, taken, new = (begun(db, f"web{number}", version=2) for number in range(3))
    known = begun(db, "web9")
    db.execute(update(schema.jobs).values(updated_ns=now_ns - 61 * SECOND_NS))
    db.execute(update(schema.jobs).values(updated_ns=now_ns).where(schema.jobs.c.id == new))
    held = claimed(db, taken)
    assert journal.park(db, KINDS) == [left]
    assert journal.park(db, KINDS) == []
    assert due(db) == [known], "what is not known takes nobody's place"
    stands = jobs.get(db, left)
    assert (stands.state, stands.allowed) == (JobState.ATTENTION, list(JobAct))
    journal.renew(db, held, HOUR_NS)
    assert journal.park(db, {("resync", 2)}) == [known], "of the newer program's view"
    assert jobs.get(db, left).state is JobState.RUNNING


def test_a_job_whose_first_step_was_begun_with_it_undoes_that(db: Connection) -> None:
    id_ = journal.create(
        db,
        kind="resync",
        version=1,
        machine="web1",
        lane="",
        who="",
        args={},
        now_ns=NOW,
        begun=[("ask", StepState.BEGUN)],
    )
    assert journal.entries(db, id_) == {"ask": BEGUN}
    assert journal.is_there(db, id_, kind="resync", machine="web1")
    assert not journal.is_there(db, "none", kind="resync", machine="web1")
    with pytest.raises(KeyUsedError):
        journal.is_there(db, id_, kind="resync", machine="web2")


def test_no_job_is_stored_in_a_state_that_the_program_of_before_cannot_read(db: Connection) -> None:
    """It opens such a database still, and lists no job at all where it cannot read one."""
    id_ = begun(db)
    journal.ask_for_attention(db, claimed(db, id_), waits="a person", error=FAILED)
    journal.abandon(db, id_, NOW)
    [stored] = db.scalars(select(schema.jobs.c.state))
    assert stored in ("running", "done", "failed", "cancelled")


def test_one_that_is_cancelled_is_undone_by_its_owner_and_one_of_a_command_has_ended(db: Connection) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    journal.pause(db, held, waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    assert journal.cancel(db, id_, "operator:a", NOW)
    assert not journal.cancel(db, id_, "operator:b", NOW)
    assert due(db) == [id_], "at once"
    held = claimed(db, id_)
    job = journal.renew(db, held, HOUR_NS)
    assert (job.direction, job.cancelled_by) == (Direction.BACK, "operator:a")
    journal.end(db, held, JobState.CANCELLED, None, NOW)
    assert not journal.cancel(db, id_, "operator:c", NOW)
    with pytest.raises(LostJobError):
        journal.renew(db, held, HOUR_NS)
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    assert (due(db), journal.claim(db, "j1", "cs1", HOUR_NS)) == ([], None)
    assert journal.cancel(db, "j1", "operator:a", NOW)
    assert not journal.cancel(db, "j1", "operator:b", NOW)
    late = jobs.update(db, "j1", JobProgress(state=WorkerState.DONE), NOW)
    assert (late.state, late.cancelled_by) == (JobState.CANCELLED, "operator:a")


def test_what_is_superseded_turns_back_at_once_without_its_lane_and_names_who_and_what_took_its_place(
    db: Connection,
) -> None:
    waits, stands, ended = begun(db, lane="life"), begun(db), begun(db, lane="other")
    others = [begun(db, "web2", "life"), begun(db, lane="third"), begun(db, lane="")]
    journal.pause(db, claimed(db, waits), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    journal.ask_for_attention(db, claimed(db, stands), waits="a person", error=FAILED)
    journal.end(db, claimed(db, ended), JobState.DONE, None, NOW)
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    gone = journal.supersede(db, "web1", ("life", "data", "other"), "operator:a", "the-next", NOW)
    assert gone == sorted([waits, stands])
    assert sorted(due(db)) == sorted([waits, stands, *others]), "at once"
    for id_ in gone:
        seen = jobs.get(db, id_)
        assert (seen.cancelled_by, seen.superseded_by) == ("operator:a", "the-next")
        assert (seen.state, seen.direction, seen.waits) == (JobState.RUNNING, Direction.BACK, "")
        job = journal.renew(db, claimed(db, id_), HOUR_NS)
        assert (job.superseded_by, job.attention) == ("the-next", False)
        assert begun(db, lane="life" if id_ == waits else "data") != id_, "its lane is free"
    for id_ in [*others, "j1"]:
        assert (jobs.get(db, id_).superseded_by, jobs.get(db, id_).direction) == ("", Direction.FORWARD)
    assert jobs.get(db, ended).state is JobState.DONE


def test_who_has_a_superseded_job_keeps_it_and_hears_of_it_with_his_next_transaction(db: Connection) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    journal.supersede(db, "web1", ("data",), "operator:a", "the-next", NOW)
    assert journal.claim(db, id_, "cs2", HOUR_NS) is None, "his effect may be under way"
    job = journal.put(db, held, HOUR_NS, "ask", BEGUN, NOW)
    assert (job.direction, job.superseded_by) == (Direction.BACK, "the-next")
    journal.end(db, held, JobState.CANCELLED, None, NOW)
    assert journal.supersede(db, "web1", ("data",), "operator:b", "another", NOW) == []


def test_one_that_goes_back_already_loses_its_lane_and_keeps_its_reason(db: Connection) -> None:
    cancelled, failed = begun(db), begun(db, lane="life")
    journal.cancel(db, cancelled, "operator:a", NOW)
    held = claimed(db, failed)
    journal.turn(db, held, FAILED)
    journal.ask_for_attention(db, held, waits="it is locked", error=FAILED)
    assert journal.supersede(db, "web1", ("data", "life"), "operator:b", "the-next", NOW) == sorted(
        [cancelled, failed]
    )
    seen = [jobs.get(db, id_) for id_ in (cancelled, failed)]
    assert [(job.cancelled_by, job.superseded_by) for job in seen] == [("operator:a", ""), ("", "")]
    assert (jobs.that_need_attention(db), sorted(due(db))) == ([], sorted([cancelled, failed]))
    begun(db)
    begun(db, lane="life")


def test_a_job_may_begin_with_its_first_step_done_and_is_found_by_its_lane(db: Connection) -> None:
    assert journal.in_lane(db, "web1", "life") is None
    id_ = journal.create(
        db, kind="resync", version=1, machine="web1", lane="life", who="operator:o", args={"n": 1}, now_ns=NOW,
        id_="drawn-before", begun=[("set", StepState.DONE)],
    )  # fmt: skip
    assert id_ == "drawn-before"
    assert journal.entries(db, id_) == {"set": Entry(state=StepState.DONE, tries=0)}
    found = journal.in_lane(db, "web1", "life")
    assert found == journal.find(db, id_)
    assert (found.id, found.kind, found.args) == (id_, "resync", {"n": 1})
    assert journal.in_lane(db, "web1", "data") is None
    with pytest.raises(LaneTakenError):
        journal.create(
            db, kind="resync", version=1, machine="web1", lane="life", who="o", args={}, now_ns=NOW, begun=[("set", StepState.DONE)]
        )  # fmt: skip
    journal.end(db, claimed(db, id_), JobState.DONE, None, NOW)
    assert journal.in_lane(db, "web1", "life") is None


def test_what_is_said_again_wakes_the_job_that_sees_to_it_and_none_that_goes_back(db: Connection) -> None:
    id_ = begun(db)
    journal.pause(db, claimed(db, id_), waits="the agent", pause_ns=HOUR_NS, now_ns=NOW)
    journal.say_again(db, id_, {"after": 2}, NOW)
    assert (due(db), journal.find(db, id_).args) == ([id_], {"after": 2})
    journal.cancel(db, id_, "operator:a", NOW)
    journal.say_again(db, id_, {"after": 3}, NOW)
    assert journal.find(db, id_).args == {"after": 2}


def test_one_that_fails_turns_back_and_ends_with_what_came_of_it(db: Connection) -> None:
    failed, done = begun(db), begun(db, "web2")
    held = claimed(db, failed)
    journal.turn(db, held, FAILED)
    job = journal.renew(db, held, HOUR_NS)
    assert (job.direction, job.error) == (Direction.BACK, FAILED)
    journal.end(db, held, JobState.FAILED, None, NOW)
    journal.end(db, claimed(db, done), JobState.DONE, {"epoch": 2}, NOW)
    seen = [(job.state, job.error, job.result) for job in (jobs.get(db, failed), jobs.get(db, done))]
    assert seen == [(JobState.FAILED, FAILED, None), (JobState.DONE, None, {"epoch": 2})]
    assert jobs.update(db, done, JobProgress(), NOW).state is JobState.DONE, "nobody reports it"


@pytest.mark.parametrize(("is_back", "looked_at"), [(False, StepState.BEGUN), (True, StepState.UNDOING)])
def test_of_a_database_that_was_put_back_all_steps_are_looked_at_again(
    db: Connection, is_back: bool, looked_at: StepState
) -> None:
    id_, ended = begun(db), begun(db, "web2")
    journal.end(db, claimed(db, ended), JobState.DONE, None, NOW)
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    before = claimed(db, id_)
    journal.put(db, before, HOUR_NS, "ask", DONE, NOW)
    if is_back:
        journal.turn(db, before, FAILED)
    assert journal.hold_unended(db, "it was put back") == [id_]
    with pytest.raises(LostJobError):
        journal.renew(db, before, HOUR_NS)
    assert [job.waits for job in jobs.that_need_attention(db)] == ["it was put back"]
    assert journal.again(db, id_)
    held = claimed(db, id_)
    assert held.term > before.term + 1
    assert journal.renew(db, held, HOUR_NS).in_doubt
    journal.doubt(db, held, HOUR_NS, ["ask", "copy"], NOW)
    assert journal.entries(db, id_) == {
        "ask": Entry(state=looked_at, tries=0, result={"n": 1}),
        "copy": Entry(state=looked_at, tries=0),
    }
    assert not journal.renew(db, held, HOUR_NS).in_doubt


def test_what_was_done_by_another_transaction_is_done_and_its_owner_finds_it_gone(db: Connection) -> None:
    id_, back = begun(db), begun(db, "web2")
    held = claimed(db, id_)
    assert journal.cancel(db, back, "operator:o", NOW)
    for one in (id_, back):
        journal.complete(db, one, "ask", {"n": 1}, NOW)
    assert journal.entries(db, id_) == {"ask": Entry(state=StepState.DONE, tries=0, result={"n": 1})}
    done = jobs.get(db, id_)
    assert (done.state, done.result) == (JobState.DONE, {"n": 1})
    with pytest.raises(LostJobError):
        journal.renew(db, held, HOUR_NS)
    assert journal.in_lane(db, "web1", "data") is None
    assert jobs.get(db, back).state is not JobState.DONE, "it goes back"
    assert journal.entries(db, back) == {}


def test_what_was_undone_is_looked_for_once_more_until_nothing_can_come_of_it(db: Connection) -> None:
    undone = Entry(state=StepState.UNDONE, tries=0, undone_ns=NOW)
    ids = [begun(db, f"web{number}") for number in range(3)]
    for id_, state in zip(ids, (JobState.CANCELLED, JobState.DONE, None), strict=True):
        held = claimed(db, id_)
        journal.put(db, held, HOUR_NS, "ask", undone, NOW)
        if state is not None:
            journal.end(db, held, state, None, NOW)
    assert [job.id for job in journal.undone(db)] == ids[:1]
    later = Entry(state=StepState.UNDONE, tries=0, undone_ns=NOW + 1)
    gone = Entry(state=StepState.GONE, tries=0)
    journal.put_undone(db, ids[0], "ask", undone, later, NOW)
    journal.put_undone(db, ids[0], "ask", undone, gone, NOW)
    assert journal.entries(db, ids[0])["ask"] == later, "another one found something since it was looked at"
    journal.put_undone(db, ids[0], "ask", later, gone, NOW)
    assert journal.undone(db) == []
    for step in ("ask", "copy"):
        journal.put_undone(db, ids[0], step, later, undone, NOW)
    assert {name: entry.state for name, entry in journal.entries(db, ids[0]).items()} == {
        "ask": StepState.GONE
    }

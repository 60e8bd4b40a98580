"""Restores in the journal, over both databases: what the words of their commands do, and whose access is whose."""

from __future__ import annotations

from typing import Any, Final

import pytest
from sqlalchemy import Connection, update

from config_server.rules.clock import SECOND_NS
from config_server.store import jobs, journal, restores, schema
from config_server.store.journal import Entry, Held
from shared.api.jobs import Direction, JobProgress, JobState, StepState, WorkerState
from shared.api.route import Failure
from shared.errors import JobGivenUpError, JobNotFoundError
from tests import older_jobs

NOW: Final = 1_700_000_000 * SECOND_NS
HOUR_NS: Final = 3600 * SECOND_NS
KINDS: Final = {(restores.KIND, restores.VERSION)}
WHO: Final = "operator:o"
UNHEARD: Final = JobGivenUpError("Nobody knows")
FULL: Final = Failure("US475", "The disk is full", cause="no room", exit_code=5)


def begun(db: Connection, grant: str = "g1", machine: str = "web1") -> str:
    return journal.create(
        db, kind=restores.KIND, version=restores.VERSION, machine=machine, lane="", who=WHO, args={"grant": grant}, now_ns=NOW
    )  # fmt: skip


def claimed(db: Connection, id_: str) -> Held:
    held = journal.claim(db, id_, "cs1", HOUR_NS)
    assert held is not None
    return held


def waits(db: Connection, id_: str) -> None:
    """As the job of a restore does: somebody looks at it now and then."""
    journal.pause(db, claimed(db, id_), waits="the command", pause_ns=HOUR_NS, now_ns=None)


def test_that_somebody_looks_at_it_is_no_change(db: Connection) -> None:
    id_ = begun(db)
    held = claimed(db, id_)
    said(db, id_, WorkerState.RUNNING, at=SECOND_NS)
    changed = jobs.get(db, id_).updated
    journal.pause(db, held, waits="the command", pause_ns=HOUR_NS, now_ns=None)
    assert jobs.get(db, id_).updated == changed
    journal.pause(db, held, waits="an agent", pause_ns=HOUR_NS, now_ns=NOW + HOUR_NS)
    assert jobs.get(db, id_).updated > changed


def stands(db: Connection, id_: str) -> None:
    journal.ask_for_attention(
        db, claimed(db, id_), waits="a word of the command", error=restores.failure_of(UNHEARD)
    )


def said(db: Connection, id_: str, state: WorkerState, *, at: int = 1, **more: Any) -> restores.Heard:
    return restores.hear(db, id_, JobProgress(state=state, **more), WHO, NOW + at)


def is_due(db: Connection, id_: str) -> bool:
    return id_ in journal.due(db, KINDS, 9)


def test_how_it_goes_is_shown_and_wakes_nobody(db: Connection) -> None:
    id_ = begun(db)
    assert restores.worker(db, id_) == restores.Worker(
        state=WorkerState.RUNNING, heard_ns=0, progress=None, result=None
    )
    waits(db, id_)
    heard = said(db, id_, WorkerState.RUNNING, progress=0.5, detail="half")
    assert not heard.is_end
    assert heard.job == jobs.get(db, id_)
    assert (heard.job.state, heard.job.progress, heard.job.detail) == (JobState.WAITING, 0.5, "half")
    assert restores.worker(db, id_).heard_ns == NOW + 1
    assert not is_due(db, id_)


def test_that_it_is_done_is_kept_for_whoever_drives_it_and_is_its_last_word(db: Connection) -> None:
    id_ = begun(db)
    waits(db, id_)
    assert said(db, id_, WorkerState.DONE, result={"point": "1-2"}).is_end
    assert is_due(db, id_)
    seen = restores.worker(db, id_)
    assert (seen.state, seen.has_ended, seen.result) == (WorkerState.DONE, True, {"point": "1-2"})
    for state in (WorkerState.RUNNING, WorkerState.FAILED, WorkerState.DONE):
        assert not said(db, id_, state, at=2, result={"point": "3-4"}).is_end
    assert restores.worker(db, id_) == seen
    assert jobs.get(db, id_).direction is Direction.FORWARD
    journal.end(db, claimed(db, id_), JobState.DONE, seen.result, NOW)
    late = said(db, id_, WorkerState.FAILED, error=FULL)
    assert (late.job.state, late.job.error, late.is_end) == (JobState.DONE, None, False)


@pytest.mark.parametrize("error", [FULL, None])
def test_one_that_failed_goes_back_with_the_commands_own_error(db: Connection, error: Failure | None) -> None:
    id_ = begun(db)
    waits(db, id_)
    heard = said(db, id_, WorkerState.FAILED, error=error)
    assert (heard.is_end, heard.job.direction, heard.job.cancelled_by) == (True, Direction.BACK, "")
    assert heard.job.error is not None
    assert (heard.job.error == FULL, heard.job.error.code) == ((True, "US475") if error else (False, "US474"))
    assert is_due(db, id_)


def test_one_whose_command_was_interrupted_goes_back_as_cancelled(db: Connection) -> None:
    id_ = begun(db)
    waits(db, id_)
    heard = said(db, id_, WorkerState.CANCELLED)
    assert (heard.is_end, heard.job.direction, heard.job.cancelled_by) == (True, Direction.BACK, WHO)
    assert (heard.job.error, is_due(db, id_)) == (None, True)


@pytest.mark.parametrize("state", [WorkerState.RUNNING, WorkerState.DONE])
def test_one_that_stood_still_goes_on_with_the_next_word(db: Connection, state: WorkerState) -> None:
    id_ = begun(db)
    stands(db, id_)
    assert jobs.get(db, id_).state is JobState.ATTENTION
    after = said(db, id_, state).job
    assert (after.state, after.waits, after.error, is_due(db, id_)) == (JobState.RUNNING, "", None, True)


def test_one_that_is_cancelled_hears_it_and_its_words_do_not_turn_it(db: Connection) -> None:
    id_ = begun(db)
    waits(db, id_)
    assert journal.cancel(db, id_, "operator:a", NOW)
    waits(db, id_)
    heard = said(db, id_, WorkerState.RUNNING, progress=0.5)
    assert (heard.job.direction, heard.job.cancelled_by, is_due(db, id_)) == (
        Direction.BACK,
        "operator:a",
        False,
    )
    heard = said(db, id_, WorkerState.FAILED, error=FULL)
    assert (heard.is_end, heard.job.error, heard.job.cancelled_by, is_due(db, id_)) == (
        *(True, None, "operator:a", True),
    )


def test_one_whose_command_did_not_answer_is_told_of_once_until_it_does(db: Connection) -> None:
    id_ = begun(db)
    assert journal.cancel(db, id_, "operator:a", NOW)
    given_up = restores.give_up(db, id_, UNHEARD)
    assert given_up is not None
    assert given_up.error == restores.failure_of(UNHEARD)
    assert restores.give_up(db, id_, UNHEARD) is None
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([], [id_])
    journal.end(db, claimed(db, id_), JobState.CANCELLED, None, NOW)
    heard = said(db, id_, WorkerState.RUNNING)
    assert (heard.job.state, heard.job.cancelled_by, heard.is_end) == (
        *(JobState.CANCELLED, "operator:a", False),
    )
    assert jobs.given_up(db, "web1") == [id_], "it may never have heard the answer"
    assert said(db, id_, WorkerState.CANCELLED).job.error is None
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([], [])
    for ended in (id_, begun(db)):
        said(db, ended, WorkerState.DONE)
        assert restores.give_up(db, ended, UNHEARD) is None


def test_a_machine_is_not_removed_under_one_that_runs_or_may(db: Connection) -> None:
    id_ = begun(db)
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([(id_, "restore")], [])
    stands(db, id_)
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([], [id_])
    said(db, id_, WorkerState.RUNNING)
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([(id_, "restore")], [])
    stands(db, id_)
    assert journal.abandon(db, id_, NOW)
    assert (jobs.running(db, "web1"), jobs.given_up(db, "web1")) == ([], [id_])
    assert said(db, id_, WorkerState.RUNNING).job.state is JobState.ABANDONED
    said(db, id_, WorkerState.DONE)
    assert jobs.given_up(db, "web1") == []


def test_of_a_database_that_was_put_back_it_goes_on_when_it_is_heard(db: Connection) -> None:
    heard, silent, back, other = begun(db), begun(db), begun(db), older_job(db)
    journal.turn(db, claimed(db, back), FULL)
    assert set(journal.hold_unended(db, "it was put back")) == {heard, silent, back}
    restores.doubt(db, UNHEARD)
    assert {job.id for job in jobs.that_need_attention(db)} == {heard, silent, back}
    assert jobs.get(db, back).error == FULL, "why it went back"
    assert jobs.get(db, other).error is None
    assert said(db, heard, WorkerState.RUNNING).job.state is JobState.RUNNING
    assert is_due(db, heard)
    assert journal.renew(db, claimed(db, heard), HOUR_NS).in_doubt, "each step is looked at again"
    said(db, back, WorkerState.FAILED, error=FULL)
    assert jobs.get(db, back).state is JobState.ATTENTION, "of that a person says how it goes on"
    assert sorted(jobs.given_up(db, "web1")) == [silent]


def older_job(db: Connection, grant: str = "g1") -> str:
    older_jobs.create(db, "j1", "restore", "web1", WHO, {"grant": grant}, NOW)
    return "j1"


def test_a_grant_is_somebodys_while_another_goes_forward_by_it(db: Connection) -> None:
    mine = begun(db)
    assert not restores.have_grant(db, "web1", "g1", mine)
    for grant, machine in (("g2", "web1"), ("g1", "web2")):
        begun(db, grant, machine)
    assert not restores.have_grant(db, "web1", "g1", mine)
    other = begun(db)
    assert restores.have_grant(db, "web1", "g1", mine)
    assert restores.have_grant(db, "web1", "g1", other)
    stands(db, other)
    assert restores.have_grant(db, "web1", "g1", mine), "it may run"
    assert journal.cancel(db, other, WHO, NOW)
    assert not restores.have_grant(db, "web1", "g1", mine), "else none of two that end would take it back"
    older = older_job(db)
    assert restores.have_grant(db, "web1", "g1", mine)
    jobs.fail_silent(db, {older: (0, 0)}, 10**15, NOW)
    assert restores.have_grant(db, "web1", "g1", mine), "it may run"
    said(db, older, WorkerState.DONE)
    assert not restores.have_grant(db, "web1", "g1", mine)


def test_one_of_before_is_heard_as_it_was(db: Connection) -> None:
    id_ = older_job(db)
    assert not said(db, id_, WorkerState.RUNNING, progress=0.5).is_end
    failed = said(db, id_, WorkerState.FAILED, error=FULL)
    assert (failed.is_end, failed.job.state, failed.job.error) == (True, JobState.FAILED, FULL)
    assert not said(db, id_, WorkerState.DONE).is_end


def test_one_that_an_older_program_gave_up_meanwhile_goes_on(db: Connection) -> None:
    id_ = begun(db)
    error = restores.failure_of(UNHEARD)
    older = update(schema.jobs).where(schema.jobs.c.id == id_)
    text = f'{{"code": "{error.code}", "what": "x"}}'
    db.execute(older.values(state=JobState.FAILED, error=text))
    after = said(db, id_, WorkerState.RUNNING).job
    assert (after.state, after.error, is_due(db, id_)) == (JobState.RUNNING, None, True)


def test_another_kind_is_nobodys_to_report(db: Connection) -> None:
    id_ = journal.create(
        db, kind="resync", version=1, machine="web1", lane="data", who=WHO, args={}, now_ns=NOW
    )
    heard = said(db, id_, WorkerState.DONE, progress=0.5)
    assert (heard.is_end, heard.job.state, heard.job.progress) == (False, JobState.RUNNING, None)
    assert jobs.row(db, id_).heard_ns == 0
    for unknown in (lambda: said(db, "none", WorkerState.DONE), lambda: restores.worker(db, "none")):
        with pytest.raises(JobNotFoundError):
            unknown()


def test_a_job_gets_the_id_that_it_is_given_and_has_begun_what_was_there_before_it(db: Connection) -> None:
    id_ = journal.create(
        db, kind="restore", version=1, machine="web1", lane="", who=WHO, args={}, now_ns=NOW, id_="0123456789abcdef",
        begun=[(step, StepState.BEGUN) for step in restores.STEPS],
    )  # fmt: skip
    assert id_ == "0123456789abcdef"
    assert journal.is_there(db, id_, kind="restore", machine="web1")
    begun = Entry(state=StepState.BEGUN, tries=0)
    assert journal.entries(db, id_) == dict.fromkeys(restores.STEPS, begun)

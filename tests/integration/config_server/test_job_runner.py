"""What the runner makes of a step's answer, on a real database; with steps of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from config_server.jobs.kinds import Kind, Kinds, Stands, Waits
from config_server.jobs.runner import Runner
from config_server.store import jobs, journal
from config_server.store.database import Connection, Database
from config_server.store.journal import Job
from shared.api.jobs import Direction, JobState, JobView
from shared.errors import RequestError, UnderstudyError, UnhealthyError, UnreachableError

NOW: Final = 1_700_000_000_000_000_000
_Do = Callable[[Job], Awaitable[Any]]


class Says:
    """One step, which does and undoes what a test says."""

    name: Final = "says"

    def __init__(self) -> None:
        self.done: list[Any | _Do] = []
        self.undone: list[UnderstudyError | bool] = []

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any:
        assert results == {}
        answer = self.done.pop(0)
        return await answer(job) if callable(answer) else answer

    async def undo(self, job: Job) -> bool:
        assert job.direction is Direction.BACK
        answer = self.undone.pop(0)
        if isinstance(answer, UnderstudyError):
            raise answer
        return answer


class Site:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.step = Says()
        self.ended: list[str] = []
        kind = Kind(name="told", version=1, steps=[self.step], lasting_s=0.0)
        self.runner = Runner(db, Kinds([kind]), "cs1", lambda: NOW, ended=self.ended.append)

    async def begin(self) -> str:
        return await self.db.run(
            lambda db: journal.create(
                db, kind="told", version=1, machine="web1", lane="data", who="operator:o", args={}, now_ns=NOW
            )
        )

    async def drive(self, id_: str) -> JobView:
        """Until nobody has it."""
        await self.runner.look()
        await self.runner.settled()
        return await self.db.run(lambda db: jobs.get(db, id_))

    def wakes(self, then: object) -> _Do:
        """What the job waits for comes just before the step answers."""

        async def do(job: Job) -> object:
            await self.db.run(lambda db: journal.wake(db, job.machine, "data"))
            return then

        return do

    def wakes_and(self, then: _Do) -> _Do:
        async def do(job: Job) -> object:
            await self.db.run(lambda db: journal.wake(db, job.machine, "data"))
            return await then(job)

        return do

    def cancels(self, then: object) -> _Do:
        """Somebody cancels the job just before the step answers."""

        async def do(job: Job) -> object:
            await self.db.run(lambda db: journal.cancel(db, job.id, "operator:a", NOW))
            return then

        return do


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    db = await Database.open(tmp_path / "state.db")
    yield Site(db)
    await db.close()


async def test_one_that_waits_says_for_what_and_how_far_it_is(site: Site) -> None:
    site.step.done = [Waits("the command", 60.0, 0.5)]
    job = await site.drive(await site.begin())
    assert (job.state, job.waits, job.progress, site.ended) == (JobState.WAITING, "the command", 0.5, [])


@pytest.mark.parametrize("stands", [False, True])
async def test_what_came_as_the_job_was_let_go_is_looked_at_at_once(site: Site, stands: bool) -> None:
    answer = Stands("a word", UnhealthyError("x")) if stands else Waits("a word", 60.0)
    site.step.done = [site.wakes(answer), answer]
    id_ = await site.begin()
    job = await site.drive(id_)
    assert (job.state is JobState.ATTENTION, job.error) == (False, None)
    job = await site.drive(id_)
    assert site.step.done == []
    assert (job.state, job.waits) == (JobState.ATTENTION if stands else JobState.WAITING, "a word")
    assert (job.error.code if job.error else "") == ("US400" if stands else "")


@pytest.mark.parametrize("stands", [False, True])
async def test_one_that_is_cancelled_as_it_is_let_go_goes_back_at_once(site: Site, stands: bool) -> None:
    answer = Stands("x", UnhealthyError("x")) if stands else Waits("x", 60.0)
    site.step.done, site.step.undone = [site.cancels(answer)], [True]
    id_ = await site.begin()
    job = await site.drive(id_)
    assert (job.state, site.ended) == (JobState.CANCELLED, [id_])


async def test_one_that_is_cancelled_as_it_ends_goes_back_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals = 0
    real = journal.look

    def look(db: Connection, held: journal.Held, lease_ns: int) -> journal.Look:
        nonlocal renewals
        renewals += 1
        seen = real(db, held, lease_ns)
        if renewals == 2:  # all is done, and it is about to end
            journal.cancel(db, held.id, "operator:a", NOW)
        return seen

    monkeypatch.setattr(journal, "look", look)
    site.step.done, site.step.undone = [{"n": 1}], [True]
    id_ = await site.begin()
    job = await site.drive(id_)
    assert (job.state, job.result, site.ended) == (JobState.CANCELLED, None, [id_])


@pytest.mark.parametrize("hinders", [UnreachableError("no answer"), RequestError("no")])
async def test_why_it_went_back_stays_whatever_hinders_that(site: Site, hinders: UnderstudyError) -> None:
    async def fail(_job: Job) -> object:
        raise UnhealthyError("It broke")

    site.step.done, site.step.undone = [fail], [hinders, True]
    id_ = await site.begin()
    job = await site.drive(id_)
    assert job.error is not None
    assert (job.error.what, job.waits) == ("It broke", f"says: {hinders.what}")
    assert await site.db.run(lambda db: journal.again(db, id_))
    job = await site.drive(id_)
    assert job.error is not None
    assert (job.state, job.error.what, site.ended) == (JobState.FAILED, "It broke", [id_])


async def test_who_comes_and_goes_uses_up_no_tries_of_a_job_that_has_failed(site: Site) -> None:
    async def fails(_job: Job) -> object:
        raise UnreachableError("no answer")

    site.step.done = [site.wakes_and(fails)] * 9
    id_ = await site.begin()
    for _ in range(9):
        job = await site.drive(id_)
        await site.db.run(lambda db: journal.wake(db, "web1", "data"))
    assert (job.state, job.steps[0].tries, len(site.step.done)) == (JobState.WAITING, 1, 8)


async def test_what_failed_as_it_was_said_again_is_begun_anew_at_once(site: Site) -> None:
    async def said_again(job: Job) -> object:
        await site.db.run(lambda db: journal.say_again(db, job.id, {"after": 2}, NOW))
        raise UnreachableError("no answer")

    async def is_told(job: Job) -> object:
        return job.args

    site.step.done = [said_again, is_told]
    job = await site.drive(await site.begin())
    assert (job.state, job.result) == (JobState.DONE, {"after": 2})


async def test_one_that_is_cancelled_as_its_step_meets_a_bug_goes_back_at_once(site: Site) -> None:
    async def breaks(job: Job) -> object:
        await site.db.run(lambda db: journal.cancel(db, job.id, "operator:a", NOW))
        raise RuntimeError("a bug")

    site.step.done, site.step.undone = [breaks], [True]
    id_ = await site.begin()
    job = await site.drive(id_)
    assert (job.state, job.error, site.ended) == (JobState.CANCELLED, None, [id_]), (
        "a person has decided already"
    )

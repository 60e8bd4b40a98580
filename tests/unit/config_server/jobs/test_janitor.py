"""What the janitor makes of what it finds, of each job for itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import pytest
from sqlalchemy import Connection, update

from config_server.jobs.janitor import Janitor
from config_server.jobs.kinds import Kind, Kinds, Waits
from config_server.rules.clock import SECOND_NS
from config_server.store import journal, schema
from config_server.store.database import Database
from config_server.store.journal import Entry, Job
from shared.api.jobs import JobState, StepState
from shared.api.route import Failure
from tests.jobs_model.databases import Sqlite
from tests.jobs_model.host import Host

LASTING_S: Final = 600.0
Undo = Callable[[Job], bool | Waits]


class Makes:
    name = "make"

    def __init__(self, undo: Undo) -> None:
        self._undo = undo

    async def do(self, _job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        raise AssertionError("the janitor makes nothing")

    async def undo(self, job: Job) -> bool | Waits:
        return self._undo(job)


class Site:
    def __init__(self, undo: Undo) -> None:
        self.store = Sqlite(is_shared=True)
        self.store.begin(random.Random(0), lambda: None)
        self.host = Host("cs1", self.store, random.Random(0), lambda: self.store.now_ns)
        kinds = Kinds([Kind(name="made", version=1, steps=[Makes(undo)], lasting_s=LASTING_S)])
        self._janitor = Janitor(cast("Database", self.host), kinds, lambda: self.store.now_ns)

    def ended(self, state: JobState, machine: str = "web1") -> str:
        """Of a job whose only step was undone, and which then ended so."""

        def work(db: Connection) -> str:
            now_ns = self.store.now_ns
            id_ = journal.create(
                db,
                kind="made",
                version=1,
                machine=machine,
                lane="life",
                who="operator:o",
                args={},
                now_ns=now_ns,
            )
            held = journal.claim(db, id_, "cs1", SECOND_NS)
            assert held is not None
            undone = Entry(state=StepState.UNDONE, tries=0, undone_ns=now_ns)
            journal.put(db, held, SECOND_NS, "make", undone, now_ns)
            if state is JobState.ABANDONED:
                journal.ask_for_attention(db, held, waits="", error=Failure("US1", "it broke"))
                journal.abandon(db, id_, now_ns)
            else:
                journal.end(db, held, state, None, now_ns)
            return id_

        return str(self.store.transact(work))

    def looks(self) -> None:
        """Raises what the look raises."""
        look = self.host.loop.create_task(self._janitor.look())
        self.host.settle()
        while self.host.asks:
            self.host.advance(self.host.asks[0])
        assert look.done()
        look.result()

    def state(self, id_: str) -> StepState:
        found = self.store.transact(lambda db: journal.entries(db, id_))
        return StepState(found["make"].state)


@pytest.fixture
def site_of() -> Iterator[Callable[[Undo], Site]]:
    made = list[Site]()

    def make(undo: Undo) -> Site:
        made.append(Site(undo))
        return made[-1]

    yield make
    for site in made:
        site.host.kill()


def test_it_looks_until_nothing_can_come_and_anew_from_what_it_finds(site_of: Callable[[Undo], Site]) -> None:
    things = list[str]()

    def undo(job: Job) -> bool:
        return bool(things and things.pop() == job.id)

    site = site_of(undo)
    id_ = site.ended(JobState.CANCELLED)
    site.store.later(LASTING_S + 100)
    site.looks()
    assert site.state(id_) is StepState.UNDONE, "hosts' clocks may differ"
    things.append(id_)
    site.store.later(200)
    site.looks()
    assert (things, site.state(id_)) == ([], StepState.UNDONE)
    site.store.later(LASTING_S)
    site.looks()
    assert site.state(id_) is StepState.UNDONE
    site.store.later(200)
    site.looks()
    assert site.state(id_) is StepState.GONE


@pytest.mark.parametrize("state", [JobState.DONE, JobState.ABANDONED])
def test_of_one_that_was_done_or_is_a_persons_it_looks_for_nothing(
    site_of: Callable[[Undo], Site], state: JobState
) -> None:
    def undo(_job: Job) -> bool:
        raise AssertionError("it looked")

    site = site_of(undo)
    id_ = site.ended(state)
    site.store.later(LASTING_S * 2)
    site.looks()
    assert site.state(id_) is StepState.UNDONE


def test_what_waits_is_looked_for_again(site_of: Callable[[Undo], Site]) -> None:
    site = site_of(lambda _job: Waits("it is being removed", 5.0))
    id_ = site.ended(JobState.FAILED)
    site.store.later(LASTING_S * 2)
    site.looks()
    assert site.state(id_) is StepState.UNDONE


def test_a_bug_of_one_job_hinders_no_look_at_the_others(site_of: Callable[[Undo], Site]) -> None:
    ids = list[str]()

    def undo(job: Job) -> bool:
        if job.id == min(ids):  # which is the first that is looked at
            raise KeyError("nobody thought of it")
        return False

    site = site_of(undo)
    ids += [site.ended(JobState.CANCELLED, f"web{number}") for number in range(1, 4)]
    site.store.later(LASTING_S * 2)
    with pytest.raises(KeyError):  # it is told
        site.looks()
    assert [site.state(id_) for id_ in sorted(ids)] == [StepState.UNDONE, StepState.GONE, StepState.GONE]


def test_who_is_stopped_looks_no_further(site_of: Callable[[Undo], Site]) -> None:
    def undo(_job: Job) -> bool:
        raise asyncio.CancelledError

    site = site_of(undo)
    site.ended(JobState.CANCELLED)
    with pytest.raises(asyncio.CancelledError):
        site.looks()


def test_what_goes_on_again_since_it_was_looked_for_is_left_alone(site_of: Callable[[Undo], Site]) -> None:
    """The database is put back meanwhile, and has all of them running."""
    asked = list[str]()

    def undo(job: Job) -> bool:
        asked.append(job.id)
        site.store.transact(lambda db: db.execute(update(schema.jobs).values(state=JobState.RUNNING)))
        return False

    site = site_of(undo)
    site.ended(JobState.CANCELLED)
    site.ended(JobState.CANCELLED, "web2")
    site.looks()
    assert len(asked) == 1

"""What a runner does with the lease of a job, and with what nobody thought of: on hosts whose clocks are the test's. (What comes of all
of it together when hosts die, and come back: tests/property/test_jobs_model.py.)"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

import pytest
from sqlalchemy import Connection, select

from config_server.jobs.kinds import Kind, Kinds, Waits
from config_server.jobs.runner import LEASE_S, Runner
from config_server.rules.clock import SECOND_NS
from config_server.store import jobs, journal, schema
from config_server.store.database import Database
from config_server.store.journal import Entry, Job
from shared.api.jobs import Direction, JobAct, JobState, JobView, StepState
from shared.errors import JobBugError, RequestError, UnreachableError
from tests.jobs_model.databases import Sqlite
from tests.jobs_model.host import Host, Still

Done = Callable[[], Awaitable[Any]]


async def nothing() -> None:
    pass


class Step:
    def __init__(self, name: str, done: Done = nothing, undone: Done = nothing) -> None:
        self.name = name
        self._done, self._undone = done, undone
        self.log: list[str] = []

    async def do(self, _job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        self.log.append("do")
        return await self._done()

    async def undo(self, _job: Job) -> bool | Waits:
        self.log.append("undo")
        return bool(await self._undone())


class Site:
    """Two hosts on one database, and one job."""

    def __init__(self) -> None:
        self.store = Sqlite(is_shared=True)
        self.store.begin(random.Random(0), lambda: None)
        self.hosts = [
            Host(name, self.store, random.Random(0), lambda: self.store.now_ns) for name in ("cs1", "cs2")
        ]
        self.failures: list[BaseException] = []

    def has(self, *steps: Step, fence: str | None = None) -> None:
        kinds = Kinds([Kind(name="made", version=1, steps=steps, fence=fence, lasting_s=600)])
        self.runners = [Runner(cast("Database", host), kinds, host.name, host.now_ns) for host in self.hosts]
        self.id = self.store.transact(self._create)

    def _create(self, db: Connection) -> str:
        return journal.create(
            db,
            kind="made",
            version=1,
            machine="web1",
            lane="life",
            who="operator:o",
            args={},
            now_ns=self.store.now_ns,
        )

    def look(self, number: int = 0) -> None:
        self.hosts[number].begin(self.runners[number].look())

    def advance(self, number: int = 0, times: int = 1000) -> None:
        """So many steps of what the host asked of its database, at most."""
        host = self.hosts[number]
        for _ in range(times):
            if not host.asks:
                break
            host.advance(host.asks[0])
            self.failures += host.failures()

    def advance_until(self, state: StepState) -> None:
        """A step is so."""
        for _ in range(100):
            if state in [each.state for each in self.job.steps]:
                return
            self.advance(times=1)
        raise AssertionError(f"no step is {state}")

    def later(self, seconds: float) -> None:
        self.store.later(seconds)
        for host in self.hosts:
            host.later(seconds)

    @property
    def job(self) -> JobView:
        view: JobView = self.store.transact(lambda db: jobs.get(db, self.id))
        return view

    @property
    def owner(self) -> str:
        [[owner]] = self.store.read("SELECT owner FROM jobs")
        return str(owner)

    def drives(self, number: int = 0) -> None:
        self.look(number)
        self.advance(number)

    def newer(self, id_: str) -> None:
        """A job of a version that is not known here."""
        self.store.transact(
            lambda db: journal.create(
                db, kind="made", version=2, machine=id_, lane="life", who="", args={}, now_ns=self.store.now_ns, id_=id_
            )
        )  # fmt: skip

    def tidies(self) -> None:
        self.hosts[0].begin(self.runners[0].tidy())
        self.advance()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for host in made.hosts:
        host.kill()
    assert made.failures == []


class Gate:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.future: asyncio.Future[None] = host.loop.create_future()

    async def __call__(self) -> None:
        await self.future

    def open(self) -> None:
        self.future.set_result(None)
        self._host.settle()


def test_a_step_that_takes_five_leases_is_one_owners(site: Site) -> None:
    gate = Gate(site.hosts[0])
    step = Step("make", gate)
    site.has(step)
    site.drives()
    for _ in range(60):
        site.later(LEASE_S / 12)
        site.advance()
        site.drives(1)
        assert site.owner == "cs1"
    gate.open()
    site.advance()
    assert (step.log, site.job.state) == (["do"], JobState.DONE)


def test_a_step_is_cut_off_before_the_lease_ends_where_it_cannot_be_renewed(site: Site) -> None:
    gate = Gate(site.hosts[0])
    step = Step("make", gate)
    site.has(step)
    site.drives()
    for _ in range(26):
        assert site.hosts[0].failures() == []
        site.later(1)
    assert site.hosts[0].asks, "a renewal that is not answered"
    assert gate.future.cancelled()
    assert site.owner == "cs1"


def test_a_step_that_was_renewed_is_cut_off_before_that_lease_ends(site: Site) -> None:
    gate = Gate(site.hosts[0])
    site.has(Step("make", gate))
    site.drives()
    site.later(LEASE_S / 3)
    site.advance()
    for _ in range(20):
        site.later(1)
        assert not gate.future.cancelled()
    for _ in range(6):
        site.later(1)
    assert gate.future.cancelled()


def test_a_step_is_cut_off_when_its_job_is_found_to_be_somebody_elses(site: Site) -> None:
    gate = Gate(site.hosts[0])
    site.has(Step("make", gate))
    site.drives()
    site.store.transact(lambda db: journal.hold_unended(db, "the database was put back"))
    site.later(LEASE_S / 3)
    assert not gate.future.cancelled()
    site.advance()
    assert gate.future.cancelled()


def test_an_owner_who_hears_too_late_that_he_has_the_job_begins_nothing(site: Site) -> None:
    """What is begun may send its first request before anything can cut it off."""
    step = Step("make")
    site.has(step)
    site.look()
    site.advance_until(StepState.BEGUN)
    site.hosts[0].stand_still(Still.BESIDE_ITS_CLOCK)
    site.later(LEASE_S + 1)
    site.drives(1)
    assert (step.log, site.job.state) == (["do"], JobState.DONE)
    site.hosts[0].still = None
    site.hosts[0].loop.now_s += LEASE_S + 1
    site.advance()
    assert step.log == ["do"], "the other one's"


def test_a_renewal_that_is_answered_while_the_step_tidies_up_is_no_bug(site: Site) -> None:
    gate = Gate(site.hosts[0])

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await gate()

    site.has(Step("make", tidy))
    site.drives()
    for _ in range(26):
        site.later(1)
    site.advance()
    gate.open()
    site.advance()
    assert (site.job.state, site.owner) == (JobState.RUNNING, "cs1"), "until the lease ends"


def test_who_is_stopped_just_when_a_step_ends_is_stopped(site: Site) -> None:
    async def made() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)

    after = Step("after")
    site.has(Step("make", made), after)
    site.drives()
    assert after.log == []
    assert [each.state for each in site.job.steps] == [StepState.BEGUN]


def test_one_that_is_cancelled_when_nothing_is_left_to_be_done_goes_back_at_once(site: Site) -> None:
    step = Step("make")
    site.has(step)
    site.look()
    site.advance_until(StepState.DONE)
    site.advance(times=3)  # it looked once more, and is about to end it
    site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    site.advance()
    assert (step.log, site.job.state) == (["do", "undo"], JobState.CANCELLED)


def test_one_that_is_cancelled_before_a_step_is_begun_does_not_do_it(site: Site) -> None:
    first, second = Step("make"), Step("use")
    site.has(first, second)
    site.look()
    site.advance_until(StepState.DONE)
    site.advance(times=2)  # it looked, and is about to begin the second
    site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    site.advance()
    assert (first.log, second.log) == (["do", "undo"], ["undo"])
    assert site.job.state is JobState.CANCELLED


def test_one_that_is_cancelled_while_its_step_finds_that_it_has_to_wait_goes_back_at_once(site: Site) -> None:
    gate = Gate(site.hosts[0])

    async def waits() -> Waits:
        await gate()
        return Waits("the agent", 3600.0)

    step = Step("make", waits)
    site.has(step)
    site.drives()
    site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    gate.open()
    site.advance()
    assert (step.log, site.job.state) == (["do", "undo"], JobState.CANCELLED)


@pytest.mark.parametrize("back", [False, True])
def test_what_does_not_pass_by_itself_ends_the_trying(site: Site, back: bool) -> None:
    async def busy() -> None:
        raise UnreachableError("no answer")

    steps = [Step("make", undone=busy), Step("use", refused)] if back else [Step("make", busy)]
    site.has(*steps)
    tries = list[str]()
    while site.job.state in (JobState.RUNNING, JobState.WAITING):
        tries.append(site.job.waits)
        site.later(601)
        site.drives()
        assert len(tries) < 20, "it never ends"
    assert site.job.state is (JobState.ATTENTION if back else JobState.FAILED)
    assert (len(tries), set(tries[1:])) == (8, {"make: no answer"})


def test_a_step_that_waits_for_days_may_fail_now_and_then(site: Site) -> None:
    looks = list[int]()

    async def follow() -> Waits | None:
        looks.append(1)
        if len(looks) % 3 == 0:
            raise UnreachableError("no answer")
        return None if len(looks) == 50 else Waits("the agent", 5.0)

    site.has(Step("make", follow))
    while site.job.state in (JobState.RUNNING, JobState.WAITING):
        assert site.job.direction is Direction.FORWARD
        assert len(looks) <= 50
        site.drives()
        site.later(601)
    assert (site.job.state, len(looks)) == (JobState.DONE, 50)


@pytest.mark.parametrize("back", [False, True])
def test_of_a_database_that_was_put_back_each_step_is_looked_at_again(site: Site, back: bool) -> None:
    first, second = Step("make"), Step("use")
    site.has(first, second)
    site.look()
    site.advance_until(StepState.DONE)
    site.hosts[0].asks.clear()
    site.store.transact(lambda db: journal.hold_unended(db, "the database was put back"))
    site.drives(1)
    assert (site.job.state, first.log, second.log) == (JobState.ATTENTION, ["do"], [])
    if back:
        site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    else:
        site.store.transact(lambda db: journal.again(db, site.id))
    site.drives(1)
    if back:
        assert (site.job.state, first.log, second.log) == (JobState.CANCELLED, ["do", "undo"], ["undo"])
    else:
        assert (site.job.state, first.log, second.log) == (JobState.DONE, ["do", "do"], ["do"])


def test_what_came_late_of_a_step_does_not_hold_what_an_earlier_one_made(site: Site) -> None:
    """A virtual machine whose making was asked for, and was seen in no list, holds the network interface under it."""
    world = {"interface"}

    async def remove_machine() -> bool:
        is_there = "machine" in world
        world.discard("machine")
        return is_there

    async def remove_interface() -> bool:
        if "machine" not in world:
            world.discard("interface")
        else:
            raise RequestError("it is in use")
        return True

    machine = Step("machine", refused, remove_machine)
    site.has(Step("interface", undone=remove_interface), machine)
    site.look()
    site.advance_until(StepState.UNDONE)
    world.add("machine")
    site.advance()
    assert (site.job.state, site.job.waits) == (JobState.WAITING, "interface: it is in use")
    site.later(10)
    site.drives()
    assert (site.job.state, world) == (JobState.FAILED, set())
    assert machine.log == ["do", "undo", "undo"]


async def bug() -> None:
    raise KeyError("nobody thought of it")


async def refused() -> None:
    raise RequestError("it was refused")


@pytest.mark.parametrize("back", [False, True])
def test_what_nobody_thought_of_is_a_persons(site: Site, back: bool) -> None:
    steps = [Step("make", undone=bug), Step("use", refused)] if back else [Step("make", bug)]
    site.has(*steps)
    site.drives()
    stands = site.job
    assert (stands.state, stands.direction) == (
        JobState.ATTENTION,
        Direction.BACK if back else Direction.FORWARD,
    )
    assert stands.waits == "an error inside the config server (KeyError: 'nobody thought of it')"
    assert stands.error is not None
    assert (stands.error.code, stands.error.cause) == (JobBugError.code, stands.waits)
    assert stands.allowed == ([JobAct.RETRY, JobAct.ABANDON] if back else list(JobAct))


def test_what_is_being_done_is_cut_off_and_undone_when_its_job_is_cancelled(site: Site) -> None:
    gate = Gate(site.hosts[0])
    step = Step("make", gate)
    site.has(step)
    site.drives()
    site.drives()
    assert not gate.future.done(), "nobody cancelled it"
    site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    site.drives()
    assert gate.future.cancelled()
    assert (step.log, site.job.state) == (["do", "undo"], JobState.CANCELLED)


def test_what_is_being_undone_is_not_cut_off_by_a_cancel(site: Site) -> None:
    gate = Gate(site.hosts[0])
    step = Step("make", refused, gate)
    site.has(step)
    site.drives()
    site.store.transact(lambda db: journal.cancel(db, site.id, "operator:o", 0))
    site.drives()
    gate.open()
    site.advance()
    assert (step.log, site.job.state) == (["do", "undo"], JobState.FAILED)


def test_what_a_newer_program_began_hinders_nobody_and_asks_for_a_person_once_it_is_left(site: Site) -> None:
    site.has(Step("make"))
    for number in range(40):
        site.newer(f"newer{number}")
    site.drives()
    assert site.job.state is JobState.DONE
    site.tidies()
    assert site.store.read("SELECT count(*) FROM jobs WHERE attention") == [(0,)], (
        "its own server may take it yet"
    )
    site.later(70)
    site.tidies()
    newer = site.store.transact(lambda db: jobs.get(db, "newer7"))
    assert (newer.state, newer.allowed) == (JobState.ATTENTION, list(JobAct))
    assert newer.waits == "a config server that knows such jobs: a newer version has begun it"


def test_what_was_parked_goes_on_with_a_program_that_knows_it(site: Site) -> None:
    site.has(Step("make"))
    site.later(70)
    assert site.store.transact(lambda db: journal.park(db, {("made", 2)})) == [site.id]
    site.tidies()
    site.drives()
    assert site.job.state is JobState.DONE


def test_what_waits_by_a_clock_that_was_ahead_goes_on(site: Site) -> None:
    gate = [Waits("the agent", 5.0), None]

    async def made() -> Any:
        return gate.pop(0)

    site.has(Step("make", made))
    site.later(24 * 3600)
    site.drives()
    site.store.now_ns -= 24 * 3600 * SECOND_NS  # of the database's host
    site.drives()
    assert len(gate) == 1, "it waits still"
    site.tidies()
    site.drives()
    assert site.job.state is JobState.DONE


def test_a_journal_of_other_steps_is_a_persons(site: Site) -> None:
    """The steps of a kind were changed, and its version was not."""
    site.has(Step("make"))
    site.store.transact(_other_step)
    site.drives()
    assert site.job.state is JobState.ATTENTION
    assert "the journal has former" in site.job.waits


def _other_step(db: Connection) -> None:
    [[id_]] = db.execute(select(schema.jobs.c.id))
    held = journal.claim(db, id_, "cs0", -1)
    assert held is not None
    journal.put(db, held, -1, "former", Entry(state=StepState.DONE, tries=0), 0)

"""Jobs that see to acts, over a database: what they read together, and who takes an act back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from sqlalchemy import Connection

from config_server.jobs.kinds import Waits
from config_server.operations import act_jobs, deletion_job, protection_jobs
from config_server.operations.act_jobs import VERSION, Moment
from config_server.rules.acts import Rebound
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion
from config_server.rules.facts import Facts
from config_server.rules.lanes import Lane, Watch
from config_server.store import incarnations, inventory, journal, settings, sqlite
from config_server.store.journal import Job
from shared.api.jobs import Direction
from shared.api.route import Failure
from shared.desired import Verb, WantedDisk
from shared.errors import MachineNotFoundError, RequestError, SaidSinceError
from shared.status import AgentReport

NOW: Final = 1_700_000_000 * SECOND_NS
HOUR_NS: Final = 3600 * SECOND_NS
SDA, SDB = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")


@pytest.fixture
def db() -> Iterator[Connection]:
    connection = sqlite.connect(":memory:")
    yield connection
    connection.close()


def said(db: Connection, *disks: WantedDisk) -> Job:
    before = inventory.find(db, "web1")
    verb = Verb.PROTECT if disks else Verb.STOP
    after = inventory.act(db, "web1", verb, NOW, disks=disks)
    at = Moment("operator:o", NOW, NOW, Facts(None, None, None), AgentReport())
    kind = Watch.PROTECT if disks else Watch.UNPROTECT
    return journal.find(db, act_jobs.begin(db, kind, before, after, at))


def wanted(db: Connection) -> Any:
    wish = inventory.machine(db, "web1").wish
    return None if wish is None else (wish.verb, wish.disks)


def test_a_step_that_read_its_job_before_the_same_was_said_again_sees_to_the_later_act(
    db: Connection,
) -> None:
    seen = said(db, SDA)
    assert said(db, SDA).id == seen.id
    assert protection_jobs.check(db, seen).name == "web1"
    inventory.act(db, "web1", Verb.STOP, NOW)
    with pytest.raises(SaidSinceError, match="stop"):
        protection_jobs.check(db, seen)
    inventory.forget(db, "web1")
    with pytest.raises(MachineNotFoundError):
        protection_jobs.check(db, seen)


def test_only_a_persons_cancel_takes_an_act_back(db: Connection) -> None:
    said(db, SDA)
    job = said(db, SDA, SDB)
    held = journal.claim(db, job.id, "cs1", HOUR_NS)
    assert held is not None
    journal.turn(db, held, Failure("US1", "x"))
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW, is_heard=False)
    assert wanted(db) == (Verb.PROTECT, (SDA, SDB)), "it failed"
    job = said(db, SDB)
    journal.supersede(db, "web1", tuple(Lane), "operator:o", "the rebind", NOW)
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW, is_heard=False)
    assert wanted(db) == (Verb.PROTECT, (SDB,)), "it was superseded by what says nothing of that"
    job = said(db, SDA)
    journal.cancel(db, job.id, "operator:a", NOW)
    cancelled = journal.find(db, job.id)
    assert act_jobs.take_back(db, cancelled, None, NOW, is_heard=False)
    assert wanted(db) == (Verb.PROTECT, (SDB,))
    assert not act_jobs.take_back(db, cancelled, None, NOW, is_heard=False), "once"


def test_where_it_is_wanted_already_nothing_is_said(db: Connection) -> None:
    said(db, SDA)
    job = said(db, SDA)
    journal.supersede(db, "web1", tuple(Lane), "operator:o", "another", NOW)
    job = said(db, SDA)
    journal.cancel(db, job.id, "operator:a", NOW)
    before = inventory.machine(db, "web1").wish
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW, is_heard=False)
    assert inventory.machine(db, "web1").wish == before


def test_an_act_from_before_the_database_was_put_back_is_taken_back_where_its_agent_does_not_go_by_it(
    db: Connection,
) -> None:
    said(db, SDA)
    job = said(db, SDA, SDB)
    incarnations.begin(db)
    journal.cancel(db, job.id, "operator:a", NOW)
    cancelled, before = journal.find(db, job.id), inventory.machine(db, "web1").wish
    for report, is_heard in ((None, False), (AgentReport(wish=before), False)):
        waits = act_jobs.take_back(db, cancelled, report, NOW, is_heard=is_heard)
        assert isinstance(waits, Waits), "it may have gone by it for weeks"
        assert waits.why.startswith("the agent of web1, to say whether it goes by this")
    with pytest.raises(RequestError, match="was not said again") as raised:
        act_jobs.take_back(db, cancelled, AgentReport(wish=before), NOW, is_heard=True)
    assert "machine protect web1, or unprotect" in raised.value.action
    assert inventory.machine(db, "web1").wish == before
    assert act_jobs.take_back(db, cancelled, AgentReport(), NOW, is_heard=True) is True
    assert wanted(db) == (Verb.PROTECT, (SDA,))


def test_an_act_that_was_said_again_behind_that_is_taken_back(db: Connection) -> None:
    job = said(db, SDA)
    incarnations.begin(db)
    assert said(db, SDA).id == job.id
    journal.cancel(db, job.id, "operator:a", NOW)
    wish = inventory.machine(db, "web1").wish
    assert (
        act_jobs.take_back(db, journal.find(db, job.id), AgentReport(wish=wish), NOW, is_heard=True) is True
    )


def test_of_an_earlier_versions_act_the_history_says_whether_the_database_was_put_back(
    db: Connection,
) -> None:
    job = said(db, SDA)
    args = {**job.args, "incarnation": ""}
    journal.say_again(db, job.id, args, NOW)
    journal.cancel(db, job.id, "operator:a", NOW)
    cancelled, wish = journal.find(db, job.id), inventory.machine(db, "web1").wish
    incarnations.begin(db)
    with pytest.raises(RequestError):
        act_jobs.take_back(db, cancelled, AgentReport(wish=wish), NOW, is_heard=True)
    settings.put(db, "incarnations", '["first"]')
    assert act_jobs.take_back(db, cancelled, AgentReport(wish=wish), NOW, is_heard=True) is True


@pytest.mark.parametrize("kind", [Watch.PROTECT, Watch.REBIND])
def test_a_job_of_another_versions_words_gives_way_to_what_is_said(db: Connection, kind: Watch) -> None:
    there = journal.create(
        db, kind=kind, version=VERSION + 1, machine="web1", lane=Lane.LIFE, who="operator:o", args={"new": 1}, now_ns=NOW
    )  # fmt: skip
    job = said(db, SDA)
    assert journal.find(db, there).superseded_by == job.id


def test_a_deletions_job_of_another_versions_words_gives_way_to_one_that_can_be_read(db: Connection) -> None:
    def there() -> str:
        return journal.create(
            db, kind=Watch.DELETE, version=VERSION + 1, machine="web1", lane=Lane.LIFE, who="operator:o", args={"new": 1}, now_ns=NOW
        )  # fmt: skip

    first = there()
    id_ = deletion_job.begin(db, "web1", "d1", "operator:o", NOW)
    assert journal.find(db, first).superseded_by == id_
    journal.supersede(db, "web1", tuple(Lane), "operator:o", "another", NOW)
    second = there()
    deletion = Deletion(
        id="d1", incarnation="i", who="operator:o", asked_ns=NOW, after_ns=0, counted_ns=NOW, act="a", place="", container="", identity=""
    )  # fmt: skip
    deletion_job.end(db, "web1", deletion, "operator:o", NOW)
    assert journal.find(db, second).superseded_by == "deletion"


def test_what_is_wanted_already_takes_nobodys_place(db: Connection) -> None:
    """A script that says so every hour."""
    job = said(db, SDA)
    rebound = Rebound(identity="new", generation=2, before="old")
    at = Moment("operator:o", NOW, NOW, Facts(None, None, None), AgentReport())
    id_ = act_jobs.begin_rebind(db, "web1", inventory.find(db, "web1"), rebound, at, is_repeated=False)
    assert journal.find(db, job.id).superseded_by == id_
    assert said(db, SDA).id == id_
    other = said(db, SDB)
    assert (other.kind, journal.find(db, id_).superseded_by) == (Watch.PROTECT, other.id)


@pytest.mark.parametrize("attention", [False, True])
def test_whoever_is_bound_meanwhile_a_deletion_keeps_its_job(db: Connection, attention: bool) -> None:
    said(db, SDA)
    id_ = deletion_job.begin(db, "web1", "d1", "operator:o", NOW)
    if attention:
        journal.hold_unended(db, "it was put back")
    at = Moment("operator:o", NOW, NOW, Facts(None, None, None), AgentReport())
    for number, identity in enumerate(("new", "old", "old")):
        rebound = Rebound(identity=identity, generation=number + 2, before="")
        known = inventory.find(db, "web1")
        assert act_jobs.begin_rebind(db, "web1", known, rebound, at, is_repeated=number == 2) == id_
    assert journal.find(db, id_).direction is Direction.FORWARD

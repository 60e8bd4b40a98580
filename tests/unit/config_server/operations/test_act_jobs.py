"""Jobs that see to acts, over a database: what they read together, and who takes an act back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from sqlalchemy import Connection

from config_server.operations import act_jobs, protection_jobs
from config_server.operations.act_jobs import Moment
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import Facts
from config_server.rules.lanes import Lane, Watch
from config_server.store import inventory, journal, sqlite
from config_server.store.journal import Job
from shared.api.route import Failure
from shared.desired import Verb, WantedDisk
from shared.errors import MachineNotFoundError, SaidSinceError
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
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW)
    assert wanted(db) == (Verb.PROTECT, (SDA, SDB)), "it failed"
    job = said(db, SDB)
    journal.supersede(db, "web1", tuple(Lane), "operator:o", "the rebind", NOW)
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW)
    assert wanted(db) == (Verb.PROTECT, (SDB,)), "it was superseded by what says nothing of that"
    job = said(db, SDA)
    journal.cancel(db, job.id, "operator:a", NOW)
    cancelled = journal.find(db, job.id)
    assert act_jobs.take_back(db, cancelled, None, NOW)
    assert wanted(db) == (Verb.PROTECT, (SDB,))
    assert not act_jobs.take_back(db, cancelled, None, NOW), "once"


def test_where_it_is_wanted_already_nothing_is_said(db: Connection) -> None:
    said(db, SDA)
    job = said(db, SDA)
    journal.supersede(db, "web1", tuple(Lane), "operator:o", "another", NOW)
    job = said(db, SDA)
    journal.cancel(db, job.id, "operator:a", NOW)
    before = inventory.machine(db, "web1").wish
    assert not act_jobs.take_back(db, journal.find(db, job.id), None, NOW)
    assert inventory.machine(db, "web1").wish == before

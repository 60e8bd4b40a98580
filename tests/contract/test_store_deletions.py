"""Deletions of machines, over both databases: from asked for to done, and what stays known of them."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import GIVEN_UP_S, Deletion, Stage
from config_server.rules.machine import Machine
from config_server.store import (
    audit,
    commands,
    deleted,
    deletions,
    events,
    grants,
    incarnations,
    inventory,
    jobs,
)
from config_server.store.grants import Grant
from config_server.store.inventory import StoredReport
from shared.api.commands import CommandKind
from shared.api.jobs import JobProgress, JobState, WorkerState
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import BeingDeletedError
from shared.status import Problem
from shared.vocabulary import Role
from tests import older_jobs

NOW: Final = 1_700_000_000 * SECOND_NS
WEB1: Final = "agent:web1"
GIVEN_UP_NS: Final = int(GIVEN_UP_S * SECOND_NS)
SDA, SDB = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")


def act(second: int) -> str:
    return f"2026-01-01T00:00:0{second}.000000000Z-x"


def machine(db: Connection) -> Machine:
    return inventory.machine(db, "web1")


def asked(db: Connection) -> Deletion:
    """As operations/deleting.py."""
    wish: Wish | None = inventory.act(db, "web1", Verb.STOP, NOW).wish
    assert wish is not None
    deletion = Deletion(
        id="d1", incarnation=incarnations.history(db)[-1], who="operator:admin", asked_ns=NOW, after_ns=10, counted_ns=NOW,
        act=wish.mark.act, container="c1", identity="hw",
    )  # fmt: skip
    deletions.put(db, "web1", deletion)
    return deletion


def test_a_deletion_is_counted_goes_on_from_where_it_was_seen_and_past_recall_nobody_is_given_access(
    db: Connection,
) -> None:
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,))
    seen = asked(db)
    assert [found.id for _, found in deletions.all_(db)] == ["d1"]
    assert deletions.current(db, "web1", "d2") is None
    for passed, counts in ((5, 5), (10, 10), (15, 10)):
        counted = deletions.count(db, "web1", "d1", 5, NOW + passed)
        assert counted is not None
        assert (counted.passed_ns, counted.counted_ns) == (counts, NOW + counts), "until it is over"
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    grants.add(
        db,
        Grant(id="g1", machine="web1", container="c1", who="a", host="h", given_ns=NOW, expires_ns=NOW + 10),
    )
    assert len(deletions.running(db, "web1", NOW)) == 2
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW) == deletions.running(db, "web1", NOW)
    jobs.fail_silent(db, {"j1": (NOW, 0)}, 10**15, NOW)
    [hinders] = deletions.running(db, "web1", NOW + 10)
    assert "nothing is heard" in hinders
    assert deletions.running(db, "web1", NOW + 10, {"j1"}) == []
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW + 10) == [hinders]
    for passed_ns, given_up_ns in ((GIVEN_UP_NS, 0), (1, 1), (GIVEN_UP_NS - 2, GIVEN_UP_NS - 1)):
        counted = deletions.count(db, "web1", "d1", passed_ns, NOW + 20)
        assert counted is not None
        assert (counted.given_up, counted.counted_ns) == ({"j1": given_up_ns}, NOW + 10), "the delay is over"
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW + 10) == [hinders]
    deletions.count(db, "web1", "d1", 1, NOW + 20)
    stands = deletions.stands(db, "web1", seen)
    assert stands == machine(db).deletion
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW + 10, dry_run=True) == []
    assert machine(db).deletion == stands, "it was only asked"
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW + 10) == []
    assert deletions.stands(db, "web1", seen) is None, "it is not as it was seen"
    assert deletions.advance(db, "web1", seen, Stage.CLOSING, NOW + 10) is None
    closing = machine(db).deletion
    assert closing is not None
    assert closing.stage is Stage.CLOSING
    assert deletions.stands(db, "web1", closing) == closing
    deletions.check_readable(db, "web1", "vault")
    assert deletions.advance(db, "web1", closing, Stage.CLOSED, NOW) == [], "nobody takes it up any more"
    closed = replace(closing, stage=Stage.CLOSED)
    jobs.update(db, "j1", JobProgress(state=WorkerState.RUNNING), NOW)
    for to in (Stage.REMOVING, Stage.GONE):
        assert deletions.advance(db, "web1", closed, to, NOW + 10) == ["a restore of it runs (job j1)"]
    jobs.update(db, "j1", JobProgress(state=WorkerState.DONE), NOW)
    assert deletions.advance(db, "web1", closed, Stage.REMOVING, NOW + 10) == []
    older_jobs.create(db, "j2", "restore", "web1", "operator:o", {}, NOW)
    removing = replace(closing, stage=Stage.REMOVING)
    assert deletions.advance(db, "web1", removing, Stage.GONE, NOW) == [], "it was done, whoever reads"
    gone = machine(db).deletion
    assert gone is not None
    assert gone.stage is Stage.GONE
    with pytest.raises(BeingDeletedError):
        deletions.check_readable(db, "web1", "vault")
    with pytest.raises(BeingDeletedError, match="It stays"):
        deletions.check_not_removed(db, "web1", "vault", "It stays")
    commands.add(db, "c1", WEB1, CommandKind.MARK, {}, NOW)
    inventory.save_report(db, StoredReport(Role.AGENT, "web1", NOW, b"{}"))
    events.reconcile(db, WEB1, [Problem(code="US1", what="x", object="web1")], NOW)
    deletions.remove(db, "web1", NOW)
    assert [event.resolved is None for event in events.find(db, "web1", False, 9)] == [False]
    assert (deletions.all_(db), inventory.reports(db), commands.pending(db, WEB1, NOW)) == ([], [], [])
    assert jobs.get(db, "j1").state is JobState.DONE, "what happened stays"


@pytest.mark.parametrize("stage", [Stage.REMOVING, Stage.GONE])
def test_what_is_past_recall_is_not_known_of_another_incarnation_or_account(
    db: Connection, stage: Stage
) -> None:
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,))
    removing = replace(asked(db), stage=stage, place="vault")
    deletions.put(db, "web1", removing)
    assert not deletions.is_of_before(db, removing, "vault")
    assert not deletions.is_of_before(db, replace(removing, place=""), "vault")
    assert deletions.is_of_before(db, removing, "another")
    assert deletions.check_not_removed(db, "web1", "another", "x") == machine(db)
    incarnations.begin(db)
    assert deletions.is_of_before(db, removing, "vault")
    assert deletions.check_not_removed(db, "web1", "vault", "x") == machine(db)
    assert deletions.check_not_removed(db, "web2", "vault", "x") is None


def test_an_agent_that_is_enrolled_meanwhile_is_noted_with_the_deletion(db: Connection) -> None:
    deletions.note_enrolled(db, "web1")
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,))
    deletions.note_enrolled(db, "web1")
    assert machine(db).deletion is None
    seen = asked(db)
    deletions.note_enrolled(db, "web1")
    assert machine(db).deletion == replace(seen, is_enrolled=True)


def test_which_act_was_to_stop_a_machine_that_was_deleted_is_known_by_the_audit_log(db: Connection) -> None:
    for name, detail in (("web1", {"act": act(7), "x": "\0"}), ("web2", {"act": "b"}), ("web1", {})):
        audit.add(db, "config-server", deletions.DONE, name, detail, NOW)
    audit.add(db, "operator:admin", "machine.delete", "web1", {"act": act(9)}, NOW)
    own, other = incarnations.history(db)[-1], "another"
    for incarnation, word, was in (
        (other, act(7), True),
        (other, act(6), False),
        (own, act(6), True),  # an earlier one of this database: its agent heard of none since
        (own, act(8), False),
        (own, "b", False),
        (own, "", False),
    ):
        assert deletions.was_done(db, "web1", Mark(incarnation, 1, word)) is was, word
    incarnations.begin(db)
    assert deletions.was_done(db, "web1", Mark(own, 1, act(6))), "of a past incarnation, too"
    assert not deletions.was_done(db, "web3", Mark(own, 1, act(6)))
    assert sorted(map(len, audit.details(db, deletions.DONE, "web1"))) == [0, 2]


def test_a_container_is_known_as_deleted_in_the_incarnation_in_which_it_was(db: Connection) -> None:
    for container, name in (("c2", "web2"), ("c1", "web1"), ("c1", "web3")):
        deleted.note(db, container, name, NOW)
    many = [f"b{number}" for number in range(1200)]
    assert [*deleted.among(db, [*many, "c2", "c1"]).items()] == [("c1", "web3"), ("c2", "web2")]
    assert deleted.among(db, ["c2", "a\0b"]) == {"c2": "web2"}
    assert deleted.among(db, []) == {}
    deleted.forget(db, "c2")
    assert deleted.among(db, ["c2"]) == {}
    incarnations.begin(db)
    assert deleted.among(db, ["c1"]) == {}
    deleted.note(db, "c1", "web4", NOW)
    assert deleted.among(db, ["c1"]) == {"c1": "web4"}


def test_a_stop_that_is_said_again_keeps_the_deletion_and_another_act_does_not(db: Connection) -> None:
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,))
    asked(db)
    before = machine(db)
    deletions.follow(db, before, inventory.act(db, "web1", Verb.STOP, NOW + 1))
    assert deletions.current(db, "web1", "d1") is not None
    inventory.act(db, "web1", Verb.PROTECT, NOW + 2, disks=(SDA,))
    assert deletions.current(db, "web1", "d1") is None
    assert deletions.count(db, "web1", "d1", 5, NOW) is None
    inventory.put_deletion(db, "web1", None)
    assert deletions.all_(db) == []
    deletions.note(db, "web1", "it stays", "", NOW)
    assert [event.what for event in events.find(db, "web1", False, 9)] == ["it stays"]


def test_which_deletions_of_a_name_were_done_stays_known(db: Connection) -> None:
    assert not deletions.is_done(db, "web1", "d1")
    audit.add(db, "config-server", deletions.DONE, "web1", {"deletion": "d1"}, NOW)
    found = [deletions.is_done(db, *one) for one in (("web1", "d1"), ("web1", "d2"), ("web2", "d1"))]
    assert found == [True, False, False]

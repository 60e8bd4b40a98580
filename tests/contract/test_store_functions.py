"""What the store's other functions do, over both databases; and that none of them is left out."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS
from config_server.rules.lasting import Lasted
from config_server.rules.machine import Machine
from config_server.store import (
    audit,
    commands,
    events,
    grants,
    inventory,
    jobs,
    lasting_record,
    operators,
    policies,
    settings,
    tokens,
)
from config_server.store.grants import Grant
from config_server.store.inventory import StoredReport
from shared.api.commands import CommandKind, CommandState
from shared.api.events import EventKind
from shared.api.jobs import JobProgress, JobQuery, WorkerState
from shared.api.policies import Policy
from shared.api.route import Failure
from shared.desired import Mark, Verb, WantedDisk
from shared.errors import (
    CommandNotFoundError,
    JobNotFoundError,
    MachineNotFoundError,
    PolicyNotFoundError,
)
from shared.status import Problem
from shared.vocabulary import Role
from tests import older_jobs

NOW: Final = 1_700_000_000 * SECOND_NS
WEB1: Final = "agent:web1"
SDA, SDB = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")
MODULES: Final = (
    "audit",
    "certificates",
    "commands",
    "deleted",
    "deletions",
    "events",
    "grants",
    "incarnations",
    "inventory",
    "jobs",
    "journal",
    "lasting_record",
    "operators",
    "policies",
    "restored",
    "restores",
    "revocation",
    "replicas",
    "settings",
    "taking_in",
    "tokens",
)


def test_no_function_of_a_transaction_is_left_out() -> None:
    written = "".join(file.read_text() for file in Path(__file__).parent.glob("test_store_*.py"))
    left_out = []
    for name in MODULES:
        module = importlib.import_module(f"config_server.store.{name}")
        for function in vars(module).values():
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            takes = next(iter(inspect.signature(function).parameters), "")
            if takes == "db" and not function.__name__.startswith("_"):
                called = re.search(rf"\b{name}\.{function.__name__}\b", written)
                left_out += [] if called else [f"{name}.{function.__name__}"]
    assert left_out == []


# ---- tokens, settings


def test_a_token_that_was_used_gives_its_answer_again_to_the_same_key(db: Connection) -> None:
    assert (tokens.exists(db, b"t"), tokens.subject_of(db, b"t")) == (False, "")
    tokens.add(db, b"t", tokens.Grant(Role.AGENT, "web1", ("h",)), NOW, NOW + SECOND_NS)
    assert (tokens.exists(db, b"t"), tokens.subject_of(db, b"t")) == (True, WEB1)
    assert tokens.answered(db, b"t", "key", NOW) is None, "it was not used"
    tokens.redeem(db, b"t", NOW)
    tokens.note_answer(db, b"t", "key", "PEM")
    found = tokens.answered(db, b"t", "key", NOW)
    assert found == tokens.Answered(tokens.Grant(Role.AGENT, "web1", ("h",)), "PEM")
    for key, at_ns in (("other", NOW), ("", NOW), ("key", NOW + SECOND_NS)):
        assert tokens.answered(db, b"t", key, at_ns) is None
    assert tokens.make_void(db) == []


def test_unused_tokens_are_made_void_in_the_order_of_their_making(db: Connection) -> None:
    for number in range(3):
        tokens.add(db, bytes([number]), tokens.Grant(Role.AGENT, f"web{number}", ()), NOW, NOW + SECOND_NS)
    tokens.redeem(db, b"\1", NOW)
    assert tokens.make_void(db) == [("agent", "web0"), ("agent", "web2")]
    assert [tokens.exists(db, bytes([number])) for number in range(3)] == [False, True, False]


def test_old_tokens_go_when_there_are_many(db: Connection) -> None:
    grant = tokens.Grant(Role.AGENT, "web1", ())
    later_ns = NOW + 31 * 86_400 * SECOND_NS
    for number in range(1001):
        tokens.add(db, f"{number}".encode(), grant, NOW, NOW + 1)
    tokens.add(db, b"new", grant, later_ns, later_ns + 1)
    assert [tokens.exists(db, token) for token in (b"0", b"1", b"1000", b"new")] == [False, True, True, True]


def test_there_is_an_operator_once_one_was_set(db: Connection) -> None:
    assert not operators.has_any(db)
    operators.set_first(db, "admin", "x", NOW)
    assert operators.has_any(db)


def test_a_setting_is_a_word_by_its_name(db: Connection) -> None:
    assert settings.get(db, "x") is None
    for value in ("a", "b"):
        settings.put(db, "x", value)
        assert settings.get(db, "x") == value
    settings.forget(db, "x")
    assert settings.get(db, "x") is None
    assert lasting_record.load(db) == {}
    lasted = {"web1": {"without-session": Lasted((), SECOND_NS, 0)}}
    lasting_record.save(db, lasted)
    assert settings.get(db, "lasting") is not None
    assert lasting_record.load(db) == lasted
    lasting_record.forget(db)
    assert lasting_record.load(db) == {}


# ---- commands, jobs, events, grants


def test_a_command_waits_is_withdrawn_and_given_up(db: Connection) -> None:
    for number, target in enumerate((WEB1, WEB1, "agent:web2")):
        commands.add(db, f"c{number}", target, CommandKind.RESYNC, {"n": number}, NOW)
    waits = commands.waiting(db, WEB1, CommandKind.RESYNC)
    assert (waits and waits.id, commands.waiting(db, WEB1, CommandKind.MARK)) == ("c1", None)
    assert commands.find(db, "c1") == (commands.get(db, "c1"), 0)
    commands.withdraw(db, "c1", NOW)
    commands.withdraw(db, "c1", NOW + 1)
    assert commands.get(db, "c1").state is CommandState.WITHDRAWN
    assert commands.find(db, "c1") == (commands.get(db, "c1"), NOW)
    assert commands.find(db, "none") is None
    assert commands.finish(db, WEB1, {"c1": {"n": 1}, "c2": {}, "c9": {}}, NOW) == ["c1"], (
        "a late result counts"
    )
    assert commands.finish(db, WEB1, {}, NOW) == []
    commands.forget(db, "agent:web2")
    with pytest.raises(CommandNotFoundError):
        commands.get(db, "c2")
    assert commands.withdraw_all(db, NOW) == [("c0", WEB1, "resync")]
    assert commands.withdraw_all(db, NOW) == []
    commands.add(db, "c3", WEB1, CommandKind.MARK, {}, NOW)
    assert commands.expire(db, NOW + 10**15) == ["c3"]
    commands.add(db, "c4", WEB1, CommandKind.MARK, {}, NOW + 8 * 86_400 * SECOND_NS)
    with pytest.raises(CommandNotFoundError):
        commands.get(db, "c1")  # it was done more than a week ago


def test_jobs_are_found(db: Connection) -> None:
    for number in range(3):
        older_jobs.create(db, f"j{number}", "restore", "web1", "operator:o", {"to": "/x"}, NOW)
    jobs.update(db, "j0", JobProgress(state=WorkerState.DONE, result={"n": 1}, progress=0.25), NOW)
    assert [job.id for job in jobs.newest(db, JobQuery(limit=2))] == ["j2", "j1"]
    assert jobs.running(db, "web1") == [("j1", "restore"), ("j2", "restore")]
    assert jobs.running(db, "web2") == []
    jobs.update(db, "j1", JobProgress(state=WorkerState.FAILED, error=Failure("US1", "x")), NOW)
    assert jobs.given_up(db, "web1") == [], "it failed by its own word"
    jobs.fail_silent(db, {"j2": (NOW, 0)}, 10**15, NOW)
    assert (jobs.given_up(db, "web1"), jobs.given_up(db, "web2")) == (["j2"], [])
    jobs.update(db, "j2", JobProgress(state=WorkerState.RUNNING), NOW)
    assert jobs.given_up(db, "web1") == [], "it was heard again"
    done = jobs.get(db, "j0")
    assert (done.args, done.result, done.progress) == ({"to": "/x"}, {"n": 1}, 0.25)
    with pytest.raises(JobNotFoundError):
        jobs.get(db, "j9")


def test_an_event_is_known_by_code_and_key_over_or_not(db: Connection) -> None:
    happened = Problem(code="US1", what="x", object="web1", key="k")
    assert not events.is_noted(db, WEB1, "US1", "k")
    events.note(db, EventKind.STATE, WEB1, happened, NOW)
    assert events.is_noted(db, WEB1, "US1", "k")
    assert not events.is_noted(db, WEB1, "US1", "other")


def test_a_problem_with_a_letter_that_postgresql_does_not_have_is_one_event(db: Connection) -> None:
    odd = Problem(code="US1", what="a\0b", cause="\0", object="web1/\0", key="k\0")
    for number in range(3):
        events.reconcile(db, WEB1, [odd], NOW + number)
    [event] = events.find(db, "", False, 9)
    assert (event.what, event.object, event.count) == ("a\ufffdb", "web1/\ufffd", 1)


def test_a_flood_of_problems_is_opened_and_resolved_at_once_in_order(db: Connection) -> None:
    flood = [Problem(code="US1", what=f"{number}", object="web1", key=f"{number}") for number in range(1200)]
    opened = events.reconcile(db, WEB1, flood, NOW)
    assert [event.id for event in opened] == sorted(event.id for event in opened)
    assert {event.what for event in opened} == {problem.what for problem in flood}
    worse = [replace(problem, cause="worse") for problem in flood[:600]] + flood[600:]
    assert events.reconcile(db, WEB1, worse, NOW + 61 * SECOND_NS) == []
    seen = {(event.cause, event.count, event.last) for event in events.find(db, "", True, 2000)}
    assert len(seen) == 2
    resolved = events.reconcile(db, WEB1, [], NOW + 1)
    assert [event.id for event in resolved] == [event.id for event in opened]


def test_grants_are_found_by_request_and_machine(db: Connection) -> None:
    grant = Grant(
        id="g1",
        machine="web1",
        container="c1",
        who="a",
        host="h",
        given_ns=NOW,
        expires_ns=NOW + 10,
        request="r1",
    )
    grants.add(db, grant)
    grants.add(db, replace(grant, id="g2", request=""))
    grants.add(db, replace(grant, id="g3", request=""))
    assert grants.asked_for(db, "r1") == grant
    assert grants.asked_for(db, "") is None
    assert grants.living_of(db, "web1", NOW) == [("g1", "a"), ("g2", "a"), ("g3", "a")]
    assert grants.living_of(db, "web1", NOW + 10) == []
    grants.forget_all(db, "web1")
    assert grants.newest(db, "web1", 9) == []


# ---- machines


def machine(db: Connection) -> Machine:
    return inventory.machine(db, "web1")


def test_a_wish_is_kept_renumbered_and_withdrawn(db: Connection) -> None:
    assert inventory.find(db, "web1") is None
    with pytest.raises(MachineNotFoundError):
        machine(db)
    wish = inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,), process_servers=("a:1",)).wish
    assert wish is not None
    more = inventory.keep(db, "web1", [SDB], ("b:1",), Mark("other", 7, "x"))
    assert (more.disks, more.process_servers, more.mark.number) == ((SDA, SDB), ("b:1",), 8)
    assert (machine(db).wish, machine(db).disks) == (more, (SDA, SDB))
    again = inventory.renumber(db, "web1", more, Mark("other", 20, "x"))
    assert machine(db).wish == again
    assert again.mark.number == 21
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA,), process_servers=("c:1",))
    assert (machine(db).dropped, machine(db).moved) == ((SDB,), True)
    inventory.forget_unheard(db)
    assert (machine(db).dropped, machine(db).moved) == ((), False)
    inventory.withdraw(db, "web1")
    after = machine(db)
    assert (after.wish, after.protected, after.ended, after.disks) == (None, False, False, (SDA,))
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDB,), process_servers=("d:1",))
    after = inventory.take_back(db, "web1")
    assert (after.wish, after.protected, after.ended) == (None, False, False)
    assert (after.disks, after.dropped, after.moved) == ((), (), False)


def test_reports_are_the_last_of_each_daemon_and_machines_are_in_the_order_of_their_names(
    db: Connection,
) -> None:
    for name in ("web-b", "Web", "web_a", "web"):
        inventory.ensure_machine(db, name, NOW)
    assert [found.name for found in inventory.machines(db)] == ["Web", "web", "web-b", "web_a"]
    for said in (b"{}", b'{"x": "\\u0000"}'):
        inventory.save_report(db, StoredReport(Role.AGENT, "web", NOW, said, state="ordered"))
    inventory.save_report(db, StoredReport(Role.PROCESS_SERVER, "web", NOW, b"[]"))
    found = sorted(inventory.reports(db), key=lambda one: one.role)
    assert [replace(one, age_ns=None) for one in found] == [
        StoredReport(Role.AGENT, "web", NOW, b'{"x": "\\u0000"}', state="ordered"),
        StoredReport(Role.PROCESS_SERVER, "web", NOW, b"[]"),
    ]
    assert [inventory.reported_state(db, Role.AGENT, name) for name in ("web", "Web")] == ["ordered", ""]
    inventory.forget(db, "web")
    assert [one.role for one in inventory.reports(db)] == [Role.PROCESS_SERVER]
    assert inventory.find(db, "web") is None


def test_what_is_known_of_a_machine_s_disks_since_is_put_in_all_its_lines(db: Connection) -> None:
    inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(SDA, SDB))
    before = inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(WantedDisk("/dev/sda"),))
    assert before.wish is not None
    assert inventory.settle(db, before, before) is before
    wish = replace(before.wish, disks=(SDA,))
    after = replace(before, disks=(SDA, SDA), dropped=(SDB, WantedDisk("/dev/sdc", "sdc")), wish=wish)
    assert inventory.settle(db, before, after) == machine(db) == replace(after, disks=(SDA,))


def test_policies_are_found_by_name_and_the_default_one_always(db: Connection) -> None:
    inventory.ensure_machine(db, "web2", NOW)
    inventory.ensure_machine(db, "web1", NOW)
    assert (policies.find(db, "default"), policies.get(db, "default")) == (None, Policy())
    assert policies.default(db).policy == Policy()
    with pytest.raises(PolicyNotFoundError):
        policies.get(db, "gold")
    policies.put(db, "gold", Policy(rpo_threshold_s=60))
    before = policies.version(db, "gold")
    policies.put(db, "gold", Policy(rpo_threshold_s=70))
    assert policies.find(db, "gold") == Policy(rpo_threshold_s=70)
    assert None not in (before, policies.version(db, "default"))
    assert (policies.version(db, "gold") == before, policies.version(db, "none")) == (False, None)
    policies.assign(db, "web1", "gold")
    assert (policies.users(db, "gold"), policies.users(db, "default")) == (["web1"], ["web2"])
    assert policies.view(db, "gold").machines == ["web1"]


def test_a_policy_has_a_version_which_is_another_one_after_each_change(db: Connection) -> None:
    assert policies.version(db, "gold") is None
    versions = [policies.version(db, "default")]
    policies.put(db, "gold", Policy())
    assert policies.version(db, "gold") == versions[0], "it says the same"
    for threshold_s in (60, 70):
        policies.put(db, "gold", Policy(rpo_threshold_s=threshold_s))
        versions.append(policies.version(db, "gold"))
    assert None not in versions
    assert len(set(versions)) == 3
    policies.put(db, "gold", Policy(rpo_threshold_s=60))
    assert policies.version(db, "gold") == versions[1]


def test_the_audit_log_keeps_every_letter(db: Connection) -> None:
    audit.add(db, "operator:admin", "machine.keep", "web1", {"a": ["\0"]}, NOW)
    assert audit.newest(db, 1)[0].detail == {"a": ["\0"]}

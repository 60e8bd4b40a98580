"""What the config server keeps: tokens, commands, events, jobs, machines, certificates. Over both databases, without threads."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store import (
    audit,
    certificates,
    commands,
    events,
    incarnations,
    inventory,
    jobs,
    operators,
    policies,
    restored,
    revocation,
    tokens,
)
from config_server.store.operators import Owner
from shared.api.commands import CommandKind
from shared.api.events import EventKind
from shared.api.jobs import JobProgress, WorkerState
from shared.api.operators import OperatorTokenView
from shared.api.policies import Policy
from shared.api.route import Failure
from shared.desired import Mark, Settings, Verb, WantedDisk, Wish
from shared.errors import (
    CommandExpiredError,
    JobNotFoundError,
    KeyUsedError,
    NotFoundError,
    PolicyNotFoundError,
    RequestError,
    TokenExpiredError,
    TokenUnknownError,
    TokenUsedError,
)
from shared.status import Problem
from shared.vocabulary import Role, Severity
from tests import older_jobs

NOW = 1_700_000_000 * SECOND_NS
GRANT = tokens.Grant(Role.AGENT, "web1", ())


# ---- tokens


def test_a_token_is_redeemed_once(db: Connection) -> None:
    tokens.add(db, b"hash", GRANT, NOW, NOW + SECOND_NS)
    assert tokens.redeem(db, b"hash", NOW) == GRANT
    with pytest.raises(TokenUsedError):
        tokens.redeem(db, b"hash", NOW)


def test_a_token_ends_at_its_expiry(db: Connection) -> None:
    tokens.add(db, b"hash", GRANT, NOW, NOW + SECOND_NS)
    with pytest.raises(TokenExpiredError):
        tokens.redeem(db, b"hash", NOW + SECOND_NS)


def test_a_used_token_says_used_also_after_its_expiry(db: Connection) -> None:
    tokens.add(db, b"hash", GRANT, NOW, NOW + SECOND_NS)
    tokens.redeem(db, b"hash", NOW)
    with pytest.raises(TokenUsedError):
        tokens.redeem(db, b"hash", NOW + 2 * SECOND_NS)


def test_an_unknown_token_is_unknown(db: Connection) -> None:
    with pytest.raises(TokenUnknownError):
        tokens.redeem(db, b"other", NOW)


def test_a_new_operator_token_ends_the_old_one(db: Connection) -> None:
    first, second = operators.new_token(), operators.new_token()
    operators.set_first(db, "admin", first, NOW)
    assert operators.owner_of(db, first, NOW) == Owner("admin", None)
    assert operators.is_first(db, first)
    operators.set_first(db, "admin", second, NOW)
    assert operators.owner_of(db, first, NOW) is None
    assert not operators.is_first(db, first)
    assert operators.owner_of(db, second, NOW) == Owner("admin", None)


def given(db: Connection, operator: str, number: int) -> str:
    token = operators.new_token()
    new = OperatorTokenView(id=f"t{number}", words="a laptop", who="operator:admin", created="")
    operators.give(db, token, new, operator, NOW + number, NOW + SECOND_NS)
    return token


def test_an_operator_has_as_many_tokens_as_were_given_and_each_ends_alone(db: Connection) -> None:
    operators.set_first(db, "admin", "file", NOW)
    first, second, own = given(db, "anna", 1), given(db, "anna", 2), given(db, "admin", 3)
    owner = Owner("anna", NOW + SECOND_NS)
    assert [operators.owner_of(db, token, NOW) for token in (first, second)] == [owner, owner]
    assert not operators.is_first(db, own), "it is no file"
    assert [(one.name, [token.id for token in one.tokens]) for one in operators.views(db)] == [
        ("admin", [operators.FILE, "t3"]),
        ("anna", ["t1", "t2"]),
    ]
    with pytest.raises(NotFoundError):
        operators.end(db, "admin", "t1")  # it is anna's
    ended = operators.end(db, "anna", "t1")
    assert (ended.words, ended.who, ended.used) == ("a laptop", "operator:admin", rfc3339(NOW))
    assert operators.owner_of(db, first, NOW) is None
    assert operators.owner_of(db, second, NOW) == owner
    assert operators.end_all(db) == [("admin", "t3"), ("anna", "t2")]
    assert operators.owner_of(db, "file", NOW) == Owner("admin", None)


def test_that_a_token_was_used_is_written_down_once_an_hour_and_not_once_it_expired(db: Connection) -> None:
    token = given(db, "anna", 1)
    hour_ns = 3600 * SECOND_NS

    def used() -> str | None:
        return operators.views(db)[0].tokens[0].used

    assert used() is None
    for at_ns, noted in ((NOW, NOW), (NOW + SECOND_NS - 1, NOW), (NOW + 2 * hour_ns, NOW)):
        assert operators.owner_of(db, token, at_ns) is not None
        assert used() == rfc3339(noted)


def test_an_operator_has_no_end_of_tokens(db: Connection) -> None:
    for number in range(operators.MOST):
        given(db, "anna", number)
    with pytest.raises(RequestError, match="he has 100"):
        given(db, "anna", operators.MOST)
    given(db, "bert", operators.MOST)


def test_an_enrolment_token_is_listed_without_itself_and_ends_unless_it_was_used(db: Connection) -> None:
    for number in range(3):
        hash_ = bytes([number]) * 32
        tokens.add(db, hash_, tokens.Grant(Role.AGENT, f"web{number}", ()), NOW, NOW + SECOND_NS)
    tokens.redeem(db, b"\1" * 32, NOW)
    assert [(one.id, one.name, one.used) for one in tokens.newest(db, 9)] == [
        ("02" * 8, "web2", None),
        ("01" * 8, "web1", rfc3339(NOW)),
        ("00" * 8, "web0", None),
    ]
    assert [one.name for one in tokens.newest(db, 9, "01" * 8)] == ["web0"]
    assert tokens.end(db, "02" * 8).name == "web2"
    assert not tokens.exists(db, b"\2" * 32)
    with pytest.raises(RequestError, match="was not ended"):
        tokens.end(db, "01" * 8)
    for unknown in ("02" * 8, "", "zz" * 8, "01" * 32, "AB" * 8):
        with pytest.raises(NotFoundError):
            tokens.end(db, unknown)


# ---- commands


def test_commands_are_handed_out_in_order_until_finished(db: Connection) -> None:
    for number in (1, 2):
        commands.add(db, f"c{number}", "agent:web1", CommandKind.MARK, {}, NOW + number)
    commands.add(db, "other", "agent:web2", CommandKind.MARK, {}, NOW)
    assert [command.id for command in commands.pending(db, "agent:web1", NOW)] == ["c1", "c2"]
    assert commands.finish(db, "agent:web1", {"c1": {"batch": 3}, "other": {}}, NOW) == ["c1"]
    assert [command.id for command in commands.pending(db, "agent:web1", NOW)] == ["c2"]
    assert commands.get(db, "other").state == "pending"


def test_a_result_is_stored_once(db: Connection) -> None:
    commands.add(db, "c1", "agent:web1", CommandKind.MARK, {}, NOW)
    commands.finish(db, "agent:web1", {"c1": {"batch": 3}}, NOW)
    assert commands.finish(db, "agent:web1", {"c1": {"batch": 4}}, NOW) == []
    assert commands.get(db, "c1").result == {"batch": 3}


def test_a_result_with_an_error_is_a_failure(db: Connection) -> None:
    commands.add(db, "c1", "agent:web1", CommandKind.MARK, {}, NOW)
    commands.finish(db, "agent:web1", {"c1": {"error": {"code": "US300"}}}, NOW)
    assert commands.get(db, "c1").state == "failed"


@pytest.mark.parametrize("kind", CommandKind)
def test_a_command_that_nobody_fetched_in_its_time_fails_and_a_late_result_counts(
    db: Connection, kind: CommandKind
) -> None:
    life_ns = commands.LIFE_S[kind] * SECOND_NS
    commands.add(db, "c1", "agent:web1", kind, {}, NOW)
    assert [c.id for c in commands.pending(db, "agent:web1", NOW + life_ns)] == ["c1"]
    assert commands.pending(db, "agent:web1", NOW + life_ns + 1) == []
    failed = commands.get(db, "c1")
    assert (failed.state, failed.result["error"]["code"]) == ("failed", CommandExpiredError.code)
    assert commands.finish(db, "agent:web1", {"c1": {"batch": 3}}, NOW) == ["c1"]
    assert (commands.get(db, "c1").state, commands.get(db, "c1").result) == ("done", {"batch": 3})


def test_the_id_of_another_command_is_refused(db: Connection) -> None:
    commands.add(db, "c1", "agent:web1", CommandKind.MARK, {}, NOW)
    assert commands.add(db, "c1", "agent:web1", CommandKind.MARK, {}, NOW).id == "c1"
    with pytest.raises(KeyUsedError, match="another command"):
        commands.add(db, "c1", "agent:web2", CommandKind.MARK, {}, NOW)


async def test_the_bell_wakes_those_who_listen_and_nobody_waits_after_closing() -> None:
    bell = commands.Bell()
    first, second, other = bell.listen("a"), bell.listen("a"), bell.listen("b")
    bell.ring("a")
    assert first.is_set()
    assert second.is_set()
    assert not other.is_set()
    assert not bell.listen("a").is_set()
    bell.close()
    assert other.is_set()
    assert bell.listen("c").is_set()


# ---- events


def problem(code: str = "US410", what: str = "it broke", object_: str = "web1") -> Problem:
    return Problem(code=code, what=what, object=object_)


def test_a_problem_is_one_event_however_often_it_is_reported(db: Connection) -> None:
    for step in range(5):
        events.reconcile(db, "agent:web1", [problem()], NOW + step)
    (event,) = events.find(db, "", only_open=False, limit=10)
    assert (event.resolved, event.count) == (None, 1)


def test_a_problem_that_goes_and_comes_back_is_a_new_event(db: Connection) -> None:
    for step, problems in enumerate([[problem()], [], [problem()]]):
        events.reconcile(db, "agent:web1", problems, NOW + step)
    found = events.find(db, "", only_open=False, limit=10)
    assert [event.resolved is None for event in found] == [True, False]


def test_a_problem_whose_words_change_stays_the_same_event(db: Connection) -> None:
    events.reconcile(db, "agent:web1", [problem(what="3 sectors")], NOW)
    assert events.reconcile(db, "agent:web1", [problem(what="4 sectors")], NOW) == []
    (event,) = events.find(db, "", only_open=False, limit=10)
    assert (event.what, event.count) == ("4 sectors", 2)


def test_a_problem_that_gets_worse_stays_the_same_event(db: Connection) -> None:
    events.reconcile(
        db, "process-server:ps1", [msgspec.structs.replace(problem(), severity=Severity.WARNING)], NOW
    )
    events.reconcile(
        db, "process-server:ps1", [msgspec.structs.replace(problem(), severity=Severity.CRITICAL)], NOW
    )
    (event,) = events.find(db, "", only_open=False, limit=10)
    assert (event.severity, event.count) == (Severity.CRITICAL, 2)


def test_a_problem_with_another_key_is_another_event_and_the_newest(db: Connection) -> None:
    second = Problem(code="US407", what="Epoch 2 cannot be continued", cause="asked for", key="epoch 2")
    third = Problem(code="US407", what="Epoch 3 cannot be continued", cause="storage forgot", key="epoch 3")
    events.reconcile(db, "agent:web1", [second], NOW)
    events.reconcile(db, "agent:web1", [second, third], NOW + 1)
    assert [event.resolved for event in events.find(db, "", only_open=True, limit=10)] == [None, None]
    events.reconcile(db, "agent:web1", [third], NOW + 2)
    later, earlier = events.find(db, "", only_open=False, limit=10)
    assert (earlier.what, earlier.cause, earlier.resolved is None) == (second.what, second.cause, False)
    assert (later.what, later.cause, later.resolved) == (third.what, third.cause, None)


def test_reporters_and_objects_do_not_resolve_each_others_events(db: Connection) -> None:
    events.reconcile(db, "agent:web1", [problem(), problem(object_="web1/sda")], NOW)
    events.reconcile(db, "process-server:ps1", [problem()], NOW)
    events.reconcile(db, "process-server:ps1", [], NOW)
    assert len(events.find(db, "web1", only_open=True, limit=10)) == 2


def test_events_are_found_by_machine_with_its_disks_only(db: Connection) -> None:
    events.reconcile(db, "x", [problem(object_=o) for o in ("web1", "web1/sda", "web10", "web_1")], NOW)
    assert {event.object for event in events.find(db, "web1", False, 10)} == {"web1", "web1/sda"}
    assert {event.object for event in events.find(db, "web_1", False, 10)} == {"web_1"}


def test_what_happened_is_over_at_once_and_old_events_go(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        events.note(db, EventKind.STATE, "agent:web1", problem(code=""), NOW)
    assert events.find(db, "", only_open=True, limit=10) == []
    events.trim(db, NOW + 91 * 86_400 * SECOND_NS)
    assert len(events.find(db, "", only_open=False, limit=10)) == 3, (
        "a clock ahead must not wipe out the history"
    )
    monkeypatch.setattr(events, "_KEPT_ALWAYS", 1)
    events.trim(db, NOW + 91 * 86_400 * SECOND_NS)
    assert len(events.find(db, "", only_open=False, limit=10)) == 1


def test_no_clock_ends_a_revocation(db: Connection) -> None:
    certificates.note_certificate(
        db, certificates.Issued(0xABC, Role.AGENT, "web1", "key-1", NOW, NOW + SECOND_NS)
    )
    revocation.revoke(db, "abc", "stolen", NOW)
    certificates.note_certificate(
        db, certificates.Issued(0xDEF, Role.AGENT, "web1", "key-2", NOW + 10**18, NOW + 2 * 10**18)
    )
    assert revocation.current(db).serials == ["abc"]


def test_a_clock_that_is_ahead_forgets_no_token_that_is_valid(db: Connection) -> None:
    grant = tokens.Grant(Role.AGENT, "web1", ())
    tokens.add(db, b"first", grant, NOW, NOW + 600 * SECOND_NS)
    tokens.add(db, b"second", grant, NOW + 10**18, NOW + 10**18 + 600 * SECOND_NS)
    assert tokens.redeem(db, b"first", NOW + SECOND_NS) == grant


def test_who_makes_many_events_pushes_out_his_own_oldest_only(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT_OF_SOURCE", 3)
    open_ = problem(what="it lasts")
    events.note(db, EventKind.STATE, "agent:web2", problem(), NOW)
    events.reconcile(db, "agent:web1", [open_], NOW)
    for n in range(5):
        events.reconcile(db, "agent:web1", [open_, problem(what=f"{n}", object_=f"web1/{n}")], NOW)
    kept = events.find(db, "", only_open=False, limit=100)
    assert [e.source for e in kept if e.source != "agent:web1"] == ["agent:web2"]
    assert len([e for e in kept if e.resolved is None]) == 2
    assert [e.what for e in kept if e.resolved and e.source == "agent:web1"] == ["3", "2", "1"]


# ---- jobs, inventory, audit


def test_a_job_that_ended_stays_as_it_ended(db: Connection) -> None:
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {"to": "/x"}, NOW)
    jobs.update(db, "j1", JobProgress(progress=0.5), NOW)
    jobs.update(db, "j1", JobProgress(state=WorkerState.DONE, progress=1.0), NOW)
    late = jobs.update(db, "j1", JobProgress(state=WorkerState.FAILED, error=Failure("US1", "x")), NOW)
    assert (late.state, late.progress, late.error) == ("done", 1.0, None)
    with pytest.raises(JobNotFoundError):
        jobs.update(db, "j2", JobProgress(), NOW)


def test_a_job_that_was_given_up_too_soon_ends_as_its_worker_says(db: Connection) -> None:
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    (given_up,) = jobs.fail_silent(db, jobs.heard(db, {}, 0), 121 * SECOND_NS, NOW)
    assert given_up.state == "failed"
    again = jobs.update(db, "j1", JobProgress(progress=0.5), NOW)
    assert (again.state, again.error) == ("running", None)
    jobs.fail_silent(db, {"j1": (NOW, 0)}, 121 * SECOND_NS, NOW)
    done = jobs.update(db, "j1", JobProgress(state=WorkerState.DONE, progress=1.0), NOW)
    assert (done.state, done.error) == ("done", None)


def test_a_job_whose_worker_was_heard_by_another_server_is_heard(db: Connection) -> None:
    """Its clock may be any; that it wrote something else is what tells."""
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    heard = jobs.heard(db, {}, 0)
    jobs.update(db, "j1", JobProgress(progress=0.5), NOW - 3600 * SECOND_NS)
    heard = jobs.heard(db, heard, 121 * SECOND_NS)
    assert jobs.fail_silent(db, heard, 121 * SECOND_NS, NOW) == []


def test_a_job_whose_worker_is_silent_is_given_up(db: Connection) -> None:
    older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, NOW)
    heard = jobs.heard(db, {"over": (0, 0)}, 5 * SECOND_NS)
    assert heard == {"j1": (NOW, 5 * SECOND_NS)}
    assert jobs.fail_silent(db, heard, 5 * SECOND_NS, NOW) == []
    # The time of day may jump by a year: what counts is how long it was really silent.
    assert jobs.fail_silent(db, heard, 65 * SECOND_NS, NOW + 365 * 86_400 * SECOND_NS) == []
    assert jobs.heard(db, heard, 126 * SECOND_NS) == heard
    (failed,) = jobs.fail_silent(db, heard, 126 * SECOND_NS, NOW)
    assert failed.state == "failed"
    assert failed.error is not None
    assert "continues" in failed.error.action


def test_the_audit_log_is_newest_first(db: Connection) -> None:
    for number in range(3):
        audit.add(db, "operator:admin", f"a{number}", "x", {"n": number}, NOW + number)
    assert [entry.action for entry in audit.newest(db, 2)] == ["a2", "a1"]


# ---- policies


def test_a_policy_holds_for_those_to_whom_it_is_assigned_and_the_default_one_for_the_others(
    db: Connection,
) -> None:
    for name in ("web1", "web2", "web3"):
        inventory.ensure_machine(db, name, NOW)
    policies.put(db, "gold", Policy(point_interval_s=10))
    policies.assign(db, "web1", "gold")
    policies.give_own(db, "web2", Policy(point_interval_s=20))
    assert [policies.settings(machine.policy) for machine in inventory.machines(db)] == [
        Settings(point_interval_s=10), Settings(point_interval_s=20), Settings(),
    ]  # fmt: skip
    policies.put(db, "default", Policy(point_interval_s=30))
    policies.put(db, "gold", Policy(point_interval_s=11))
    found = {machine.name: machine.policy.point_interval_s for machine in inventory.machines(db)}
    assert found == {"web1": 11, "web2": 20, "web3": 30}
    assert [(view.name, view.machines) for view in policies.views(db)] == [
        ("default", ["web3"]), ("gold", ["web1"]),
    ]  # fmt: skip
    with pytest.raises(RequestError, match="assigned to web1"):
        policies.delete(db, "gold")
    policies.put(db, "default", Policy(rpo_threshold_s=60))
    policies.assign(db, "web1", "default")
    told = policies.settings(inventory.machine(db, "web1").policy)
    assert told == Settings(), "a threshold alone sets no interval"
    policies.delete(db, "gold")
    with pytest.raises(PolicyNotFoundError):
        policies.delete(db, "gold")
    with pytest.raises(PolicyNotFoundError):
        policies.assign(db, "web1", "gold")
    with pytest.raises(RequestError, match="all machines"):
        policies.delete(db, "default")


def test_an_act_is_of_the_database_as_it_is_now_and_later_than_all_that_was_known(
    db: Connection,
) -> None:
    disks, servers = (WantedDisk("/dev/sda", id="data"),), ("ps1:9443",)
    first = inventory.act(db, "web1", Verb.PROTECT, NOW, disks=disks, process_servers=servers)
    assert first.wish is not None
    assert (first.protected, first.disks, first.ended) == (True, disks, False)
    began = incarnations.begin(db)
    ended = inventory.act(db, "web1", Verb.STOP, NOW, known=Mark("other", 7, "x"))
    assert ended.wish is not None
    assert (ended.wish.mark.incarnation, ended.wish.mark.number) == (began, 8)
    assert (ended.protected, ended.disks, ended.ended) == (False, disks, True)
    assert (ended.wish.disks, ended.wish.process_servers) == (disks, servers), "for the day after"
    elsewhere = Wish(mark=Mark("other", 9, "y"), verb=Verb.STOP)
    inventory.adopt(db, "web1", elsewhere, NOW)
    adopted = inventory.machine(db, "web1").wish
    assert adopted == msgspec.structs.replace(elsewhere, disks=disks, process_servers=servers)
    inventory.adopt(db, "web1", first.wish, NOW)
    assert inventory.machine(db, "web1").own == (first.wish, began)


def test_on_other_hardware_what_was_noted_of_disks_is_void_and_the_act_is_later_than_all_that_was_known(
    db: Connection,
) -> None:
    first = inventory.act(db, "web1", Verb.PROTECT, NOW, disks=(WantedDisk("/dev/sda"),), identity="old")
    assert first.wish is not None
    bare = msgspec.structs.replace(first.wish, disks=())
    moved = inventory.begin_anew(db, "web1", "new", NOW, bare, [first.wish.mark, Mark("other", 7, "x")])
    assert moved.wish is not None
    assert (moved.identity, moved.disks, moved.wish.disks, moved.protected) == ("new", (), (), True)
    assert moved.wish.mark.number == 8
    inventory.ensure_machine(db, "web2", NOW)
    inventory.note_identity(db, "web2", "old")
    known = inventory.machine(db, "web2")
    inventory.settle(db, known, msgspec.structs.replace(known, disks=(WantedDisk("/dev/sda"),)))
    moved = inventory.begin_anew(db, "web2", "new", NOW, None, [])
    assert (moved.identity, moved.disks, moved.wish) == ("new", (), None)


def test_no_disk_has_two_lines_whatever_is_asked_for_and_said(db: Connection) -> None:
    a, bare = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sda")
    twice = (a, bare, bare, WantedDisk("/dev/sdz", "sda"))
    made = inventory.act(db, "web1", Verb.PROTECT, NOW, disks=twice)
    assert made.wish is not None
    assert made.disks == made.wish.disks == (a, bare), "a path may be another disk's by now"
    kept = inventory.keep(db, "web1", [a, WantedDisk("/dev/sdb", "sdb")], (), None)
    assert kept.disks == inventory.machine(db, "web1").disks == (a, bare, WantedDisk("/dev/sdb", "sdb"))
    settled = msgspec.structs.replace(inventory.machine(db, "web1"), disks=(a, a))
    assert inventory.settle(db, inventory.machine(db, "web1"), settled).disks == (a,)
    assert inventory.machine(db, "web1").wish == kept
    many = tuple(WantedDisk(f"/dev/{number}") for number in range(1000))
    known = inventory.machine(db, "web1")
    assert len(inventory.settle(db, known, msgspec.structs.replace(known, disks=many)).disks) == 256


def test_an_act_drops_what_was_known_until_its_agent_has_heard_of_it(db: Connection) -> None:
    a, b, c = (WantedDisk(f"/dev/sd{letter}", f"sd{letter}") for letter in "abc")

    def dropped(verb: Verb, *disks: WantedDisk) -> tuple[WantedDisk, ...]:
        return inventory.act(db, "web1", verb, NOW, disks=disks).dropped

    assert dropped(Verb.PROTECT, a, b, c) == ()
    assert dropped(Verb.PROTECT, a, b) == (c,)
    assert dropped(Verb.PROTECT, a) == (c, b), "the first was not heard"
    assert dropped(Verb.PROTECT, a, c) == (b,)
    assert {*dropped(Verb.STOP)} == {a, b, c}
    assert {*dropped(Verb.PROTECT, a)} == {b, c}
    inventory.heard(db, "web1")
    assert dropped(Verb.STOP) == (a,)
    inventory.heard(db, "web1")
    assert dropped(Verb.PROTECT, b) == (), "of what was ended nothing is dropped"
    assert dropped(Verb.PROTECT, c) == (b,)
    restored.prepare(db, NOW)
    assert inventory.machine(db, "web1").dropped == ()

"""The table of rules/conditions.py: which health is right for each state of a machine, each report of its daemons, and each word of
them; at once, and when it has lasted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest
from msgspec import structs

from config_server.rules.clock import SECOND_NS
from config_server.rules.conditions import CONDITIONS, EXCUSED_S, MISSED_S, STANDS_S
from config_server.rules.deletion import Deletion
from config_server.rules.facts import facts_of
from config_server.rules.lasting import Lasted, Lasting
from config_server.rules.machine import Machine
from config_server.rules.view import machine_view
from config_server.rules.wishes import UNTAKEN_S
from config_server.store import lasting_record
from shared.api.machines import MachineView
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.status import (
    AgentDisk,
    AgentReport,
    ApplyReport,
    AvailableDisk,
    MasterTargetReport,
    Problem,
    ProcessServerReport,
    StreamReport,
)
from shared.vocabulary import ApplyState, Health, MachineState, Severity
from tests.reports import NOW, World, machine

STEP_S: Final = 10.0
LONG_S: Final = 2400.0
"""Longer than anything that is not right is put up with."""
AFTER_S: Final = {condition.name: condition.after_s for condition in CONDITIONS}

Say = Callable[[World], None]


def _n(world: World) -> int:
    """Batches so far: one a second."""
    return 500 + (world.now_ns - NOW) // SECOND_NS


def agent(world: World, **changes: Any) -> None:
    n = _n(world)
    said: dict[str, Any] = {
        "state": "ordered",
        "boot": "b1",
        "epoch": 2,
        "connected": True,
        "sent": n,
        "spooled": n,
        "uploaded": n,
        "uploaded_captured_ns": world.now_ns - 2 * SECOND_NS,
        "disks": [AgentDisk(name="sda", mode="ordered", todo_b=0)],
    }
    world.says("agent", "web1", AgentReport(**said | changes))


def copies(state: str, *, stands: bool) -> Say:
    """An agent at work on a copy."""

    def say(world: World) -> None:
        left_b = 1 << 40 if stands else (1 << 40) - (world.now_ns - NOW) // SECOND_NS
        agent(world, state=state, disks=[AgentDisk(name="sda", mode="ordered", todo_b=left_b)])

    return say


def stream(world: World, own: list[Problem] | None = None, **changes: Any) -> None:
    n = _n(world)
    said: dict[str, Any] = {
        "boot": "b1",
        "epoch": 2,
        "connected": True,
        "spooled": n,
        "uploaded": n,
        "ordered_captured_ns": world.now_ns - 2 * SECOND_NS,
    }
    part = StreamReport(**said | changes)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": part}, errors=own or []))


def apply(world: World, **changes: Any) -> None:
    said: dict[str, Any] = {"state": "following", "epoch": 2, "applied": _n(world) - 2, "lag_s": 2.0}
    world.says("master-target", "mt1", MasterTargetReport(machines={"web1": ApplyReport(**said | changes)}))


def idle(world: World) -> None:
    """A master target that does not have it."""
    world.says("master-target", "mt1", MasterTargetReport(machines={"web2": ApplyReport()}))


def once(say: Say) -> Say:
    """And then it is silent."""

    def at_the_beginning(world: World) -> None:
        if world.now_ns == NOW:
            say(world)

    return at_the_beginning


def nothing(_world: World) -> None:
    pass


def says(say: Callable[..., None], **changes: Any) -> Say:
    return lambda world: say(world, **changes)


class Case(NamedTuple):
    agent: Say = agent
    stream: Say = stream
    apply: Say = apply
    at_once: str = ""
    """Codes, whether it lasts or not."""
    condition: str = ""
    """Its name, that is a problem when it has lasted, ..."""
    code: str = ""
    health: Health = Health.CRITICAL
    """... and how bad it is then."""
    known: Machine = machine()

    def say(self, world: World) -> None:
        for part in (self.agent, self.stream, self.apply):
            part(world)

    def last(self, world: World, seconds: float) -> MachineView:
        end_ns = world.now_ns + int(seconds * SECOND_NS)
        while True:
            self.say(world)
            shown = world.show()
            if world.now_ns >= end_ns:
                return shown
            world.later(min(STEP_S, (end_ns - world.now_ns) / SECOND_NS))


def word(state: str, **changes: Any) -> Case:
    """An agent that is heard, and not at work."""
    return Case(says(agent, state=state, **changes), condition="not-at-work", code="US609")


def copying(state: str, at_once: str = "") -> Case:
    return Case(copies(state, stands=True), condition="copy-stands", code="US615", at_once=at_once)


UNPROTECTED = machine(protected=False)
TO_BE_DELETED = machine(
    protected=False,
    deletion=Deletion(
        id="1", incarnation="x", who="operator:admin", asked_ns=NOW, after_ns=10**15, counted_ns=NOW, act="a", container="", identity="",
    ),
)  # fmt: skip
ORDER_LOST = Problem("US400", "order is lost", severity=Severity.WARNING)

STATES: Final[dict[MachineState, list[Case]]] = {
    MachineState.ORDERED: [
        Case(),
        Case(
            says(agent, uploaded_captured_ns=0),
            says(stream, ordered_captured_ns=0),
            condition="copy-stands",
            code="US615",
        ),
    ],
    MachineState.INITIAL_REPLICATION: [
        copying("initial-replication"),
        Case(copies("initial-replication", stands=False)),
    ],
    MachineState.BITMAP: [copying("bitmap"), Case(copies("bitmap", stands=False))],
    MachineState.CATCHING_UP: [copying("catching-up"), Case(copies("catching-up", stands=False))],
    MachineState.RESYNC: [copying("resync"), Case(copies("resync", stands=False))],
    MachineState.DISCONNECTED: [Case(once(agent), at_once="US471"), word("disconnected")],
    MachineState.NOT_CONNECTED: [
        Case(nothing, nothing, nothing, condition="never-came", code="US609"),
        Case(nothing, nothing, idle, condition="never-came", code="US609"),
        word("not-connected"),
    ],
    MachineState.UNPROTECTED: [
        Case(nothing, nothing, nothing, known=UNPROTECTED),
        Case(says(agent, disks=[]), nothing, nothing, known=UNPROTECTED),
        Case(at_once="US601", known=UNPROTECTED),
        Case(apply=idle, at_once="US601", condition="not-followed", code="US613", known=UNPROTECTED),
        word("unprotected"),  # though it captures: nobody knows what that means
        Case(says(agent, state="unprotected", disks=[]), at_once="US616"),
    ],
    MachineState.TO_BE_DELETED: [
        Case(nothing, nothing, nothing, known=TO_BE_DELETED),
        Case(says(agent, disks=[]), nothing, nothing, known=TO_BE_DELETED),
        word("to-be-deleted"),
    ],
    MachineState.UNKNOWN: [word("unknown")],
}

NONE, FRESH, SILENT, OTHER_EPOCH = REPORTS = ("none", "fresh", "silent", "other epoch")
DAEMONS: Final = ("agent", "process server", "master target")
WARNS: Final = Health.WARNING

HOPS: Final[dict[tuple[str, str], list[Case]]] = {
    ("agent", NONE): [Case(nothing, condition="never-came", code="US609")],
    ("agent", FRESH): [Case()],
    ("agent", SILENT): [Case(once(agent), at_once="US471")],
    ("agent", OTHER_EPOCH): [
        Case(says(agent, epoch=epoch), condition="without-server", code="US609", health=WARNS)
        for epoch in (1, 3)
    ],
    ("process server", NONE): [
        Case(stream=nothing, condition="without-server", code="US609", health=WARNS),
        Case(says(agent, connected=None), nothing, condition="without-server", code="US609"),
        Case(says(agent, connected=False), nothing, condition="without-session", code="US609"),
    ],
    ("process server", FRESH): [
        Case(),
        Case(stream=says(stream, connected=False), condition="without-server", code="US609", health=WARNS),
        Case(stream=says(stream, uploaded=1), condition="upload-stands", code="US615"),
    ],
    ("process server", SILENT): [Case(stream=once(stream), at_once="US471")],
    ("process server", OTHER_EPOCH): [
        Case(stream=says(stream, epoch=1), condition="without-server", code="US609", health=WARNS)
    ],
    ("master target", NONE): [
        Case(apply=nothing, condition="not-followed", code="US613"),
        Case(apply=idle, condition="not-followed", code="US613"),
    ],
    ("master target", FRESH): [
        Case(),
        Case(apply=says(apply, applied=10), condition="apply-stands", code="US615"),
        Case(apply=says(apply, lag_s=86_400.0), condition="apply-behind", code="US614", health=WARNS),
        Case(copies("initial-replication", stands=False), apply=says(apply, lag_s=86_400.0)),
    ],
    ("master target", SILENT): [Case(apply=once(apply), at_once="US471")],
    ("master target", OTHER_EPOCH): [
        Case(apply=says(apply, epoch=epoch, applied=700), condition="apply-stands", code="US615")
        for epoch in (1, 99)
    ],
}

APPLY_STATES: Final[dict[ApplyState, Case]] = {
    state: Case(apply=says(apply, state=state), condition="not-followed", code="US613")
    for state in ApplyState
    if state is not ApplyState.FOLLOWING
} | {ApplyState.FOLLOWING: Case()}

BROKEN: Final = [Problem("US400", "it broke")]
AWAY: Final = [Problem("US404", "a disk is away", severity=Severity.CRITICAL, object="sdb")]
WORDS: Final[dict[str, Case]] = {
    "stopped": word("stopped"),
    "paused": word("paused"),
    "starting": word("starting"),
    "none at all": word(""),
    "no state told": word(AgentReport().state),
    "failed, and says why": Case(says(agent, state="failed", errors=BROKEN), at_once="US400"),
    "passive, and says why": Case(says(agent, state="passive", errors=BROKEN), at_once="US400"),
    "no session": Case(
        says(agent, connected=False),
        says(stream, connected=False),
        condition="without-session",
        code="US609",
    ),
    "no session, and says why": Case(
        says(agent, connected=False, errors=BROKEN), says(stream, connected=False), at_once="US400"
    ),
    "a copy that a full cache holds up": Case(
        copies("resync", stands=True), says(stream, own=BROKEN), at_once="US400"
    ),
    "a copy whose process server is missed": Case(
        copies("resync", stands=True), once(stream), at_once="US471"
    ),
    "a copy without a session": Case(
        says(agent, state="resync", connected=False, disks=[AgentDisk(name="sda", mode="ordered", todo_b=1)]),
        condition="without-session",
        code="US609",
    ),
    "a copy that stands for a reason that only warns": Case(
        says(
            agent,
            state="bitmap",
            errors=[ORDER_LOST],
            disks=[AgentDisk(name="sda", mode="bitmap", todo_b=1 << 30)],
        ),
        at_once="US400",
        condition="copy-stands",
        code="US615",
    ),
    "a copy that stands while another disk is away": Case(
        says(
            agent,
            state="initial-replication",
            errors=AWAY,
            disks=[AgentDisk(name="sda", mode="ordered", todo_b=1 << 30)],
        ),
        at_once="US404",
        condition="copy-stands",
        code="US615",
    ),
    "a copy that stands while its own disk does not answer": Case(
        says(
            agent,
            state="initial-replication",
            errors=AWAY,
            disks=[AgentDisk(name="sdb", mode="ordered", todo_b=1 << 30)],
        ),
        at_once="US404",
    ),
    "no session while a disk is away": Case(
        says(agent, connected=False, errors=AWAY),
        says(stream, connected=False),
        at_once="US404",
        condition="without-session",
        code="US609",
    ),
    "no server while a disk is away": Case(
        says(agent, connected=None, errors=AWAY),
        nothing,
        at_once="US404",
        condition="without-server",
        code="US609",
    ),
    "progress, and no more": Case(
        says(agent, state="initial-replication", disks=[AgentDisk(name="sda", mode="ordered", progress=0.5)]),
        condition="copy-stands",
        code="US615",
    ),
    "uploads that stand, and why": Case(stream=says(stream, uploaded=1, errors=BROKEN), at_once="US400"),
    "apply that stands, and why": Case(apply=says(apply, applied=1, errors=BROKEN), at_once="US400"),
    "apply that failed, and why": Case(
        apply=says(apply, state=ApplyState.FAILED, errors=BROKEN), at_once="US400"
    ),
    "blocks without order, and all of them are copied": Case(
        says(agent, state="bitmap", uploaded=500, uploaded_captured_ns=0),
        says(stream, spooled=500, uploaded=500, ordered_captured_ns=0),
    ),
    "a disk that has another path in this boot": Case(known=machine(disks=(WantedDisk("/dev/sdb"),))),
    "a master target of another version": Case(apply=says(apply, state="news")),
}

CASES: Final = {
    f"{name}-{n}": case
    for name, cases in [
        *((str(state), cases) for state, cases in STATES.items()),
        *((f"{daemon}: {report}", cases) for (daemon, report), cases in HOPS.items()),
        *((f"apply {state}", [case]) for state, case in APPLY_STATES.items()),
        *((name, [case]) for name, case in WORDS.items()),
    ]
    for n, case in enumerate(cases)
}


def codes(shown: MachineView) -> list[str]:
    return sorted(error.code for error in shown.errors)


@pytest.mark.parametrize("name", CASES)
def test_the_table(name: str) -> None:
    case = CASES[name]
    world = World(case.known)
    at_once = case.at_once.split()
    if not case.condition:
        shown = case.last(world, 20)
        assert codes(shown) == at_once
        assert codes(case.last(world, LONG_S)) == at_once
        assert (shown.health is Health.NORMAL) == (not at_once)
        return
    after_s = AFTER_S[case.condition]
    assert codes(case.last(world, after_s - 1)) == at_once
    shown = case.last(world, 2)
    assert codes(shown) == sorted([*at_once, case.code])
    assert shown.health is case.health
    error = next(error for error in shown.errors if error.code == case.code)
    assert (error.object, error.source) == ("web1", "config-server")
    assert error.cause
    assert error.action
    hop = next(condition.hop for condition in CONDITIONS if condition.name == case.condition)
    found = {hop.name: hop.state for hop in shown.hops}[hop]
    assert found == ("error" if case.health is Health.CRITICAL else "waiting")
    # Nothing more, and the same words at each look: an event is written when they change.
    assert case.last(world, 1000).errors == shown.errors
    # Over as soon as all is well, and it begins anew then.
    well = Case().last(world, 0)
    assert codes(well) == (["US601"] if case.known is UNPROTECTED else [])
    if case.known.protected:
        assert {hop.state for hop in well.hops} == {"ok"}
    if nothing not in (case.agent, case.stream, case.apply):  # else it is silent now
        assert codes(case.last(world, after_s - 1)) == at_once


def test_the_table_has_every_state_every_report_of_every_daemon_and_every_condition() -> None:
    assert set(STATES) == set(MachineState)
    assert set(HOPS) == set(itertools.product(DAEMONS, REPORTS))
    assert set(APPLY_STATES) == set(ApplyState)
    below = {"", "copy-in-vain", "disks-left-out", "undone"}
    assert {case.condition for case in CASES.values()} | below == {c.name for c in CONDITIONS} | below
    assert all(STATES.values())
    assert all(HOPS.values())


def test_what_was_a_problem_is_one_after_a_start_of_the_config_server_as_soon_as_it_is_heard() -> None:
    world, case = World(), WORDS["stopped"]
    assert codes(case.last(world, MISSED_S)) == ["US609"]
    world.restart()
    assert codes(world.show()) == []
    assert codes(case.last(world, 0)) == ["US609"]
    assert codes(Case().last(world.restart(), 0)) == [], "it was mended meanwhile"
    never = World().later(LONG_S)
    assert codes(never.show()) == ["US609"]
    assert codes(never.restart().show()) == ["US609"]


def test_time_in_which_the_config_server_was_not_there_does_not_count() -> None:
    world, case = World(), WORDS["stopped"]
    assert codes(case.last(world, MISSED_S - 10)) == []
    world.now_ns += 86_400 * SECOND_NS
    world.restart()
    assert codes(case.last(world, 9)) == []
    assert codes(case.last(world, 2)) == ["US609"]


def test_a_start_of_the_config_server_a_day_hides_no_copy_that_comes_to_nothing() -> None:
    """Lost every 14 h, of the 20 h that it takes."""
    world, seen = World(), []
    for minute in range(5 * 24 * 60):
        if minute % (23 * 60) == 23 * 60 - 1:
            world.restart()
        epoch, into = divmod(minute / 60, 14)
        replication(int(TERABYTE_B * (1 - into / 20)), int(epoch) + 1, minute).say(world)
        seen.append("US615" in codes(world.show()))
        world.later(60)
    assert not any(seen[: 2 * 24 * 60])
    assert all(seen[3 * 24 * 60 :])


def test_what_was_kept_by_another_version_costs_time_only(capsys: pytest.CaptureFixture[str]) -> None:
    kept = lasting_record.encode(
        {"web1": {"copy-stands": Lasted((1, 2.5), 3, 4), "no more": Lasted((), 1, 0)}}
    )
    assert lasting_record.decode(kept)["web1"]["copy-stands"].at == (1, 2.5)
    assert lasting_record.decode(kept.replace('"format":1', '"format":2')) == {}
    assert lasting_record.decode("{}") == {}
    assert "not known" in capsys.readouterr().out
    lasting = Lasting()
    lasting.recover(lasting_record.decode(kept), NOW)
    assert list(lasting.kept()) == []


def test_what_an_agent_says_that_is_no_size_spoils_nothing_of_what_is_kept() -> None:
    endless = [AgentDisk(name=name, mode="ordered", todo_b=(1 << 63) - 1) for name in ("sda", "sdb", "sdc")]
    world, case = World(), Case(says(agent, state="resync", disks=endless))
    case.last(world, MISSED_S)
    json = lasting_record.encode(world.lasting.kept())
    assert lasting_record.encode(lasting_record.decode(json)) == json


def test_what_the_config_server_did_not_see_does_not_count() -> None:
    """It was held up itself: a suspended host, say."""
    world, case = World(), WORDS["stopped"]
    case.last(world, STEP_S)
    world.now_ns += 86_400 * SECOND_NS
    assert codes(case.last(world, 0)) == []
    assert codes(case.last(world, MISSED_S)) == ["US609"]


def test_a_machine_that_was_just_protected_gets_time() -> None:
    world = World(machine(protected=False)).later(30 * 86_400)
    world.machine = machine()
    assert codes(world.show()) == []
    assert codes(world.later(AFTER_S["never-came"] - 1).show()) == []
    shown = world.later(1).show()
    assert (shown.state, shown.health, codes(shown)) == ("not-connected", Health.CRITICAL, ["US609"])
    world.machine = machine(protected=False)
    assert codes(world.show()) == []
    world.machine = machine()
    assert codes(world.later(AFTER_S["never-came"] - 1).show()) == []


def test_a_restart_of_a_master_target_is_nothing() -> None:
    world = World()
    for _ in range(60):
        Case().last(world, 20)
        assert codes(Case(apply=idle).last(world, 20)) == []
        assert codes(Case(apply=says(apply, state=ApplyState.STARTING)).last(world, 20)) == []


@pytest.mark.parametrize("away_s", [8, 20, 40, 58])
@pytest.mark.parametrize("role", ["process server", "master target"])
def test_an_upgrade_of_a_server_is_at_most_a_warning(role: str, away_s: int) -> None:
    """Its agents say so, too (agent/status.py)."""
    world, seen = World(), set()
    Case().last(world, 20)
    warned = [Problem("US467", "it was not reached", severity=Severity.WARNING)]
    away = {
        "process server": Case(says(agent, connected=False, errors=warned), nothing),
        "master target": Case(apply=nothing),
    }[role]
    for _ in range(away_s // 2):
        seen.add(away.last(world, 2).health)
    assert seen <= {Health.NORMAL, Health.WARNING}
    assert codes(Case().last(world, 0)) == []


@pytest.mark.parametrize("case", [Case(stream=nothing), Case(apply=nothing)], ids=DAEMONS[1:])
def test_a_server_that_does_not_come_back_is_critical_after_a_minute(case: Case) -> None:
    world = World()
    Case().last(world, 0)
    shown = case.last(world, 60)
    assert (codes(shown), shown.health) == (["US471"], Health.WARNING)
    assert "error" not in {hop.state for hop in shown.hops}
    shown = case.last(world, 1)
    assert (codes(shown), shown.health) == (["US471"], Health.CRITICAL)
    assert "error" in {hop.state for hop in shown.hops}


def test_whoever_is_silent_now_and_then_does_not_begin_anew_each_time() -> None:
    world, case = World(), WORDS["stopped"]
    silent = 0
    for _ in range(60):
        shown = case.last(world, 20)
        world.later(20)
        silent += codes(world.show()) == ["US471"] * 3
    assert silent == 60
    assert codes(shown) == ["US609"]


def test_what_stood_because_of_an_error_gets_time_when_that_is_over() -> None:
    world = World()
    assert codes(WORDS["a copy that a full cache holds up"].last(world, LONG_S)) == ["US400"]
    case = Case(copies("resync", stands=True))
    assert codes(case.last(world, STANDS_S - 1)) == []
    assert codes(case.last(world, 2)) == ["US615"]


@pytest.mark.parametrize(
    "case",
    [
        Case(
            says(
                agent, state="resync", errors=BROKEN, disks=[AgentDisk(name="sda", mode="ordered", todo_b=1)]
            )
        ),
        Case(copies("resync", stands=True), says(stream, own=BROKEN)),
        Case(stream=says(stream, uploaded=400, errors=BROKEN)),
        Case(apply=says(apply, applied=400, errors=BROKEN)),
    ],
    ids=["copy", "copy, of the server's", "upload", "apply"],
)
def test_an_error_is_believed_for_hours_to_be_why_work_stands_and_not_for_ever(case: Case) -> None:
    world = World()
    assert codes(case.last(world, EXCUSED_S + STANDS_S - 30)) == ["US400"]
    assert codes(case.last(world, 60)) == ["US400", "US615"]


def test_an_error_of_long_standing_is_believed_to_be_why_while_work_goes_on_now_and_then() -> None:
    world = World()
    for hour in range(12):
        case = Case(stream=says(stream, uploaded=400 + hour, errors=BROKEN))
        assert codes(case.last(world, 3600)) == ["US400"]


def test_a_disk_that_shall_be_protected_and_is_not_captured_is_a_problem() -> None:
    def captures(*names: str) -> Case:
        disks = [AgentDisk(name=name, mode="ordered", todo_b=0) for name in names]
        return Case(says(agent, disks=disks))

    world = World(machine(disks=(WantedDisk("/dev/sda"), WantedDisk("/dev/sdb"))))
    says_why = Case(says(agent, errors=BROKEN))
    assert codes(says_why.last(world, LONG_S)) == ["US400"]
    assert codes(captures("sda").last(world, MISSED_S - 1)) == []
    shown = captures("sda").last(world, 2)
    assert (shown.health, codes(shown)) == (Health.CRITICAL, ["US609"])
    assert "/dev/sdb" in shown.errors[0].cause
    assert codes(captures("sda", "sdb").last(world, 0)) == []
    world = World(machine(disks=tuple(WantedDisk(f"/dev/{disk}", disk) for disk in ("sda", "sdb", "sdc"))))
    both = [AgentDisk(name=name, mode="ordered", todo_b=0) for name in ("sda", "sdc")]
    assert codes(Case(says(agent, errors=AWAY, disks=both)).last(world, 2 * EXCUSED_S)) == ["US404"]
    assert codes(Case(says(agent, errors=AWAY)).last(world, MISSED_S)) == ["US404", "US609"], "sdc, too"


def test_disks_of_a_machine_that_nobody_asked_to_protect_are_its_agents_affair() -> None:
    """Those that it has captured once are noted; it was taken out of the agent's configuration."""
    world = World(
        machine(protected=False, disks=(WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")))
    )
    assert codes(Case().last(world, LONG_S)) == ["US601"]


def mark(number: int) -> Mark:
    return Mark("x", number, f"act-{number}")


def wanted(*disks: str, stop: bool = False) -> Machine:
    verb = Verb.STOP if stop else Verb.PROTECT
    wish = Wish(mark=mark(2), verb=verb, disks=tuple(WantedDisk(f"/dev/{disk}", disk) for disk in disks))
    return machine(protected=not stop, ended=stop, disks=wish.disks, wish=wish, identity="old")


@pytest.mark.parametrize("code", ["US610", "US644"])
@pytest.mark.parametrize(
    "before", [None, Wish(mark=mark(1), verb=Verb.STOP)], ids=["goes by nothing", "goes by stop"]
)
@pytest.mark.parametrize(
    ("known", "captured", "state", "is_critical"),
    [
        (wanted("sda"), [], "unprotected", True),
        (wanted(), [], "unprotected", True),
        (wanted("sda"), [], "starting", True),
        (wanted("sda", "sdb"), ["sda"], "ordered", True),
        (wanted("sda", "sdb"), ["sda", "sdc"], "ordered", True),
        (wanted("sda", "sdb"), ["sda", "sdc", "sdd"], "ordered", True),
        (wanted("sda"), ["sda"], "ordered", False),
        (wanted("sda", stop=True), ["sda"], "ordered", False),
    ],
)
def test_an_agent_that_does_not_go_by_what_is_wanted_is_as_bad_as_what_follows_and_it_is_said_once(
    code: str, before: Wish | None, known: Machine, captured: list[str], state: str, *, is_critical: bool
) -> None:
    """It does not do what it is told; or is told nothing, since nobody knows whether its hardware is the machine."""
    world = World(known)
    if code == "US610":
        world.untaken = ("act-2", NOW)
    else:
        world.withheld_ns = NOW
    disks = [AgentDisk(name=name, mode="ordered", todo_b=0) for name in captured]
    case = Case(says(agent, state=state, wish=before, identity="new", disks=disks))
    assert codes(case.last(world, UNTAKEN_S)) == []
    shown = case.last(world, 1)
    assert (codes(shown), shown.health) == ([code], Health.WARNING)
    shown = case.last(world, MISSED_S)
    assert (codes(shown), shown.health) == ([code], Health.CRITICAL if is_critical else Health.WARNING)
    assert (code == "US610") or ("from new" in shown.errors[0].cause and "of old" in shown.errors[0].cause)


def captures(*disks: str, **changes: Any) -> Case:
    """By their ids."""
    return Case(
        says(agent, disks=[AgentDisk(name=disk, mode="ordered", todo_b=0) for disk in disks], **changes)
    )


@pytest.mark.parametrize("captured", [["sda", "sdc"], ["sdc", "sdd"], ["sda", "sdc", "sdd"]])
def test_a_disk_that_is_left_out_is_missed_however_many_others_are_captured(captured: list[str]) -> None:
    world = World(machine(disks=wanted("sda", "sdb").disks))
    assert codes(captures(*captured).last(world, MISSED_S - 1)) == []
    shown = captures(*captured).last(world, 2)
    assert (codes(shown), shown.health) == (["US609"], Health.CRITICAL)
    assert "/dev/sdb" in shown.errors[0].cause
    assert "/dev/sdc" not in shown.errors[0].cause


def test_an_agent_at_work_that_names_no_disk_leaves_all_of_them_out() -> None:
    world = World()
    assert codes(captures().last(world, MISSED_S - 1)) == []
    assert codes(captures().last(world, 2)) == ["US609"]


@pytest.mark.parametrize(
    ("disk", "there", "is_known"),
    [
        (WantedDisk("/dev/disk/by-id/wwn-2"), [], False),
        (WantedDisk("/dev/sdb", identity="wwid:2"), [], False),
        (WantedDisk("/dev/disk/by-id/wwn-2"), [AvailableDisk(device="/dev/sdd", id="sdc")], False),
        (
            WantedDisk("/dev/disk/by-id/wwn-2"),
            [AvailableDisk(device="/dev/sdd", id="sdc", links=["/dev/disk/by-id/wwn-2"])],
            True,
        ),
        (
            WantedDisk("/dev/sdb", identity="wwid:2"),
            [AvailableDisk(device="/dev/sdd", id="sdc", identity="wwid:2")],
            True,
        ),
    ],
    ids=["a link", "an identity", "another link", "its link", "its identity"],
)
def test_a_disk_without_an_id_yet_is_missed_under_another_path_only_while_nobody_knows_whether_it_is_meant(
    disk: WantedDisk, there: list[AvailableDisk], *, is_known: bool
) -> None:
    """An agent that goes by what is wanted knows it, and whoever is told nothing may not have looked what its host has."""
    disks = (WantedDisk("/dev/sda", "sda"), disk)
    wish = Wish(mark=mark(2), verb=Verb.PROTECT, disks=disks)
    for known in (machine(disks=disks), machine(disks=disks, wish=wish)):
        said = {"wish": known.wish, "available": there}
        assert codes(captures("sda", "sdc", **said).last(World(known), MISSED_S + 1)) == []
        assert codes(captures("sdc", **said).last(World(known), MISSED_S + 1)) == ["US609"], "sda"
        assert codes(captures("sda", **said).last(World(known), MISSED_S + 1)) == ["US609"]
    shown = captures("sda", "sdc", available=there).last(World(known), MISSED_S + 1)
    assert (codes(shown), shown.health) == (["US644"], Health.WARNING if is_known else Health.CRITICAL)
    assert ("has not said which disks" in shown.errors[0].cause) == (not there)


def test_an_act_of_which_an_agent_is_told_nothing_is_a_warning_when_that_lasts() -> None:
    """Whoever keeps it back, and why. Each act begins anew."""
    before = Wish(mark=mark(1), verb=Verb.PROTECT, disks=(WantedDisk("/dev/sda", "sda"),))
    case, world = captures("sda", "sdb", wish=before), World(wanted("sda", "sdb"))
    assert codes(case.last(world, MISSED_S - 1)) == []
    shown = case.last(world, 2)
    assert [(error.code, error.severity) for error in shown.errors] == [("US644", "warning")]
    assert "wanted is: protect /dev/sda, /dev/sdb" in shown.errors[0].cause
    assert case.last(world, LONG_S).errors == shown.errors
    again = Wish(mark=mark(3), verb=Verb.PROTECT, disks=world.machine.disks)
    world.machine = machine(disks=again.disks, wish=again)
    assert codes(case.last(world, MISSED_S - 1)) == []
    assert codes(captures("sda", "sdb", wish=again).last(world, 0)) == []
    assert codes(case.last(world, MISSED_S - 1)) == []


@pytest.mark.parametrize("code", ["US610", "US644"])
def test_an_agent_that_is_silent_now_and_then_is_seen_not_to_do_what_is_wanted_all_the_same(
    code: str,
) -> None:
    """What it is told is counted from its return."""
    world, case = World(wanted("sda")), captures("sda", identity="new")
    for _ in range(20):
        world.untaken = ("act-2", world.now_ns) if code == "US610" else None
        world.withheld_ns = world.now_ns if code == "US644" else None
        shown = case.last(world, 20)
        world.later(20)
    assert [(error.code, error.severity) for error in shown.errors] == [(code, "warning")]


@pytest.mark.parametrize(
    ("known", "captured", "words"),
    [
        (wanted("sda", "sdb", stop=True), ["sda", "sdb"], "stop; it captures all the same: sda, sdb"),
        (wanted("sda", stop=True), [], "stop; its process server has a session with it"),
        (wanted("sda"), ["sda", "sdb"], "protect /dev/sda; it captures all the same: sdb"),
    ],
    ids=["stop", "stop, and a session", "a disk less"],
)
def test_an_agent_that_only_says_that_it_goes_by_what_is_wanted_is_a_warning_when_that_lasts(
    known: Machine, captured: list[str], words: str
) -> None:
    world, case = World(known), captures(*captured, wish=known.wish)
    assert codes(case.last(world, MISSED_S - 1)) == []
    shown = case.last(world, 2)
    assert [(error.code, error.severity) for error in shown.errors] == [("US610", "warning")]
    assert words in shown.errors[0].cause
    assert case.last(world, LONG_S).errors == shown.errors


def test_an_agent_that_goes_by_what_a_newer_version_wants_is_not_to_do_anything_else() -> None:
    newer = Wish(mark=mark(3), verb=Verb.OTHER)
    for known, wish in ((wanted("sda"), newer), (machine(wish=newer), None)):
        assert codes(captures("sda", wish=wish).last(World(known), LONG_S)) == []


def test_an_agent_that_falls_silent_between_a_look_and_what_is_said_of_it_is_silent() -> None:
    world, known = World(), wanted("sda")
    captures("sda").say(world)
    facts = structs.replace(facts_of(world.presence, "web1", NOW), lasting=frozenset({"undone"}))
    assert codes(machine_view(known, facts, NOW)) == ["US644"]
    assert "US471" in codes(machine_view(known, facts, NOW + 20 * SECOND_NS))


def test_in_order_it_goes_on_while_anything_new_comes_to_storage() -> None:
    said = (says(agent, uploaded_captured_ns=NOW), says(stream, ordered_captured_ns=NOW))
    case, world = Case(*said), World()
    assert "US615" not in codes(case.last(world, LONG_S))  # its clock stands
    said = (
        says(agent, sent=500, spooled=500, uploaded=500, uploaded_captured_ns=NOW),
        says(stream, spooled=500, uploaded=500, ordered_captured_ns=NOW),
    )
    case, world = Case(*said, says(apply, applied=500)), World()
    assert codes(case.last(world, STANDS_S - 1)) == []
    shown = case.last(world, 2)
    assert (shown.health, codes(shown)) == (Health.CRITICAL, ["US472", "US615"])


def replication(left_b: int, epoch: int = 2, done: int = 0, **changes: Any) -> Case:
    """A first one, of which so much remains; nothing can be restored yet."""
    disks = [AgentDisk(name="sda", mode="ordered", todo_b=left_b)]
    said = {"state": "initial-replication", "sent": done, "spooled": done, "uploaded": done}
    return Case(
        says(agent, epoch=epoch, disks=disks, uploaded_captured_ns=0, **said | changes),
        says(stream, epoch=epoch, spooled=done, uploaded=done, ordered_captured_ns=0),
        says(apply, epoch=epoch, applied=done),
    )


def test_a_new_epoch_is_nothing_copied() -> None:
    world = World()
    assert codes(replication(5000).last(world, STANDS_S / 2)) == []
    assert codes(replication(4000, epoch=3).last(world, STANDS_S / 2 + 10)) == ["US615"]
    assert codes(replication(3999, epoch=3).last(world, STANDS_S - 1)) == []


def test_a_copy_goes_on_though_more_has_to_be_copied_than_when_the_last_round_ended() -> None:
    """Of writes that overflowed the ring meanwhile: 1 TiB at 100 MiB/s, and then 300 GiB."""
    world = World()
    for minute in range(240):
        done_b = minute * 60 * (100 << 20)
        left_b = (1 << 40) - done_b if done_b < 1 << 40 else (1 << 40) + (300 << 30) - done_b
        assert codes(replication(max(0, left_b), done=minute).last(world, 60)) == []


def test_disks_without_order_whose_blocks_are_copied_again_and_again_only_warn() -> None:
    world = World()
    for minute in range(120):
        left_b = max(0, (1 << 30) - minute % 10 * (250 << 20))
        state = "catching-up" if left_b else "bitmap"
        shown = replication(left_b, done=minute, state=state, errors=[ORDER_LOST]).last(world, 60)
        assert (codes(shown), shown.health) == (["US400"], Health.WARNING)


def test_the_end_of_a_copy_over_a_slow_line_is_well() -> None:
    """The agent has read and sent all of it, and calls that `ordered`; the process server has 100 GiB to upload."""
    world = World()
    for minute in range(120):
        left_b = (100 << 30) - minute * 60 * (12 << 20)
        assert codes(replication(left_b, done=minute, state="ordered").last(world, 60)) == []


def in_vain(hours: float, of: Callable[[float], Case | None]) -> list[str]:
    """Codes at the end of so many hours, of what `of` says, minute by minute; None: nobody says anything."""
    world, last = World(), []
    for minute in range(int(hours * 60)):
        if (case := of(minute / 60)) is not None:
            case.say(world)
            last = codes(world.show())
        world.later(10)
        if case is not None:
            case.say(world)
        world.later(50)
    return last


TERABYTE_B: Final = 1 << 40


def test_a_first_copy_that_begins_anew_each_14_minutes_comes_to_nothing() -> None:
    def begun_anew(hour: float) -> Case:
        epoch, minute = divmod(round(hour * 60), 14)
        return replication(TERABYTE_B - minute * 60 * (100 << 20), epoch + 1, minute)

    assert in_vain(20, begun_anew) == []
    assert in_vain(72, begun_anew) == ["US615"]


def test_a_machine_that_is_on_for_less_than_its_copy_takes_is_never_copied() -> None:
    def office_hours(hour: float) -> Case | None:
        day, hour = divmod(hour, 24)
        left_b = int(TERABYTE_B * (1 - hour / 20))
        return replication(left_b, int(day) + 1, int(hour * 60)) if hour < 10 else None

    assert in_vain(24 + 10, office_hours) == []
    assert in_vain(6 * 24 + 10, office_hours) == ["US615"]


def test_a_machine_that_writes_as_fast_as_it_is_copied_is_never_copied() -> None:
    def rounds(hour: float) -> Case:
        return replication(int(TERABYTE_B * (1 - hour % 4 / 4)), done=int(hour * 60))

    assert in_vain(36, rounds) == []
    assert in_vain(48, rounds) == ["US615"]


def test_a_first_copy_of_many_days_is_well() -> None:
    def steadily(hour: float) -> Case:
        return replication(int(20 * TERABYTE_B * (1 - hour / (20 * 24))), done=int(hour * 60))

    assert in_vain(5 * 24, steadily) == []


def test_a_copy_of_days_that_was_lost_once_is_not_in_vain_yet() -> None:
    def lost(hour: float) -> Case:
        epoch, hour = divmod(hour, 40)
        return replication(int(TERABYTE_B * (1 - hour / 50)), int(epoch) + 1, int(hour * 60))

    assert in_vain(2 * 40, lost) == []
    assert in_vain(2 * 40 + 26, lost) == ["US615"]


def test_what_a_copy_had_done_is_forgotten_when_something_new_can_be_restored() -> None:
    """A machine that has a resync now and then, each of two days."""

    def now_and_then(hour: float) -> Case:
        epoch, hour = divmod(hour, 60)
        done = int(hour * 60)
        if hour < 48:
            return replication(int(TERABYTE_B * (1 - hour / 48)), int(epoch) + 1, done, state="resync")
        newest_ns = NOW + int(epoch * 60 + hour) * 3600 * SECOND_NS
        return Case(
            says(
                agent,
                epoch=int(epoch) + 1,
                sent=done,
                spooled=done,
                uploaded=done,
                uploaded_captured_ns=newest_ns,
            ),
            says(stream, epoch=int(epoch) + 1, spooled=done, uploaded=done, ordered_captured_ns=newest_ns),
            says(apply, epoch=int(epoch) + 1, applied=done),
        )

    assert in_vain(2 * 60 + 47, now_and_then) == []


@pytest.mark.parametrize(
    "stood",
    [
        lambda errors: replication(TERABYTE_B, errors=errors, connected=not errors),
        lambda errors: Case(stream=says(stream, uploaded=400, errors=errors)),
        lambda errors: Case(apply=says(apply, applied=400, errors=errors)),
        lambda errors: Case(says(agent, state="failed", errors=errors)),
    ],
    ids=["copy", "upload", "apply", "agent"],
)
def test_what_stands_is_one_problem_though_its_error_comes_and_goes(
    stood: Callable[[list[Problem]], Case],
) -> None:
    world, seen = World(), []
    for _ in range(5):
        for errors, seconds in ((BROKEN, 10), ([], 830)):
            shown = stood(errors).last(world, seconds)
            seen.append([code for code in codes(shown) if code != "US400"])
            assert ("US400" in codes(shown)) == bool(errors)
    assert seen[:2] in ([[], []], [[], ["US609"]])
    assert all(len(each) == 1 for each in seen[3:]), seen


def test_a_warning_that_apply_is_behind_neither_comes_nor_goes_with_each_look() -> None:
    world = World()

    def lag(minutes: float) -> Case:
        return Case(apply=says(apply, lag_s=minutes * 60))

    for _ in range(20):  # a clock that jumped is over before that
        lag(2000).last(world, 120)
        assert codes(lag(1).last(world, 10)) == []
    lag(31).last(world, MISSED_S)
    for minutes in (29, 31, 16, 40):
        assert codes(lag(minutes).last(world, 30)) == ["US614"]
    assert codes(lag(14).last(world, 0)) == []
    assert codes(lag(31).last(world, 30)) == []


def test_what_another_master_target_says_it_cannot_do_for_a_machine_is_shown() -> None:
    world = World()
    Case().say(world)
    other = ApplyReport(state="error", epoch=2, applied=100, errors=[Problem("US400", "apply stopped")])
    world.says("master-target", "mt2", MasterTargetReport(machines={"web1": other, "web2": other}))
    assert [(error.code, error.source) for error in world.show().errors] == [("US400", "master-target:mt2")]


def test_a_master_target_that_fell_silent_is_not_hidden_by_one_that_waits_for_its_machine() -> None:
    world = World()
    Case(apply=says(apply, epoch=1)).say(world)
    world.later(20)
    Case(apply=nothing).say(world)
    waits = ApplyReport(state=ApplyState.CLAIMED_BY_ANOTHER)
    world.says("master-target", "mt2", MasterTargetReport(machines={"web1": waits}))
    assert [(error.code, error.object) for error in world.show().errors] == [("US471", "master-target:mt1")]

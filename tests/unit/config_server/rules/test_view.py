"""A machine's state, RPO, hops and errors from reports: pure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from config_server import background
from config_server.rules import view
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.facts import facts_of
from config_server.rules.health import worst
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence
from config_server.rules.stillness import Stillness
from config_server.rules.wrong import problems_with
from shared.api.machines import MachineView
from shared.api.points import PointView
from shared.api.policies import Policy
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import RequestError
from shared.status import (
    AgentDisk,
    AgentReport,
    ApplyReport,
    MasterTargetReport,
    Problem,
    ProcessServerReport,
    StreamReport,
)
from shared.vocabulary import Health, PointState, Role, Severity
from tests.reports import NOW, World, machine


def test_a_machine_without_protection_is_unprotected_whatever_its_agent_says() -> None:
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    assert world.show(machine(protected=False)).state == "unprotected"


def test_a_machine_that_replicates_unprotected_is_named_and_missed_unless_its_protection_was_ended() -> None:
    """The database may be from a backup, of a time when nobody had asked for its protection yet."""
    unknown, ended = machine(protected=False, disks=()), machine(protected=False, ended=True)
    captures = AgentReport(state="ordered", epoch=1, disks=[AgentDisk(name="sda", mode="ordered")])
    captures.uploaded_captured_ns = NOW

    def codes(world: World, known: Machine) -> list[str]:
        return [error.code for error in world.show(known).errors]

    world = World().says("agent", "web1", captures)
    assert [codes(world, known) for known in (unknown, ended, machine())] == [["US601"], ["US601"], []]
    assert "it replicates all the same" in world.show(unknown).cause
    world.later(3600)
    assert codes(world, unknown) == ["US601", "US471", "US472"]
    assert codes(world, ended) == []
    served = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
    assert codes(World().says("process-server", "ps1", served), ended) == ["US601"]
    assert codes(World().says("agent", "web1", AgentReport(state="starting")), unknown) == []


def test_a_machine_that_is_to_be_protected_and_of_which_nothing_is_captured_is_not_well() -> None:
    wish = Wish(mark=Mark("x", 2, "act"), verb=Verb.PROTECT)
    wanted = machine(wish=wish, wish_ns=NOW, wish_incarnation="x")

    def shown(report: AgentReport, of: Machine = wanted) -> list[tuple[str, str]]:
        view = World().says("agent", "web1", report).show(of)
        assert (view.health is Health.CRITICAL) == bool(view.errors)
        return [(error.code, error.cause) for error in view.errors]

    idle = AgentReport(state="unprotected", cause="nobody names a disk", wish=wish)
    nothing = [("US616", "nobody names a disk")]
    assert shown(idle) == nothing
    assert shown(idle, machine()) == nothing, "recorded before there were wishes"
    assert shown(msgspec.structs.replace(idle, wish=None)) == [], "it has not heard of it yet"
    assert shown(msgspec.structs.replace(idle, state="starting")) == []
    captured = [AgentDisk(name="sda", mode="ordered")]
    assert shown(msgspec.structs.replace(idle, disks=captured)) == []
    assert shown(idle, machine(protected=False)) == []
    late = World().says("agent", "web1", idle, age_s=60).show(wanted)
    assert [error.code for error in late.errors] == ["US471"], "what it said last is not believed"


def test_a_wish_is_pending_until_the_agent_says_that_it_goes_by_it_and_a_warning_once_that_lasts() -> None:
    wish = Wish(mark=Mark("x", 2, "act"), verb=Verb.PROTECT, disks=(WantedDisk("/dev/sda"),))
    wanted = machine(wish=wish, wish_ns=NOW, wish_incarnation="x")

    def shown(report: AgentReport, told_s: float, act: str = "act", age_s: float = 0.0) -> MachineView:
        world = World().says("agent", "web1", report, age_s)
        facts = facts_of(world.presence, "web1", NOW)
        untaken = (act, NOW - int(told_s * SECOND_NS))
        return view.machine_view(wanted, msgspec.structs.replace(facts, untaken=untaken), NOW)

    before = AgentReport(state="ordered", version="0.1")
    assert [e.code for e in shown(before, 29).errors] == []
    late = shown(before, 31)
    assert [(e.code, e.severity) for e in late.errors] == [("US610", "warning")]
    assert "protect /dev/sda" in late.errors[0].cause
    assert "its version is 0.1" in late.errors[0].cause
    assert ", once it has said which disks there are" in late.errors[0].cause
    assert late.wish is not None
    assert late.wish.pending == late.wish.since == rfc3339(NOW)
    assert shown(before, 31, act="an earlier one").errors == []
    assert [e.code for e in shown(before, 31, age_s=20).errors] == ["US471"], "it is told when it comes"
    failing = AgentReport(state="ordered", wish=wish, errors=[Problem(code="US405", what="no such disk")])
    failing.wish = Wish(mark=Mark("x", 1, "before"), verb=Verb.STOP)
    assert "it goes by stop" in shown(failing, 31).errors[0].cause
    assert "it reports US405 no such disk" in shown(failing, 31).errors[0].cause
    taken = shown(AgentReport(state="ordered", wish=wish), 0)
    assert taken.wish is not None
    assert taken.wish.pending is None


def test_a_machine_that_is_to_stop_is_no_warning_while_its_agent_can_be_told() -> None:
    wish = Wish(mark=Mark("x", 2, "act"), verb=Verb.STOP)
    ended = machine(protected=False, ended=True, wish=wish, wish_ns=NOW)
    captures = AgentReport(state="ordered", epoch=1, disks=[AgentDisk(name="sda", mode="ordered")])
    stopping = World().says("agent", "web1", captures).show(ended)
    assert (stopping.state, stopping.errors) == ("unprotected", [])
    assert "has not stopped yet" in stopping.cause
    served = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
    unheard = World().says("process-server", "ps1", served).show(ended)
    assert [error.code for error in unheard.errors] == ["US601"]
    assert "replicates all the same" in unheard.cause
    assert World().show(ended).cause == "its protection was ended"


def test_a_machine_that_is_not_protected_any_more_owes_no_rpo_and_misses_no_session() -> None:
    wish = Wish(mark=Mark("x", 2, "act"), verb=Verb.STOP)
    ended = machine(protected=False, ended=True, wish=wish, wish_ns=NOW)
    stopped = AgentReport(state="unprotected", connected=False, wish=wish)
    served = StreamReport(epoch=1, spooled=7, uploaded=7, ordered_captured_ns=NOW)
    world = World().says("agent", "web1", stopped)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": served}))
    world.later(3)
    shown = world.show(ended)
    assert (shown.health, shown.errors, shown.rpo_s) == (Health.NORMAL, [], None)
    capture, stream, upload, _ = shown.hops
    assert (capture.state, capture.detail) == ("ok", "not protected: nothing is captured")
    assert (stream.state, stream.detail) == ("ok", "not protected: nothing is sent")
    assert "7 uploaded" in upload.detail, "what is on its way to storage is still of interest"
    world.later(3600)
    long_gone = world.show(ended)
    assert (long_gone.health, long_gone.hops[0].state, long_gone.hops[1].state) == (
        Health.NORMAL, "unknown", "unknown",
    )  # fmt: skip
    captures = AgentReport(state="ordered", disks=[AgentDisk(name="sda", mode="ordered")])
    captures.uploaded_captured_ns = NOW
    assert World().says("agent", "web1", captures).show(ended).rpo_s == 0, "it replicates all the same"


def test_behind_a_new_epoch_figures_of_the_one_before_say_so() -> None:
    """Batches are counted anew: those of two epochs side by side look like a fault."""
    captures = AgentReport(state="resync", connected=True, disks=[AgentDisk(name="sda", mode="ordered")])

    def shown(agent: int, stream: int, apply: int) -> tuple[int, list[str]]:
        world = World().says("agent", "web1", msgspec.structs.replace(captures, epoch=agent))
        served = StreamReport(epoch=stream, connected=True, spooled=30, uploaded=28)
        world.says("process-server", "ps1", ProcessServerReport(machines={"web1": served}))
        followed = ApplyReport(state="following", epoch=apply, applied=20, lag_s=3)
        world.says("master-target", "mt1", MasterTargetReport(machines={"web1": followed}))
        view = world.show()
        return view.epoch, [hop.detail for hop in view.hops if hop.name in ("upload", "apply")]

    upload, apply = "batch 30 spooled, 28 uploaded, 0 MiB pending", "batch 20 applied"
    assert shown(1, 1, 1) == (1, [upload, f"{apply}, 8 batches behind, 3 s"])
    before = [f"epoch 1: {upload}", f"epoch 1: {apply}, 8 batches behind, 3 s"]
    assert shown(0, 1, 1) == (0, before), "the new one has no number yet"
    assert shown(2, 1, 1) == (2, before), "its process server has not reported of it"
    assert shown(2, 2, 1) == (2, [upload, f"epoch 1: {apply}, 28 batches of epoch 2 behind, 3 s"])
    stopped = AgentReport(state="unprotected", connected=False)
    assert World().says("agent", "web1", stopped).show().epoch == 0


def test_a_machine_whose_agent_never_reported_is_not_connected() -> None:
    shown = World().show()
    assert (shown.state, shown.rpo_s, shown.last_seen_s) == ("not-connected", None, None)
    assert [hop.state for hop in shown.hops] == ["unknown"] * 4


@pytest.mark.parametrize("state", ["ordered", "initial-replication", "bitmap", "catching-up", "resync"])
def test_the_state_is_what_the_agent_reports(state: str) -> None:
    assert World().says("agent", "web1", AgentReport(state=state)).show().state == state


@pytest.mark.parametrize(("age_s", "state"), [(14.9, "ordered"), (15.1, "disconnected")])
def test_an_agent_that_is_silent_for_15_s_is_disconnected(age_s: float, state: str) -> None:
    shown = World().says("agent", "web1", AgentReport(state="ordered"), age_s).show()
    assert shown.state == state
    assert [error.code for error in shown.errors] == (["US471"] if state == "disconnected" else [])


def test_rpo_counts_from_the_newest_ordered_state_that_storage_holds() -> None:
    world = World()
    world.says("agent", "web1", AgentReport(state="ordered", uploaded_captured_ns=NOW - 30 * SECOND_NS))
    assert world.show().rpo_s == 30
    stream = StreamReport(epoch=1, ordered_captured_ns=NOW - 10 * SECOND_NS)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": stream}))
    assert world.show().rpo_s == 10


def test_rpo_grows_while_the_agent_is_away_and_is_unknown_before_the_first_ordered_state() -> None:
    away = AgentReport(state="ordered", uploaded_captured_ns=NOW - 100 * SECOND_NS)
    assert World().says("agent", "web1", away, age_s=90).show().rpo_s == 100
    assert World().says("agent", "web1", AgentReport(state="initial-replication")).show().rpo_s is None


def test_daemons_that_started_anew_leave_the_rpo_to_the_newest_point() -> None:
    made_ns = NOW - 600 * SECOND_NS
    point = PointView("1-7", rfc3339(made_ns), 1, 7, "crash", PointState.LOGGED)
    world = World().says("agent", "web1", AgentReport(state="bitmap"))
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": StreamReport(epoch=1)}))
    shown = world.show(machine(policy=Policy(rpo_threshold_s=60)), point)
    assert shown.rpo_s == 600
    assert [error.code for error in shown.errors] == ["US472"]
    world.says("agent", "web1", AgentReport(state="ordered", uploaded_captured_ns=NOW - 5 * SECOND_NS))
    assert world.show(last_point=point).rpo_s == 5


def test_a_wrong_clock_is_an_error_of_its_own_and_not_a_wrong_rpo() -> None:
    # The machine's clock is an hour behind: its times look an hour old.
    captured_ns = NOW - 3605 * SECOND_NS
    report = AgentReport(state="ordered", uploaded_captured_ns=captured_ns)
    shown = World().says("agent", "web1", report, skew_s=3600).show()
    assert shown.rpo_s == pytest.approx(5)
    assert [(error.code, error.severity) for error in shown.errors] == [("US473", "warning")]
    assert "3600 s behind" in shown.errors[0].cause


@pytest.mark.parametrize("jumps_s", [[0], [7200], [-7200], [86_400 * 3650], [7200, -7200], [-1, 1] * 3])
def test_when_uploads_stop_the_rpo_grows_whatever_the_machines_clock_does(jumps_s: list[int]) -> None:
    world = World()
    captured_ns = NOW - 2 * SECOND_NS
    skew_s = 0
    for step, jump_s in enumerate(jumps_s * 3):
        # The same state is the newest in every report: nothing is uploaded any more.
        report = AgentReport(state="ordered", epoch=1, uploaded_captured_ns=captured_ns)
        shown = world.says("agent", "web1", report, skew_s=-skew_s).show()
        assert shown.rpo_s == pytest.approx(2 + 10 * step)
        skew_s += jump_s
        world.later(10)


def test_a_clock_that_is_always_ahead_or_behind_changes_no_rpo() -> None:
    for skew_s in (-86_400, -10, 0, 10, 86_400):
        world = World()
        for _ in range(3):
            captured_ns = world.now_ns - (3 + skew_s) * SECOND_NS
            report = AgentReport(state="ordered", epoch=1, uploaded_captured_ns=captured_ns)
            assert world.says("agent", "web1", report, skew_s=skew_s).show().rpo_s == pytest.approx(3)
            world.later(5)


def test_a_clock_that_jumps_back_before_the_report_never_hides_that_uploads_stopped() -> None:
    world = World()
    report = AgentReport(
        state="ordered", epoch=1, uploaded_captured_ns=NOW + 7200 * SECOND_NS
    )  # ahead when captured
    shown = world.says("agent", "web1", report).show()
    assert (shown.rpo_s, [error.code for error in shown.errors]) == (None, ["US548"])
    world.later(600)
    shown = world.says("agent", "web1", report).show(machine(policy=Policy(rpo_threshold_s=60)))
    assert shown.rpo_s is None
    assert [error.code for error in shown.errors] == ["US548", "US472"]


@pytest.mark.parametrize("jump_s", [86_400 * 3650, -86_400 * 3650, 7200, -7200, 60, -60])
@pytest.mark.parametrize("noticed", ["by the report", "by the state"])
def test_while_a_state_from_before_a_jump_is_the_newest_there_is_no_wrong_rpo(
    jump_s: int, noticed: str
) -> None:
    world, epoch = World(), 1

    def show(captured_ns: int, skew_s: int) -> MachineView:
        stream = StreamReport(epoch=epoch, ordered_captured_ns=captured_ns)
        world.says("process-server", "ps1", ProcessServerReport(machines={"web1": stream}))
        world.says("agent", "web1", AgentReport(state="ordered", epoch=epoch), skew_s=-skew_s)
        return world.show()

    for _ in range(3):
        assert show(world.now_ns - 3 * SECOND_NS, 0).rpo_s == pytest.approx(3)
        world.later(2)
    # captured before the jump, seen behind it; or the other way round, while the agent's last report is from before it
    late = noticed == "by the report"
    shown = show(world.now_ns - 3 * SECOND_NS + (0 if late else jump_s * SECOND_NS), jump_s if late else 0)
    assert shown.rpo_s is None
    assert "US548" in [error.code for error in shown.errors]
    for _ in range(3):
        world.later(10)
        shown = show(world.now_ns + (jump_s - 3) * SECOND_NS, jump_s)
    assert shown.rpo_s == pytest.approx(3)
    assert "US548" not in [error.code for error in shown.errors]


def test_a_stale_time_of_one_daemon_does_not_stand_for_the_fresh_one_of_another() -> None:
    world = World()
    stale = StreamReport(epoch=1, ordered_captured_ns=NOW + 7200 * SECOND_NS)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": stale}))
    world.show()
    world.later(300)
    fresh = AgentReport(state="ordered", epoch=1, uploaded_captured_ns=world.now_ns - SECOND_NS)
    assert world.says("agent", "web1", fresh).show().rpo_s == pytest.approx(1)


def test_a_clock_that_stands_is_a_problem_and_gives_no_rpo() -> None:
    world = World()
    for _ in range(4):
        passed_s = (world.now_ns - NOW) / SECOND_NS
        report = AgentReport(state="ordered", epoch=1, uploaded_captured_ns=NOW)
        shown = world.says("agent", "web1", report, skew_s=passed_s).show()
        world.later(10)
    assert shown.rpo_s is None
    assert [error.code for error in shown.errors] == ["US473", "US548"]


@pytest.mark.parametrize(("differs_s", "round_trip_s", "wrong"), [
    (6, 0, True), (6, 2, False), (60, 50, True), (-6, 30, True), (-4, 0, False), (4, 0, False),
])  # fmt: skip
def test_a_slow_line_is_no_wrong_clock(differs_s: int, round_trip_s: int, wrong: bool) -> None:
    report = AgentReport(state="ordered", round_trip_ns=round_trip_s * SECOND_NS)
    shown = World().says("agent", "web1", report, skew_s=differs_s).show()
    assert [error.code for error in shown.errors] == (["US473"] if wrong else [])


def test_the_wrong_clock_of_a_process_server_shows_on_its_machines() -> None:
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    world.says(
        "process-server", "ps1", ProcessServerReport(machines={"web1": StreamReport(epoch=1)}), skew_s=-90
    )
    assert [(e.code, e.object) for e in world.show().errors] == [("US473", "process-server:ps1")]


def test_an_rpo_over_the_threshold_is_a_warning() -> None:
    report = AgentReport(state="ordered", uploaded_captured_ns=NOW - 61 * SECOND_NS)
    shown = World().says("agent", "web1", report).show(machine(policy=Policy(rpo_threshold_s=60)))
    assert [error.code for error in shown.errors] == ["US472"]


def test_errors_of_all_daemons_that_serve_the_machine_are_shown_and_only_those() -> None:
    def bad(what: str, object_: str = "") -> Problem:
        return Problem(code="US430", what=what, object=object_)

    world = World()
    world.says("agent", "web1", AgentReport(errors=[bad("a", "sda")]))
    world.says(
        "process-server",
        "ps1",
        ProcessServerReport(
            errors=[bad("b")],
            machines={
                "web1": StreamReport(errors=[bad("c", "web1")]),
                "web2": StreamReport(errors=[bad("d")]),
            },
        ),
    )
    world.says("process-server", "ps2", ProcessServerReport(errors=[bad("e")]))
    world.says("master-target", "mt1", MasterTargetReport(machines={"web1": ApplyReport(errors=[bad("f")])}))
    shown = world.show()
    assert [(error.what, error.object, error.source) for error in shown.errors] == [
        ("a", "web1/sda", "agent:web1"),
        ("b", "process-server:ps1", "process-server:ps1"),
        ("c", "web1", "process-server:ps1"),
        ("f", "web1", "master-target:mt1"),
    ]


def test_of_two_process_servers_the_one_with_the_newer_epoch_counts() -> None:
    world = World()
    for name, epoch in (("ps1", 2), ("ps2", 1)):
        stream = StreamReport(epoch=epoch, spooled=5)
        world.says("process-server", name, ProcessServerReport(machines={"web1": stream}))
    assert world.show().process_server == "ps1"


AT_WORK = AgentReport(state="ordered", boot="b1", epoch=3, connected=True)
SESSION = StreamReport(epoch=3, connected=True, boot="b1", spooled=7)


@pytest.mark.parametrize("agent", [AT_WORK, None])
@pytest.mark.parametrize(
    "other",
    [
        StreamReport(epoch=99, spooled=99),  # of before the container was made anew
        StreamReport(epoch=99, spooled=99, connected=True, boot="b0"),
        StreamReport(epoch=3, spooled=99, connected=True, boot="b1"),
    ],
)
def test_what_another_server_says_hides_nothing_of_the_machine_s_own(
    agent: AgentReport | None, other: StreamReport
) -> None:
    """By the machine's word, or by storage's."""
    world = World()
    if agent is not None:
        world.says("agent", "web1", agent)
    if agent is None or other.boot == "b1":
        world.owner = "ps1"
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": SESSION}), age_s=3)
    broken = Problem(code="US430", what="stale", object="web1")
    other = msgspec.structs.replace(other, errors=[broken])
    world.says("process-server", "ps2", ProcessServerReport(machines={"web1": other}))
    shown = world.show()
    assert shown.process_server == "ps1"
    assert [(error.what, error.source) for error in shown.errors] == [("stale", "process-server:ps2")]


def test_a_server_that_fell_silent_is_the_machine_s_while_storage_or_the_machine_says_so() -> None:
    """Else its silence would be hidden by one that still reports what it had once."""
    world = World().says("agent", "web1", AT_WORK)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": SESSION}), age_s=20)
    old = StreamReport(epoch=1, spooled=9)
    world.says("process-server", "ps2", ProcessServerReport(machines={"web1": old}))
    assert ("US471", "process-server:ps1") in [(error.code, error.object) for error in world.show().errors]
    silent = World().says("process-server", "ps1", ProcessServerReport(machines={"web1": SESSION}), age_s=20)
    silent.says("process-server", "ps2", ProcessServerReport(machines={"web1": old}))
    assert silent.show().process_server == "ps2", "nobody knows better"
    silent.owner = "ps1"
    assert silent.show().process_server == "ps1"


def test_a_report_that_was_held_up_on_its_way_hides_no_later_one() -> None:
    """Also over a restart of the daemon, and whatever its clock says."""
    world = World()

    def say(state: str, start: str, number: int) -> str:
        world.later(2).says(
            "agent", "web1", AgentReport(state=state, start=start, number=number), skew_s=9 * number
        )
        return world.show().state

    assert say("resync", "a", 1) == "resync"
    assert say("ordered", "a", 3) == "ordered"
    assert say("bitmap", "a", 2) == "ordered"
    assert say("catching-up", "b", 1) == "catching-up"
    assert say("ordered", "a", 3) == "catching-up"
    assert say("ordered", "b", 2) == "ordered"
    assert say("bitmap", "", 0) == "bitmap", "an older version does not count them"


def test_a_master_target_that_fell_silent_does_not_stand_for_the_one_that_works() -> None:
    world = World()
    for name, batch, age_s in (("mt1", 9, 60), ("mt2", 2, 0)):
        apply = ApplyReport(epoch=1, applied=batch)
        world.says("master-target", name, MasterTargetReport(machines={"web1": apply}), age_s=age_s)
    assert {hop.name: hop.where for hop in world.show().hops}["apply"] == "master-target:mt2"


def test_a_silent_process_server_is_an_error_of_the_machine_and_its_old_words_are_not() -> None:
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    stream = StreamReport(errors=[Problem(code="US430", what="old")])
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": stream}), age_s=70)
    shown = world.show()
    assert [(error.code, error.object) for error in shown.errors] == [("US471", "process-server:ps1")]
    assert {hop.name: hop.state for hop in shown.hops}["upload"] == "error"


def test_disks_show_size_and_the_weakest_mode_is_the_machines() -> None:
    disks = [
        AgentDisk(name="sda", sectors=2048, mode="ordered"),
        AgentDisk(name="sdb", sectors=4096, mode="bitmap", progress=0.5, device="/dev/disk/by-id/x"),
    ]
    shown = World().says("agent", "web1", AgentReport(state="resync", disks=disks)).show()
    assert shown.mode == "bitmap"
    assert [(d.name, d.device, d.size_b, d.state, d.progress) for d in shown.disks] == [
        ("sda", "/dev/sda", 1 << 20, "resync", None),
        ("sdb", "/dev/disk/by-id/x", 2 << 20, "resync", 0.5),
    ]


def test_a_report_with_unknown_fields_is_taken_and_one_of_the_wrong_type_is_not() -> None:
    presence = Presence()
    seen = presence.learn(Role.AGENT, "web1", b'{"state": "ordered", "news": [1]}', NOW, NOW)
    assert seen.report.state == "ordered"
    with pytest.raises(RequestError, match="ring_b"):
        presence.learn(Role.AGENT, "web1", b'{"ring_b": "large"}', NOW, NOW)
    assert presence.all() == [seen]


def test_health_is_the_worst_of_what_is_wrong_and_apart_from_the_state() -> None:
    def world(*severities: Severity) -> World:
        problems = [
            Problem(code=f"US{i}", what="it broke", severity=severity)
            for i, severity in enumerate(severities)
        ]
        return World().says("agent", "web1", AgentReport(state="initial-replication", errors=problems))

    assert world().show().health is Health.NORMAL
    assert world(Severity.INFO).show().health is Health.NORMAL
    assert world(Severity.WARNING, Severity.INFO).show().health is Health.WARNING
    assert world(Severity.WARNING, Severity.ERROR).show().health is Health.CRITICAL
    silent = world().later(60)
    assert (silent.show().state, silent.show().health) == ("disconnected", Health.CRITICAL)


def test_health_of_a_daemon_is_that_of_its_words_its_clock_and_its_silence() -> None:
    def health(world: World) -> Health:
        (seen,) = world.presence.all()
        return worst(problems_with(seen, world.now_ns))

    part = StreamReport(errors=[Problem(code="US494", what="it waits")])
    assert health(World().says("process-server", "ps1", ProcessServerReport())) is Health.NORMAL
    busy = ProcessServerReport(machines={"web1": part})
    assert health(World().says("process-server", "ps1", busy)) is Health.CRITICAL
    assert health(World().says("process-server", "ps1", ProcessServerReport(), skew_s=60)) is Health.WARNING
    assert health(World().says("process-server", "ps1", ProcessServerReport(), age_s=70)) is Health.CRITICAL


def test_what_ails_a_master_target_that_finds_no_machines_is_shown_of_those_that_nobody_follows() -> None:
    """With a wrong key of the account it finds none, and so reports of none."""
    refused = Problem(code="US495", what="storage refuses")
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    world.says("master-target", "mt1", MasterTargetReport(errors=[refused]))
    shown = world.show()
    assert [(error.code, error.source) for error in shown.errors] == [("US495", "master-target:mt1")]
    assert shown.health is Health.CRITICAL
    world.says("master-target", "mt2", MasterTargetReport(machines={"web1": ApplyReport()}))
    assert world.show().errors == []


def _all_report(world: World) -> None:
    world.says("agent", "web1", AgentReport(state="ordered", epoch=1, connected=True))
    served = StreamReport(epoch=1, connected=True, ordered_captured_ns=world.now_ns)
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": served}))
    followed = ApplyReport(state="following", epoch=1)
    world.says("master-target", "mt1", MasterTargetReport(machines={"web1": followed}))


def _codes(world: World) -> list[str]:
    return [error.code for error in world.show().errors]


def test_after_a_gap_of_the_config_servers_own_everybody_gets_time() -> None:
    world = World()
    _all_report(world)
    world.says("agent", "gone", AgentReport(state="ordered"), age_s=60)
    before_ns = world.now_ns
    world.now_ns += 20 * SECOND_NS
    world.presence.excuse(before_ns, world.now_ns)
    shown = world.show()
    assert (shown.state, shown.health, _codes(world)) == ("disconnected", Health.NORMAL, [])
    assert {seen.name for seen in world.presence.all() if seen.is_missing(world.now_ns)} == {"gone"}
    world.now_ns += 14 * SECOND_NS
    assert _codes(world) == []
    world.now_ns += 2 * SECOND_NS
    assert _codes(world) == ["US471"] * 3
    _all_report(world)
    assert _codes(world) == []


async def test_a_gap_is_told_by_the_servers_own_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_BEAT_S", 0.0)
    times = iter([0.0, 1.0, 8.0, 28.0, 29.0])
    gaps: list[tuple[int, int]] = []

    def mono_ns() -> int:
        if (now := next(times, None)) is None:
            raise asyncio.CancelledError
        return int(now * SECOND_NS)

    presence = SimpleNamespace(excuse=lambda *gap: gaps.append(gap))
    control: Any = SimpleNamespace(mono_ns=mono_ns, presence=presence, stillness=Stillness())
    with pytest.raises(asyncio.CancelledError):
        await background.watch_for_gaps(control)
    assert gaps == [(8 * SECOND_NS, 28 * SECOND_NS)]

"""A machine's state, RPO, hops and errors from reports: pure."""

from __future__ import annotations

import msgspec
import pytest

from config_server import view
from config_server.clock import SECOND_NS, rfc3339
from config_server.inventory import Machine
from config_server.presence import Presence
from shared.errors import RequestError
from shared.messages import MachineView, PointView, Policy
from shared.status import (
    AgentDisk,
    AgentReport,
    ApplyReport,
    MasterTargetReport,
    Problem,
    ProcessServerReport,
    Report,
    StreamReport,
)

NOW = 1_700_000_000 * SECOND_NS


def machine(**changes: object) -> Machine:
    base = Machine("web1", protected=True, disks=("/dev/sda",), policy=Policy(), created_ns=0)
    return msgspec.structs.replace(base, **changes)


class World:
    """Reports of daemons, at ages."""

    def __init__(self) -> None:
        self.presence = Presence()

    def says(self, role: str, name: str, report: Report, age_s: float = 0.0, skew_s: float = 0.0) -> World:
        received_ns = NOW - int(age_s * SECOND_NS)
        report = msgspec.structs.replace(report, sent_ns=received_ns - int(skew_s * SECOND_NS))
        self.presence.learn(role, name, msgspec.json.encode(report), received_ns)
        return self

    def show(self, protected: Machine | None = None, last_point: PointView | None = None) -> MachineView:
        facts = view.facts_of(self.presence, "web1", last_point)
        return view.machine_view(protected or machine(), facts, NOW)


def test_a_machine_without_protection_is_unprotected_whatever_its_agent_says() -> None:
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    assert world.show(machine(protected=False)).state == "unprotected"


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
    point = PointView("1-7", rfc3339(made_ns), 1, 7, "crash", "logged")
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


def test_a_silent_process_server_is_an_error_of_the_machine_and_its_old_words_are_not() -> None:
    world = World().says("agent", "web1", AgentReport(state="ordered"))
    stream = StreamReport(errors=[Problem(code="US430", what="old")])
    world.says("process-server", "ps1", ProcessServerReport(machines={"web1": stream}), age_s=20)
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
    seen = presence.learn("agent", "web1", b'{"state": "ordered", "news": [1]}', NOW)
    assert seen.report.state == "ordered"
    with pytest.raises(RequestError, match="ring_b"):
        presence.learn("agent", "web1", b'{"ring_b": "large"}', NOW)
    assert presence.all() == [seen]

"""Whether an act has come true, in what words it is waited for, and what is said so that it is as before: pure."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from config_server.rules import acts
from config_server.rules.acts import Act, Said
from config_server.rules.facts import facts_of
from config_server.rules.machine import Machine
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import RequestError
from shared.status import AgentDisk, AgentReport, BoundDisk, Problem, ProcessServerReport, StreamReport
from tests.reports import World, machine

SDA, SDB = WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb")


def wish(number: int = 1, verb: Verb = Verb.PROTECT, disks: Any = (SDA,), servers: Any = ()) -> Wish:
    return Wish(mark=Mark("i", number, f"act{number}"), verb=verb, disks=disks, process_servers=servers)


WANTED: Final = wish()
STOP: Final = wish(2, Verb.STOP)
CAPTURES: Final = [AgentDisk(name="sda", device="/dev/sda", sectors=8, mode="ordered")]


def wanted(what: Wish = WANTED) -> Machine:
    is_stop = what.verb is Verb.STOP
    return machine(wish=what, disks=what.disks, protected=not is_stop, ended=is_stop)


def says(world: World | None = None, age_s: float = 0.0, **fields: Any) -> World:
    report = AgentReport(**{"state": "ordered", "wish": WANTED, "disks": CAPTURES, **fields})
    return (world or World()).says("agent", "web1", report, age_s)


def serves(world: World, boot: str = "2", *, connected: bool = True, age_s: float = 0.0) -> World:
    report = ProcessServerReport(machines={"web1": StreamReport(connected=connected, boot=boot)})
    return world.says("process-server", "ps1", report, age_s)


def untaken(world: World, known: Machine | None = None) -> str:
    facts = facts_of(world.presence, "web1", world.now_ns)
    return acts.untaken(known or wanted(), facts, world.now_ns)


def not_in_order(world: World, known: Machine | None = None) -> str:
    facts = facts_of(world.presence, "web1", world.now_ns)
    return acts.not_in_order(known or wanted(), facts, world.now_ns)


def not_stopped(world: World) -> str:
    return acts.not_stopped(wanted(STOP), facts_of(world.presence, "web1", world.now_ns), world.now_ns)


def unserved(world: World, known: Machine | None) -> str:
    return acts.unserved(known, "new", facts_of(world.presence, "web1", world.now_ns), world.now_ns)


def test_what_its_agent_does_not_go_by_is_waited_for_with_the_reason() -> None:
    assert untaken(World()) == "the agent of web1, which has never reported"
    assert untaken(says()) == ""
    assert untaken(says(age_s=3600)) == "", "it has said so"
    gone = untaken(says(wish=None, age_s=3600))
    assert gone == "the agent of web1, not heard since 2023-11-14T21:13:20Z"
    other = untaken(says(wish=wish(2)))
    assert other.startswith("the agent of web1 to do so: ")
    assert "it goes by protect /dev/sda" in other
    refuses = [Problem("US622", "It is not possible", cause="two disks have one id")]
    assert (
        untaken(says(wish=None, errors=refuses))
        == "the agent of web1, which refuses it: two disks have one id"
    )
    flood = [Problem("US622", "x" * 9000)]
    assert len(untaken(says(wish=None, errors=flood))) < 400


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, ""),
        ({"state": "resync", "cause": "it was asked for"}, "web1 is resync (it was asked for)"),
        ({"state": "bitmap"}, "web1 is bitmap"),
        ({"disks": []}, "its agent to capture /dev/sda"),
        (
            {"disks": [AgentDisk(name="sda", device="/dev/sda", mode="ordered", state="resync")]},
            "web1 is not in order yet: /dev/sda",
        ),
        (
            {"disks": [AgentDisk(name="sda", device="/dev/sda", mode="ordered", state="ordered")]},
            "",
        ),
    ],
)
def test_a_machine_is_in_order_when_all_disks_are_that_are_wanted(fields: dict[str, Any], why: str) -> None:
    assert not_in_order(says(**fields)) == why


def test_of_whom_nothing_is_heard_nobody_knows_whether_he_is_in_order() -> None:
    assert not_in_order(says(age_s=3600)) == "the agent of web1, not heard since 2023-11-14T21:13:20Z"
    assert not_in_order(World()) == "the agent of web1, which has never reported"
    assert not_in_order(says(), wanted(wish(disks=(SDA, SDB)))) == "its agent to capture /dev/sdb"


def test_it_has_stopped_when_nothing_is_captured_and_nobody_has_a_session_with_it() -> None:
    assert not_stopped(says(wish=STOP)) == "its agent, which captures /dev/sda"
    assert not_stopped(says(wish=STOP, disks=[])) == ""
    assert not_stopped(says(wish=STOP, disks=[], age_s=3600)) == "", "as it said last"
    assert not_stopped(serves(says(wish=STOP, disks=[]))) == "process-server:ps1, which has a session with it"
    assert not_stopped(serves(says(wish=STOP, disks=[]), connected=False)) == ""
    assert not_stopped(serves(says(wish=STOP, disks=[]), age_s=3600)) == ""


def test_new_hardware_has_the_machine_when_it_reports_and_is_served() -> None:
    known = wanted()
    new: dict[str, Any] = {"identity": "new", "boot": "2"}
    not_yet = "the agent of new, which has not reported yet"
    assert [unserved(world, known) for world in (World(), says(identity="old"))] == [not_yet, not_yet]
    assert "not heard since" in unserved(says(**new, age_s=3600), known)
    waits = "a process server to say that it serves new"
    assert unserved(says(**new), known) == waits
    assert unserved(serves(says(**new), boot="1"), known) == waits
    assert unserved(serves(says(**new), age_s=3600), known) == waits
    assert unserved(serves(says(**new)), known) == ""
    assert unserved(serves(says(identity="new", boot="3", former="2")), known) == ""
    assert unserved(serves(says(**new, disks=[]), connected=False), known).startswith(
        "disks of new to be named"
    )
    for nothing in (None, wanted(STOP)):
        assert unserved(says(**new, disks=[]), nothing) == ""
        assert unserved(says(**new), nothing) == waits, "it is replicated all the same"


def test_progress_is_that_of_the_disk_that_is_furthest_behind() -> None:
    disks = [AgentDisk(name=name, progress=share) for name, share in (("a", 0.5), ("b", None), ("c", 0.25))]
    world = says(disks=disks)
    assert acts.progress(facts_of(world.presence, "web1", world.now_ns)) == 0.25
    assert acts.progress(facts_of(World().presence, "web1", 0)) is None


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (wish(7), True),
        (wish(disks=(WantedDisk("/dev/sdz", "sda"),)), True),
        (wish(disks=(SDA, SDB)), False),
        (wish(disks=(SDB,)), False),
        (wish(disks=()), False),
        (wish(servers=("ps1:9443",)), False),
        (STOP, False),
        (wish(verb=Verb.OTHER), False),
    ],
)
def test_acts_are_the_same_that_want_the_same_disks_of_the_same_servers(other: Wish, is_same: bool) -> None:
    assert acts.is_same(WANTED, other) == acts.is_same(other, WANTED) == is_same


def test_of_two_stops_it_does_not_matter_what_they_keep() -> None:
    assert acts.is_same(STOP, wish(3, Verb.STOP, (), ("ps1:9443",)))


@pytest.mark.parametrize(
    ("known", "report", "before", "captured"),
    [
        (None, None, None, None),
        (wanted(), None, WANTED, True),
        (wanted(STOP), None, STOP, None),
        (machine(protected=False), AgentReport(disks=CAPTURES), None, True),
        (machine(protected=False), AgentReport(bound=[BoundDisk(id="a", device="/dev/a")]), None, True),
        (machine(protected=False), AgentReport(), None, False),
        (machine(protected=False), AgentReport(state="failed"), None, True),
        (machine(protected=False), AgentReport(wish=STOP), STOP, False),
        (machine(protected=True), None, None, True),
    ],
)
def test_what_was_before_is_what_was_wanted_else_what_its_agent_went_by_else_what_it_did(
    known: Machine | None, report: AgentReport | None, before: Wish | None, captured: bool | None
) -> None:
    act = acts.act_over(known, wish(5), report)
    assert (act.act, act.before, act.captured) == ("act5", before, captured)


SAID: Final = wish(5, disks=(SDA, SDB), servers=("ps1:9443",))


def act(before: Wish | None, captured: bool | None = None) -> Act:
    return Act(act="act5", wants="", instead_of="", said=SAID, before=before, captured=captured)


@pytest.mark.parametrize(
    ("before", "captured", "is_heard", "said"),
    [
        (WANTED, None, True, Said(Verb.PROTECT, (SDA,))),
        (STOP, True, True, Said(Verb.STOP, (SDA,))),
        (None, True, True, Said(Verb.PROTECT)),
        (None, False, True, Said(Verb.STOP)),
        (None, None, False, None),
        (None, True, False, Said(Verb.PROTECT)),
    ],
)
def test_what_is_said_again_stops_nobody_of_whom_it_is_not_known_that_he_did_nothing(
    before: Wish | None, captured: bool | None, is_heard: bool, said: Said | None
) -> None:
    assert acts.as_before("web1", act(before, captured), SAID, is_heard=is_heard) == said


def test_what_was_added_to_the_act_stays_since_nobody_has_said_that_it_shall_go() -> None:
    """Its agent had it, and this database did not know (US617, US636)."""
    more = replace(SAID, disks=(*SAID.disks, WantedDisk("/dev/sdc", "sdc")), process_servers=("ps2:9443",))
    said = acts.as_before("web1", act(WANTED), more, is_heard=True)
    assert said == Said(Verb.PROTECT, (SDA, WantedDisk("/dev/sdc", "sdc")), ("ps2:9443",))


def test_disks_that_were_named_by_their_paths_are_meant_by_the_ids_that_they_have_since() -> None:
    """Else a path would mean what stands there when the act is taken back."""
    paths = WantedDisk("/dev/sda"), WantedDisk("/dev/sdb")
    by_path = replace(act(wish(disks=paths[:1])), said=replace(SAID, disks=paths))
    assert acts.as_before("web1", by_path, SAID, is_heard=True) == Said(Verb.PROTECT, (SDA,))


@pytest.mark.parametrize("before", [wish(verb=Verb.OTHER), None])
def test_what_this_version_does_not_know_or_nobody_does_it_does_not_say(before: Wish | None) -> None:
    with pytest.raises(RequestError, match="was not said again"):
        acts.as_before("web1", act(before), SAID, is_heard=True)


def test_nothing_is_to_be_done_where_the_same_is_so_already() -> None:
    def is_done(world: World, before: Machine) -> bool:
        return acts.is_done(before, facts_of(world.presence, "web1", world.now_ns), world.now_ns)

    assert is_done(says(), wanted())
    assert not is_done(says(state="bitmap"), wanted())
    assert not is_done(says(wish=wish(9)), wanted())
    assert not is_done(says(age_s=3600), wanted())
    assert not is_done(says(), machine())
    assert not is_done(World(), wanted())
    assert not is_done(says(wish=STOP), wanted(STOP))
    assert is_done(says(wish=STOP, disks=[]), wanted(STOP))
    assert is_done(says(wish=STOP, disks=[], age_s=30 * 86_400), wanted(STOP)), "switched off since"

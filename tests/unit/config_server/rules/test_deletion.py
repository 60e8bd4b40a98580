"""When a machine may be deleted, and how that is shown: pure."""

from __future__ import annotations

import datetime as dt

import pytest
from msgspec.structs import replace

from config_server.rules import deletion
from config_server.rules.deletion import Deletion, Found, Stage
from config_server.rules.deletion_view import when
from shared.desired import Mark, Verb, Wish
from shared.errors import DeletionUnconfirmedError, UnhealthyError
from shared.status import AgentDisk, AgentReport, ProcessServerReport, StreamReport
from shared.vocabulary import Health, Role
from tests.reports import NOW, World, machine

HOUR_NS = 3600 * 10**9
STOP = Wish(mark=Mark("here", 2, "act"), verb=Verb.STOP)
ASKED = Deletion(
    id="1", incarnation="here", who="operator:admin", asked_ns=NOW, after_ns=HOUR_NS, counted_ns=NOW, act="act",
    place="a", container="v-1", identity="hw1",
)  # fmt: skip
DATE = dt.datetime(2026, 11, 27, 12, tzinfo=dt.UTC)
FOUND = Found(
    named="v-1",
    metadata={"machine": "web1", "vault": "v"},
    vault="v",
    noted="1",
    changed=DATE,
    identity="hw1",
    date=DATE,
)


def code(error: UnhealthyError | None) -> str:
    return "" if error is None else error.code


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (FOUND, ""),
        (replace(FOUND, named=""), ""),
        (Found(named="", vault="v"), ""),
        (Found(named="v-1", vault="v"), ""),
        (replace(FOUND, written=DATE - dt.timedelta(hours=1)), ""),
        (replace(FOUND, named="v-2"), "US633"),
        (Found(named="v-2", vault="v"), "US633"),
        (replace(FOUND, metadata={}), "US633"),
        (replace(FOUND, metadata={"machine": "web1"}), "US633"),
        (replace(FOUND, metadata={"machine": "web2", "vault": "v"}), "US633"),
        (replace(FOUND, metadata={"machine": "web1", "vault": "w"}), "US633"),
        (replace(FOUND, identity=""), "US633"),
        (replace(FOUND, identity="hw2"), "US633"),
        (replace(FOUND, granted="understudy-1"), "US630"),
        (replace(FOUND, written=DATE - dt.timedelta(minutes=5)), "US630"),
        (replace(FOUND, written=DATE + dt.timedelta(minutes=5)), "US630"),
    ],
)
def test_what_storage_has_to_say(found: Found, expected: str) -> None:
    assert code(deletion.of_storage("web1", ASKED, found)) == expected


def test_a_machine_of_which_storage_held_nothing_is_another_one_where_it_holds_something() -> None:
    nothing = replace(ASKED, container="", identity="")
    assert code(deletion.of_storage("web1", nothing, Found(named="", vault="v"))) == ""
    assert code(deletion.of_storage("web1", nothing, Found(named="v-1", vault="v"))) == "US633"


@pytest.mark.parametrize(
    ("wish", "incarnation", "expected"),
    [
        (STOP, "here", ""),
        (STOP, "another", "US631"),
        (None, "here", "US631"),
        (replace(STOP, verb=Verb.PROTECT), "here", "US631"),
        (replace(STOP, mark=Mark("here", 3, "later")), "here", "US631"),
        (replace(STOP, mark=Mark("here", 5, "act")), "here", ""),
    ],
)
def test_it_counts_with_the_act_that_was_made_with_it_and_in_its_incarnation(
    wish: Wish | None, incarnation: str, expected: str
) -> None:
    assert code(deletion.of_acts("web1", ASKED, wish, incarnation)) == expected


def test_who_was_enrolled_anew_since_is_another_one() -> None:
    anew = replace(ASKED, is_enrolled=True)
    assert code(deletion.of_acts("web1", anew, STOP, "here")) == "US633"


def test_of_what_storage_was_asked_to_delete_nothing_counts_before_it_is_known_what_came_of_it() -> None:
    removing = replace(ASKED, stage=Stage.REMOVING)
    later = replace(STOP, mark=Mark("here", 3, "later"))
    assert code(deletion.of_acts("web1", replace(removing, is_enrolled=True), STOP, "here")) == ""
    assert code(deletion.of_acts("web1", removing, later, "here")) == ""
    assert code(deletion.of_acts("web1", removing, STOP, "another")) == "US631", "of that nothing is known"


@pytest.mark.parametrize(("asked", "now", "expected"), [("", "a", ""), ("a", "a", ""), ("a", "b", "US633")])
def test_it_is_of_one_storage_account(asked: str, now: str, expected: str) -> None:
    assert code(deletion.of_place("web1", replace(ASKED, place=asked), now)) == expected


@pytest.mark.parametrize("place", ["a", ""])
@pytest.mark.parametrize(("noted", "expected"), [("1", ""), ("0", "US631"), ("", "US631")])
def test_only_the_deletion_that_its_container_notes_stands(place: str, noted: str, expected: str) -> None:
    found = replace(FOUND, noted=noted)
    assert code(deletion.of_storage("web1", replace(ASKED, place=place), found)) == expected


def test_who_is_there_hinders_it_and_who_is_silent_does_not() -> None:
    def judged(world: World) -> str:
        agent, streams = world.presence.agent("web1"), world.presence.streams("web1")
        return code(deletion.of_daemons("web1", ASKED, agent, streams, world.now_ns))

    obeys = AgentReport(state="unprotected", wish=STOP)
    assert judged(World()) == ""
    assert judged(World().says("agent", "web1", obeys)) == ""
    for replicates in (
        AgentReport(state="unprotected"),
        replace(obeys, wish=replace(STOP, mark=Mark("here", 1, "before"))),
        replace(obeys, disks=[AgentDisk(name="sda", mode="ordered")]),
        replace(obeys, connected=True),
    ):
        world = World().says("agent", "web1", replicates)
        assert judged(world) == "US630"
        assert judged(world.later(60)) == "", "of who is silent nothing is known"

    served = ProcessServerReport(machines={"web1": StreamReport(connected=True)})
    assert judged(World().says("process-server", "ps1", served)) == "US630"
    assert (
        judged(World().says("process-server", "ps1", ProcessServerReport(machines={"web1": StreamReport()})))
        == ""
    )


def test_nobody_is_missed_by_a_server_that_has_just_started() -> None:
    world = World().says("agent", "web1", AgentReport(wish=STOP)).restart()
    [seen] = world.presence.all()
    assert (seen.role, deletion.is_too_early([seen], world.now_ns)) == (Role.AGENT, True)
    world.later(60)
    assert not deletion.is_too_early([seen], world.now_ns)


def test_it_is_shown_as_a_state_of_its_own_which_is_no_illness_until_it_waits() -> None:
    world = World()
    stopped = machine(protected=False, ended=True, wish=STOP, wish_ns=NOW, deletion=ASKED)
    view = world.show(stopped)
    assert (view.state, view.health) == ("to-be-deleted", Health.NORMAL)
    assert view.cause.startswith("it is to be deleted on 2023-11-14 23:13 UTC (as operator:admin asked)")
    assert view.deletion is not None
    assert view.deletion.due is not None
    assert view.deletion.due.startswith("2023-11-14T23:13")
    protected = world.show(machine(deletion=ASKED))
    assert protected.state != "to-be-deleted", "somebody wanted otherwise since"


def test_the_day_moves_with_what_is_left_of_the_delay() -> None:
    half = replace(ASKED, passed_ns=HOUR_NS // 2, counted_ns=NOW + HOUR_NS)
    assert half.due_ns == NOW + HOUR_NS + HOUR_NS // 2
    assert not half.is_due
    over = replace(ASKED, passed_ns=HOUR_NS)
    assert over.is_due
    unsaid = DeletionUnconfirmedError("x", cause="because")
    assert when(over, None) == "it is due to be deleted since 2023-11-14 22:13 UTC"
    assert "revoked" in when(replace(over, stage=Stage.CLOSED), None)
    assert when(half, unsaid).endswith("say it again: because")
    assert when(replace(over, stage=Stage.REMOVING), None) == "it is being deleted"

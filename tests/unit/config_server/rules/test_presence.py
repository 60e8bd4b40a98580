"""Which of a daemon's reports counts."""

from __future__ import annotations

import msgspec
import pytest

from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.rules.presence import Presence, decode
from shared.desired import Mark, Verb, WantedDisk
from shared.errors import RequestError
from shared.status import AgentReport, AvailableDisk
from shared.vocabulary import Role


def report(number: int, state: str = "ordered") -> bytes:
    return msgspec.json.encode({"start": "a", "number": number, "state": state})


def learned(presence: Presence, raw: bytes, at_s: int) -> str:
    return presence.learn(Role.AGENT, "web1", raw, 0, at_s * SECOND_NS).report.state


def test_a_report_that_was_held_up_changes_nothing_while_a_newer_one_came_lately() -> None:
    presence = Presence()
    learned(presence, report(7), 100)
    assert learned(presence, report(6, "old"), 130) == "ordered"
    assert learned(presence, report(7, "old"), 159) == "ordered"


def test_a_machine_that_was_put_back_to_a_snapshot_with_memory_is_heard_within_a_minute() -> None:
    """The same start, its count is that of then."""
    presence = Presence()
    learned(presence, report(130_000), 100)
    states = [learned(presence, report(1000 + n, "resync"), 100 + 2 * n) for n in range(1, 60)]
    assert states == ["ordered"] * 29 + ["resync"] * 30
    assert learned(presence, report(1000, "old"), 220) == "resync", "from there on it counts anew"


def heard_of(presence: Presence, raw: bytes, at_s: float) -> bool:
    heard_ns = int(at_s * SECOND_NS)
    return presence.hear_of(Role.AGENT, "web1", raw, 0, heard_ns, by="other", address="192.0.2.1")


def state(presence: Presence) -> str:
    seen = presence.of(Role.AGENT, "web1")
    assert seen is not None
    return seen.report.state


def test_of_what_is_heard_here_and_at_another_server_the_later_counts_whichever_comes_first() -> None:
    presence = Presence()
    learned(presence, report(5, "five"), 100)
    assert heard_of(presence, report(6, "six"), 101)
    assert state(presence) == "six"
    assert not heard_of(presence, report(4, "four"), 99)
    assert learned(presence, report(7, "seven"), 103) == "seven"
    assert not heard_of(presence, report(6, "six"), 104), "by a clock that is off"
    assert state(presence) == "seven"


def test_of_two_starts_at_two_servers_the_one_that_was_heard_later_counts() -> None:
    presence = Presence()
    learned(presence, report(5), 100)
    other = msgspec.json.encode({"start": "b", "number": 1, "state": "new"})
    assert not heard_of(presence, other, 99)
    assert heard_of(presence, msgspec.json.encode({"start": "c", "number": 1, "state": "new"}), 101)
    assert state(presence) == "new"


def test_of_reports_without_a_count_the_one_that_was_heard_later_counts() -> None:
    presence = Presence()
    learned(presence, b'{"state": "here"}', 100)
    assert not heard_of(presence, b'{"state": "there"}', 99)
    assert heard_of(presence, b'{"state": "there"}', 101)


def test_a_daemon_whose_reports_alternate_between_two_servers_is_no_twin_of_itself() -> None:
    """Each is told late what the other heard."""
    presence = Presence()
    for number in range(1, 60, 2):
        learned(presence, report(number), number)
        heard_of(presence, report(number - 1), number - 1) if number > 1 else None
        heard_of(presence, report(number + 1), number + 1) if number % 3 else None
    assert presence.twins(60 * SECOND_NS) == []


def test_two_daemons_under_one_name_that_report_to_two_servers_are_twins() -> None:
    presence = Presence()
    for at_s in range(20):
        learned(presence, report(at_s + 1), at_s)
        heard_of(presence, msgspec.json.encode({"start": "b", "number": at_s + 1}), at_s + 0.5)
    assert [problem.code for problem in presence.twins(20 * SECOND_NS)] == ["US583"]


def test_what_another_server_heard_of_one_that_was_known_from_before_the_start_is_no_silence() -> None:
    presence = Presence()
    presence.learn(Role.AGENT, "web1", report(5), 0, 100 * SECOND_NS, 101 * SECOND_NS)
    seen = presence.of(Role.AGENT, "web1")
    assert seen is not None and seen.is_silent(102 * SECOND_NS)
    assert heard_of(presence, report(5), 100)
    seen = presence.of(Role.AGENT, "web1")
    assert seen is not None and not seen.is_silent(102 * SECOND_NS)


def test_whoever_was_not_missed_before_a_gap_is_excused_whichever_server_heard_him_last() -> None:
    """Of another server that stands still: he may have turned to it since."""
    presence = Presence()
    presence.learn(Role.AGENT, "web2", report(1), 0, 100 * SECOND_NS)
    presence.learn(Role.AGENT, "web3", report(1), 0, 80 * SECOND_NS)
    heard_of(presence, report(1), 100)
    presence.excuse(103 * SECOND_NS, 110 * SECOND_NS)
    missing = {seen.name for seen in presence.all() if seen.is_missing(120 * SECOND_NS)}
    assert missing == {"web3"}
    missing = {seen.name for seen in presence.all() if seen.is_missing(126 * SECOND_NS)}
    assert missing == {"web1", "web2", "web3"}


def test_what_lay_in_a_server_that_stood_still_says_nothing_of_its_sender_s_clock() -> None:
    presence = Presence()
    raw = msgspec.json.encode({"start": "a", "number": 1, "sent_ns": 70 * SECOND_NS})
    seen = presence.learn(Role.AGENT, "web1", raw, 100 * SECOND_NS, 0, held_up_ns=40 * SECOND_NS)
    assert seen.skew_ns == 0
    again = msgspec.json.encode({"start": "a", "number": 2, "sent_ns": 70 * SECOND_NS})
    seen = presence.learn(Role.AGENT, "web1", again, 100 * SECOND_NS, 0)
    assert seen.skew_ns == 30 * SECOND_NS


@pytest.mark.parametrize("number", [0, -1])
def test_a_report_that_is_counted_from_no_beginning_is_refused(number: int) -> None:
    with pytest.raises(RequestError, match="counted from 1"):
        learned(Presence(), report(number), 0)


def test_what_a_newer_agent_goes_by_costs_what_is_not_understood_of_it_and_not_its_report() -> None:
    mark = {"incarnation": "i", "number": 7, "act": "a", "x": 1}
    disk = {"device": "/dev/sda", "part": 2}
    for wish, verb in (
        ({"verb": "protect", "disks": [disk]}, Verb.PROTECT),
        ({"verb": "pause", "disks": [disk]}, Verb.OTHER),
        ({"verb": "protect", "disks": [disk] * 300}, Verb.OTHER),
        ({"verb": 5}, Verb.OTHER),
    ):
        raw = msgspec.json.encode({"state": "napping", "wish": {"mark": mark, **wish}, "epoch": 3})
        report = decode(Role.AGENT, raw)
        assert isinstance(report, AgentReport)
        assert (report.state, report.epoch) == ("napping", 3)
        assert report.wish is not None
        assert (report.wish.mark, report.wish.verb) == (Mark("i", 7, "a"), verb)


@pytest.mark.parametrize(
    "more", [{"wish": 5}, {"wish": {"verb": "stop"}}, {"wish": {"verb": 5, "mark": {}}}, {"epoch": "one"}]
)
def test_what_is_no_report_is_refused(more: dict[str, object]) -> None:
    mark = {"incarnation": "i", "number": 7, "act": "a"}
    raw = msgspec.json.encode({"wish": {"mark": mark, "verb": 5}, **more})
    with pytest.raises(RequestError):
        decode(Role.AGENT, raw)


def test_an_agent_that_was_started_just_now_has_the_disks_that_it_saw_in_this_boot() -> None:
    """It looks in a moment; until then a path would mean what was called so once, and not what the operator saw there."""
    presence = Presence()
    known = (WantedDisk("/dev/sda", "sda"),)

    def meant(boot: str, *available: AvailableDisk, identity: str = "one") -> list[str | None]:
        raw = msgspec.json.encode(AgentReport(boot=boot, identity=identity, available=list(available)))
        report = presence.learn(Role.AGENT, "web1", raw, 0, 100).report
        assert isinstance(report, AgentReport)
        return [disk.id for disk in Offer.of(report).meant("No", ["/dev/sda"], known)]

    stranger = AvailableDisk(device="/dev/sda", sectors=8, identity="wwid:B")
    assert meant("b1/1", stranger, AvailableDisk(device="/dev/sdb", identity="wwid:A", id="sda")) == [None]
    assert meant("b1/1") == [None]
    assert meant("b1/2") == [None], "it attached capture anew"
    assert meant("b2/1") == ["sda"], "names were changed by a boot"
    meant("b2/1", stranger)
    assert meant("b2/1", identity="other") == ["sda"], "another host's"
    meant("", stranger)
    assert meant("") == ["sda"], "nobody knows of which boot it is"

"""What is kept of a machine's disks after a report of its agent: pure."""

from __future__ import annotations

import msgspec
import pytest

from config_server.rules.disks import Offer
from config_server.rules.machine import Machine
from config_server.rules.settling import settled
from shared.api.policies import Policy
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.status import AgentReport, AvailableDisk, BoundDisk

A, B, C = (WantedDisk(f"/dev/sd{letter}", f"sd{letter}") for letter in "abc")
LINK = "/dev/disk/by-id/wwn-A"


def machine(*disks: WantedDisk, verb: Verb | None = None, dropped: tuple[WantedDisk, ...] = ()) -> Machine:
    """`verb`: an operator has named its disks."""
    wish = Wish(mark=Mark("i", 1, "a"), verb=verb, disks=disks) if verb is not None else None
    return Machine(
        "web1", protected=True, disks=disks, policy=Policy(), created_ns=0, wish=wish, dropped=dropped,
        ended=verb is Verb.STOP,
    )  # fmt: skip


def report(
    *bound: WantedDisk, there: str = "", wish: Wish | None = None, links: tuple[str, ...] = ()
) -> AgentReport:
    """`there`: "NAME:WORLD-WIDE NAME:ID", the id of one that is known; `links` lead to the first."""
    found = []
    for number, words in enumerate(there.split()):
        name, bears, id_ = words.split(":")
        identity = f"wwid:{bears}" if bears else "gpt:1"
        found.append(AvailableDisk(device=f"/dev/{name}", sectors=8, identity=identity, id=id_))
        found[-1].links = [*links] if number == 0 else []
    return AgentReport(
        wish=wish,
        available=found,
        bound=[
            BoundDisk(id=disk.id or "", device=disk.device, identity=disk.identity or "") for disk in bound
        ],
    )


def after(known: Machine, said: AgentReport) -> Machine:
    return settled(known, Offer.of(said), said.wish)


def test_what_was_named_by_a_path_is_told_by_the_id_of_what_stands_there_also_where_that_was_called_otherwise() -> (
    None
):
    asked = machine(WantedDisk("/dev/sdb"), WantedDisk("/dev/sdc"), verb=Verb.PROTECT)
    known = after(asked, report(A, B, there="sda:C: sdb:A:sda sdc:B:sdb"))
    assert known.disks == (WantedDisk("/dev/sdb", "sda"), WantedDisk("/dev/sdc", "sdb"))
    assert known.wish is not None
    assert known.wish.disks == known.disks
    assert asked.wish is not None
    assert known.wish.mark == asked.wish.mark, "the same act"


def test_one_that_never_was_protected_is_known_by_what_it_bears_if_that_lasts_and_one_that_is_away_by_its_path() -> (
    None
):
    asked = machine(*(WantedDisk(f"/dev/sd{letter}") for letter in "abcd"), verb=Verb.PROTECT)
    known = after(asked, report(C, there="sda:A: sdb::"))
    assert known.disks == (
        WantedDisk("/dev/sda", identity="wwid:A"), WantedDisk("/dev/sdb"), C, WantedDisk("/dev/sdd"),
    )  # fmt: skip
    again = after(known, report(C, WantedDisk("/dev/sdz", "sdz", "wwid:A"), there="sdx:A:sdz sdb::"))
    assert again.disks[0] == WantedDisk("/dev/sda", "sdz", "wwid:A"), (
        "it was bound by an act that is not said yet"
    )


def test_two_names_of_one_disk_are_one_line_also_of_those_that_shall_go() -> None:
    said = report(A, there="sda:A:sda", links=(LINK, "/dev/vg0/data"))
    names = (WantedDisk(LINK), WantedDisk("/dev/vg0/data"), WantedDisk("/dev/sda"), A)
    for verb in (Verb.PROTECT, None):
        assert [disk.id for disk in after(machine(*names, verb=verb), said).disks] == ["sda"]
    known = after(machine(B, verb=Verb.PROTECT, dropped=names), said)
    assert [disk.id for disk in known.dropped] == ["sda"]


def test_where_another_has_the_path_of_one_that_is_away_both_are_known() -> None:
    asked = machine(WantedDisk("/dev/sda"), A, verb=Verb.PROTECT)
    assert after(asked, report(A, there="sda:B:")).disks == (WantedDisk("/dev/sda", identity="wwid:B"), A)
    assert after(asked, report(A, there="sda::")).disks == (WantedDisk("/dev/sda"), A)
    assert after(asked, report(A, there="sda:B:sdb sdb:A:sda")).disks == (WantedDisk("/dev/sda", "sdb"), A)


def test_a_wish_that_its_agent_goes_by_is_not_told_in_other_words_nor_by_a_path_what_it_knows_by_an_id() -> (
    None
):
    asked = machine(WantedDisk("/dev/sdb"), WantedDisk("/dev/sdc"), verb=Verb.PROTECT)
    assert asked.wish is not None
    known = after(asked, report(B, WantedDisk("/dev/sdc", "sdc-2"), wish=asked.wish, there="sdb::sdb"))
    assert [disk.id for disk in known.disks] == ["sdb", "sdc-2"]
    assert known.wish == asked.wish
    # The database was put back to where it had not heard the ids; the labels of the agent's notes are the former ones.
    by_ids = msgspec.structs.replace(
        asked.wish, disks=(WantedDisk("/dev/sdb", "sda"), WantedDisk("/dev/sdc", "sdb"))
    )
    known = after(asked, report(A, B, wish=by_ids, there="sda:C: sdb:A:sda sdc:B:sdb"))
    assert known.wish == by_ids
    assert known.disks == by_ids.disks


def test_of_a_machine_that_was_stopped_nothing_is_noted() -> None:
    stopped = machine(A, WantedDisk(LINK), verb=Verb.STOP)
    assert after(stopped, report(A, B, there="sda:A:sda", links=(LINK,))).disks == (A,)
    assert after(stopped, report(A, B, there="sda:A:sda", links=(LINK,))).wish == stopped.wish


def test_a_report_that_names_fewer_disks_forgets_none_and_is_nothing_beside_what_is_wanted() -> None:
    known = machine()
    older = AgentReport(disks=[])
    for said in (report(A, B), older):
        known = after(known, said)
        assert known.disks == (A, B)
    moved = WantedDisk("/dev/sdz", "sdb")
    assert after(known, report(A, moved)).disks == (A, moved), "it is called otherwise"
    wanted = machine(B, WantedDisk("/dev/sdc"), verb=Verb.PROTECT)
    assert after(wanted, report(A)).disks == wanted.disks, "its agent does not go by that yet"
    assert after(wanted, report(A, B, C, wish=wanted.wish)).disks == (B, C), "and which id it has"
    recorded = machine(WantedDisk("/dev/sda"))
    assert after(recorded, report(B, A, there="sda::sda")).disks == (A, B), "before there were wishes"


@pytest.mark.parametrize(("recorded", "configured"), [(LINK, "/dev/sda"), ("/dev/sda", LINK)])
def test_a_disk_that_was_recorded_by_another_name_than_its_agent_has_for_it_is_one_disk(
    recorded: str, configured: str
) -> None:
    """Before there were wishes. The agent has not looked yet when it reports first."""
    known, bound = machine(WantedDisk(recorded)), WantedDisk(configured, "sda")
    known = after(known, report(bound))
    assert known == machine(WantedDisk(recorded)), "it may be told later what that is"
    assert after(known, report(bound, there="sda:A:sda", links=(LINK,))).disks == (bound,)


def test_what_was_taken_out_of_a_configuration_is_not_what_shall_be_protected() -> None:
    assert after(machine(A, B), report(B)).disks == (B,)
    named = machine(WantedDisk("/dev/sdz"))
    assert after(named, report(B, there="sdb::sdb")).disks == (WantedDisk("/dev/sdz"), B), (
        "an operator named it"
    )


def test_who_cannot_say_the_ids_of_his_disks_takes_none_away() -> None:
    assert after(machine(A, B), report(WantedDisk("/dev/sda"), WantedDisk("/dev/sdb"))).disks == (A, B)

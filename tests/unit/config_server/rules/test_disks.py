"""Which disks of a machine could be protected, as its agent says: pure."""

from __future__ import annotations

import msgspec
import pytest

from config_server.rules.disks import Offer
from config_server.rules.machine import Machine
from config_server.rules.wishes import without
from shared.api.policies import Policy
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import DiskTooLargeError, RequestError
from shared.status import AgentDisk, AgentReport, AvailableDisk, BoundDisk

REPORT = AgentReport(
    disks=[
        AgentDisk(name="data", device="/dev/sdb", sectors=8, mode="ordered"),
        AgentDisk(name="gone", device="/dev/sdc"),
        AgentDisk(name="a/../b", device="/dev/sdd", mode="ordered"),
        AgentDisk(name="sde", mode="bitmap"),
    ],
    available=[
        AvailableDisk(device="/dev/sdb", sectors=8, identity="serial:1", why_not="it is protected"),
        AvailableDisk(device="/dev/sdf", sectors=9 << 31),
        AvailableDisk(device="/dev/sdg", why_not="it is read-only"),
    ],
)
OFFER = Offer.of(REPORT)


def machine(**changes: object) -> Machine:
    base = Machine("web1", protected=True, disks=(WantedDisk("/dev/sdz"),), policy=Policy(), created_ns=0)
    return msgspec.structs.replace(base, **changes)


def check(offer: Offer, *devices: str, known: tuple[WantedDisk, ...] = ()) -> None:
    offer.check("No", [WantedDisk(device) for device in devices], known)


def test_what_is_captured_or_offered_is_taken_and_all_else_has_its_reason() -> None:
    check(OFFER, "/dev/sdb", "/dev/sde", "/dev/sdf")
    with pytest.raises(RequestError, match="/dev/sdg cannot be protected: it is read-only"):
        check(OFFER, "/dev/sdb", "/dev/sdg")
    with pytest.raises(RequestError, match="/dev/sdz is none of its disks"):
        check(OFFER, "/dev/sdz")
    check(OFFER, "/dev/sdz", known=(WantedDisk("/dev/sdz", "z"),))
    check(Offer.of(None), "/dev/sdz")
    with pytest.raises(RequestError, match="names none"):
        check(Offer.of(AgentReport()), "/dev/sda")


def test_a_disk_is_measured_whether_captured_or_only_offered() -> None:
    OFFER.check_sizes([WantedDisk("/dev/sdb"), WantedDisk("/dev/sdz")])
    for disk in (WantedDisk("/dev/sdf"), WantedDisk("/dev/sdb", "big")):
        big = AvailableDisk(device="/dev/sdf", sectors=9 << 31, id="big")
        with pytest.raises(DiskTooLargeError):
            Offer.of(msgspec.structs.replace(REPORT, available=[big])).check_sizes(
                [WantedDisk("/dev/sdb"), disk]
            )


def meant(offer: Offer, *words: str, known: tuple[WantedDisk, ...] = ()) -> tuple[WantedDisk, ...]:
    return offer.meant("No", words, known)


def test_a_captured_disk_is_wanted_by_its_stable_id_if_that_can_be_one() -> None:
    assert meant(OFFER, "/dev/sdb", "/dev/sdd", "/dev/sdf") == (
        WantedDisk("/dev/sdb", id="data"),
        WantedDisk("/dev/sdd"),
        WantedDisk("/dev/sdf"),
    )
    assert meant(OFFER, "data") == (WantedDisk("/dev/sdb", id="data"),)


def away(name: str) -> WantedDisk:
    return WantedDisk(f"/dev/{name}", name)


A, B, C = away("sda"), away("sdb"), away("sdc")
RENAMED = Offer.of(
    AgentReport(
        disks=[
            AgentDisk(name="sda", device="/dev/sda", mode="ordered"),
            AgentDisk(name="sdc", device="/dev/sdb", mode="ordered"),
        ],
        available=[
            AvailableDisk(device="/dev/sda", identity="wwid:A", id="sda"),
            AvailableDisk(device="/dev/sdb", identity="wwid:C", id="sdc"),
        ],
    )
)
"""B is away since the boot, so C has its name."""


def test_a_path_means_what_stands_there_now_and_an_id_its_disk_wherever_it_is() -> None:
    known = (A, B, C)
    assert meant(RENAMED, "/dev/sda", "/dev/sdb", known=known) == (A, WantedDisk("/dev/sdb", "sdc"))
    assert meant(RENAMED, "sda", "sdb", "sdc", known=known) == known
    assert meant(RENAMED, "sdb", "/dev/sda", known=known) == (A, B), "in their order"
    with pytest.raises(RequestError, match="twice, by two names: /dev/sdb, /dev/sdc"):
        meant(RENAMED, "/dev/sdb", "/dev/sdc", known=known)
    with pytest.raises(RequestError, match="id of none of its disks"):
        meant(RENAMED, "sdq", known=known)
    # C is said by /dev/sdb, and B, who was called so, is away.
    assert meant(RENAMED, "sdb", "/dev/sdb", known=known) == (B, WantedDisk("/dev/sdb", "sdc"))


def test_the_same_words_again_change_nothing_whoever_has_which_name() -> None:
    known = (A, B, C)
    for words in (("/dev/sda", "/dev/sdb", "/dev/sdc"), ("/dev/sdc", "/dev/sda", "/dev/sdb")):
        assert meant(RENAMED, *words, known=known) == known
        assert meant(Offer.of(None), *words, known=known) == known


STRANGER = Offer.of(
    AgentReport(
        disks=[AgentDisk(name="sda", device="/dev/sdb", mode="ordered")],
        available=[
            AvailableDisk(device="/dev/sda", identity="wwid:X"),
            AvailableDisk(device="/dev/sdb", identity="wwid:A", id="sda"),
        ],
    )
)
"""Another disk, which never was protected, has A's name."""


def test_a_stranger_under_the_name_of_a_protected_disk_is_a_disk_of_its_own() -> None:
    stranger = WantedDisk("/dev/sda", identity="wwid:X")
    assert meant(STRANGER, "/dev/sda", known=(A,)) == (stranger,)
    assert without((A,), (stranger,)) == (A,), "so it is asked for that A is left out"
    assert meant(STRANGER, "/dev/sdb", known=(A,)) == (WantedDisk("/dev/sdb", "sda"),)
    assert meant(STRANGER, "sda", known=(A,)) == (A,)
    assert meant(STRANGER, "sda", "/dev/sda", known=(A,)) == (A, stranger), "a path is a label"
    assert meant(STRANGER, "/dev/sdb", "/dev/sda", known=(A,)) == (WantedDisk("/dev/sdb", "sda"), stranger)


def test_what_would_leave_is_said_so_that_nobody_takes_another_for_it() -> None:
    assert STRANGER.shown(A) == "disk sda, which stands at /dev/sdb now"
    assert RENAMED.shown(B) == "disk sdb, which was /dev/sdb and is away"
    assert RENAMED.shown(A) == "/dev/sda"
    assert RENAMED.shown(WantedDisk("/dev/sda", "data")) == "disk data, which was /dev/sda and is away"
    assert RENAMED.shown(WantedDisk("/dev/sdx", "data")) == "/dev/sdx (disk data)"
    replaced = Offer.of(AgentReport(available=[AvailableDisk(device="/dev/sda", identity="wwid:X")]))
    assert replaced.shown(A) == "disk sda, which was /dev/sda and is away"


def test_who_was_named_by_what_stood_there_is_not_who_stands_there_now() -> None:
    asked = (WantedDisk("/dev/sda"), WantedDisk("/dev/sdb", identity="wwid:NEW"))
    assert [disk.id for disk in RENAMED.settled(asked)] == ["sda", None]


def test_a_stranger_of_which_nothing_lasts_is_not_taken_for_the_disk_whose_name_it_has() -> None:
    for identity in ("gpt:1", "by-path:pci-1", "name:sda, 8 sectors"):
        offer = Offer.of(AgentReport(available=[AvailableDisk(device="/dev/sda", identity=identity)]))
        with pytest.raises(RequestError, match="could tell the two apart"):
            meant(offer, "/dev/sda", known=(A,))
        assert meant(offer, "/dev/sda") == (WantedDisk("/dev/sda"),)
    twice = [AvailableDisk(device=f"/dev/sd{letter}", identity="serial:1") for letter in "xy"]
    assert meant(Offer.of(AgentReport(available=twice)), "/dev/sdx") == (WantedDisk("/dev/sdx"),)


def test_a_disk_that_cannot_be_protected_or_bears_nothing_takes_no_name() -> None:
    read_only = AvailableDisk(device="/dev/sda", why_not="it is read-only", identity="wwid:X")
    for found in (read_only, AvailableDisk(device="/dev/sda")):
        offer = Offer.of(AgentReport(available=[found]))
        assert meant(offer, "/dev/sda", known=(A, B)) == (A,)


def test_a_link_by_which_a_disk_was_named_stays_its_path_and_a_name_of_the_kernel_gives_way() -> None:
    link = WantedDisk("/dev/disk/by-id/wwn-A", "sda", "wwid:A")
    assert meant(STRANGER, "/dev/sdb", known=(link, B)) == (link,)
    assert meant(STRANGER, "/dev/sdb", known=(A, B)) == (WantedDisk("/dev/sdb", "sda"),)


def test_what_an_agent_protects_is_what_it_was_told_by_the_ids_under_which_it_has_it_else_all_that_it_names() -> (
    None
):
    bound = [
        BoundDisk(id="sda", device="/dev/sda"),
        BoundDisk(id="x/y", device="/dev/sdb"),
        BoundDisk(id="z"),
    ]
    report = AgentReport(bound=bound, disks=[AgentDisk(name="sda", device="/dev/sda", mode="ordered")])
    mark = Mark("x", 1, "a")
    for wish, goes_by in (
        (None, (A,)),
        (Wish(mark=mark, verb=Verb.PROTECT), (A,)),
        (Wish(mark=mark, verb=Verb.STOP, disks=(B,)), ()),
        (Wish(mark=mark, verb=Verb.PROTECT, disks=(WantedDisk("/dev/sda"), B)), (A, B)),
    ):
        assert Offer.of(msgspec.structs.replace(report, wish=wish)).goes_by == goes_by
    older = Offer.of(REPORT)
    assert older.goes_by == (
        WantedDisk("/dev/sdb", "data"),
        WantedDisk("/dev/sdd"),
        WantedDisk("/dev/sde", "sde"),
    )


def test_candidates_say_why_not_of_those_that_are_not_captured() -> None:
    found = {disk.device: disk for disk in OFFER.candidates(machine())}
    assert {name: disk.why_not for name, disk in found.items() if disk.why_not} == {
        "/dev/sdg": "it is read-only",
        "/dev/sdz": "its agent does not name it",
    }
    assert (found["/dev/sdb"].id, found["/dev/sdb"].identity, found["/dev/sdb"].captured) == (
        "data", "serial:1", True,
    )  # fmt: skip
    assert not found["/dev/sdc"].captured
    [unknown] = Offer.of(None).candidates(machine())
    assert (unknown.device, unknown.wanted, unknown.why_not) == (
        "/dev/sdz", True, "its agent has never reported",
    )  # fmt: skip


def test_candidates_are_wanted_by_their_ids_wherever_they_stand() -> None:
    found = STRANGER.candidates(machine(disks=(A, B)))
    assert [(disk.device, disk.id, disk.captured, disk.wanted, disk.why_not) for disk in found] == [
        ("/dev/sdb", "sda", True, True, ""),
        ("/dev/sda", "", False, False, ""),
        ("/dev/sdb", "sdb", False, True, "its agent does not name it"),
    ]
    linked = AgentDisk(name="sda", device="/dev/disk/by-id/wwn-A", sectors=8, mode="ordered")
    report = AgentReport(
        disks=[linked], available=[AvailableDisk(device="/dev/sdb", identity="wwid:A", id="sda")]
    )
    [one] = Offer.of(report).candidates(machine(disks=(A,)))
    assert (one.device, one.identity, one.id) == ("/dev/disk/by-id/wwn-A", "wwid:A", "sda")


def test_candidates_of_a_machine_that_was_stopped_say_which_were_protected_until_when() -> None:
    stop = Wish(mark=Mark("i", 2, "a"), verb=Verb.STOP)
    stopped = machine(protected=False, ended=True, wish=stop, wish_ns=1, disks=(A, B))
    report = AgentReport(
        available=[
            AvailableDisk(device="/dev/sdz", identity="wwid:A", id="sda"),
            AvailableDisk(device="/dev/sda", identity="wwid:C"),
        ]
    )
    found = Offer.of(report).candidates(stopped)
    until = "1970-01-01T00:00:00.000000001Z"
    assert [(disk.device, disk.name, disk.wanted, disk.until) for disk in found] == [
        ("/dev/sdz", "sda", False, until),
        ("/dev/sda", "wwid:C", False, ""),
        (B.device, "sdb", False, until),
    ]
    assert Offer.of(report).meant("No", ["sda", "sdb"], stopped.disks) == (A, B)
    again = machine(disks=(A,), wish=Wish(mark=Mark("i", 3, "b"), verb=Verb.PROTECT, disks=(A,)), wish_ns=2)
    assert [disk.until for disk in Offer.of(report).candidates(again)] == ["", ""]
    older = machine(protected=False, ended=True, disks=(A,))  # of before there were wishes
    assert [disk.until for disk in Offer.of(report).candidates(older)] == ["", ""]


def test_a_disk_that_was_never_there_is_protected_all_the_same_and_wanted_where_nobody_names_any() -> None:
    """Else whoever assigns a policy would drop it, and its alarm, without a word."""
    report = AgentReport(
        bound=[BoundDisk(id="sda", device="/dev/sda"), BoundDisk(id="", device="/dev/late")],
        available=[AvailableDisk(device="/dev/sda", sectors=8, identity="wwid:A", id="sda")],
    )
    offer = Offer.of(report)
    assert offer.goes_by == (WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/late"))
    known = machine(protected=False, disks=offer.bound)
    names = [disk.name for disk in offer.candidates(known) if disk.wanted]
    assert offer.meant("No", names, known.disks) == known.disks


LINK = "/dev/disk/by-id/wwn-A"
LINKED = AgentReport(
    bound=[BoundDisk(id="sda", device="/dev/sda")],
    available=[
        AvailableDisk(device="/dev/sda", sectors=8, identity="wwid:A", id="sda", links=[LINK]),
        AvailableDisk(device="/dev/sdb", sectors=8, identity="wwid:B", links=["/dev/disk/by-id/wwn-B"]),
    ],
)


def test_a_link_means_the_disk_to_which_it_leads() -> None:
    offer, known = Offer.of(LINKED), (WantedDisk("/dev/sda", "sda"),)
    disks = offer.meant("No", [LINK, "/dev/disk/by-id/wwn-B"], known)
    offer.check("No", disks, known)
    assert disks == (WantedDisk(LINK, "sda"), WantedDisk("/dev/disk/by-id/wwn-B", identity="wwid:B"))
    assert without(known, disks) == (), "nothing is left out"
    with pytest.raises(RequestError, match="names one disk twice"):
        offer.meant("No", [LINK, "/dev/sda"], known)


def test_a_disk_that_was_named_by_its_link_is_not_one_of_which_nobody_spoke() -> None:
    by_link, by_name = WantedDisk(LINK), WantedDisk("/dev/sda")
    assert Offer.of(LINKED).unsaid([by_link], ()) == ()
    other_way = msgspec.structs.replace(LINKED, bound=[BoundDisk(id="", device=LINK)])
    assert Offer.of(other_way).unsaid([WantedDisk("/dev/sda", "sda")], ()) == ()
    assert Offer.of(other_way).unsaid([by_name], ()) == ()
    unknown = msgspec.structs.replace(LINKED, available=[])
    assert Offer.of(unknown).unsaid([by_link], ()) == (WantedDisk("/dev/sda", "sda"),), "nobody can tell"


def test_one_path_speaks_of_one_disk_also_where_another_was_called_so() -> None:
    """Names were changed by a boot: what stands there is meant, and of the other nobody spoke."""
    swapped = AgentReport(
        bound=[BoundDisk(id="sda", device="/dev/sda"), BoundDisk(id="sdb", device="/dev/sdb")],
        available=[
            AvailableDisk(device="/dev/sda", sectors=8, identity="wwid:B", id="sdb"),
            AvailableDisk(device="/dev/sdb", sectors=8, identity="wwid:A", id="sda"),
        ],
    )
    assert Offer.of(swapped).unsaid([WantedDisk("/dev/sda")], ()) == (WantedDisk("/dev/sda", "sda"),)

"""Which disks of a machine could be protected, as its agent says: pure."""

from __future__ import annotations

import msgspec
import pytest

from config_server.disks import Offer
from config_server.inventory import Machine
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import DiskTooLargeError, RequestError
from shared.messages import Policy
from shared.status import AgentDisk, AgentReport, AvailableDisk

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
    base = Machine("web1", protected=True, disks=("/dev/sdz",), policy=Policy(), created_ns=0)
    return msgspec.structs.replace(base, **changes)


def test_what_is_captured_or_offered_is_taken_and_all_else_has_its_reason() -> None:
    OFFER.check("No", ["/dev/sdb", "/dev/sde", "/dev/sdf"])
    with pytest.raises(RequestError, match="/dev/sdg cannot be protected: it is read-only"):
        OFFER.check("No", ["/dev/sdb", "/dev/sdg"])
    with pytest.raises(RequestError, match="/dev/sdz is none of its disks"):
        OFFER.check("No", ["/dev/sdz"])
    Offer.of(None).check("No", ["/dev/sdz"])
    with pytest.raises(RequestError, match="names none"):
        Offer.of(AgentReport()).check("No", ["/dev/sda"])


def test_a_disk_is_measured_whether_captured_or_only_offered() -> None:
    OFFER.check_sizes(["/dev/sdb", "/dev/sdz"])
    with pytest.raises(DiskTooLargeError):
        OFFER.check_sizes(["/dev/sdb", "/dev/sdf"])


def test_a_captured_disk_is_wanted_by_its_stable_id_if_that_can_be_one() -> None:
    assert OFFER.wanted(["/dev/sdb", "/dev/sdd", "/dev/sdf"]) == (
        WantedDisk("/dev/sdb", id="data"),
        WantedDisk("/dev/sdd"),
        WantedDisk("/dev/sdf"),
    )


def test_what_is_not_captured_is_what_the_wish_before_meant_unless_that_is_captured_elsewhere() -> None:
    away = WantedDisk("/dev/sdf", id="old", identity="serial:7")
    moved = WantedDisk("/dev/sdg", id="data")
    before = Wish(mark=Mark("x", 1, "a"), verb=Verb.STOP, disks=(away, moved, WantedDisk("/dev/sdb", id="x")))
    assert OFFER.wanted(["/dev/sdb", "/dev/sdf", "/dev/sdg", "/dev/sdh"], before) == (
        WantedDisk("/dev/sdb", id="data"),
        away,
        WantedDisk("/dev/sdg"),
        WantedDisk("/dev/sdh"),
    )


def test_protected_is_what_is_captured_or_wanted_and_nothing_once_that_was_ended() -> None:
    captured = ["/dev/sdb", "/dev/sdd", "/dev/sde"]
    assert OFFER.protected(None) == captured
    assert OFFER.protected(machine()) == [*captured, "/dev/sdz"]
    assert OFFER.protected(machine(protected=False)) == [*captured, "/dev/sdz"], "it may be away just now"
    for nothing in (Offer.of(None), Offer.of(AgentReport(disks=[AgentDisk(name="sda")]))):
        assert nothing.protected(machine(protected=False)) == ["/dev/sdz"], "as it was captured"
        assert nothing.protected(machine()) == ["/dev/sdz"]
        assert nothing.protected(machine(protected=False, ended=True)) == []
    assert OFFER.protected(machine(protected=False, ended=True)) == []


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

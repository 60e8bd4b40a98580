"""What an agent is told, by what its database knows: without a server, over SQLite."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest
from sqlalchemy import Connection, select

from config_server.operations import desired_state
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.store import inventory, restored, sqlite
from config_server.store.schema import events
from shared.desired import Verb, WantedDisk, Wish
from shared.status import AgentReport, AvailableDisk, BoundDisk
from tests.databases import copied

NAME: Final = "web1"
START_NS: Final = 1_800_000_000 * SECOND_NS


def put_back(backup: Connection, second: int) -> Connection:
    restored.prepare(backup, START_NS + second * SECOND_NS)
    return backup


def act(
    db: Connection, verb: Verb, second: int, *disks: WantedDisk, servers: str = "", identity: str = ""
) -> Wish:
    made = inventory.act(
        db, NAME, verb, START_NS + second * SECOND_NS, disks=disks, process_servers=tuple(servers.split()), identity=identity
    )  # fmt: skip
    assert made.wish is not None
    return made.wish


def told(db: Connection, report: AgentReport, second: int = 100) -> Wish | None:
    inventory.ensure_machine(db, NAME, START_NS)
    return desired_state.answer(
        db, NAME, report.wish, START_NS + second * SECOND_NS,
        offer=Offer.of(report), identity=report.identity, is_the_machine=True, may_leave_entries=True,
    ).desired.wish  # fmt: skip


def codes(db: Connection) -> list[str]:
    return [*db.scalars(select(events.c.code).where(events.c.code != "").order_by(events.c.id))]


SDA: Final = WantedDisk("/dev/sda", "sda")
BOUND: Final = [BoundDisk(id="sda", device="/dev/sda")]


@pytest.mark.parametrize("protects", [True, False])
def test_a_stop_from_before_a_restore_does_not_stop_a_machine_on_other_hardware(protects: bool) -> None:
    """It was protected again behind the backup, and its mainboard exchanged: so its agent has no wish, and goes by its configuration."""
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, SDA, identity="old")
    act(db, Verb.STOP, 1, identity="old")
    backup = copied(db)
    act(db, Verb.PROTECT, 2, SDA, identity="old")
    db = put_back(backup, 3)
    report = AgentReport(identity="new", bound=BOUND if protects else [])
    heard = told(db, report)
    if protects:
        assert heard is None
        assert codes(db) == ["US611", "US612"]
        assert not inventory.machine(db, NAME).ended
    else:  # nothing is lost by it
        assert heard is not None
        assert (heard.verb, codes(db)) == (Verb.STOP, ["US612"])
    assert told(db, report) == heard, "and so it stays"


@pytest.mark.parametrize("said", ["the same", "another", "another, then the same"])
def test_who_acts_by_what_a_backup_says_moves_no_machine_back_to_a_former_process_server(said: str) -> None:
    """It was moved to ps2 behind the backup, and whoever assigns a policy names the process servers that are known."""
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, SDA, servers="ps1:9443")
    backup = copied(db)
    moved = act(db, Verb.PROTECT, 1, SDA, servers="ps2:9443")
    db = put_back(backup, 2)
    if said.startswith("another"):
        act(db, Verb.PROTECT, 3, SDA, servers="ps3:9443")
    if said.endswith("the same"):
        [known] = inventory.machines(db)
        assert known.wish is not None
        act(db, Verb.PROTECT, 4, SDA, servers=" ".join(known.wish.process_servers))
    heard = told(db, AgentReport(wish=moved, bound=BOUND))
    assert heard is not None
    assert heard.mark.number > moved.mark.number, "it is an act, and the agent goes by it"
    assert (heard.process_servers, codes(db)) == (
        (("ps2:9443",), ["US636"]) if said == "the same" else (("ps3:9443",), [])
    )
    assert told(db, AgentReport(wish=heard, bound=BOUND)) == heard
    after = act(db, Verb.PROTECT, 200, SDA, servers="ps1:9443")
    assert told(db, AgentReport(wish=heard, bound=BOUND), 201) == after, "now it is said"


def test_who_was_named_by_a_link_before_it_ever_reported_is_told_when_it_has_looked_where_that_leads() -> (
    None
):
    """Its configuration has the disk by another name; taken for another disk it would be refused, for ever."""
    db = sqlite.connect(":memory:")
    link = "/dev/disk/by-id/wwn-A"
    wish = act(db, Verb.PROTECT, 0, WantedDisk(link))
    report = AgentReport(bound=BOUND)
    assert told(db, report) is None, "it has not looked yet"
    there = AvailableDisk(device="/dev/sda", identity="wwid:A", id="sda", links=[link])
    report = msgspec.structs.replace(report, available=[there])
    assert (told(db, report), codes(db)) == (wish, [])
    report = msgspec.structs.replace(report, bound=[*BOUND, BoundDisk(id="sdb", device="/dev/sdb")])
    heard = told(db, report)
    assert heard is not None
    assert ([disk.id for disk in heard.disks], codes(db)) == ([None, "sdb"], ["US617"])

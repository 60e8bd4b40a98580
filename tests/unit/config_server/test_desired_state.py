"""What an agent is told, by what its database knows: without a server, over SQLite."""

from __future__ import annotations

import sqlite3
from typing import Final

import pytest

from config_server import database, desired_state, inventory, restored
from config_server.clock import SECOND_NS
from config_server.disks import Offer
from shared.desired import Verb, WantedDisk, Wish
from shared.status import AgentReport, BoundDisk

NAME: Final = "web1"
START_NS: Final = 1_800_000_000 * SECOND_NS


def copied(db: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None)
    copy.row_factory = sqlite3.Row
    db.backup(copy)
    return copy


def put_back(backup: sqlite3.Connection, second: int) -> sqlite3.Connection:
    restored.prepare(backup, START_NS + second * SECOND_NS)
    return backup


def act(
    db: sqlite3.Connection, verb: Verb, second: int, *disks: WantedDisk, servers: str = "", identity: str = ""
) -> Wish:
    made = inventory.act(
        db, NAME, verb, START_NS + second * SECOND_NS, disks=disks, process_servers=tuple(servers.split()), identity=identity
    )  # fmt: skip
    assert made.wish is not None
    return made.wish


def told(db: sqlite3.Connection, report: AgentReport, second: int = 100) -> Wish | None:
    inventory.ensure_machine(db, NAME, START_NS)
    return desired_state.answer(
        db, NAME, report.wish, START_NS + second * SECOND_NS,
        offer=Offer.of(report), identity=report.identity, is_the_machine=True, may_leave_entries=True,
    ).desired.wish  # fmt: skip


def codes(db: sqlite3.Connection) -> list[str]:
    return [row["code"] for row in db.execute("SELECT code FROM events WHERE code != '' ORDER BY id")]


SDA: Final = WantedDisk("/dev/sda", "sda")
BOUND: Final = [BoundDisk(id="sda", device="/dev/sda")]


@pytest.mark.parametrize("protects", [True, False])
def test_a_stop_from_before_a_restore_does_not_stop_a_machine_on_other_hardware(protects: bool) -> None:
    """It was protected again behind the backup, and its mainboard exchanged: so its agent has no wish, and goes by its configuration."""
    db = database.connect(":memory:")
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

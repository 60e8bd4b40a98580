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
from shared.desired import Mark, Verb, WantedDisk, Wish
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
    act(db, Verb.PROTECT, 0, WantedDisk(link))
    report = AgentReport(bound=BOUND)
    assert told(db, report) is None, "it has not looked yet"
    there = AvailableDisk(device="/dev/sda", identity="wwid:A", id="sda", links=[link])
    report = msgspec.structs.replace(report, available=[there])
    heard = told(db, report)
    assert heard is not None
    assert (heard.disks, codes(db)) == ((WantedDisk(link, "sda"),), [])
    report = msgspec.structs.replace(report, bound=[*BOUND, BoundDisk(id="sdb", device="/dev/sdb")])
    heard = told(db, report)
    assert heard is not None
    assert ([disk.id for disk in heard.disks], codes(db)) == (["sda", "sdb"], ["US617"])


def there(**ids: str) -> list[AvailableDisk]:
    """By name: "ID WORLD-WIDE NAME", with a link that is named so, too."""
    found = []
    for name, words in ids.items():
        id_, _, bears = words.rpartition(" ")
        links = [f"/dev/disk/by-id/wwn-{bears}"]
        found.append(
            AvailableDisk(device=f"/dev/{name}", sectors=8, identity=f"wwid:{bears}", id=id_, links=links)
        )
    return found


SDB: Final = WantedDisk("/dev/sdb", "sdb")
BOTH: Final = [*BOUND, BoundDisk(id="sdb", device="/dev/sdb")]
SWAPPED: Final = AgentReport(bound=BOTH, available=there(sda="sdb B", sdb="sda A"))


def test_a_disk_that_stays_beside_one_that_is_called_as_it_was_is_dropped_by_no_later_act() -> None:
    """Names were swapped by a boot, and a new database knew of none."""
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, WantedDisk("/dev/sda"))
    for second in (100, 101):
        heard = told(db, SWAPPED, second)
        assert heard is not None
        assert [disk.id for disk in heard.disks] == ["sdb", "sda"]
    goes_by = msgspec.structs.replace(SWAPPED, wish=heard)
    assert told(db, goes_by, 102) == heard
    known = inventory.machine(db, NAME).disks
    assert [disk.id for disk in known] == ["sdb", "sda"]
    names = [disk.name for disk in Offer.of(goes_by).candidates(inventory.machine(db, NAME)) if disk.wanted]
    assert Offer.of(goes_by).meant("No", names, known) == known, "who assigns a policy names both"
    assert codes(db) == ["US617"]


def test_what_is_told_are_the_ids_by_which_it_was_judged_and_no_path_that_another_may_have_after_a_boot() -> (
    None
):
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, WantedDisk("/dev/sda"), WantedDisk("/dev/sdb"))
    assert told(db, msgspec.structs.replace(SWAPPED, available=[])) is None, "it may be another's by now"
    heard = told(db, SWAPPED)
    assert heard is not None
    assert heard.disks == (WantedDisk("/dev/sda", "sdb"), WantedDisk("/dev/sdb", "sda"))
    assert codes(db) == [], "nobody is left out"
    new = AgentReport(available=there(sda="X"))
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, WantedDisk("/dev/sda"))
    heard = told(db, new)
    assert heard is not None
    assert heard.disks == (WantedDisk("/dev/sda", identity="wwid:X"),)


def test_what_is_told_stays_so_when_a_database_is_put_back_to_where_it_knew_a_path_alone() -> None:
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, WantedDisk("/dev/sda"), WantedDisk("/dev/sdb"))
    backup = copied(db)
    heard = told(db, SWAPPED)
    assert told(backup, msgspec.structs.replace(SWAPPED, wish=heard)) == heard
    assert inventory.machine(backup, NAME).wish == heard


def test_a_link_that_was_said_to_go_before_its_agent_ever_reported_is_the_disk_to_which_it_leads() -> None:
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, WantedDisk("/dev/sda"), WantedDisk("/dev/disk/by-id/wwn-B"))
    act(db, Verb.PROTECT, 1, WantedDisk("/dev/sda"))
    heard = told(db, AgentReport(bound=BOTH, available=there(sda="sda A", sdb="sdb B")))
    assert heard is not None
    assert (heard.disks, codes(db)) == ((SDA,), [])


def test_an_act_that_names_a_disk_again_before_its_id_is_reported_names_one_disk() -> None:
    """Two acts within two seconds, say by scripts: the agent has bound the disk of the first one, and did not say so yet."""
    db = sqlite.connect(":memory:")
    before = AgentReport(bound=BOUND, available=there(sda="sda A", sdc="C"))
    act(db, Verb.PROTECT, 0, SDA, WantedDisk("/dev/disk/by-id/wwn-C"))
    first = told(db, before)
    assert first is not None
    [_, known] = inventory.machine(db, NAME).disks
    assert known.identity == "wwid:C"
    offer = Offer.of(before)
    words = ["sda", "/dev/disk/by-id/wwn-C"]
    act(db, Verb.PROTECT, 1, *offer.meant("No", words, inventory.machine(db, NAME).disks))
    bound = [*BOUND, BoundDisk(id="sdc", device="/dev/disk/by-id/wwn-C", identity="wwid:C")]
    heard = told(db, AgentReport(wish=first, bound=bound, available=there(sda="sda A", sdc="sdc C")))
    assert heard is not None
    assert ([disk.id for disk in heard.disks], codes(db)) == (["sda", "sdc"], [])


FAILED: Final = AgentReport(state="failed", available=there(sda="sda A", sdb="sdb B"))
"""Last words of an agent that is older than 2026-11-27, or of one that could not read what it goes by."""


@pytest.mark.parametrize(
    "case", ["an act without a look", "a stop from before a restore", "an act by a backup"]
)
def test_who_does_not_say_what_he_protects_is_told_nothing_that_could_drop_some_of_it(case: str) -> None:
    db = sqlite.connect(":memory:")
    told(db, AgentReport(bound=BOUND, available=there(sda="sda A", sdb="sdb B")))
    match case:
        case "an act without a look":
            act(db, Verb.PROTECT, 0, SDA)
        case "a stop from before a restore":
            act(db, Verb.STOP, 0)
            put_back(db, 1)
        case "an act by a backup":
            put_back(db, 1)
            act(db, Verb.PROTECT, 2, SDA)
    answer = desired_state.answer(db, NAME, None, START_NS, offer=Offer.of(FAILED))
    assert (answer.desired.wish, codes(db)) == (None, [])
    assert answer.waits == inventory.machine(db, NAME).wish, "somebody says so when that lasts"
    told(db, msgspec.structs.replace(FAILED, bound=BOTH))
    assert codes(db) == ["US611" if "stop" in case else "US617"]


def test_one_that_goes_by_named_disks_hears_what_is_wanted_whatever_it_cannot_say() -> None:
    db = sqlite.connect(":memory:")
    wish = act(db, Verb.PROTECT, 0, SDA)
    goes_by = msgspec.structs.replace(FAILED, wish=wish)
    stop = act(db, Verb.STOP, 1)
    heard = told(db, goes_by)
    assert heard is not None
    assert heard.mark == stop.mark
    act(db, Verb.PROTECT, 2, SDB)
    heard = told(db, msgspec.structs.replace(FAILED, wish=heard))
    assert heard is not None
    assert heard.disks == (SDB,)


def test_a_stop_from_before_a_restore_stops_no_machine_whose_first_words_on_other_hardware_say_nothing() -> (
    None
):
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, SDA, identity="old")
    act(db, Verb.STOP, 1, identity="old")
    db = put_back(copied(db), 3)
    for second, report in enumerate((FAILED, AgentReport(state="ordered", bound=BOUND), FAILED)):
        assert told(db, msgspec.structs.replace(report, identity="new"), 100 + second) is None
    assert codes(db) == ["US611", "US612"]


def test_what_is_not_told_because_its_agent_has_not_looked_waits_and_is_no_secret() -> None:
    db = sqlite.connect(":memory:")
    wish = act(db, Verb.PROTECT, 0, WantedDisk("/dev/disk/by-id/wwn-B"))
    offer = Offer.of(AgentReport(bound=BOUND))
    answer = desired_state.answer(db, NAME, None, START_NS, offer=offer)
    assert (answer.desired.wish, answer.waits) == (None, wish)
    act(db, Verb.PROTECT, 1, SDA)
    answer = desired_state.answer(db, NAME, None, START_NS, offer=offer)
    assert answer.waits is None
    assert answer.desired.wish is not None, "who is named by an id is known"


@pytest.mark.parametrize("verb", [Verb.STOP, Verb.PROTECT])
def test_a_former_server_that_is_reached_once_more_and_its_successor_say_that_there_is_another(
    verb: Verb,
) -> None:
    former = sqlite.connect(":memory:")
    act(former, Verb.PROTECT, 0, SDA, SDB)
    wish = told(former, protecting(None, SDA, SDB), 1)
    successor = put_back(copied(former), 2)
    assert told(successor, protecting(wish, SDA, SDB), 3) == wish
    act(successor, verb, 4, *(() if verb is Verb.STOP else (SDA,)))
    wish = told(successor, protecting(wish, SDA, SDB), 5)
    assert wish is not None
    told(successor, protecting(wish, *wish.disks), 6)  # it is heard
    for second, db in enumerate((former, successor), 10):
        heard = told(db, protecting(wish, *wish.disks), second)
        assert heard is not None
        wish = heard if heard.mark.number > wish.mark.number else wish
    query = select(events.c.what).where(events.c.object == NAME)
    [[first], [second]] = [[*db.scalars(query)] for db in (former, successor)]
    assert "it is not known which is the later" in first
    stays = "went by an earlier act than this database has, and is told again: stop"
    assert (stays if verb is Verb.STOP else "goes on protecting disks") in second


def protecting(wish: Wish | None, *disks: WantedDisk) -> AgentReport:
    return AgentReport(
        wish=wish,
        bound=[BoundDisk(id=disk.id or "", device=disk.device) for disk in disks],
        available=there(sda="sda", sdb="sdb"),
    )


def test_one_that_goes_by_a_newer_versions_verb_protects_what_it_says_that_it_captures() -> None:
    db = sqlite.connect(":memory:")
    act(db, Verb.PROTECT, 0, SDA)
    newer = Wish(mark=Mark("newer", 9, "2027-01-15T07:00:00.000000000Z-x"), verb=Verb.OTHER)
    restored.prepare(db, START_NS + SECOND_NS)
    inventory.act(db, NAME, Verb.PROTECT, START_NS + 2 * SECOND_NS, disks=(SDA,), known=newer.mark)
    heard = told(db, protecting(newer, SDA, SDB), 3)
    assert heard is not None
    assert [disk.id for disk in heard.disks] == ["sda", "sdb"], "nobody said that it shall go"
    assert codes(db) == ["US617"]


def test_a_disk_for_which_an_act_has_no_room_is_not_said_to_be_kept_and_dropped() -> None:
    db = sqlite.connect(":memory:")
    wanted = [WantedDisk(f"/dev/d{n}", f"d{n}") for n in range(inventory.MOST_DISKS)]
    act(db, Verb.PROTECT, 0, *wanted)
    report = protecting(None, *wanted[1:], SDA)
    assert told(db, report, 1) is None
    assert told(db, report, 100) is None
    assert codes(db) == ["US617"], "once"
    act(db, Verb.PROTECT, 101, *wanted[:-1])
    heard = told(db, report, 102)
    assert heard is not None
    assert (len(heard.disks), SDA in heard.disks) == (inventory.MOST_DISKS, True)

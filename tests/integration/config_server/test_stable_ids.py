"""Acts are of disks, not of paths, and what leaves is said: whatever disks are away, or are called otherwise since, and however little the
database knows. Against a real config server over HTTPS."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server.cli.protection_commands import _chosen
from config_server.data_folder import backup, restoring
from shared import api
from shared.api.events import EventQuery, EventView
from shared.api.machines import MachineView
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.desired import Verb, WantedDisk, Wish
from shared.errors import DisksKeptError, FewerDisksError, RequestError, WishInDoubtError
from shared.status import AgentDisk, AvailableDisk, BoundDisk
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, running
from tests.obedient_agent import ObedientAgent, obedient_agent


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    async with obedient_agent(server, files) as agent:
        yield agent


async def protect(operator: RestClient, *disks: str, **more: object) -> MachineView:
    named = [disk if disk.startswith("id:") else f"/dev/{disk}" for disk in disks]
    body = msgspec.convert({"disks": [disk.removeprefix("id:") for disk in named], **more}, Protection)
    return await operator.call(api.PROTECT, body, machine="web1")


async def as_the_command_line_does(operator: RestClient) -> None:
    """`machine protect web1 --policy default`."""
    disks = await _chosen(operator, "web1", yes=False)
    await operator.call(api.PROTECT, Protection(disks=disks, policy_name="default"), machine="web1")


async def events(operator: RestClient, code: str) -> list[EventView]:
    found = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    return [event for event in found if event.code == code]


def disks_of(agent: ObedientAgent) -> list[tuple[str, str | None]]:
    assert agent.wish is not None
    assert agent.wish.verb is Verb.PROTECT
    return [(disk.device.removeprefix("/dev/"), disk.id) for disk in agent.wish.disks]


def standing(**ids: str) -> list[AgentDisk]:
    return [
        AgentDisk(name=id_, device=f"/dev/{name}", sectors=8, mode="ordered") for name, id_ in ids.items()
    ]


def there(**identities: str) -> list[AvailableDisk]:
    """By name: "ID wwid:…", or what a disk bears that never was protected."""
    found = []
    for name, words in identities.items():
        id_, _, identity = words.rpartition(" ")
        found.append(AvailableDisk(device=f"/dev/{name}", sectors=8, identity=identity, id=id_))
    return found


ALL = [("sda", "sda"), ("sdb", "sdb"), ("sdc", "sdc")]


@pytest.mark.parametrize("again", ["without a name", "by the same words"])
async def test_a_disk_that_is_away_while_another_has_its_name_stays_wanted(
    operator: RestClient, web1: ObedientAgent, again: str
) -> None:
    web1.captured = ("sda", "sdb", "sdc")
    await web1.report()
    await protect(operator, "sda", "sdb", "sdc")
    await web1.report()
    shifted = standing(sda="sda", sdb="sdc")
    await web1.report(disks=shifted)
    if again == "without a name":
        await as_the_command_line_does(operator)
    else:
        await protect(operator, "sda", "sdb", "sdc")
    await web1.report(disks=shifted)
    assert disks_of(web1) == ALL
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda", "sdb")
    await protect(operator, "sda", "sdb", fewer=True)
    await web1.report(disks=shifted)
    assert disks_of(web1) == [("sda", "sda"), ("sdb", "sdc")], "/dev/sdb is what stands there"


async def test_a_disk_is_named_by_where_it_stands_and_a_stranger_that_has_its_name_is_not_taken_in(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda",)
    await web1.report()
    await protect(operator, "sda")
    await web1.report()
    renamed, found = standing(sdb="sda"), there(sda="wwid:X", sdb="sda wwid:A")
    await web1.report(disks=renamed, available=found)
    await as_the_command_line_does(operator)
    await web1.report(disks=renamed, available=found)
    assert disks_of(web1) == [("sda", "sda")]
    await protect(operator, "sdb")
    await web1.report(disks=renamed, available=found)
    assert disks_of(web1) == [("sdb", "sda")]
    with pytest.raises(FewerDisksError, match="disk sda"):
        await protect(operator, "sda")
    await protect(operator, "sda", fewer=True)
    await web1.report(disks=renamed, available=found)
    assert web1.wish is not None
    assert web1.wish.disks == (WantedDisk("/dev/sda", identity="wwid:X"),)


async def test_a_disk_that_was_exchanged_is_named_by_the_path_at_which_the_other_stands(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda", "sdb")
    await web1.report()
    await protect(operator, "sda", "sdb")
    await web1.report()
    left = standing(sda="sda")
    await web1.report(disks=left, available=there(sda="sda wwid:A", sdb="wwid:NEW"))
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda", "sdb")
    await protect(operator, "sda", "sdb", fewer=True)
    await web1.report(disks=left)
    assert web1.wish is not None
    assert web1.wish.disks == (WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", identity="wwid:NEW"))
    await web1.report(disks=left, available=there(sda="sda wwid:A", sdb="gpt:1"))
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    await web1.report()


async def test_what_a_configuration_says_a_disk_bears_stays_said(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda",)
    bound = [BoundDisk(id="data", device="/dev/sda", identity="wwid:A")]
    now = standing(sda="data")
    await web1.report(disks=now, bound=bound)
    await protect(operator, "sda", "sdb")
    await web1.report(disks=now, bound=bound)
    assert web1.wish is not None
    assert web1.wish.disks == (WantedDisk("/dev/sda", "data", "wwid:A"), WantedDisk("/dev/sdb"))


async def test_a_new_disk_is_named_by_its_id_as_soon_as_its_agent_has_told_it(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    await protect(operator, "sda", "sdb")
    await web1.report()
    bound = [BoundDisk(id="sda", device="/dev/sda"), BoundDisk(id="sdb-2", device="/dev/sdb")]
    await web1.report(bound=bound)
    await web1.report(bound=bound, disks=standing(sda="sda", sdx="sdb-2"))
    await as_the_command_line_does(operator)
    await web1.report(bound=bound)
    assert disks_of(web1) == [("sda", "sda"), ("sdb", "sdb-2")]


# ---- what leaves is said


@pytest.mark.parametrize("how", ["without disks", "before wishes", "of hardware that storage does not name"])
async def test_fewer_disks_have_to_be_said_whatever_is_known_of_a_machine(tmp_path: Path, how: str) -> None:
    config = config_for(tmp_path)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
    db = sqlite3.connect(config.data_dir / "state.db")
    with db:
        if how == "without disks":
            [incarnation] = db.execute(
                "SELECT json_extract(value, '$[0]') FROM settings WHERE name = 'incarnations'"
            ).fetchone()
            mark = f'{{"incarnation": "{incarnation}", "number": 2, "act": "2026-11-27T00:00:00Z-0"}}'
            db.execute(
                "INSERT INTO machines (name, protected, disks, created_ns, wish, wish_ns, wish_incarnation)"
                " VALUES ('web1', 1, '[]', 0, ?, 1, ?)",
                (f'{{"mark": {mark}, "verb": "protect"}}', incarnation),
            )
        elif how == "before wishes":
            db.execute(
                "INSERT INTO machines (name, protected, disks, created_ns) VALUES ('web1', 1, '[{\"device\": \"/dev/sda\"}]', 0)"
            )
    db.close()
    hardware: dict[str, Any] = (
        {"identity": "smbios:1/2", "boot": "b"} if how.startswith("of hardware") else {}
    )
    async with (
        running(config) as server,
        server.operator() as operator,
        obedient_agent(server, files) as web1,
    ):
        web1.captured = ("sda", "sdb")
        await web1.report(**hardware)
        await web1.report(**hardware)
        web1.captured = ("sda",)
        await web1.report(**hardware)
        with pytest.raises(FewerDisksError, match="/dev/sdb"):
            await protect(operator, "sda")
        await as_the_command_line_does(operator)
        await web1.report(**hardware)
        assert disks_of(web1) == [("sda", "sda"), ("sdb", "sdb")]


async def test_what_an_agent_protects_beside_an_act_that_was_made_before_it_ever_reported_stays(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await protect(operator, "sda", offline=True)
    web1.captured = ("sda", "sdb")
    await web1.report()
    assert disks_of(web1) == [("sda", "sda"), ("sdb", "sdb")] or disks_of(web1) == [
        ("sda", None), ("sdb", "sdb"),
    ]  # fmt: skip
    [event] = await events(operator, DisksKeptError.code)
    assert (event.severity, "/dev/sdb" in event.what) == ("warning", True)
    told = web1.wish
    await web1.report()
    assert web1.wish == told
    assert len(await events(operator, DisksKeptError.code)) == 1
    await protect(operator, "sda", fewer=True)
    await web1.report()
    assert [name for name, _ in disks_of(web1)] == ["sda"], "now it was said"


async def test_acts_that_an_agent_has_not_heard_of_drop_what_each_of_them_said(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda", "sdb", "sdc")
    await web1.report()
    await protect(operator, "sda", "sdb", "sdc")
    await web1.report()
    await protect(operator, "sda", "sdb", fewer=True)
    await protect(operator, "sda", fewer=True)
    await web1.report()
    assert disks_of(web1) == [("sda", "sda")]
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    await protect(operator, "sdb")
    await web1.report()
    assert [name for name, _ in disks_of(web1)] == ["sdb"]


async def lives(tmp_path: Path, *, before: str, behind: str) -> tuple[TlsFiles, Wish]:
    """Of a backup between two acts; what the agent goes by in the end."""
    config, file = config_for(tmp_path), tmp_path / "backup.tar"
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as web1:
            web1.captured = ("sda",)
            web1.available.append(AvailableDisk(device="/dev/sdc", sectors=8))
            await web1.report()
            await protect(operator, *before.split())
            web1.captured = tuple(before.split())
            await web1.report()
            await web1.report()
            if behind == "stop":
                await operator.call(api.UNPROTECT, Nothing(), machine="web1")
                backup.backup(config, file)
                await protect(operator, *before.split())
            elif behind.startswith("fewer"):
                await protect(operator, *behind.split()[1:], fewer=True)
                backup.backup(config, file)
                await protect(operator, *before.split())
            else:
                backup.backup(config, file)
                await protect(operator, *behind.split())
                await web1.report()
            assert web1.wish is not None
            goes_by = web1.wish
    restoring.restore(config, file)
    return files, goes_by


async def test_who_acts_by_what_a_backup_says_drops_no_disk_that_it_does_not_know(tmp_path: Path) -> None:
    files, goes_by = await lives(tmp_path, before="sda", behind="sda sdb sdc")
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        await as_the_command_line_does(operator)
        async with obedient_agent(server, files) as web1:
            web1.wish, web1.captured = goes_by, ("sda", "sdb", "sdc")
            await web1.report()
            assert [name for name, _ in disks_of(web1)] == ["sda", "sdb", "sdc"]
            assert web1.wish.mark.number > goes_by.mark.number
            [event] = await events(operator, DisksKeptError.code)
            assert "/dev/sdb, /dev/sdc" in event.what


@pytest.mark.parametrize("unheard", ["stop", "fewer sda"])
async def test_what_was_said_before_a_backup_and_not_heard_stops_nobody_and_drops_nothing(
    tmp_path: Path, unheard: str
) -> None:
    files, goes_by = await lives(tmp_path, before="sda sdb", behind=unheard)
    async with (
        running(config_for(tmp_path)) as server,
        server.operator() as operator,
        obedient_agent(server, files) as web1,
    ):
        web1.wish, web1.captured = goes_by, ("sda", "sdb")
        for _ in range(3):
            await web1.report()
        assert web1.wish == goes_by
        [event] = await events(operator, WishInDoubtError.code)
        assert "from before this database was put back" in event.cause
        await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        await web1.report()
        assert web1.wish.verb is Verb.STOP, "now it is said"


async def test_a_stop_from_before_a_restore_is_not_told_to_who_protects_by_its_configuration_alone(
    tmp_path: Path,
) -> None:
    config, file = config_for(tmp_path), tmp_path / "backup.tar"
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as web1:
            await web1.report()
        await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        backup.backup(config, file)
    restoring.restore(config, file)
    async with (
        running(config) as server,
        server.operator() as operator,
        obedient_agent(server, files) as web1,
    ):
        reply = await web1.report()
        assert (web1.wish, reply.desired is not None) == (None, True)
        [event] = await events(operator, WishInDoubtError.code)
        assert "/dev/sda" in event.what
        view = await operator.call(api.MACHINE, Nothing(), machine="web1")
        assert [error.code for error in view.errors if error.code == "US601"], "somebody has to say"
        await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        await web1.report()
        assert web1.wish is not None
        assert web1.wish.verb is Verb.STOP


async def test_a_stop_is_told_at_once_where_the_agent_protects_nothing(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ()
    await web1.report()
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    await web1.report()
    assert web1.wish is not None
    assert web1.wish.verb is Verb.STOP


async def test_an_id_that_is_nobodys_is_refused(operator: RestClient, web1: ObedientAgent) -> None:
    await web1.report()
    with pytest.raises(RequestError, match="id of none of its disks"):
        await protect(operator, "id:sdq", force=True)
    await protect(operator, "id:sda")
    await web1.report()
    assert disks_of(web1) == [("sda", "sda")]

"""What operators want of machines, and what their agents are told: against a real config server over HTTPS."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from config_server import background
from config_server.data_folder import backup, restoring
from config_server.operations import desired_state
from config_server.rules import wish_view
from shared import api
from shared.api.audit import AuditView
from shared.api.events import EventQuery, EventView
from shared.api.machines import MachineView
from shared.api.policies import Policy
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.desired import Desired, Mark, Settings, Verb, WantedDisk, Wish
from shared.errors import (
    DiskTooLargeError,
    FewerDisksError,
    MachineNotFoundError,
    NeverReportedError,
    RequestError,
    SaidSinceError,
    WishInDoubtError,
    WishUntakenError,
)
from shared.status import AvailableDisk
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, running
from tests.obedient_agent import ObedientAgent, obedient_agent


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    async with obedient_agent(server, files) as agent:
        yield agent


async def protect(operator: RestClient, *disks: str, **more: object) -> MachineView:
    body = msgspec.convert({"disks": [f"/dev/{disk}" for disk in disks], **more}, Protection)
    return await operator.call(api.PROTECT, body, machine="web1")


async def unprotect(operator: RestClient) -> MachineView:
    return await operator.call(api.UNPROTECT, Nothing(), machine="web1")


async def shown(operator: RestClient) -> MachineView:
    return await operator.call(api.MACHINE, Nothing(), machine="web1")


async def events(operator: RestClient, code: str | None = None) -> list[EventView]:
    found = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    return [event for event in found if code in (None, event.code)]


# ---- telling


async def test_an_upgrade_orders_nothing(operator: RestClient, web1: ObedientAgent) -> None:
    assert (await web1.report()).desired == Desired(settings=Settings()), "its own configuration"
    assert (await shown(operator)).wish is None


async def test_an_agent_is_told_and_shown_as_pending_until_it_says_that_it_goes_by_it(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    said = await protect(operator, "sda", "sdb", process_servers=["ps1:9443", "[2001:db8::1]:9443"])
    assert said.wish is not None
    assert (said.wish.verb, said.wish.disks) == ("protect", ["/dev/sda", "/dev/sdb"])
    assert said.wish.pending == said.wish.since
    told = await web1.report()
    assert told.desired is not None
    assert told.desired.wish is not None
    assert told.desired.wish.disks == (WantedDisk("/dev/sda", id="sda"), WantedDisk("/dev/sdb"))
    assert told.desired.wish.process_servers == ("ps1:9443", "[2001:db8::1]:9443")
    assert (await web1.report()).desired == told.desired
    after = await shown(operator)
    assert after.wish is not None
    assert after.wish.pending is None
    assert after.protected


async def test_a_held_report_is_answered_as_soon_as_something_else_is_wanted(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    held = asyncio.create_task(web1.report(wait_s=20))
    await protect(operator, "sda")
    async with asyncio.timeout(10):
        await held
    assert web1.wish is not None
    await web1.report()
    held = asyncio.create_task(web1.report(wait_s=20))
    await operator.call(api.POLICY_PUT, Policy(point_interval_s=60), policy="default", version="*")
    async with asyncio.timeout(10):
        await held
    assert web1.settings is not None
    assert web1.settings.point_interval_s == 60


async def test_an_agent_that_comes_back_is_told_at_once_and_one_that_does_not_obey_is_held_as_ever(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    await protect(operator, "sda")
    web1.obeys = False
    async with asyncio.timeout(10):
        told = await web1.report(wait_s=20)
    assert told.desired is not None
    held = asyncio.create_task(web1.report(wait_s=20))
    await asyncio.wait({held}, timeout=0.3)
    assert not held.done()
    await unprotect(operator)
    async with asyncio.timeout(10):
        found = (await held).desired
    assert found is not None
    assert found.wish is not None
    assert found.wish.verb is Verb.STOP


async def test_protection_ends_by_an_act_and_a_new_act_has_the_next_number(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    await protect(operator, "sda")
    await web1.report()
    ended = await unprotect(operator)
    assert (ended.state, ended.protected) == ("unprotected", False)
    assert "has not stopped yet" in ended.cause
    await web1.report()
    assert web1.wish is not None
    assert (web1.wish.verb, web1.wish.mark.number) == (Verb.STOP, 2)
    web1.captured = ()
    await web1.report()
    assert (await shown(operator)).cause == "its protection was ended"
    assert (await protect(operator, "sda")).protected
    await web1.report()
    assert web1.wish.mark.number == 3


async def test_a_twin_is_told_nothing(
    server: ConfigServer, operator: RestClient, files: TlsFiles, web1: ObedientAgent
) -> None:
    async with obedient_agent(server, files) as twin:
        for _ in range(8):
            await web1.report()
            await twin.report()
        await protect(operator, "sda")
        assert (await twin.report()).desired is None
        assert (await web1.report()).desired is not None


# ---- what is refused


async def test_a_machine_of_which_nothing_is_known_is_refused_with_what_to_do(operator: RestClient) -> None:
    with pytest.raises(MachineNotFoundError, match="never enrolled") as refused:
        await protect(operator, "sda")
    assert "token create agent web1" in refused.value.action
    assert "--offline" in refused.value.action
    recorded = await protect(operator, "sda", offline=True)
    assert recorded.state == "not-connected"
    with pytest.raises(NeverReportedError):
        await protect(operator, "sda")


async def test_what_was_recorded_before_its_agent_came_is_told_when_it_comes(
    operator: RestClient, web1: ObedientAgent
) -> None:
    with pytest.raises(NeverReportedError) as refused:
        await protect(operator, "sda")
    assert "Start its agent" in refused.value.action
    await protect(operator, "sda", offline=True)
    await web1.report()
    assert web1.wish is not None
    assert web1.wish.disks == (WantedDisk("/dev/sda", id="sda"),)


async def test_disks_that_the_agent_does_not_offer_are_refused_unless_forced(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.available.append(AvailableDisk(device="/dev/sdc", why_not="it is read-only"))
    await web1.report()
    with pytest.raises(RequestError, match="it is read-only"):
        await protect(operator, "sda", "sdc")
    with pytest.raises(RequestError, match="/dev/sdz is none of its disks") as refused:
        await protect(operator, "sda", "sdz")
    assert "/dev/sdb" in refused.value.cause
    assert (await protect(operator, "sda", "sdz", force=True)).protected
    assert (await protect(operator, "sda", "sdz")).protected, "it is wanted already"
    with pytest.raises(RequestError, match="/dev/sdy is none of its disks"):
        await protect(operator, "sda", "sdz", "sdy")


async def test_fewer_disks_than_before_have_to_be_said(operator: RestClient, web1: ObedientAgent) -> None:
    web1.captured = ("sda", "sdb")
    await web1.report()
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda")  # by its configuration, and nobody ever said anything here
    await protect(operator, "sda", "sdb")
    with pytest.raises(FewerDisksError, match="/dev/sda"):
        await protect(operator, "sdb")
    fewer = await protect(operator, "sdb", fewer=True)
    assert fewer.wish is not None
    assert fewer.wish.disks == ["/dev/sdb"]
    await unprotect(operator)
    assert (await protect(operator, "sda")).protected, "of what was ended nothing is dropped"


async def test_which_disks_may_go_can_be_named_and_no_other_goes(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.available.append(AvailableDisk(device="/dev/sdc", sectors=2048))
    await web1.report()
    await protect(operator, "sda", "sdb", "sdc")
    with pytest.raises(FewerDisksError) as refused:
        await protect(operator, "sda")
    assert refused.value.names == ["/dev/sdb", "/dev/sdc"]
    with pytest.raises(FewerDisksError) as refused:
        await protect(operator, "sda", gone=["/dev/sdb"], fewer=True)
    assert refused.value.names == ["/dev/sdb", "/dev/sdc"]
    after = (await protect(operator, "sda", gone=["/dev/sdb", "/dev/sdc"])).wish
    assert after is not None
    assert after.disks == ["/dev/sda"]


async def test_what_is_said_over_an_act_is_refused_where_another_holds_by_now(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    with pytest.raises(SaidSinceError, match="its agent goes by its configuration"):
        await protect(operator, "sda", over="another")
    first = (await protect(operator, "sda", over="")).wish
    assert first is not None
    await unprotect(operator)
    for over in ("", first.mark.act):
        with pytest.raises(SaidSinceError, match="something else was said since: what holds now is stop"):
            await protect(operator, "sda", over=over)
    stopped = (await shown(operator)).wish
    assert stopped is not None
    again = (await protect(operator, "sda", over=stopped.mark.act)).wish
    assert again is not None
    assert again.verb is Verb.PROTECT


async def test_fewer_disks_have_to_be_said_also_of_an_agent_that_captures_one_of_two_just_now(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda", "sdb")
    await web1.report()
    web1.captured, web1.available = ("sda",), []
    await web1.report(state="resync")
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda")
    await protect(operator, "sda", "sdb")
    await web1.report()
    assert web1.wish is not None
    assert [disk.device for disk in web1.wish.disks] == ["/dev/sda", "/dev/sdb"], "it keeps what is wanted"


async def test_fewer_disks_have_to_be_said_also_of_an_agent_that_captures_none_just_now(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.captured = ("sda", "sdb")
    await web1.report()
    web1.captured, web1.available = (), []
    await web1.report()  # as it does when it cannot start
    assert not (await shown(operator)).protected
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda", force=True)
    await protect(operator, "sda", "sdb", force=True)
    await web1.report()
    with pytest.raises(FewerDisksError, match="/dev/sdb"):
        await protect(operator, "sda")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"disks": []}, "disks"),
        ({"disks": ["sdq"]}, "/dev/NAME"),
        ({"disks": ["a/b"]}, "/dev/NAME"),
        ({"disks": ["/a/b"]}, "/dev/NAME"),
        ({"disks": ["/dev/sda", "sda"]}, "by two names"),
        ({"disks": ["/dev/" + "x" * 251], "force": True, "offline": True}, "no more than 255"),
        ({"disks": ["/dev/sda", "/dev/sda"]}, "each once"),
        ({"disks": ["/dev/sd\0b"], "force": True, "offline": True}, "cannot be printed"),
        ({"disks": ["/dev/sd\x1b[2J"], "force": True}, "cannot be printed"),
        ({"disks": ["/dev/sda"], "process_servers": ["ps1"]}, "HOST:PORT"),
        ({"disks": ["/dev/sda"], "process_servers": ["ps1:1", "ps1:1"]}, "twice"),
        ({"disks": ["/dev/sda"], "process_servers": ["ps1:1", "ps1:01"]}, "twice"),
        ({"disks": ["/dev/sda"], "process_servers": ["[::1]:1", "[::1]:01"]}, "twice"),
        ({"disks": ["/dev/sda"], "policy": {}, "policy_name": "gold"}, "name of another"),
        ({"disks": ["/dev/sda"], "policy_name": "gold"}, "gold"),
    ],
)
async def test_mistakes_are_named(
    operator: RestClient, web1: ObedientAgent, body: dict[str, object], named: str
) -> None:
    await web1.report()
    with pytest.raises((RequestError, Exception)) as refused:
        await operator.call_plain(api.PROTECT, body, {"machine": "web1"}, 0)
    assert refused.value.exit_code in (2, 3)  # type: ignore[attr-defined]
    assert named in f"{refused.value} {refused.value.action}"  # type: ignore[attr-defined]
    assert (await shown(operator)).wish is None


async def test_a_disk_that_no_page_blob_can_hold_is_refused_also_where_it_is_only_offered(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.available.append(AvailableDisk(device="/dev/sdc", sectors=9 << 31))
    await web1.report()
    with pytest.raises(DiskTooLargeError):
        await protect(operator, "sda", "sdc")


async def test_which_disks_there_are_and_why_not(operator: RestClient, web1: ObedientAgent) -> None:
    web1.available = [
        AvailableDisk(device="/dev/sdb", sectors=8, identity="serial:x"),
        AvailableDisk(device="/dev/sdc", why_not="it is read-only"),
    ]
    await web1.report()
    await protect(operator, "sda", "sdz", force=True)
    found = await operator.call(api.DISKS, Nothing(), machine="web1")
    assert found.seen_s is not None
    assert [(d.device, d.size_b, d.captured, d.wanted, d.why_not) for d in found.disks] == [
        ("/dev/sda", 1 << 20, True, True, ""),
        ("/dev/sdb", 4096, False, False, ""),
        ("/dev/sdc", 0, False, False, "it is read-only"),
        ("/dev/sdz", 0, False, True, "its agent does not name it"),
    ]


async def test_each_act_is_in_the_audit_log_with_what_was_before(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    await protect(operator, "sda")
    await unprotect(operator)
    ended, begun = (await operator.call(api.AUDIT, Page(limit=2))).entries
    assert (begun.action, ended.action) == ("machine.protect", "machine.unprotect")
    assert (begun.detail["before"]["wish"], begun.detail["before"]["protected"]) == (None, False)
    assert begun.detail["after"] == ended.detail["before"]
    assert begun.detail["asked"] == {"disks": ["/dev/sda"]}
    assert begun.detail["after"]["wish"]["disks"] == [{"device": "/dev/sda", "id": "sda", "identity": None}]
    assert ended.detail["after"]["wish"]["verb"] == "stop"


# ---- an agent of a newer version


async def test_an_act_that_this_version_does_not_know_is_left_to_the_agent_until_an_operator_says_something(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await web1.report()
    await protect(operator, "sda")
    await web1.report()
    assert web1.wish is not None
    newer = msgspec.to_builtins(web1.wish) | {"verb": "pause", "until": "noon"}
    newer["mark"] |= {"number": 5, "act": "9999-01-01T00:00:00Z-0"}
    with capture_logs() as logs:
        for _ in range(3):
            reply = await web1.report_plain(wish=newer)
            assert reply.desired == Desired(settings=Settings())
    assert [line["act"] for line in logs if "does not know" in line["event"]] == [newer["mark"]["act"]]
    view = await shown(operator)
    assert (view.last_seen_s is None, view.wish and view.wish.disks) == (False, ["/dev/sda"])
    await unprotect(operator)
    reply = await web1.report_plain(wish=newer)
    assert reply.desired is not None
    assert reply.desired.wish is not None
    assert (reply.desired.wish.verb, reply.desired.wish.mark.number) == (Verb.STOP, 6)


# ---- an agent that does not do it


async def test_an_agent_that_reports_and_does_not_do_it_is_a_warning_with_its_cause(
    operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wish_view, "UNTAKEN_S", 0.0)
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)
    web1.obeys, web1.available = False, []
    await web1.report(version="0.1")
    await protect(operator, "sda")
    assert await events(operator, WishUntakenError.code) == [], "it was not told yet"
    await web1.report(version="0.1")
    while not (found := await events(operator, WishUntakenError.code)):
        await web1.report(version="0.1")
    [event] = found
    assert event.severity == "warning"
    assert "its configuration alone" in event.cause
    assert "its version is 0.1" in event.cause
    web1.obeys = True
    await web1.report()
    await web1.report()
    while (await events(operator, WishUntakenError.code))[0].resolved is None:
        await web1.report()


async def test_an_act_that_waits_for_its_agent_to_look_which_disks_there_are_is_a_warning(
    operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot, say. To tell it the path all the same may drop the disk that it has by another name."""
    monkeypatch.setattr(wish_view, "UNTAKEN_S", 0.0)
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)
    available, web1.available = web1.available, []
    await web1.report()
    await protect(operator, "sda", "sdb", force=True)
    while not (found := await events(operator, WishUntakenError.code)):
        await web1.report()
    assert web1.wish is None
    assert ", once it has said which disks there are" in found[0].cause
    web1.available = available
    await web1.report()
    await web1.report()
    while (await events(operator, WishUntakenError.code))[0].resolved is None:
        await web1.report()


# ---- a database that knows less


async def test_a_restored_server_learns_from_the_agent_what_its_backup_lacks(
    tmp_path: Path,
) -> None:
    config, file = config_for(tmp_path), tmp_path / "backup.tar"
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as web1:
            await web1.report()
            await protect(operator, "sda")
            await unprotect(operator)
            await web1.report()
            backup.backup(config, file)
            await protect(operator, "sda", "sdb")
            await web1.report()
            known = web1.wish
    restoring.restore(config, file)
    async with running(config) as server, server.operator() as operator:
        assert not (await shown(operator)).protected
        async with obedient_agent(server, files) as web1:
            web1.wish = known
            await web1.report()
            assert web1.wish == known
            after = await shown(operator)
            assert after.wish is not None
            assert (after.protected, after.wish.disks) == (True, ["/dev/sda", "/dev/sdb"])
            [event] = [found for found in await events(operator) if found.kind == "restored"]
            assert "protect /dev/sda, /dev/sdb" in event.what
            assert "it had: stop" in event.cause
            [entry, *_] = (await operator.call(api.AUDIT, Page(limit=1))).entries
            assert (entry.action, entry.who) == ("machine.wish.adopted", "config-server")
            assert known is not None
            assert entry.detail["before"]["wish"] == "stop"
            assert entry.detail["after"] == {
                "wish": "protect /dev/sda, /dev/sdb",
                "mark": msgspec.to_builtins(known.mark),
            }
            # What is said now is later than all that was said before.
            await protect(operator, "sdb", fewer=True)
            await web1.report()
            assert web1.wish is not None
            assert [disk.device for disk in web1.wish.disks] == ["/dev/sdb"]


async def test_a_database_that_was_set_back_unnoticed_stops_nobody_and_says_so(tmp_path: Path) -> None:
    config, snapshot = config_for(tmp_path), tmp_path / "snapshot"
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as web1:
            await web1.report()
            await protect(operator, "sda")
            await web1.report()
    shutil.copytree(config.data_dir, snapshot)
    async with (
        running(config) as server,
        server.operator() as operator,
        obedient_agent(server, files) as web1,
    ):
        await protect(operator, "sda", "sdb")
        await web1.report()
        known = web1.wish
    shutil.rmtree(config.data_dir)
    snapshot.rename(config.data_dir)
    async with running(config) as server, server.operator() as operator:
        await unprotect(operator)  # of what it looked like: the agent has not come yet
        async with obedient_agent(server, files) as web1:
            web1.wish = known
            for _ in range(3):
                await web1.report()
            assert web1.wish == known
            [event] = await events(operator, WishInDoubtError.code)
            assert (event.severity, event.kind) == ("warning", "restored")
            assert "This database has: stop" in event.cause
            assert "The agent goes by: protect /dev/sda, /dev/sdb" in event.cause
            await unprotect(operator)
            await web1.report()
            assert web1.wish is not None
            assert web1.wish.verb is Verb.STOP


async def test_an_agent_that_makes_up_acts_fills_no_log(
    operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(number: int) -> Wish:
        act = "9999-12-31T23:59:59Z-0"
        return Wish(mark=Mark(f"x{number}", (1 << 53) - number % 2, act), verb=Verb.STOP)

    async def entries() -> tuple[list[AuditView], list[EventView]]:
        return (await operator.call(api.AUDIT, Page())).entries, await events(operator)

    web1.obeys = False
    web1.wish = made_up(0)
    await web1.report()
    before = await entries()
    for number in range(1, 7):
        web1.wish = made_up(number)
        await web1.report()
    assert await entries() == before
    assert (await protect(operator, "sda")).protected
    monkeypatch.setattr(desired_state, "PAUSE_NS", -1)
    for number in range(7, 11):
        web1.wish = made_up(number)
        await web1.report()
    assert await entries() != before
    assert (await protect(operator, "sda")).protected

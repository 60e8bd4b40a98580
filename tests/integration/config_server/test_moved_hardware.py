"""What is wanted of a machine that stands on other hardware since: against a real config server, with storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from config_server.operations import desired_state, sides
from config_server.rules import presence, wish_view
from shared import api
from shared.api.copies import RebindRequest
from shared.api.events import EventQuery, EventView
from shared.api.machines import MachineView
from shared.api.route import Nothing, Page
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import (
    CopyRefusedError,
    FewerDisksError,
    OtherHardwareError,
    RequestError,
    WishWithheldError,
)
from shared.log import names
from shared.machine import active_side
from shared.machine.storage import MachineStorage
from shared.status import AvailableDisk
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, running
from tests.obedient_agent import ObedientAgent, obedient_agent

OLD: Final[Mapping[str, Any]] = {"identity": "old", "boot": "1"}
NEW: Final[Mapping[str, Any]] = {"identity": "new", "boot": "2"}
NOWHERE: Final = "http://127.0.0.1:9/lab"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "RECENT_S", 0.0)
    monkeypatch.setattr(sides, "_ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(desired_state, "PAUSE_NS", -1)


@pytest.fixture
async def server(
    tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig
) -> AsyncIterator[ConfigServer]:
    await active_side.find_or_begin(await machine_storage.find_or_create("web1"), "web1", "old")
    async with running(config_for(tmp_path, blob=blob_config)) as started:
        yield started


@pytest.fixture
async def former(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    """It protects two disks, as it was told."""
    async with obedient_agent(server, files) as agent:
        await agent.report(**OLD)
        async with server.operator() as operator:
            await protect(operator, "sda", "sdb", process_servers=["ps1:9443"])
        await agent.report(**OLD)
        yield agent


@pytest.fixture
async def other(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    """The new hardware, with a folder of its own."""
    async with obedient_agent(server, files) as agent:
        agent.captured = ("vda",)
        agent.available = [AvailableDisk(device="/dev/vda", sectors=8)]
        yield agent


async def protect(operator: RestClient, *disks: str, **more: object) -> MachineView:
    body = {"disks": [f"/dev/{disk}" for disk in disks], **more}
    return await operator.call_plain(api.PROTECT, body, {"machine": "web1"}, 0)


async def rebind(operator: RestClient, identity: str) -> None:
    await operator.call(api.REBIND, RebindRequest(identity=identity), machine="web1")


async def shown(operator: RestClient) -> MachineView:
    return await operator.call(api.MACHINE, Nothing(), machine="web1")


async def moves(operator: RestClient) -> list[EventView]:
    found = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    return [event for event in found if event.code == OtherHardwareError.code]


async def test_new_hardware_is_told_to_protect_and_none_of_the_former_disks(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    assert former.wish is not None
    with pytest.raises(CopyRefusedError):
        await other.report(**NEW)
    await rebind(operator, "new")
    with pytest.raises(CopyRefusedError):
        await former.report(**OLD)
    await other.report(**NEW)
    told = other.wish
    assert told is not None
    assert (told.verb, told.disks, told.process_servers) == (Verb.PROTECT, (), ("ps1:9443",))
    assert told.mark.number > former.wish.mark.number
    await other.report(**NEW)
    assert other.wish == told
    view = await shown(operator)
    assert view.protected
    assert view.wish is not None
    assert (view.wish.disks, view.wish.pending) == ([], None)
    [event] = await moves(operator)
    assert (event.severity, event.resolved is not None) == ("warning", True)
    assert "/dev/sda, /dev/sdb, on old" in event.cause
    assert "the disks of its configuration" in event.cause
    [entry] = [e for e in (await operator.call(api.AUDIT, Page())).entries if e.action == "machine.wish.anew"]
    assert (entry.detail["before"]["identity"], entry.detail["after"]["identity"]) == ("old", "new")


async def test_hardware_that_is_the_machine_again_keeps_the_disks_that_it_was_told(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    before = former.wish
    assert before is not None
    await rebind(operator, "new")
    await other.report(**NEW)
    await rebind(operator, "old")
    await former.report(**OLD)
    assert former.wish is not None
    assert (former.wish.verb, former.wish.disks) == (Verb.PROTECT, before.disks)
    view = await shown(operator)
    assert view.wish is not None
    assert view.wish.disks == ["/dev/sda", "/dev/sdb"]
    assert len(await moves(operator)) == 2


async def test_a_machine_that_was_to_stop_is_to_stop_on_other_hardware_too(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    await rebind(operator, "new")
    await other.report(**NEW)
    assert other.wish is not None
    assert other.wish.verb is Verb.STOP
    await protect(operator, "vda")
    await other.report(**NEW)
    assert other.wish.disks == (WantedDisk("/dev/vda", id="vda"),)


async def test_who_acts_before_the_new_hardware_has_reported_speaks_of_it(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    await rebind(operator, "new")
    found = await operator.call(api.DISKS, Nothing(), machine="web1")
    assert (found.disks, found.seen_s) == ([], None), "those of the former are no disks of it"
    with pytest.raises(RequestError, match="bound to other hardware"):
        await protect(operator, "vda")
    await protect(operator, "vda", offline=True)
    await other.report(**NEW)
    assert other.wish is not None
    assert other.wish.disks == (WantedDisk("/dev/vda", id="vda"),)
    assert len(await moves(operator)) == 1


async def test_who_acts_before_the_new_hardware_has_reported_speaks_of_it_behind_a_restart_too(
    tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig
) -> None:
    await active_side.find_or_begin(await machine_storage.find_or_create("web1"), "web1", "old")
    config = config_for(tmp_path, blob=blob_config)
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as agent:
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            await agent.report(**OLD)
        await rebind(operator, "new")
    async with running(config) as server, server.operator() as operator:
        found = await operator.call(api.DISKS, Nothing(), machine="web1")
        assert (found.disks, found.seen_s) == ([], None)
        with pytest.raises(RequestError, match="bound to other hardware"):
            await protect(operator, "vda")
        await protect(operator, "vda", "vdb", offline=True)
        async with obedient_agent(server, files) as agent:
            agent.captured = ()
            await agent.report(**NEW)
            assert agent.wish is not None
            assert [disk.device for disk in agent.wish.disks] == ["/dev/vda", "/dev/vdb"]
        assert len(await moves(operator)) == 1


async def test_a_machine_that_was_deleted_passes_no_disk_on_to_another_of_its_name(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent, machine_storage: MachineStorage
) -> None:
    store = await machine_storage.find("web1")
    await store.delete(names.SIDE_DOCUMENT)
    await active_side.find_or_begin(store, "web1", "new")
    await other.report(**NEW)
    assert other.wish is not None
    assert (other.wish.verb, other.wish.disks) == (Verb.PROTECT, ())


async def test_a_wish_of_the_former_hardware_that_was_on_its_way_is_not_taken_for_the_new_ones(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    """An agent cannot bring one back either: it has reported what it goes by on this hardware."""
    await rebind(operator, "new")
    await other.report(**NEW)
    assert former.wish is not None
    later = Mark(former.wish.mark.incarnation, former.wish.mark.number, former.wish.mark.act)
    reply = await other.report(wish=Wish(mark=later, verb=Verb.PROTECT, disks=former.wish.disks), **NEW)
    assert reply.desired is not None
    assert reply.desired.wish is not None
    assert reply.desired.wish.disks == ()


async def test_what_was_noted_of_a_machine_without_a_wish_is_the_former_hardwares(
    server: ConfigServer, operator: RestClient, files: TlsFiles, other: ObedientAgent
) -> None:
    async with obedient_agent(server, files) as former:
        former.captured = ("sda", "sdb")
        await former.report(**OLD)
        with pytest.raises(FewerDisksError, match="/dev/sdb"):
            await protect(operator, "sda")
    await rebind(operator, "new")
    await other.report(**NEW)
    assert other.wish is None
    await protect(operator, "vda")


async def test_another_identity_hears_nothing_while_storage_does_not_say_that_it_is_the_machine(
    server: ConfigServer,
    operator: RestClient,
    former: ObedientAgent,
    other: ObedientAgent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(active_side.Known, "get", lambda *_: None)
    monkeypatch.setattr(active_side.Known, "learn", lambda *_: None)
    assert (await other.report(**NEW)).desired is None
    assert await moves(operator) == []
    view = await shown(operator)
    assert WishWithheldError.code not in [error.code for error in view.errors], "it may be told in a moment"
    monkeypatch.undo()
    monkeypatch.setattr(wish_view, "UNTAKEN_S", -1.0)
    view = await shown(operator)
    [said] = [error for error in view.errors if error.code == WishWithheldError.code]
    assert "from new" in said.cause
    assert "said of old" in said.cause
    assert view.wish is not None
    assert view.wish.disks == ["/dev/sda", "/dev/sdb"]
    await rebind(operator, "new")
    await other.report(**NEW)
    assert WishWithheldError.code not in [error.code for error in (await shown(operator)).errors]


@pytest.mark.parametrize("storage", ["is away", "names nobody"])
@pytest.mark.parametrize("verb", [*Verb][:2])
async def test_an_act_does_not_take_whoever_reported_last_for_the_machine_while_storage_does_not_say_so(
    tmp_path: Path, blob_config: BlobConfig, machine_storage: MachineStorage, storage: str, verb: Verb
) -> None:
    """A copy that reports while nobody knows better hears no opinion, and the machine does what was said."""
    store = await machine_storage.find_or_create("web1")
    await active_side.find_or_begin(store, "web1", "old")
    config = config_for(tmp_path, blob=blob_config)
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "web1")
        async with obedient_agent(server, files) as agent:
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            await agent.report(**OLD)
            await agent.report(**OLD)
    wish = agent.wish
    if storage == "is away":
        config = msgspec.structs.replace(config, blob=msgspec.structs.replace(blob_config, url=NOWHERE))
    else:
        await active_side.change(store, "web1", active_side.UNKNOWN)
    async with (
        running(config) as server,
        server.operator() as operator,
        obedient_agent(server, files) as copy,
        obedient_agent(server, files) as agent,
    ):
        agent.wish = wish
        copy.captured = ("vda",)
        copy.available = [AvailableDisk(device="/dev/vda", sectors=8)]
        await copy.report(**NEW)
        if verb is Verb.PROTECT:
            with pytest.raises(RequestError, match="disks that nobody knows yet"):
                await protect(operator, "sda", "vda")
            await protect(operator, "sda", "sdb", process_servers=["ps1:9443"])
        else:
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        await copy.report(**NEW)
        await agent.report(**OLD)
        await copy.report(**NEW)
        assert copy.wish is None
        assert agent.wish is not None
        assert (agent.wish.verb, agent.wish.process_servers) == (
            verb,
            ("ps1:9443",) if verb is Verb.PROTECT else (),
        )
        await agent.report(**OLD)
        now = (await shown(operator)).wish
        assert now is not None
        assert (now.verb, now.pending) == (verb, None)
        assert not await moves(operator)


async def test_without_storage_a_drill_is_not_taken_for_the_machine(tmp_path: Path) -> None:
    """It carries the machine's name and certificate, and only it has reported of late. The machine was to stop."""
    async with running(config_for(tmp_path / "bare")) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "bare-agent")
        async with obedient_agent(server, files) as agent, obedient_agent(server, files) as drill:
            drill.captured = ()
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            await agent.report(**OLD)
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")
            for one, hardware in ((agent, OLD), (drill, NEW)):
                await one.report(**hardware)
            assert drill.wish is not None
            assert drill.wish.verb is Verb.STOP, "whoever bears the name"
            for more in ({}, {"offline": True}, {"force": True}):
                with pytest.raises(RequestError, match="what reports under its name is new") as caught:
                    await protect(operator, "sda", "sdb", **more)
                assert "machine rebind web1" in caught.value.action
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            await drill.report(**NEW)
            assert drill.wish.verb is Verb.STOP
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")  # while the drill reported last
            await agent.report(**OLD)
            assert agent.wish is not None
            assert agent.wish.verb is Verb.STOP
            assert not await moves(operator)


async def test_without_storage_a_drill_that_has_ended_hinders_no_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reported last, and the machine itself is off."""
    async with running(config_for(tmp_path / "bare")) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "bare-agent")
        async with obedient_agent(server, files) as agent, obedient_agent(server, files) as drill:
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            for one, hardware in ((agent, OLD), (drill, NEW)):
                await one.report(**hardware)
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")
            with pytest.raises(RequestError, match="what reports under its name is new"):
                await protect(operator, "sda", "sdb")
            with monkeypatch.context() as later:
                later.setattr(presence, "SILENT_S", -1.0)
                await protect(operator, "sda", "sdb")
            for one, hardware in ((drill, NEW), (agent, OLD)):
                await one.report(**hardware)
            assert agent.wish is not None
            assert agent.wish.verb is Verb.PROTECT
            assert drill.wish != agent.wish, "a drill hears of a stop alone"


@pytest.mark.parametrize("identity", ["new", "", "by name"])
async def test_without_storage_moved_hardware_has_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: str
) -> None:
    """One without an identity is given one first."""
    monkeypatch.setattr(wish_view, "UNTAKEN_S", -1.0)
    async with running(config_for(tmp_path / "bare")) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "bare-agent")
        async with obedient_agent(server, files) as agent:
            await agent.report(**OLD)
            await protect(operator, "sda", "sdb")
            await agent.report(**OLD)
        async with obedient_agent(server, files) as agent:
            hardware: dict[str, Any] = {**NEW, "identity": "" if identity == "" else "new"}
            await agent.report(**hardware)
            [error] = [e for e in (await shown(operator)).errors if e.code == WishWithheldError.code]
            assert "machine rebind" in error.action
            with pytest.raises(RequestError, match="what reports under its name is"):
                await protect(operator, "sda")
            if identity == "":
                with pytest.raises(RequestError, match="identity of its own"):
                    await rebind(operator, "")
                assert (await operator.call(api.COPIES, Nothing(), machine="web1")).unclear is not None
                hardware["identity"] = "new"
                await agent.report(**hardware)
            assert (await operator.call(api.COPIES, Nothing(), machine="web1")).meant == "new"
            await rebind(operator, "new" if identity == "by name" else "")
            assert len(await moves(operator)) == 1
            await rebind(operator, "new")
            assert len(await moves(operator)) == 1, "it is so already"
            await agent.report(**hardware)
            assert agent.wish is not None
            assert (agent.wish.verb, agent.wish.disks) == (Verb.PROTECT, ())
            await protect(operator, "sda")
            await agent.report(**hardware)
            assert [disk.device for disk in agent.wish.disks] == ["/dev/sda"]
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")
            await agent.report(**hardware)
            await agent.report(**hardware)
            assert agent.wish.verb is Verb.STOP
            now = (await shown(operator)).wish
            assert now is not None
            assert now.pending is None


async def test_without_storage_a_machine_of_which_no_hardware_is_known_is_the_one_that_reports(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path / "bare")) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "bare-agent")
        await protect(operator, "sda", offline=True)
        async with obedient_agent(server, files) as agent, obedient_agent(server, files) as drill:
            await agent.report(identity="", boot="1")
            await protect(operator, "sda")
            await agent.report(identity="", boot="1")
            assert agent.wish is not None
            await agent.report(**OLD)
            drill.captured = ()
            await drill.report(**NEW)
            assert drill.wish is None
            with pytest.raises(RequestError, match="the machine is old"):
                await protect(operator, "sda")

"""Copies of a machine at the config server: their status is refused, they get no command and no certificate, and `rebind` changes sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from config_server.cli import machine_commands
from config_server.operations import sides
from config_server.rules import copies, presence
from shared import api
from shared.api.certificates import RenewRequest
from shared.api.commands import CommandKind
from shared.api.copies import RebindRequest
from shared.api.events import EventQuery
from shared.api.points import PointRequest
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import CopyRefusedError, RenewalNotDueError, RequestError
from shared.log import names
from shared.log.terms import TermDocument
from shared.machine import active_side
from shared.machine.storage import MachineStorage
from shared.status import AgentReport, ProcessServerReport, StreamReport
from shared.trust.tls import TlsFiles
from tests.cli import understudy
from tests.config_parts import ConfigServer, config_for, daemon, running


@pytest.fixture
async def server(
    tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig
) -> AsyncIterator[ConfigServer]:
    await active_side.find_or_begin(await machine_storage.find_or_create("web1"), "web1", "original")
    async with running(config_for(tmp_path, blob=blob_config)) as started:
        yield started


@pytest.fixture
async def copy(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ControlClient]:
    """It has the same key and certificate."""
    async with daemon(server, files) as client:
        yield client


async def take(machine_storage: MachineStorage, owner: str) -> None:
    """As a process server does before it opens a session with web1."""
    store = await machine_storage.find("web1")
    term = TermDocument(term=1, owner=owner, claim="a" * 16, after=0, created_ns=0)
    await store.create(names.epoch_document(1), b"{}")
    await store.create(names.term_document(1, 1), msgspec.json.encode(term))


def said(identity: str = "original", boot: str = "1", state: str = "ordered") -> AgentReport:
    return AgentReport(machine="web1", identity=identity, boot=boot, state=state, epoch=1)


async def test_the_status_of_a_copy_is_refused_and_that_of_the_machine_stays(
    operator: RestClient, agent: ControlClient, copy: ControlClient
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(said())
    with pytest.raises(CopyRefusedError, match="clone"):
        await copy.report(said(identity="clone", boot="2", state="initial-replication"))
    assert (await operator.call(api.MACHINE, Nothing(), machine="web1")).state == "ordered"


async def test_what_a_report_said_that_was_not_taken_is_said_again(
    operator: RestClient, agent: ControlClient
) -> None:
    """Of a machine that was put back to a snapshot with memory."""
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    for _ in range(3):
        await agent.report(said())
    assert agent._kept
    agent._number = 0
    await agent.report(said(state="resync"))
    assert not agent._kept
    assert (await operator.call(api.MACHINE, Nothing(), machine="web1")).state == "ordered"


@pytest.mark.parametrize("registered", [False, True])
async def test_a_session_of_a_machine_that_has_no_term_in_storage_keeps_nobody_out(
    server: ConfigServer, machine_storage: MachineStorage, tmp_path: Path, registered: bool
) -> None:
    """Made up by a process server: a term is taken before a session is opened."""
    if registered:
        store = await machine_storage.find_or_create("web9")
        await active_side.find_or_begin(store, "web9", "id9")
        await store.create(names.epoch_document(1), b"{}")
    made_up = StreamReport(epoch=1, connected=True, boot="made-up")
    async with (
        daemon(server, await server.enrolled("process-server", "ps9", tmp_path / "ps")) as process_server,
        daemon(server, await server.enrolled("agent", "web9", tmp_path / "new")) as new,
        server.operator() as operator,
    ):
        await process_server.report(ProcessServerReport(machines={"web9": made_up}))
        await new.report(AgentReport(machine="web9", identity="id9", boot="1", state="ordered"))
        assert (await operator.call(api.MACHINE, Nothing(), machine="web9")).state != "not-connected"


async def test_an_owner_that_no_server_bears_switches_no_check_off(
    server: ConfigServer,
    agent: ControlClient,
    copy: ControlClient,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> None:
    """A process server whose name in its configuration is not that of its certificate."""
    await take(machine_storage, "ps-one")
    async with daemon(
        server, await server.enrolled("process-server", "ps1", tmp_path / "ps")
    ) as process_server:
        session = StreamReport(epoch=1, connected=True, boot="1")
        await process_server.report(ProcessServerReport(machines={"web1": session}))
        with pytest.raises(CopyRefusedError, match="has a session"):
            await copy.report(said(boot="2"))


async def test_a_copy_that_only_polls_gets_no_command(
    operator: RestClient, agent: ControlClient, copy: ControlClient
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(said())
    await operator.call(api.POINT_CREATE, PointRequest(id="p1"), machine="web1")
    with pytest.raises(CopyRefusedError):
        await copy.report(AgentReport(identity="clone"))
    assert [command.id for command in await agent.report(said())] == ["p1"]


async def test_a_copy_with_the_same_identity_is_refused_while_the_machine_has_a_session(
    server: ConfigServer,
    agent: ControlClient,
    copy: ControlClient,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> None:
    await take(machine_storage, "ps1")
    holder = await server.enrolled("process-server", "ps1", tmp_path / "ps")
    async with daemon(server, holder) as process_server:
        stream = StreamReport(epoch=1, connected=True, boot="1")
        await process_server.report(ProcessServerReport(machines={"web1": stream}))
        with pytest.raises(CopyRefusedError, match="has a session"):
            await copy.report(said(boot="2"))
        await agent.report(said(boot="1"))
        gone = StreamReport(epoch=1, connected=False)
        await process_server.report(ProcessServerReport(machines={"web1": gone}))
        with pytest.raises(CopyRefusedError, match="reported a moment ago"):
            await copy.report(said(boot="2"))


async def test_a_machine_that_was_restarted_is_heard_once_its_old_boot_is_silent(
    agent: ControlClient, copy: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.report(said(boot="1"))
    monkeypatch.setattr(sides, "RECENT_S", 0.0)
    await copy.report(said(boot="2"))


async def test_a_copy_gets_no_new_certificate(
    server: ConfigServer, files: TlsFiles, agent: ControlClient
) -> None:
    from shared.trust import identity, tls

    await agent.report(said())
    async with RestClient(server.url, tls.client_context(files)) as client:
        csr = identity.request_of(files)
        with pytest.raises(CopyRefusedError):
            await client.call(api.RENEW, RenewRequest(csr=csr, identity="clone", boot="2"))
        # No copy, whatever boot is taken for the machine's; that it is not due yet is found out after.
        with pytest.raises(RenewalNotDueError):
            await client.call(api.RENEW, RenewRequest(csr=csr, identity="original", boot="2"))


async def test_a_session_that_is_over_with_one_server_does_not_stand_against_that_with_another(
    server: ConfigServer,
    agent: ControlClient,
    copy: ControlClient,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> None:
    await take(machine_storage, "ps2")
    one = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    two = await server.enrolled("process-server", "ps2", tmp_path / "ps2")
    async with daemon(server, one) as stale, daemon(server, two) as live:
        for line, boot in ((stale, "1"), (live, "2")):
            stream = StreamReport(epoch=1, connected=True, boot=boot)
            await line.report(ProcessServerReport(machines={"web1": stream}))
        await agent.report(said(boot="2"))
        with pytest.raises(CopyRefusedError, match="has a session"):
            await copy.report(said(boot="3"))


async def test_a_server_that_has_the_machine_no_more_keeps_it_out_of_status_no_longer_than_storage_says(
    server: ConfigServer, agent: ControlClient, tmp_path: Path, machine_storage: MachineStorage
) -> None:
    """Whatever session it claims, for ever: the machine's server has none just now, and storage names that one."""
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    present = await server.enrolled("process-server", "ps2", tmp_path / "ps2")
    async with daemon(server, files) as stale, daemon(server, present) as live:
        await live.report(ProcessServerReport())
        ghost = StreamReport(epoch=9, connected=True, boot="ghost")
        await stale.report(ProcessServerReport(machines={"web1": ghost}))
        await take(machine_storage, "ps2")
        await agent.report(said())


async def test_rebind_makes_the_one_refused_copy_the_machine_once_however_often_it_is_said(
    operator: RestClient, agent: ControlClient, copy: ControlClient, machine_storage: MachineStorage
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(said())
    with pytest.raises(RequestError, match="not bound anew"):
        await operator.call(api.REBIND, RebindRequest(), machine="web1")
    with pytest.raises(CopyRefusedError):
        await copy.report(said(identity="new-hardware", boot="2"))
    side = await operator.call(api.REBIND, RebindRequest(), machine="web1")
    assert (side.identity, side.generation, side.repeated) == ("new-hardware", 2, False)
    [again] = await copy.report(said(identity="new-hardware", boot="2"))
    assert (again.kind, again.id) == (CommandKind.CHECK_SIDE, side.asked["agent:web1"])
    with pytest.raises(CopyRefusedError):
        await agent.report(said())  # by now the old hardware is the one copy that was refused
    side = await operator.call(api.REBIND, RebindRequest(), machine="web1")
    assert (side.identity, side.generation, side.repeated) == ("new-hardware", 2, True)
    stored = await active_side.find(await machine_storage.find("web1"))
    assert stored is not None
    assert (stored.identity, stored.generation) == ("new-hardware", 2)


async def test_of_several_refused_copies_rebind_takes_the_one_that_is_named(
    server: ConfigServer, operator: RestClient, copy: ControlClient
) -> None:
    for identity in ("new-hardware", "forgotten-drill"):
        with pytest.raises(CopyRefusedError):
            await copy.report(said(identity=identity, boot=identity))
    folder = server.config.data_dir
    options = [
        *("--server", server.url, "--token-file", str(folder / "operator.token")),
        *("--ca-file", str(folder / "ca.pem")),
    ]
    unclear = await understudy("machine", "rebind", "web1", "--yes", *options)
    assert unclear.exit_code == RequestError.exit_code
    for said_there in ("new-hardware", "forgotten-drill", "127.0.0.1", "--identity ID"):
        assert said_there in unclear.stderr
    found = await operator.call(api.COPIES, Nothing(), machine="web1")
    assert (found.identity, found.generation, found.meant) == ("original", 1, "")
    assert [one.identity for one in found.copies] == ["forgotten-drill", "new-hardware"]
    side = await operator.call(api.REBIND, RebindRequest(identity="new-hardware"), machine="web1")
    assert (side.identity, side.generation) == ("new-hardware", 2)


async def test_rebind_waits_for_the_servers_that_have_the_machine_by_name(
    server: ConfigServer, operator: RestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    async with daemon(server, files) as line:
        report = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True, boot="1")})
        await line.report(report)
        side = await operator.call(api.REBIND, RebindRequest(identity="new"), machine="web1")
        assert list(side.asked) == ["process-server:ps1"]
        shown: list[str] = []
        waiting = asyncio.create_task(machine_commands.looked(operator, side, shown.append))
        [command] = await line.report(report)
        assert (command.kind, command.id) == (CommandKind.CHECK_SIDE, side.asked["process-server:ps1"])
        assert not waiting.done()
        await line.report(msgspec.structs.replace(report, results={command.id: {}}))
        async with asyncio.timeout(20):
            await waiting
        assert ["waiting for process-server:ps1" in line for line in shown] == [True]
        monkeypatch.setattr(presence, "SILENT_S", -1.0)
        side = await operator.call(api.REBIND, RebindRequest(identity="newer"), machine="web1")
        assert (side.asked, side.silent) == ({}, ["process-server:ps1"])


async def test_a_side_that_storage_was_set_back_to_counts_although_its_generation_is_lower(
    agent: ControlClient,
    copy: ControlClient,
    machine_storage: MachineStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sides, "_ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(sides, "RECENT_S", 0.0)
    store = await machine_storage.find("web1")
    await active_side.change(store, "web1", "moved")
    await copy.report(said(identity="moved", boot="2"))
    await store.delete(names.SIDE_DOCUMENT)  # its container was deleted, say
    assert (await active_side.change(store, "web1", "original")).generation == 1
    await agent.report(said(boot="3"))
    with pytest.raises(CopyRefusedError):
        await copy.report(said(identity="moved", boot="2"))


async def test_a_copy_that_keeps_trying_is_an_event_and_one_that_ends_soon_is_none(
    operator: RestClient, agent: ControlClient, copy: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.report(said())
    with pytest.raises(CopyRefusedError):
        await copy.report(said(identity="clone", boot="2"))
    monkeypatch.setattr(copies, "LASTING_S", 0.0)
    with pytest.raises(CopyRefusedError):
        await copy.report(said(identity="clone", boot="2"))
    while not (found := (await operator.call(api.EVENTS, EventQuery(object="web1", open=True))).events):
        await agent.report(said(), wait_s=0.2)
    assert [(event.code, event.severity) for event in found] == [(CopyRefusedError.code, "warning")]

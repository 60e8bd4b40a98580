"""Status, commands, health, events and jobs, against a real config server over HTTPS."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from config_server import background
from config_server.storage.account import Storage
from shared import api
from shared.api.commands import Command, CommandView
from shared.api.events import EventQuery
from shared.api.points import FlushRequest, PointRequest
from shared.api.policies import Policy
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import (
    ConfigError,
    DisconnectedError,
    DiskTooLargeError,
    JobNotFoundError,
    MachineNotFoundError,
    NotFoundError,
    RequestError,
    TwinDaemonError,
    UnhealthyError,
)
from shared.status import (
    AgentDisk,
    AgentReport,
    MasterTargetReport,
    Problem,
    ProcessServerReport,
    StreamReport,
)
from tests.config_parts import ConfigServer, config_for, daemon, running


@pytest.fixture
async def process_server(server: ConfigServer, tmp_path: Path) -> AsyncIterator[ControlClient]:
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps")
    async with daemon(server, files) as client:
        yield client


def agent_report(state: str = "ordered", **fields: Any) -> AgentReport:
    disk = AgentDisk(name="loop0", device="/dev/loop0", sectors=2048, mode="ordered", state=state)
    return AgentReport(machine="web1", state=state, epoch=1, disks=[disk], ring_b=64 << 20, **fields)


async def protect(operator: RestClient) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")


async def test_a_protected_machine_waits_for_its_agent_then_shows_what_it_reports(
    operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    before = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert (before.state, before.rpo_s, before.last_point) == ("not-connected", None, None)
    await agent.report(
        agent_report("catching-up", cause="the ring was full", uploaded_captured_ns=time.time_ns())
    )
    after = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert (after.state, after.cause, after.epoch) == ("catching-up", "the ring was full", 1)
    assert [(disk.name, disk.size_b) for disk in after.disks] == [("loop0", 1 << 20)]
    assert after.rpo_s is not None
    assert after.rpo_s < 5
    listed = await operator.call(api.MACHINES, Nothing())
    assert [machine.name for machine in listed.machines] == ["web1"]


async def test_a_machine_whose_agent_reports_is_known_without_protection(
    operator: RestClient, agent: ControlClient
) -> None:
    await agent.report(agent_report())
    assert (await operator.call(api.MACHINE, Nothing(), machine="web1")).state == "unprotected"


async def test_an_unknown_machine_is_not_found(operator: RestClient) -> None:
    with pytest.raises(MachineNotFoundError, match="'nobody'"):
        await operator.call(api.MACHINE, Nothing(), machine="nobody")
    with pytest.raises(MachineNotFoundError, match="'nobody'"):
        await operator.call(api.POINTS, Nothing(), machine="nobody")
    with pytest.raises(JobNotFoundError):
        await operator.call(api.JOB, Nothing(), id="none")


async def test_a_command_is_repeated_until_its_result_is_reported(
    operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    await agent.report(agent_report())
    asked = await operator.call(api.POINT_CREATE, PointRequest(id="mark-1"), machine="web1")
    assert (asked.id, asked.kind, asked.state) == ("mark-1", "mark", "pending")
    expected = [Command("mark-1", "mark", {"id": "mark-1", "consistency": "crash"})]
    assert await agent.report(agent_report()) == expected
    assert await agent.report(agent_report()) == expected
    results = {"mark-1": {"epoch": 1, "batch": 7}}
    assert await agent.report(agent_report(results=results)) == []
    done = await operator.call(api.COMMAND, Nothing(), id="mark-1")
    assert (done.state, done.result) == ("done", {"epoch": 1, "batch": 7})
    # Asked again under the same id, it is the same point.
    again = await operator.call(api.POINT_CREATE, PointRequest(id="mark-1"), machine="web1")
    assert (again.state, again.result) == ("done", {"epoch": 1, "batch": 7})


async def test_another_daemon_cannot_report_a_result_for_it(
    operator: RestClient, agent: ControlClient, process_server: ControlClient
) -> None:
    await protect(operator)
    await agent.report(agent_report())
    await operator.call(api.POINT_CREATE, PointRequest(id="mark-1"), machine="web1")
    await process_server.report(ProcessServerReport(results={"mark-1": {"epoch": 9}}))
    assert (await operator.call(api.COMMAND, Nothing(), id="mark-1")).state == "pending"


async def test_a_held_report_is_answered_as_soon_as_there_is_a_command(
    operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    await agent.report(agent_report())
    held = asyncio.create_task(agent.report(agent_report(), wait_s=20))
    began = time.monotonic()
    await operator.call(api.POINT_CREATE, PointRequest(id="mark-1"), machine="web1")
    commands = await held
    assert [command.id for command in commands] == ["mark-1"]
    assert time.monotonic() - began < 10


async def test_serve_runs_each_command_once_and_reports_what_came_of_it(
    server: ConfigServer, operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    await agent.report(agent_report())
    runs: list[str] = []
    release = asyncio.Event()

    async def handle(command: Command) -> dict[str, Any]:
        runs.append(command.id)
        if command.id == "bad":
            raise UnhealthyError("No mark was placed", cause="the stream is not ordered")
        await release.wait()
        return {"epoch": 1, "batch": 3}

    async def finished(id_: str) -> CommandView:
        return await operator.call(api.COMMAND, Nothing(), wait_s=20, id=id_)

    stop = asyncio.Event()
    # The interval is long: everything that happens soon happens because a command woke somebody.
    serving = asyncio.create_task(agent.serve(agent_report, handle, stop, interval_s=30.0))
    await operator.call(api.POINT_CREATE, PointRequest(id="good"), machine="web1")
    await operator.call(api.POINT_CREATE, PointRequest(id="bad"), machine="web1")
    bad = await finished("bad")  # while the good one still runs
    release.set()
    good = await finished("good")
    assert (good.state, good.result) == ("done", {"epoch": 1, "batch": 3})
    assert bad.state == "failed"
    assert bad.result["error"]["cause"] == "the stream is not ordered"
    assert sorted(runs) == ["bad", "good"]
    stop.set()
    await asyncio.wait_for(serving, 10)


async def test_serve_survives_a_config_server_that_goes_away_and_commands_survive_it_too(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path)) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        port = first.port
        async with daemon(first, files) as agent:
            await protect(operator)
            await agent.report(agent_report())
            await operator.call(api.POINT_CREATE, PointRequest(id="mark-1"), machine="web1")

    got: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handle(command: Command) -> dict[str, Any]:
        got.set_result(command.id)
        return {}

    client = ControlClient(f"https://127.0.0.1:{port}", files)
    stop = asyncio.Event()
    serving = asyncio.create_task(client.serve(agent_report, handle, stop, interval_s=0.1))
    async with running(config_for(tmp_path, port=port)):
        assert await asyncio.wait_for(got, 20) == "mark-1"
    stop.set()
    await asyncio.wait_for(serving, 10)
    await client.close()


async def test_a_point_of_a_silent_or_unprotected_machine_is_refused(
    operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    with pytest.raises(DisconnectedError, match="does not report"):
        await operator.call(api.POINT_CREATE, PointRequest(), machine="web1")
    await agent.report(agent_report())
    with pytest.raises(RequestError, match="consistency"):
        await operator.call(api.POINT_CREATE, PointRequest(consistency="app"), machine="web1")
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    with pytest.raises(RequestError, match="not protected"):
        await operator.call(api.POINT_CREATE, PointRequest(), machine="web1")


async def test_flush_waits_for_the_process_servers_that_hold_the_machine(
    operator: RestClient, process_server: ControlClient
) -> None:
    await protect(operator)
    nothing = await operator.call(api.FLUSH, FlushRequest(), machine="web1")
    assert (nothing.flushed, nothing.missing) == ([], [])
    report = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
    await process_server.report(report)
    asked = asyncio.create_task(operator.call(api.FLUSH, FlushRequest(wait_s=20), machine="web1"))
    (command,) = await process_server.report(report, wait_s=20)
    assert (command.kind, command.args) == ("flush", {"machine": "web1"})
    await process_server.report(msgspec.structs.replace(report, results={command.id: {}}))
    answer = await asked
    assert (answer.flushed, answer.missing) == (["ps1"], [])


async def test_a_flush_that_is_not_done_in_time_is_named_and_withdrawn(
    operator: RestClient, process_server: ControlClient
) -> None:
    await protect(operator)
    report = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
    await process_server.report(report)
    answer = await operator.call(api.FLUSH, FlushRequest(wait_s=0.05), machine="web1")
    assert (answer.flushed, answer.missing) == ([], ["ps1"])
    assert await process_server.report(report) == []


async def test_an_error_is_one_event_while_it_lasts_and_resolved_when_it_is_gone(
    operator: RestClient, agent: ControlClient
) -> None:
    await protect(operator)
    problem = {"code": "US410", "what": "loop0 cannot be read", "cause": "EIO", "object": "loop0"}
    bad = {"machine": "web1", "state": "bitmap", "errors": [problem]}
    for _ in range(3):
        await agent.report(bad)
    (event,) = (await operator.call(api.EVENTS, EventQuery(object="web1", open=True))).events
    assert (event.code, event.object, event.source, event.resolved) == (
        "US410",
        "web1/loop0",
        "agent:web1",
        None,
    )
    shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert [(error.code, error.cause) for error in shown.errors] == [("US410", "EIO")]
    await agent.report(agent_report())
    assert (await operator.call(api.EVENTS, EventQuery(object="web1", open=True))).events == []
    everything = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    assert sorted(event.kind for event in everything) == ["problem", "state", "state"]
    assert (await operator.call(api.MACHINE, Nothing(), machine="web1")).errors == []


async def test_a_report_of_the_wrong_type_is_refused_with_the_field(agent: ControlClient) -> None:
    with pytest.raises(RequestError, match=r"\$\.epoch"):
        await agent.report({"state": "ordered", "epoch": "one"})


async def test_points_and_restores_without_storage_say_so(operator: RestClient) -> None:
    await protect(operator)
    with pytest.raises(ConfigError, match="no blob storage"):
        await operator.call(api.POINTS, Nothing(), machine="web1")


async def test_policies_are_checked_and_apply_to_machines_without_their_own(operator: RestClient) -> None:
    with pytest.raises(RequestError, match="point_interval_s"):
        await operator.call(api.POLICY_SET, Policy(point_interval_s=0))
    await operator.call(api.POLICY_SET, Policy(point_interval_s=60))
    with pytest.raises(RequestError, match="rpo_treshold_s"):
        await operator.call_plain(api.POLICY_SET, {"rpo_treshold_s": 60}, {}, 0)
    assert (await operator.call(api.POLICY, Nothing())).point_interval_s == 60
    await protect(operator)
    shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert shown.policy.point_interval_s == 60
    log = await operator.call(api.AUDIT, Page(limit=2))
    assert [entry.action for entry in log.entries] == ["machine.protect", "policy.set"]


async def test_a_job_has_no_state_but_those_that_there_are(operator: RestClient) -> None:
    with pytest.raises(RequestError, match="paused"):
        await operator.call_plain(api.JOB_UPDATE, {"state": "paused"}, {"id": "j1"}, 0)


async def test_lists_have_a_limit_that_cannot_be_turned_off(operator: RestClient) -> None:
    routes: tuple[api.Route[Any, Any], ...] = (api.EVENTS, api.AUDIT, api.JOBS, api.CERTIFICATES)
    for route in routes:
        for limit in (-1, 0, 10_001):
            with pytest.raises(RequestError, match="limit"):
                await operator.call_plain(route, {"limit": limit}, {}, 0)
        with pytest.raises(RequestError, match="limits"):
            await operator.call_plain(route, {"limits": 5}, {}, 0)


async def test_known_daemons_survive_a_restart(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(first, files) as agent:
            await protect(operator)
            await agent.report(agent_report())
    async with running(config) as second, second.operator() as operator:
        shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
        assert (shown.state, shown.disks[0].name) == ("disconnected", "loop0")
        assert "just started" in shown.cause
        assert shown.errors == []


async def test_garbage_oversized_and_unknown_requests_get_named_errors(
    server: ConfigServer, operator: RestClient
) -> None:
    unknown = api.Route("unknown", "GET", "/v1/nothing", api.Access.PUBLIC, Nothing, Nothing, "")
    with pytest.raises(NotFoundError, match="/v1/nothing"):
        await operator.call(unknown, Nothing())
    headers = {"Authorization": f"Bearer {server.operator_token}"}
    connector = aiohttp.TCPConnector(ssl=server.anonymous_context())
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        async with session.put(f"{server.url}/v1/policy", data=b"{not json") as answer:
            assert answer.status == 400
            assert (await answer.json())["code"] == "US125"
        async with session.put(f"{server.url}/v1/policy", data=io.BytesIO(b" " * (5 << 20))) as answer:
            assert answer.status == 400
            assert "too large" in (await answer.json())["cause"]


async def test_plain_http_on_the_port_is_cut_and_harms_nobody(
    server: ConfigServer, operator: RestClient
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read()
    writer.close()
    await operator.call(api.MACHINES, Nothing())


async def test_a_disk_that_no_seed_disk_can_hold_is_refused_at_protection_unless_there_is_another_target(
    server: ConfigServer, operator: RestClient, agent: ControlClient, tmp_path: Path
) -> None:
    large = AgentDisk(name="sdb", device="/dev/sdb", sectors=9 << 31)
    await agent.report(AgentReport(machine="web1", state="ordered", disks=[large]))
    wanted = Protection(disks=["/dev/sdb"])
    with pytest.raises(DiskTooLargeError, match="sdb") as caught:
        await operator.call(api.PROTECT, wanted, machine="web1")
    assert "8 TiB" in caught.value.cause
    assert "image" in caught.value.action
    files = await server.enrolled("master-target", "mt1", tmp_path / "mt")
    async with daemon(server, files) as master_target:
        await master_target.report(MasterTargetReport(target="image"))
        assert (await operator.call(api.PROTECT, wanted, machine="web1")).protected


async def test_a_list_of_machines_waits_for_storage_once_and_not_for_each(
    server: ConfigServer, operator: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"web{n}" for n in range(8)]
    all_asked = asyncio.Barrier(len(names))

    async def last_point(_self: Storage, _machine: str) -> None:
        await all_asked.wait()

    for name in names:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine=name)
    monkeypatch.setattr(Storage, "last_point", last_point)
    listed = (await operator.call(api.MACHINES, Nothing())).machines
    assert [machine.name for machine in listed] == names


async def test_of_two_servers_with_one_certificate_the_first_is_heard_and_an_event_names_both(
    server: ConfigServer, operator: RestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    problem = Problem(code="US403", what="Storage does not answer")
    async with daemon(server, files) as original, daemon(server, files) as clone:
        for _ in range(8):
            await original.report(ProcessServerReport(errors=[problem]))
            await clone.report(ProcessServerReport())
        found = (await operator.call(api.EVENTS, EventQuery(object="process-server:ps1", open=True))).events
        assert "US403" in {event.code for event in found}
        assert not clone._kept
        async with asyncio.timeout(20):
            while not (
                told := [
                    event
                    for event in (await operator.call(api.EVENTS, EventQuery(open=True))).events
                    if event.code == TwinDaemonError.code
                ]
            ):
                await original.report(ProcessServerReport(errors=[problem]))
                await clone.report(ProcessServerReport())
        assert (told[0].object, told[0].severity) == ("process-server:ps1", "error")
        assert "127.0.0.1" in told[0].cause

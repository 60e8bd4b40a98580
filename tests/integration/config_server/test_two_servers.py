"""Two config servers on one PostgreSQL: what is heard, asked and said at one is so at the other."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from config_server import background
from config_server.identity.ca import CertificateAuthority
from config_server.rules.facts import SELF
from config_server.rules.twins import SILENT_S
from config_server.store.config import DatabaseConfig
from shared import api
from shared.api.commands import Command, CommandState
from shared.api.daemons import DaemonView
from shared.api.events import EventKind, EventQuery, EventView
from shared.api.jobs import JobState
from shared.api.points import PointRequest
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import (
    ConfigError,
    MachineNotFoundError,
    OtherServerGoneError,
    ServerNameTakenError,
    UnderstudyError,
)
from shared.status import AgentDisk, AgentReport
from shared.trust import anchors, tls
from shared.vocabulary import Role
from tests import ca_renewals
from tests.config_parts import config_for, running, until
from tests.obedient_agent import ObedientAgent
from tests.pair import Pair
from tests.replicas import PARTS, Balancer, Replica

HELD_S = 20.0
"""So long an answer may be held; what is rung at the other server ends that long before."""
SOON_S = 8.0


async def test_each_server_is_given_the_new_ca_by_a_person_and_goes_over_by_itself(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_renewals.hurry(monkeypatch)
    web1 = ca_renewals.Daemon(pair.a.url, await pair.a.enrolled("agent", "web1", tmp_path / "web1"))
    ps1 = ca_renewals.Daemon(pair.b.url, await pair.b.enrolled("process-server", "ps1", tmp_path / "ps1"))
    async with ca_renewals.sessions([web1, ps1]), web1.there(), ps1.there():
        begun = await ca_renewals.renew(pair.at_a)
        found = await ca_renewals.until(
            pair.a, begun.id, waits="copy ca.key and ca.pem from the data folder of cs-"
        )
        lacking, source = (
            (pair.b, pair.a) if found.waits.count("of cs-a)") else (pair.a, pair.b)
        )  # whichever has taken the job
        assert f"{lacking.config.name} (copy" in found.waits
        assert (
            CertificateAuthority.read(lacking.config.data_dir).trusted == anchors.of_file(web1.files.ca)[:1]
        )
        for name in ("ca.key", "ca.pem"):
            shutil.copy2(source.config.data_dir / name, lacking.config.data_dir / name)
        await ca_renewals.until(pair.a, begun.id, JobState.DONE)
    first, second = (CertificateAuthority.read(each.config.data_dir) for each in (pair.a, pair.b))
    assert first.is_as(second)
    assert [first.trusted, len(first.keys)] == [(first.certificate,), 1]
    assert {web1.trusted, ps1.trusted} == {first.pem}


class Agent(ObedientAgent):
    """Of web1; it reports to whichever server it is sent to."""

    def __init__(self, lines: dict[str, RestClient]) -> None:
        super().__init__(lines["a"], "web1")
        self._lines = lines

    def at(self, server: str) -> Agent:
        self._line = self._lines[server]
        return self


@pytest.fixture
async def files(pair: Pair, tmp_path: Path) -> tls.TlsFiles:
    return await pair.a.enrolled("agent", "web1", tmp_path / "agent")


@pytest.fixture
async def agent(pair: Pair, files: tls.TlsFiles) -> AsyncIterator[Agent]:
    context = tls.client_context(files, tls.CONFIG_SERVER)
    async with RestClient(pair.a.url, context) as at_a, RestClient(pair.b.url, context) as at_b:
        yield Agent({"a": at_a, "b": at_b})


async def seen(operator: RestClient, name: str = "web1") -> DaemonView | None:
    found = (await operator.call(api.DAEMONS, Nothing())).daemons
    return next((one for one in found if (one.role, one.name) == (Role.AGENT, name)), None)


async def is_there(operator: RestClient) -> bool:
    found = await seen(operator)
    return found is not None and found.connected


async def protect(operator: RestClient) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")


async def test_what_is_reported_at_one_is_shown_at_the_other(pair: Pair, agent: Agent) -> None:
    await agent.at("a").report(cause="the ring was full", state="catching-up")
    await until(lambda: is_there(pair.at_b))
    found = await seen(pair.at_b)
    assert found is not None and (found.state, found.report["cause"]) == ("catching-up", "the ring was full")
    assert found.seen_s is not None and found.seen_s < SOON_S
    assert (await pair.at_b.call(api.MACHINE, Nothing(), machine="web1")).state == "unprotected"


async def test_a_command_of_one_reaches_a_daemon_that_is_held_at_the_other_and_its_result_comes_back(
    pair: Pair, agent: Agent
) -> None:
    await protect(pair.at_b)
    await agent.at("a").report()
    await agent.report()  # by now it goes by what it was told
    await until(lambda: is_there(pair.at_b))
    held = asyncio.create_task(agent.report(HELD_S))
    began_s = time.monotonic()
    asked = await pair.at_b.call(api.POINT_CREATE, PointRequest(), machine="web1")
    reply = await held
    assert [command.id for command in reply.commands] == [asked.id]
    waiting = asyncio.create_task(pair.at_b.call(api.COMMAND, Nothing(), wait_s=HELD_S, id=asked.id))
    await agent.report(results={asked.id: {"epoch": 1, "batch": 7}})
    assert (await waiting).state is CommandState.DONE
    assert time.monotonic() - began_s < SOON_S


async def test_a_wish_that_is_said_at_one_is_told_where_its_agent_is_held(pair: Pair, agent: Agent) -> None:
    await agent.at("a").report()
    held = asyncio.create_task(agent.report(HELD_S))
    began_s = time.monotonic()
    await protect(pair.at_b)
    reply = await held
    assert reply.desired is not None and reply.desired.wish is not None
    assert time.monotonic() - began_s < SOON_S


async def test_an_agent_that_reports_to_both_in_turns_changes_its_state_once(
    pair: Pair, agent: Agent
) -> None:
    states = ["starting", "ordered", "ordered", "ordered", "catching-up", "catching-up", "ordered", "ordered"]
    for number, state in enumerate(states):
        await agent.at("ab"[number % 2]).report(state=state)
    found = (await pair.at_a.call(api.EVENTS, EventQuery(object="web1"))).events
    changes = [event.what for event in reversed(found) if event.kind is EventKind.STATE]
    assert changes == [
        "web1 went from not-connected to starting",
        "web1 went from starting to ordered",
        "web1 went from ordered to catching-up",
        "web1 went from catching-up to ordered",
    ]
    assert "US583" not in {event.code for event in found}


async def test_who_is_revoked_at_one_is_refused_at_the_other(pair: Pair, agent: Agent) -> None:
    await agent.at("a").report()
    await agent.at("b").report()
    await pair.b.revoke("agent:web1")

    async def is_refused() -> bool:
        try:
            await agent.at("a").report()
        except UnderstudyError:
            return True
        return False

    began_s = time.monotonic()
    await until(is_refused)
    assert time.monotonic() - began_s < SOON_S


async def test_that_an_agent_fell_silent_is_one_event_whoever_has_heard_it_last(
    pair: Pair, agent: Agent
) -> None:
    await protect(pair.at_b)
    for server in "abab":
        await agent.at(server).report()

    async def is_silent() -> bool:
        found = await pair.at_a.call(api.EVENTS, EventQuery(object="web1", open=True))
        return any(event.source == SELF for event in found.events)

    await until(is_silent)
    # Who heard it last, and who did not, have both looked again since.
    await asyncio.sleep(2 * background._SWEEP_S)
    found = await pair.at_a.call(api.EVENTS, EventQuery(object="web1"))
    assert await pair.at_b.call(api.EVENTS, EventQuery(object="web1")) == found
    problems = [event for event in found.events if event.kind is EventKind.PROBLEM]
    assert len(problems) == len({event.code for event in problems}), problems
    assert all(event.resolved is None for event in problems)


async def test_a_server_that_was_not_given_the_files_of_the_others_does_not_start_beside_them(
    pair: Pair, tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """It would have another CA, and another operator's token."""
    with pytest.raises(ConfigError, match="others use its database: cs-a, cs-b"):
        async with running(config_for(tmp_path / "c", database=database_config)):
            pass
    await pair.at_a.call(api.MACHINES, Nothing())


async def test_who_was_only_read_of_makes_no_machine(pair: Pair) -> None:
    for operator in (pair.at_a, pair.at_b):
        with pytest.raises(MachineNotFoundError):
            await operator.call(api.MACHINE, Nothing(), machine="web1")


async def test_one_that_ends_and_comes_back_knows_what_was_heard_meanwhile(
    pair: Pair, agent: Agent, tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path / "a", database=database_config, name="cs-c")
    third = tmp_path / "c"
    third.mkdir()
    for name in ("ca.key", "ca.pem", "operator.token"):
        shutil.copy2(config.data_dir / name, third / name)
    await agent.at("a").report(cause="here")
    await until(lambda: is_there(pair.at_b))  # it is written
    async with (
        running(config_for(tmp_path / "x", database=database_config, data_dir=third, name="cs-c")) as c,
        c.operator() as at_c,
    ):
        assert await is_there(at_c), "as living, not only as one that was there before a start"


async def test_that_two_servers_have_one_name_is_said_also_while_a_third_has_the_sweep(
    pair: Pair, tmp_path: Path, database_config: DatabaseConfig
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for name in PARTS:
        shutil.copy2(pair.a.config.data_dir / name, folder / name)

    async def is_said() -> bool:
        found = await pair.at_a.call(api.EVENTS, EventQuery(open=True))
        return ServerNameTakenError.code in [event.code for event in found.events]

    async with running(config_for(tmp_path, database=database_config, data_dir=folder, name="cs-b")):
        await until(is_said)


AGENTS = 5
GONE = OtherServerGoneError.code
FALLS_SILENT_S = SILENT_S + 2 * background._SWEEP_S
"""So long after its last word a daemon is called silent at the latest."""


async def test_when_one_is_killed_its_daemons_and_its_work_go_to_the_other_and_nobody_is_called_silent(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """Its leases too: what is only the sweep's to see is seen."""
    a, b = (Replica(tmp_path / name, database_config.url, name) for name in ("cs-a", "cs-b"))
    await a.start()
    b.join(a)
    await b.start()
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        for one in (a, b):
            stack.push_async_callback(one.end)
        balancer = await stack.enter_async_context(Balancer([a, b]).running())
        operator = await stack.enter_async_context(b.server.operator())
        async with asyncio.TaskGroup() as agents:
            try:
                names = [f"web{number}" for number in range(AGENTS)]
                for name in names:
                    files = await a.server.enrolled("agent", name, tmp_path / name)
                    client = ControlClient(balancer.url, files)
                    stack.push_async_callback(client.close)
                    agents.create_task(client.serve(said(name), nothing, stop))
                    await operator.call(
                        api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine=name
                    )

                async def all_are_there() -> bool:
                    found = (await operator.call(api.DAEMONS, Nothing())).daemons
                    return {one.name for one in found if one.connected} == {*names}

                await until(all_are_there)
                before = await problems(operator)
                await a.end()
                killed_s = time.monotonic()
                while time.monotonic() - killed_s < FALLS_SILENT_S:
                    asked = await operator.call(api.POINT_CREATE, PointRequest(), machine=names[0])
                    done = await operator.call(api.COMMAND, Nothing(), wait_s=HELD_S, id=asked.id)
                    assert done.state is CommandState.DONE
                    found = await problems(operator)
                    assert [event for event in found if event.code != GONE] == before
                assert await all_are_there()
                assert [event.code for event in await problems(operator)].count(GONE) == 1
            finally:
                stop.set()

        async def are_silent() -> bool:
            return {event.object for event in await problems(operator) if event not in before} >= {*names}

        await until(are_silent)
    for one in (a, b):
        assert "this is a bug" not in one.log


async def problems(operator: RestClient) -> list[EventView]:
    """All that there ever were, by what they are of."""
    found = (await operator.call(api.EVENTS, EventQuery(limit=1000))).events
    return [
        replace(event, last="", count=0, id=0, cause="", what="")
        for event in found
        if event.kind is EventKind.PROBLEM
    ]


def said(name: str) -> Callable[[], AgentReport]:
    disk = AgentDisk(name="sda", device="/dev/sda", sectors=2048, mode="ordered", state="ordered")
    return lambda: AgentReport(machine=name, state="ordered", disks=[disk])


async def nothing(_command: Command) -> dict[str, Any]:
    return {}

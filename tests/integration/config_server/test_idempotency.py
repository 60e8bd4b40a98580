"""A request that begins something, and is sent again since its answer was lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared import api
from shared.api.jobs import JobQuery, JobState
from shared.api.points import PointRequest
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import KeyUsedError, RequestError
from shared.status import AgentDisk, AgentReport
from tests.act_jobs import becomes
from tests.config_parts import ConfigServer, daemon


def report(epoch: int = 1, machine: str = "web1", **fields: object) -> AgentReport:
    disk = AgentDisk(name="loop0", device="/dev/loop0", sectors=2048, mode="ordered", state="ordered")
    return AgentReport(machine=machine, state="ordered", epoch=epoch, disks=[disk], **fields)  # type: ignore[arg-type]


@pytest.fixture
async def web1(operator: RestClient, agent: ControlClient) -> ControlClient:
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(report())
    return agent


async def test_with_the_same_key_it_begins_once(operator: RestClient, web1: ControlClient) -> None:
    begun = await asyncio.gather(
        *(operator.call(api.RESYNC, Nothing(), machine="web1", key="k") for _ in range(5))
    )
    assert len({command.id for command in begun}) == 1
    id_ = begun[0].id
    [command] = await web1.report(report())
    await web1.report(report(epoch=2, results={command.id: {}}))
    again = await operator.call(api.RESYNC, Nothing(), machine="web1", key="k")
    assert (again.id, again.state) == (id_, "done"), "what has been done meanwhile is not begun anew"
    assert [job.kind for job in (await operator.call(api.JOBS, JobQuery())).jobs].count("resync") == 1
    actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
    assert actions.count("machine.resync") == 1


async def test_what_it_began_is_answered_also_where_it_could_not_begin_any_more(
    operator: RestClient, web1: ControlClient
) -> None:
    resync = await operator.call(api.RESYNC, Nothing(), machine="web1", key="k")
    point = await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="p")
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    for key in ("k", "p"):
        with pytest.raises(RequestError, match="it is not protected"):
            await operator.call(api.RESYNC, Nothing(), machine="web1", key=f"another {key}")
    assert (await operator.call(api.RESYNC, Nothing(), machine="web1", key="k")).id == resync.id
    assert (await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="p")).id == point.id
    actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
    assert actions.count("point.create") == 1


async def test_who_was_answered_with_anothers_resync_begins_none_when_he_asks_again(
    operator: RestClient, web1: ControlClient
) -> None:
    first = await operator.call(api.RESYNC, Nothing(), machine="web1", key="one")
    for _ in range(2):
        assert (await operator.call(api.RESYNC, Nothing(), machine="web1", key="two")).id == first.id
    [command] = await web1.report(report())
    await web1.report(report(epoch=2, results={command.id: {}}))
    await becomes(operator, first.id, JobState.DONE)
    assert (await operator.call(api.RESYNC, Nothing(), machine="web1", key="two")).id == first.id
    assert [job.kind for job in (await operator.call(api.JOBS, JobQuery())).jobs].count("resync") == 1


async def test_another_key_begins_another(operator: RestClient, web1: ControlClient) -> None:
    first = await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="one")
    again = await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="one")
    other = await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="two")
    assert (again.id, other.id == first.id) == (first.id, False)
    assert [command.id for command in await web1.report(report())] == [first.id, other.id]


async def test_a_key_is_of_one_request_alone(
    server: ConfigServer, operator: RestClient, web1: ControlClient, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web2", tmp_path / "web2")
    async with daemon(server, files) as web2:
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web2")
        await web2.report(report(machine="web2"))
    await operator.call(api.RESYNC, Nothing(), machine="web1", key="k")
    with pytest.raises(KeyUsedError, match="with this key the resync of 'web1' was begun"):
        await operator.call(api.RESYNC, Nothing(), machine="web2", key="k")
    made = await operator.call(api.POINT_CREATE, PointRequest(), machine="web1", key="k")
    assert made.kind == "mark", "a key is an operation's own"
    with pytest.raises(KeyUsedError, match="the id of another command"):
        await operator.call(api.POINT_CREATE, PointRequest(), machine="web2", key="k")


@pytest.mark.parametrize("key", ["x" * 256, "x" * 4000])
async def test_a_key_that_is_too_long_is_refused(operator: RestClient, web1: ControlClient, key: str) -> None:
    with pytest.raises(RequestError, match="its Idempotency-Key has"):
        await operator.call(api.RESYNC, Nothing(), machine="web1", key=key)

"""Jobs over the API: a resync from its beginning to its end, what people say of one, and what becomes of it when its server ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server.operations import resync
from config_server.store import journal, restored, sqlite
from shared import api
from shared.api.commands import CommandView
from shared.api.events import EventQuery
from shared.api.jobs import JobAct, JobProgress, JobQuery, JobState, JobView, StepState, WorkerState
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import (
    JobActError,
    JobNotFoundError,
    LaneTakenError,
    RequestError,
    TransientError,
    UnhealthyError,
)
from shared.status import AgentDisk, AgentReport
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.databases import opened


def report(state: str = "ordered", epoch: int = 1, **fields: Any) -> AgentReport:
    disk = AgentDisk(name="loop0", device="/dev/loop0", sectors=2048, mode="ordered", state=state)
    return AgentReport(machine="web1", state=state, epoch=epoch, disks=[disk], ring_b=64 << 20, **fields)


async def begin(operator: RestClient, agent: ControlClient) -> CommandView:
    """A resync of a machine that is in order; its agent has not heard of it yet."""
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(report())
    return await operator.call(api.RESYNC, Nothing(), machine="web1")


async def get(operator: RestClient, id_: str) -> JobView:
    return await operator.call(api.JOB, Nothing(), id=id_)


async def becomes(operator: RestClient, id_: str, *states: JobState) -> JobView:
    async def is_so() -> bool:
        return (await get(operator, id_)).state in states

    await until(is_so)
    return await get(operator, id_)


async def begun(operator: RestClient, id_: str, step: str) -> JobView:
    async def is_so() -> bool:
        return step in [each.name for each in (await get(operator, id_)).steps]

    await until(is_so)
    return await get(operator, id_)


def states(job: JobView) -> dict[str, StepState]:
    return {step.name: step.state for step in job.steps}


async def test_a_resync_is_done_when_its_agent_has_read_all_disks_again(
    operator: RestClient, agent: ControlClient
) -> None:
    asked = await begin(operator, agent)
    waits = await becomes(operator, asked.id, JobState.WAITING)
    assert (waits.kind, waits.machine, waits.who) == ("resync", "web1", "operator:admin")
    assert waits.waits == "the agent to take it"
    assert waits.allowed == [JobAct.CANCEL, JobAct.RETRY]
    [command] = await agent.report(report())
    assert command.id == asked.id
    await agent.report(report("resync", epoch=2, results={asked.id: {}}))
    copies = await begun(operator, asked.id, "copy")
    assert copies.steps[0].state is StepState.DONE
    await agent.report(report("ordered", epoch=2))
    await operator.call(api.JOB_RETRY, Nothing(), id=asked.id)
    done = await becomes(operator, asked.id, JobState.DONE)
    assert states(done) == {"ask": StepState.DONE, "copy": StepState.DONE}
    assert (done.result, done.allowed) == ({"epoch": 2}, [])


async def test_the_old_epoch_is_no_end(operator: RestClient, agent: ControlClient) -> None:
    asked = await begin(operator, agent)
    await agent.report(report(results={asked.id: {}}))
    copies = await begun(operator, asked.id, "copy")
    assert copies.state is not JobState.DONE


async def test_cancelled_before_its_agent_takes_it_nothing_begins(
    operator: RestClient, agent: ControlClient
) -> None:
    asked = await begin(operator, agent)
    await becomes(operator, asked.id, JobState.WAITING)
    turned = await operator.call(api.JOB_CANCEL, Nothing(), id=asked.id)
    assert turned.cancelled_by == "operator:admin"
    ended = await becomes(operator, asked.id, JobState.CANCELLED)
    assert states(ended) == {"ask": StepState.UNDONE}
    assert await agent.report(report()) == []
    again = await operator.call(api.JOB_CANCEL, Nothing(), id=asked.id)
    assert again.state is JobState.CANCELLED, "a second time changes nothing, and is no error"
    actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
    assert actions.count("job.cancel") == 1


async def test_what_its_agent_refuses_is_why_it_failed(operator: RestClient, agent: ControlClient) -> None:
    asked = await begin(operator, agent)
    error = UnhealthyError("It was not begun", cause="a disk is gone").as_dict()
    await agent.report(report(results={asked.id: {"error": dict(error)}}))
    failed = await becomes(operator, asked.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause) == ("US642", "US400: It was not begun: a disk is gone")


@pytest.mark.parametrize("said", ["no", {}, {"code": 7}, None])
async def test_a_refusal_in_other_words_is_one_too(
    operator: RestClient, agent: ControlClient, said: object
) -> None:
    asked = await begin(operator, agent)
    await agent.report(report(results={asked.id: {"error": said}}))
    failed = await becomes(operator, asked.id, JobState.FAILED)
    assert failed.error is not None
    assert failed.error.cause == "it did not say why"


@pytest.mark.parametrize("code", ["US599", "US545", "US638", "US134"])
async def test_whatever_code_an_agent_says_it_is_a_refusal(
    operator: RestClient, agent: ControlClient, code: str
) -> None:
    """Some of them are of this server's own."""
    asked = await begin(operator, agent)
    await agent.report(report(results={asked.id: {"error": {"code": code, "what": "no"}}}))
    failed = await becomes(operator, asked.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause) == ("US642", f"{code}: no")


async def test_of_megabytes_that_an_agent_says_as_much_is_kept_as_a_person_reads(
    operator: RestClient, agent: ControlClient
) -> None:
    asked = await begin(operator, agent)
    said = dict.fromkeys(("what", "cause", "action"), "x" * 300_000)
    await agent.report(report(results={asked.id: {"error": {"code": "US400", **said}}}))
    failed = await becomes(operator, asked.id, JobState.FAILED)
    assert failed.error is not None
    assert len(msgspec.json.encode(failed)) < 10_000


async def test_who_cannot_do_it_just_now_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, operator: RestClient, agent: ControlClient
) -> None:
    monkeypatch.setattr(resync, "pause_s", lambda _tries: 0.1)
    asked = await begin(operator, agent)
    busy = TransientError("It was not begun", cause="a snapshot is being made").as_dict()
    await agent.report(report(results={asked.id: {"error": dict(busy)}}))

    async def is_asked_again() -> bool:
        return [command.id for command in await agent.report(report())] == [f"{asked.id}-1"]

    await until(is_asked_again)
    await agent.report(report("ordered", epoch=2, results={f"{asked.id}-1": {}}))
    assert (await becomes(operator, asked.id, JobState.DONE)).result == {"epoch": 2}


async def test_who_can_never_do_it_is_asked_so_often_and_no_more(
    monkeypatch: pytest.MonkeyPatch, operator: RestClient, agent: ControlClient
) -> None:
    monkeypatch.setattr(resync, "pause_s", lambda _tries: 0.0)
    monkeypatch.setattr(resync, "_SOON_S", 0.1)
    asked = await begin(operator, agent)
    busy = TransientError("It was not begun").as_dict()
    seen = set[str]()

    async def is_refused() -> bool:
        commands = await agent.report(report(results={id_: {"error": dict(busy)} for id_ in seen}))
        seen.update(command.id for command in commands)
        return (await get(operator, asked.id)).state is JobState.FAILED

    await until(is_refused)
    assert len(seen) == 8


async def test_cancelled_and_asked_for_again_at_once_it_is_another_one(
    operator: RestClient, agent: ControlClient
) -> None:
    first = await begin(operator, agent)
    await operator.call(api.JOB_CANCEL, Nothing(), id=first.id)
    second = await operator.call(api.RESYNC, Nothing(), machine="web1")
    assert second.id != first.id
    await becomes(operator, first.id, JobState.CANCELLED)
    assert [command.id for command in await agent.report(report())] == [second.id]
    await agent.report(report("ordered", epoch=2, results={second.id: {}}))
    await becomes(operator, second.id, JobState.DONE)


async def test_one_whose_epoch_is_not_known_yet_is_refused(
    operator: RestClient, agent: ControlClient
) -> None:
    """What it says next may be the old one, or a new one."""
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    await agent.report(AgentReport(machine="web1", state="starting"))
    with pytest.raises(RequestError, match="has not said which"):
        await operator.call(api.RESYNC, Nothing(), machine="web1")
    await agent.report(report(epoch=5))
    asked = await operator.call(api.RESYNC, Nothing(), machine="web1")
    await agent.report(report(epoch=5, results={asked.id: {}}))
    copies = await begun(operator, asked.id, "copy")
    assert copies.args == {"after": 5}
    assert copies.state is not JobState.DONE


def put_back(server: ConfigServer, change: str = "") -> None:
    """As restoring does it, with a command in the state of before."""
    with opened(server.config.data_dir / "state.db") as db:
        restored.prepare(db, time.time_ns())
        if change:
            sqlite.raw_of(db).execute(change)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("is_forgotten", [True, False])
async def test_put_back_it_is_asked_for_again_only_where_the_agent_has_not_begun_it_since(
    tmp_path: Path, taken: bool, is_forgotten: bool
) -> None:
    server = ConfigServer(config_for(tmp_path), 0)
    async with running(server.config) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(first, files) as agent:
            asked = await begin(operator, agent)
            await becomes(operator, asked.id, JobState.WAITING)
    put_back(server, "DELETE FROM commands" if is_forgotten else "")
    async with running(server.config) as second, second.operator() as operator:
        await operator.call(api.JOB_RETRY, Nothing(), id=asked.id)
        waits = await becomes(operator, asked.id, JobState.WAITING)
        assert waits.waits == "the agent of web1 to report"
        async with daemon(second, files) as agent:
            await agent.report(report("resync", epoch=2) if taken else report())
            await operator.call(api.JOB_RETRY, Nothing(), id=asked.id)
            if taken:
                await begun(operator, asked.id, "copy")
                assert await agent.report(report("ordered", epoch=2)) == []
            else:

                async def is_asked() -> bool:
                    asks = [command.id for command in await agent.report(report())]
                    return asks == [asked.id if is_forgotten else f"{asked.id}-1"]

                await until(is_asked)
                id_ = asked.id if is_forgotten else f"{asked.id}-1"
                await agent.report(report("ordered", epoch=2, results={id_: {}}))
            assert (await becomes(operator, asked.id, JobState.DONE)).result == {"epoch": 2}


async def test_while_one_copies_there_is_no_other(operator: RestClient, agent: ControlClient) -> None:
    asked = await begin(operator, agent)
    same = await operator.call(api.RESYNC, Nothing(), machine="web1")
    assert same.id == asked.id, "its agent has not taken it yet"
    await agent.report(report("resync", epoch=2, results={asked.id: {}}))
    await begun(operator, asked.id, "copy")
    with pytest.raises(LaneTakenError, match=f"its resync is under way \\(job {asked.id}\\)"):
        await operator.call(api.RESYNC, Nothing(), machine="web1")
    found = await operator.call(api.JOBS, JobQuery(machine="web1", active=True))
    assert [job.id for job in found.jobs if job.kind == "resync"] == [asked.id]
    assert (await operator.call(api.JOBS, JobQuery(machine="web2"))).jobs == []


async def test_what_cannot_be_said_of_a_job_is_refused(operator: RestClient, agent: ControlClient) -> None:
    asked = await begin(operator, agent)
    await becomes(operator, asked.id, JobState.WAITING)
    with pytest.raises(JobActError, match="it is waiting; possible is: cancel, retry"):
        await operator.call(api.JOB_ABANDON, Nothing(), id=asked.id)
    with pytest.raises(JobNotFoundError):
        await operator.call(api.JOB_CANCEL, Nothing(), id="none")
    told = JobProgress(state=WorkerState.DONE)
    assert (await operator.call(api.JOB_UPDATE, told, id=asked.id)).state is JobState.WAITING


async def test_another_start_goes_on_with_it(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(first, files) as agent:
            asked = await begin(operator, agent)
            await becomes(operator, asked.id, JobState.WAITING)
    async with (
        running(config_for(tmp_path)) as second,
        second.operator() as operator,
        daemon(second, files) as agent,
    ):
        await agent.report(report("ordered", epoch=2, results={asked.id: {}}))
        assert (await becomes(operator, asked.id, JobState.DONE)).result == {"epoch": 2}


async def test_of_a_database_that_was_put_back_a_person_says_how_they_go_on(
    tmp_path: Path, server: ConfigServer
) -> None:
    async with server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(server, files) as agent:
            asked = await begin(operator, agent)
            await becomes(operator, asked.id, JobState.WAITING)
    with opened(server.config.data_dir / "state.db") as db:
        journal.hold_unended(db, "the database was put back")
    async with server.operator() as operator:

        async def is_told() -> bool:
            events = (await operator.call(api.EVENTS, EventQuery(object="web1", open=True))).events
            return any(event.code == "US638" and asked.id in event.what for event in events)

        await until(is_told)
        held = await get(operator, asked.id)
        assert (held.state, held.allowed) == (JobState.ATTENTION, list(JobAct))
        ended = await operator.call(api.JOB_ABANDON, Nothing(), id=asked.id)
        assert (ended.state, ended.allowed) == (JobState.ABANDONED, [])

        async def is_over() -> bool:
            return not await is_told()

        await until(is_over)


def test_the_steps_are_those_of_its_version() -> None:
    kind = resync.kind(None)  # type: ignore[arg-type]
    assert (kind.version, kind.names) == (resync.VERSION, ["ask", "copy"]), "others are another version"

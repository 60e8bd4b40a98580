"""The job of a deletion: what it shows from the day on which that is asked for, until the machine is in no list any more. A real config
server, and real storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from config_server import background
from config_server.store import deletions, restored
from config_server.store.schema import jobs
from shared import api
from shared.api.copies import RebindRequest
from shared.api.events import EventQuery, EventView
from shared.api.jobs import JobAct, JobQuery, JobState, JobView
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.errors import BeingDeletedError, JobActError
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, running, until
from tests.deletions import (
    HARDWARE,
    delete,
    deletion_of,
    folder,
    is_gone,
    is_waiting,
    kept,
    opened,
    pass_delay,
    shown,
    stops,
)
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import FaultProxy, Stall


async def job(operator: RestClient, id_: str) -> JobView:
    return await operator.call(api.JOB, Nothing(), id=id_)


async def jobs_of(operator: RestClient, machine: str = "web1") -> list[JobView]:
    """Of deletions, the newest first."""
    found = (await operator.call(api.JOBS, JobQuery(machine=machine))).jobs
    return [one for one in found if one.kind == "delete"]


async def is_in(operator: RestClient, id_: str, state: JobState) -> JobView:
    async def so() -> bool:
        return (await job(operator, id_)).state is state

    await until(so)
    return await job(operator, id_)


async def test_it_waits_for_the_day_and_is_done_when_the_machine_is_gone(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    said = await delete(operator)
    [begun] = await jobs_of(operator)
    assert (begun.id, begun.who) == (said.job, "operator:admin")
    waiting = await is_in(operator, said.job, JobState.WAITING)
    assert waiting.allowed == [JobAct.CANCEL, JobAct.RETRY]
    assert said.deletion is not None and said.deletion.due is not None
    assert said.deletion.due[:10] in waiting.waits
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    done = await job(operator, said.job)
    assert (done.state, done.result) == (
        JobState.DONE,
        {"container": machine.store.container, "points": said.deletion.points},
    ), "with the transaction that ends the deletion"


async def test_who_cancels_it_takes_the_deletion_back_and_who_takes_that_back_cancels_it(
    operator: RestClient, web1: ObedientAgent
) -> None:
    for take_back in ("cancel", "keep"):
        said = await delete(operator)
        if take_back == "cancel":
            await operator.call(api.JOB_CANCEL, Nothing(), id=said.job)
        else:
            assert (await kept(operator)).taken_back
        assert (await shown(operator)).deletion is None
        ended = await is_in(operator, said.job, JobState.CANCELLED)
        assert ended.cancelled_by == "operator:admin"
        again = await operator.call(api.JOB_CANCEL, Nothing(), id=said.job)
        assert again.state is JobState.CANCELLED, "it changes nothing"
    assert [one.state for one in await jobs_of(operator)] == [JobState.CANCELLED] * 2


async def test_said_again_it_is_the_same_job_and_sees_to_the_later_one(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    first, second = await delete(operator), await delete(operator)
    assert first.job == second.job
    stopped = await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    assert stopped.job == first.job, "that it is to stop was said with it, too"
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    assert (await job(operator, first.job)).state is JobState.DONE
    assert len(await jobs_of(operator)) == 1


async def test_bound_to_other_hardware_it_stands_for_a_person_when_its_day_comes_and_nothing_takes_its_place(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    first = await delete(operator)
    for identity in ("hw2", "hw1", "hw2"):
        bound = await operator.call(api.REBIND, RebindRequest(identity=identity), machine="web1")
        assert bound.job == first.job
    pass_delay(folder(server))
    await is_in(operator, first.job, JobState.ATTENTION)
    assert (await shown(operator)).deletion is not None, "a person says whether it stands"
    second = await delete(operator)
    assert (await job(operator, first.job)).superseded_by == second.job
    assert (await job(operator, second.job)).state in (JobState.RUNNING, JobState.WAITING)


async def test_what_was_put_back_waits_for_a_person_with_the_deletions_own_event(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    said = await delete(operator)
    with opened(folder(server)) as db:
        restored.prepare(db, 1)
    await is_waiting(operator, "US631")
    await is_in(operator, said.job, JobState.ATTENTION)
    await operator.call(api.JOB_RETRY, Nothing(), id=said.job)
    await is_in(operator, said.job, JobState.ATTENTION)

    async def told() -> list[EventView]:
        found = (await operator.call(api.EVENTS, EventQuery(open=True))).events
        return [event for event in found if event.object == "web1"]

    async def is_told() -> bool:
        return "US631" in [event.code for event in await told()]

    await until(is_told)
    of_its_job = [event.what for event in await told() if said.job in event.what]
    assert of_its_job == [], "one cause, one event"
    assert JobAct.ABANDON not in (await job(operator, said.job)).allowed
    with pytest.raises(JobActError, match="would go on"):
        await operator.call(api.JOB_ABANDON, Nothing(), id=said.job)
    second = await delete(operator)
    assert (await job(operator, said.job)).superseded_by == second.job


@pytest.fixture
def tidies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon. Asked for before the server."""
    monkeypatch.setattr(background, "_TIDY_S", 0.1)


async def test_one_of_a_newer_version_that_was_cancelled_is_ended_by_a_person(
    tidies: None, server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    """The deletion is taken back; nobody here could see to the rest."""
    said = await delete(operator)
    with opened(folder(server)) as db:
        newer = update(jobs).where(jobs.c.id == said.job)
        db.execute(newer.values(version=2, waits="", lease_ns=0, owner="", word=""))
    await operator.call(api.JOB_CANCEL, Nothing(), id=said.job)
    with opened(folder(server)) as db:  # a minute passes
        db.execute(update(jobs).values(updated_ns=0))
    await is_in(operator, said.job, JobState.ATTENTION)
    assert (await shown(operator)).deletion is None
    ended = await operator.call(api.JOB_ABANDON, Nothing(), id=said.job)
    assert ended.state is JobState.ABANDONED


async def test_one_that_stood_goes_on_when_what_it_stood_for_is_over(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    """Another account is configured for a while, say."""
    said = await delete(operator)
    with opened(folder(server)) as db:
        place = deletion_of(db).place
        deletions.put(db, "web1", msgspec.structs.replace(deletion_of(db), place="another account"))
    await is_in(operator, said.job, JobState.ATTENTION)
    stopped = await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    assert stopped.job == said.job, "it keeps its place"
    with opened(folder(server)) as db:
        deletions.put(db, "web1", msgspec.structs.replace(deletion_of(db), place=place))
    await is_in(operator, said.job, JobState.WAITING)


async def test_it_is_not_cancelled_once_storage_was_asked_and_waits_for_a_person_where_nobody_knows_what_came_of_it(
    machine: ModelMachine, proxy: FaultProxy, blob_config: BlobConfig, tmp_path: Path
) -> None:
    config = config_for(tmp_path, blob=proxy.config(blob_config.container), vault_file=machine.vault.path)
    async with running(config) as server, server.operator() as operator:
        files: TlsFiles = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(server, files) as agent:
            await agent.report(**HARDWARE)
            said = await delete(operator)
            await stops(agent)
        # Nobody knows what becomes of the request, until somebody looks.
        proxy.add(Stall(), method="DELETE", times=None)
        pass_delay(folder(server))

        async def is_removing() -> bool:
            found = (await shown(operator)).deletion
            return found is not None and found.stage == "removing"

        await until(is_removing)
        with pytest.raises(BeingDeletedError):
            await operator.call(api.JOB_CANCEL, Nothing(), id=said.job)
        assert JobAct.CANCEL not in (await job(operator, said.job)).allowed
    proxy.clear()
    async with running(config) as server, server.operator() as operator:
        await is_waiting(operator, "US631")
        await is_in(operator, said.job, JobState.ATTENTION)
        second = await delete(operator)
        pass_delay(folder(server))
        await until(lambda: is_gone(operator))
        assert (await job(operator, second.job)).state is JobState.DONE
        assert (await job(operator, said.job)).superseded_by == second.job


async def test_two_that_cancel_and_keep_at_once_take_it_back_once(
    operator: RestClient, web1: ObedientAgent
) -> None:
    said = await delete(operator)
    await asyncio.gather(
        operator.call(api.JOB_CANCEL, Nothing(), id=said.job), kept(operator), kept(operator)
    )
    assert (await shown(operator)).deletion is None
    await is_in(operator, said.job, JobState.CANCELLED)

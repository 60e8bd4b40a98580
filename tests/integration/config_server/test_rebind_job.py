"""The job that sees whether new hardware takes a machine up; and what becomes of others when a machine is bound or deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from config_server.operations import desired_state, sides
from config_server.store import journal
from shared import api
from shared.api.copies import RebindRequest, SideView
from shared.api.jobs import JobState, StepState
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import CopyRefusedError
from shared.machine import active_side
from shared.machine.storage import MachineStorage
from shared.status import ProcessServerReport, StreamReport
from shared.trust.tls import TlsFiles
from tests import deletions
from tests.act_jobs import becomes, cancel, ended, hurry, protect, shown, states, unprotect, waits_for
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.databases import opened
from tests.deletions import delete, is_gone, pass_delay
from tests.obedient_agent import ObedientAgent, obedient_agent

OLD: Final[Mapping[str, Any]] = {"identity": "old", "boot": "1"}
NEW: Final[Mapping[str, Any]] = {"identity": "new", "boot": "2"}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
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
    async with obedient_agent(server, files) as agent:
        await agent.report(**OLD)
        yield agent


@pytest.fixture
async def other(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    """The new hardware."""
    async with obedient_agent(server, files) as agent:
        yield agent


@pytest.fixture
async def ps1(server: ConfigServer, tmp_path: Path) -> AsyncIterator[ControlClient]:
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    async with daemon(server, files) as client:
        yield client


def serving(boot: str) -> ProcessServerReport:
    return ProcessServerReport(machines={"web1": StreamReport(connected=bool(boot), boot=boot, epoch=1)})


async def rebind(operator: RestClient, identity: str) -> SideView:
    return await operator.call(api.REBIND, RebindRequest(identity=identity), machine="web1")


async def test_it_is_done_when_the_new_hardware_reports_and_a_process_server_serves_it(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent, ps1: ControlClient
) -> None:
    said = await protect(operator, "sda")
    for _ in range(2):
        await former.report(**OLD)
    await ended(operator, said.job)
    await ps1.report(serving("1"))
    bound = await rebind(operator, "new")
    waits = await waits_for(operator, bound.job, "the agent of new, which has not reported yet")
    assert (waits.kind, waits.machine, waits.who) == ("rebind", "web1", "operator:admin")
    assert waits.args == {"identity": "new", "generation": bound.generation, "before": "old"}
    assert states(waits)["set"] is StepState.DONE
    again = await rebind(operator, "new")
    assert (again.repeated, again.job) == (True, bound.job)
    await ps1.report(serving(""))
    other.captured = ()
    await other.report(**NEW)
    await waits_for(operator, bound.job, "disks of new to be named")
    other.captured = ("sda",)
    await other.report(**NEW)
    await waits_for(operator, bound.job, "a process server to say that it serves new")
    await ps1.report(serving("2"))
    done = await ended(operator, bound.job)
    assert (done.state, states(done)) == (JobState.DONE, {"set": StepState.DONE, "follow": StepState.DONE})
    assert (await rebind(operator, "new")).job == "", "it is so already"


async def test_of_a_machine_that_is_not_replicated_its_report_is_enough(
    operator: RestClient, other: ObedientAgent
) -> None:
    bound = await rebind(operator, "new")
    other.captured = ()
    await other.report(**NEW)
    assert (await ended(operator, bound.job)).state is JobState.DONE


async def test_what_was_to_be_protected_is_when_the_machine_is_bound_to_other_hardware_meanwhile(
    operator: RestClient, former: ObedientAgent, other: ObedientAgent
) -> None:
    former.obeys = False
    said = await protect(operator, "sda", "sdb")
    await waits_for(operator, said.job, "to do so")
    bound = await rebind(operator, "new")
    job = await ended(operator, said.job)
    assert (job.state, job.superseded_by) == (JobState.CANCELLED, bound.job)
    holds = await shown(operator)
    assert holds.wish is not None
    assert said.wish is not None
    assert (holds.wish.mark, holds.protected) == (said.wish.mark, True)
    other.captured = ()
    await other.report(**NEW)
    assert (await shown(operator)).protected


async def test_cancelled_the_binding_stays_and_nobody_watches_it(
    operator: RestClient, machine_storage: MachineStorage, former: ObedientAgent
) -> None:
    bound = await rebind(operator, "new")
    await waits_for(operator, bound.job, "the agent of new")
    await cancel(operator, bound.job)
    assert (await ended(operator, bound.job)).state is JobState.CANCELLED
    side = await active_side.find(await machine_storage.find("web1"))
    assert side is not None
    assert (side.identity, side.generation) == ("new", bound.generation)
    with pytest.raises(CopyRefusedError):
        await former.report(**OLD)
    watches = await rebind(operator, "new")
    assert (watches.repeated, watches.job not in ("", bound.job)) == (True, True)


async def test_bound_back_it_is_another_job_that_takes_the_place_of_the_first(
    operator: RestClient, former: ObedientAgent
) -> None:
    ids = [(await rebind(operator, identity)).job for identity in ("new", "old")]
    job = await ended(operator, ids[0])
    assert (job.state, job.superseded_by) == (JobState.CANCELLED, ids[1])
    former.captured = ()
    await former.report(**OLD)
    assert (await ended(operator, ids[1])).state is JobState.DONE


async def test_where_it_is_bound_to_something_else_it_fails_and_that_holds(
    operator: RestClient, machine_storage: MachineStorage, other: ObedientAgent
) -> None:
    bound = await rebind(operator, "new")
    await waits_for(operator, bound.job, "the agent of new")
    await active_side.change(await machine_storage.find("web1"), "web1", "third")
    await other.report(**{**NEW, "identity": "third"})
    failed = await ended(operator, bound.job)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause) == ("US133", "it is bound to third since")


async def test_of_a_database_that_was_put_back_it_is_only_looked_at_again(
    tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig, files: TlsFiles, server: ConfigServer
) -> None:  # fmt: skip
    async with server.operator() as operator:
        bound = await rebind(operator, "new")
        await waits_for(operator, bound.job, "the agent of new")
        with opened(server.config.data_dir / "state.db") as db:
            assert journal.hold_unended(db, "it was put back") == [bound.job]
        await becomes(operator, bound.job, JobState.ATTENTION)
        await active_side.change(await machine_storage.find("web1"), "web1", "third")
        async with obedient_agent(server, files) as agent:
            await agent.report(**{**NEW, "identity": "third"})
        await operator.call(api.JOB_RETRY, Nothing(), id=bound.job)
        assert (await ended(operator, bound.job)).state is JobState.FAILED
    side = await active_side.find(await machine_storage.find("web1"))
    assert side is not None
    assert side.identity == "third"


async def test_a_deletion_takes_the_place_of_all(operator: RestClient, former: ObedientAgent) -> None:
    former.epoch = 1
    said = await protect(operator, "sda")
    for _ in range(2):
        await former.report(**OLD)
    await ended(operator, said.job)
    asked = await operator.call(api.RESYNC, Nothing(), machine="web1")
    said = await protect(operator, "sda", "sdb")
    deletion = await delete(operator)
    for id_ in (asked.id, said.job):
        job = await ended(operator, id_)
        assert (job.state, job.superseded_by) == (JobState.CANCELLED, deletion.job)
    assert not (await shown(operator)).protected


async def test_a_stop_for_an_agent_that_never_comes_is_seen_to_by_the_deletion(
    tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine_storage.find_or_create("web1")
    config = config_for(tmp_path, blob=blob_config)
    async with running(config) as first, first.operator() as operator:
        await protect(operator, "sda", offline=True)
        deletion = await delete(operator)
        said = await unprotect(operator)
        assert said.job == deletion.job
    pass_delay(config.data_dir)
    deletions.hurry(monkeypatch)
    async with running(config) as second, second.operator() as operator:
        await until(lambda: is_gone(operator))
        assert (await ended(operator, said.job)).state is JobState.DONE

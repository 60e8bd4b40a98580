"""A restore as a job, by the real command, from a real config server and real storage: who ends it, and who does not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from config_server.cli import access, restore_command
from config_server.cli.options import Target
from config_server.config import ConfigServerConfig
from config_server.operations import restore_job
from config_server.store import restored, restores
from config_server.store.config import DatabaseConfig
from config_server.store.database import Connection
from shared import api
from shared.api.audit import AuditView
from shared.api.events import EventQuery, EventView
from shared.api.jobs import JobAct, JobProgress, JobQuery, JobState, JobView, StepState, WorkerState
from shared.api.protection import Protection
from shared.api.restores import GrantState, RestoreGrant, RestoreRequest
from shared.api.route import Failure, Limit, Nothing, Page
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.errors import GrantEndedError, KeyUsedError, RestoreCancelledError
from shared.machine.storage import MachineStorage
from shared.recovery.folder import JOURNAL, Manifest
from shared.trust import tls
from tests import older_jobs
from tests.azurite import Azurite
from tests.cli import begun, ended
from tests.config_parts import ConfigServer, config_for, running, until
from tests.cut_line import CutLine
from tests.databases import opened
from tests.impostor import Answers, answering
from tests.machine_log import ModelMachine
from tests.pki import TestCa
from tests.storage_faults import Answer, FaultProxy

_DEADLINE_S: Final = 30.0
REQUEST: Final = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was granted counts at once here, and nobody waits long for what he hears at once or never."""
    monkeypatch.setattr(access, "COUNTS_EVERYWHERE_S", 0.0)
    monkeypatch.setattr(restore_command, "_REPORT_S", 0.2)
    monkeypatch.setattr(restore_job, "_LOOK_S", 0.2)
    monkeypatch.setattr(restore_job, "_SOON_S", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed within a second."""
    monkeypatch.setattr(restore_job, "SILENT_S", 1.0)


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    for _ in range(6):
        model.write()
    await model.publish(segments=3)
    return model


BOTH: Final = pytest.mark.parametrize("off", ["sqlite", "postgresql"], indirect=True)
"""Databases."""


@pytest.fixture
def proxy(azurite: Azurite) -> FaultProxy:
    return FaultProxy(azurite)


@dataclasses.dataclass
class Site:
    config: ConfigServerConfig
    machine: ModelMachine
    proxy: FaultProxy
    line: CutLine
    """Between the command and the config server."""
    to: Path
    operator: RestClient = dataclasses.field(init=False)
    server: ConfigServer = dataclasses.field(init=False)

    @contextlib.asynccontextmanager
    async def serves(self) -> AsyncIterator[None]:
        """A config server; the line leads to it."""
        async with running(self.config) as self.server, self.server.operator() as self.operator:
            self.line.leads = self.server.port
            await self.operator.call(
                api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1"
            )
            yield

    def target(self) -> Target:
        url = f"https://127.0.0.1:{self.line.port}"
        return Target(url, self.server.operator_token, self.config.data_dir / "ca.pem", None)

    async def restore(self) -> Manifest:
        return await restore_command._restore(self.target(), "web1", "latest", self.to)

    async def begins(self) -> asyncio.Task[Manifest]:
        """One that has asked for a segment, which it does not get until the proxy is cleared."""
        task = asyncio.create_task(self.restore())
        await self.held_up(task)
        return task

    def hold_up(self) -> None:
        # Two plans and the check of the key read four times before the first one.
        self.proxy.add(Answer(503, "ServerBusy"), method="GET", blob="logs/*.seg", nth=6, times=None)

    async def held_up(self, task: asyncio.Task[Any]) -> None:
        async with asyncio.timeout(_DEADLINE_S):
            while not self.proxy.struck and not task.done():  # noqa: ASYNC110 - what the proxy's thread does has no event
                await asyncio.sleep(0.01)
        if task.done():
            task.result()

    async def jobs(self) -> list[JobView]:
        """Of restores, the newest one first."""
        found = (await self.operator.call(api.JOBS, JobQuery())).jobs
        return [job for job in found if job.kind == "restore"]

    async def job(self) -> JobView:
        """The newest one."""
        return (await self.jobs())[0]

    async def becomes(self, *states: JobState) -> JobView:
        async def is_so() -> bool:
            return (await self.job()).state in states

        await until(is_so)
        return await self.job()

    async def grants(self) -> list[GrantState]:
        return [g.state for g in (await self.operator.call(api.GRANTS, Limit(), machine="web1")).grants]

    async def policies(self) -> int:
        """How many may read the container now, by storage's word."""
        return len(await self.machine.store.policies.list())

    async def events(self) -> list[EventView]:
        return (await self.operator.call(api.EVENTS, EventQuery(object="web1"))).events

    async def audit(self) -> list[AuditView]:
        return (await self.operator.call(api.AUDIT, Page())).entries

    async def say(self, id_: str, state: WorkerState, **more: Any) -> JobView:
        return await self.operator.call(api.JOB_UPDATE, JobProgress(state=state, **more), id=id_)

    async def cancel(self, id_: str) -> JobView:
        return await self.operator.call(api.JOB_CANCEL, Nothing(), id=id_)

    async def granted(self, **more: Any) -> RestoreGrant:
        """By hand, for a command that is this test."""
        request = RestoreRequest(to="/x", host="rescue1", **more)
        return await self.operator.call(api.RESTORE, request, machine="web1")

    def is_whole(self) -> bool:
        found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.to.glob("*.raw"))]
        return found == self.machine.sha256()


@pytest.fixture
async def off(
    machine: ModelMachine,
    proxy: FaultProxy,
    blob_config: BlobConfig,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Site]:
    """Whose config server does not run yet."""
    on_postgresql = getattr(request, "param", "") == "postgresql"
    database = request.getfixturevalue("database_config") if on_postgresql else DatabaseConfig()
    with proxy:
        blob = proxy.config(blob_config.container)
        config = config_for(tmp_path, blob=blob, vault_file=machine.vault.path, database=database)
        async with CutLine() as line:
            yield Site(config, machine, proxy, line, tmp_path / "out")


@pytest.fixture
async def site(off: Site) -> AsyncIterator[Site]:
    async with off.serves():
        yield off


def steps(job: JobView) -> dict[str, StepState]:
    return {step.name: step.state for step in job.steps}


GONE: Final = {"grant": StepState.UNDONE, "watch": StepState.UNDONE}


# ---- it runs to its end


@BOTH
async def test_it_is_shown_as_it_goes_and_done_when_its_command_says_so(site: Site) -> None:
    site.hold_up()
    restoring = await site.begins()

    async def is_shown() -> bool:
        job = await site.job()
        return "replaying the log" in job.detail and job.state is JobState.WAITING

    await until(is_shown)
    job = await site.job()
    assert (job.kind, job.who, job.state) == ("restore", "operator:admin", JobState.WAITING)
    assert job.waits == f"the command on {job.args['host']}, which does it"
    assert (job.progress is not None, job.allowed) == (True, [JobAct.CANCEL, JobAct.RETRY])
    assert "request" not in job.args
    site.proxy.clear()
    manifest = await restoring
    job = await site.job()
    assert (job.state, job.result) == (JobState.DONE, {"point": manifest.id, "time": manifest.time})
    assert steps(job) == {"grant": StepState.DONE, "watch": StepState.DONE}
    assert (await site.grants(), await site.policies()) == ([GrantState.RETURNED], 0)
    [event] = [event for event in await site.events() if event.kind == "job"]
    assert event.what == f"The restore of web1 to {site.to} is done"
    assert site.is_whole()


async def test_nothing_that_opens_storage_stands_in_the_database(site: Site) -> None:
    granted = await site.granted()
    await site.becomes(JobState.WAITING)
    for file in site.config.data_dir.glob("state.db*"):
        for secret in (granted.storage.sas, granted.key.key):
            assert secret
            assert secret.encode() not in file.read_bytes()
    assert (await site.job()).args["grant"] == granted.storage.id


async def test_who_asks_again_with_the_same_id_has_the_same_job(site: Site) -> None:
    first = await site.granted(request=REQUEST)
    again = await site.granted(request=REQUEST)
    by_name = await site.granted(request=REQUEST, grant=first.storage.id)
    assert first.job == again.job == by_name.job == REQUEST[:16]
    assert len(await site.jobs()) == 1
    other = await site.granted(dry_run=True)
    with pytest.raises(KeyUsedError, match="was not begun"):
        await site.granted(request=REQUEST, grant=other.storage.id)
    assert (await site.granted()).job not in ("", first.job), "several at once are fine"


async def test_one_that_fails_ends_with_its_commands_own_error_and_its_grant_goes_back(site: Site) -> None:
    granted = await site.granted()
    error = Failure("US475", "The disk is full", cause="no room", exit_code=5)
    await site.say(granted.job, WorkerState.FAILED, error=error)
    job = await site.becomes(JobState.FAILED)
    assert (job.error, steps(job)) == (error, GONE)
    assert (await site.grants(), await site.policies()) == ([GrantState.RETURNED], 0)
    [event] = [event for event in await site.events() if event.kind == "job"]
    assert (event.code, event.what) == ("US475", "The restore of web1 to /x has failed")


async def test_who_says_that_it_has_ended_is_answered_when_the_job_has(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_job, "_LOOK_S", 3600.0)
    granted = await site.granted()
    said = JobProgress(state=WorkerState.DONE)
    async with asyncio.timeout(_DEADLINE_S):
        job = await site.operator.call(api.JOB_UPDATE, said, id=granted.job, wait_s=2 * _DEADLINE_S)
    assert job.state is JobState.DONE


async def test_what_is_heard_behind_the_end_changes_nothing_and_two_reports_at_once_are_one_after_the_other(
    site: Site,
) -> None:
    granted = await site.granted()
    said = [WorkerState.DONE, WorkerState.RUNNING, WorkerState.FAILED]
    await asyncio.gather(*(site.say(granted.job, state, result={"n": 1}) for state in said))
    await site.say(granted.job, WorkerState.RUNNING, progress=0.5)
    job = await site.becomes(JobState.DONE, JobState.FAILED)
    for late in WorkerState:
        assert await site.say(granted.job, late, progress=0.25) == job
    assert len([event for event in await site.events() if event.kind == "job"]) == 1


@pytest.mark.parametrize("silent_s", [3600.0, -1.0])
async def test_a_word_that_comes_just_behind_a_look_is_not_slept_over(
    site: Site, monkeypatch: pytest.MonkeyPatch, silent_s: float
) -> None:
    """Neither is the job let go for an hour, nor does it stand still."""
    monkeypatch.setattr(restore_job, "_LOOK_S", 3600.0)
    monkeypatch.setattr(restore_job, "SILENT_S", silent_s)
    real, looked = restores.worker, False

    def worker(db: Connection, id_: str) -> restores.Worker:
        nonlocal looked
        seen = real(db, id_)
        if not looked:
            looked = True
            restores.hear(db, id_, JobProgress(state=WorkerState.DONE), "operator:admin", 1)
        return seen

    monkeypatch.setattr(restores, "worker", worker)
    await site.granted()
    await site.becomes(JobState.DONE)


# ---- somebody cancels it


async def test_cancelled_the_command_stops_at_once_says_who_and_goes_on_there_when_it_is_run_again(
    site: Site,
) -> None:
    site.hold_up()
    folder = site.config.data_dir
    process = await begun(
        *("restore", "web1", "--to", str(site.to), "--server", site.server.url),
        *("--token-file", str(folder / "operator.token"), "--ca-file", str(folder / "ca.pem")),
    )
    done = asyncio.create_task(ended(process))
    await site.held_up(done)
    job = await site.cancel((await site.job()).id)
    assert job.cancelled_by == "operator:admin"
    async with asyncio.timeout(_DEADLINE_S / 2):
        stopped = await done
    assert stopped.exit_code == 5
    assert (
        f"US646: The restore of 'web1' was cancelled.\n  Why: operator:admin cancelled its job {job.id}\n"
        in stopped.stderr
    )
    assert "run the same command again, and it goes on where it stopped" in stopped.stderr
    ended_job = await site.job()
    assert (ended_job.state, ended_job.error, steps(ended_job)) == (JobState.CANCELLED, None, GONE)
    assert (await site.grants(), await site.policies()) == ([GrantState.RETURNED], 0)
    [event] = [event for event in await site.events() if event.kind == "job"]
    assert (event.what, event.severity) == (f"The restore of web1 to {site.to} was cancelled", "info")
    assert (site.to / JOURNAL).exists()
    site.proxy.clear()
    await site.restore()
    assert site.is_whole()


@BOTH
async def test_a_command_that_is_cut_off_is_refused_by_storage_and_hears_it_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_job, "HEARS_S", 0.5)
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    job = await site.cancel((await site.job()).id)
    job = await site.becomes(JobState.CANCELLED)
    assert job.error is not None
    assert (job.error.code, steps(job)) == ("US553", GONE)
    assert "did not answer when it was cancelled" in job.error.cause
    assert (await site.grants(), await site.policies()) == ([GrantState.REVOKED], 0)
    assert not restoring.done(), "nobody told it"
    site.line.mend()
    with pytest.raises(RestoreCancelledError):
        await restoring
    assert (await site.job()).error is None, "it has stopped"


async def test_one_whose_storage_refuses_it_before_it_hears_of_the_cancel_says_that_it_was_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_job, "HEARS_S", 0.0)
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    await site.cancel((await site.job()).id)
    await site.becomes(JobState.CANCELLED)
    monkeypatch.setattr(restore_command, "_REPORT_S", 1e9)
    site.line.mend()
    site.proxy.clear()
    with pytest.raises(RestoreCancelledError) as stopped:
        await restoring
    assert isinstance(stopped.value.__cause__, GrantEndedError | None)


async def test_a_command_that_does_not_know_of_this_loses_its_access(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of before: it reports on, and looks at no answer."""
    monkeypatch.setattr(restore_job, "HEARS_S", 0.5)
    granted = await site.granted()
    await site.cancel(granted.job)

    async def is_over() -> bool:
        return (await site.say(granted.job, WorkerState.RUNNING)).state is JobState.CANCELLED

    await until(is_over)
    assert (await site.grants(), await site.policies()) == ([GrantState.REVOKED], 0)


@BOTH
async def test_a_grant_that_two_restores_name_goes_with_the_last(site: Site) -> None:
    first = await site.granted()
    second = await site.granted(grant=first.storage.id)
    await site.say(first.job, WorkerState.CANCELLED)

    async def is_cancelled() -> bool:
        return (await site.operator.call(api.JOB, Nothing(), id=first.job)).state is JobState.CANCELLED

    await until(is_cancelled)
    assert (await site.grants(), await site.policies()) == ([GrantState.GIVEN], 1)
    await site.say(second.job, WorkerState.CANCELLED)
    await site.becomes(JobState.CANCELLED)
    assert (await site.grants(), await site.policies()) == ([GrantState.RETURNED], 0)
    with pytest.raises(GrantEndedError):
        await site.granted(grant=first.storage.id)


async def test_while_storage_does_not_take_a_grant_back_the_job_goes_on_trying(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = await site.granted()
    rule = site.proxy.add(
        Answer(403, "AuthorizationPermissionMismatch"), method="PUT", comp="acl", times=None
    )
    await site.say(granted.job, WorkerState.FAILED, error=Failure("US475", "The disk is full"))

    async def has_failed() -> bool:
        return "grant: " in (await site.job()).waits

    await until(has_failed)  # eight times within some twenty minutes, before a person is asked
    job = await site.job()
    assert (rule.struck > 0, job.error is not None and job.error.code) == (True, "US475")
    site.proxy.clear()
    await site.operator.call(api.JOB_RETRY, Nothing(), id=job.id)
    job = await site.becomes(JobState.FAILED)
    assert (job.error is not None and job.error.code, await site.policies()) == ("US475", 0)


# ---- nothing is heard of it


@BOTH
async def test_one_that_is_cut_off_keeps_its_access_and_the_job_goes_on_with_its_next_word(
    site: Site, impatient: None
) -> None:
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    job = await site.becomes(JobState.ATTENTION)
    assert job.error is not None
    assert (job.error.code, job.allowed) == ("US553", list(JobAct))
    assert "nothing is heard of the command on" in job.waits
    assert "its last word was at" in job.waits
    assert job.updated[:19] == job.waits.rpartition(" ")[2], "that nothing was heard is no change"
    assert f"understudy job cancel {job.id}" in job.error.action

    async def is_told() -> bool:
        return "US638" in [event.code for event in await site.events() if event.resolved is None]

    await until(is_told)
    assert (await site.grants(), await site.policies()) == ([GrantState.GIVEN], 1)
    assert not restoring.done()
    site.line.mend()
    job = await site.becomes(JobState.RUNNING, JobState.WAITING)
    assert job.error is None

    async def is_over() -> bool:
        return not await is_told()

    await until(is_over)
    site.proxy.clear()
    await restoring
    assert ((await site.job()).state, site.is_whole()) == (JobState.DONE, True)


async def test_one_that_is_cut_off_goes_on_to_its_end_and_the_job_stands(site: Site, impatient: None) -> None:
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    site.proxy.clear()
    await restoring
    assert site.is_whole()
    job = await site.becomes(JobState.ATTENTION)
    await site.operator.call(api.JOB_RETRY, Nothing(), id=job.id)
    await site.becomes(JobState.ATTENTION)
    await site.cancel(job.id)
    job = await site.becomes(JobState.CANCELLED)
    assert (job.error is not None and job.error.code, await site.policies()) == ("US553", 0)


async def test_one_that_is_abandoned_while_nothing_is_heard_keeps_its_access(
    site: Site, impatient: None
) -> None:
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    job = await site.becomes(JobState.ATTENTION)
    await site.operator.call(api.JOB_ABANDON, Nothing(), id=job.id)
    site.line.mend()
    site.proxy.clear()
    await restoring
    assert (site.is_whole(), (await site.job()).state) == (True, JobState.ABANDONED)


# ---- the config server


async def test_how_it_ended_is_said_again_while_the_server_does_not_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_command, "_REPORT_S", 1e9)
    site.hold_up()
    restoring = await site.begins()
    site.line.cut()
    site.line.refused.clear()
    site.proxy.clear()
    await site.line.refused.wait()
    site.line.mend()
    await restoring
    assert ((await site.job()).state, site.is_whole()) == (JobState.DONE, True)


async def test_another_start_of_the_server_goes_on_with_it(off: Site) -> None:
    off.hold_up()
    async with off.serves():
        restoring = await off.begins()
        id_ = (await off.job()).id
    async with off.serves():
        heard = (await off.job()).updated

        async def is_heard() -> bool:
            return (await off.job()).updated > heard

        await until(is_heard)
        assert not restoring.done()
        off.proxy.clear()
        await restoring
        job = await off.job()
        assert (job.id, job.state, await off.policies()) == (id_, JobState.DONE, 0)


async def test_of_a_database_that_was_put_back_it_goes_on_by_its_commands_word(off: Site) -> None:
    off.hold_up()
    async with off.serves():
        restoring = await off.begins()
        silent = await off.granted()
    with opened(off.config.data_dir / "state.db") as db:
        restored.prepare(db, 1)
    off.line.leads = 0
    async with off.serves():
        job = next(job for job in await off.jobs() if job.id != silent.job)

        async def state(id_: str) -> JobState:
            return (await off.operator.call(api.JOB, Nothing(), id=id_)).state

        async def goes_on() -> bool:
            return await state(job.id) in (JobState.RUNNING, JobState.WAITING)

        await until(goes_on)
        off.proxy.clear()
        await restoring
        assert (await state(job.id), await state(silent.job)) == (JobState.DONE, JobState.ATTENTION)
        assert off.is_whole()
        await off.cancel(silent.job)
        await off.becomes(JobState.CANCELLED)
        assert await off.policies() == 0


async def test_one_of_a_program_of_before_ends_as_it_did(off: Site) -> None:
    async with off.serves():
        pass
    with opened(off.config.data_dir / "state.db") as db:
        for number in range(3):
            older_jobs.create(db, f"j{number}", "restore", "web1", "operator:admin", {"to": "/x"}, 1)
    async with off.serves():
        assert (await off.say("j0", WorkerState.DONE)).state is JobState.DONE
        error = Failure("US475", "The disk is full")
        assert (await off.say("j1", WorkerState.FAILED, error=error)).error == error
        assert (await off.cancel("j2")).state is JobState.CANCELLED
        assert (await off.say("j2", WorkerState.RUNNING)).state is JobState.CANCELLED
        told = [event.what for event in await off.events() if event.kind == "job"]
        assert told == ["The restore of web1 to /x has failed", "The restore of web1 to /x is done"]


def older_view(state: str) -> dict[str, Any]:
    """A job as a config server of before shows it."""
    view: dict[str, Any] = {
        "id": "j1",
        "kind": "restore",
        "machine": "web1",
        "state": state,
        "progress": None,
    }
    return view | {"detail": "", "args": {}, "result": None, "error": None, "created": "", "updated": ""}


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_config_server_of_before_is_understood(
    site: Site, tmp_path: Path, is_cancelled: bool
) -> None:
    granted = await site.granted(dry_run=True)
    site.hold_up()
    ca = TestCa(tmp_path, "CA")
    said: list[str] = []
    shall_stop = False

    def update(report: dict[str, Any]) -> web.Response:
        said.append(report.get("state", "running"))
        state = "cancelled" if shall_stop and said[-1] == "running" else said[-1]
        return web.json_response(older_view(state))

    answers: Answers = {
        "restore": lambda asked: RestoreGrant(
            job="" if asked.get("dry_run") else "j1", storage=granted.storage, key=granted.key
        ),
        "job_update": update,
    }
    context = tls.server_context(ca.issue("config-server:cs1"), require_client=False)
    async with answering(context, answers) as url:
        target = Target(url, "token", ca.path, None)
        restoring = asyncio.create_task(restore_command._restore(target, "web1", "latest", site.to))
        await site.held_up(restoring)
        shall_stop = is_cancelled
        if is_cancelled:
            with pytest.raises(RestoreCancelledError, match="was cancelled"):
                await restoring
            assert said[-1] == "cancelled"
            return
        site.proxy.clear()
        await restoring
        assert (said[-1], site.is_whole()) == ("done", True)


def test_the_steps_are_those_of_its_version() -> None:
    kind = restore_job.kind(None, None)  # type: ignore[arg-type]
    assert (kind.version, kind.names) == (1, ["grant", "watch"]), "others are another version"
    assert kind.names == [*restores.STEPS]
    assert kind.fence == "watch", "no failure takes access from one that runs"

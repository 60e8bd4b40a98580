"""Jobs whose rows somebody has edited: they hide no other job, and are in the way of nothing that is said of their machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest
from sqlalchemy import text

from config_server.operations import deletion_job
from shared import api
from shared.api.copies import RebindRequest
from shared.api.jobs import JobAct, JobProgress, JobState, WorkerState
from shared.api.restores import RestoreRequest
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.errors import JobBugError
from tests.act_jobs import all_jobs, becomes, cancel, ended, get, hurry, protect, shown, unprotect
from tests.config_parts import ConfigServer, until
from tests.databases import opened
from tests.deletions import delete, is_gone, pass_delay
from tests.deletions import hurry as hurry_deletions

NONSENSE: Final = ("{", "[]", "{}", '{"act": 5, "identity": 7, "deletion": 7, "grant": 7}')


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    hurry_deletions(monkeypatch)
    monkeypatch.setattr(deletion_job, "LOOK_S", 0.05)


@pytest.fixture
def server(server_with_storage: ConfigServer) -> ConfigServer:
    return server_with_storage


@pytest.fixture
async def operator(server: ConfigServer) -> AsyncIterator[RestClient]:
    async with server.operator() as client:
        yield client


def edit(server: ConfigServer, job: str, args: str) -> None:
    with opened(server.config.data_dir / "state.db") as db:
        db.execute(
            text("UPDATE jobs SET args = :args, wake_ns = 0 WHERE id = :id"), {"args": args, "id": job}
        )


async def begun(operator: RestClient, kind: str) -> str:
    """A job of web1 that goes on for long, since its agent never comes."""
    job = (await protect(operator, "sda", offline=True)).job
    match kind:
        case "unprotect":
            return (await unprotect(operator)).job
        case "rebind":
            return (await operator.call(api.REBIND, RebindRequest(identity="hw2"), machine="web1")).job
        case "delete":
            return (await delete(operator)).job
        case "restore":
            body = RestoreRequest(point="latest", to="/x", host="h", request="0123456789abcdef" * 2)
            return (await operator.call(api.RESTORE, body, machine="web1")).job
    return job


@pytest.mark.parametrize("args", NONSENSE)
@pytest.mark.parametrize("kind", ["protect", "unprotect", "rebind", "delete"])
async def test_it_asks_for_a_person_who_can_end_it(
    server: ConfigServer, operator: RestClient, kind: str, args: str
) -> None:
    id_ = await begun(operator, kind)
    edit(server, id_, args)
    stands = await becomes(operator, id_, JobState.ATTENTION)
    assert stands.error is not None and stands.error.code == JobBugError.code
    assert id_ in [one.id for one in await all_jobs(operator)], "it hides no other"
    await cancel(operator, id_)
    if kind in ("protect", "unprotect"):  # what was wanted before is not known any more
        stands = await becomes(operator, id_, JobState.ATTENTION)
        assert JobAct.ABANDON in stands.allowed
        await operator.call(api.JOB_ABANDON, Nothing(), id=id_)
    assert (await ended(operator, id_)).state in (JobState.CANCELLED, JobState.ABANDONED)


@pytest.mark.parametrize("args", NONSENSE)
@pytest.mark.parametrize("kind", ["protect", "unprotect", "rebind"])
async def test_what_is_said_of_its_machine_takes_its_place(
    server: ConfigServer, operator: RestClient, kind: str, args: str
) -> None:
    id_ = await begun(operator, kind)
    edit(server, id_, args)
    stopped = await unprotect(operator)
    assert stopped.job not in ("", id_)
    assert (await ended(operator, id_)).superseded_by == stopped.job
    edit(server, stopped.job, args)
    assert (await protect(operator, "sda", offline=True)).job != stopped.job
    assert (await shown(operator)).protected


@pytest.mark.parametrize("args", NONSENSE)
async def test_a_deletion_comes_to_its_end(server: ConfigServer, operator: RestClient, args: str) -> None:
    id_ = await begun(operator, "delete")
    edit(server, id_, args)
    pass_delay(server.config.data_dir)
    await until(lambda: is_gone(operator))
    assert (await ended(operator, id_)).superseded_by == "deletion"


@pytest.mark.parametrize("args", NONSENSE)
async def test_a_restore_is_cancelled(
    server: ConfigServer, operator: RestClient, args: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.operations.restore_job.HEARS_S", 0.1)
    id_ = await begun(operator, "restore")
    edit(server, id_, args)
    await cancel(operator, id_)
    assert (await ended(operator, id_)).state is JobState.CANCELLED
    assert (await get(operator, id_)).cancelled_by == "operator:admin"


@pytest.mark.parametrize("column", ["error", "result"])
async def test_how_it_went_is_not_known_any_more_and_it_goes_on(
    server: ConfigServer, operator: RestClient, column: str
) -> None:
    id_ = await begun(operator, "restore")
    with opened(server.config.data_dir / "state.db") as db:
        db.execute(text(f"UPDATE jobs SET {column} = '[' WHERE id = :id"), {"id": id_})
    assert id_ in [one.id for one in await all_jobs(operator)]
    await operator.call(api.JOB_UPDATE, JobProgress(state=WorkerState.DONE), id=id_)
    assert (await ended(operator, id_)).state is JobState.DONE

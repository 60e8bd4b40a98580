"""A config server that is killed between database and storage: neither says what the other makes untrue, and the next start mends it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import multiprocessing
import signal
import sqlite3
from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from config_server.operations import restore_job
from config_server.rules.clock import SECOND_NS
from shared import api
from shared.api.certificates import RevokeRequest
from shared.api.events import EventQuery
from shared.api.jobs import JobQuery, JobState
from shared.api.restores import GrantEnd, RestoreRequest
from shared.api.route import Limit, Nothing, Page
from shared.blob import BlobConfig, BlobStore
from shared.crashpoints import CONTROL_POINTS
from shared.keys.vault import FileVault, machine_key
from shared.machine.storage import MachineStorage
from tests.config_parts import config_for, running, until
from tests.crash.config_child import REQUEST, Call, Work, run
from tests.marks import some

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.config_child", "azure.storage.blob.aio", "aiohttp"])

CASES = {
    "grant.in-row": Call.GIVE,
    "grant.given": Call.GIVE,
    "grant.longer-in-row": Call.RENEW,
    "grant.longer": Call.RENEW,
    "grant.ended-in-storage": Call.END,
    "grant.strays-noted": Call.NOTHING,
    "grant.strays-removed": Call.NOTHING,
    "revocation.in-row": Call.REVOKE,
    "revocation.in-storage": Call.REVOKE,
}
STRAY = "understudy-00000000000000aa"


def test_every_point_has_its_case() -> None:
    assert tuple(CASES) == CONTROL_POINTS


@pytest.fixture
async def container(machine_storage: MachineStorage, tmp_path: Path) -> BlobStore:
    store = await machine_storage.find_or_create("web1")
    await machine_key(store, FileVault.create(tmp_path / "vault.json"), "web1", create=True)
    return store


@pytest.fixture
def config(blob_config: BlobConfig, tmp_path: Path) -> ConfigServerConfig:
    return config_for(tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json")


async def killed(config: ConfigServerConfig, call: Call, crash_at: str) -> None:
    process = _processes.Process(target=run, args=(Work(config, call, crash_at),))
    process.start()
    await asyncio.to_thread(process.join, 90)
    assert process.exitcode == -signal.SIGKILL
    process.close()


async def ends(container: BlobStore) -> dict[str, dt.datetime]:
    """Until when storage lets whom in."""
    return {policy.id: policy.until for policy in await container.policies.list() if policy.until}


def rows(config: ConfigServerConfig) -> dict[str, dt.datetime]:
    """Until when the database says so."""
    with contextlib.closing(sqlite3.connect(config.data_dir / "state.db")) as db:
        found = db.execute("SELECT id, expires_ns FROM grants WHERE ended_ns IS NULL").fetchall()
    return {f"understudy-{id_}": dt.datetime.fromtimestamp(ns // SECOND_NS, dt.UTC) for id_, ns in found}


@pytest.mark.parametrize(
    "crash_at",
    some(
        [case for case, call in CASES.items() if call in (Call.GIVE, Call.RENEW, Call.END)],
        short=["grant.in-row", "grant.longer-in-row", "grant.ended-in-storage"],
    ),
)
async def test_a_grant_never_counts_for_longer_than_the_database_says_and_the_call_can_be_made_again(
    container: BlobStore, config: ConfigServerConfig, crash_at: str
) -> None:
    await killed(config, CASES[crash_at], crash_at)
    for policy, end in (await ends(container)).items():
        assert end <= rows(config)[policy]
    async with running(config) as server, server.operator() as client:
        if CASES[crash_at] is Call.GIVE:
            asked = RestoreRequest(dry_run=True, request=REQUEST)
            grant = (await client.call(api.RESTORE, asked, machine="web1")).storage.id
        else:
            [view] = (await client.call(api.GRANTS, Limit(), machine="web1")).grants
            grant = view.id
        if CASES[crash_at] is Call.END:
            assert (await client.call(api.GRANT_END, GrantEnd(), machine="web1", id=grant)).state == "revoked"
            assert await ends(container) == {}
            return
        await client.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant)
        assert await ends(container) == rows(config)
        assert list(rows(config)) == [f"understudy-{grant}"]


@pytest.mark.parametrize(
    "crash_at", some(["grant.strays-noted", "grant.strays-removed"], short=["grant.strays-noted"])
)
async def test_a_stray_that_was_being_ended_is_on_record_and_ends(
    container: BlobStore, config: ConfigServerConfig, crash_at: str
) -> None:
    await container.policies.put(STRAY, dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    await killed(config, Call.NOTHING, crash_at)
    async with running(config) as server, server.operator() as client:

        async def over() -> bool:
            return await ends(container) == {}

        await until(over)
        entries = (await client.call(api.AUDIT, Page())).entries
        assert {entry.detail["grant"] for entry in entries if entry.action == "grant.swept"} == {STRAY[11:]}


@pytest.mark.parametrize(
    "crash_at", some(["revocation.in-row", "revocation.in-storage"], short=["revocation.in-row"])
)
async def test_a_revocation_that_was_begun_is_in_both_places_after_the_next_start(
    store: BlobStore, container: BlobStore, config: ConfigServerConfig, crash_at: str
) -> None:
    await killed(config, Call.REVOKE, crash_at)
    before = [blob.name async for blob in store.list("revoked/")]
    async with running(config) as server, server.operator() as client:
        after = [blob.name async for blob in store.list("revoked/")]
        assert len(after) == 1
        assert before in ([], after)
        await client.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="agent:web1"))
        assert [blob.name async for blob in store.list("revoked/")] == after, "once"
        entries = (await client.call(api.AUDIT, Page())).entries
        assert not [entry for entry in entries if entry.action == "certificate.revoke.recovered"]
    with contextlib.closing(sqlite3.connect(config.data_dir / "state.db")) as db:
        assert db.execute("SELECT subject FROM revocations").fetchall() == [("agent:web1",)]
        assert db.execute("SELECT blob FROM recorded_revocations").fetchall() == [(after[0],)]


JOB_POINTS = (
    "job.begun",
    "job.after-begun",
    "job.after-step",
    "job.undoing",
    "job.after-undoing",
    "grant.ended-in-storage",
    "job.after-undoing:2",
    "job.after-step:2",
    "job.after-step:3",
)


@pytest.mark.parametrize(
    "crash_at", some(JOB_POINTS, short=["grant.ended-in-storage", "job.after-undoing:2"])
)
async def test_a_restore_that_was_cancelled_gives_its_grant_back_whenever_the_server_is_killed(
    container: BlobStore, config: ConfigServerConfig, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    monkeypatch.setattr(restore_job, "HEARS_S", -1.0)
    await killed(config, Call.CANCEL, crash_at)
    async with running(config) as server, server.operator() as client:
        # Who did not hear an answer asks again, with the same id; a second cancel changes nothing.
        job = (await client.call(api.JOBS, JobQuery())).jobs[0].id
        await client.call(api.JOB_CANCEL, Nothing(), id=job)

        async def is_over() -> bool:
            return (await client.call(api.JOB, Nothing(), id=job)).state is JobState.CANCELLED

        await until(is_over)
        steps = (await client.call(api.JOB, Nothing(), id=job)).steps
        assert [(step.name, step.state) for step in steps] == [("grant", "undone"), ("watch", "undone")]
        assert await ends(container) == {}
        assert rows(config) == {}
        told = (await client.call(api.EVENTS, EventQuery(object="web1"))).events
        assert [event.what for event in told if event.kind == "job"] == [
            "The restore of web1 to /x was cancelled"
        ]
        entries = (await client.call(api.AUDIT, Page())).entries
        assert [entry.action for entry in entries].count("grant.revoke") == 1

"""A restore under a grant, from a real config server and real storage: the grant is revoked, or not renewed, in its midst."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config_server.cli import access
from config_server.cli.options import Target
from config_server.cli.restore_command import _restore
from shared import api
from shared.api.jobs import JobQuery, JobState
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, GrantState, GrantView
from shared.api.route import Limit, Page
from shared.blob import BlobConfig, BlobStore
from shared.blob.config import read_key
from shared.blob.policies import token
from shared.control.rest import RestClient
from shared.errors import GrantEndedError
from shared.machine.storage import MachineStorage
from shared.recovery.folder import JOURNAL
from tests.azurite import Azurite
from tests.config_parts import ConfigServer, config_for, running
from tests.machine_log import ModelMachine
from tests.storage_faults import Answer, FaultProxy

_DEADLINE_S = 30.0


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    for _ in range(6):
        model.write()
    await model.publish(segments=3)
    return model


@pytest.fixture
def proxy(azurite: Azurite) -> FaultProxy:
    return FaultProxy(azurite)


@pytest.fixture
async def server(
    machine: ModelMachine,
    proxy: FaultProxy,
    blob_config: BlobConfig,
    tmp_path: Path,
) -> AsyncIterator[ConfigServer]:
    with proxy:
        blob = proxy.config(blob_config.container)
        config = config_for(tmp_path, blob=blob, vault_file=machine.vault.path)
        async with running(config) as started, started.operator() as client:
            await client.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
            yield started


def target(server: ConfigServer) -> Target:
    return Target(server.url, server.operator_token, server.config.data_dir / "ca.pem", None)


def images(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.raw"))]


async def grants(client: RestClient) -> list[GrantView]:
    return (await client.call(api.GRANTS, Limit(), machine="web1")).grants


async def held_up(proxy: FaultProxy) -> None:
    """Until the restore has asked for a segment that it does not get. (Two plans and the check of the key read four times before the
    first one.)
    """
    async with asyncio.timeout(_DEADLINE_S):
        while not proxy.struck:  # noqa: ASYNC110 - what the proxy's thread does has no event
            await asyncio.sleep(0.01)


async def test_a_restore_whose_grant_is_revoked_says_how_to_go_on_and_goes_on_there(
    server: ConfigServer,
    machine: ModelMachine,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "COUNTS_EVERYWHERE_S", 0.0)
    to = tmp_path / "out"
    proxy.add(Answer(503, "ServerBusy"), method="GET", blob="logs/*.seg", nth=6, times=None)
    restoring = asyncio.create_task(_restore(target(server), "web1", "latest", to))
    async with server.operator() as client:
        await held_up(proxy)
        [grant] = await grants(client)
        assert (grant.state, grant.host != "") == (GrantState.GIVEN, True)
        await client.call(api.GRANT_END, GrantEnd(), machine="web1", id=grant.id)
        proxy.clear()
        with pytest.raises(GrantEndedError, match="Could not read logs/") as failed:
            await restoring
        assert "Run the same command again" in failed.value.action
        assert "sig=" not in str(failed.value)
        [job] = [job for job in (await client.call(api.JOBS, JobQuery())).jobs if job.kind == "restore"]
        assert (job.state, job.error is not None and job.error.code) == (JobState.FAILED, "US501")
        assert [grant.state for grant in await grants(client)] == [GrantState.REVOKED]
        assert (to / JOURNAL).exists()
        manifest = await _restore(target(server), "web1", "latest", to)
        assert manifest.id == str(machine.position)
        assert images(to) == machine.sha256()
        assert [grant.state for grant in await grants(client)] == [GrantState.RETURNED, GrantState.REVOKED]
    assert await _restore(target(server), "web1", "latest", to) == manifest  # it is done already


async def test_a_restore_that_takes_longer_than_its_grant_has_it_renewed_in_storage_again_and_again(
    server: ConfigServer,
    machine: ModelMachine,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of its life is over at once, each time: nothing here depends on how quick anything is."""
    monkeypatch.setattr(access, "_renew_after_s", lambda _life_s: 0.05)
    proxy.add(Answer(503, "ServerBusy"), method="GET", blob="logs/*.seg", nth=6, times=None)
    restoring = asyncio.create_task(_restore(target(server), "web1", "latest", tmp_path / "out"))
    async with server.operator() as client:
        await held_up(proxy)
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                entries = (await client.call(api.AUDIT, Page())).entries
                if sum(entry.action == "grant.renew" for entry in entries) > 2:
                    break
                await asyncio.sleep(0.05)
        [given] = await grants(client)
        # Storage goes by its policy, and lets the restore in far beyond the five minutes that a new grant lives.
        [policy] = await machine.store.policies.list()
        assert policy.id == f"understudy-{given.id}"
        assert policy.until is not None
        assert policy.until - dt.datetime.fromisoformat(given.given) > dt.timedelta(hours=7)
        proxy.clear()
        await restoring
        [grant] = await grants(client)
        assert (grant.id, grant.state) == (given.id, GrantState.RETURNED)
    assert images(tmp_path / "out") == machine.sha256()


@pytest.mark.parametrize("over", [False, True])
async def test_a_restore_goes_on_without_a_config_server_to_the_end_of_its_grant(
    machine: ModelMachine,
    proxy: FaultProxy,
    blob_config: BlobConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    over: bool,
) -> None:
    monkeypatch.setattr(access, "COUNTS_EVERYWHERE_S", 0.0)
    monkeypatch.setattr(access, "_renew_after_s", lambda _life_s: 0.2)
    to = tmp_path / "out"
    with proxy:
        blob = proxy.config(blob_config.container)
        config = config_for(tmp_path, blob=blob, vault_file=machine.vault.path)
        async with running(config) as server, server.operator() as client:
            await client.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
            proxy.add(Answer(503, "ServerBusy"), method="GET", blob="logs/*.seg", nth=6, times=None)
            restoring = asyncio.create_task(_restore(target(server), "web1", "latest", to))
            await held_up(proxy)
            [grant] = await grants(client)
        # The config server is gone.
        if not over:
            proxy.clear()
            await restoring
            assert images(to) == machine.sha256()
            return
        over_since = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
        await machine.store.policies.put(f"understudy-{grant.id}", over_since)
        await refused(blob, machine.store.container, grant.id)
        proxy.clear()
        with pytest.raises(GrantEndedError) as failed:
            await restoring
    assert "Run the same command again" in failed.value.action
    assert capsys.readouterr().err.count("was not renewed") == 1
    assert (to / JOURNAL).exists()


async def refused(config: BlobConfig, container: str, grant: str) -> None:
    """Until storage does not take the grant's token any more."""
    assert config.account_key_file is not None
    assert config.ca_file is not None
    sas = token(config.account, read_key(config.account_key_file), container, f"understudy-{grant}")
    async with BlobStore.connect(
        BlobConfig(url=config.url), sas=sas, ca_pem=config.ca_file.read_text()
    ) as account:
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                try:
                    await account.in_container(container).read("machine.json")
                except GrantEndedError:
                    return
                await asyncio.sleep(0.1)

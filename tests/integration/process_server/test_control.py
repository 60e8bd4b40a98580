"""The process server with a real config server: enrolled certificates, status, commands."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from shared import api
from shared.api.points import FlushRequest
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.trust import tls
from shared.vocabulary import Health
from tests.config_parts import config_for, running, until
from tests.deletions import delete, hurry, is_gone, pass_delay
from tests.process_server_site import Site
from tests.wire_parts import Agent, Chain, hello


async def test_status_is_reported_and_a_flush_uploads_at_once(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    site = Site(tmp_path, blob_config)
    async with running(config_for(tmp_path, vault_file=site.vault_file)) as control:
        site.write_config(
            tls=await control.enrolled("process-server", "ps1", tmp_path / "ps"),
            control_url=control.url,
            segment_seconds=60.0,
        )
        agent_files = await control.enrolled("agent", "lab", tmp_path / "agent")
        async with site.daemon(), Agent.connect(site.port, tls.client_context(agent_files)) as agent:
            chain = Chain.after(await agent.open(hello()))
            await agent.send(chain.next())
            assert (await agent.acked(1)).uploaded == 0
            async with control.operator() as operator:
                await operator.call(
                    api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="lab"
                )
                async with asyncio.timeout(20):
                    flushed: list[str] = []
                    while not flushed:  # the first reports may come before the session was opened
                        flushed = (
                            await operator.call(api.FLUSH, FlushRequest(wait_s=10), machine="lab")
                        ).flushed
                        await asyncio.sleep(0.05)
            assert flushed == ["ps1"]
            await agent.acked(1, uploaded=1)
            await agent.close()
    assert [batch.number for batch in await site.uploaded()] == [1]


async def test_a_machine_that_was_deleted_while_the_server_was_off_is_gone_when_it_is_back(
    tmp_path: Path, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    site = Site(tmp_path, blob_config)
    config = config_for(tmp_path, vault_file=site.vault_file, blob=blob_config)
    async with running(config) as control, control.operator() as operator:
        site.write_config(
            tls=await control.enrolled("process-server", "ps1", tmp_path / "ps"),
            control_url=control.url,
            segment_seconds=60.0,
        )
        agent_files = await control.enrolled("agent", "lab", tmp_path / "agent")
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="lab")
        context = tls.client_context(agent_files)
        async with (
            site.daemon(signal.SIGKILL),
            Agent.connect(site.port, context) as agent,
        ):
            chain = Chain.after(await agent.open(hello()))
            await agent.send(chain.next())
            await agent.acked(1)
            await until(lambda: _is_reported(operator, "lab"))
        assert list((tmp_path / "spool").rglob("*.seg"))
        await delete(operator, "lab")
        pass_delay(config.data_dir, "lab")
        await until(lambda: is_gone(operator, "lab"))
        async with site.daemon():

            async def is_dropped() -> bool:
                return [path.name for path in (tmp_path / "spool").iterdir()] in (
                    [".keys", ".lock"],
                    [".lock", ".keys"],
                )

            await until(is_dropped)
            assert list((tmp_path / "spool/.keys").iterdir()) == []

            async def is_well() -> bool:
                known = (await operator.call(api.DAEMONS, Nothing())).daemons
                return [(d.health, d.report["machines"]) for d in known] == [(Health.NORMAL, {})]

            await until(is_well)


async def _is_reported(operator: RestClient, machine: str) -> bool:
    known = (await operator.call(api.DAEMONS, Nothing())).daemons
    return any(machine in daemon.report["machines"] for daemon in known)

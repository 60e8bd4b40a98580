"""The process server with a real config server: enrolled certificates, status, commands."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared import api, tls
from shared.api.points import FlushRequest
from shared.api.protection import Protection
from shared.blob import BlobConfig
from tests.config_parts import config_for, running
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

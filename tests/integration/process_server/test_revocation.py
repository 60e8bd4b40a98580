"""Revoked agents at the process server's port: a real config server tells, a real process server obeys."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.blob import BlobConfig
from shared.errors import CertificateRevokedError
from shared.trust import tls
from tests.config_parts import config_for, running, serial
from tests.process_server_site import Site
from tests.wire_parts import Agent, Chain, hello


async def test_an_open_session_ends_and_no_other_begins_even_after_a_restart_without_a_config_server(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    site = Site(tmp_path, blob_config)
    async with running(config_for(tmp_path, vault_file=site.vault_file)) as control:
        site.write_config(
            tls=await control.enrolled("process-server", "ps1", tmp_path / "ps"), control_url=control.url
        )
        old = await control.enrolled("agent", "lab", tmp_path / "old")
        new = await control.enrolled("agent", "lab", tmp_path / "new")
        async with site.daemon():
            async with Agent.connect(site.port, tls.client_context(old)) as agent:
                welcome = await agent.open(hello())
                chain = Chain.after(welcome)
                await agent.send(chain.next())
                await agent.acked(1)
                await control.revoke(serial(old))
                async with asyncio.timeout(20):
                    fault = await agent.fault()
                assert fault.code == CertificateRevokedError.code
                assert not fault.new_epoch
                await agent.close()
            await no_session(site, old)
            async with Agent.connect(site.port, tls.client_context(new)) as agent:
                again = hello(epoch=1, claim=welcome.claim, last_sent=1)
                assert (await agent.open(again)).spooled == 1
                await agent.close()
            await control.revoke("agent:lab")
            # The process server has it when it refuses what it took a moment ago.
            async with asyncio.timeout(20):
                while not (tmp_path / "ps/revoked.json").read_text().count("agent:lab"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await no_session(site, new)
    async with site.daemon():
        await no_session(site, old)
        await no_session(site, new)


async def no_session(site: Site, files: tls.TlsFiles) -> None:
    async with Agent.connect(site.port, tls.client_context(files)) as agent:
        agent.write(agent.wire.send_hello(hello(epoch=1, last_sent=1)))
        assert (await agent.fault()).code == CertificateRevokedError.code
        await agent.close()

"""The whole process server as a daemon: real TLS, real spool, real blob storage; stopped, killed, started
again."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from process_server.config import ProcessServerConfig
from process_server.service import flush, run
from shared.api.certificates import Revocations
from shared.blob import BlobConfig
from shared.daemon.service import load_config
from shared.errors import (
    CertificateRevokedError,
    ConfigError,
    MachineAwaitedError,
    MachineNotFoundError,
    UnderstudyError,
    UsageError,
)
from shared.trust import tls
from shared.trust.revocation import REVOKED_FILE
from tests.azurite import Azurite
from tests.process_server_site import Site
from tests.wire_parts import Chain, hello


@pytest.fixture
def site(tmp_path: Path, blob_config: BlobConfig) -> Site:
    return Site(tmp_path, blob_config)


async def test_what_an_agent_sends_can_be_read_back_from_storage(site: Site) -> None:
    async with site.daemon(), site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        sent = [chain.next(sectors=8 * n, fill=n) for n in range(1, 12)]
        for batch in sent:
            await agent.send(batch)
        agent.write(agent.wire.send_flush())
        ack = await agent.acked(11, uploaded=11)
        assert ack.uploaded_seq == 11
        await agent.close()
        found = await site.uploaded()
    assert [batch.number for batch in found] == list(range(1, 12))
    assert [bytes(batch.payload) for batch in found] == [bytes([n]) * 4096 * n for n in range(1, 12)]
    assert [line for line in site.lines() if line["level"] in ("error", "warning")] == []
    assert site.lines()[-1]["event"] == "stopped"


async def test_what_was_acknowledged_survives_sigkill(site: Site) -> None:
    chain = Chain()
    async with site.daemon(stop=signal.SIGKILL), site.agent() as agent:
        claim = (await agent.open(hello())).claim
        for n in range(1, 20):
            await agent.send(chain.next(fill=n))
        await agent.acked(19)
    async with site.daemon(), site.agent() as agent:
        welcome = await agent.open(hello(epoch=1, claim=claim, last_sent=19))
        assert (welcome.spooled, welcome.spooled_digest) == (19, chain.digest)
        await agent.send(chain.next(fill=20))
        agent.write(agent.wire.send_flush())
        await agent.acked(20, uploaded=20)
        await agent.close()
    assert [(b.number, b.payload[0]) for b in await site.uploaded()] == [(n, n) for n in range(1, 21)]


async def test_a_server_that_was_killed_waits_for_the_boot_that_it_had(site: Site) -> None:
    async with site.daemon(stop=signal.SIGKILL), site.agent() as agent:
        claim = (await agent.open(hello(identity="it", boot="1/a"))).claim
    async with site.daemon(), site.agent() as copy, site.agent() as agent:
        copy.write(copy.wire.send_hello(hello(identity="it", boot="2/a")))
        assert (await copy.fault()).code == MachineAwaitedError.code
        assert (await agent.open(hello(epoch=1, claim=claim, identity="it", boot="1/b"))).epoch == 1


async def test_whoever_was_revoked_stays_so_at_a_server_that_is_told_of_no_config_server(site: Site) -> None:
    certificate = site.ca.issue("process-server:ps1").cert
    revoked = msgspec.json.encode(Revocations(names=["agent:lab"]))
    certificate.with_name(REVOKED_FILE).write_bytes(revoked)
    async with site.daemon(), site.agent() as agent:
        agent.write(agent.wire.send_hello(hello()))
        assert (await agent.fault()).code == CertificateRevokedError.code


async def test_a_restart_uploads_what_it_holds_without_the_agent(site: Site) -> None:
    async with site.daemon(stop=signal.SIGKILL), site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        await agent.send(chain.next())
        await agent.acked(1)
    async with site.daemon():
        async with asyncio.timeout(20):
            while not await site.uploaded():  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.05)


async def test_sigterm_drains_uploads_and_exits_with_0(site: Site) -> None:
    async with site.daemon() as process, site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        await agent.send(chain.next())
        await agent.acked(1)
        process.send_signal(signal.SIGTERM)
        fault = await agent.fault()
        assert fault.code == "US455"
        await agent.close()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    assert len(await site.uploaded()) == 1


async def test_storage_that_is_away_does_not_stop_spooling(tmp_path: Path) -> None:
    with Azurite(tmp_path / "azurite", persistent=True) as storage:
        site = Site(tmp_path, storage.config("test"))
        async with site.daemon(), site.agent() as agent:
            chain = Chain.after(await agent.open(hello()))
            await agent.send(chain.next())
            await agent.acked(1)
            await asyncio.to_thread(storage.stop)
            for _ in range(5):
                await agent.send(chain.next())
            assert (await agent.acked(6)).uploaded <= 1
            await asyncio.to_thread(storage.start)
            agent.write(agent.wire.send_flush())
            await agent.acked(6, uploaded=6)
            await agent.close()
            assert len(await site.uploaded()) == 6


async def start_error(site: Site, **config: Any) -> UnderstudyError:
    site.more.clear()
    site.write_config(**config)
    with pytest.raises((UnderstudyError, ExceptionGroup)) as caught:
        async with asyncio.timeout(10):
            await run(load_config(site.config_file, ProcessServerConfig), asyncio.Event())
    error: BaseException = caught.value
    while isinstance(error, ExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, UnderstudyError)
    assert error.action
    return error


async def test_what_cannot_start_says_why(site: Site, tmp_path: Path) -> None:
    assert isinstance(await start_error(site, vault_file=tmp_path / "none"), UsageError)
    assert isinstance(await start_error(site, tls=tls.TlsFiles(*[tmp_path / "none"] * 3)), ConfigError)
    assert isinstance(await start_error(site, port=-1), ConfigError)
    assert isinstance(await start_error(site, surprise=1), ConfigError)
    with socket.create_server(("127.0.0.1", 0)) as other:
        error = await start_error(site, port=other.getsockname()[1])
        assert error.code == "US102"
    site.more.clear()
    async with site.daemon():
        assert "in use" in str(await start_error(site, port=0))


async def test_a_flush_of_an_unknown_machine_is_not_found() -> None:
    class NoMachines:
        machines: dict[str, Any] = {}  # noqa: RUF012 - never changed

    with pytest.raises(MachineNotFoundError):
        await flush(NoMachines(), "nobody")  # type: ignore[arg-type]

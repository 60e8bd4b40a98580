"""The config server's folder on a disk that fails: whoever asks is told what is wrong, and it passes with its cause."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from config_server import service
from config_server.store.reserve import SIZE_B
from shared import api
from shared.api.protection import Protection
from shared.api.route import Failure, Nothing
from shared.control.rest import RestClient, error_of
from shared.errors import CertificateRevokedError, DatabaseError, StorageError, UnderstudyError
from shared.trust import tls
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.failing_disks import FAILING

BODY = Protection(disks=["/dev/sda"], offline=True)


async def protect(server: ConfigServer, machine: str) -> None:
    async with server.operator() as operator:
        await operator.call(api.PROTECT, BODY, machine=machine)


async def http_status(server: ConfigServer, machine: str) -> int:
    headers = {"Authorization": f"Bearer {server.operator_token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.put(
            server.url + api.PROTECT.path.format(machine=machine),
            json={"disks": ["/dev/sda"], "offline": True},
            headers=headers,
            ssl=server.anonymous_context(),
        ) as answer,
    ):
        return answer.status


async def shown(server: ConfigServer) -> set[str]:
    """The codes of what ails the machine, as people see it."""
    async with server.operator() as operator:
        machine = await operator.call(api.MACHINE, Nothing(), machine="web1")
    return {error.code for error in machine.errors}


@pytest.mark.parametrize("kind", FAILING)
async def test_a_database_that_cannot_be_written_is_a_503_with_its_cause_and_reads_go_on(kind: str) -> None:
    with FAILING[kind]() as disk:
        async with running(config_for(disk.where)) as server:
            await protect(server, "web1")
            disk.fail()
            failures = []
            for number in range(1, 200):  # until the room that the write-ahead log already had is used up
                try:
                    await protect(server, f"other{number}")
                except StorageError as exc:
                    failures.append(exc)
                    break
            [failure] = failures
            assert "The database" in failure.what
            assert "has space and is writable" in failure.action
            assert await http_status(server, "another") == 503
            async with server.operator() as operator:
                listed = await operator.call(api.MACHINES, Nothing())
            assert "web1" in [machine.name for machine in listed.machines]
            assert DatabaseError.code in await shown(server)
            if disk.heals:
                disk.heal()
                await protect(server, "web2")
                assert DatabaseError.code not in await shown(server)


@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize("begun", [False, True])
async def test_a_start_on_a_failing_disk_ends_with_a_named_error(kind: str, begun: bool) -> None:
    with FAILING[kind]() as disk:
        config = config_for(disk.where)
        if begun:
            async with running(config):
                pass
            (config.data_dir / service.TOKEN_FILE).unlink()
        disk.fail()
        with pytest.raises(UnderstudyError) as caught:
            await service.run(config, asyncio.Event())
        error = caught.value
        assert error_of(Failure(**error.as_dict(), exit_code=error.exit_code)).code == error.code
        assert str(disk.where) in str(error)
        if disk.heals:
            disk.heal()
            async with running(config) as server:
                await protect(server, "web1")


async def test_on_a_full_disk_revocations_are_recorded_and_told_over_restarts_and_nothing_else_takes_their_room(
    tmp_path: Path,
) -> None:
    with FAILING["No space left on device"]() as disk:
        config = config_for(disk.where)
        async with running(config) as server:
            web1 = await server.enrolled("agent", "web1", tmp_path / "web1")
            ps1 = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
            disk.fail()
            failed = 0
            for number in range(200):  # until what the write-ahead log already had is used up
                try:
                    await protect(server, f"other{number}")
                except DatabaseError:
                    failed += 1
                    if failed == 3:
                        break
            await server.revoke("agent:web1")
            with pytest.raises(DatabaseError):
                await protect(server, "another")
            assert await told(server, ps1, kept=False) == ["agent:web1"]
        async with running(config) as server:  # which needs a little room, too
            async with daemon(server, web1) as agent:
                with pytest.raises(CertificateRevokedError):
                    await agent.report({"state": "ordered"})
            for number in range(8):
                await server.revoke(f"agent:web{number}")
            assert len(await told(server, ps1)) == 8
        disk.heal()
        async with running(config) as server:
            await protect(server, "another")
            assert (config.data_dir / "reserve").stat().st_size == SIZE_B
            assert len(await told(server, ps1)) == 8


async def told(server: ConfigServer, files: TlsFiles, *, kept: bool = True) -> list[str]:
    """Whom a process server is told to refuse. It has results, too, which it is told to forget only when they are kept."""
    body = {"state": "ready", "results": {"x": {"y": "z" * 20_000}}}
    async with RestClient(server.url, tls.client_context(files)) as client:
        reply = await client.call_plain(api.STATUS, body, {}, 0.0)
    assert kept or not reply.kept
    return reply.revoked.names if reply.revoked is not None else []

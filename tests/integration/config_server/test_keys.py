"""What a config server gives of its vault: to whom, for what, and what the audit log says of it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import api
from shared.api.audit import AuditView
from shared.api.certificates import RevokeRequest
from shared.api.keys import KeyRequest, MachineKeyGrant
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.errors import (
    AccessError,
    CertificateRevokedError,
    ConfigError,
    RequestError,
    UnderstudyError,
    UsageError,
    WrongKeyError,
    WrongRoleError,
)
from shared.keys.vault import FileVault
from shared.trust import tls
from tests.config_parts import ConfigServer, config_for, running


@pytest.fixture
def vault(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "vault.json")


@pytest.fixture
async def server(tmp_path: Path, vault: FileVault) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path, vault_file=vault.path)) as started:
        yield started


async def wrapped(vault: FileVault, machine: str) -> tuple[bytes, KeyRequest]:
    made = await vault.new_key(machine)
    return made.key, KeyRequest(key_id=made.key_id, wrapped=made.wrapped)


async def asked(client: RestClient, request: KeyRequest, machine: str = "web1") -> MachineKeyGrant:
    return await client.call(api.KEY_UNWRAP, request, machine=machine)


async def entries(server: ConfigServer) -> list[AuditView]:
    async with server.operator() as operator:
        found = (await operator.call(api.AUDIT, Page())).entries
    return [entry for entry in found if entry.action.startswith("key.")]


def calling(server: ConfigServer, files: tls.TlsFiles) -> RestClient:
    return RestClient(server.url, tls.client_context(files))


@pytest.mark.parametrize("role", ["process-server", "master-target"])
async def test_a_server_is_given_a_machine_s_key_and_the_audit_log_says_so(
    server: ConfigServer, vault: FileVault, tmp_path: Path, role: str
) -> None:
    key, request = await wrapped(vault, "web1")
    files = await server.enrolled(role, "s1", tmp_path / "tls")
    async with calling(server, files) as client:
        grant = await asked(client, request)
    assert grant.key_id == request.key_id
    assert _bytes(grant.key) == key
    (entry,) = await entries(server)
    assert (entry.who, entry.action, entry.object) == (f"{role}:s1", "key.grant", "web1")
    assert entry.detail["key_id"] == request.key_id
    assert grant.key not in str(entry.detail)


async def test_a_new_key_opens_for_its_machine_only(
    server: ConfigServer, vault: FileVault, tmp_path: Path
) -> None:
    files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
    async with calling(server, files) as client:
        made = await client.call(api.KEY_CREATE, Nothing(), machine="web1")
        again = KeyRequest(key_id=made.key_id, wrapped=_bytes(made.wrapped))
        assert (await asked(client, again)).key == made.key
        with pytest.raises(WrongKeyError):
            await asked(client, again, machine="web2")
        assert (await client.call(api.KEY_CREATE, Nothing(), machine="web1")).key != made.key
    assert [entry.action for entry in await entries(server)] == ["key.create", "key.grant", "key.create"]


async def test_agents_operators_and_strangers_are_given_no_key(
    server: ConfigServer, vault: FileVault, tmp_path: Path
) -> None:
    _, request = await wrapped(vault, "web1")
    agent = await server.enrolled("agent", "web1", tmp_path / "agent")
    master = await server.enrolled("master-target", "mt1", tmp_path / "master")
    async with calling(server, agent) as client:
        await no_key(client, request, WrongRoleError)
    async with server.operator() as client:
        await no_key(client, request, AccessError)
    async with calling(server, master) as client:
        with pytest.raises(WrongRoleError):  # it writes no log, so it needs no new key
            await client.call(api.KEY_CREATE, Nothing(), machine="web1")
    assert await entries(server) == []


async def test_a_revoked_server_is_given_no_key(
    server: ConfigServer, vault: FileVault, tmp_path: Path
) -> None:
    _, request = await wrapped(vault, "web1")
    files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
    async with calling(server, files) as client:
        await asked(client, request)
        async with server.operator() as operator:
            await operator.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="process-server:ps1"))
        await no_key(client, request, CertificateRevokedError)  # on a connection that is open still
    async with calling(server, files) as client:
        await no_key(client, request, CertificateRevokedError)
    assert len(await entries(server)) == 1


async def test_a_machine_s_name_that_is_none_is_refused(
    server: ConfigServer, vault: FileVault, tmp_path: Path
) -> None:
    _, request = await wrapped(vault, "..")
    files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
    async with calling(server, files) as client:
        with pytest.raises(RequestError):
            await asked(client, request, machine="a b")


async def test_a_config_server_without_a_vault_says_what_it_lacks(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
        async with calling(server, files) as client:
            with pytest.raises(ConfigError, match="No key can be handed out"):
                await client.call(api.KEY_CREATE, Nothing(), machine="web1")


async def test_a_vault_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vault file"):
        async with running(config_for(tmp_path, vault_file=tmp_path / "none.json")):
            pass


async def no_key(client: RestClient, request: KeyRequest, error: type[UnderstudyError]) -> None:
    with pytest.raises(error):
        await asked(client, request)
    with pytest.raises(error):
        await client.call(api.KEY_CREATE, Nothing(), machine="web1")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

"""A config server with another vault file than storage knows: it starts, says so, and seals nothing new under it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from config_server import background
from config_server.storage import account
from shared import api
from shared.api.events import EventQuery
from shared.api.keys import KeyRequest
from shared.api.route import Nothing
from shared.blob import BlobConfig, Retry
from shared.control.rest import RestClient
from shared.errors import VaultMisfitError, VaultUnrecordedError, WrongKeyError
from shared.keys.vault import FileVault
from shared.trust import tls
from tests.config_parts import ConfigServer, config_for, running
from tests.process_server_site import free_port


async def codes(server: ConfigServer, wanted: set[str]) -> None:
    """Until the open events have these codes."""
    async with server.operator() as operator, asyncio.timeout(10):
        while {e.code for e in (await operator.call(api.EVENTS, EventQuery(open=True))).events} != wanted:  # noqa: ASYNC110 - its own sweep
            await asyncio.sleep(0.01)


async def test_a_wrong_vault_file_is_an_event_and_wraps_nothing_until_the_right_one_is_back(
    tmp_path: Path, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_SWEEP_S", 0.02)
    monkeypatch.setattr(account, "_DEADLINE", Retry(deadline_s=0.1))
    ours, other = (FileVault.create(tmp_path / name) for name in ("ours", "other"))
    right = config_for(tmp_path, blob=blob_config, vault_file=ours.path)
    async with running(right) as server:
        files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
        async with RestClient(server.url, tls.client_context(files)) as client:
            made = await client.call(api.KEY_CREATE, Nothing(), machine="web1")
        await codes(server, set())
    asked = KeyRequest(key_id=made.key_id, wrapped=msgspec.convert(made.wrapped, bytes))

    async with running(msgspec.structs.replace(right, vault_file=other.path)) as server:
        await codes(server, {VaultMisfitError.code})
        async with RestClient(server.url, tls.client_context(files)) as client:
            with pytest.raises(VaultMisfitError, match="not the one of this storage"):
                await client.call(api.KEY_CREATE, Nothing(), machine="web2")
            with pytest.raises(WrongKeyError) as caught:
                await client.call(api.KEY_UNWRAP, asked, machine="web1")
            assert f"it holds {other.current}" in caught.value.cause

    # With storage away it starts all the same, and what storage knew counts.
    gone = msgspec.structs.replace(blob_config, url=f"https://127.0.0.1:{free_port()}/account")
    async with running(msgspec.structs.replace(right, blob=gone)) as server:
        await codes(server, {VaultUnrecordedError.code})  # another account, of which it knows nothing
        async with RestClient(server.url, tls.client_context(files)) as client:
            with pytest.raises(VaultUnrecordedError):
                await client.call(api.KEY_CREATE, Nothing(), machine="web2")
            assert (await client.call(api.KEY_UNWRAP, asked, machine="web1")).key == made.key

    async with running(right) as server:
        await codes(server, set())
        async with RestClient(server.url, tls.client_context(files)) as client:
            await client.call(api.KEY_CREATE, Nothing(), machine="web2")

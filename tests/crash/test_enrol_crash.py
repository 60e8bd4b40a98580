"""Enrolment that is killed while it puts a new identity in the place of the old one: enrolling again mends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from shared.control import enrol
from shared.errors import ConfigError, TokenUsedError
from shared.trust import tls
from tests.config_parts import config_for, daemon, running


@pytest.mark.parametrize("same_token", [True, False])
async def test_killed_between_certificate_and_key_the_next_try_takes_the_same_new_key(
    tmp_path: Path, same_token: bool
) -> None:
    folder, token_file = tmp_path / "agent", tmp_path / "token"
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", folder)
        old = files.key.read_bytes()
        token = (await server.token("agent", "web1")).token
        token_file.write_text(token)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shared.control.enrol", "--server", server.url),
            *("--token-file", str(token_file), "--dir", str(folder)),
            env=os.environ | {"UNDERSTUDY_CRASH_AT": "enrol.between-certificate-and-key"},
        )
        assert await child.wait() == -signal.SIGKILL
        new = (folder / enrol.NEW_KEY).read_bytes()
        assert (files.key.read_bytes(), new != old) == (old, True)
        with pytest.raises(ConfigError, match="could not be used") as caught:
            tls.client_context(files)
        assert "Enrol this daemon again" in caught.value.action
        if not same_token:
            token = (await server.token("agent", "web1")).token
        again = await enrol.enrol(server.url, token, folder)
        assert again.key.read_bytes() == new
        assert not (folder / enrol.NEW_KEY).exists()
        async with daemon(server, again) as client:
            assert await client.report({"state": "ordered"}) == []


async def test_a_new_key_that_was_taken_and_not_removed_is_not_taken_again(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        old = files.key.read_bytes()
        (tmp_path / "agent" / enrol.NEW_KEY).write_bytes(old)  # killed before its removal
        again = await server.enrolled("agent", "web1", tmp_path / "agent")
        assert again.key.read_bytes() != old


async def test_an_enrolment_that_fails_leaves_the_identity_as_it_was(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        before = [path.read_bytes() for path in (files.key, files.cert, files.ca)]
        used = (await server.token("agent", "web1")).token
        await enrol.enrol(server.url, used, tmp_path / "other")
        with pytest.raises(TokenUsedError):
            await enrol.enrol(server.url, used, tmp_path / "agent")
        assert [path.read_bytes() for path in (files.key, files.cert, files.ca)] == before
        assert not (tmp_path / "agent" / enrol.NEW_KEY).exists(), "a key that nobody will certify"

"""`understudy ca …` as processes, against a real config server."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.api.jobs import JobState
from tests.ca_renewals import hurry, no_hold, until
from tests.cli import understudy
from tests.config_parts import config_for, running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


async def test_commands_show_renew_and_take_what_is_trusted_into_a_profile(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        mine = tmp_path / "mine.pem"
        mine.write_bytes((server.config.data_dir / "ca.pem").read_bytes())
        token = str(server.config.data_dir / "operator.token")
        options = ("--server", server.url, "--token-file", token, "--ca-file", str(mine))
        [shown] = (await understudy("ca", "show", "--output", "json", *options)).json
        assert shown["signs"]
        begun = (await understudy("ca", "renew", "--output", "json", "--yes", *options)).json
        await until(server, begun["id"], waits="understudy ca trust")
        said = await understudy("job", "show", begun["id"], *options)
        assert "distribute" in said.stdout
        before, after = (await understudy("ca", "trust", "--output", "json", *options)).json
        assert (before["certificate"], before["signs"]) == (shown["certificate"], True)
        assert not after["signs"]
        no_hold(server, begun["id"])
        await until(server, begun["id"], JobState.DONE)
        assert "signs" in (await understudy("ca", "trust", *options)).stdout
        assert mine.read_bytes() == (server.config.data_dir / "ca.pem").read_bytes()
        refused = await understudy("job", "cancel", begun["id"], "--yes", *options)
        assert refused.exit_code != 0

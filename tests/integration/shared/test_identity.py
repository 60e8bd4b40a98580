"""What a daemon's certificate has to say of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import agent.service
import master_target.service
import process_server.service
from agent.config import AgentConfig
from master_target.config import MasterTargetConfig
from process_server.config import ProcessServerConfig
from shared.blob import BlobConfig
from shared.errors import ConfigError
from tests.pki import TestCa


@pytest.mark.parametrize("role", ["agent", "process-server", "master-target"])
async def test_a_daemon_whose_name_is_not_its_certificate_s_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """What it writes to storage under its name would be nobody's to the config server, which knows it by its certificate."""
    files = TestCa(tmp_path).issue(f"{role}:one")
    blob = BlobConfig(url="https://127.0.0.1:1/account")
    vault_file, stop = tmp_path / "vault.json", asyncio.Event()
    monkeypatch.setattr(agent.service, "check_machine", lambda: None)
    with pytest.raises(
        ConfigError, match=f"it is for '{role}:one', and the configuration names '{role}:two'"
    ):
        if role == "agent":
            await agent.service.run(
                AgentConfig(
                    machine="two", disks=["/dev/no-such-disk"], process_server="127.0.0.1:1", control_url="https://127.0.0.1:1",
                    tls=files, state_dir=tmp_path / "state", pin_dir=tmp_path / "pins",
                ),
                stop,
            )  # fmt: skip
        elif role == "process-server":
            await process_server.service.run(
                ProcessServerConfig(
                    name="two", tls=files, spool_dir=tmp_path / "spool", blob=blob, vault_file=vault_file
                ),
                stop,
            )
        else:
            await master_target.service.run(
                MasterTargetConfig(name="two", tls=files, blob=blob, vault_file=vault_file), stop
            )

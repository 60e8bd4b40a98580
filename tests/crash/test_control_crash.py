"""A config server that is killed while it takes over, or puts its state into storage: the next start is in force, and keeps its state."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from pathlib import Path

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, restoring
from config_server.recovery import generation, sealed, state
from config_server.recovery.generation import state_blob
from shared.blob import BlobConfig, BlobStore
from shared.crashpoints import FORCE_POINTS
from shared.errors import BlobNotFoundError
from shared.keys.vault import FileVault
from tests.config_parts import config_for, running, until
from tests.crash.config_child import Call, Work, run
from tests.marks import some

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.config_child", "azure.storage.blob.aio", "aiohttp"])


@pytest.mark.parametrize("crash_at", some(FORCE_POINTS, short=["generation.put", "state.before-put"]))
async def test_the_next_start_is_in_force_with_one_number_more_and_keeps_its_state(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, crash_at: str
) -> None:
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(tmp_path, blob=blob_config, vault_file=vault.path)
    async with running(config):
        backup.backup(config, tmp_path / "backup.tar")
    second: ConfigServerConfig = msgspec.structs.replace(config, data_dir=tmp_path / "second")
    restoring.restore(second, tmp_path / "backup.tar")
    process = _processes.Process(target=run, args=(Work(second, Call.NOTHING, crash_at),))
    process.start()
    await asyncio.to_thread(process.join, 90)
    assert process.exitcode == -signal.SIGKILL
    process.close()

    async def is_kept() -> bool:
        try:
            data = await store.read(state_blob(2))
        except BlobNotFoundError:
            return False
        found = sealed.opened(data, vault, "blob")
        assert found.head.generation == 2
        return state.content(found.parts, "blob").vault == vault.path.read_bytes()

    async with running(second):
        found = await generation.read(store)
        assert found is not None
        assert found[0].generation == 2
        await until(is_kept)

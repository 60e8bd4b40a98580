"""A config server that is killed while it deletes a machine: the next one goes on, and nothing else goes."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from pathlib import Path

import pytest

from shared import api
from shared.api.jobs import JobState
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.blob import BlobConfig
from shared.crashpoints import DELETION_POINTS
from shared.machine.storage import MachineStorage
from tests.config_parts import config_for, running, until
from tests.crash.server_child import Work, run
from tests.deletions import delete, hurry, in_storage, is_gone, is_waiting, pass_delay
from tests.marks import some

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.server_child", "azure.storage.blob.aio", "aiohttp"])


@pytest.mark.parametrize("crash_at", some(list(DELETION_POINTS), short=["deletion.removing"]))
async def test_a_deletion_that_is_cut_off_is_gone_on_with(
    blob_config: BlobConfig,
    machine_storage: MachineStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash_at: str,
) -> None:
    config = config_for(tmp_path, blob=blob_config)
    other = (await machine_storage.find_or_create("web2")).container
    await machine_storage.find_or_create("web1")
    async with running(config) as server, server.operator() as operator:
        for name in ("web1", "web2"):
            wanted = Protection(disks=["/dev/loop0"], offline=True)
            await operator.call(api.PROTECT, wanted, machine=name)
        said = await delete(operator)
    pass_delay(config.data_dir)
    process = _processes.Process(target=run, args=(Work(config, crash_at, hurry),))
    process.start()
    await asyncio.to_thread(process.join, 90)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    hurry(monkeypatch)
    async with running(config) as server, server.operator() as operator:
        if crash_at in ("deletion.unnoted", "deletion.removing"):
            # Whether it was deleted, and brought back since, nobody knows.
            await is_waiting(operator, "US631")
            said = await delete(operator)
            pass_delay(config.data_dir)
        await until(lambda: is_gone(operator))
        assert await in_storage(machine_storage) == ({other}, {"machines/web2.json"})
        done = await operator.call(api.JOB, Nothing(), id=said.job)
        assert (done.state, done.machine) == (JobState.DONE, "web1")
        entries = (await operator.call(api.AUDIT, Page())).entries
        assert [entry.object for entry in entries if entry.action == "machine.deleted"] == ["web1"]

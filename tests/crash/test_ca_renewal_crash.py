"""A config server that is killed anywhere in the renewal of its CA: it goes on, nobody is locked out, and no session ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from config_server.identity.ca import CertificateAuthority
from config_server.rules.ca_renewal import KIND, LANE
from config_server.store import journal
from shared.api.jobs import JobState
from tests.ca_renewals import hurry, installed, sessions, there, until
from tests.config_parts import config_for, running
from tests.crash.server_child import Work, run
from tests.databases import opened
from tests.marks import some
from tests.process_server_site import free_port

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.server_child", "aiohttp"])

POINTS = [
    "job.begun",
    "ca.in-database",  # the new one is named, and nobody has its key
    "ca.between-key-and-certificates",  # its key is there, and its certificate not
    "job.after-begun",
    "ca.switched",  # so the database says, and no file
    "ca.between-key-and-certificates:2",  # the new key stands first
    "ca.dropped",
    "ca.between-key-and-certificates:3",  # the old key is gone, and its certificate is there
]


@pytest.mark.parametrize(
    "crash_at", some(POINTS, short=["ca.in-database", "ca.between-key-and-certificates:2"])
)
async def test_a_renewal_that_is_cut_off_goes_on_and_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    hurry(monkeypatch)
    config = config_for(tmp_path, port=free_port())
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
    with opened(config.data_dir / "state.db") as db:  # nothing of it is done here
        job = journal.create(
            db,
            kind=KIND,
            version=1,
            machine="",
            lane=LANE,
            who="operator:admin",
            args={},
            now_ns=time.time_ns(),
        )
    old = CertificateAuthority.read(config.data_dir).certificate
    async with sessions(daemons), there(daemons):
        process = _processes.Process(target=run, args=(Work(config, crash_at, hurry),))
        process.start()
        await asyncio.to_thread(process.join, 90)
        assert process.exitcode == -signal.SIGKILL
        process.close()
        async with running(config) as again:
            await until(again, job, JobState.DONE)
    ca = CertificateAuthority.read(config.data_dir)
    assert ca.certificate != old
    assert [ca.trusted, len(ca.keys)] == [(ca.certificate,), 1]
    assert {daemon.trusted for daemon in daemons} == {ca.pem}

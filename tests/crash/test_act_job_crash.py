"""A config server that is killed while it takes an act back: what was wanted before is said once; what was said since holds."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from pathlib import Path

import pytest

from config_server.rules.clock import SECOND_NS
from config_server.store import inventory, journal
from shared import api
from shared.api.jobs import JobState
from shared.api.route import Page
from shared.desired import Verb
from tests.act_jobs import ended, hurry, protect, shown, waits_for
from tests.config_parts import config_for, running
from tests.crash.server_child import Work, run
from tests.databases import opened
from tests.marks import some

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.server_child", "aiohttp"])

POINTS = [
    "job.after-claim",
    "job.undoing",
    "job.undoing:2",  # before what was wanted is said again, ...
    "job.after-undoing:2",  # ... behind it, where nobody has noted that, ...
    "job.after-step:2",  # ... and where that is noted
]


@pytest.mark.parametrize("is_said_since", [False, True])
@pytest.mark.parametrize("crash_at", some(POINTS, short=["job.undoing:2", "job.after-undoing:2"]))
async def test_an_act_whose_taking_back_is_cut_off_is_taken_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str, is_said_since: bool
) -> None:
    config = config_for(tmp_path)
    file = config.data_dir / "state.db"
    hurry(monkeypatch)
    async with running(config) as server, server.operator() as operator:
        await protect(operator, "sda", offline=True)
        said = await protect(operator, "sda", "sdb", offline=True)
        await waits_for(operator, said.job, "never reported")
    with opened(file) as db:
        assert journal.cancel(db, said.job, "operator:admin", SECOND_NS)
    process = _processes.Process(target=run, args=(Work(config, crash_at, hurry),))
    process.start()
    await asyncio.to_thread(process.join, 90)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    if is_said_since:
        with opened(file) as db:
            inventory.act(db, "web1", Verb.STOP, SECOND_NS)
    async with running(config) as server, server.operator() as operator:
        assert (await ended(operator, said.job)).state is JobState.CANCELLED
        is_taken_back = not is_said_since or crash_at in ("job.after-undoing:2", "job.after-step:2")
        entries = (await operator.call(api.AUDIT, Page())).entries
        assert [entry.detail.get("cancelled") for entry in entries].count(said.job) == is_taken_back
        holds = (await shown(operator)).wish
        assert holds is not None
        assert holds.verb is (Verb.STOP if is_said_since else Verb.PROTECT)
        assert holds.disks == ([] if is_said_since else ["/dev/sda"])
        assert holds.mark.number == 2 + is_taken_back + is_said_since

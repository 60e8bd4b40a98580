"""Jobs of two config servers on one PostgreSQL, of which one stands still in a step until the job has come to its end at the other."""

from __future__ import annotations

import asyncio
import threading
import types
from pathlib import Path

import pytest
from sqlalchemy import Connection

from config_server.operations import resync
from config_server.store import commands
from config_server.store.config import DatabaseConfig
from shared import api
from shared.api.jobs import JobState
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.status import AgentDisk, AgentReport
from tests.config_parts import daemon, until
from tests.pair import Pair, end_lease


def report() -> AgentReport:
    disk = AgentDisk(name="loop0", device="/dev/loop0", sectors=2048, mode="ordered", state="ordered")
    return AgentReport(machine="web1", state="ordered", epoch=1, disks=[disk], ring_b=64 << 20)


async def is_in(operator: RestClient, id_: str, state: JobState) -> None:
    async def is_so() -> bool:
        return (await operator.call(api.JOB, Nothing(), id=id_)).state is state

    await until(is_so)


async def test_who_stood_still_before_he_asks_an_agent_asks_nothing_of_it_when_the_job_was_cancelled(
    pair: Pair, database_config: DatabaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands, goes_on = threading.Event(), threading.Event()

    def stand_still(db: Connection, now_ns: int) -> list[str]:
        """First in his transaction: so that it sees nothing of before."""
        if not stands.is_set():
            stands.set()
            goes_on.wait(20)
        return commands.expire(db, now_ns)

    files = await pair.a.enrolled("agent", "web1", tmp_path / "agent")
    async with daemon(pair.a, files) as agent:
        protection = Protection(disks=["/dev/loop0"], offline=True)
        await pair.at_a.call(api.PROTECT, protection, machine="web1")
        await agent.report(report())
        steps = types.SimpleNamespace(**{**vars(commands), "expire": stand_still})
        monkeypatch.setattr(resync, "commands", steps)
        try:
            begun = await pair.at_a.call(api.RESYNC, Nothing(), machine="web1")
            await asyncio.to_thread(stands.wait)
            at = pair.at_b if end_lease(database_config, begun.id) == "cs-a" else pair.at_a
            await at.call(api.JOB_CANCEL, Nothing(), id=begun.id)
            await is_in(at, begun.id, JobState.CANCELLED)
        finally:
            goes_on.set()
        for _ in range(20):
            assert await agent.report(report()) == []
            await asyncio.sleep(0.05)

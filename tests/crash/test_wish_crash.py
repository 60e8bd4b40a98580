"""An agent that is killed while it does what the config server wants: the next start does what its file says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent import desired
from agent.capture import attach, libbpf, pins
from agent.config import AgentConfig
from agent.stream.state import AgentState, Reason, Word
from shared import crashpoints
from shared.desired import Verb
from shared.host import protected
from shared.host.toml import to_toml
from tests.capture_parts import MIB, Rig, needs_capture, rig
from tests.epoch_ids import eid
from tests.marks import some
from tests.pki import TestCa
from tests.wishing import Teller, agent_of, devices, teller

pytestmark = needs_capture


@contextlib.asynccontextmanager
async def agent(config: AgentConfig, at: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """A process; it is killed when it reaches `at`, and stopped at the end if it is there still."""
    file = config.state_dir.with_name("agent.toml")
    file.write_text(to_toml(msgspec.to_builtins(config, enc_hook=str)))
    environment = {**os.environ, **({"UNDERSTUDY_CRASH_AT": at} if at else {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent", "--config", str(file), env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(40):
            await process.wait()


async def killed(process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(40):
        assert await process.wait() == -signal.SIGKILL


def state_of(r: Rig) -> AgentState:
    return AgentState(attach.state_words(r.pin_dir))


@pytest.mark.parametrize(
    "at", some(crashpoints.WISH_POINTS, short=("wish.before-write", "attach.in-detach", "wish.after-forget"))
)
async def test_a_stop_that_is_killed_anywhere_is_done_by_the_next_start_once_it_is_in_the_file(
    at: str, tmp_path: Path
) -> None:
    ca = TestCa(tmp_path)
    with rig(4 * MIB, count=2, attached=False) as r:
        both = [str(disk.path) for disk in r.disks]
        async with teller(ca) as says:
            config = agent_of(r, ca, says.url, *both)
            async with agent(config, at) as process:
                await says.hears(lambda report: report.disks, "it does not begin")
                state_of(r).begin_epoch(eid(7))
                links = set(pins.program_ids(r.pin_dir))
                says.wish(Verb.STOP)
                await killed(process)
            says.desired = None  # from here on the config server has no opinion
            if at == "wish.before-write":
                assert b'"wish": null' in (config.state_dir / desired.NAME).read_bytes()
                async with agent(config):
                    await says.hears(lambda report: devices(report) == both, "it does not go on")
                    assert state_of(r).epoch == eid(7)
                    assert links == set(pins.program_ids(r.pin_dir))
                return
            for _ in range(2):
                async with agent(config):
                    await says.hears(lambda report: report.state == "unprotected", "it is not stopped")
                    assert not pins.exist(r.pin_dir)
                    assert not pins.staging(r.pin_dir).exists()
                    assert not {info.id for info in libbpf.links()} & links
                    assert not protected._file(r.pin_dir).exists()
            says.wish(Verb.PROTECT)
            async with agent(config):
                await says.hears(lambda report: devices(report) == both, "it does not begin again")
                state = state_of(r)
                assert (state[Word.EPOCH], state.reason, state.suspicion) == (0, Reason.INITIAL, None)


@pytest.mark.parametrize("at", ["wish.before-write", "wish.after-write"])
async def test_a_disk_that_was_asked_for_is_captured_after_a_kill_once_that_is_in_the_file(
    at: str, tmp_path: Path
) -> None:
    ca = TestCa(tmp_path)
    with rig(4 * MIB, count=2, attached=False) as r:
        a, b = (str(disk.path) for disk in r.disks)
        async with teller(ca) as says:
            config = agent_of(r, ca, says.url, a)
            async with agent(config, at) as process:
                await says.hears(lambda report: devices(report) == [a], "it does not begin")
                state_of(r).begin_epoch(eid(7))
                says.wish(Verb.PROTECT, a, b)
                await killed(process)
            says.desired = None
            taken = at == "wish.after-write"
            async with agent(config):
                await says.hears(
                    lambda report: devices(report) == ([a, b] if taken else [a]), "not what the file says"
                )
                assert state_of(r)[Word.EPOCH] == (0 if taken else 7)
                assert state_of(r).suspicion is None
            await check_stops_again(says, config, r)


async def check_stops_again(says: Teller, config: AgentConfig, r: Rig) -> None:
    """Whatever a kill left."""
    says.wish(Verb.STOP)
    async with agent(config):
        await says.hears(lambda report: report.state == "unprotected", "it is not stopped")
        assert not pins.exist(r.pin_dir)

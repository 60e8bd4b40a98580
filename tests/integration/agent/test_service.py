"""An agent that runs, with nobody at the other ends, whose capture somebody removes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import lock, service
from agent.capture import attach, pins
from agent.capture.maps import detach
from agent.config import AgentConfig
from agent.stream.state import AgentState, Reason, Word
from shared.host import protected
from tests.capture_parts import MIB, needs_capture, rig, until
from tests.pki import TestCa

pytestmark = needs_capture


async def shows(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, condition, what)


@pytest.mark.parametrize("everything", [False, True])
async def test_capture_that_is_removed_under_a_running_agent_is_attached_afresh(
    everything: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protected, "_FOLDER", tmp_path / "protected")
    with rig(4 * MIB, attached=False) as r:
        config = AgentConfig(
            machine="m", disks=[r.device], process_server="127.0.0.1:1", control_url="https://127.0.0.1:1",
            tls=TestCa(tmp_path).issue("agent:m"), state_dir=tmp_path / "state", pin_dir=r.pin_dir, ring_mib=1,
        )  # fmt: skip
        stop = asyncio.Event()
        running = asyncio.create_task(service.run(config, stop))
        link = pins.link_path(r.pin_dir, "us_rq_issue")
        await shows(link.exists, "nothing is attached")
        before = attach.state_words(r.pin_dir)
        await shows(lambda: before[Word.ALL_THERE_NS] > 0, "nobody looks at the disks")
        if everything:
            await asyncio.to_thread(detach, r.pin_dir)
        else:
            link.unlink()
        await shows(lambda: AgentState(before).reason is Reason.CAPTURE_REMOVED, "the agent does not notice")
        await shows(link.exists, "nothing is attached again")
        state = AgentState(attach.state_words(r.pin_dir))
        assert (state.reason, state[Word.EPOCH]) == (Reason.CAPTURE_REMOVED, 0)
        assert state[Word.SUSPECT_SINCE_NS] > 0
        stop.set()
        await running
        assert not lock.beside(r.pin_dir).exists()
    assert "pins of its programs were removed: " in capsys.readouterr().out

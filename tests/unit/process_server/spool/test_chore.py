"""Chores: done in the end, whatever fails on the way."""

from __future__ import annotations

import asyncio

import pytest

from process_server.spool import chore
from process_server.spool.chore import Chore
from shared.errors import FencedError, SpoolError, UnderstudyError

Step = bool | Exception
DISK = SpoolError("The folder could not be read", cause="Input/output error")


class Script:
    """A chore whose work goes as written, and what it says of itself after each step."""

    def __init__(self, *steps: Step, look_s: float = 0.001) -> None:
        self.left = list(steps)
        self.said: list[UnderstudyError | None] = []
        self.changed = asyncio.Event()
        self.chore = Chore("test", self._work, look_s=look_s, changed=self._note)

    async def _work(self) -> bool:
        step = self.left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def _note(self) -> None:
        self.said.append(self.chore.trouble)
        self.changed.set()

    async def until_said(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.said) < count:
                self.changed.clear()
                await self.changed.wait()


async def test_what_fails_is_tried_again_and_its_trouble_is_told_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chore, "_FIRST_PAUSE_S", 0.001)
    script = Script(DISK, DISK, False, True)
    script.chore.ask()
    await script.until_said(4)
    assert script.said == [DISK, DISK, None, None]
    await script.chore.stop()


async def test_a_host_without_memory_ends_no_chore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chore, "_FIRST_PAUSE_S", 0.001)
    script = Script(MemoryError(), True)
    script.chore.ask()
    await script.until_said(2)
    assert [error and error.code for error in script.said] == ["US604", None]
    await script.chore.stop()


async def test_that_another_server_was_faster_is_no_trouble() -> None:
    script = Script(FencedError("The log is not ours"), True)
    script.chore.ask()
    await script.until_said(2)
    assert script.said == [None, None]
    await script.chore.stop()


async def test_asking_ends_a_pause_and_begins_anew_what_was_done() -> None:
    script = Script(False, True, True, look_s=3600.0)
    for count in (1, 2, 3):
        script.chore.ask()
        await script.until_said(count)
    await script.chore.stop()
    script.chore.ask()  # after the end nothing begins any more
    assert script.left == []


def test_the_pause_grows_while_troubles_follow_each_other_and_begins_anew_after_calm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("process_server.spool.chore.time.monotonic", lambda: now)
    monkeypatch.setattr("process_server.spool.chore.random.uniform", lambda _low, high: high)
    tired = Chore("test", Script()._work, look_s=1.0, changed=lambda: None)
    pauses = []
    for _ in range(8):
        pauses.append(tired._pause())
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    now += 121
    assert tired._pause() == 1

"""Catch-up on a machine that has no room for one more thread."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agent.stream import records
from agent.stream.records import Records
from agent.stream.rounds import Rounds
from shared.daemon.threads import Threads
from shared.errors import NoThreadError
from tests.no_threads import no_room


async def test_a_swap_that_fails_is_not_taken_for_a_machine_without_room() -> None:
    rounds = Rounds.__new__(Rounds)
    failure = RuntimeError("dictionary changed size during iteration")

    def swap() -> None:
        raise failure

    with pytest.raises(RuntimeError) as caught:
        await rounds._in_thread(swap)
    assert caught.value is failure
    with no_room(), pytest.raises(NoThreadError, match="Catch-up") as full:
        asyncio.get_running_loop().set_default_executor(Threads())
        await rounds._in_thread(swap)
    assert "new thread" in full.value.cause


async def test_what_is_held_back_waits_for_a_thread_and_says_so_until_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "HOLD_PATIENCE_S", 0.0)
    ring: Any = SimpleNamespace(consumer_seq=0, producer_seq=7)
    held, waited = Records(ring), []
    held.emitted_to = 5
    with no_room():
        await held.drop_orphans_if_due(lambda: waited.append(True))
    assert (held.trouble is not None, waited, held._grace) == (True, [], (0, 0))
    await held.drop_orphans_if_due(lambda: waited.append(True))
    assert (held.trouble, waited, held._grace) == (None, [True], (7, 7))
    await held.close()

"""What an agent does that protects nothing."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from agent import idle
from agent.desired import WishFile
from agent.idle import Idle
from shared.api.commands import Command
from shared.desired import Desired, Mark, Verb, Wish
from shared.errors import NothingProtectedError


async def test_the_service_manager_hears_that_it_is_alive_and_why_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        beating = asyncio.create_task(idle._beat(Idle("told to stop")))
        async with asyncio.timeout(10):
            said = await asyncio.get_running_loop().sock_recv(manager, 1024)
        beating.cancel()
    assert said == b"WATCHDOG=1\nSTATUS=unprotected: told to stop"


@pytest.mark.parametrize("kind", ["mark", "resync", "a-newer-one"])
async def test_what_needs_a_stream_is_refused(kind: str) -> None:
    with pytest.raises(NothingProtectedError, match=kind):
        await idle._refuse(Command(id="c", kind=kind))


async def test_to_ask_again_which_copy_it_is_costs_nothing() -> None:
    assert await idle._refuse(Command(id="c", kind="check-side")) == {}


async def test_a_wish_that_came_while_the_one_before_was_done_is_not_slept_on(tmp_path: Path) -> None:
    wishes = WishFile(tmp_path, "web1", "")
    held = wishes.held
    mark = Mark(incarnation="i", number=1, act="a")
    await wishes.take(Desired(wish=Wish(mark=mark, verb=Verb.STOP)))
    assert idle._state(Idle("nothing is named"), wishes, held) == "unprotected"
    assert await wishes.written()
    assert idle._state(Idle("nothing is named"), wishes, held) == "starting", "no answer to what was told"
    over = asyncio.Event()
    async with asyncio.timeout(10):
        await idle._end(over, asyncio.Event(), wishes, held, None)
    assert over.is_set()

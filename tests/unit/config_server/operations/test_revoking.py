"""What is in force while several threads read the database."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from config_server.operations.revoking import Revoking
from shared.api.certificates import Revocations


async def test_an_answer_that_comes_late_takes_back_nothing_that_was_read_since() -> None:
    answers: list[asyncio.Future[Revocations]] = []

    def run(_work: object, *, urgent: bool) -> asyncio.Future[Revocations]:
        assert urgent
        answers.append(asyncio.get_running_loop().create_future())
        return answers[-1]

    control: Any = SimpleNamespace(db=SimpleNamespace(run=run), revoked=Revocations())
    revoking = Revoking(control)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(revoking.take())
        tasks.create_task(revoking.take())
        await asyncio.sleep(0)
        answers[1].set_result(Revocations(serials=["a"]))
        await asyncio.sleep(0)
        answers[0].set_result(Revocations())
    assert control.revoked.serials == ["a"]

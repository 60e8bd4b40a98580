"""The command line as processes, against a config server of a test, while a machine's agent reports."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.cli import Done, begun, ended, understudy
from tests.config_parts import ConfigServer
from tests.obedient_agent import ObedientAgent


class Typing:
    def __init__(self, process: asyncio.subprocess.Process, keyboard: int) -> None:
        self._process = process
        self._keyboard = keyboard

    def type(self, words: str) -> None:
        os.write(self._keyboard, words.encode())

    async def until(self, word: str) -> str:
        """What is said until then."""
        assert self._process.stderr is not None
        async with asyncio.timeout(30):
            return (await self._process.stderr.readuntil(word.encode())).decode()

    async def ended(self) -> int:
        done = await ended(self._process)
        return done.exit_code


class Line:
    """The command line of an installation, with an agent that reports all the while."""

    def __init__(self, server: ConfigServer, agent: ObedientAgent | None) -> None:
        folder = server.config.data_dir
        self._options = [
            *("--server", server.url, "--token-file", str(folder / "operator.token")),
            *("--ca-file", str(folder / "ca.pem")),
        ]
        self._agent = agent
        self._keyboards: list[int] = []

    async def run(self, *arguments: str, typed: str = "") -> Done:
        """`typed` is what somebody types at a terminal; without it there is none."""
        if self._agent is None:
            return await understudy(*arguments, *self._options)
        if typed:
            done = asyncio.create_task(ended(await self._typed(arguments, typed)))
        else:
            done = asyncio.create_task(understudy(*arguments, *self._options))
        while not done.done():
            reporting = asyncio.create_task(self._agent.report(wait_s=0.2))
            await asyncio.wait({done, reporting}, return_when=asyncio.FIRST_COMPLETED)
            await reporting
        return await done

    async def begun(self, *arguments: str) -> asyncio.subprocess.Process:
        return await begun(*arguments, *self._options)

    async def _typed(self, arguments: Sequence[str], typed: str) -> asyncio.subprocess.Process:
        keyboard, terminal = os.openpty()
        self._keyboards.append(keyboard)
        os.write(keyboard, typed.encode())
        try:
            return await begun(*arguments, *self._options, stdin=terminal)
        finally:
            os.close(terminal)

    def close(self) -> None:
        for keyboard in self._keyboards:
            os.close(keyboard)

    @contextlib.asynccontextmanager
    async def typing(self, *arguments: str) -> AsyncIterator[Typing]:
        """A command at a terminal, that is answered as it asks."""
        keyboard, terminal = os.openpty()
        self._keyboards.append(keyboard)
        try:
            process = await begun(*arguments, *self._options, stdin=terminal)
        finally:
            os.close(terminal)
        try:
            yield Typing(process, keyboard)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def json(self, *arguments: str) -> Any:
        return (await self.run(*arguments, "--output", "json")).json

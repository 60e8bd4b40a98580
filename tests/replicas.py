"""Several config servers on one PostgreSQL, each a process of its own, behind a balancer of connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.config_parts import ConfigServer, config_for
from tests.process_server_site import free_port

PARTS = ("ca.key", "ca.pem", "operator.token")
"""Of a data folder: what is the same on each host (docs/operations/database.md)."""


class Replica:
    """One config server, as a process that can be killed and started again."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self.name = name
        self.program: Path | None = None
        """The folder of another one than this tree, with which it is started (next_program.py)."""
        self.folder = folder
        self.port = free_port()
        self._config = folder / "config-server.toml"
        self._url = url
        self._process: asyncio.subprocess.Process | None = None
        folder.mkdir(parents=True)
        self._config.write_text(
            f'data_dir = "{self.data}"\nlisten = "127.0.0.1"\nport = {self.port}\nname = "{name}"\n'
            f'[database]\nurl = "{url}"\n'
        )

    @property
    def data(self) -> Path:
        return self.folder / "config-server"

    @property
    def server(self) -> ConfigServer:
        """Ways to talk to it alone."""
        return ConfigServer(config_for(self.folder), self.port)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def join(self, other: Replica) -> None:
        """Another one's files come here."""
        self.data.mkdir(mode=0o700)
        for name in PARTS:
            shutil.copy2(other.data / name, self.data / name)

    async def start(self) -> None:
        """Returns when it answers calls."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            (self.folder / "log").open("ab") as log,
        ):
            manager.bind(str(notify))
            manager.setblocking(False)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "config_server", "--config", str(self._config)),
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                cwd=self.program,
                stderr=log,
            )
            async with asyncio.timeout(60):
                ready = asyncio.create_task(_ready(manager))
                ended = asyncio.create_task(self._process.wait())
                await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
                for task in (ready, ended):
                    task.cancel()
                # Before its socket is closed: the loop knows it by a number, which somebody else gets.
                await asyncio.gather(ready, ended, return_exceptions=True)
            if not ready.done() or ready.cancelled():
                raise AssertionError(f"{self.name} did not start: {self.log}")

    def send(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            await self._process.wait()
            self._process = None


async def _ready(manager: socket.socket) -> None:
    while b"READY=1" not in await asyncio.get_running_loop().sock_recv(manager, 4096):
        pass


class Balancer:
    """Passes each connection to one of the servers that take it, in turns."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.port = 0
        self._turns = itertools.count()
        self._replicas = replicas
        self.out = set[Replica]()
        """Those that get no connection, though they may take one: they do not answer."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Balancer]:
        tasks = set[asyncio.Task[None]]()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._pass(reader, writer)
            except asyncio.CancelledError:
                pass
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._turns)
        for number in range(len(self._replicas)):
            replica = self._replicas[(first + number) % len(self._replicas)]
            if replica in self.out:
                continue
            try:
                there, back = await asyncio.open_connection("127.0.0.1", replica.port)
            except OSError:
                continue
            try:
                await asyncio.gather(_copy(reader, back), _copy(there, writer), return_exceptions=True)
            finally:
                back.close()
            return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one end closes: then the other is closed, too."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

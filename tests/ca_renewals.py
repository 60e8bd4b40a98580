"""An installation whose CA is renewed: a config server, and daemons with real lines to it and real sessions with each other."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from config_server import background
from config_server.operations import ca_renewal
from config_server.store import journal
from shared import api
from shared.api.certificates import CaRenewRequest
from shared.api.commands import Command
from shared.api.jobs import JobState, JobView
from shared.api.route import Nothing
from shared.control import control_client
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import UnderstudyError
from shared.status import AgentReport, MasterTargetReport, ProcessServerReport, Report
from shared.trust import identity, tls
from tests.config_parts import ConfigServer
from tests.databases import opened

_REPORTS: dict[str, type[Report]] = {
    "agent": AgentReport,
    "process-server": ProcessServerReport,
    "master-target": MasterTargetReport,
}


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_renewal, "LOOK_S", 0.05)
    monkeypatch.setattr(ca_renewal, "_SERVERS_S", 0.05)
    monkeypatch.setattr(background, "_CA_S", 0.05)
    monkeypatch.setattr(background, "_BEAT_S", 0.05)
    monkeypatch.setattr(control_client, "_RENEWAL_CHECK_S", 0.1)
    monkeypatch.setattr(control_client, "_RENEWAL_RETRY_S", 0.1)


class Daemon:
    """`files` of ROLE:NAME, and a context for its peers, as a daemon holds them."""

    def __init__(self, url: str, files: tls.TlsFiles) -> None:
        self.url = url
        self.files = files
        self.name = identity.loaded_name(files)
        self.role = self.name.partition(":")[0]
        self.context: ssl.SSLContext = (
            tls.server_context(files)
            if self.role == "process-server"
            else tls.client_context(files, tls.PROCESS_SERVER)
        )
        self.says: dict[str, Any] | None = None
        """In place of what it would say of its anchors: an earlier version says nothing."""

    @contextlib.asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """It reports, until the block ends."""
        client = ControlClient(
            self.url, self.files, on_renewed=lambda chain: tls.present(self.context, chain)
        )
        if self.says is not None:
            client._goes_by = control_client._GoesBy((), "")
            client._take_trust = _nothing  # type: ignore[method-assign]
        stop = asyncio.Event()

        async def handle(_command: Command) -> dict[str, Any]:
            return {}

        report = _REPORTS[self.role]
        task = asyncio.create_task(client.serve(lambda: report(), handle, stop, interval_s=0.05))
        try:
            yield
            assert not task.done()
        finally:
            stop.set()
            await task
            await client.close()

    @property
    def trusted(self) -> str:
        return self.files.ca.read_text()


async def _nothing(told: object) -> None:
    return


@contextlib.asynccontextmanager
async def there(daemons: Iterable[Daemon]) -> AsyncIterator[None]:
    """They report, until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        for daemon in daemons:
            await stack.enter_async_context(daemon.there())
        yield


async def installed(server: ConfigServer, folder: Path) -> list[Daemon]:
    """One of each."""
    return [
        Daemon(server.url, await server.enrolled(role, name, folder / name))
        for role, name in (("process-server", "ps1"), ("agent", "web1"), ("master-target", "mt1"))
    ]


@contextlib.asynccontextmanager
async def sessions(daemons: Sequence[Daemon]) -> AsyncIterator[None]:
    """One session from the agent to the process server lives through the whole block, and others begin all the time: no byte of the first
    is lost, and none of the others is refused."""
    by_role = {daemon.role: daemon for daemon in daemons}

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(
        echo, "127.0.0.1", 0, ssl=by_role["process-server"].context, ssl_handshake_timeout=20
    )
    port = listening.sockets[0].getsockname()[1]

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", port, ssl=by_role["agent"].context, server_hostname="127.0.0.1"
        )

    async def said(line: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        line[1].write(b"batch")
        assert await line[0].readexactly(5) == b"batch"

    async def closed(line: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        line[1].close()
        await line[1].wait_closed()

    async def begin_others() -> None:
        while not stop.is_set():
            line = await connected()
            await said(line)
            await closed(line)
            await said(lasting)
            await asyncio.sleep(0.02)

    lasting = await connected()
    stop = asyncio.Event()
    task = asyncio.create_task(begin_others())
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([task])
        await closed(lasting)
        listening.close()
        await listening.wait_closed()
    task.result()


async def renew(operator: RestClient, hold_s: float = 0.0) -> JobView:
    return await operator.call(api.CA_RENEW, CaRenewRequest(hold_s=hold_s))


def no_hold(server: ConfigServer, id_: str) -> None:
    """Its time has come."""
    with opened(server.config.data_dir / "state.db") as db:
        journal.say_again(db, id_, {"until_ns": 0}, 1)


async def job(server: ConfigServer, id_: str) -> JobView | None:
    """None while the server is away."""
    with contextlib.suppress(UnderstudyError):
        async with server.operator() as operator:
            return await operator.call(api.JOB, Nothing(), id=id_)
    return None


async def until(server: ConfigServer, id_: str, *states: JobState, waits: str = "") -> JobView:
    """`waits`: what it says that it waits for holds this."""
    found = None
    try:
        async with asyncio.timeout(60):
            while True:
                found = await job(server, id_)
                if found is not None and (found.state in states if states else waits in found.waits != ""):
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"it is {found}")

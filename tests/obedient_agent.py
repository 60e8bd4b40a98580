"""An agent as the config server sees one: it reports, and goes by what it is told, if it is to."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from shared import api
from shared.api.daemons import StatusReply
from shared.control.rest import RestClient
from shared.desired import Settings, Wish
from shared.status import AgentDisk, AgentReport, AvailableDisk
from shared.trust import tls
from tests.config_parts import ConfigServer

SECTORS = 2048


class ObedientAgent:
    def __init__(self, line: RestClient, machine: str) -> None:
        self._line = line
        self._machine = machine
        self._start, self._number = secrets.token_hex(8), 0
        self.wish: Wish | None = None
        self.settings: Settings | None = None
        self.obeys = True
        self.epoch = 0
        self.captured: Sequence[str] = ("sda",)
        self.available = [AvailableDisk(device=f"/dev/{name}", sectors=SECTORS) for name in ("sda", "sdb")]

    async def report(self, wait_s: float = 0.0, **fields: Any) -> StatusReply:
        """The answer; what it says is done from then on."""
        said = msgspec.structs.replace(self._said(), **fields)
        return await self.report_plain(wait_s, **msgspec.to_builtins(said))

    async def report_plain(self, wait_s: float = 0.0, **fields: Any) -> StatusReply:
        """Fields as they are sent: also what no report of this version has."""
        self._number += 1
        body = {**msgspec.to_builtins(self._said()), **fields, "start": self._start, "number": self._number}
        reply = await self._line.call_plain(api.STATUS, body, {}, wait_s)
        if reply.desired is not None and self.obeys:
            self.wish, self.settings = reply.desired.wish or self.wish, reply.desired.settings
        return reply

    def _said(self) -> AgentReport:
        return AgentReport(
            machine=self._machine,
            state="ordered",
            epoch=self.epoch,
            wish=self.wish,
            available=self.available,
            disks=[
                AgentDisk(name=name, device=f"/dev/{name}", sectors=SECTORS, mode="ordered")
                for name in self.captured
            ],
        )


@contextlib.asynccontextmanager
async def obedient_agent(
    server: ConfigServer, files: tls.TlsFiles, machine: str = "web1"
) -> AsyncIterator[ObedientAgent]:
    async with RestClient(server.url, tls.client_context(files, tls.CONFIG_SERVER)) as line:
        yield ObedientAgent(line, machine)

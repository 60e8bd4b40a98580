"""A config server that tells an agent what is wanted, and hears what it reports: for tests of agents, with real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable
from typing import Any

from agent.config import AgentConfig
from shared import decoding
from shared.api.commands import Command
from shared.api.daemons import StatusReply
from shared.desired import Desired, Mark, Settings, Verb, WantedDisk, Wish
from shared.status import AgentReport
from shared.trust import tls
from tests.capture_parts import Rig
from tests.impostor import answering
from tests.pki import TestCa

PATIENCE_S = 60.0


class Teller:
    """`desired` is told with every answer; a wish gets the next number."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        self.desired: Desired | None = None
        self.commands: list[Command] = []
        self.reports: list[AgentReport] = []
        self.results: dict[str, Any] = {}
        self._number = 0
        self._heard = asyncio.Event()

    def wish(self, verb: Verb, *disks: str | WantedDisk, servers: tuple[str, ...] = ()) -> Wish:
        self._number += 1
        wanted = tuple(WantedDisk(disk) if isinstance(disk, str) else disk for disk in disks)
        mark = Mark(incarnation="test", number=self._number, act=f"act-{self._number}")
        made = Wish(mark=mark, verb=verb, disks=wanted, process_servers=servers)
        self.desired = Desired(wish=made, settings=self.desired.settings if self.desired else None)
        return made

    def set_interval(self, seconds: float) -> None:
        wish = self.desired.wish if self.desired else None
        self.desired = Desired(wish=wish, settings=Settings(point_interval_s=seconds))

    def answer(self, body: dict[str, Any]) -> StatusReply:
        self.reports.append(decoding.convert(body, AgentReport))
        self.results |= body.get("results", {})
        self._heard.set()
        waiting = [command for command in self.commands if command.id not in self.results]
        return StatusReply(commands=waiting, desired=self.desired)

    @property
    def last(self) -> AgentReport:
        return self.reports[-1]

    async def hears(self, condition: Callable[[AgentReport], object], what: str) -> AgentReport:
        """The next report of which it is true."""
        seen = len(self.reports)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    self._heard.clear()
                    for report in self.reports[seen:]:
                        if condition(report):
                            return report
                    seen = len(self.reports)
                    await self._heard.wait()
        except TimeoutError:
            raise AssertionError(f"{what}; the last report: {self.reports[-1:]}") from None


@contextlib.asynccontextmanager
async def teller(ca: TestCa) -> AsyncIterator[Teller]:
    """Whoever has a certificate of the CA's is heard."""
    made = Teller()
    context = tls.server_context(ca.issue("config-server:cs1"), require_client=False)
    async with answering(context, {"status": made.answer}) as made.url:
        yield made


def agent_of(r: Rig, ca: TestCa, url: str, *disks: str, **changes: Any) -> AgentConfig:
    """Its process server is away; its certificate is not due for renewal."""
    files = ca.issue("agent:m", shift=dt.timedelta(days=1.9))
    values: dict[str, Any] = {
        "machine": "m", "disks": [*disks], "process_server": "127.0.0.1:1", "control_url": url, "tls": files,
        "state_dir": r.folder / "state", "pin_dir": r.pin_dir, "ring_mib": 1,
    }  # fmt: skip
    return AgentConfig(**values | changes)


def devices(report: AgentReport) -> list[str]:
    return [disk.device for disk in report.disks]


def codes(report: AgentReport) -> list[str]:
    return [problem.code for problem in report.errors]

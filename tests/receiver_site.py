"""A receiver with logs in memory, and certificates for its agents, over real TLS."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from process_server.reception.admission import Admission
from process_server.reception.boots import BootFiles
from process_server.reception.credit import MIB, CacheSpace, CreditPolicy
from process_server.reception.receiver import Receiver
from shared.errors import TransientError
from shared.machine.active_side import ActiveSide
from shared.trust import tls
from shared.wire.messages import Hello
from tests.pki import TestCa
from tests.wire_parts import Agent, MemoryLog


class Site:
    """A receiver, its logs, and certificates for its agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = TestCa(folder)
        self.logs: dict[str, MemoryLog] = {}
        self.policy = CreditPolicy(window_b=MIB, quota_per_disk_b=64 * MIB)
        self.space = CacheSpace(total_b=1 << 40, free_b=1 << 40)
        self.opened: list[str] = []
        self.asked: list[str] = []
        """Of which machines storage was asked for the active side, and nothing else would do."""
        self.storage_away = False
        self.active: ActiveSide | None = None
        """None: everybody may speak for a machine."""

    async def start(self) -> None:
        self.boots = BootFiles(self.folder / "spool")
        self.admission = Admission(
            self.open_log,
            policy=self.policy,
            cache=lambda: self.space,
            check_side=self.check_side,
            boots=self.boots,
        )
        context = tls.server_context(self.ca.issue("process-server:ps1"))
        self.receiver = Receiver(("127.0.0.1", 0), context, self.admission)
        await self.receiver.start()

    def log(self, machine: str = "lab") -> MemoryLog:
        return self.logs.setdefault(machine, MemoryLog())

    def agent(self, machine: str = "lab") -> contextlib.AbstractAsyncContextManager[Agent]:
        return Agent.connect(self.receiver.port, self.context(f"agent:{machine}"))

    def context(self, name: str) -> ssl.SSLContext:
        return tls.client_context(self.ca.issue(name))

    async def check_side(self, machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
        if surely:
            self.asked.append(machine)
            if self.storage_away:
                raise TransientError("Could not read the active side")
        if self.active is not None:
            self.active.check(identity)
        return self.active is not None

    async def open_log(self, message: Hello) -> MemoryLog:
        self.opened.append(message.machine)
        return self.log(message.machine)

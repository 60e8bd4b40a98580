"""What admission remembers of a machine: its sessions, the lock between them, its credit; and copies that were refused."""

from __future__ import annotations

import asyncio
import math
from typing import Final, NamedTuple

from process_server.reception.credit import CreditGate, CreditPolicy
from process_server.reception.session import Session, StreamLog
from shared.errors import CopyRefusedError, UnderstudyError


class Copy(NamedTuple):
    """A copy of a machine that was refused, and when (monotonic clock)."""

    address: str
    error: CopyRefusedError
    at_s: float


class Machine:
    """What this process server knows of one machine; lives as long as the process."""

    def __init__(self, name: str, policy: CreditPolicy) -> None:
        self.name: Final = name
        self.gate: Final = CreditGate(policy)
        self.lock: Final = asyncio.Lock()
        self.log: StreamLog | None = None
        self.session: Session | None = None
        """The last session that was admitted; its connection may be over."""
        self.newest: Session | None = None
        """The last session that asked to be admitted."""
        self.holder: Session | None = None
        """Who has the lock."""
        self.problem: UnderstudyError | None = None
        """Why the last session ended; None once a newer one is open."""
        self.side_asked_s = -math.inf
        """When it was last asked whether its sessions are the active side's (monotonic)."""
        self._received_b = 0
        self._ordered_captured_ns = 0

    @property
    def connected(self) -> bool:
        return self.session is not None and self.session.connected

    @property
    def received_b(self) -> int:
        """Bytes of batches, over all sessions."""
        return self._received_b + (self.session.received_b if self.session is not None else 0)

    @property
    def ordered_captured_ns(self) -> int:
        """`captured_ns` of the newest batch that is ordered and uploaded; 0 when none was seen."""
        newest = self.session.ordered_captured_ns if self.session is not None else 0
        return newest or self._ordered_captured_ns

    def admit(self, session: Session) -> None:
        self._received_b = self.received_b
        self._ordered_captured_ns = self.ordered_captured_ns
        self.session = session

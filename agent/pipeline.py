"""The parts of a running agent, put together: capture → stream → sender, with continuity beside them, and what is asked of them as one."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Final

from agent.capture.look import captured_twice
from agent.capture.maps import Capture
from agent.capture.watch import Watch
from agent.config import AgentConfig
from agent.continuity.auditor import Continuity
from agent.host_note import HostNote
from agent.machine_identity import boot_of, identity_of
from agent.stream.catchup import CatchUp
from agent.stream.cutter import Stream
from agent.stream.sender import Sender, disk_infos
from agent.stream.servers import Address, ProcessServers
from agent.stream.state import AgentState, Reason, Word
from agent.stream.sync_reader import SyncReader
from shared.api.commands import Command
from shared.batch import Mark, StreamState
from shared.daemon import logging
from shared.errors import DeadlineError, UsageError
from shared.recovery.position import Position
from shared.trust import tls
from shared.trust.revocation import REVOKED_FILE, RevokedFile
from shared.waiting import wait_for
from shared.wire.messages import Hello

_log = logging.get()

STILL_S: Final = 45.0
"""What takes longer than this, of all that never should, stands still."""
MARK_DEADLINE_S: Final = 110.0
"""How long a requested point waits for the stream to be ordered."""


class Agent:
    """The parts of a running agent."""

    def __init__(
        self, config: AgentConfig, capture: Capture, watch: Watch, former: Address | None = None
    ) -> None:
        """`former`: the process server with which this process was before. Else it is the one with which the agent was that ran before."""
        self.config = config
        self.capture = capture
        self.watch = watch
        """For disks that are protected and not captured."""
        self.captured_twice = captured_twice(capture.disks)
        """By id, what people are warned of."""
        self.state = AgentState(capture.state, capture.server)
        self.catchup = CatchUp(
            [disk.sectors for disk in capture.disks], [capture.todo(i) for i in range(len(capture.disks))]
        )
        self.reader = SyncReader(capture.disks, self.catchup)
        self.stream = Stream(capture, self.state, self.catchup, self.reader)
        self.continuity = Continuity(
            capture, self.state, self.stream.rounds, watch, lambda: self.stream.unreadable
        )
        self.sender = Sender(
            self.stream,
            self.state,
            self._hello,
            self._servers(former),
            config.tls,
            self.continuity.end_epoch,
            config.control_address,
        )
        self.note = HostNote(config, capture)
        self.revoked = RevokedFile(config.tls.cert.with_name(REVOKED_FILE), config.tls.ca, self.sender.revoke)
        self.identity = identity_of(config.identity)
        self.boot = boot_of(capture.attached_boot_ns)
        self._id = secrets.token_hex(8)
        self._point_interval_s = config.point_interval_s
        self._other_interval = asyncio.Event()

    def present(self, chain: tls.Chain) -> None:
        """From the next session on: our certificate, or by whom we accept peers, was replaced."""
        self.sender.present(chain)
        self.revoked.trusted(chain.ca)

    def _servers(self, former: Address | None) -> ProcessServers:
        named, last = self.config.addresses, self.state.last_server(self.config.addresses)
        left = last if last not in named and self.state.is_freed_too_early else None
        return ProcessServers(named, time.monotonic(), former or last, left)

    def _hello(self) -> Hello:
        epoch, claim = self.state.epoch
        suspicion = self.state.suspicion
        infos = disk_infos([(disk.id, disk.serial, disk.sectors) for disk in self.capture.disks])
        return Hello(
            machine=self.config.machine,
            epoch=epoch,
            claim=claim,
            seen=self.state[Word.SEEN_EPOCH],
            reason=self.state.reason.text,
            suspect_since_ns=suspicion.since_ns if suspicion else 0,
            suspect_after=suspicion.after if suspicion else None,
            agent_id=self._id,
            identity=self.identity,
            boot=self.boot,
            disks=infos,
            held_from=self.state[Word.FREED] + 1 if epoch else 1,
            last_sent=self.state[Word.LAST_CUT] if epoch else 0,
        )

    def standstill(self) -> str:
        """What does not move although it should; empty while all moves or rightly waits: for credit, for the network, for a disk."""
        now = time.monotonic()
        if now - self.continuity.looked_at > STILL_S:
            return "the audit does not look at the disks"
        if self.sender.busy_since is not None and now - self.sender.busy_since > STILL_S:
            return "no batch is cut"
        return ""

    async def handle(self, command: Command) -> dict[str, Any]:
        """Carries out a command of the config server; what it returns is the command's result."""
        if command.kind == "mark":
            mark = Mark(command.id, str(command.args.get("consistency", "crash")))
            return await self._place(mark)
        if command.kind == "resync":
            self.continuity.end_epoch(Reason.MANUAL)
            return {}
        if command.kind == "check-side":
            self.sender.hurry()
            return {}
        raise UsageError(f"The agent knows no command '{command.kind}'")

    async def _place(self, mark: Mark) -> dict[str, Any]:
        """Returns when the mark's batch is stored: from then on neither this agent nor the connection can lose it."""
        self.stream.mark(mark)
        deadline = time.monotonic() + MARK_DEADLINE_S
        flushed = None
        while (position := self.stream.marks.where(mark.id)) is None or not self._is_stored(position):
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"No recovery point could be made within {MARK_DEADLINE_S:.0f} s",
                    cause=self.stream.cause or "there is no session with the process server",
                    action="See `understudy machine show` for what holds replication up, then try again.",
                )
            if position != flushed:
                flushed = position
                self.sender.flush()
            await asyncio.sleep(0.05)
        return {"epoch": position.epoch, "batch": position.batch}

    def _is_stored(self, position: Position) -> bool:
        """Whether the process server has the batch durably. What still stands in an epoch that is over was uploaded."""
        epoch = self.state[Word.EPOCH]
        return epoch > position.epoch or (epoch == position.epoch and self.sender.spooled >= position.batch)

    def point_every(self, seconds: float) -> None:
        """From now on; what has passed since the last point counts."""
        if seconds != self._point_interval_s:
            self._point_interval_s = seconds
            self._other_interval.set()

    async def place_points(self) -> None:
        """A crash-consistent mark every point interval, while the stream is ordered: no order, no point."""
        placed = time.monotonic()
        while True:
            self._other_interval.clear()
            await wait_for(self._other_interval, placed + self._point_interval_s - time.monotonic())
            if time.monotonic() < placed + self._point_interval_s:
                continue
            placed = time.monotonic()
            if self.stream.state == StreamState.ORDERED:
                self.stream.mark(Mark(secrets.token_hex(8)))
            else:
                _log.warning("no recovery point: the stream is not in order", cause=self.stream.cause)

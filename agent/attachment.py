"""Capture as it is attached to what is wanted, with the pipeline over it; and what one attachment hands to the next.

Whenever the set of disks changes, or one of them does, a new epoch begins: a point needs all disks of its epoch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from agent import traces
from agent.capture.attach import enlarge_state, state_words
from agent.capture.bindings import BindingsFile
from agent.capture.fitting import Change
from agent.capture.look import Refusing, read_pins
from agent.capture.maps import Capture
from agent.capture.protection import protect
from agent.capture.watch import Watch
from agent.config import AgentConfig
from agent.continuity.patience import Patience, Trials
from agent.idle import Idle
from agent.pipeline import Agent
from agent.stream.servers import Address
from agent.stream.state import AgentState, Reason, Suspicion, Word, move
from shared.daemon import logging
from shared.daemon.threads import in_thread

_log = logging.get()

CHANGES: Final = {
    Change.RESIZED: Reason.DISK_RESIZED,
    Change.LEFT: Reason.DISK_LEFT,
    Change.JOINED: Reason.DISK_JOINED,
    Change.RETURNED: Reason.DISK_RETURNED,
    Change.REMOVED: Reason.CAPTURE_REMOVED,
}
"""Why a new epoch begins."""
_SUSPECT: Final = frozenset({Change.RETURNED, Change.REMOVED})
"""After these, points since all disks were last seen captured are suspect."""


@dataclass
class Kept:
    """What this process knows from one fitting of capture to the next."""

    boot: str = ""
    """As it was reported last, ..."""
    boot_before: str = ""
    """... and the one before that."""
    attached_boot_ns: int = 0
    former: npt.NDArray[np.uint64] | None = None
    """The state of the capture."""
    file: BindingsFile | None = None
    """Which disk is which, with what could not be written of it."""
    trials: Trials = field(default_factory=Trials)
    found: frozenset[str] = frozenset()
    """For whose sake the last session ended."""
    refusing: Mapping[str, Refusing] = field(default_factory=dict)
    """Disks that are left out although they answer."""
    idle: Idle | None = None
    """Why nothing was protected when that was looked at last."""
    server: Address | None = None
    """The process server with which the last session was."""

    def take(self, agent: Agent) -> None:
        """What a session that ended leaves behind."""
        self.found, self.server = agent.watch.found, agent.sender.address
        refusing = {**self.refusing, **agent.continuity.refusing}
        self.refusing = {id_: refused for id_, refused in refusing.items() if id_ not in self.found}

    def goes_by(self, boot: str) -> None:
        """What is reported from now on."""
        if boot != self.boot:
            self.boot_before, self.boot = self.boot, boot

    def forget(self) -> None:
        """Capture is detached: what comes after is another, and of this one nothing counts. Which disk is which stays known."""
        self.attached_boot_ns, self.former, self.server = 0, None, None
        self.trials, self.found, self.refusing = Trials(), frozenset(), {}

    def count_failures(self, watch: Watch) -> None:
        """What was found, and is left out all the same, is not found again at once; nor is what could not be fitted now."""
        failed = watch.unfit | (self.found & {left.id for left in watch.left_out})
        watch.not_before = self.trials.failed(failed, time.monotonic())


def attach(
    config: AgentConfig,
    former: npt.NDArray[np.uint64] | None = None,
    file: BindingsFile | None = None,
    refusing: Mapping[str, Refusing] = MappingProxyType({}),
) -> tuple[Capture, Watch]:
    """Attaches capture to every protected disk that is there and well, or continues it. When the set of them changed, or one of them
    did, a new epoch begins: a point needs all disks of its epoch.

    `former`: the state of the capture that this process had before. Its memory outlives the pins: should somebody have removed all of
    them, what is suspect is known by it alone. `file`: as this process had it before."""

    before = None if former is None else AgentState(former)

    def before_change(words: npt.NDArray[np.uint64], change: Change) -> None:
        """Called once for what is pinned (or left of it), and once more for what replaces it, if everything is attached afresh."""
        nonlocal before
        if change is Change.FRESH:
            if before is None:
                return
            change = Change.REMOVED
        state = AgentState(words)
        before = before or state
        reason = before.reason if change is Change.UNFINISHED else CHANGES[change]
        since = before.since_all_there if change in _SUSPECT else None
        state.want_epoch(reason, Suspicion.joined([before.suspicion, since]))
        state[Word.SEEN_EPOCH] = max(state[Word.SEEN_EPOCH], before[Word.SEEN_EPOCH])
        state[Word.SETTLED] = 0
        state[Word.WENT] = 0
        Patience.hand_over(before.patience_words, state.patience_words)

    file = file or BindingsFile(config.state_dir)
    enlarge_state(config.pin_dir, move)
    given_up = _given_up(config, file)
    where = file, config.pin_dir
    capture, left_out, shared = protect(
        *(config.protected, *where, config.ring_mib << 20, before_change),
        given_up=given_up,
        refusing=refusing,
    )
    state = AgentState(capture.state)
    state.has_disks([disk.id for disk in capture.disks])
    Patience(state.patience_words).take_in(disk.id for disk in capture.disks if disk.id in given_up)
    for left in left_out:
        _log.error("disk left out; the others are protected", id=left.id, **left.error.as_dict())
    for id_, warning in shared.items():
        _log.warning("a captured disk would be refused after a reboot", id=id_, **warning.as_dict())
    for trace in traces.on_captured(config.state_dir, capture.disks):
        _log.warning("the agent writes onto a disk that it captures", what=trace)
    watch = Watch(config.protected, *where, left_out, shared, without_order=capture.mode == "bitmap")
    watch.refusing = refusing
    return capture, watch


def _given_up(config: AgentConfig, file: BindingsFile) -> frozenset[str]:
    """Ids of disks that were given up and not taken in since: those that are captured yet are left out unless they answer now."""
    pinned, _ = read_pins(config.pin_dir)
    if not pinned:
        return frozenset()
    patience = Patience(AgentState(state_words(config.pin_dir)).patience_words)
    bound = file.read() or []
    return frozenset(disk.id for disk in bound if patience.is_given_up(disk.id))


async def _attached(config: AgentConfig, kept: Kept) -> tuple[Capture, Watch]:
    """Whoever is cancelled meanwhile goes on when the thread has ended: while it pins, the lock is held."""
    made: list[tuple[Capture, Watch]] = []
    try:
        await in_thread(lambda: made.append(attach(config, kept.former, kept.file, kept.refusing)))
    except asyncio.CancelledError:
        for capture, _ in made:
            capture.close()
        raise
    return made[0]


@asynccontextmanager
async def running(config: AgentConfig, kept: Kept) -> AsyncIterator[Agent]:
    capture, watch = await _attached(config, kept)
    kept.attached_boot_ns, kept.former, kept.file = capture.attached_boot_ns, capture.state, watch.file
    kept.count_failures(watch)
    try:
        agent = Agent(config, capture, watch, kept.server)
        _log.info(
            "capture attached" if capture.fresh else "capture continued",
            machine=config.machine,
            disks=[disk.id for disk in capture.disks],
            mode=capture.mode,
            cause=capture.mode_cause,
        )
        for error in agent.captured_twice.values():
            _log.warning("a disk is captured twice", **error.as_dict())
        agent.note.keep()
        try:
            await agent.stream.rounds.recover()
            yield agent
        finally:
            await agent.stream.close()
    finally:
        capture.close()

"""What the agent says of itself to the config server: `shared.status.AgentReport`, from the parts of a running agent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from agent.capture import bindings
from agent.capture.available import Available
from agent.capture.bindings import Bound
from agent.capture.disks import Disk
from agent.capture.layout import GRANULE_SECTORS
from agent.desired import WishFile
from agent.pipeline import Agent
from agent.stream.state import Word
from agent.stream.unreadable import Unreadable
from shared.batch import SECTOR, StreamState
from shared.desired import WantedDisk
from shared.errors import CopyRefusedError, OrderLostError, UnderstudyError, UnreadableSourceError
from shared.status import MAX_WORD, AgentDisk, AgentReport, BoundDisk, Problem
from shared.vocabulary import Severity

STATE_NAMES: Final = {
    StreamState.ORDERED: "ordered",
    StreamState.INITIAL_REPLICATION: "initial-replication",
    StreamState.BITMAP: "bitmap",
    StreamState.CATCHING_UP: "catching-up",
    StreamState.RESYNC: "resync",
}


class Rates:
    """Rates from running totals, over the time since the last call."""

    def __init__(self) -> None:
        self._then = time.monotonic()
        self._totals: dict[str, int] = {}
        self._rates: dict[str, float] = {}

    def per_second(self, **totals: int) -> dict[str, float]:
        now = time.monotonic()
        seconds = now - self._then
        if seconds >= 1.0:
            if self._totals:
                self._rates = {name: (total - self._totals[name]) / seconds for name, total in totals.items()}
            self._then, self._totals = now, totals
        return self._rates


def report(agent: Agent, rates: Rates, boot_before: str = "") -> AgentReport:
    capture, stream, sender, state = agent.capture, agent.stream, agent.sender, agent.state
    passive = isinstance(sender.problem, CopyRefusedError)
    name = "passive" if passive else STATE_NAMES[stream.state]
    todo = agent.catchup.todo_by_disk()
    disks = [
        AgentDisk(
            name=disk.id,
            device=_path(disk),
            sectors=disk.sectors,
            serial=disk.serial,
            mode=capture.mode,
            mode_cause=capture.mode_cause,
            state=agent.continuity.state_of(slot) or name,
            progress=_progress(agent, todo[slot] * GRANULE_SECTORS / disk.sectors),
            todo_b=todo[slot] * GRANULE_SECTORS * SECTOR,
        )
        for slot, disk in enumerate(capture.disks)
    ]
    counters = [capture.counters(slot) for slot in range(len(capture.disks))]
    problems = [
        *agent.continuity.problems,
        *(
            Problem(**left.error.as_dict(), severity=Severity.CRITICAL, object=left.id)
            for left in agent.watch.left_out
        ),
    ]
    for trouble in (
        agent.note.problem,
        agent.revoked.trouble.error,
        agent.watch.trouble,
        agent.watch.file.trouble,
        agent.watch.file.put_back.trouble,
        stream.trouble,
    ):
        if trouble is not None:
            problems.append(_warning(trouble))
    for id_, warning in [*agent.captured_twice.items(), *agent.watch.shared.items()]:
        problems.append(Problem(**warning.as_dict(), severity=Severity.WARNING, object=id_))
    if sender.problem is not None:
        problems.append(without_session(sender.problem, may_restart=sender.may_restart))
    for slot, error in stream.rounds.unread().items():
        if agent.continuity.state_of(slot):
            continue  # said already
        problems.append(Problem(**error.as_dict(), object=capture.disks[slot].id))
    if name == "bitmap":
        problems.append(
            _warning(
                OrderLostError(
                    "Writes were not captured in order; their blocks are known and will be copied",
                    cause=stream.cause,
                )
            )
        )
    problems += unreadable_sectors(capture.disks, stream.unreadable)
    return AgentReport(
        machine=agent.config.machine,
        identity=agent.identity,
        boot=agent.boot,
        former=boot_before,
        state=name,
        cause=stream.cause,
        mode=capture.mode,
        mode_cause=capture.mode_cause,
        epoch=state[Word.EPOCH],
        epochs=state[Word.EPOCHS_BEGUN],
        rounds=state[Word.ROUNDS],
        disks=disks,
        ring_used_b=capture.ring.used_b,
        ring_b=capture.ring.size_b,
        rates=rates.per_second(
            captured_b_per_s=sum(c.seen_sectors for c in counters) * SECTOR, sent_b_per_s=sender.sent_b
        ),
        audit=agent.continuity.summary(),
        bound=_bound(agent),
        process_server=sender.server,
        connected=sender.connected,
        sent=sender.sent,
        spooled=sender.spooled,
        uploaded=sender.uploaded,
        uploaded_captured_ns=sender.uploaded_ordered_ns,
        errors=problems,
    )


def without_session(error: UnderstudyError, *, may_restart: bool) -> Problem:
    """A process server that is restarted or upgraded is no error."""
    return Problem(**error.as_dict(), severity=Severity.WARNING if may_restart else Severity.ERROR)


def _path(disk: Disk) -> str:
    """As it was named, unless that is longer than a report takes: then nothing else of it would be heard either."""
    path = str(disk.path)
    return path if len(path) <= MAX_WORD else disk.device


def _bound(agent: Agent) -> list[BoundDisk]:
    """What is to be captured: by its lines what is captured, or left out; one that was never there by its path."""
    by_id = {disk.id: disk for disk in agent.config.protected if disk.id}
    by_path = {disk.device: disk for disk in agent.config.protected if not disk.id}
    ids = {disk.id for disk in agent.capture.disks} | {left.id for left in agent.watch.left_out}
    found = []
    for line in agent.watch.file.written:
        if line.id in ids:
            wanted = by_id.get(line.id) or by_path.get(line.device)
            identity = (wanted.identity if wanted is not None else None) or ""
            found.append(BoundDisk(id=line.id, device=line.device, identity=identity))
    lines = {line.id for line in agent.watch.file.written}
    for left in agent.watch.left_out:
        new = by_id.get(left.id) or by_path.get(left.device)
        if left.id not in lines and new is not None:
            found.append(BoundDisk(id=new.id or "", device=new.device, identity=new.identity or ""))
    return found


def to_protect(wanted: Sequence[WantedDisk], lines: Sequence[Bound]) -> list[BoundDisk]:
    """The same of an agent that captures nothing, and has not looked what stands where."""
    named = {disk.id for disk in wanted if disk.id}
    found = []
    for disk in wanted:
        line = bindings.line_of(disk, lines, named)
        if line is None:
            found.append(BoundDisk(id=disk.id or "", device=disk.device, identity=disk.identity or ""))
        else:
            named.add(line.id)
            found.append(BoundDisk(id=line.id, device=line.device, identity=disk.identity or ""))
    return found


def with_wish(made: AgentReport, wishes: WishFile, available: Available) -> AgentReport:
    """The report with what the agent goes by, and which disks the host has."""
    available.look_if_due()
    trouble = [_warning(available.trouble)] if available.trouble is not None else []
    return msgspec.structs.replace(
        made, wish=wishes.wish, available=available.found, errors=[*made.errors, *wishes.problems, *trouble]
    )


def unreadable_sectors(disks: Sequence[Disk], unreadable: Unreadable) -> list[Problem]:
    """What points lack of each disk."""
    return [
        Problem(
            **UnreadableSourceError(
                f"{sectors} sectors of protected disk {disks[slot].path} could not be read"
            ).as_dict(),
            severity=Severity.WARNING,
            object=disks[slot].id,
        )
        for slot, sectors in unreadable.by_disk().items()
    ]


def _progress(agent: Agent, todo: float) -> float | None:
    """What part of the copying is done; None when there is nothing to copy, or when it is not known yet how much."""
    if not agent.state[Word.EPOCH]:
        return 0.0
    if agent.stream.state in (StreamState.ORDERED, StreamState.BITMAP):
        return None
    return 1 - min(1.0, todo)


def _warning(error: UnderstudyError) -> Problem:
    return Problem(**error.as_dict(), severity=Severity.WARNING)

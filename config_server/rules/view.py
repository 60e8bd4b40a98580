"""What the reports mean for a machine: its state, RPO and hops, as people see them. Pure.

State, the first that applies:
    to-be-deleted    somebody wants it deleted, and nobody wanted anything else since
    unprotected      nobody asked for protection, as far as this database knows: it may be from a backup, so a machine that replicates
                     all the same is named, and missed like any other; or it was ended
    not-connected    its agent has never reported
    disconnected     its agent has not reported for SILENT_S, or not since the config server started; capture
                     may well go on, nobody can tell
    as reported      ordered | initial-replication | bitmap | catching-up | resync | …

RPO = the age of the newest ordered state that the log index lists, that is, which a restore would bring back: rpo.py
measures it. A machine that is not protected, and does not replicate, owes none, and none is shown. What is wrong with the machine says
wrong.py.

`now_ns` is monotonic here: no view depends on the time of day, which may jump on this server, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import msgspec

from config_server.rules import deletion_view, wish_view
from config_server.rules.conditions import lasting_of
from config_server.rules.facts import NOT_FOLLOWING, SELF, Facts, replicates
from config_server.rules.health import worst
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.rules.sights import Look, is_behind
from config_server.rules.wrong import errors_of, silence
from shared.api.machines import DiskView, ErrorView, HopView, MachineView, RingView
from shared.batch import SECTOR
from shared.errors import LookFailedError
from shared.status import AgentReport, ApplyReport, StreamReport
from shared.vocabulary import CaptureMode, Health, HopState, MachineState, Severity


def machine_view(machine: Machine, facts: Facts, now_ns: int) -> MachineView:
    seen, report = facts.agent if facts.agent else (None, AgentReport())
    state, cause = _state(machine, facts, now_ns)
    errors = errors_of(machine, facts, now_ns)
    return MachineView(
        name=machine.name,
        state=state,
        health=worst(errors),
        cause=cause,
        protected=machine.protected,
        mode=report.mode or _worst_mode(report),
        mode_cause=report.mode_cause,
        epoch=epoch(facts),
        epochs=report.epochs,
        rounds=report.rounds,
        rpo_s=None if _rests(machine, facts, now_ns) else facts.rpo.seconds,
        last_seen_s=None if seen is None else seen.age_s(now_ns),
        process_server=facts.stream[0].name if facts.stream else "",
        disks=[
            DiskView(
                name=disk.name,
                device=disk.device or f"/dev/{disk.name}",
                size_b=disk.sectors * SECTOR,
                mode=disk.mode,
                mode_cause=disk.mode_cause,
                state=disk.state or report.state,
                progress=disk.progress,
                serial=disk.serial,
            )
            for disk in report.disks
        ],
        ring=RingView(used_b=report.ring_used_b, size_b=report.ring_b),
        rates=report.rates,
        audit=report.audit,
        last_point=facts.last_point,
        hops=list(_hops(machine, facts, now_ns)),
        errors=errors,
        policy=machine.policy,
        policy_name=machine.policy_name,
        wish=wish_view.shown(machine, report),
        deletion=deletion_view.shown(machine, facts.hindered),
    )


def not_shown(machine: Machine, exc: Exception) -> MachineView:
    """In a list, instead of a machine whose view failed."""
    cause = f"an error inside the config server: {type(exc).__name__}"
    error = LookFailedError(f"The state of {machine.name} could not be judged", cause=cause)
    nothing = machine_view(msgspec.structs.replace(machine, protected=False), Facts(None, None, None), 0)
    shown = ErrorView(**error.as_dict(), severity=Severity.ERROR, object=machine.name, source=SELF)
    return msgspec.structs.replace(
        nothing,
        state=MachineState.UNKNOWN,
        health=Health.CRITICAL,
        cause=error.cause,
        protected=machine.protected,
        errors=[shown],
    )


def _state(machine: Machine, facts: Facts, now_ns: int) -> tuple[str, str]:
    if not machine.protected and machine.deletion is not None:
        return MachineState.TO_BE_DELETED, (
            f"{deletion_view.when(machine.deletion, facts.hindered)}; {_ended(machine, facts, now_ns)}"
        )
    if not machine.protected and machine.wish is not None:
        return MachineState.UNPROTECTED, _ended(machine, facts, now_ns)
    if not machine.protected:
        but = "it replicates all the same: " if replicates(machine, facts, now_ns) else ""
        return MachineState.UNPROTECTED, f"{but}nobody asked for its protection, or it was ended"
    if facts.agent is None:
        return MachineState.NOT_CONNECTED, "its agent has not reported yet"
    seen, report = facts.agent
    if seen.is_silent(now_ns):
        if not seen.is_missing(now_ns):
            return (
                MachineState.DISCONNECTED,
                "the config server has just started, or stood still, and its agent has not reported yet",
            )
        return MachineState.DISCONNECTED, silence(seen, now_ns).cause
    return report.state, report.cause


def _ended(machine: Machine, facts: Facts, now_ns: int) -> str:
    if not replicates(machine, facts, now_ns):
        return "its protection was ended"
    if wish_view.is_stopping(machine, facts.agent, now_ns):
        return "its protection was ended; its agent has not stopped yet"
    return "its protection was ended, and it replicates all the same"


def _rests(machine: Machine, facts: Facts, now_ns: int) -> bool:
    """Whether nothing of it shall be replicated, and nothing is."""
    return not machine.protected and not replicates(machine, facts, now_ns)


def _worst_mode(report: AgentReport) -> str:
    modes = {disk.mode for disk in report.disks}
    return next((mode for mode in reversed(CaptureMode) if mode in modes), "")


def _hops(machine: Machine, facts: Facts, now_ns: int) -> Iterator[HopView]:
    """The data path, hop by hop, so that the one that is behind can be seen."""
    agent_seen, agent = facts.agent if facts.agent else (None, AgentReport())
    stream_seen, stream = facts.stream if facts.stream else (None, StreamReport())
    apply_seen, apply = facts.apply if facts.apply else (None, ApplyReport())
    newest = epoch(facts)
    used = agent.ring_used_b / agent.ring_b if agent.ring_b else 0.0
    hop = partial(_hop, _ill_hops(machine, facts, now_ns), now_ns)
    if _rests(machine, facts, now_ns):
        yield _at_rest("capture", agent_seen, now_ns, "not protected: nothing is captured")
        yield _at_rest("stream", agent_seen, now_ns, "not protected: nothing is sent")
    else:
        yield hop(
            "capture",
            agent_seen,
            ok=agent.state == MachineState.ORDERED,
            detail=f"{agent.state}, ring {used:.0%} of {_mib(agent.ring_b)}",
        )
        sending = agent.connected is not False and (stream_seen is None or stream.connected)
        yield hop(
            "stream",
            agent_seen,
            ok=sending,
            detail=f"batch {agent.sent} sent, {agent.spooled} spooled"
            + ("" if sending else "; no session with a process server"),
        )
    yield hop(
        "upload",
        stream_seen,
        ok=not stream.errors,
        detail=f"{_of_epoch(stream.epoch, newest)}batch {stream.spooled} spooled, {stream.uploaded} uploaded,"
        f" {_mib(stream.pending_b)} pending",
    )
    is_older = 0 < apply.epoch < stream.epoch
    behind = max(0, stream.uploaded - apply.applied) if apply.epoch == stream.epoch else stream.uploaded
    follows = apply.state not in NOT_FOLLOWING
    yield hop(
        "apply",
        apply_seen,
        ok=follows and not apply.errors and not is_behind(apply),
        detail=f"{_of_epoch(apply.epoch, newest)}batch {apply.applied} applied,"
        f" {behind} batches{f' of epoch {stream.epoch}' if is_older else ''} behind"
        + (f", {apply.lag_s:.0f} s" if apply.lag_s is not None else "")
        + ("" if follows else f"; {apply.state}"),
    )


def epoch(facts: Facts) -> int:
    """The one that the machine is in; 0: none, or a new one begins, and has no number yet."""
    if facts.agent is not None:
        _, report = facts.agent
        if report.epoch or any(disk.mode for disk in report.disks):
            return report.epoch
    return facts.stream[1].epoch if facts.stream is not None else 0


def _of_epoch(epoch: int, newest: int) -> str:
    """Batches are counted anew in each epoch: figures of an older one say so."""
    return "" if epoch in (0, newest) else f"epoch {epoch}: "


def _ill_hops(machine: Machine, facts: Facts, now_ns: int) -> dict[str, Severity]:
    """Of which nobody complains."""
    look = Look(machine, facts, now_ns)
    found: dict[str, Severity] = {}
    for condition in lasting_of(facts):
        severities = (condition.severity(look), found.get(condition.hop, Severity.INFO))
        found[condition.hop] = max(severities, key=lambda severity: severity.rank)
    return found


def _hop(
    ill: dict[str, Severity], now_ns: int, name: str, seen: Seen | None, *, ok: bool, detail: str
) -> HopView:
    state = HopState.UNKNOWN
    if seen is not None:
        fine = ok and not seen.is_silent(now_ns) and name not in ill
        state = HopState.OK if fine else HopState.WAITING
    lost = seen is not None and seen.is_lost(now_ns)
    if lost or ill.get(name, Severity.INFO).rank >= Severity.ERROR.rank:
        state = HopState.ERROR
    return HopView(
        name=name,
        where=seen.source if seen is not None else "",
        state=state,
        detail=detail if seen is not None else "nothing reported yet",
        seen_s=seen.age_s(now_ns) if seen is not None else None,
    )


def _at_rest(name: str, seen: Seen | None, now_ns: int, detail: str) -> HopView:
    """Nobody misses an agent that has nothing to do."""
    is_heard = seen is not None and not seen.is_silent(now_ns)
    return HopView(
        name=name,
        where=seen.source if seen is not None else "",
        state=HopState.OK if is_heard else HopState.UNKNOWN,
        detail=detail,
        seen_s=seen.age_s(now_ns) if seen is not None else None,
    )


def _mib(size_b: int) -> str:
    return f"{size_b / (1 << 20):.0f} MiB"

"""What the process server says of itself: the status report, and one line for the service manager."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from process_server.reception.admission import Admission
from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import MIB
from process_server.reception.machine import Machine
from process_server.spool.spool import MachineLog, Spool
from process_server.standing import Standing
from shared.control import remote_vault
from shared.daemon.trouble import Trouble
from shared.errors import (
    NotOpenError,
    SetAsideError,
    UnderstudyError,
    UndroppedError,
    UploadsStoppedError,
)
from shared.keys.vault import Vault
from shared.status import MAX_CONTAINERS, Problem, ProcessServerReport, StreamReport
from shared.vocabulary import Severity


class MachineReport(StreamReport, kw_only=True):
    """More than the config server needs, for people who read the raw report."""

    rates: dict[str, float] = msgspec.field(default_factory=dict)
    session: str = ""


class DaemonReport(ProcessServerReport, kw_only=True):
    daemon: str = "process-server"
    pid: int = 0
    cache_free_b: int = 0


COPY_SHOWN_S: Final = 300.0
"""How long it is shown that a copy of a machine was refused; it tries again every minute."""


class RateMeter:
    """Bytes per second between two looks at a counter that only grows."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._total_b = 0
        self.rate = 0.0

    def look(self, total_b: int) -> float:
        now = time.monotonic()
        elapsed_s = now - self._at_s
        if elapsed_s > 0.1:  # two looks at nearly the same time say nothing
            self.rate = round((total_b - self._total_b) / elapsed_s, 1)
            self._at_s, self._total_b = now, total_b
        return self.rate


class StatusBoard:
    """Gathers the report from receiver and spool."""

    def __init__(
        self,
        admission: Admission,
        spool: Spool,
        storage: Trouble,
        level: CacheLevel,
        vault: Vault | None = None,
        files: Sequence[Trouble] = (),
    ) -> None:
        """`storage` is what is wrong with it, whether a machine has anything to upload or not; `files`, with files of this server's own."""
        self._vault = vault
        self._files = files
        self._admission = admission
        self._storage = storage
        self._level = level
        self._spool = spool
        self._meters: dict[str, RateMeter] = {}

    def report(self) -> DaemonReport:
        names = sorted(self._admission.machines.keys() | self._spool.machines.keys())
        machines = {
            name: self._machine(name, self._admission.machines.get(name), self._spool.machines.get(name))
            for name in names
        }
        cache = self._admission.cache
        filling = self._level.look(cache)
        return DaemonReport(
            pid=os.getpid(),
            machines=dict(machines),
            cache_b=cache.total_b,
            cache_free_b=cache.free_b,
            cache_used_b=sum(machine.pending_b for machine in machines.values()),
            errors=[
                *distinct(self._own_problems(), ""),
                *([filling] if filling is not None else []),
                *self._copies(),
                *(remote_vault.warnings(self._vault) if self._vault is not None else ()),
            ],
            rates={"received_b_s": sum(machine.rates["received_b_s"] for machine in machines.values())},
        )

    def _copies(self) -> list[Problem]:
        """Copies of machines that were refused lately: of nobody's stream, so none of it is worse for them."""
        now = time.monotonic()
        return [
            Problem(
                **copy.error.as_dict() | {"what": f"{copy.error.what} at {copy.address}"},
                severity=Severity.WARNING,
                object=machine,
            )
            for machine, copy in self._admission.copies.items()
            if now - copy.at_s < COPY_SHOWN_S
        ]

    def line(self) -> str:
        """For the service manager."""
        machines = self._admission.machines.values()
        pending_b = sum(log.pending_b for log in self._spool.machines.values())
        connected = sum(machine.connected for machine in machines)
        return f"{connected} machines connected, {pending_b / MIB:.1f} MiB wait for upload" + "".join(
            f"; {problem.what}" for problem in self._own_problems()
        )

    def _own_problems(self) -> list[UnderstudyError]:
        """What touches the process server as a whole."""
        found = [trouble.error for trouble in (self._storage, *self._files) if trouble.error is not None]
        logs = self._spool.machines.values()
        stopped = [
            (log.pending_b, trouble)
            for log in logs
            if (trouble := log.upload_trouble) is not None and log.pending_b
        ]
        # What is told of the server is told of all its machines. The trouble of some is theirs, and told of them, as long as the log of
        # another goes on. When storage is away, each is in trouble as soon as it is checked, also one with nothing to upload.
        if stopped and not any(log.upload_trouble is None and _position(log) is not None for log in logs):
            waits_b = sum(pending_b for pending_b, _ in stopped)
            _, first = stopped[0]
            found.append(
                UploadsStoppedError(
                    f"Uploads have stopped for {len(stopped)} machines; {waits_b / MIB:.1f} MiB wait",
                    cause=f"{first.what}: {first.cause}",
                    action=first.action,
                )
            )
        return found

    def _machine(self, name: str, machine: Machine | None, log: MachineLog | None) -> MachineReport:
        position = _position(log)
        problems: list[UnderstudyError] = list(log.errors) if log is not None else []
        received_b = 0
        report = MachineReport()
        if machine is not None:
            if log is None or not log.elsewhere:
                problems += [error for error in (machine.gate.problem, machine.problem) if error is not None]
            received_b = machine.received_b
            report.connected = machine.connected
            report.boot = machine.session.boot if machine.session is not None and machine.connected else ""
            report.credit_b = machine.gate.credit_b
            report.ordered_captured_ns = machine.ordered_captured_ns
            report.session = machine.session.id if machine.session is not None else ""
        if position is not None:
            report.epoch, report.spooled, report.uploaded = (
                position.epoch,
                position.spooled,
                position.uploaded,
            )
        report.pending_b = log.pending_b if log is not None else 0
        report.containers = sorted(log.containers - {""})[:MAX_CONTAINERS] if log is not None else []
        report.rates = {"received_b_s": self._meters.setdefault(name, RateMeter()).look(received_b)}
        report.errors = distinct(problems, name)
        return report


def _position(log: MachineLog | None) -> Standing | None:
    try:
        return log.position if log is not None else None
    except NotOpenError:
        return None


def distinct(errors: list[UnderstudyError], machine: str) -> list[Problem]:
    """One problem per kind: a log's failure is also why its session ended."""
    found = {error.code: error for error in errors}
    return [Problem(**error.as_dict(), severity=_severity(error), object=machine) for error in found.values()]


def _severity(error: UnderstudyError) -> Severity:
    """What was set aside is in storage from another server, or its epoch is over, which is told by itself; what was deleted is to go:
    nobody's protection suffers."""
    return Severity.WARNING if isinstance(error, SetAsideError | UndroppedError) else Severity.ERROR

"""What the daemons say of themselves: the body of `POST /v1/status`, as typed data.

A daemon sends a JSON object every two seconds. The config server decodes it as one of the structs below, by
the role in the daemon's certificate. Fields that are not known here are ignored, so that a newer daemon can
talk to an older config server; a known field of the wrong type is refused with its path. Every field has a
default: a daemon says what it knows.

Times are Unix nanoseconds of the reporting host's clock (`…_ns`); sizes bytes (`…_b`); rates per second.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Problem(msgspec.Struct, omit_defaults=True, frozen=True):
    """An error as people see it. `code` names the kind of failure (shared/errors.py); `object` what it
    touches (a disk, a machine); empty for the reporting daemon itself. An error is open while it is
    reported."""

    code: str
    what: str
    cause: str = ""
    action: str = ""
    severity: str = "error"
    object: str = ""
    key: str = ""
    """Which one it is, of problems that follow each other with the same code on the same object ("epoch 2"): with another
    key it is another event. What changes while a problem lasts (a count, the cause) does not belong here."""


class Report(msgspec.Struct, kw_only=True):
    """Common to all daemons."""

    state: str = "running"
    version: str = ""
    sent_ns: int = 0
    """The sender's clock when it sent this; ControlClient fills it in. The difference to the receiver's is
    the clock skew."""
    round_trip_ns: int = 0
    """How long its last report was under way, there and back; ControlClient fills it in."""
    errors: list[Problem] = []
    running: list[str] = []
    """Ids of commands that it works on: an answer may be held although they are pending."""
    results: dict[str, dict[str, Any]] = {}
    """Command id → result object. `{"error": {code, what, cause, action}}` when the command failed."""


class AgentDisk(msgspec.Struct, kw_only=True):
    name: str
    """The stable id, e.g. `loop0`: a restored image is called `<name>.raw`."""
    device: str = ""
    sectors: int = 0
    serial: str = ""
    mode: str = ""
    """ordered | bitmap | scan: what the capture can guarantee."""
    mode_cause: str = ""
    state: str = ""
    progress: float | None = None
    """0…1 of the running initial replication, catch-up or resync; None when nothing runs."""
    todo_b: int | None = None


class AgentReport(Report, kw_only=True):
    """`state` is the stream's: initial-replication | ordered | bitmap | catching-up | resync | starting |
    stopped…"""

    machine: str = ""
    identity: str = ""
    """What tells the machine from its copies; empty where there is nothing."""
    boot: str = ""
    """Names the attachment of capture that it continues; a copy has another."""
    cause: str = ""
    """Why `state` is not `ordered`, for people."""
    mode: str = ""
    mode_cause: str = ""
    epoch: int = 0
    epochs: int | None = None
    """Epochs begun since the agent was installed (this boot)."""
    rounds: int | None = None
    disks: list[AgentDisk] = []
    ring_used_b: int = 0
    ring_b: int = 0
    rates: dict[str, float] = {}
    audit: dict[str, Any] = {}
    process_server: str = ""
    connected: bool | None = None
    """Whether there is a session with the process server."""
    sent: int = 0
    spooled: int = 0
    uploaded: int = 0
    """Batch numbers: highest sent, spooled, uploaded."""
    uploaded_captured_ns: int = 0
    """`captured_ns` of the newest batch that is ordered and uploaded."""


class StreamReport(msgspec.Struct, kw_only=True):
    """One machine as its process server sees it."""

    epoch: int = 0
    connected: bool = False
    boot: str = ""
    """Which boot of the machine the session is with."""
    spooled: int = 0
    uploaded: int = 0
    ordered_captured_ns: int = 0
    """`captured_ns` of the newest batch that is ordered and listed in the log index; 0 when there is none."""
    pending_b: int = 0
    """Bytes that are spooled and not yet uploaded."""
    credit_b: int | None = None
    errors: list[Problem] = []


class ProcessServerReport(Report, kw_only=True):
    machines: dict[str, StreamReport] = {}
    cache_used_b: int = 0
    cache_b: int = 0
    rates: dict[str, float] = {}


class ApplyReport(msgspec.Struct, kw_only=True):
    """One machine as its master target sees it."""

    state: str = ""
    epoch: int = 0
    applied: int = 0
    """Number of the last batch that is on the seed disks."""
    applied_captured_ns: int = 0
    lag_b: int = 0
    lag_s: float | None = None
    errors: list[Problem] = []


class MasterTargetReport(Report, kw_only=True):
    target: str = ""
    """What its seed disks are: page-blob | image."""
    machines: dict[str, ApplyReport] = {}
    rates: dict[str, float] = {}

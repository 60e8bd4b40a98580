"""What the daemons say of themselves: the body of `POST /v1/status`, as typed data.

A daemon sends a JSON object every two seconds. The config server decodes it as one of the structs below, by
the role in the daemon's certificate. Fields that are not known here are ignored, so that a newer daemon can
talk to an older config server; a known field of the wrong type is refused with its path (but what an agent goes by: `newer.wish`). Every
field has a default: a daemon says what it knows.

Times are Unix nanoseconds of the reporting host's clock (`…_ns`); sizes bytes (`…_b`); rates per second.

Whatever a daemon says must be harmless to others: numbers fit into 64 bits, words and lists have a length. What is
computed from a report, stored of it and answered to an operator then cannot fail because of its values.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from shared.desired import Wish
from shared.vocabulary import Severity

MAX_ENTRIES: Final = 10_000
"""In a list or a table of a report."""

Whole = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Sectors = Annotated[int, msgspec.Meta(ge=0, le=(1 << 54) - 1)]
"""Of 512 bytes: as bytes they fit into 64 bits, too."""
Real = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]
MAX_WORD: Final = 255
MAX_TEXT: Final = 10_000
"""Characters. A report with more is refused as a whole: whoever makes one of what others said cuts it."""
Word = Annotated[str, msgspec.Meta(max_length=MAX_WORD)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_entries: Final = msgspec.Meta(max_length=MAX_ENTRIES)


class Problem(msgspec.Struct, omit_defaults=True, frozen=True):
    """An error as people see it. `code` names the kind of failure (shared/errors/); `object` what it
    touches (a disk, a machine); empty for the reporting daemon itself. An error is open while it is
    reported."""

    code: str
    what: str
    cause: str = ""
    action: str = ""
    severity: Severity = Severity.ERROR
    object: str = ""
    key: str = ""
    """Which one it is, of problems that follow each other with the same code on the same object ("epoch 2"): with another
    key it is another event. What changes while a problem lasts (a count, the cause) does not belong here."""


class Report(msgspec.Struct, kw_only=True):
    """Common to all daemons."""

    state: Word = "running"
    version: Word = ""
    sent_ns: Whole = 0
    """The sender's clock when it sent this; ControlClient fills it in. The difference to the receiver's is
    the clock skew."""
    round_trip_ns: Whole = 0
    """How long its last report was under way, there and back; ControlClient fills it in."""
    start: Word = ""
    """Random, of this start of the daemon, and…"""
    number: Whole = 0
    """…which of its reports it is, counted from 1: one that was held up on its way is no news. ControlClient fills both in."""
    anchors: Annotated[list[Word], msgspec.Meta(max_length=16)] = []
    """The SHA-256 (hexadecimal) of each certificate by which it accepts its peers now, and…"""
    issuer: Word = ""
    """…of that which issued the one that it presents now. ControlClient fills both in; empty: an earlier version."""
    errors: list[Problem] = []
    running: Annotated[list[Word], _entries] = []
    """Ids of commands that it works on: an answer may be held although they are pending."""
    results: Annotated[dict[Word, dict[str, Any]], _entries] = {}
    """Command id → result object. `{"error": {code, what, cause, action}}` when the command failed."""


class AgentDisk(msgspec.Struct, kw_only=True):
    name: Word
    """The stable id, e.g. `loop0`: a restored image is called `<name>.raw`."""
    device: Word = ""
    sectors: Sectors = 0
    serial: Word = ""
    mode: Word = ""
    """A CaptureMode."""
    mode_cause: Text = ""
    state: Word = ""
    progress: Real | None = None
    """0…1 of the running initial replication, catch-up or resync; None when nothing runs."""
    todo_b: Whole | None = None


class AvailableDisk(msgspec.Struct, kw_only=True):
    """A whole disk of the host, protected or not."""

    device: Word
    sectors: Sectors = 0
    identity: Word = ""
    """As `python -m agent preflight` prints it."""
    why_not: Text = ""
    """Why it cannot be protected; empty: it can."""
    id: Word = ""
    """The stable id of the disk that it is, by what its agent has noted; empty: it never was a protected one."""
    links: Annotated[list[Word], _entries] = []
    """Other paths that lead to it."""


class BoundDisk(msgspec.Struct, kw_only=True):
    """A disk that its agent is to capture, whether it is there now or not."""

    id: Word
    """Empty: it was never there, so it has none yet, and is known by its path alone."""
    device: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """Under which path it was named; another disk may stand there by now."""
    identity: Word = ""
    """What it is configured to bear, in its configuration or a wish; empty: the agent found out by itself what it is known by."""


class AgentReport(Report, kw_only=True):
    """`state` is the stream's: initial-replication | ordered | bitmap | catching-up | resync | starting |
    stopped…"""

    machine: Word = ""
    identity: Word = ""
    """What tells the machine from its copies; empty where there is nothing."""
    boot: Word = ""
    """Names the attachment of capture that it continues; a copy has another."""
    former: Word = ""
    """The one before it, where this process attached capture anew, or detached it: so it is no copy that has another now."""
    cause: Text = ""
    """Why `state` is not `ordered`, for people."""
    mode: Word = ""
    mode_cause: Text = ""
    epoch: Whole = 0
    epochs: Whole | None = None
    """Epochs begun since the agent was installed (this boot)."""
    rounds: Whole | None = None
    disks: Annotated[list[AgentDisk], _entries] = []
    ring_used_b: Whole = 0
    ring_b: Whole = 0
    rates: Annotated[dict[Word, Real], _entries] = {}
    audit: dict[str, Any] = {}
    wish: Wish | None = None
    """What it goes by; None: by its configuration alone."""
    bound: Annotated[list[BoundDisk], _entries] = []
    """All that it is to capture, and by which ids it knows that."""
    available: Annotated[list[AvailableDisk], _entries] = []
    """Whole disks of the host that could be protected, or why not."""
    process_server: Word = ""
    connected: bool | None = None
    """Whether there is a session with the process server."""
    sent: Whole = 0
    spooled: Whole = 0
    uploaded: Whole = 0
    """Batch numbers: highest sent, spooled, uploaded."""
    uploaded_captured_ns: Whole = 0
    """`captured_ns` of the newest batch that is ordered and uploaded."""


MAX_CONTAINERS: Final = 100
"""Of one name: lives of machines that bore it. More are named when some of these are gone."""


class StreamReport(msgspec.Struct, kw_only=True):
    """One machine as its process server sees it."""

    epoch: Whole = 0
    connected: bool = False
    boot: Word = ""
    """Which boot of the machine the session is with."""
    spooled: Whole = 0
    uploaded: Whole = 0
    ordered_captured_ns: Whole = 0
    """`captured_ns` of the newest batch that is ordered and listed in the log index; 0 when there is none."""
    pending_b: Whole = 0
    """Bytes that are spooled and not yet uploaded."""
    containers: Annotated[list[Word], msgspec.Meta(max_length=MAX_CONTAINERS)] = []
    """Of which the server has anything on its disk, as far as it knows; the answer says which of them were deleted."""
    credit_b: Whole | None = None
    errors: list[Problem] = []


class ProcessServerReport(Report, kw_only=True):
    machines: Annotated[dict[Word, StreamReport], _entries] = {}
    cache_used_b: Whole = 0
    cache_b: Whole = 0
    rates: Annotated[dict[Word, Real], _entries] = {}


class ApplyReport(msgspec.Struct, kw_only=True):
    """One machine as its master target sees it."""

    state: Word = ""
    epoch: Whole = 0
    applied: Whole = 0
    """Number of the last batch that is on the seed disks."""
    applied_captured_ns: Whole = 0
    lag_b: Whole = 0
    lag_s: Real | None = None
    container: Word = ""
    """In which it follows the machine; the answer says whether it was deleted."""
    errors: list[Problem] = []


class MasterTargetReport(Report, kw_only=True):
    target: Word = ""
    """What its seed disks are: page-blob | image."""
    machines: Annotated[dict[Word, ApplyReport], _entries] = {}
    rates: Annotated[dict[Word, Real], _entries] = {}

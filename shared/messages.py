"""What is said over the config server's REST API: request and response bodies (JSON), as typed data.

Routes that carry them are in shared/api.py; what daemons report is in shared/status.py. Times that people
read are RFC 3339 in UTC with nanoseconds; sizes end in `_b` (bytes), durations in `_s` (seconds).

Requests refuse fields that they do not have: a mistyped one would silently mean its default. Their numbers have
bounds. Answers and reports ignore what is unknown, so that two versions understand each other.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Final

import msgspec

from shared.desired import Desired, Interval, Mark, Verb
from shared.vocabulary import Consistency, Health, HopState, PointState, Role, Severity

PORT: Final = 443
API_VERSION: Final = 4
"""Raised whenever a request gets a field or a value, which an older server refuses: `ServerInfo` says the server's. 2: `RestoreRequest` has
`grant` and `request`. 3: `Protection` has `process_servers`, `policy_name`, `force`, `offline` and `fewer`; policies have names, and need
no interval. 4: machines can be deleted."""
MAX_BODY_B: Final = 4 << 20
"""Larger request bodies are refused."""


Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
"""How many entries of a list, the newest first."""


class CommandKind(enum.StrEnum):
    MARK = "mark"
    FLUSH = "flush"
    RESYNC = "resync"
    CHECK_SIDE = "check-side"


class CommandState(enum.StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"
    """Nobody waits for it any more, so it is not handed out."""


class JobState(enum.StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EventKind(enum.StrEnum):
    PROBLEM = "problem"
    """Open until it is over; all others have happened."""
    STATE = "state"
    """A machine went from one state to another."""
    JOB = "job"
    """A job ended."""
    ENROLMENT = "enrolment"
    """An enrolment was refused."""
    REVOCATION = "revocation"
    """Storage knew revocations that the database did not."""
    RESTORED = "restored"
    """The database was put back from a backup; or a machine's agent knew of another act of an operator than the database did."""


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty body."""


class Failure(msgspec.Struct):
    """The body of every answer that is not a success."""

    code: str
    what: str
    cause: str = ""
    action: str = ""
    exit_code: int = 1


class ServerInfo(msgspec.Struct, kw_only=True):
    name: str
    version: str
    api: int = 1
    """The server's API_VERSION."""


class CaCertificate(msgspec.Struct):
    """The CA's certificate (PEM) and its SHA-256 fingerprint, which every enrolment token carries."""

    pem: str
    fingerprint: str


class TokenRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Asks for a one-time token with which ROLE:NAME can enrol; `hosts` are the DNS names and addresses that
    a server's certificate will be valid for."""

    role: str
    """A Role; the answer to another says which there are."""
    name: str
    hosts: Annotated[list[str], msgspec.Meta(max_length=100)] = []
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)] = 3600


class Token(msgspec.Struct):
    token: str
    role: Role
    name: str
    expires: str


class EnrolRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`csr` is a PEM certificate request; only its public key is used: names come from the token."""

    token: str
    csr: str


class RenewRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    csr: str
    identity: str = ""
    boot: str = ""
    """Of an agent: see AgentReport."""


class Certificate(msgspec.Struct):
    certificate: str
    ca: str
    name: str
    """The common name, ROLE:NAME."""
    not_after: str


class Command(msgspec.Struct):
    """Something that a daemon shall do. It is repeated in every status reply until its result was
    reported."""

    id: str
    kind: str
    """A CommandKind, or one of a newer config server: whoever does not know it refuses this command, and not the whole answer."""
    args: dict[str, Any] = {}


class Revocations(msgspec.Struct, frozen=True):
    """Certificates that are refused although the CA signed them: by serial number (hex), and all of a ROLE:NAME."""

    serials: list[str] = []
    names: list[str] = []
    before: dict[str, int] = {}
    """Of a ROLE:NAME that was readmitted: those that begin (notBefore, Unix seconds) before then are refused."""
    since: dict[str, int] = {}
    """Of each ROLE:NAME in `names` and `before`: when that was said of it (Unix nanoseconds), always later than what was said before.
    So a readmission can be told from one before the last revocation, which a config server from a backup still tells."""

    def covers(self, serial: int, name: str, begins_s: int) -> bool:
        return (
            name in self.names or begins_s < self.before.get(name, begins_s) or f"{serial:x}" in self.serials
        )


class StatusReply(msgspec.Struct):
    commands: list[Command] = []
    received_ns: int = 0
    held_ns: int = 0
    """How long the server held this answer."""
    revoked: Revocations | None = None
    """For both ends of the stream: process servers, who admit agents, and agents, who trust process servers. None: nothing is said,
    and what was known holds."""
    desired: Desired | None = None
    """For agents: what they are to do. None: no opinion."""
    kept: bool = True
    """Whether what the report said is remembered: else its results are to be sent again."""


class CertificateView(msgspec.Struct, kw_only=True):
    serial: str
    """Hexadecimal."""
    name: str
    """ROLE:NAME."""
    issued: str
    expires: str
    revoked: str | None
    """When; None when it is not."""
    reason: str = ""


class CertificateList(msgspec.Struct):
    certificates: list[CertificateView]
    warning: str = ""
    """What was done, and is not as safe as it should be yet."""


class RevokeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Refuse from now on: a certificate (its serial number) and all others of its key, or whatever ROLE:NAME has and gets until it
    enrols with a new token."""

    certificate: str
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class CommandView(msgspec.Struct):
    id: str
    target: str
    kind: CommandKind
    args: dict[str, Any]
    state: CommandState
    result: dict[str, Any]
    created: str


class Policy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Replication policy. `rpo_threshold_s` only raises an event; it never changes replication."""

    point_interval_s: Interval | msgspec.UnsetType = msgspec.UNSET
    """Unset: each agent's own configuration says it."""
    rpo_threshold_s: Interval = 900.0


POLICY_NAME_LENGTH: Final = 63


class PolicyView(msgspec.Struct, kw_only=True):
    """A policy, and the machines for which it holds."""

    name: str
    point_interval_s: float | None
    """Null: each agent's own configuration says it."""
    rpo_threshold_s: float
    machines: list[str]


class PolicyList(msgspec.Struct):
    policies: list[PolicyView]


class PolicyChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Of a machine. The name of a policy."""

    name: Annotated[str, msgspec.Meta(max_length=POLICY_NAME_LENGTH)]


class ErrorView(msgspec.Struct, omit_defaults=True):
    code: str
    what: str
    cause: str = ""
    action: str = ""
    severity: Severity = Severity.ERROR
    object: str = ""
    source: str = ""
    """Who reported it: `agent:lab`, or `config-server`."""


class DiskView(msgspec.Struct):
    name: str
    device: str
    size_b: int
    mode: str
    mode_cause: str
    state: str
    progress: float | None
    serial: str = ""


class RingView(msgspec.Struct):
    used_b: int
    size_b: int


class HopView(msgspec.Struct):
    """One hop of the data path: capture, stream, upload, apply."""

    name: str
    where: str
    state: HopState
    detail: str
    seen_s: float | None
    """Age of what is known about it."""


class PointView(msgspec.Struct, omit_defaults=True):
    id: str
    time: str
    epoch: int
    batch: int
    consistency: str
    state: PointState
    marks: list[str] = []
    suspect: bool = False
    unreadable: list[list[int]] = []
    """Source ranges (disk, sector, sectors) that are missing in its snapshots: they could not be read, and were not written since."""
    unreadable_covers: bool = False
    """The ranges hold all that is missing, and other sectors between."""
    lost: str = ""
    """Why it cannot be restored: its log is gone. Empty: it can."""
    remark: str = ""
    """What whoever restores it must know."""


class GapView(msgspec.Struct):
    """A period without points, because order was not kept: after point `after`, until point `until`; null
    where it has no such end. The times are those of the two."""

    after: str | None
    until: str | None
    since_time: str | None
    until_time: str | None
    cause: str


class PointList(msgspec.Struct):
    machine: str
    points: list[PointView]
    gaps: list[GapView] = []


class WishView(msgspec.Struct, kw_only=True):
    """What an operator wants of a machine."""

    verb: Verb
    disks: list[str]
    """Paths of all that are to be protected; empty: those of the agent's configuration, or none where it is to stop."""
    process_servers: list[str]
    """Empty: that of the agent's configuration. Where it is to stop: those before, for when it is protected again."""
    since: str
    """When it was said, or taken over from the agent."""
    pending: str | None
    """Since when the agent is to do so and does not say that it does; null when it does."""
    mark: Mark


class DeletionView(msgspec.Struct, kw_only=True):
    """What is lost when a machine is deleted; and when that is, where somebody wants it."""

    machine: str
    container: str
    """In which all of it lies; empty where storage holds nothing of it."""
    identity: str
    """Of its hardware, as storage has it."""
    points: int
    """How many there are, or were when it was asked for."""
    first: str | None = None
    """Time of the oldest, ..."""
    last: str | None = None
    """... and of the newest; null where there is none, or is not looked up."""
    unknown: str = ""
    """Why the points could not be listed; `points` is 0 then."""
    stays: list[str] = []
    """What is not deleted with it, a line each, where that is asked for."""
    due: str | None = None
    """Not before then, as things are; null where nobody has asked for it, or somebody has to say it again."""
    after_s: float = 0.0
    """The delay, of which each second counts in which the config server runs."""
    asked: str | None = None
    who: str = ""
    stage: str = ""
    """waiting | closing | closed | removing: how far it has come (config_server/deletion.py)."""
    waits: str = ""
    """Why it is not done although it is due, or does not become due."""


class DeletionRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Has a machine deleted, after a delay. Its agent stops at once."""

    after_s: Annotated[float, msgspec.Meta(ge=3600, le=10 * 366 * 86_400)]
    container: Annotated[str, msgspec.Meta(max_length=63)] | None = None
    """Which container is meant (`DeletionView.container`, empty for none); null: whichever is the machine's."""


class MachineView(msgspec.Struct, kw_only=True):
    name: str
    state: str
    """A MachineState, or another that its agent reports."""
    health: Health
    """The worst of `errors`."""
    cause: str
    protected: bool
    mode: str
    mode_cause: str
    epoch: int
    epochs: int | None
    rounds: int | None
    rpo_s: float | None
    """Age of the newest ordered state that blob storage holds (config_server/rpo.py); null while there is none."""
    last_seen_s: float | None
    process_server: str
    disks: list[DiskView]
    ring: RingView
    rates: dict[str, float]
    audit: dict[str, Any]
    last_point: PointView | None
    hops: list[HopView]
    errors: list[ErrorView]
    policy: Policy
    policy_name: str = ""
    """Empty: it has one of its own, without a name."""
    wish: WishView | None = None
    """Null: no opinion, its agent goes by its own configuration."""
    deletion: DeletionView | None = None
    """Null: nobody wants it deleted."""


class Kept(msgspec.Struct, kw_only=True):
    """A machine whose deletion was taken back."""

    machine: MachineView
    taken_back: bool
    """False: nobody wanted it deleted."""
    revoked: bool = False
    """Its agent's certificates were revoked for the deletion: it has to be enrolled anew."""


class MachineList(msgspec.Struct):
    machines: list[MachineView]


IDENTITY_LENGTH: Final = 255


class RebindRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Makes another machine the one of this name; without `identity`, the copy that was refused lately, if it can be but one."""

    identity: Annotated[str, msgspec.Meta(max_length=IDENTITY_LENGTH)] = ""


class CopyView(msgspec.Struct, kw_only=True):
    """Somebody who was refused as a copy of a machine."""

    identity: str
    """Empty for one that has none."""
    address: str
    refused_s: float
    """So long ago, the last time ..."""
    since_s: float
    """... and the first."""
    cause: str


class CopyList(msgspec.Struct, kw_only=True):
    machine: str
    identity: str
    """The active side's; empty when there is none, or it cannot be read."""
    generation: int
    copies: list[CopyView]
    """Refused lately, the last one first."""
    meant: str
    """Whom `rebind` takes that names nobody; empty when that is not clear, ..."""
    unclear: ErrorView | None = None
    """... and why."""


class SideView(msgspec.Struct, kw_only=True):
    machine: str
    identity: str
    generation: int
    repeated: bool = False
    """It was so before."""
    asked: dict[str, str] = {}
    """Process servers that have the machine, and the command by which each was told to look whose session it has; and the agent of the one
    that it is now, which was told to try again, if it was refused lately."""
    silent: list[str] = []
    """Those that do not report: they look by themselves within a minute, if they run."""


class Protection(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Has a machine's agent protect these disks, and no others."""

    disks: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=4096)]], msgspec.Meta(min_length=1, max_length=256)
    ]
    """Device paths on the machine, or other names of its disks (`DiskCandidate.name`). A path means the disk that stands there now, by
    what the agent said last; where none does, the one that was named so."""
    process_servers: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=16)
    ] = []
    """`host:port`, the one to be preferred first; empty: that of the agent's configuration."""
    policy: Policy | None = None
    """One of the machine's own. Without it and `policy_name` the machine keeps the policy that it has."""
    policy_name: Annotated[str, msgspec.Meta(max_length=POLICY_NAME_LENGTH)] = ""
    force: bool = False
    """Take disks that its agent neither captures nor offers."""
    offline: bool = False
    """Record it although the machine's agent has never reported."""
    fewer: bool = False
    """Leave out disks that are protected now."""


class DiskCandidate(msgspec.Struct, kw_only=True):
    """A disk of a machine that is protected, or could be, or why it cannot."""

    device: str
    size_b: int
    identity: str
    """As `python -m agent preflight` prints it; empty where it is not known."""
    id: str
    """The stable id of one that was captured at any time; else empty."""
    captured: bool
    """By the agent, now."""
    wanted: bool
    """It is to be protected, by what an operator said last, or, where nobody has said anything, by its agent's configuration."""
    why_not: str
    """Why it cannot be; empty: it can."""
    name: str
    """What means it in a request, wherever it stands: its id, else what it alone bears; its path where it has neither."""
    until: str = ""
    """When its protection ended with that of the machine, which has not been protected since; else empty."""


class DiskCandidates(msgspec.Struct, kw_only=True):
    machine: str
    seen_s: float | None
    """Age of what its agent said; null: it never reported."""
    disks: list[DiskCandidate]
    by_configuration: bool = False
    """Nobody has said what is wanted."""


class PointRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Asks for a recovery point of now. `id` makes the request idempotent: the same id is the same point."""

    id: str = ""
    consistency: str = Consistency.CRASH


class FlushRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0


class FlushReply(msgspec.Struct):
    """Process servers that have uploaded everything they held when asked, and those that did not in time."""

    flushed: list[str]
    missing: list[str]


class RestoreRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    point: str = "latest"
    to: str = ""
    host: str = ""
    dry_run: bool = False
    grant: str = ""
    """The grant that is there already and goes on to serve; empty: a new one is wanted."""
    request: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    """Random: when it is asked for again, since no answer came, the same id gets the same grant."""


class StorageGrant(msgspec.Struct, kw_only=True):
    """Access to the container that holds the machine: reading and listing, for a while. Without an `id` and a `sas`, the reader must
    use his own identity: the config server has no account key to grant with."""

    url: str
    container: str
    id: str = ""
    sas: str = ""
    """A shared access signature: a secret."""
    life_s: float = 0.0
    """From now on."""
    ca_pem: str = ""

    def __repr__(self) -> str:
        return f"StorageGrant(container={self.container!r}, id={self.id!r})"


class GrantState(enum.StrEnum):
    GIVEN = "given"
    EXPIRED = "expired"
    RETURNED = "returned"
    """By whoever had it."""
    REVOKED = "revoked"


class GrantView(msgspec.Struct, kw_only=True):
    """A grant as it is on record; never its token."""

    id: str
    machine: str
    who: str
    host: str
    """Where the reader runs, as he says."""
    state: GrantState
    given: str
    expires: str
    ended: str | None = None
    """When it was returned or revoked."""
    ended_by: str = ""
    life_s: float = 0.0
    """Left from now on; 0 when it is over."""


class GrantList(msgspec.Struct):
    grants: list[GrantView]


class GrantEnd(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    returned: bool = False
    """Whoever had it has done with it. Else it is revoked."""


class KeyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Names a machine's data key as the header of a segment or the machine's document does; `wrapped` is base64."""

    key_id: Annotated[str, msgspec.Meta(max_length=256)]
    wrapped: Annotated[bytes, msgspec.Meta(max_length=4096)]


class MachineKeyGrant(msgspec.Struct, kw_only=True):
    """A machine's data key, unwrapped; `wrapped` and `key` are base64."""

    key_id: str
    wrapped: str
    key: str

    def __repr__(self) -> str:
        return f"MachineKeyGrant(key_id={self.key_id!r})"


class RestoreGrant(msgspec.Struct, kw_only=True):
    """What a restore needs, and the job under which it reports. The vault's master keys never leave the
    config server. `key` is the one that the machine's document names; what segments were sealed with earlier is asked for
    (`RESTORE_KEY`)."""

    job: str
    storage: StorageGrant
    key: MachineKeyGrant


class JobProgress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    state: JobState = JobState.RUNNING
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    detail: Annotated[str, msgspec.Meta(max_length=10_000)] = ""
    error: Failure | None = None
    result: dict[str, Any] | None = None


class JobView(msgspec.Struct, kw_only=True):
    id: str
    kind: str
    machine: str
    state: JobState
    progress: float | None
    detail: str
    args: dict[str, Any]
    result: dict[str, Any] | None
    error: Failure | None
    created: str
    updated: str


class JobList(msgspec.Struct):
    jobs: list[JobView]


class EventQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    object: str = ""
    open: bool = False
    limit: Count = 200


class EventView(msgspec.Struct, kw_only=True):
    id: int
    kind: EventKind
    severity: Severity
    object: str
    code: str
    what: str
    cause: str
    action: str
    source: str
    first: str
    last: str
    count: int
    resolved: str | None


class EventList(msgspec.Struct):
    events: list[EventView]


class DaemonView(msgspec.Struct, kw_only=True):
    role: Role
    name: str
    state: str
    health: Health
    """The worst of what it reports, and of its silence and its clock."""
    connected: bool
    seen_s: float | None
    skew_s: float
    report: dict[str, Any]


class DaemonList(msgspec.Struct):
    daemons: list[DaemonView]


class AuditView(msgspec.Struct, kw_only=True):
    time: str
    who: str
    action: str
    object: str
    detail: dict[str, Any]


class AuditList(msgspec.Struct):
    entries: list[AuditView]


class Limit(msgspec.Struct, forbid_unknown_fields=True):
    limit: Count = 200

"""The config server's REST API, declared once: which operation is where, and who may call it.

The server binds a handler to each route (config_server/web/binding.py) and the client calls the same objects
(shared/rest.py), so a path, a body and a permission exist in one place only. Bodies are the structs of
shared/messages.py as JSON. A failed call answers with a `Failure`; its HTTP status follows from the class of
the error (shared/errors/).

PUBLIC: anybody who reaches the port. OPERATOR: who sends the operator token as a bearer token. DAEMON: who
presents a certificate of the config server's CA, whose common name is `ROLE:NAME`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from shared.messages import (
    AuditList,
    CaCertificate,
    Certificate,
    CertificateList,
    CommandView,
    CopyList,
    DaemonList,
    DeletionRequest,
    DeletionView,
    DiskCandidates,
    EnrolRequest,
    EventList,
    EventQuery,
    FlushReply,
    FlushRequest,
    GrantEnd,
    GrantList,
    GrantView,
    JobList,
    JobProgress,
    JobView,
    Kept,
    KeyRequest,
    Limit,
    MachineKeyGrant,
    MachineList,
    MachineView,
    Nothing,
    PointList,
    PointRequest,
    Policy,
    PolicyChoice,
    PolicyList,
    PolicyView,
    Protection,
    RebindRequest,
    RenewRequest,
    RestoreGrant,
    RestoreRequest,
    RevokeRequest,
    ServerInfo,
    SideView,
    StatusReply,
    Token,
    TokenRequest,
)
from shared.vocabulary import Role

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class Access(enum.Enum):
    PUBLIC = "public"
    OPERATOR = "operator"
    DAEMON = "daemon"


@dataclass(frozen=True)
class Route(Generic[Q, R]):
    """One operation: `request` is the body (the query string for GET), `response` the body of a success."""

    name: str
    method: str
    path: str
    access: Access
    request: type[Q]
    response: type[R]
    summary: str
    roles: tuple[Role, ...] = ()
    """For DAEMON: the roles that may call it; empty means all."""


HEALTH = Route(
    "health", "GET", "/v1/health", Access.PUBLIC, Nothing, ServerInfo, "Is it up, and which version"
)
CA = Route("ca", "GET", "/v1/ca", Access.PUBLIC, Nothing, CaCertificate, "The CA's certificate")
ENROL = Route(
    "enrol", "POST", "/v1/enrol", Access.PUBLIC, EnrolRequest, Certificate, "Token and CSR for a certificate"
)
RENEW = Route(
    "renew", "POST", "/v1/certificates/renew", Access.DAEMON, RenewRequest, Certificate, "A new certificate"
)
STATUS = Route(
    "status",
    "POST",
    "/v1/status",
    Access.DAEMON,
    msgspec.Struct,  # the struct in shared/status.py for the caller's role
    StatusReply,
    "Report status, fetch commands",
    (Role.AGENT, Role.PROCESS_SERVER, Role.MASTER_TARGET),
)
TOKEN_CREATE = Route(
    "token_create", "POST", "/v1/tokens", Access.OPERATOR, TokenRequest, Token, "Create an enrolment token"
)
CERTIFICATES = Route(
    "certificates",
    "GET",
    "/v1/certificates",
    Access.OPERATOR,
    Limit,
    CertificateList,
    "Certificates, newest first",
)
CERTIFICATE_REVOKE = Route(
    "certificate_revoke",
    "POST",
    "/v1/certificates/revoke",
    Access.OPERATOR,
    RevokeRequest,
    CertificateList,
    "Refuse a certificate, or all of a daemon",
)
POLICY = Route("policy", "GET", "/v1/policy", Access.OPERATOR, Nothing, Policy, "The default policy")
POLICY_SET = Route(
    "policy_set", "PUT", "/v1/policy", Access.OPERATOR, Policy, Policy, "Change the default policy"
)
POLICIES = Route(
    "policies",
    "GET",
    "/v1/policies",
    Access.OPERATOR,
    Nothing,
    PolicyList,
    "All policies, the default one first",
)
POLICY_GET = Route(
    "policy_get", "GET", "/v1/policies/{policy}", Access.OPERATOR, Nothing, PolicyView, "One policy"
)
POLICY_PUT = Route(
    "policy_put",
    "PUT",
    "/v1/policies/{policy}",
    Access.OPERATOR,
    Policy,
    PolicyView,
    "Create or change a policy",
)
POLICY_DELETE = Route(
    "policy_delete",
    "DELETE",
    "/v1/policies/{policy}",
    Access.OPERATOR,
    Nothing,
    PolicyView,
    "Delete a policy that is assigned to no machine",
)
POLICY_ASSIGN = Route(
    "policy_assign",
    "PUT",
    "/v1/machines/{machine}/policy",
    Access.OPERATOR,
    PolicyChoice,
    MachineView,
    "Have a policy hold for a machine",
)
MACHINES = Route("machines", "GET", "/v1/machines", Access.OPERATOR, Nothing, MachineList, "All machines")
MACHINE = Route(
    "machine", "GET", "/v1/machines/{machine}", Access.OPERATOR, Nothing, MachineView, "One machine"
)
PROTECT = Route(
    "protect",
    "PUT",
    "/v1/machines/{machine}/protection",
    Access.OPERATOR,
    Protection,
    MachineView,
    "Protect disks of a machine",
)
UNPROTECT = Route(
    "unprotect",
    "DELETE",
    "/v1/machines/{machine}/protection",
    Access.OPERATOR,
    Nothing,
    MachineView,
    "Stop protecting a machine",
)
DELETION = Route(
    "deletion",
    "GET",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    Nothing,
    DeletionView,
    "What is lost when a machine is deleted, and when it is",
)
DELETE = Route(
    "delete",
    "PUT",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    DeletionRequest,
    MachineView,
    "Stop a machine, and delete it after a delay",
)
KEEP = Route(
    "keep",
    "DELETE",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    Nothing,
    Kept,
    "Take a machine's deletion back",
)
DISKS = Route(
    "disks",
    "GET",
    "/v1/machines/{machine}/disks",
    Access.OPERATOR,
    Nothing,
    DiskCandidates,
    "Which disks of a machine could be protected",
)
REBIND = Route(
    "rebind",
    "POST",
    "/v1/machines/{machine}/rebind",
    Access.OPERATOR,
    RebindRequest,
    SideView,
    "Make another machine the one of this name",
)
COPIES = Route(
    "copies",
    "GET",
    "/v1/machines/{machine}/copies",
    Access.OPERATOR,
    Nothing,
    CopyList,
    "Copies of a machine that were refused lately",
)
RESYNC = Route(
    "resync",
    "POST",
    "/v1/machines/{machine}/resync",
    Access.OPERATOR,
    Nothing,
    CommandView,
    "Replicate a machine anew, in a new epoch",
)
POINTS = Route(
    "points", "GET", "/v1/machines/{machine}/points", Access.OPERATOR, Nothing, PointList, "Recovery points"
)
POINT_CREATE = Route(
    "point_create",
    "POST",
    "/v1/machines/{machine}/points",
    Access.OPERATOR,
    PointRequest,
    CommandView,
    "Ask for a point of now",
)
FLUSH = Route(
    "flush",
    "POST",
    "/v1/machines/{machine}/flush",
    Access.OPERATOR,
    FlushRequest,
    FlushReply,
    "Have everything spooled uploaded",
)
RESTORE = Route(
    "restore",
    "POST",
    "/v1/machines/{machine}/restores",
    Access.OPERATOR,
    RestoreRequest,
    RestoreGrant,
    "Open a restore job, get access to the storage",
)
RESTORE_KEY = Route(
    "restore_key",
    "POST",
    "/v1/machines/{machine}/restores/keys",
    Access.OPERATOR,
    KeyRequest,
    MachineKeyGrant,
    "A key that a segment of the machine names, to restore it",
)
KEY_UNWRAP = Route(
    "key_unwrap",
    "POST",
    "/v1/machines/{machine}/keys/unwrap",
    Access.DAEMON,
    KeyRequest,
    MachineKeyGrant,
    "A machine's data key, for its wrapped form",
    (Role.PROCESS_SERVER, Role.MASTER_TARGET),
)
KEY_CREATE = Route(
    "key_create",
    "POST",
    "/v1/machines/{machine}/keys",
    Access.DAEMON,
    Nothing,
    MachineKeyGrant,
    "A new data key for a machine",
    (Role.PROCESS_SERVER,),
)
GRANTS = Route(
    "grants",
    "GET",
    "/v1/machines/{machine}/grants",
    Access.OPERATOR,
    Limit,
    GrantList,
    "Who may read it, newest first",
)
GRANT_RENEW = Route(
    "grant_renew",
    "POST",
    "/v1/machines/{machine}/grants/{id}/renew",
    Access.OPERATOR,
    Nothing,
    GrantView,
    "Let a grant live on",
)
GRANT_END = Route(
    "grant_end",
    "POST",
    "/v1/machines/{machine}/grants/{id}/end",
    Access.OPERATOR,
    GrantEnd,
    GrantView,
    "End a grant at once",
)
COMMAND = Route(
    "command", "GET", "/v1/commands/{id}", Access.OPERATOR, Nothing, CommandView, "A command and its result"
)
JOBS = Route("jobs", "GET", "/v1/jobs", Access.OPERATOR, Limit, JobList, "Jobs, newest first")
JOB = Route("job", "GET", "/v1/jobs/{id}", Access.OPERATOR, Nothing, JobView, "One job")
JOB_UPDATE = Route(
    "job_update", "PUT", "/v1/jobs/{id}", Access.OPERATOR, JobProgress, JobView, "Report a job's progress"
)
EVENTS = Route("events", "GET", "/v1/events", Access.OPERATOR, EventQuery, EventList, "Events, newest first")
DAEMONS = Route(
    "daemons", "GET", "/v1/daemons", Access.OPERATOR, Nothing, DaemonList, "Daemons that reported"
)
AUDIT = Route(
    "audit", "GET", "/v1/audit", Access.OPERATOR, Limit, AuditList, "Who changed what, newest first"
)

ROUTES: Final[tuple[Route[Any, Any], ...]] = (
    HEALTH, CA, ENROL, RENEW, STATUS, TOKEN_CREATE, CERTIFICATES, CERTIFICATE_REVOKE, POLICY, POLICY_SET,
    POLICIES, POLICY_GET, POLICY_PUT, POLICY_DELETE, POLICY_ASSIGN, MACHINES, MACHINE, PROTECT, UNPROTECT,
    DELETION, DELETE, KEEP, DISKS, COPIES, REBIND, RESYNC, POINTS, POINT_CREATE, FLUSH, RESTORE, RESTORE_KEY,
    GRANTS, GRANT_RENEW, GRANT_END, KEY_UNWRAP, KEY_CREATE, COMMAND, JOBS, JOB, JOB_UPDATE, EVENTS, DAEMONS,
    AUDIT,
)  # fmt: skip

"""The config server's REST API, declared once: which operation is where, what goes in and out, and who may call it.

One module a noun has its bodies (JSON) and its routes. The server binds an operation to each route (config_server/web/routes.py) and the
client calls the same objects (shared/control/rest.py), so a path, a body and a permission exist in one place only. A failed call answers
with a `Failure`; its HTTP status follows from the class of the error (failures.py).

PUBLIC: anybody who reaches the port. OPERATOR: who sends the operator token as a bearer token. DAEMON: who presents a certificate of the
config server's CA, whose common name is `ROLE:NAME`.

Times that people read are RFC 3339 in UTC with nanoseconds; sizes end in `_b` (bytes), durations in `_s` (seconds). Requests refuse fields
that they do not have: a mistyped one would silently mean its default. Their numbers have bounds. Answers and reports ignore what is
unknown, so that two versions understand each other.
"""

from __future__ import annotations

from typing import Any, Final

from shared.api.audit import AUDIT
from shared.api.certificates import (
    CA,
    CA_RENEW,
    CERTIFICATE_REVOKE,
    CERTIFICATES,
    ENROL,
    RENEW,
    TOKEN_CREATE,
    TOKEN_END,
    TOKENS,
)
from shared.api.commands import COMMAND
from shared.api.copies import COPIES, REBIND
from shared.api.daemons import DAEMONS, STATUS
from shared.api.deletion import DELETE, DELETION, KEEP
from shared.api.events import EVENTS
from shared.api.jobs import JOB, JOB_ABANDON, JOB_CANCEL, JOB_RETRY, JOB_UPDATE, JOBS
from shared.api.keys import KEY_CREATE, KEY_UNWRAP, RESTORE_KEY, VAULT
from shared.api.machines import MACHINE, MACHINES, POLICY_ASSIGN
from shared.api.operators import OPERATOR_TOKEN_CREATE, OPERATOR_TOKEN_END, OPERATORS
from shared.api.points import FLUSH, POINT_CREATE, POINTS, RESYNC
from shared.api.policies import POLICIES, POLICY, POLICY_DELETE, POLICY_GET, POLICY_PUT, POLICY_SET
from shared.api.protection import DISKS, PROTECT, UNPROTECT
from shared.api.restores import GRANT_END, GRANT_RENEW, GRANTS, RESTORE
from shared.api.route import Access, Route
from shared.api.server import HEALTH, READY

ROUTES: Final[tuple[Route[Any, Any], ...]] = (
    HEALTH, READY, CA, CA_RENEW, ENROL, RENEW, STATUS, OPERATORS, OPERATOR_TOKEN_CREATE, OPERATOR_TOKEN_END,
    TOKENS, TOKEN_CREATE, TOKEN_END, VAULT, CERTIFICATES, CERTIFICATE_REVOKE, POLICY, POLICY_SET,
    POLICIES, POLICY_GET, POLICY_PUT, POLICY_DELETE, POLICY_ASSIGN, MACHINES, MACHINE, PROTECT, UNPROTECT,
    DELETION, DELETE, KEEP, DISKS, COPIES, REBIND, RESYNC, POINTS, POINT_CREATE, FLUSH, RESTORE, RESTORE_KEY,
    GRANTS, GRANT_RENEW, GRANT_END, KEY_UNWRAP, KEY_CREATE, COMMAND, JOBS, JOB, JOB_UPDATE, JOB_CANCEL, JOB_RETRY,
    JOB_ABANDON, EVENTS, DAEMONS, AUDIT,
)  # fmt: skip

__all__ = [
    "AUDIT", "CA", "CA_RENEW", "CERTIFICATES", "CERTIFICATE_REVOKE", "COMMAND", "COPIES", "DAEMONS", "DELETE",
    "DELETION", "DISKS", "ENROL", "EVENTS", "FLUSH", "GRANTS", "GRANT_END", "GRANT_RENEW", "HEALTH", "JOB",
    "JOBS", "JOB_ABANDON", "JOB_CANCEL", "JOB_RETRY", "JOB_UPDATE", "KEEP", "KEY_CREATE", "KEY_UNWRAP", "MACHINE", "MACHINES",
    "OPERATORS", "OPERATOR_TOKEN_CREATE", "OPERATOR_TOKEN_END", "POINTS",
    "POINT_CREATE", "POLICIES", "POLICY", "POLICY_ASSIGN", "POLICY_DELETE", "POLICY_GET", "POLICY_PUT",
    "POLICY_SET", "PROTECT", "READY", "REBIND", "RENEW", "RESTORE", "RESTORE_KEY", "RESYNC", "ROUTES", "STATUS",
    "TOKENS", "TOKEN_CREATE", "TOKEN_END", "UNPROTECT", "VAULT", "Access", "Route",
]  # fmt: skip

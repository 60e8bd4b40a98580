"""What an operator may be allowed: each route for operators names one of these (`Route.needs`). Today an operator has them all."""

from __future__ import annotations

import enum
from typing import Final


class Permission(enum.StrEnum):
    """RESOURCE:ACTION. A name stays what it means: later versions add names, and split none."""

    MACHINE_READ = "machine:read"
    MACHINE_PROTECT = "machine:protect"
    """Also to stop it, to choose its policy, and to have all its disks replicated anew."""
    MACHINE_REBIND = "machine:rebind"
    MACHINE_DELETE = "machine:delete"
    """Also to take a deletion back."""
    POINT_READ = "point:read"
    POINT_CREATE = "point:create"
    RESTORE_READ = "restore:read"
    RESTORE_RUN = "restore:run"
    """Whoever has it reads all that the machine's disks ever held."""
    POLICY_READ = "policy:read"
    POLICY_CHANGE = "policy:change"
    JOB_READ = "job:read"
    JOB_CHANGE = "job:change"
    """To cancel one, to have it go on, and to abandon what it left."""
    EVENT_READ = "event:read"
    AUDIT_READ = "audit:read"
    DAEMON_READ = "daemon:read"
    DAEMON_ENROL = "daemon:enrol"
    DAEMON_REVOKE = "daemon:revoke"
    CA_RENEW = "ca:renew"
    OPERATOR_READ = "operator:read"
    OPERATOR_CHANGE = "operator:change"
    """To make and to end operators' tokens. Whoever has it can have what any operator has."""
    VAULT_READ = "vault:read"
    """Which keys there are, not the keys."""


ALL: Final = frozenset(Permission)

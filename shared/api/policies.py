"""Replication policies."""

from __future__ import annotations

from typing import Final

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route, Versioned
from shared.desired import Interval


class Policy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Replication policy. `rpo_threshold_s` only raises an event; it never changes replication."""

    point_interval_s: Interval | msgspec.UnsetType = msgspec.UNSET
    """Unset: each agent's own configuration says it."""
    rpo_threshold_s: Interval = 900.0


POLICY_NAME_LENGTH: Final = 63


class PolicyView(Versioned, kw_only=True):
    """A policy, and the machines for which it holds."""

    name: str
    point_interval_s: float | None
    """Null: each agent's own configuration says it."""
    rpo_threshold_s: float
    machines: list[str]


class PolicyList(msgspec.Struct):
    policies: list[PolicyView]


POLICY = Route(
    "policy",
    "GET",
    "/v1/policy",
    Access.OPERATOR,
    Nothing,
    Policy,
    "The default policy",
    needs=Permission.POLICY_READ,
)
POLICY_SET = Route(
    "policy_set",
    "PUT",
    "/v1/policy",
    Access.OPERATOR,
    Policy,
    Policy,
    "Change the default policy",
    needs=Permission.POLICY_CHANGE,
)
POLICIES = Route(
    "policies",
    "GET",
    "/v1/policies",
    Access.OPERATOR,
    Nothing,
    PolicyList,
    "All policies, the default one first",
    needs=Permission.POLICY_READ,
)
POLICY_GET = Route(
    "policy_get",
    "GET",
    "/v1/policies/{policy}",
    Access.OPERATOR,
    Nothing,
    PolicyView,
    "One policy",
    needs=Permission.POLICY_READ,
    versioned=True,
)
POLICY_PUT = Route(
    "policy_put",
    "PUT",
    "/v1/policies/{policy}",
    Access.OPERATOR,
    Policy,
    PolicyView,
    "Create or change a policy",
    needs=Permission.POLICY_CHANGE,
    versioned=True,
)
POLICY_DELETE = Route(
    "policy_delete",
    "DELETE",
    "/v1/policies/{policy}",
    Access.OPERATOR,
    Nothing,
    PolicyView,
    "Delete a policy that is assigned to no machine",
    needs=Permission.POLICY_CHANGE,
    versioned=True,
)

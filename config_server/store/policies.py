"""Replication policies: by name, one of them the default, and those that machines have had of their own since before policies had names.

What a policy does not say, an agent's own configuration does: a threshold alone sets no interval, and whoever has a machine follow the
default policy again, which nobody ever set, takes back what another one said. So agents are told settings with every answer, also none.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy import delete as deleting

from config_server.rules.machine import Assigned
from config_server.store.schema import machines, policies
from config_server.store.statements import replacing
from shared import decoding
from shared.api.policies import Policy, PolicyView
from shared.desired import Settings
from shared.errors import PolicyNotFoundError, RequestError

UNCHOSEN_S: Final = 300.0
"""The interval of earlier versions' policies where nobody set one."""
DEFAULT: Final = "default"
"""Of machines that have no other. It is always there, and need not have been set."""

_READ: Final = decoding.json_decoder(Policy)
_NAMED: Final = policies.c.name == bindparam("wanted")
_FIND: Final = select(policies.c.body).where(_NAMED)
_NAMES: Final = select(policies.c.name)
_PUT: Final = replacing(policies)
_DELETE: Final = deleting(policies).where(_NAMED)
_OF: Final = select(machines.c.name).where(machines.c.policy_name == bindparam("wanted"))
_OF_DEFAULT: Final = select(machines.c.name).where(
    machines.c.policy_name.is_(None), machines.c.policy.is_(None)
)
_ASSIGN: Final = update(machines).where(machines.c.name == bindparam("machine"))
BODY: Final = (
    select(policies.c.body)
    .where(policies.c.name == func.coalesce(machines.c.policy_name, DEFAULT))
    .scalar_subquery()
    .label("policy_body")
)
"""In a statement over machines: of the policy with a name that each has."""


def find(db: Connection, name: str) -> Policy | None:
    body = db.scalar(_FIND, {"wanted": name})
    return None if body is None else _READ.decode(body)


def get(db: Connection, name: str) -> Policy:
    """Raises PolicyNotFoundError."""
    found = find(db, name)
    if found is None and name != DEFAULT:
        raise PolicyNotFoundError(f"Policy '{name}' was not found")
    return found or Policy()


def put(db: Connection, name: str, policy: Policy) -> None:
    """Creates or changes it."""
    _PUT(db, {"name": name, "body": msgspec.json.encode(policy).decode()})


def delete(db: Connection, name: str) -> None:
    """Raises RequestError while it holds for a machine, PolicyNotFoundError."""
    get(db, name)
    what = f"Policy '{name}' was not deleted"
    if name == DEFAULT:
        raise RequestError(
            what,
            cause="it is that of all machines that have no other",
            action="Change it: understudy policy set default …",
        )
    if machines := users(db, name):
        shown = ", ".join(machines[:10]) + (f" and {len(machines) - 10} more" if len(machines) > 10 else "")
        raise RequestError(
            what,
            cause=f"it is assigned to {shown}",
            action="Assign another policy to them first: understudy policy assign default MACHINE.",
        )
    db.execute(_DELETE, {"wanted": name})


def users(db: Connection, name: str) -> list[str]:
    """The machines for which it holds."""
    found = db.scalars(_OF_DEFAULT) if name == DEFAULT else db.scalars(_OF, {"wanted": name})
    return sorted(found)


def views(db: Connection) -> list[PolicyView]:
    """All, by name; the default one first."""
    names = sorted(db.scalars(_NAMES))
    return [view(db, name) for name in (DEFAULT, *(name for name in names if name != DEFAULT))]


def view(db: Connection, name: str) -> PolicyView:
    """Raises PolicyNotFoundError."""
    policy = get(db, name)
    return PolicyView(
        name=name,
        machines=users(db, name),
        point_interval_s=settings(policy).point_interval_s,
        rpo_threshold_s=policy.rpo_threshold_s,
        version=_version(policy),
    )


def version(db: Connection, name: str) -> str | None:
    """None where there is none of that name."""
    found = find(db, name)
    return _version(get(db, name)) if found is not None or name == DEFAULT else None


def _version(policy: Policy) -> str:
    return hashlib.sha256(msgspec.json.encode(policy)).hexdigest()[:16]


def assign(db: Connection, machine: str, name: str) -> None:
    """From now on it holds for the machine, and follows its changes. Raises PolicyNotFoundError."""
    get(db, name)
    chosen = None if name == DEFAULT else name
    db.execute(_ASSIGN, {"machine": machine, "policy": None, "policy_name": chosen})


def give_own(db: Connection, machine: str, policy: Policy) -> None:
    """One of the machine's own, without a name."""
    own = msgspec.json.encode(policy).decode()
    db.execute(_ASSIGN, {"machine": machine, "policy": own, "policy_name": None})


def default(db: Connection) -> Assigned:
    return Assigned(get(db, DEFAULT), DEFAULT)


def assigned(policy_name: str | None, policy: str | None, body: str | None) -> Assigned:
    """Of a machine's columns, and BODY."""
    if policy is not None:
        return Assigned(_READ.decode(policy), "")
    return Assigned(Policy() if body is None else _READ.decode(body), policy_name or DEFAULT)


def settings(policy: Policy) -> Settings:
    """For the agent."""
    interval_s = policy.point_interval_s
    return Settings(point_interval_s=None if interval_s is msgspec.UNSET else interval_s)

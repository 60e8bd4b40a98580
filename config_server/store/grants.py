"""The record of grants: who may read which machine's container, given when, ended how. What makes a grant count is its policy in
storage (granting.py).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import grants
from shared.api.restores import GrantState, GrantView
from shared.errors import NotFoundError

_KEPT_NS = 90 * 86_400 * SECOND_NS
"""Older ones are in the audit log only."""


_IT: Final = grants.c.id == bindparam("it")
_LIVES: Final = (grants.c.ended_ns.is_(None), grants.c.expires_ns > bindparam("now_ns"))
_ADD: Final = insert(grants)
_FORGET_OLD: Final = delete(grants).where(grants.c.expires_ns < bindparam("until_ns"))
_FORGET: Final = delete(grants).where(_IT)
_FORGET_ALL: Final = delete(grants).where(grants.c.machine == bindparam("of_machine"))
_GET: Final = select(grants).where(_IT, grants.c.machine == bindparam("of_machine"))
_EXTEND: Final = update(grants).where(_IT)
_END: Final = update(grants).where(_IT, grants.c.ended_ns.is_(None))
_LIVING: Final = (
    select(grants).where(grants.c.container == bindparam("of_container"), *_LIVES).order_by(grants.c.id)
)
_LIVING_OF: Final = (
    select(grants.c.id, grants.c.who)
    .where(grants.c.machine == bindparam("of_machine"), *_LIVES)
    .order_by(grants.c.id)
)
_ASKED: Final = select(grants).where(grants.c.request == bindparam("wanted"))
_NEWEST: Final = (
    select(grants)
    .where(grants.c.machine == bindparam("of_machine"))
    .order_by(grants.c.given_ns.desc(), grants.c.id)
    .limit(bindparam("most"))
)


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    machine: str
    container: str
    """Where its policy is, also when the machine has another one since."""
    who: str
    host: str
    given_ns: int
    expires_ns: int
    ended_ns: int | None = None
    ended_by: str = ""
    returned: bool = False
    request: str = ""
    """The id with which it was asked for; empty when there was none."""

    def lives(self, now_ns: int) -> bool:
        return self.ended_ns is None and self.expires_ns > now_ns


def add(db: Connection, grant: Grant) -> None:
    db.execute(_FORGET_OLD, {"until_ns": grant.given_ns - _KEPT_NS})
    db.execute(_ADD, msgspec.structs.asdict(grant))


def forget(db: Connection, id_: str) -> None:
    """It was never given."""
    db.execute(_FORGET, {"it": id_})


def forget_all(db: Connection, machine: str) -> None:
    """It was deleted."""
    db.execute(_FORGET_ALL, {"of_machine": machine})


def get(db: Connection, machine: str, id_: str) -> Grant:
    """Raises NotFoundError."""
    row = db.execute(_GET, {"it": id_, "of_machine": machine}).first()
    if row is None:
        raise NotFoundError(
            f"Grant '{id_}' of machine '{machine}' was not found",
            cause="none was given under this id, or it ended long ago",
            action=f"`understudy grant list {machine}` shows those that were.",
        )
    return _grant(row)


def extend(db: Connection, id_: str, expires_ns: int) -> None:
    db.execute(_EXTEND, {"it": id_, "expires_ns": expires_ns})


def end(db: Connection, id_: str, who: str, now_ns: int, *, returned: bool) -> None:
    """Of one that has ended, how it ended stays."""
    db.execute(_END, {"it": id_, "ended_ns": now_ns, "ended_by": who, "returned": returned})


def living(db: Connection, container: str, now_ns: int) -> list[Grant]:
    return [_grant(row) for row in db.execute(_LIVING, {"of_container": container, "now_ns": now_ns})]


def living_of(db: Connection, machine: str, now_ns: int) -> list[tuple[str, str]]:
    """Id of each by which the machine may be read, and who has it."""
    return [(id_, who) for id_, who in db.execute(_LIVING_OF, {"of_machine": machine, "now_ns": now_ns})]


def asked_for(db: Connection, request: str) -> Grant | None:
    """What was given when it was asked for with this id."""
    row = db.execute(_ASKED, {"wanted": request}).first() if request else None
    return None if row is None else _grant(row)


def newest(db: Connection, machine: str, limit: int) -> list[Grant]:
    return [_grant(row) for row in db.execute(_NEWEST, {"of_machine": machine, "most": limit})]


def view(grant: Grant, now_ns: int) -> GrantView:
    if grant.ended_ns is not None:
        state = GrantState.RETURNED if grant.returned else GrantState.REVOKED
    else:
        state = GrantState.GIVEN if grant.lives(now_ns) else GrantState.EXPIRED
    return GrantView(
        id=grant.id,
        machine=grant.machine,
        who=grant.who,
        host=grant.host,
        state=state,
        given=rfc3339(grant.given_ns),
        expires=rfc3339(grant.expires_ns),
        ended=None if grant.ended_ns is None else rfc3339(grant.ended_ns),
        ended_by=grant.ended_by,
        life_s=(grant.expires_ns - now_ns) / SECOND_NS if grant.lives(now_ns) else 0.0,
    )


def _grant(row: Row[Any]) -> Grant:
    return Grant(**{**row._asdict(), "returned": bool(row.returned)})

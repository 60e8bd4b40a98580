"""Events: what went wrong, and what happened."""

from __future__ import annotations

import enum

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Page, Paged, Route
from shared.vocabulary import Severity


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


class EventQuery(Page, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    object: str = ""
    open: bool = False


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


class EventList(Paged):
    events: list[EventView]


EVENTS = Route(
    "events",
    "GET",
    "/v1/events",
    Access.OPERATOR,
    EventQuery,
    EventList,
    "Events, newest first",
    needs=Permission.EVENT_READ,
)

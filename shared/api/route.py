"""The language of the API: what a route is, and what all of them share."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from shared.api.permissions import Permission
from shared.vocabulary import Role

PORT: Final = 443
API_VERSION: Final = 4
"""Raised whenever a request gets a field or a value, which an older server refuses: `ServerInfo` says the server's. 2: `RestoreRequest` has
`grant` and `request`. 3: `Protection` has `process_servers`, `policy_name`, `force`, `offline` and `fewer`; policies have names, and need
no interval. 4: machines can be deleted."""
MAX_BODY_B: Final = 4 << 20
"""Larger request bodies are refused."""
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
"""How many entries of a list, the newest first."""


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty body."""


class Failure(msgspec.Struct):
    """What failed, why, and what to do about it: the body of every answer that is not a success."""

    code: str
    what: str
    cause: str = ""
    action: str = ""
    exit_code: int = 1


class FailureAnswer(Failure, kw_only=True):
    """The same as RFC 9457 has it."""

    type: str
    """`urn:understudy:` and the code."""
    title: str
    """`what`."""
    status: int
    detail: str
    """Cause and action."""


class Limit(msgspec.Struct, forbid_unknown_fields=True):
    limit: Count = 200


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
    needs: Permission | None = None
    """For OPERATOR: what the caller must be allowed."""
    status: HTTPStatus = HTTPStatus.OK
    """Of a success. CREATED: there is something new, by its own name. ACCEPTED: it is asked for, and done later."""

    def __post_init__(self) -> None:
        if (self.needs is None) is (self.access is Access.OPERATOR):
            raise TypeError(
                f"{self.name}: a route for operators names what they must be allowed, and no other does"
            )

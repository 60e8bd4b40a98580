"""The language of the API: what a route is, and what all of them share."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from shared.api.permissions import Permission
from shared.errors import UnderstudyError
from shared.vocabulary import Role

PORT: Final = 443
API_VERSION: Final = 6
"""Raised whenever a request gets a field or a value, which an older server refuses: `ServerInfo` says the server's. 2: `RestoreRequest` has
`grant` and `request`. 3: `Protection` has `process_servers`, `policy_name`, `force`, `offline` and `fewer`; policies have names, and need
no interval. 4: machines can be deleted. 5: `Protection` has `gone` and `over`. 6: long lists have
`before`."""
MAX_BODY_B: Final = 4 << 20
"""Larger request bodies are refused."""
MAX_WAIT_S: Final = 30.0
"""An answer is held no longer."""
MAX_KEY_LENGTH: Final = 255
"""Of an Idempotency-Key."""
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
    names: list[str] = []
    """What it is about, as a request names it: the disks that would be left out (US129)."""


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


class Page(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of a long list, newest first. (What is left at its default is not sent: an older server knows no `before`.)"""

    limit: Count = 200
    before: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """`next` of the page before; empty: the first page."""


class Versioned(msgspec.Struct, kw_only=True):
    """An answer about something that people change after they have read it."""

    version: str = ""
    """What it is now has this name, and no other state of it. Empty: of a server that does not tell."""


class Paged(msgspec.Struct, kw_only=True):
    """An answer to `Page`."""

    next: str = ""
    """`before` of the page behind this one; empty: there is none."""


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
    versioned: bool = False
    """The answer is `Versioned`, and its version the ETag. Where it changes something, the request names the version that it changes
    (If-Match), or that there is none (If-None-Match: *)."""
    keyed: bool = False
    """It begins something. The same request with the same Idempotency-Key begins it once."""
    waits: bool = False
    """With `Prefer: wait=SECONDS` the answer is held until there is something to say."""
    errors: tuple[type[UnderstudyError], ...] = ()
    """With which it may answer beyond what its shape says (failures.py)."""
    only_tells: bool = False
    """It is no GET, and changes nothing that anybody else should know: a config server that has been superseded answers it still."""

    @property
    def changes(self) -> bool:
        return self.method != "GET" and not self.only_tells

    @property
    def replaces(self) -> bool:
        """What is there, where it is named, or puts it there."""
        return self.versioned and self.method == "PUT"

    @property
    def paged(self) -> bool:
        return issubclass(self.request, Page)

    def __post_init__(self) -> None:
        if self.versioned is not issubclass(self.response, Versioned):
            raise TypeError(f"{self.name}: its answer has a version, or it is not versioned")
        if self.paged is not issubclass(self.response, Paged):
            raise TypeError(f"{self.name}: a page is asked for and answered, or neither")
        if (self.needs is None) is (self.access is Access.OPERATOR):
            raise TypeError(
                f"{self.name}: a route for operators names what they must be allowed, and no other does"
            )

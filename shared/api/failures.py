"""With which errors a route may answer, and as which HTTP status.

Most of it its shape says: who calls, what stands in its path, its headers. What is its own alone it names (`Route.errors`). A class is
meant for itself, not for what is derived from it. But of whatever does not work (a 503: the database, storage, a daemon) each route may
speak that needs any of it, which is all but what anybody may read; and of a bug, each.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from shared.api.route import Access, Route
from shared.errors import (
    AccessError,
    CertificateRevokedError,
    ChangedSinceError,
    CommandNotFoundError,
    DeadlineError,
    ForbiddenError,
    JobNotFoundError,
    KeyUsedError,
    MachineNotFoundError,
    NeverReportedError,
    NotFoundError,
    PolicyNotFoundError,
    RequestError,
    UnderstudyError,
    UnhealthyError,
    UsageError,
    VersionNeededError,
    WrongKeyError,
    WrongRoleError,
)

_Errors = tuple[type[UnderstudyError], ...]


class Status(NamedTuple):
    code: int
    meaning: str
    errors: _Errors
    """And what is derived from them."""


STATUSES: Final = (
    Status(412, "it was changed since you have read it: read it again", (ChangedSinceError,)),
    Status(
        428,
        "it is there, and the request does not say over which version it is changed",
        (VersionNeededError,),
    ),
    Status(422, "another request had this `Idempotency-Key`", (KeyUsedError,)),
    Status(401, "no token, or one that this server does not know", (AccessError,)),
    Status(
        403,
        "the operator is not allowed this, or the certificate is revoked or of another role",
        (ForbiddenError, WrongRoleError, CertificateRevokedError),
    ),
    Status(400, "the request is wrong, or cannot be done as things are", (UsageError,)),
    Status(404, "nothing of that name, or no such key in the vault", (NotFoundError, WrongKeyError)),
    Status(504, "it was not done in time", (DeadlineError,)),
    Status(503, "something that it needs does not work: storage, the database, a daemon", (UnhealthyError,)),
    Status(500, "an error in the server: its log says more", (UnderstudyError,)),
)
"""Of an error, the first that has its class."""
_NAMED: Final[dict[str, _Errors]] = {
    "/machines/{machine}": (MachineNotFoundError, NeverReportedError),
    "/policies/{policy}": (PolicyNotFoundError,),
    "/jobs/{id}": (JobNotFoundError,),
    "/commands/{id}": (CommandNotFoundError,),
    "/tokens/{id}": (NotFoundError,),
    "/grants/{id}": (NotFoundError,),
}
"""What is not there, by the last name in a path."""


def status_of(error: type[UnderstudyError]) -> int:
    return next(status.code for status in STATUSES if issubclass(error, status.errors))


def errors_of(route: Route[Any, Any]) -> frozenset[type[UnderstudyError]]:
    """UnhealthyError stands for all that are a 503."""
    found: set[type[UnderstudyError]] = {UnderstudyError, RequestError, *route.errors}
    if route.access is not Access.PUBLIC or route.method != "GET":  # those need nothing
        found.add(UnhealthyError)
    if route.access is Access.OPERATOR:
        found |= {AccessError, ForbiddenError}
        # A daemon names a machine that may not be there yet; a version is changed, or there is none.
        if not route.replaces:
            found |= {*_NAMED.get(_last_name(route.path), ())}
    if route.access is Access.DAEMON:
        found |= {AccessError, CertificateRevokedError}
        if route.roles:
            found.add(WrongRoleError)
    if route.keyed:
        found.add(KeyUsedError)
    if route.versioned and route.changes:
        found.add(ChangedSinceError)
        if route.replaces:
            found.add(VersionNeededError)
    return frozenset(found)


def codes_of(route: Route[Any, Any]) -> dict[int, str]:
    """By status: the codes of its errors."""
    found: dict[int, list[str]] = {}
    for error in errors_of(route):
        found.setdefault(status_of(error), []).append(
            "US4xx to US6xx" if error is UnhealthyError else error.code
        )
    return {status: ", ".join(sorted(codes)) for status, codes in sorted(found.items())}


def may_answer(route: Route[Any, Any], error: type[UnderstudyError]) -> bool:
    errors = errors_of(route)
    return error in errors or (status_of(error) == status_of(UnhealthyError) and UnhealthyError in errors)


def _last_name(path: str) -> str:
    names: list[str] = re.findall(r"/\w+/{\w+}", path)
    return names[-1] if names else ""

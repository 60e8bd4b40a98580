"""As which HTTP status an error is answered."""

from __future__ import annotations

from typing import Final, NamedTuple

from shared.errors import (
    AccessError,
    CertificateRevokedError,
    ChangedSinceError,
    DeadlineError,
    ForbiddenError,
    KeyUsedError,
    NotFoundError,
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


def status_of(error: type[UnderstudyError]) -> int:
    return next(status.code for status in STATUSES if issubclass(error, status.errors))

"""The one error tree. Every error that a person can meet says what failed, why, and what to do.

    UnderstudyError                 exit 1
    ├── UsageError          US1xx   exit 2   the request itself is wrong
    ├── NotFoundError       US2xx   exit 3   the named thing does not exist
    ├── DeadlineError       US3xx   exit 4   it did not happen in time
    └── UnhealthyError      US4xx   exit 5   the system cannot do it now
        ├── DeviceError             a block device or the kernel's capture
        ├── PeerError               the other end of a connection broke the protocol, or was refused
        ├── StorageError            blob storage or a local disk
        │   └── TransientError      worth another try (the only class that anything retries)
        └── IntegrityError          data is not what it must be: digest, key, order

Codes are unique across the tree (a unit test checks it): a subclass with its own `code` is one kind of failure.
Foreign exceptions are translated to these at the edge where they appear.
"""

from __future__ import annotations

from typing import ClassVar


class UnderstudyError(Exception):
    """What failed, why, and what to do about it.

    `what` names the failed operation and its object; `cause` the reason as far as it is known; `action` what the
    reader should do. A subclass may give defaults for cause and action.
    """

    code: ClassVar[str] = "US000"
    exit_code: ClassVar[int] = 1
    default_cause: ClassVar[str] = ""
    default_action: ClassVar[str] = ""

    def __init__(self, what: str, *, cause: str = "", action: str = "") -> None:
        self.what = what
        self.cause = cause or self.default_cause
        self.action = action or self.default_action
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if not self.cause else f"{self.what}: {self.cause}"
        return text if not self.action else f"{text.rstrip('.')}. {self.action}"

    def as_dict(self) -> dict[str, str]:
        """The form in which errors appear in events, in the API and in `--output json`."""
        return {"code": self.code, "what": self.what, "cause": self.cause, "action": self.action}


class UsageError(UnderstudyError):
    code = "US100"
    exit_code = 2


class NotFoundError(UnderstudyError):
    code = "US200"
    exit_code = 3


class DeadlineError(UnderstudyError):
    code = "US300"
    exit_code = 4


class UnhealthyError(UnderstudyError):
    code = "US400"
    exit_code = 5


class DeviceError(UnhealthyError):
    code = "US410"


class PeerError(UnhealthyError):
    code = "US420"


class StorageError(UnhealthyError):
    code = "US430"


class TransientError(StorageError):
    code = "US431"


class IntegrityError(UnhealthyError):
    code = "US440"

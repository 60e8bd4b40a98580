"""The trunk of the tree: what every error says, the five answers to a command, and the errors that any part may raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, TypedDict

UNDECODABLE: Final = (ValueError, RecursionError)
"""What msgspec and tomllib raise for bytes that are not the document they should be. Their own errors are ValueErrors, and so are those for
bad UTF-8 and for numbers that are too long; what is nested too deeply exhausts the stack.
"""


def cause_of(exc: OSError | UnderstudyError) -> str:
    """The system's words for what failed, without the number and the file's name: `what` has named the file. Of
    an error of ours, its cause."""
    if isinstance(exc, UnderstudyError):
        return exc.cause
    return exc.strerror or str(exc)


class Told(TypedDict):
    """An error in words."""

    code: str
    what: str
    cause: str
    action: str


class UnderstudyError(Exception):
    """What failed, why, and what to do about it.

    `what` names the failed operation and its object; `cause` the reason as far as it is known; `action` what
    the reader should do. A subclass may give defaults for cause and action.
    """

    code: ClassVar[str] = "US000"
    exit_code: ClassVar[int] = 1
    default_cause: ClassVar[str] = ""
    default_action: ClassVar[str] = ""
    ends_epoch: ClassVar[bool] = False
    """Continuity of the stream is lost: no retry helps, the agent must begin a new epoch."""

    def __init__(self, what: str, *, cause: str = "", action: str = "", names: Sequence[str] = ()) -> None:
        self.what = what
        self.cause = cause or self.default_cause
        self.action = action or self.default_action
        self.names = [*names]
        """What it is about, as a request would name it: for programs. In the API's answers alone."""
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if not self.cause else f"{self.what}: {self.cause}"
        if not self.action:
            return text
        return f"{text} {self.action}" if text.endswith("?") else f"{text.rstrip('.')}. {self.action}"

    def as_dict(self) -> Told:
        """The form in which errors appear in events, in the API and in `--output json`."""
        return {"code": self.code, "what": self.what, "cause": self.cause, "action": self.action}


class UsageError(UnderstudyError):
    code = "US100"
    exit_code = 2


class ConfigError(UsageError):
    code = "US101"
    default_action = "Correct it and start again."


class ListenError(UsageError):
    code = "US102"
    default_action = "Stop what uses this address (ss -ltnp shows it), or configure another port."


class NotFoundError(UnderstudyError):
    code = "US200"
    exit_code = 3


class DeadlineError(UnderstudyError):
    code = "US300"
    exit_code = 4


class UnhealthyError(UnderstudyError):
    code = "US400"
    exit_code = 5

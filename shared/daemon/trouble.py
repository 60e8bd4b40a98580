"""What is wrong with one thing just now: told when it begins, when its cause changes, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.daemon import logging
from shared.errors import UnderstudyError

_log = logging.get()


class Trouble:
    """`error` is what reports show; each change of it is a line in the log, its repetition is none."""

    def __init__(self, what: str, changed: Callable[[], None], **fields: Any) -> None:
        """`what` names the thing for people; `fields` go with each line."""
        self.error: UnderstudyError | None = None
        self._what = what
        self._changed = changed
        self._fields = fields

    def report(self, error: UnderstudyError | None) -> None:
        """Something is wrong, or right again."""
        before = self.error
        if before is None or error is None or _kind(before) != _kind(error):
            self.error = (
                error  # of one kind, the first stays: an event's words change only when the matter does
            )
        if error is not None and (before is None or _kind(before) != _kind(error)):
            _log.warning(f"{self._what}: trouble", **self._fields, **error.as_dict())
        elif error is None and before is not None:
            _log.info(f"{self._what}: trouble is over", **self._fields)
        self._changed()


def _kind(error: UnderstudyError) -> tuple[str, str]:
    """What it says may name another blob each time; that is no other trouble."""
    return error.code, error.cause

"""How long a report may have lain here before anybody read it. Pure.

A server whose process was stopped, whose host was suspended, or that had no processor for a while, reads late what came in time. When it
came is not known then: what such a report says of its sender's clock is as uncertain (presence.py).
"""

from __future__ import annotations

from typing import Final

from config_server.rules.clock import SECOND_NS

_SHORT_NS: Final = 2 * SECOND_NS
"""So much later than the last a beat may come, which is due each second."""
_BEHIND_NS: Final = 15 * SECOND_NS
"""So long behind a stillness what came in it may be read yet: there is much of it."""


class Stillness:
    """Of this server. Times are monotonic."""

    def __init__(self) -> None:
        self._beat_ns: int | None = None
        self._since_ns = self._until_ns = 0

    def beat(self, now_ns: int) -> None:
        """It works. Called each second."""
        if self._beat_ns is not None and now_ns - self._beat_ns > _SHORT_NS:
            is_the_same = self._until_ns and self._beat_ns - self._until_ns < _BEHIND_NS
            self._since_ns = self._since_ns if is_the_same else self._beat_ns
            self._until_ns = now_ns
        self._beat_ns = now_ns

    def held_up_ns(self, now_ns: int) -> int:
        """How long what is read now may have waited for that."""
        if self._beat_ns is not None and now_ns - self._beat_ns > _SHORT_NS:
            return now_ns - self._beat_ns
        if self._until_ns and now_ns - self._until_ns < _BEHIND_NS:
            return now_ns - self._since_ns
        return 0

"""For how long nothing was heard of somebody. Pure.

It is counted from look to look, by the monotonic clock of whoever looks. No clock that is set makes it longer; and of a longer time between
two looks no more than so much counts: then it was this server that stood still, or was away, and nobody is called silent for that.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from config_server.rules.clock import SECOND_NS


class _Look(NamedTuple):
    mark: int
    at_ns: int
    silent_ns: int


class Silence:
    def __init__(self, most_s: float) -> None:
        """`most_s`: what counts at most from one look to the next."""
        self._most_ns: Final = int(most_s * SECOND_NS)
        self._looks: Final = dict[str, _Look]()

    def look(self, name: str, mark: int, now_ns: int) -> float:
        """Seconds since `mark` (which is another one after each word) was seen for the first time. `now_ns` is monotonic."""
        before = self._looks.get(name)
        silent_ns = 0
        if before is not None and before.mark == mark:
            silent_ns = before.silent_ns + min(now_ns - before.at_ns, self._most_ns)
        self._looks[name] = _Look(mark, now_ns, silent_ns)
        return silent_ns / SECOND_NS

    def forget(self, name: str) -> None:
        """Nobody looks any more, or it is counted anew."""
        self._looks.pop(name, None)

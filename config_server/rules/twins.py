"""Which of a daemon's reports counts, and whether two daemons speak under one name. Pure.

A daemon counts its reports, and names each of its starts. Of one start an older report was held up on its way, and changes nothing. A new
start is a restart, and is believed at once: the old process says at most what it had under way. Goes the old one on to report, there are
two: a virtual machine was cloned, or restored beside the original, with the certificate. Nobody knows which one was meant, so the one that
was there first is believed, and the other one's reports change nothing until the first falls silent. A clone that was made with its
memory has the original's start, too: then the one whose count is ahead is believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from config_server.rules.clock import SECOND_NS
from shared.errors import TwinDaemonError
from shared.status import Problem

SILENT_S: Final = 15.0
"""A daemon that has not reported for so long counts as disconnected."""
_STARTS: Final = 4
"""So many of a daemon's starts are remembered: what is held up for longer was given up by whoever holds it."""
_HELD_UP_NS: Final = 60 * SECOND_NS
"""So long a report may be on its way. Who counts from lower on after a longer silence was put back: a virtual machine, to a snapshot with
its memory."""
_UNDER_WAY: Final = 2
"""So many reports of a process that is gone may come late: the one that it broke off to send a result, and that."""


@dataclass
class _Start:
    number: int
    first_ns: int
    heard_ns: int
    address: str
    reports: int = 1
    advanced: int = 0
    """So often it has reported since another one appeared."""
    behind: int = 0
    """So many reports of this start were older than what had come, ..."""
    behind_ns: int = 0
    """... the last one then, ..."""
    behind_address: str = ""
    """... from there."""

    def is_heard(self, now_ns: int) -> bool:
        return now_ns - self.heard_ns <= SILENT_S * SECOND_NS

    def goes_on(self, now_ns: int) -> bool:
        """Although another one appeared."""
        return self.is_heard(now_ns) and self.advanced > _UNDER_WAY

    def has_clone(self, now_ns: int) -> bool:
        return (
            self.goes_on(now_ns)
            and self.behind > _UNDER_WAY
            and now_ns - self.behind_ns <= SILENT_S * SECOND_NS
        )


class Starts:
    """Of one daemon. Times are monotonic."""

    def __init__(self) -> None:
        self._starts: dict[str, _Start] = {}

    def counts(self, start: str, number: int, address: str, now_ns: int, *, is_told: bool = False) -> bool:
        """Whether this report is believed. `is_told`: another config server heard it, then; one of these that comes late was held up by
        nobody, and is no sign of a clone."""
        known = self._starts.get(start)
        if known is not None and is_told and number <= known.number and now_ns - known.heard_ns < _HELD_UP_NS:
            return False
        if known is None:
            self._starts[start] = _Start(number, now_ns, now_ns, address)
            if len(self._starts) > _STARTS:
                others = [name for name in self._starts if name != start]
                del self._starts[min(others, key=lambda name: self._starts[name].heard_ns)]
        elif number <= known.number and now_ns - known.heard_ns < _HELD_UP_NS:
            known.behind, known.behind_ns, known.behind_address = known.behind + 1, now_ns, address
            return False
        else:
            if number <= known.number:
                known.behind = 0
            known.number, known.heard_ns, known.address = number, now_ns, address
            known.reports += 1
        mine = self._starts[start]
        mine.advanced = mine.advanced + 1 if self._newer(mine, now_ns) or mine.behind else 0
        return self._first(now_ns) in (None, mine)

    def twins(self, now_ns: int) -> tuple[str, str] | None:
        """Addresses of two daemons that report: of the one that is believed, and of another one."""
        first = self._first(now_ns)
        if first is not None and (other := self._newer(first, now_ns)) is not None:
            return first.address, other.address
        for one in self._starts.values():
            if one.has_clone(now_ns):
                return one.address, one.behind_address
        return None

    def _newer(self, than: _Start, now_ns: int) -> _Start | None:
        """One that appeared later and reports. (A start that was forgotten appears once more when a late report of it comes.)"""
        for start in self._starts.values():
            if start.first_ns > than.first_ns and start.reports > _UNDER_WAY and start.is_heard(now_ns):
                return start
        return None

    def _first(self, now_ns: int) -> _Start | None:
        """The one that was there first and goes on, although another one appeared."""
        going = [start for start in self._starts.values() if start.goes_on(now_ns)]
        return min(going, key=lambda start: start.first_ns, default=None)


def problem(source: str, believed: str, other: str) -> Problem:
    error = TwinDaemonError(
        f"Two daemons report as {source}",
        cause=f"one from {believed or 'an unknown address'}, which is believed, and one from {other or 'an unknown address'}",
    )
    return Problem(**error.as_dict(), object=source)

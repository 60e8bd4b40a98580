"""How long what nobody complains of has lasted (conditions.py), by this server's monotonic clock. No I/O; it remembers what it saw.

Time counts between two looks that found the same, whoever was silent in between, and at most 60 s of it: the server looks every few
seconds, and what passed while it did not look, or nobody was heard, is not known to be bad. So a gap of this server's own adds nothing;
and whoever falls silent now and then does not begin anew each time. Nor does anybody when this server does: what was found is kept
(lasting_record.py), and compared with the first that is heard.

Only what is over, or work that went on, sets the time back. While somebody gives a cause it stands still, and what was a problem by then
stays one: an error that comes and goes makes of work that stands neither no problem, nor one that comes and goes with it. A cause that
only may be one is believed for so long, and no longer (conditions.py).
"""

from __future__ import annotations

from typing import Final

import msgspec

from config_server.rules.clock import SECOND_NS
from config_server.rules.conditions import CONDITIONS, EXCUSED_S
from config_server.rules.facts import Facts, replicates
from config_server.rules.machine import Machine
from config_server.rules.sights import At, Excused, Look, Sight

_AT_ONCE_NS: Final = 60 * SECOND_NS
_NAMES: Final = frozenset(condition.name for condition in CONDITIONS)


class _Held(msgspec.Struct):
    at: At
    held_ns: int
    looked_ns: int
    excused_ns: int = 0
    """So long somebody gave a cause that may be one."""


class Lasted(msgspec.Struct, frozen=True):
    """What is kept of a condition over a restart."""

    at: tuple[int | float, ...]
    held_ns: int
    excused_ns: int


Kept = dict[str, dict[str, Lasted]]
"""By machine, and name of the condition."""


class Lasting:
    def __init__(self) -> None:
        self._held: dict[str, dict[str, _Held]] = {}

    def kept(self) -> Kept:
        """What has lasted for a minute: most of what is so at one look is over at the next."""
        found: Kept = {}
        for machine, conditions in self._held.items():
            for name, held in conditions.items():
                if max(held.held_ns, held.excused_ns) >= _AT_ONCE_NS:
                    found.setdefault(machine, {})[name] = Lasted(held.at, held.held_ns, held.excused_ns)
        return found

    def recover(self, kept: Kept, now_ns: int) -> None:
        """Begin where another process ended."""
        for machine, marks in kept.items():
            self._held[machine] = {
                name: _Held(mark.at, mark.held_ns, now_ns, mark.excused_ns)
                for name, mark in marks.items()
                if name in _NAMES
            }

    def look(self, machine: Machine, facts: Facts, now_ns: int) -> frozenset[str]:
        """The names of those conditions that are problems of the machine now. None of one that nobody wants protected: its time begins
        when somebody does."""
        if not machine.protected and not replicates(machine, facts, now_ns):
            self._held.pop(machine.name, None)
            return frozenset()
        look = Look(machine, facts, now_ns)
        held = self._held.setdefault(machine.name, {})
        found = set()
        for condition in CONDITIONS:
            after_ns = condition.after_s * SECOND_NS
            before = held.get(condition.name)
            at = condition.at(look, before is not None and before.held_ns >= after_ns)
            if at is Sight.UNKNOWN:
                continue
            if at is Sight.NO:
                held.pop(condition.name, None)
                continue
            if isinstance(at, Sight):
                if before is None:
                    continue
                before.looked_ns = now_ns
            elif before is None:
                held[condition.name] = _Held(at.at if isinstance(at, Excused) else at, 0, now_ns)
                continue
            else:
                passed_ns = min(max(0, now_ns - before.looked_ns), _AT_ONCE_NS)
                before.looked_ns = now_ns
                is_excused = isinstance(at, Excused) and before.excused_ns < EXCUSED_S * SECOND_NS
                moved, before.at = condition.moved(before.at, at.at if isinstance(at, Excused) else at)
                if moved:
                    before.held_ns = before.excused_ns = 0
                elif is_excused:
                    before.excused_ns += passed_ns
                else:
                    before.held_ns += passed_ns
            if before.held_ns >= after_ns:
                found.add(condition.name)
        return frozenset(found)

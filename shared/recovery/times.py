"""What a wall-clock time means in a log whose times may be wrong. Pure.

Batches carry the time of the machine's clock, which may jump, stand, go back, or be years away; in logs of older agents it was clamped:
after a jump ahead, and while the clock was back, all batches have the same time. Order never depends on it. So a time is only answered
where all that is known agrees on one place in the log, and refused elsewhere.

- *Ahead.* A batch cannot be captured after it was listed. A segment with a later time than its index entry was written at (by the
  process server's clock, `SKEW_NS` allowed) does not tell its time; nor can a time be answered that falls between its neighbours.
- *One passage.* Among the others, the time is answered by batch p only if p has the latest time of all up to it, and the next batch the
  earliest of all behind p. A clock that was ahead, or went back, breaks one or the other for every time whose state it could confuse.
- *Standing.* Two ordered batches of one time, the last before the time asked for, or the first behind it: the clock stood or was clamped,
  nobody knows how long.

- *The end.* An ordered stream is never silent for long: its heartbeats are batches. A time that lies behind the last batch by more than
  `SILENCE_NS` is one of which nothing has arrived (the uploads are behind, or the agent is down), whatever was written then.

One case is not told apart: an older agent's log in which times were held after a jump ahead, in segments that were listed so late that
their times no longer seem ahead. It looks like a silence.

What the index gives of a segment are the times of its first and last batch; those of all its batches are read around the time asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from shared.log.index import IndexEntry
from shared.recovery.position import NOWHERE, Position

SKEW_NS: Final = 5_000_000_000
"""So much may the clocks of machine and process server differ; health says when they differ by more."""

SILENCE_NS: Final = 12_000_000_000
"""An ordered stream has a batch every 5 s at least (agent/stream/cutter.py): two of them, and what they take to be cut and listed."""

AHEAD: Final = "the machine's clock was ahead of the process server's then, and its times do not tell"
_AMBIGUOUS: Final = (
    "the machine's clock went back or jumped, and showed this time at another moment or not at all"
)
_STOOD: Final = "the machine's clock stood then, or an older agent held it"


class Moment(NamedTuple):
    """A batch, and what the machine's clock showed."""

    position: Position
    captured_ns: int
    ordered: bool


class Around(NamedTuple):
    """The segments of which the batches around a time must be read, and what lies before and behind them."""

    entries: Sequence[tuple[int, IndexEntry]]
    """At most two, both tell their times."""
    latest_before_ns: int | None
    earliest_behind_ns: int | None
    hidden_between: bool
    """Segments that do not tell their times lie between the two, or behind the one."""
    hidden_behind: bool
    """Segments lie behind both."""
    before: Position
    """Up to here every time is told, and none is later than the time."""
    behind: Position
    """Behind this every time is later, or not told."""


def tells(entry: IndexEntry) -> bool:
    return max(entry.first_captured_ns, entry.last_captured_ns) <= entry.written_ns + SKEW_NS


def around(history: Sequence[tuple[int, IndexEntry]], at_ns: int) -> Around:
    told = [i for i, (_, entry) in enumerate(history) if tells(entry)]
    began = [n for n, i in enumerate(told) if history[i][1].first_captured_ns <= at_ns]
    n = began[-1] if began else 0
    chosen = told[n : n + 2]
    early = [history[i][1] for i in told[:n]]
    late = [history[i][1] for i in told[n + 2 :]]
    doubtful = [
        Position.of(epoch, entry.first - 1)
        for epoch, entry in history
        if not tells(entry) or max(entry.first_captured_ns, entry.last_captured_ns) > at_ns
    ]
    passed = [
        Position.of(epoch, entry.last)
        for epoch, entry in history
        if not tells(entry) or min(entry.first_captured_ns, entry.last_captured_ns) <= at_ns
    ]
    end = Position.of(history[-1][0], history[-1][1].last) if history else NOWHERE
    return Around(
        entries=[history[i] for i in chosen],
        latest_before_ns=max((max(e.first_captured_ns, e.last_captured_ns) for e in early), default=None),
        earliest_behind_ns=min((min(e.first_captured_ns, e.last_captured_ns) for e in late), default=None),
        hidden_between=bool(chosen) and (chosen[1] if len(chosen) == 2 else len(history)) - chosen[0] > 1,
        hidden_behind=bool(chosen) and chosen[-1] < len(history) - 1,
        before=min(doubtful, default=end),
        behind=max(passed, default=NOWHERE),
    )


def passed(rows: Sequence[Moment], at_ns: int) -> int | None:
    """Which of the batches around a time is the last one captured at or before it."""
    found = [i for i, row in enumerate(rows) if row.captured_ns <= at_ns]
    return found[-1] if found else None


def doubt(around: Around, rows: Sequence[Moment], at: int, at_ns: int) -> str:
    """Why `rows[at]`, the last batch captured at or before the time, may not be the state of that time; empty when it is."""
    row, behind = rows[at], rows[at + 1 :]
    first_of_second = Position.of(around.entries[-1][0], around.entries[-1][1].first)
    crosses = bool(behind) and len(around.entries) == 2 and behind[0].position == first_of_second
    if around.hidden_between and (crosses or (not behind and len(around.entries) == 1)):
        return AHEAD
    if not behind and around.hidden_behind:
        return AHEAD
    before_ns = [moment.captured_ns for moment in rows[:at]]
    if around.latest_before_ns is not None:
        before_ns.append(around.latest_before_ns)
    behind_ns = [moment.captured_ns for moment in behind]
    if around.earliest_behind_ns is not None:
        behind_ns.append(around.earliest_behind_ns)
    if max(before_ns, default=row.captured_ns) > row.captured_ns:
        return _AMBIGUOUS
    if behind and min(behind_ns) < behind[0].captured_ns:
        return _AMBIGUOUS
    for first, second in ((rows[max(at - 1, 0) : at], rows[at : at + 1]), (behind[:1], behind[1:2])):
        if (
            first
            and second
            and first[0].ordered
            and second[0].ordered
            and first[0].captured_ns == second[0].captured_ns
        ):
            return _STOOD
    return ""

"""What must hold of jobs and of what they make, at each moment and at the end; and what was seen of what may go wrong."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from config_server.rules.clock import SECOND_NS
from shared.api.jobs import Direction, JobState, StepState
from tests.jobs_model.host import Host
from tests.jobs_model.world import FENCE, FENCED, FOREIGN, STEPS

_JOBS: Final = (
    "SELECT id, kind, machine, lane, state, direction, cancelled_by, owner, term, lease_ns, wake_ns, waits, attention, in_doubt"
    " FROM jobs ORDER BY rowid"
)
_STEPS: Final = "SELECT job, step, state FROM steps"
_OVER: Final = (StepState.UNDONE, StepState.GONE)
_UNDONE: Final = (JobState.CANCELLED, JobState.FAILED)
PUT_BACK: Final = "the database was put back"


class Row(NamedTuple):
    id: str
    kind: str
    machine: str
    lane: str
    state: str
    direction: str
    cancelled_by: str
    owner: str
    term: int
    lease_ns: int
    wake_ns: int
    waits: str
    attention: bool
    in_doubt: bool

    @property
    def is_active(self) -> bool:
        return self.state == JobState.RUNNING

    @property
    def is_abandoned(self) -> bool:
        """As it is stored (rules/job_view.py)."""
        return self.state == JobState.FAILED and self.attention


class _At(NamedTuple):
    """An effect that is at work."""

    host: Host
    stops: int
    """Of the host, when its lease was renewed before."""
    job: str


class Watch:
    def __init__(self, read: Callable[[str], Any], now_ns: Callable[[], int]) -> None:
        self.problems: list[str] = []
        self.met: collections.Counter[str] = collections.Counter()
        self.rows: dict[str, Row] = {}
        self.states: dict[str, dict[str, StepState]] = {}
        self._read = read
        self._now_ns = now_ns
        self._at: list[_At] = []
        self._removing: list[Host] = []

    def says(self, problem: str) -> None:
        self.problems.append(problem)

    # ---- the journal

    def committed(self) -> None:
        before, self.rows = self.rows, {row[0]: Row(*row) for row in self._read(_JOBS)}
        self.states = {id_: {} for id_ in self.rows}
        for job, step, state in self._read(_STEPS):
            self.states[job][step] = StepState(state)
        lanes = collections.Counter((row.machine, row.lane) for row in self.rows.values() if row.is_active)
        if lanes and max(lanes.values()) > 1:
            self.says(f"two jobs of one lane: {lanes}")
        for id_, row in self.rows.items():
            if id_ in before and before[id_] != row:
                self._changed(before[id_], row)
            self._is_named(row)

    def _changed(self, was: Row, row: Row) -> None:
        if not was.is_active and row.state != was.state:
            self.says(f"{row.id} had ended {was.state}, and is {row.state}")
        if was.direction == Direction.BACK and row.direction != Direction.BACK:
            self.says(f"{row.id} went back, and goes forward")
        if was.cancelled_by and row.cancelled_by != was.cancelled_by:
            self.says(f"{row.id} was cancelled twice")
        if row.term > was.term:
            self.met["claims"] += 1
            self.met["takeovers"] += bool(was.owner and row.owner and was.owner != row.owner)
            if was.owner and was.lease_ns > self._now_ns():
                self.says(f"{row.id} was taken from {was.owner}, who had it")
            if was.wake_ns > self._now_ns() and row.owner:
                self.says(f"{row.id} was taken before its time")
        turned = row.direction == Direction.BACK and was.direction == Direction.FORWARD
        begun = [step for step in STEPS[STEPS.index(FENCE) :] if step in self.states[row.id]]
        if turned and not row.cancelled_by and row.kind == FENCED and len(begun):
            self.says(f"{row.id} turned back by itself past its fence: {begun}")

    def _is_named(self, row: Row) -> None:
        waits = row.attention or row.wake_ns > self._now_ns()
        if row.is_active and waits and not row.waits:
            self.says(f"{row.id} waits, and does not say for what")
        if row.is_active and waits and row.lease_ns > self._now_ns():
            self.says(f"{row.id} waits, and is {row.owner or 'nobody'}'s still")
        if row.attention and not row.waits.startswith((*(f"{step}: " for step in STEPS), PUT_BACK)):
            self.says(f"{row.id} needs attention, for '{row.waits}'")

    def cancelled(self, id_: str, *, has_turned: bool) -> None:
        self.met["cancels"] += 1
        row = self.rows.get(id_)
        self.met["second cancels"] += bool(
            not has_turned and row is not None and row.is_active and row.cancelled_by
        )

    def was_put_back(self) -> None:
        self.rows = {}
        self.met["rollbacks"] += 1

    # ---- steps

    @contextlib.contextmanager
    def doing(self, host: Host, job: str, step: str, results: Mapping[str, Any]) -> Iterator[None]:
        before = STEPS[: STEPS.index(step)]
        if self._knows(host, job):
            if dict(results) != {each: {"made": f"{job}/{each}"} for each in before}:
                self.says(f"{job}/{step} was done with {dict(results)}")
            if self.states[job].get(step) is not StepState.BEGUN:
                self.says(f"{job}/{step} was done, and is {self.states[job].get(step)}")
        with self._alone(host, job):
            yield

    @contextlib.contextmanager
    def undoing(self, host: Host, job: str, step: str, by: str) -> Iterator[None]:
        self._removing.append(host)
        try:
            with self._undoing(host, job, step, by):
                yield
        finally:
            self._removing.remove(host)

    def is_removing(self, host: Host) -> bool:
        return host in self._removing

    @contextlib.contextmanager
    def _undoing(self, host: Host, job: str, step: str, by: str) -> Iterator[None]:
        if by == "janitor":
            if job in self.rows and (self.rows[job].state not in _UNDONE or self.rows[job].is_abandoned):
                self.says(f"the janitor looks for what is left of {job}, which is {self.rows[job].state}")
            yield
            return
        later = (
            [self.states[job].get(each) for each in STEPS[STEPS.index(step) + 1 :]]
            if self._knows(host, job)
            else []
        )
        if any(state is not None and state not in _OVER for state in later):
            self.says(f"{job}/{step} was undone before {later}")
        with self._alone(host, job):
            yield

    def _knows(self, host: Host, job: str) -> bool:
        """What the journal says now, this owner said."""
        return job in self.rows and self.rows[job].owner == host.name

    @contextlib.contextmanager
    def _alone(self, host: Host, job: str) -> Iterator[None]:
        at = _At(host, host.surely(), job)
        others = [other for other in self._at if other.job == job and self._believes(other)]
        if others and self._believes(at):
            self.says(f"{job} is at work in {host.name} and {others[0].host.name}")
        self._at.append(at)
        self.met["steps"] += 1
        try:
            yield
        finally:
            self._at.remove(at)

    def _believes(self, at: _At) -> bool:
        """That it has the lease, by a clock that went on."""
        return at.host.stops == at.stops and not at.host.is_dead

    def is_sent(self, host: Host, job: str, step: str, by: str, what: str) -> None:
        if by == "janitor":
            return
        at = next(at for at in self._at if at.host is host and at.job == job)
        if job not in self.rows:
            return
        row = self.rows[job]
        if self._believes(at) and (row.owner != host.name or row.lease_ns < self._now_ns()):
            left_s = (row.lease_ns - self._now_ns()) / SECOND_NS
            self.says(f"{host.name} works at {job}/{step}, which is {row.owner or 'nobody'}'s for {left_s} s")
        if self._believes(at) and step not in self.states[job]:
            self.says(f"{job}/{step} is {what}, and nobody wrote down that it was begun")

    # ---- the world

    def made(self, job: str, step: str, there: str | None) -> None:
        if there not in (None, job):
            self.says(f"{job}/{step} was {there}'s, and was made anew")
        ended = job in self.rows and not self.rows[job].is_active
        if there is None and self.states.get(job, {}).get(step) in _OVER:
            self.met["late effects"] += 1
            self.met["late effects of jobs that had ended"] += ended

    def removed(self, job: str, step: str, there: str | None) -> None:
        if there not in (None, job):
            self.says(f"{job}/{step} was {there}'s, and was removed")
        if job in self.rows and self.rows[job].direction != Direction.BACK:
            self.says(f"{job}/{step} was removed, and the job goes forward")

    def at_the_end(self, things: Mapping[str, str], foreign: Mapping[str, str]) -> None:
        """Nobody is at work, and nothing on its way."""
        for name, whose in foreign.items():
            if things.get(name) != whose:
                self.says(f"{name} was {whose}'s, and is {things.get(name)}'s")
        for id_, row in self.rows.items():
            made = [step for step in STEPS if things.get(f"{id_}/{step}") == id_]
            self.met[f"ended {JobState.ABANDONED if row.is_abandoned else row.state}"] += 1
            if row.is_active:
                self.says(f"{id_} never ends: {row} {self.states[id_]}")
            elif row.is_abandoned:
                named = [step for step, state in self.states[id_].items() if state is not StepState.GONE]
                if not row.waits.startswith(PUT_BACK) and not set(made) <= set(named):
                    self.says(f"{made} is left of {id_}, and named is {named}")
                self.met["leftovers that are named"] += len(made)
            elif made != (list(STEPS) if row.state == JobState.DONE else []):
                self.says(f"{id_} is {row.state}, and there is {made}")
            if (
                StepState.UNDONE in self.states[id_].values()
                and row.state in _UNDONE
                and not row.is_abandoned
            ):
                self.says(f"it is looked for ever for what is left of {id_}")

    def foreign_of(self, things: Mapping[str, str]) -> dict[str, str]:
        return {name: whose for name, whose in things.items() if whose == FOREIGN}

"""Drives jobs: claims those whose time it is, does or undoes their next step, writes down what became of it.

A job's lease is renewed while one of its steps is at work, and the step is cut off where that fails: its call has ended before the lease
has. What it asked for may arrive later all the same (a request on its way, a host that was suspended), which is why steps look first, and
why what was undone is looked for again (janitor.py).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from sqlalchemy import Connection

from config_server.jobs.kinds import Kind, Kinds, Stands, Waits
from config_server.rules.clock import SECOND_NS
from config_server.rules.steps import (
    Do,
    Ended,
    Failure,
    Undo,
    after_failure,
    next_of,
    pause_s,
)
from config_server.store import journal
from config_server.store.database import Database
from config_server.store.journal import Entry, Held, Look
from shared import crashpoints
from shared.api.jobs import Direction, JobState, StepState
from shared.api.route import Failure as Told
from shared.daemon import logging
from shared.errors import (
    DatabaseError,
    DeadlineError,
    JobBugError,
    LostJobError,
    PeerError,
    TransientError,
    UnderstudyError,
)

_log = logging.get()
_T = TypeVar("_T")
LEASE_S: Final = 30.0
_MARGIN_S: Final = 5.0
"""A step's call has ended so long before the lease does."""
_PASSING: Final = (TransientError, PeerError, DeadlineError)
_HINDERED_S: Final = 5.0
_MOST: Final = 32
"""Jobs of one config server at a time."""


class _CutOff(enum.Enum):
    """Why a step came to no end. (What it says itself is its own, whatever class of errors it is.)"""

    TURNED = enum.auto()
    """Its job was turned back."""
    NOT_KEPT = enum.auto()
    """The lease could not be renewed in time."""


class _AtWork:
    """The step of a job that is being done."""

    def __init__(self, until: asyncio.Timeout) -> None:
        self.until = until
        self.is_turned = False

    def turn(self) -> None:
        self.is_turned = True
        if not self.until.expired():
            self.until.reschedule(asyncio.get_running_loop().time())


async def _nothing() -> str:
    return ""


class Runner:
    def __init__(
        self,
        db: Database,
        kinds: Kinds,
        owner: str,
        now_ns: Callable[[], int],
        *,
        lease_s: float = LEASE_S,
        alone: bool = False,
        ended: Callable[[str], None] = lambda _id: None,
        hindrance: Callable[[], Awaitable[str]] = _nothing,
    ) -> None:
        """`owner`: this config server's name. `now_ns`: for what people read. `alone`: no other process has this database, so what is
        leased before the first look is nobody's. `ended` is told the id of each job that has ended here. `hindrance`: why this config
        server may not act now (recovery/generation.py); "": it may."""
        self._hindrance = hindrance
        self._db = db
        self._kinds = kinds
        self._owner = owner
        self._now_ns = now_ns
        self._lease_s = lease_s
        self._alone = alone
        self._ended = ended
        self._driven = set[asyncio.Task[None]]()
        self._doing = dict[str, _AtWork]()
        """By job."""

    @property
    def _lease_ns(self) -> int:
        return int(self._lease_s * SECOND_NS)

    async def look(self) -> None:
        """Takes on what is due, and returns: what was taken on goes on by itself. Steps whose jobs somebody turned back are cut off. Raises
        DatabaseError."""
        if self._alone:
            # Not where the server starts: that would hinder a start with a full disk, and what cannot be freed cannot be claimed either.
            await self._db.run(journal.free_all)
            self._alone = False
        if self._doing:
            for id_ in await self._db.run(lambda db: journal.turned(db, list(self._doing))):
                if (at_work := self._doing.get(id_)) is not None:
                    at_work.turn()
        room = _MOST - len(self._driven)
        if room <= 0:
            return
        due = await self._db.run(lambda db: journal.due(db, self._kinds.known, room))
        if not due or await self._hindrance():
            return
        for id_ in due:
            held = await self._db.run(lambda db, id_=id_: journal.claim(db, id_, self._owner, self._lease_ns))  # type: ignore[misc]
            if held is not None:
                crashpoints.reach("job.after-claim")
                task = asyncio.create_task(self._drive_surely(held), name=f"job {id_}")
                self._driven.add(task)
                task.add_done_callback(self._driven.discard)

    async def tidy(self) -> None:
        """Now and then: what nobody here knows stands still with a word, and what waits by a clock that was wrong goes on. Raises
        DatabaseError."""
        if await self._db.run(lambda db: journal.wake_early(db, self._lease_ns)):
            _log.warning("jobs waited, or were leased, by a clock that was ahead")
        for id_ in await self._db.run(lambda db: journal.park(db, self._kinds.known)):
            _log.warning("a job was begun by a newer version, and is driven by nobody", job=id_)

    async def stop(self) -> None:
        """What is at work is cut off. Its jobs go on wherever their leases end."""
        for task in (tasks := list(self._driven)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Until nothing is driven that was."""
        await asyncio.gather(*self._driven, return_exceptions=True)

    async def _drive_surely(self, held: Held) -> None:
        try:
            await self.drive(held)
        except LostJobError as exc:
            _log.info("a job went to another config server", job=held.id, **exc.as_dict())
        except DatabaseError as exc:
            # Its lease ends, and whoever takes it goes on from what is written.
            _log.warning("a job was let go", job=held.id, **exc.as_dict())
        except Exception as exc:  # noqa: BLE001 - whatever it is, the job does not stand still without a word
            try:
                await self._unthought_of(held, exc, None)
            except (LostJobError, DatabaseError) as again:
                _log.warning("a job was let go", job=held.id, **again.as_dict())

    async def _unthought_of(self, held: Held, exc: Exception, direction: Direction | None) -> bool:
        """A person decides: to take back what was done may be as wrong as to do it again for ever. Whether the job goes on at once:
        `direction`, in which it went, is not its own any more, so somebody has decided already. Raises LostJobError, DatabaseError."""
        _log.error("driving a job failed: this is a bug", job=held.id, exc_info=exc)
        error = JobBugError(
            "A step of a job met what nobody thought of",
            cause=f"an error inside the config server ({type(exc).__name__}: {exc})",
        )

        def work(db: Connection) -> bool:
            job = journal.renew(db, held, self._lease_ns)
            if direction not in (None, job.direction):
                return True
            journal.ask_for_attention(db, held, waits=error.cause, error=_told(error))
            return False

        return await self._db.run(work)

    async def drive(self, held: Held) -> None:
        """Until the job has ended, or waits. Raises LostJobError, DatabaseError."""
        while True:
            look = await self._db.run(lambda db: journal.look(db, held, self._lease_ns))
            try:
                goes_on = await self._next(held, look)
            except (LostJobError, DatabaseError):
                raise
            except Exception as exc:  # noqa: BLE001 - as above
                goes_on = await self._unthought_of(held, exc, look.job.direction)
            if not goes_on:
                return

    async def _next(self, held: Held, look: Look) -> bool:
        """Whether the job goes on at once."""
        kind = self._kinds.of(look.job)
        if look.job.in_doubt:
            await self._doubt(held, kind)
            return True
        states = {name: entry.state for name, entry in look.journal.items()}
        match next_of(kind.names, states, look.job.direction):
            case Ended(direction):
                return not await self._end(held, look, kind, direction)
            case Do(name):
                return await self._step(held, look, kind, name, StepState.BEGUN)
            case Undo(name):
                return await self._step(held, look, kind, name, StepState.UNDOING)

    async def _doubt(self, held: Held, kind: Kind) -> None:
        await self._db.run(lambda db: journal.doubt(db, held, self._lease_ns, kind.names, self._now_ns()))

    async def _step(self, held: Held, look: Look, kind: Kind, name: str, begun: StepState) -> bool:
        """Do or undo it. Whether the job goes on at once."""
        if why := await self._hindrance():
            return await self._db.run(lambda db: self._hinder(db, held, look.job.direction, why))
        before = look.journal.get(name, Entry(state=begun, tries=0))
        entry = Entry(state=begun, tries=before.tries if before.state is begun else 0, result=before.result)
        leased_s = asyncio.get_running_loop().time()
        job = await self._db.run(
            lambda db: journal.put(db, held, self._lease_ns, name, entry, self._now_ns())
        )
        if job.direction is not look.job.direction:
            return True  # cancelled meanwhile; that it was begun is undone with the rest
        crashpoints.reach(f"job.{begun}")
        step = kind.step(name)
        results = {
            each: known.result for each, known in look.journal.items() if known.state is StepState.DONE
        }
        try:
            outcome = await self._while_leased(
                held,
                leased_s,
                lambda: step.do(job, results) if begun is StepState.BEGUN else step.undo(job),
                ends_with_a_turn=begun is StepState.BEGUN,
            )
        except (DatabaseError, LostJobError):
            raise
        except UnderstudyError as exc:
            return await self._failed(held, look, kind, name, entry, exc)
        if outcome is _CutOff.NOT_KEPT:
            raise LostJobError(
                f"Job '{held.id}' could not be kept", cause="its lease was not renewed in time"
            )
        if outcome is _CutOff.TURNED:
            return True  # what it had begun is undone
        crashpoints.reach(f"job.after-{begun}")
        if isinstance(outcome, (Waits, Stands)):
            return await self._db.run(lambda db: self._let_go(db, held, job.direction, outcome, name, entry))
        now_ns = self._now_ns()
        done = (
            Entry(state=StepState.DONE, tries=0, result=outcome)
            if begun is StepState.BEGUN
            else Entry(
                state=StepState.UNDONE, tries=0, undone_ns=now_ns
            )  # by this host's clock: see janitor.py
        )
        await self._db.run(lambda db: journal.put(db, held, self._lease_ns, name, done, now_ns))
        crashpoints.reach("job.after-step")
        return True

    async def _failed(
        self, held: Held, look: Look, kind: Kind, name: str, entry: Entry, exc: UnderstudyError
    ) -> bool:
        tries, direction = entry.tries + 1, look.job.direction
        what = after_failure(
            kind.names,
            {*look.journal, name},
            direction,
            tries=tries,
            may_pass=isinstance(exc, _PASSING),
            fence=kind.fence,
        )
        # What hinders an undoing may be of a later step, and have come late.
        behind = kind.names[kind.names.index(name) + 1 :] if direction is Direction.BACK else []
        again = [
            step for step in behind if step in look.journal and look.journal[step].state is StepState.UNDONE
        ]
        told = _told(exc)
        failed = Entry(state=entry.state, tries=tries, result=entry.result)
        _log.warning(
            "a step of a job failed", job=held.id, step=name, tries=tries, becomes=what.value, **exc.as_dict()
        )

        def work(db: Connection) -> bool:
            job = journal.renew(db, held, self._lease_ns)
            is_said_again = job.args != look.job.args  # it was another one's failure
            left = msgspec.structs.replace(failed, tries=0) if is_said_again else failed
            journal.put(db, held, self._lease_ns, name, left, self._now_ns())
            if job.direction is not direction or is_said_again:
                return True
            for step in again:
                journal.put(
                    db, held, self._lease_ns, step, Entry(state=StepState.UNDOING, tries=0), self._now_ns()
                )
            waits = f"{name}: {exc.what}"
            # Why a job went back stays, whatever hinders that.
            error = job.error if direction is Direction.BACK and job.error is not None else told
            match what:
                case Failure.AGAIN:
                    pause_ns, now_ns = int(pause_s(tries) * SECOND_NS), self._now_ns()
                    journal.pause(db, held, waits=waits, pause_ns=pause_ns, now_ns=now_ns, error=error)
                    return False
                case Failure.BACK:
                    journal.turn(db, held, told)
                    return True
                case Failure.ATTENTION:
                    journal.ask_for_attention(db, held, waits=waits, error=error)
                    return False

        return await self._db.run(work)

    async def _end(self, held: Held, look: Look, kind: Kind, direction: Direction) -> bool:
        """Whether it has: it may have been turned meanwhile, and goes on."""
        undone = JobState.CANCELLED if look.job.cancelled_by else JobState.FAILED
        state = JobState.DONE if direction is Direction.FORWARD else undone
        last = look.journal.get(kind.names[-1]) if direction is Direction.FORWARD else None
        result = last.result if last is not None and isinstance(last.result, dict) else None

        def work(db: Connection) -> bool:
            if journal.renew(db, held, self._lease_ns).direction is not direction:
                return False
            journal.end(db, held, state, result, self._now_ns())
            return True

        if not await self._db.run(work):
            return False
        self._ended(held.id)
        return True

    def _hinder(self, db: Connection, held: Held, direction: Direction, why: str) -> bool:
        """As `_let_go`, before a step is begun."""
        if journal.renew(db, held, self._lease_ns).direction is not direction:
            return True
        pause_ns = int(_HINDERED_S * SECOND_NS)
        journal.pause(db, held, waits=why, pause_ns=pause_ns, now_ns=self._now_ns())
        return False

    def _let_go(
        self,
        db: Connection,
        held: Held,
        direction: Direction,
        outcome: Waits | Stands,
        name: str,
        entry: Entry,
    ) -> bool:
        """False: it waits. True: it was turned meanwhile, and goes on."""
        if journal.renew(db, held, self._lease_ns).direction is not direction:
            return True
        if entry.tries:  # it does not fail any more
            calm = Entry(state=entry.state, tries=0, result=entry.result)
            journal.put(db, held, self._lease_ns, name, calm, self._now_ns())
        match outcome:
            case Waits(why, again_s, progress):
                pause_ns = int(again_s * SECOND_NS)
                now_ns = self._now_ns() if outcome.is_change else None
                journal.pause(db, held, waits=why, pause_ns=pause_ns, now_ns=now_ns, progress=progress)
            case Stands(why, error):
                journal.stand(db, held, waits=why, error=_told(error))
        return False

    async def _while_leased(
        self, held: Held, leased_s: float, begin: Callable[[], Awaitable[_T]], *, ends_with_a_turn: bool
    ) -> _T | _CutOff:
        """`leased_s`: when the lease was renewed, or before. `begin`: the effect, which is not begun at all where the lease is nearly over
        already: what is begun may send something before it can be cut off. Raises what the effect raises."""
        until_s = leased_s + self._lease_s - self._margin_s
        if asyncio.get_running_loop().time() >= until_s:
            return _CutOff.NOT_KEPT
        try:
            async with asyncio.timeout_at(until_s) as until:
                at_work = _AtWork(until)
                if ends_with_a_turn:
                    self._doing[held.id] = at_work
                renewing = asyncio.create_task(self._renew(held, at_work))
                try:
                    return await begin()
                finally:
                    self._doing.pop(held.id, None)
                    renewing.cancel()
                    # Unlike `await renewing` this takes nobody's cancelling for its own.
                    await asyncio.wait([renewing])
        except TimeoutError:
            if not until.expired():
                raise
            return _CutOff.TURNED if at_work.is_turned else _CutOff.NOT_KEPT

    @property
    def _margin_s(self) -> float:
        return min(_MARGIN_S, self._lease_s / 4)

    async def _renew(self, held: Held, at_work: _AtWork) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._lease_s / 3)
            begun_s = clock()
            try:
                await self._db.run(lambda db: journal.renew(db, held, self._lease_ns))
            except LostJobError:
                end_s = clock()
            except DatabaseError:
                continue  # until the lease is nearly over
            else:
                end_s = begun_s + self._lease_s - self._margin_s
            if at_work.is_turned or at_work.until.expired():
                return  # the step is cut off already, and tidies up
            at_work.until.reschedule(end_s)


def _told(exc: UnderstudyError) -> Told:
    return Told(**exc.as_dict(), exit_code=exc.exit_code)

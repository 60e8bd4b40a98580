"""Drives jobs: claims those whose time it is, does or undoes their next step, writes down what became of it.

A job's lease is renewed while one of its steps is at work, and the step is cut off where that fails: its call has ended before the lease
has. What it asked for may arrive later all the same (a request on its way, a host that was suspended), which is why steps look first, and
why what was undone is looked for again (janitor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy import Connection

from config_server.jobs.kinds import Kind, Kinds, Waits
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
from shared import crashpoints, logging
from shared.api.jobs import Direction, JobState, StepState
from shared.api.route import Failure as Told
from shared.errors import (
    DatabaseError,
    DeadlineError,
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
        hindrance: Callable[[], Awaitable[str]] = _nothing,
    ) -> None:
        """`owner`: this config server's name. `now_ns`: for what people read. `hindrance`: why this config server may not act now
        (recovery/generation.py); "": it may."""
        self._hindrance = hindrance
        self._db = db
        self._kinds = kinds
        self._owner = owner
        self._now_ns = now_ns
        self._lease_s = lease_s
        self._driven = set[asyncio.Task[None]]()

    @property
    def _lease_ns(self) -> int:
        return int(self._lease_s * SECOND_NS)

    async def look(self) -> None:
        """Takes on what is due, and returns: what was taken on goes on by itself."""
        room = _MOST - len(self._driven)
        if room <= 0:
            return
        due = await self._db.run(lambda db: journal.due(db, self._kinds, room))
        if not due or await self._hindrance():
            return
        for id_ in due:
            held = await self._db.run(lambda db, id_=id_: journal.claim(db, id_, self._owner, self._lease_ns))  # type: ignore[misc]
            if held is not None:
                crashpoints.reach("job.after-claim")
                task = asyncio.create_task(self._drive_surely(held), name=f"job {id_}")
                self._driven.add(task)
                task.add_done_callback(self._driven.discard)

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
        except Exception as exc:
            _log.error("driving a job failed: this is a bug", job=held.id, exc_info=exc)
            raise

    async def drive(self, held: Held) -> None:
        """Until the job has ended, or waits. Raises LostJobError, DatabaseError."""
        while True:
            look = await self._db.run(lambda db: journal.look(db, held, self._lease_ns))
            kind = self._kinds.of(look.job)
            if look.job.in_doubt:
                await self._doubt(held, kind)
                continue
            states = {name: entry.state for name, entry in look.journal.items()}
            match next_of(kind.names, states, look.job.direction):
                case Ended(direction):
                    await self._end(held, look, kind, direction)
                    return
                case Do(name):
                    goes_on = await self._step(held, look, kind, name, StepState.BEGUN)
                case Undo(name):
                    goes_on = await self._step(held, look, kind, name, StepState.UNDOING)
            if not goes_on:
                return

    async def _doubt(self, held: Held, kind: Kind) -> None:
        await self._db.run(lambda db: journal.doubt(db, held, self._lease_ns, kind.names, self._now_ns()))

    async def _step(self, held: Held, look: Look, kind: Kind, name: str, begun: StepState) -> bool:
        """Do or undo it. Whether the job goes on at once."""
        if why := await self._hindrance():
            return await self._db.run(lambda db: self._pause(db, held, look.job.direction, why, _HINDERED_S))
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
            effect = step.do(job, results) if begun is StepState.BEGUN else step.undo(job)
            outcome = await self._while_leased(held, leased_s, effect)
        except (LostJobError, DatabaseError):
            raise
        except UnderstudyError as exc:
            return await self._failed(held, kind, name, entry, job.direction, exc)
        crashpoints.reach(f"job.after-{begun}")
        if isinstance(outcome, Waits):
            return await self._db.run(
                lambda db: self._pause(
                    db, held, job.direction, outcome.why, outcome.again_s, progress=outcome.progress
                )
            )
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
        self, held: Held, kind: Kind, name: str, entry: Entry, direction: Direction, exc: UnderstudyError
    ) -> bool:
        tries = entry.tries + 1
        what = after_failure(
            kind.names,
            name,
            direction,
            tries=tries,
            may_pass=isinstance(exc, _PASSING),
            fence=kind.fence,
        )
        told = Told(**exc.as_dict(), exit_code=exc.exit_code)
        failed = Entry(state=entry.state, tries=tries, result=entry.result)
        _log.warning(
            "a step of a job failed", job=held.id, step=name, tries=tries, becomes=what.value, **exc.as_dict()
        )

        def work(db: Connection) -> bool:
            job = journal.put(db, held, self._lease_ns, name, failed, self._now_ns())
            if job.direction is not direction:
                return True
            match what:
                case Failure.AGAIN:
                    return self._pause(db, held, direction, f"{name}: {exc.what}", pause_s(tries), error=told)
                case Failure.BACK:
                    journal.turn(db, held, told)
                    return True
                case Failure.ATTENTION:
                    journal.ask_for_attention(db, held, waits=f"{name}: {exc.what}", error=told)
                    return False

        return await self._db.run(work)

    async def _end(self, held: Held, look: Look, kind: Kind, direction: Direction) -> None:
        undone = JobState.CANCELLED if look.job.cancelled_by else JobState.FAILED
        state = JobState.DONE if direction is Direction.FORWARD else undone
        last = look.journal.get(kind.names[-1]) if direction is Direction.FORWARD else None
        result = last.result if last is not None and isinstance(last.result, dict) else None

        def work(db: Connection) -> None:
            if journal.renew(db, held, self._lease_ns).direction is direction:
                journal.end(db, held, state, result, self._now_ns())

        await self._db.run(work)

    def _pause(
        self,
        db: Connection,
        held: Held,
        direction: Direction,
        why: str,
        again_s: float,
        *,
        progress: float | None = None,
        error: Told | None = None,
    ) -> bool:
        """False: it pauses. True: it was turned meanwhile, and goes on."""
        if journal.renew(db, held, self._lease_ns).direction is not direction:
            return True
        journal.pause(
            db,
            held,
            waits=why,
            pause_ns=int(again_s * SECOND_NS),
            now_ns=self._now_ns(),
            progress=progress,
            error=error,
        )
        return False

    async def _while_leased(self, held: Held, leased_s: float, effect: Awaitable[_T]) -> _T:
        """`leased_s`: when the lease was renewed, or before. Raises LostJobError where it could not be renewed again in time, and what
        `effect` raises."""
        try:
            async with asyncio.timeout_at(leased_s + self._lease_s - self._margin_s) as until:
                renewing = asyncio.create_task(self._renew(held, until))
                try:
                    return await effect
                finally:
                    renewing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await renewing
        except TimeoutError as exc:
            if not until.expired():
                raise
            raise LostJobError(
                f"Job '{held.id}' could not be kept", cause="its lease was not renewed in time"
            ) from exc

    @property
    def _margin_s(self) -> float:
        return min(_MARGIN_S, self._lease_s / 4)

    async def _renew(self, held: Held, until: asyncio.Timeout) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._lease_s / 3)
            begun_s = clock()
            try:
                await self._db.run(lambda db: journal.renew(db, held, self._lease_ns))
            except LostJobError:
                until.reschedule(clock())
                return
            except DatabaseError:
                continue  # until the lease is nearly over
            until.reschedule(begun_s + self._lease_s - self._margin_s)

"""The job of a restore: a command does the work, somewhere, straight from storage; the job is how it goes, and what is done when it ends.

    grant    the grant by which the command reads is the job's from here on. It was given with the answer to the request (granting.py),
             before there was a job, and ends by itself where nobody took it. The journal has its id alone: what opens storage is in
             that answer, and nowhere else. (So both steps are begun in the transaction that makes the job: also one that turns back
             before anybody drove it takes its grant back, and waits for its command.)
             Undone: it is taken back, unless another restore of the machine goes forward by it. A grant that several restores name goes
             with the last of them that does not end as done; whoever has done with it gives it back himself.
    watch    until the command says how it ended (store/restores.py)

**Only two take access from a restore: its command, by its word that it has ended, and a person who cancels it.** Nothing is concluded from
silence. On the worst day it is this server that is cut off, or was put back from a backup, and the restore goes on; so after SILENT_S the
job stands still, says what is not known, and goes on with the command's next word. `fence` says the same of any failure.

**A command hears that it was cancelled with the answer to its next report**, a second later, and stops. So the grant is taken back when it
has said so, or did not within HEARS_S: one that is cut off from this server, but not from storage, is refused there, and one of a program
that does not know of this, too. Who reads by an identity of his own, without a grant, cannot be stopped from here: the job's error says
then that it may go on, and a deletion of the machine waits a day for it, as for one that is silent.

Of a database that was put back both steps are looked at again (`doubt`), and neither does anything by that: whether it goes on is the
command's word, or a person's (store/restores.py).

Nothing of a step can come late: to end a grant is one request that is repeated until storage has done it, and a grant's name is never
given again. (`lasting_s` is zero for that.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from config_server.jobs.kinds import Kind, Stands, Waits
from config_server.operations.control import Control
from config_server.operations.granting import Granting
from config_server.operations.restores import note_ended
from config_server.rules.clock import rfc3339
from config_server.rules.facts import SELF
from config_server.rules.silence import Silence
from config_server.store import restores
from config_server.store.database import Connection
from config_server.store.journal import Job
from config_server.store.restores import GRANT, KIND, VERSION, Worker
from shared.errors import JobGivenUpError

SILENT_S: Final = 120.0
"""A command that says nothing for so long may be no more. It reports every second."""
HEARS_S: Final = 10.0
"""So long the grant of a cancelled restore still counts, unless its command says sooner that it has stopped."""
_LOOK_S: Final = 5.0
_SOON_S: Final = 1.0


def kind(control: Control, granting: Granting) -> Kind:
    return Kind(
        name=KIND,
        version=VERSION,
        steps=[_Grant(control, granting), _Watch(control)],
        fence=_Watch.name,
        lasting_s=0.0,
    )


class _Grant:
    name: Final = "grant"

    def __init__(self, control: Control, granting: Granting) -> None:
        self._control = control
        self._granting = granting

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        return {GRANT: job.args[GRANT]} if job.args.get(GRANT) else {}

    async def undo(self, job: Job) -> bool | Waits:
        grant = job.args.get(GRANT)
        if not grant:
            return False
        worker = await self._control.db.run(lambda db: restores.worker(db, job.id))
        return await self._granting.take_back(
            job.machine,
            grant,
            job.cancelled_by or job.who,
            returned=worker.has_ended,
            unless=lambda db: restores.have_grant(db, job.machine, grant, job.id),
        )


class _Watch:
    name: Final = "watch"

    def __init__(self, control: Control) -> None:
        self._control = control
        self._silence = Silence(2 * _LOOK_S)
        self._hears = Silence(2 * _SOON_S)

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        worker = await self._control.db.run(lambda db: restores.worker(db, job.id))
        if worker.has_ended:
            self._silence.forget(job.id)
            return worker.result or {}
        silent_s = self._silence.look(job.id, worker.heard_ns, self._control.mono_ns())
        if silent_s <= SILENT_S:
            return Waits(
                f"the command{_where(job)}, which does it", _LOOK_S, worker.progress, is_change=False
            )
        self._silence.forget(job.id)
        return Stands(
            f"nothing is heard of the command{_where(job)} that runs it; {_last(worker)}",
            _silent(job, worker),
        )

    async def undo(self, job: Job) -> bool | Waits:
        worker = await self._control.db.run(lambda db: restores.worker(db, job.id))
        is_unheard = job.error is not None and job.error.code == JobGivenUpError.code
        if not worker.has_ended and not is_unheard:
            if self._hears.look(job.id, 0, self._control.mono_ns()) <= HEARS_S:
                why = f"the command{_where(job)} to hear that it is cancelled"
                return Waits(why, _SOON_S, worker.progress, is_change=False)
            await self._control.db.run(lambda db: self._give_up(db, job, worker))
        self._silence.forget(job.id)
        self._hears.forget(job.id)
        return False

    def _give_up(self, db: Connection, job: Job, worker: Worker) -> None:
        ends = restores.give_up(db, job.id, _unanswered(job, worker))
        if ends is not None:
            note_ended(db, ends, SELF, self._control.now_ns())


def _where(job: Job) -> str:
    host = job.args.get("host")
    return f" on {host}" if host else ""


def _last(worker: Worker) -> str:
    return (
        f"its last word was at {rfc3339(worker.heard_ns)[:19]}" if worker.heard_ns else "it has said nothing"
    )


def _silent(job: Job, worker: Worker) -> JobGivenUpError:
    return JobGivenUpError(
        f"Nothing is heard of the restore of {job.machine} to {job.args.get('to', '')}",
        cause=f"the command{_where(job)} that runs it has said nothing for two minutes ({_last(worker)}): it has ended, or cannot reach"
        " this config server",
        action="If it runs, it goes on, nothing is taken from it, and the job goes on with its next word. If it does not: the same command,"
        f" run again, continues where it stopped; then cancel this job: understudy job cancel {job.id}.",
    )


def _unanswered(job: Job, worker: Worker) -> JobGivenUpError:
    return JobGivenUpError(
        f"Nobody knows whether the restore of {job.machine} to {job.args.get('to', '')} has stopped",
        cause=f"the command{_where(job)} that runs it did not answer when it was cancelled ({_last(worker)})",
        action="See whether it runs, and end it there (Ctrl-C). Its grant is taken back, so storage refuses it, unless it reads by an"
        " identity of its own.",
    )

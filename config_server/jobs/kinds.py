"""What a kind of job is.

**What a step must be like.** It makes things only under names that follow from the job's id and the step's, and marks them as this job's;
it looks first whether such a thing is there: absent, it is made; ours, it is taken as it is; anybody else's, the step fails. So it can be
done again after a kill at any moment, and its undoing needs nothing that only its own run knew: it looks for the same names, and removes
what bears this job's mark. Undoing what is not there is nothing. A name is never used a second time by another job.

What a step writes into this database begins with `journal.still`, in the same transaction: who stood still, and whose job came to its
end at another server meanwhile, writes nothing. (Elsewhere that cannot be had; there `lasting_s` sees to it, and the janitor.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import Any, Final, Protocol

import msgspec

from config_server.store.database import Connection
from config_server.store.journal import Job
from shared.api.jobs import JobAct
from shared.errors import UnderstudyError


class Waits(msgspec.Struct, frozen=True):
    """The step is not done, and nothing is wrong: it is looked at again later. Nobody has the job meanwhile."""

    why: str
    again_s: float
    progress: float | None = None
    """0…1; None: not known."""
    is_change: bool = True
    """False: others write how it goes, and when it changed last; that somebody looks at it is no change."""


class Stands(msgspec.Struct, frozen=True):
    """The step is not done, and may never be: a person has to say how it goes on, unless what it waits for comes after all and wakes the
    job, or did so since it was claimed. Nothing is undone for that."""

    why: str
    error: UnderstudyError


class Step(Protocol):
    @property
    def name(self) -> str: ...

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any | Waits | Stands:
        """The result (JSON), for later steps and for people. `results`: of the steps before, by name. Raises UnderstudyError."""

    async def undo(self, job: Job) -> bool | Waits | Stands:
        """Nothing of this step is there when it returns, as far as can be seen. Whether something was. Raises UnderstudyError."""


Refused = Mapping[JobAct, UnderstudyError]


def _nothing(_db: Connection, _job: Job) -> Refused:
    return {}


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: int
    """Of the steps: raised when they are others. A job keeps that with which it was begun."""
    steps: Sequence[Step]
    fence: str | None = None
    """From this step on a failure does not undo what was done: a person decides."""
    lasting_s: float
    """The longest that a request of a step may be on its way, and have its effect, after nobody waits for it any more. To that belongs for
    how long a host may have stood still, and then send it: who was suspended does not know that his lease has ended."""
    refused: Callable[[Connection, Job], Refused] = _nothing
    """What nobody can say of such a job as it is now, though one can of others in its state, and why: behind its point of no return,
    that it is cancelled. What people are shown leaves it out, and what somebody says is refused in the transaction that has written it:
    so nothing that a step does comes in between."""
    cancel: Callable[[Job, str], Awaitable[None]] | None = None
    """It is cancelled by that one: for a kind that has to do more for that at once than turn back. It raises where it cannot be."""
    is_told: bool = True
    """That it stands still on its way forward is an event. False: what it sees to has its own."""

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]


class Kinds:
    """Those that this program knows, in each version whose jobs it can still drive."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._known: Final = {(kind.name, kind.version): kind for kind in kinds}

    def of(self, job: Job) -> Kind:
        return self._known[job.kind, job.version]

    def like(self, job: Job) -> Kind | None:
        """For what people say of it. Of another version than this program knows (a newer server has begun it): as of the one that it knows
        of that name."""
        named = (kind for (name, _), kind in self._known.items() if name == job.kind)
        return self._known.get((job.kind, job.version)) or next(named, None)

    @property
    def known(self) -> Set[tuple[str, int]]:
        """Each by its name and version."""
        return self._known.keys()

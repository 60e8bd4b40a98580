"""What the handlers share: the parts of the config server, and time."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from config_server.identity.ca import CertificateAuthority
from config_server.operations.turns import Turns
from config_server.recovery.generation import Force
from config_server.rules.ca_renewal import Has, Server
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import SELF, Facts, facts_of
from config_server.rules.lasting import Lasting
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence, Seen
from config_server.rules.rpo import StorageProgress
from config_server.rules.stillness import Stillness
from config_server.rules.twins import SILENT_S
from config_server.rules.wishes import Untaken
from config_server.storage.account import Storage
from config_server.storage.owners import Serving
from config_server.store import commands, jobs, replicas
from config_server.store.commands import Bell
from config_server.store.database import Connection, Database
from shared.api.certificates import Revocations, Trust
from shared.api.commands import CommandState, CommandView
from shared.api.points import PointView
from shared.daemon import logging
from shared.errors import CertificateRevokedError, RequestError, UnderstudyError, UnhealthyError
from shared.naming import SAYS, is_name
from shared.status import Problem
from shared.vocabulary import Role, Severity
from shared.waiting import wait_for

_log = logging.get()

REVOCATIONS: Final = "revocations"
"""The bell that is rung when there are others."""
SIDE: Final = "side:"
"""And the name of a machine: when another one bears it from now on."""


class Others(Protocol):
    """Config servers on the same database (replicas.py)."""

    @property
    def id(self) -> str:
        """Of this one."""

    def tell(self, seen: Seen) -> None:
        """It was heard here."""

    def forget(self, role: Role, name: str) -> None:
        """It takes part no more."""

    async def fresh(self) -> None:
        """What they heard is known here, as of some seconds ago."""

    def problems(self) -> list[Problem]:
        """What is wrong with them."""

    def more_problems(self) -> list[Problem]:
        """What they alone have seen."""

    def hindered(self, deletion: str) -> UnhealthyError | None:
        """Why it waits, as one of them says who sees to it."""

    def there(self) -> Sequence[str]:
        """The ids of those that write, as this one sees it, and its own."""

    async def have(self) -> Sequence[Server]:
        """What each of them that is there has of the CA: as it is now, also of one that has just come. Raises DatabaseError."""


@dataclass
class Control:
    db: Database
    ca: CertificateAuthority
    storage: Storage
    certificate_life: dt.timedelta
    revoked: Revocations = field(default_factory=Revocations)
    """As the database has them."""
    presence: Presence = field(default_factory=Presence)
    bell: Bell = field(default_factory=Bell)
    """Rung with ROLE:NAME when there is a command for it, or it shall do something else from now on; with a command's id when its result is
    there."""

    progress: StorageProgress = field(default_factory=StorageProgress)
    lasting: Lasting = field(default_factory=Lasting)
    lasting_saved_ns: int = 0
    """When it was written down last (monotonic)."""
    job_heard: jobs.Heard = field(default_factory=dict)
    """Running jobs of version 0 → when it was seen that their workers were heard."""

    untaken: Untaken = field(default_factory=lambda: Untaken(SILENT_S))
    """Agents that were told of a wish and do not go by it yet, or are told nothing of it."""

    hindered: dict[str, UnhealthyError] = field(default_factory=dict)
    """By deletion of a machine: why it is not done."""

    force: Force = field(init=False)
    """Whether this server is the one in force. Unless told otherwise, it is alone."""
    serving: Serving = field(init=False)
    troubles: dict[str, UnderstudyError] = field(default_factory=dict)
    """What else is wrong with this server itself: by the part of it that said so last."""

    watched: list[Callable[[], UnderstudyError | None]] = field(default_factory=list)
    """Parts that say themselves what is wrong with them now."""

    trust: Trust | None = None
    """What daemons are told of whom to trust. None: whether this server's files are as they are to be is not known."""

    has: Has = field(default_factory=Has)
    """What this server has of the CA, and presents (ca_following.py)."""

    refuses_renewed: bool = False
    """The CA by which daemons have certificates is none of those that it trusts: it was away when that was made."""

    elsewhere: str = ""
    """Where the config server is that has superseded this one (pointing.py); "": it has not been, or that is not known."""

    kept_ns: Callable[[], int] | None = None
    """Of when the control state in storage is (monotonic); None: there is none."""

    others: Others | None = None
    """None: this server is alone, as with SQLite."""

    stillness: Stillness = field(default_factory=Stillness)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.serving = Serving(self.storage)
        self.force = Force(self.db, None, "")
        self.turns = Turns(self.db, lambda: self.others)

    def holds(self, db: Connection, what: str, for_s: float) -> bool:
        """Whether this server does what one alone may do, from now on for so long. First in the transaction that does it."""
        return self.others is None or replicas.hold(db, what, self.others.id, int(for_s * SECOND_NS))

    async def is_its(self, what: str, for_s: float) -> bool:
        """The same, of what is harmless where another one does it, too. Raises DatabaseError."""
        return self.others is None or await self.db.run(lambda db: self.holds(db, what, for_s))

    async def wait_for_result(self, command: str, wait_s: float) -> CommandView:
        """The command, when it pends no more, or at the end of the wait. A bell may be rung in vain: when another server is gone nobody
        knows what that one had rung. Raises CommandNotFoundError, DatabaseError."""
        ends_ns = self.mono_ns() + int(wait_s * SECOND_NS)
        while True:
            rung = self.bell.listen(command)
            view = await self.db.run(lambda db: commands.get(db, command))
            left_s = (ends_ns - self.mono_ns()) / SECOND_NS
            if view.state is not CommandState.PENDING or left_s <= 0 or self.bell.is_closed:
                return view
            await wait_for(rung, left_s)

    def forget(self, role: Role, name: str) -> None:
        """A daemon takes part no more."""
        self.presence.forget(role, name)
        if self.others is not None:
            self.others.forget(role, name)

    def hinders(self, deletion: str) -> UnhealthyError | None:
        """Why a deletion waits, by its id."""
        found = self.hindered.get(deletion)
        return found or (self.others.hindered(deletion) if self.others is not None else None)

    def note(self, part: str, error: UnderstudyError | None) -> None:
        """Something of this server's own fails, or works again. Each change is a line in the log."""
        before = self.troubles.pop(part, None)
        if error is not None:
            self.troubles[part] = error
            if before is None or (before.code, before.cause) != (error.code, error.cause):
                _log.error(f"{part}: trouble", **error.as_dict())
        elif before is not None:
            _log.info(f"{part}: trouble is over")

    def own_problems(self) -> list[Problem]:
        """What is wrong with the config servers. It is also shown of each machine: while the database fails no event can tell."""
        theirs = self.others.problems() if self.others is not None else ()
        return [
            *{(problem.code, problem.key): problem for problem in (*theirs, *self.its_problems())}.values()
        ]

    def its_problems(self) -> list[Problem]:
        """What is wrong with this server itself."""
        said = (self.db.trouble, *self.troubles.values(), *(part() for part in self.watched))
        found = {error.code: error for error in said if error}
        problems = [Problem(**error.as_dict(), object=SELF) for error in found.values()]
        if (lost := logging.problem()) is not None:
            problems.append(Problem(**lost.as_dict(), severity=Severity.WARNING, object=SELF))
        return problems

    def now_ns(self) -> int:
        """The time of day: for what people read, and what outlives this process."""
        return time.time_ns()

    def mono_ns(self) -> int:
        """For all that has passed since: it never jumps."""
        return time.monotonic_ns()

    def refuse_revoked(self, serial: int, name: str, begins_s: int) -> None:
        """Raises CertificateRevokedError."""
        if self.revoked.covers(serial, name, begins_s):
            raise CertificateRevokedError(f"The certificate of {name} was refused")

    def facts(self, machine: Machine, last_point: PointView | None) -> Facts:
        """What is known of the machine now."""
        mono_ns, name = self.mono_ns(), machine.name
        found = facts_of(self.presence, name, mono_ns, last_point, self.serving.owner(name))
        order = [*found.others, found.stream] if found.stream is not None else []
        return msgspec.structs.replace(
            found,
            rpo=self.progress.rpo(name, found, mono_ns, self.now_ns()),
            own=tuple(self.own_problems()),
            disagree=self.serving.look(name, order, found.agent, mono_ns),
            lasting=self.lasting.look(machine, found, mono_ns),
            untaken=self.untaken.of(name),
            hindered=self.hinders(machine.deletion.id) if machine.deletion is not None else None,
            withheld_ns=self.untaken.withheld_ns(name),
        )


def check_name(name: str, what: str) -> str:
    """`name`, when it can name a machine or a daemon: it becomes part of blob names, paths and
    certificates."""
    if not is_name(name):
        raise RequestError(
            f"'{name}' cannot be the name of a {what}",
            cause=SAYS,
        )
    return name


def new_id() -> str:
    return secrets.token_hex(8)

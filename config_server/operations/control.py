"""What the handlers share: the parts of the config server, and time."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from config_server.identity.ca import CertificateAuthority
from config_server.recovery.generation import Force
from config_server.rules.facts import SELF, Facts, facts_of
from config_server.rules.lasting import Lasting
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence
from config_server.rules.rpo import StorageProgress
from config_server.rules.twins import SILENT_S
from config_server.rules.wishes import Untaken
from config_server.storage.account import Storage
from config_server.storage.owners import Serving
from config_server.store.commands import Bell
from config_server.store.database import Database
from shared import logging
from shared.api.certificates import Revocations
from shared.api.points import PointView
from shared.errors import CertificateRevokedError, RequestError, UnderstudyError, UnhealthyError
from shared.naming import SAYS, is_name
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()


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
    job_heard_ns: dict[str, int] = field(default_factory=dict)
    """Running jobs → when their workers were heard (monotonic)."""

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

    def __post_init__(self) -> None:
        self.serving = Serving(self.storage)
        self.force = Force(self.db, None, "")

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
        """What is wrong with this server itself. It is also shown of each machine: while the database fails no event can tell."""
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
            hindered=self.hindered.get(machine.deletion.id) if machine.deletion is not None else None,
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

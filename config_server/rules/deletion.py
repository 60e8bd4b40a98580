"""When a machine that somebody wants deleted may be: what has to be so, judged from what this database, its daemons and storage say.
Pure.

The *delay* is time in which it could be taken back, so it is time in which this server ran: counted by the monotonic clock, in small
steps, and kept with the machine. No clock that is set, on this host or another, makes it shorter; a server that is off makes it longer.
The date that people are shown follows from what is left of it.

Which one stands is noted in the container, too. A database that is set back with its whole host, which nobody notices, may have one that
was taken back since, or said again: that is none.

A deletion counts in the incarnation of the database in which it was asked for, together with the act to stop that was made with it.
Behind a restore it may have been taken back, or done, in the time that the backup lacks; and an act that is later than that stop (an
agent brought it, or the machine stands on other hardware) says that somebody wanted otherwise. Then a person has to say it again.

It is of the container that was the machine's when it was asked for, in that storage account, and of the hardware. Another container or
another machine under the name, as which an agent counts that was enrolled anew, is none that anybody wanted deleted.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from config_server.rules.presence import Seen
from config_server.rules.wishes import in_words
from shared.desired import Verb, Wish
from shared.errors import (
    DeletionHinderedError,
    DeletionOfAnotherError,
    DeletionUnconfirmedError,
    UnhealthyError,
)
from shared.machine.active_side import shown
from shared.status import AgentReport, StreamReport

QUIET_S: Final = 900.0
"""A log that was written so lately is that of a machine which replicates: it lists something every minute, over a slow line every ten."""

GIVEN_UP_S: Final = 86_400.0
"""So long a job that was given up hinders a deletion: whoever runs it may only be cut off from this server."""


class Stage(enum.StrEnum):
    """How far a deletion has come. Each step is written down before it is done."""

    WAITING = "waiting"
    """Its delay runs, or something hinders it."""
    CLOSING = "closing"
    """The certificates of its agent are being revoked, ..."""
    CLOSED = "closed"
    """... and are: nobody takes up the machine any more."""
    REMOVING = "removing"
    """Storage is asked to delete its container. It cannot be taken back."""
    GONE = "gone"
    """It did. A container of this name that is there later was brought back, and is none that anybody wants deleted."""


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """Of a machine (column `deletion`, as JSON)."""

    id: str
    """Random: one that was taken back and asked for again is another one."""
    incarnation: str
    """Of the database, when it was asked for."""
    who: str
    asked_ns: int
    """For people only, as is `counted_ns`: times of day."""
    after_ns: int
    """The delay."""
    passed_ns: int = 0
    """How much of it this server has counted."""
    counted_ns: int
    """When it did so last."""
    act: str
    """Of the wish to stop that was made with it."""
    place: str = ""
    """Account and vault container of which it was asked; empty: an earlier version kept none, nor noted anything in the container. Whether
    such a one was taken back or done since, nothing tells, so it has to be said again."""
    container: str
    """Which was the machine's; empty: storage held nothing of it."""
    identity: str
    """Of the hardware that was the machine, by storage; empty where none was named."""
    points: int | None = 0
    """How many were lost with it, for the record; None: they could not be listed."""
    stage: Stage = Stage.WAITING
    is_enrolled: bool = False
    """An agent was enrolled under the name since it was asked for."""
    given_up: dict[str, int] = {}
    """Jobs of the machine that were given up → for how long (ns) this has counted since, as the delay is."""

    @property
    def is_due(self) -> bool:
        return self.passed_ns >= self.after_ns

    @property
    def due_ns(self) -> int:
        """When it is due, if this server runs until then; when it was."""
        return self.counted_ns + max(0, self.after_ns - self.passed_ns)

    @property
    def is_past_recall(self) -> bool:
        """Whether storage was asked to delete its container."""
        return self.stage in (Stage.REMOVING, Stage.GONE)

    @property
    def is_closed(self) -> bool:
        """Whether its agent's certificates were, or may have been, revoked for it."""
        return self.stage is not Stage.WAITING


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What storage has of a machine that is to be deleted (removal.py)."""

    named: str
    """The container that is the machine's by the registry, or by the metadata of the containers where that has no entry; empty: none is."""
    metadata: dict[str, str] | None = None
    """Of the container that is to be deleted. None: it is not there. All that follows is of that one."""
    vault: str
    noted: str = ""
    """Which deletion of it stands, by the last word that was said; empty: none."""
    changed: dt.datetime | None = None
    """When it was made, or its metadata or policies were changed last."""
    identity: str = ""
    """The machine's active side; empty where none is named."""
    date: dt.datetime | None = None
    """Storage's clock."""
    written: dt.datetime | None = None
    """When something was listed in its log last."""
    granted: str = ""
    """A policy by which somebody may read it now."""


def of_acts(name: str, deletion: Deletion, wish: Wish | None, incarnation: str) -> UnhealthyError | None:
    """What hinders it, due or not: somebody has said something else since, or may have. Its delay does not run meanwhile. Was storage
    asked to delete the container, that counts only when it is known that it did not."""
    if deletion.incarnation != incarnation:
        return _unconfirmed(
            name,
            "this config server's database was put back from a backup since then, and it may have been taken back meanwhile",
        )
    if deletion.is_past_recall:
        return None
    if wish is None or wish.verb is not Verb.STOP or wish.mark.act != deletion.act:
        return _unconfirmed(name, f"something else is wanted of it since: {in_words(wish)}")
    if deletion.is_enrolled:
        return _another(name, "an agent was enrolled anew under its name since that was said")
    return None


def of_place(name: str, deletion: Deletion, place: str) -> UnhealthyError | None:
    """What hinders it: it was asked of another storage account. What this one lacks, nobody has deleted."""
    if deletion.place in ("", place):
        return None
    return _another(
        name, f"it was said of {deletion.place}, and this config server's storage is {place or 'none'} now"
    )


def is_too_early(daemons: Iterable[Seen], now_ns: int) -> bool:
    """Whether somebody is not heard of who may be there: this server has just started, or stood still. `now_ns` is monotonic."""
    return any(seen.is_silent(now_ns) and not seen.is_missing(now_ns) for seen in daemons)


def of_daemons(
    name: str,
    deletion: Deletion,
    agent: tuple[Seen, AgentReport] | None,
    streams: Iterable[tuple[Seen, StreamReport]],
    now_ns: int,
) -> UnhealthyError | None:
    """What hinders one that is due: the machine replicates, or its agent is there and does not know that it is to stop. Of an agent that is
    silent nothing is known, and that is how it is with machines that are no more."""
    for seen, stream in streams:
        if stream.connected and not seen.is_silent(now_ns):
            return hindered(name, f"{seen.source} has a session with its agent")
    if agent is None or agent[0].is_silent(now_ns):
        return None
    report = agent[1]
    if report.connected:
        return hindered(name, "its agent says that it has a session with a process server")
    if captured := [disk.name for disk in report.disks if disk.mode]:
        return hindered(name, f"its agent captures {', '.join(captured[:8])}")
    if report.wish is None or report.wish.mark.act != deletion.act:
        return hindered(name, "its agent reports, and has not heard that it is to stop")
    return None


def of_running(name: str, running: Sequence[str]) -> UnhealthyError | None:
    """`running`: what this database knows to go on (deletions.running)."""
    return hindered(name, running[0]) if running else None


def of_storage(name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
    """What hinders one that is due: what lies there is not what it was asked for, or is in use."""
    if found.named not in ("", deletion.container):
        return _another(name, f"its container is {found.named} now, and was {deletion.container or 'none'}")
    if found.metadata is None:
        return None
    for key, expected in (("machine", name), ("vault", found.vault)):
        said = found.metadata.get(key)
        if said != expected:
            is_said = f"say {key} {said}" if said is not None else f"do not say which {key} it is of"
            return _another(name, f"the metadata of its container {deletion.container} {is_said}")
    if wrong := of_note(name, deletion, found.noted):
        return wrong
    if found.identity != deletion.identity:
        return _another(name, f"it is {shown(found.identity)} now, and was {shown(deletion.identity)}")
    if found.granted:
        return hindered(name, f"somebody may read it by a grant ({found.granted})")
    date, written = found.date, found.written
    if date is not None and written is not None and date - written < dt.timedelta(seconds=QUIET_S):
        return hindered(name, "something was written into its log in the last quarter of an hour")
    return None


def of_note(name: str, deletion: Deletion, noted: str) -> UnhealthyError | None:
    """`noted`: what its container says."""
    return None if noted == deletion.id else unnoted(name, deletion)


def unnoted(name: str, deletion: Deletion) -> DeletionUnconfirmedError:
    """Its container does not say that it stands."""
    earlier = "" if deletion.place else "an earlier version of this server noted none; or "
    return _unconfirmed(
        name,
        f"its container {deletion.container} does not note it: {earlier}it was taken back or said again, of which this database does not"
        " know; or storage was asked to delete it, and nobody knows what came of that",
    )


def hindered(name: str, cause: str) -> DeletionHinderedError:
    return DeletionHinderedError(
        f"{name} is due to be deleted, and waits",
        cause=cause,
        action=f"It is deleted when that is over. To take it back: understudy machine keep {name}.",
    )


def _unconfirmed(name: str, cause: str) -> DeletionUnconfirmedError:
    return DeletionUnconfirmedError(
        f"{name} was to be deleted, and waits for somebody to say it again",
        cause=cause,
        action=f"Say it again: understudy machine delete {name}; or that it stays: understudy machine keep {name}.",
    )


def _another(name: str, cause: str) -> DeletionOfAnotherError:
    return DeletionOfAnotherError(
        f"{name} was to be deleted, and is not the machine any more of which that was said",
        cause=cause,
        action=f"Is what bears the name now to go, say it again: understudy machine delete {name}; else: understudy machine keep {name}.",
    )

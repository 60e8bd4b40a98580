"""What is done to the database of a backup before it is put in place: it is older than what the world knows.

An operator's token may have been ended since; so they all end, but for the first operator's, which is a file of the backup.
An enrolment token that it calls unused may have been used since, and lie in a file or a log: whoever finds it would get a certificate of
his own. A command that it calls pending may have been done, and would be done again. So both end, with an entry in the audit log for each.
A machine that was to be deleted may be kept since: a deletion of another incarnation waits for a person (deletion.py), and so does a job
that had not ended (journal.py); a restore among them goes on by itself when its command is heard (restores.py). What it wants of machines
may be older than what their agents go by: a new incarnation begins, by which the two are told apart (wishes.py). One event says from when
the database is, and a mark stays until revocations were compared with storage (revoking.py): what is done while it is there is later than
all that the backup lacks, whatever the clocks of the two hosts say (taking_in.py). For how long something was not well then says nothing of
now. The rest is made again by those who know it: revocations and readmissions from storage, grants (granting.py), reports and sides. The
server takes over when it begins, whichever was in force (rules/force.py).
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from config_server.rules.clock import rfc3339
from config_server.rules.facts import SELF
from config_server.store import (
    audit,
    commands,
    deletions,
    events,
    force,
    incarnations,
    inventory,
    journal,
    lasting_record,
    operators,
    restores,
    schema,
    settings,
    tokens,
)
from shared.api.events import EventKind
from shared.errors import JobGivenUpError
from shared.status import Problem
from shared.vocabulary import Severity

_MARK: Final = "restored"
"""The setting with the mark: its id, and its number."""
_NEWEST: Final = [
    select(func.max(time))
    for time in (
        schema.audit.c.time_ns,
        schema.reports.c.received_ns,
        schema.events.c.last_ns,
        schema.operators.c.created_ns,
    )
]
"""Each change leaves an entry in the audit log, and each daemon that is there a report every few seconds."""
_LAST: Final = select(func.coalesce(func.max(schema.certificates.c.rowid), 0))
_UNHEARD: Final = JobGivenUpError(
    "Nothing is heard of a restore that this database calls unended",
    cause="the database was put back from a backup: whether its command runs, or has ended since, is not known",
    action="If it runs, it goes on, and so does the job with its next word. If it does not, cancel the job.",
)
_ALL: Final = 1 << 62
"""As the number of the newest certificate: none counts as issued here since."""


class Mark(NamedTuple):
    """Of a database that was put back, and does not know yet what was revoked since the backup."""

    id: str
    """Drawn anew by each restore. Whatever is said of a name bears it, here and in storage."""
    last: int
    """The number (rowid) of the newest certificate that the backup knows; behind it are those that were issued or shown here since."""


class Restored(NamedTuple):
    newest_ns: int
    """Of its newest entry: what was done since is missing."""
    tokens: int
    """Void now."""
    commands: int
    """Withdrawn now."""
    deletions: int
    """Of machines: they wait until somebody says them again (deletion.py)."""
    jobs: int
    """That had not ended: they need attention."""
    operator_tokens: int
    """Ended now."""


def prepare(db: Connection, now_ns: int, recovered_from: str = "", over: int | None = None) -> Restored:
    """Ends what must end, and leaves the event and the mark; the server takes over when it begins. `recovered_from`: which state in storage
    the database is of, if it is of one; `over`: over which generation it takes over (rules/force.py). In the transaction of the caller."""
    newest_ns = max(db.scalar(newest) or 0 for newest in _NEWEST)
    void = tokens.make_void(db)
    ended = operators.end_all(db)
    for name, id_ in ended:
        detail = {"id": id_, "cause": "the database was restored"}
        audit.add(db, SELF, "operator.token.end", name, detail, now_ns)
    for role, name in void:
        audit.add(db, SELF, "token.void", f"{role}:{name}", {"cause": "the database was restored"}, now_ns)
    withdrawn = commands.withdraw_all(db, now_ns)
    for id_, target, kind in withdrawn:
        detail = {"command": id_, "kind": kind, "cause": "the database was restored"}
        audit.add(db, SELF, "command.withdrawn", target, detail, now_ns)
    waiting = deletions.all_(db)
    held = journal.hold_unended(db, "the database was put back: whether it went on since is not known")
    restores.doubt(db, _UNHEARD)
    for id_ in held:
        audit.add(db, SELF, "job.held", SELF, {"job": id_, "cause": "the database was restored"}, now_ns)
    restored = Restored(newest_ns, len(void), len(withdrawn), len(waiting), len(held), len(ended))
    inventory.forget_unheard(db)
    lasting_record.forget(db)
    force.take_over(db, recovered_from, over)
    detail = {
        "newest": rfc3339(restored.newest_ns),
        "incarnation": incarnations.begin(db),
        "deletions": " ".join(machine.name for machine, _ in waiting),
    }
    audit.add(db, SELF, "database.restored", SELF, detail, now_ns)
    events.note(db, EventKind.RESTORED, SELF, _happened(restored), now_ns)
    settings.put(db, _MARK, f"{secrets.token_hex(8)} {db.scalar(_LAST)}")
    return restored


def mark(db: Connection) -> Mark | None:
    """None where storage has told what was revoked since the backup, or nothing was put back."""
    value = settings.get(db, _MARK)
    if value is None:
        return None
    id_, _, last = value.partition(" ")
    return Mark(id_, int(last or _ALL))  # an earlier version's has no number


def forget(db: Connection) -> None:
    """The mark: storage has told what was revoked since the backup, and the database has it."""
    settings.forget(db, _MARK)


def _happened(restored: Restored) -> Problem:
    return Problem(
        code="",
        what=f"This config server's database is from a backup: its newest entry is of {rfc3339(restored.newest_ns)}",
        cause="what was done since is missing: policies that were set, certificates that were issued, and the audit log. Protection that"
        " was asked for or ended comes back from the agents, with an event for each. Revocations come back from storage, if it has them."
        f" Of what it had, {restored.tokens} unused enrolment tokens are void, {restored.operator_tokens} of"
        f" operators have ended, {restored.commands} pending commands withdrawn;"
        f" {restored.deletions} machines that were to be deleted wait for somebody to say it again, and {restored.jobs} jobs for somebody"
        " to say how they go on",
        action="Compare: understudy machine list, event list --open (it names machines that replicate and are not protected here),"
        " certificate list. Make new tokens for whoever was to enrol, and for operators.",
        severity=Severity.WARNING,
        object=SELF,
    )

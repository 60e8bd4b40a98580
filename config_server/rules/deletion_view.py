"""A machine that is to be deleted, as people see it: when, why not yet, and what stays. Pure."""

from __future__ import annotations

from typing import Final

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.deletion import Deletion, Stage
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence
from shared.api.machines import DeletionView
from shared.errors import DeletionOfAnotherError, DeletionUnconfirmedError, UnhealthyError
from shared.status import MasterTargetReport

_MINUTE: Final = 16
"""So much of a time says it to the minute."""


def shown(machine: Machine, hindered: UnhealthyError | None) -> DeletionView | None:
    deletion = machine.deletion
    if deletion is None:
        return None
    return DeletionView(
        machine=machine.name,
        container=deletion.container,
        identity=deletion.identity,
        points=deletion.points or 0,
        unknown="" if deletion.points is not None else "they could not be listed when it was asked for",
        due=None
        if isinstance(hindered, DeletionUnconfirmedError | DeletionOfAnotherError)
        else rfc3339(deletion.due_ns),
        after_s=deletion.after_ns / SECOND_NS,
        is_due=deletion.is_due,
        asked=rfc3339(deletion.asked_ns),
        who=deletion.who,
        stage=deletion.stage,
        waits=hindered.cause if hindered is not None else "",
    )


def when(deletion: Deletion, hindered: UnhealthyError | None) -> str:
    if isinstance(hindered, DeletionUnconfirmedError | DeletionOfAnotherError):
        return f"it was to be deleted, and waits for somebody to say it again: {hindered.cause}"
    if deletion.stage is Stage.REMOVING:
        return "it is being deleted"
    if deletion.is_due:
        refused = "; its agent's certificates are revoked" if deletion.stage is Stage.CLOSED else ""
        why = f", and waits: {hindered.cause}" if hindered is not None else ""
        return f"it is due to be deleted since {day(deletion)}{refused}{why}"
    return f"it is to be deleted on {day(deletion)} (as {deletion.who} asked)"


def day(deletion: Deletion) -> str:
    return f"{rfc3339(deletion.due_ns)[:_MINUTE].replace('T', ' ')} UTC"


def what_stays(presence: Presence, name: str) -> list[str]:
    """What is not in storage, a line each. Whoever has the machine knows where it is; the others are those that report."""
    found = [
        "on the machine: the agent and its folder (docs/install.md, Removing it)",
        *(
            f"on {seen.source}: the machine's folder in its spool, until it hears of this"
            for seen, _ in presence.streams(name)
        ),
    ]
    for seen, _ in presence.applies(name):
        if isinstance(seen.report, MasterTargetReport) and seen.report.target == "image":
            found.append(f"on {seen.source}: the machine's disk images")
    return found


def older(container: str) -> str:
    """Of another container whose metadata name the machine."""
    return f"in storage: container {container}, which says that it is of a machine of this name, too. Who bears the name next takes it up"


def plain(deletion: Deletion) -> dict[str, object]:
    """What the audit log says of it."""
    return {
        "deletion": deletion.id,
        "act": deletion.act,
        "place": deletion.place,
        "container": deletion.container,
        "identity": deletion.identity,
        "points": deletion.points,
        "who": deletion.who,
        "asked": rfc3339(deletion.asked_ns),
        "after_s": deletion.after_ns / SECOND_NS,
        "stage": deletion.stage,
    }

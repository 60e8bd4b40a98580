"""Which health is right, when nobody complains: work that a protected machine needs, and that is not done. Pure.

What a daemon says of itself counts at once, and so does its silence (wrong.py). Here is what nobody says: that somebody never came, that a
daemon reports and does not do its part, that nothing moves. Each is a condition. It is a problem when it has lasted, which lasting.py
measures, so that a restart of a daemon, a machine that was just protected, and the seconds in which two daemons tell different things
are none.

The agent is heard, process server and master target do their part; the machine's state is then

    ordered                normal   critical after 15 min in which storage got nothing: no newer ordered state, nor more of what is to be
                                    copied yet (US615); RPO over the policy's threshold: warning (US472)
    initial-replication,   normal   critical after 15 min in which storage got nothing of what is to be copied, or after 24 h in which
    catching-up, resync             it got no more than in epochs before (the best of them does not count), or than four times all (US615)
    bitmap                 warning, by the agent's own word; critical as above while something is to be copied
    any other word         normal   critical after 5 min (US609). An agent that says of itself what ails it is as bad as it says; of one
                                    that goes by what is wanted and captures nothing it is said at once (US616)
    to-be-deleted          normal; a warning while that waits for something (US630 to US633)
    unprotected            normal; a warning if it replicates all the same (US601), and then all of this counts. Of one that was stopped
                                    its agent is waited for, see below
    not-connected          normal   critical after 15 min (US609)
    disconnected           critical (US471); normal for 15 s after a start of this server, or a gap of its own
    unknown                critical (US551)

and where it is with its daemons as it should be, of each hop's daemon it has

                    no report                      one that is silent   one of another epoch
    agent           as not-connected               US471, critical      as the process server's
    process server  US609 after 5 min: critical,   US471, a warning;    US609 after 5 min, as where there is none
                    a warning if the agent says    critical after 60 s
                    that it has a session
    master target   US613 after 5 min, critical    as a process server  US615 after 15 min, critical: it does not move

A report that is fresh and fits is `normal` if work goes on: critical after 15 min in which nothing was uploaded though batches wait, or
nothing applied though it is uploaded (US615); a warning if apply was half an hour behind or more for 5 min (US614). A session that the
agent says it has not is critical after 5 min (US609), and so is an agent that does not capture a disk that shall be
protected, however many others it captures (US609). A master target that says it does not follow the machine is as if it had not
reported of it.

Where an agent does not go by what is wanted, that is a warning after 30 s in which it was told (US610), or in which nobody knew whether it
is the machine's (US644); and after 5 min, whatever it is told, or not told (US644). So it is when it says that it goes by it, and
captures what shall not be, say after a stop (US610). It is critical as soon as what follows from it would be: a machine that is not at
work, or a disk that is left out. One that is wanted by its path alone, which its agent does not name, counts as left out then: nobody
knows which it is.

What somebody gives a cause for is not said once more: while an agent or server names an error of the machine or of itself, or is missed,
the time of what may follow from that stands still. Health is critical then anyway. But it is never set back by that, and what was a
problem by then stays one. An error of a disk that is not captured, say since it is away, is no cause of what stands with the others; and
of work that stands a cause is believed for four hours (EXCUSED_S), since an error that lasts for days may have nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from config_server.rules import sights, wish_view
from config_server.rules.facts import Facts
from config_server.rules.sights import At, Excused, Look, Sight
from shared.errors import (
    ApplyBehindError,
    NoProgressError,
    NotFollowedError,
    NotReplicatedError,
    UnhealthyError,
)
from shared.status import Problem
from shared.vocabulary import MachineState, Severity

MISSED_S: Final = 300.0
"""A daemon that does not do its part, ..."""
COMES_S: Final = 900.0
"""... an agent that was never there, and ..."""
STANDS_S: Final = 900.0
"""... work of which nothing gets done: Site Recovery counts the progress of a copy over 15 minutes, too; ..."""
IN_VAIN_S: Final = 86_400.0
"""... and work that goes on, and comes to nothing."""


EXCUSED_S: Final = 4 * 3600.0
"""So long, in all, an error is believed to be why work stands. Most outages of storage are over by then."""

NOT_AT_WORK: Final = "not-at-work"
DISKS_LEFT_OUT: Final = "disks-left-out"
UNDONE: Final = "undone"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    hop: str
    """Of the data path (view.py), whose daemon does not do its part."""
    after_s: float
    """So long it may last."""
    at: Callable[[Look, bool], At | Excused | Sight]
    """Of a look, and whether it is a problem by now."""
    moved: Callable[[At, At], tuple[bool, At]] = lambda _before, now: (False, now)
    """Whether the work went on between two looks: then it begins anew; and what the next look is compared with."""
    error: Callable[[Look], UnhealthyError]
    """The same words at each look: events follow them."""
    severity: Callable[[Look], Severity] = lambda _look: Severity.ERROR
    key: str = ""

    def problem(self, look: Look) -> Problem:
        error = self.error(look)
        return Problem(**error.as_dict(), severity=self.severity(look), object=look.name, key=self.key)


def _said_not_to_work(look: Look) -> UnhealthyError:
    word = look.agent.state if look.agent is not None else ""
    return NotReplicatedError(
        f"{look.name} is protected, and its agent is not at work", cause=f"it says that it is '{word}'"
    )


def _has_no_server(look: Look) -> UnhealthyError:
    what = f"{look.name} is protected, and no process server says that it has it"
    if look.agent is not None and look.agent.connected:
        return NotReplicatedError(
            what,
            cause="its agent says that it has a session, with a process server that does not report that here",
            action="See that its process server reports to this config server (understudy daemon list).",
        )
    return NotReplicatedError(what, cause="none that reports has a session with it in its epoch")


def _has_no_target(look: Look) -> UnhealthyError:
    what = f"No master target follows {look.name}"
    if look.apply is not None:
        return NotFollowedError(what, cause=f"the one that knows it says '{look.apply.state}'")
    if not look.facts.idle:
        return NotFollowedError(what, cause="none has reported to this config server")
    names = ", ".join(seen.name for seen in look.facts.idle[:3])
    more = " and others" if len(look.facts.idle) > 3 else ""
    return NotFollowedError(what, cause=f"those that are known here do not report of it: {names}{more}")


def _no_progress(what: str, cause: str) -> Callable[[Look], UnhealthyError]:
    return lambda look: NoProgressError(what.format(look.name), cause=cause)


def _disks_error(look: Look) -> UnhealthyError:
    return NotReplicatedError(
        f"Not all disks of {look.name} are replicated",
        cause=f"its agent does not capture {', '.join(disk.device for disk in sights.left_out(look)[:3])}, which shall be protected",
        action=f"understudy machine disks {look.name} says why. Or protect the machine without it: understudy machine protect.",
    )


def _copy_error(look: Look) -> UnhealthyError:
    if look.agent is not None and look.agent.state == MachineState.ORDERED:
        return NoProgressError(
            f"Nothing new of {look.name} can be restored",
            cause=f"it is in order, and for more than {STANDS_S / 60:.0f} min nothing of that has come to storage",
        )
    return NoProgressError(
        f"The copy of {look.name} makes no progress",
        cause=f"for more than {STANDS_S / 60:.0f} min nothing of what is to be copied has come to storage",
    )


CONDITIONS: Final = (
    Condition(
        name="never-came",
        hop="capture",
        after_s=COMES_S,
        at=sights.never_came,
        error=lambda look: NotReplicatedError(
            f"{look.name} is protected, and its agent has never come",
            cause="no agent has ever reported to this config server under this name",
            action="Install its agent, enrol it under this name and start it; or end the protection: understudy machine unprotect NAME.",
        ),
    ),
    Condition(
        name=NOT_AT_WORK, hop="capture", after_s=MISSED_S, at=sights.not_at_work, error=_said_not_to_work
    ),
    Condition(
        name=DISKS_LEFT_OUT,
        hop="capture",
        after_s=MISSED_S,
        at=sights.disks_left_out,
        error=_disks_error,
        key="disks",
    ),
    Condition(
        name=UNDONE,
        hop="capture",
        after_s=MISSED_S,
        at=sights.undone,
        moved=lambda before, act: (before != act, act),
        error=wish_view.undone,
        severity=lambda _look: Severity.WARNING,
        key="wish",
    ),
    Condition(
        name="without-session",
        hop="stream",
        after_s=MISSED_S,
        at=sights.without_session,
        error=lambda look: NotReplicatedError(
            f"{look.name} is protected, and nothing of it is sent",
            cause="its agent says that it has no session with a process server",
        ),
    ),
    Condition(
        name="without-server",
        hop="stream",
        after_s=MISSED_S,
        at=sights.without_server,
        error=_has_no_server,
        severity=lambda look: Severity.WARNING if look.agent and look.agent.connected else Severity.ERROR,
    ),
    Condition(
        name="not-followed", hop="apply", after_s=MISSED_S, at=sights.not_followed, error=_has_no_target
    ),
    Condition(
        name="apply-behind",
        hop="apply",
        after_s=MISSED_S,
        at=sights.apply_behind,
        error=lambda look: ApplyBehindError(
            f"The seed disks of {look.name} are behind its log",
            cause="what was captured in many minutes is not applied yet; the hop `apply` says in how many",
        ),
        severity=lambda _look: Severity.WARNING,
    ),
    Condition(
        name="copy-stands",
        hop="capture",
        after_s=STANDS_S,
        at=sights.copying,
        moved=sights.went_on,
        error=_copy_error,
        key="copy",
    ),
    Condition(
        name="copy-in-vain",
        hop="capture",
        after_s=IN_VAIN_S,
        at=sights.copying,
        moved=sights.came_nearer,
        error=lambda look: NoProgressError(
            f"The copy of {look.name} does not come to its end",
            cause=f"for {IN_VAIN_S / 3600:.0f} h of work nothing new could be restored, and no more was copied than before: it is begun"
            " anew again and again, or the machine writes as fast as it is copied",
            action="See why its epochs end (understudy event list), or give the copy a faster line or the machine longer hours.",
        ),
        key="in vain",
    ),
    Condition(
        name="upload-stands",
        hop="upload",
        after_s=STANDS_S,
        at=sights.upload_stands,
        moved=sights.more_of_log,
        error=_no_progress(
            "Nothing of {} is uploaded",
            f"batches wait for it in the process server's spool, and none was listed for more than {STANDS_S / 60:.0f} min",
        ),
        key="upload",
    ),
    Condition(
        name="apply-stands",
        hop="apply",
        after_s=STANDS_S,
        at=sights.apply_stands,
        moved=sights.more_of_log,
        error=_no_progress(
            "Nothing of {} is applied",
            f"its log in storage goes on, and its seed disks have stood still for more than {STANDS_S / 60:.0f} min",
        ),
        key="apply",
    ),
)


def lasting_of(facts: Facts) -> Iterator[Condition]:
    return (condition for condition in CONDITIONS if condition.name in facts.lasting)

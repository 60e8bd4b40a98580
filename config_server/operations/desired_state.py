"""What an agent is told to do, with the answer to its report: what is wanted of its machine, once what the agent says of it was judged
(wishes.py).

An act that this database did not know is adopted, with an event and an entry in the audit log that name it. It is the agent's word
about its own machine, and costs nobody else anything: what is adopted, and what is in doubt, leaves entries, so there is not much of
that of one machine.

**Two servers take turns, and say so.** One that was thought to be gone (a backup of it was restored on another host) may be reached by
agents all the same. It does not know the later act of the other, and each tells what it has: by events (US611, and one of the other) both
say that there is another, and a person has to stop one. (That an agent which comes back with a higher number was told so by somebody who
insists was tried: it was a server's rule that had raised it, and where clocks differed it stopped machines.)

**What leaves is said.** An act says of the disks that were known when it was made which shall go; an agent may protect others: the act
was made before it ever reported, or by a database that knew less. These stay, and are added to the act, with an event (US617). So nobody
who acts by what a backup says drops a disk that he did not see. So it is with process servers: an act that names those that this database
knew says nothing of others, to which the agent was moved behind the backup, and it stays with these (US636). An act that is older than the
restore, and of which the agent has not heard, drops nothing (wishes.py).

So nothing is told that could drop some of it to an agent that does not say what it protects (one that fails, and is older, or could not
read that), and nothing begins anew by its word; nor is a path told before the agent has looked which disks there are: what is told is what
was judged (settling.py). When that lasts it is a problem of its own (US610).

**Disks are those of one hardware.** A machine that stands on other hardware since (`machine rebind`, or it was deleted and another bears
its name) begins anew: whether it is to be protected stays, which disks these were does not, since the same paths are other disks there. It
is told that without disks, so that it goes by its own configuration until an operator names them; one that comes back has a wish of its
own, with its disks. An agent with another identity than the one that is known, of which storage does not say that it is the machine (it is
away, or the machine was failed over), hears no opinion. Where no storage is configured, the identity that the database has is the
machine's, and others hear of a stop alone (row_binding.py).

**Who was deleted begins anew, too.** An agent that is enrolled again under the name goes on by the stop that was said with the deletion.
Nobody has said it of the machine that begins: it is told to protect, by its own configuration, with an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.rules.facts import SELF
from config_server.rules.machine import Machine
from config_server.rules.settling import settled
from config_server.rules.wishes import UNHEARD, Adopt, Agree, Tell, in_words, judge, named, once
from config_server.store import audit, deletions, events, incarnations, inventory, policies
from config_server.store.database import Connection
from shared.api.events import EventKind
from shared.desired import Desired, Settings, Verb, WantedDisk, Wish
from shared.errors import DisksKeptError, OtherHardwareError, ServersKeptError, WishInDoubtError
from shared.machine.active_side import shown
from shared.status import Problem
from shared.vocabulary import Severity

PAUSE_NS: Final = 60 * SECOND_NS
"""For so long nothing more is adopted from an agent that has left entries, and it hears no opinion then. An honest one has nothing more
to say: it goes by what it was told."""
_SHOWN: Final = 8
"""So many disks are named in words."""
NOTHING: Final = Offer.of(None)


class Answer(NamedTuple):
    desired: Desired
    left_entries: bool = False
    is_withheld: bool = False
    """Nobody knows that this hardware is the machine: it hears no opinion, whatever is wanted."""
    waits: Wish | None = None
    """What is wanted, and not told: its agent has not said enough for anybody to know what that would drop."""


def answer(
    db: Connection,
    machine: str,
    told: Wish | None,
    now_ns: int,
    *,
    offer: Offer = NOTHING,
    identity: str = "",
    is_the_machine: bool = False,
    has_storage: bool = True,
    may_leave_entries: bool = True,
) -> Answer:
    """`told` is what the machine's agent says that it goes by, `offer` what it says of its disks, `identity` that of its hardware;
    `is_the_machine`: storage says so, too (sides.py); `has_storage`: it could. In the transaction of its report."""
    known = inventory.find(db, machine)
    before = known.wish if known is not None else None
    settings = policies.settings((known.assigned if known is not None else policies.default(db)).policy)
    if known is not None and identity != known.identity:
        if not known.identity:
            if is_the_machine or not has_storage:
                inventory.note_identity(db, machine, identity)
        elif not has_storage and (stop := _stop(db, known, told)) is not None:
            return Answer(_desired(stop, settings))
        elif not is_the_machine or not may_leave_entries:
            return Answer(Desired(), is_withheld=not is_the_machine)
        elif offer.goes_by is None:
            return Answer(Desired(settings=settings), waits=before)
        else:
            after = begin_anew(db, known, identity, told, now_ns, protects=offer.goes_by)
            return Answer(_desired(after.wish, settings), left_entries=True)
    known = settle(db, known, offer, told) if known is not None else None
    own = known.own if known is not None else None
    before = own.wish if own is not None else None
    if (
        own is None
        and told is not None
        and told.verb is Verb.STOP
        and deletions.was_done(db, machine, told.mark)
    ):
        if not may_leave_entries:
            return Answer(Desired(settings=settings))
        inventory.ensure_machine(db, machine, now_ns)
        begun = Wish(mark=told.mark, verb=Verb.PROTECT)
        after = inventory.begin_anew(db, machine, identity, now_ns, begun, [told.mark])
        _note_begun(db, machine, told, after, now_ns)
        return Answer(_desired(after.wish, settings), left_entries=True)
    # What an agent goes by is mostly what is wanted: then no history is needed.
    is_same = before is not None and told is not None and before.mark == told.mark
    match judge(own, told, () if is_same else incarnations.history(db)):
        case Agree():
            if known is not None and (known.dropped or known.moved):
                inventory.heard(db, machine)
            return Answer(_desired(before, settings))
        case Tell(Wish(verb=Verb.OTHER), _) | Adopt(Wish(verb=Verb.OTHER), _):
            # A newer version's: whoever goes by it goes on. The next act is later than it.
            return Answer(Desired(settings=settings))
        case Tell(wish, doubt):
            assert known is not None
            unsaid = _unsaid(known, told, offer, incarnations.history(db)[-1])
            is_unsettled = wish.verb is Verb.PROTECT and offer.is_unsettled(wish.disks)
            if unsaid is None or is_unsettled:
                return Answer(Desired(settings=settings), waits=wish)
            if wish.verb is Verb.PROTECT and len(once((*known.disks, *unsaid))) > inventory.MOST_DISKS:
                return Answer(
                    Desired(settings=settings), _note_too_many(db, machine, wish, unsaid, now_ns), waits=wish
                )
            stays = _unsaid_servers(known, told, incarnations.history(db)[-1])
            if (unsaid or stays is not None) and not may_leave_entries:
                return Answer(Desired(settings=settings))
            if unsaid and wish.verb is Verb.STOP:
                inventory.withdraw(db, machine)
                _note_unheard(db, machine, wish, unsaid, now_ns)
                return Answer(Desired(settings=settings), left_entries=True)
            if unsaid or stays is not None:
                over = told.mark if told is not None else None
                servers = wish.process_servers if stays is None else stays
                more = inventory.keep(db, machine, unsaid, servers, over)
                if unsaid:
                    _note_kept(db, machine, wish, more, unsaid, now_ns, told=told)
                if stays is not None:
                    _note_stays(db, machine, wish, more, now_ns)
                return Answer(_desired(more, settings), left_entries=True)
            is_higher = told is not None and wish.mark.number < told.mark.number
            if told is not None and wish.mark.number <= told.mark.number:
                wish = inventory.renumber(db, machine, wish, told.mark)
            desired = _desired(wish, settings)
            if told is None or not may_leave_entries:
                return Answer(desired)
            if doubt:
                return Answer(desired, _note_doubt(db, machine, wish, told, wish, doubt, now_ns))
            return Answer(desired, is_higher and _note_earlier(db, machine, wish, told, now_ns))
        case Adopt(wish, doubt):
            if not may_leave_entries:
                return Answer(Desired(settings=settings))
            inventory.adopt(db, machine, wish, now_ns)
            detail = {"before": _plain(before), "after": _plain(wish), "doubt": doubt}
            audit.add(db, SELF, "machine.wish.adopted", machine, detail, now_ns)
            if doubt and before is not None:
                _note_doubt(db, machine, before, wish, wish, doubt, now_ns)
            else:
                _note_adoption(db, machine, before, wish, now_ns)
            return Answer(_desired(wish, settings), left_entries=True)


def _stop(db: Connection, known: Machine, told: Wish | None) -> Wish | None:
    """What whoever bears the name is told where no storage says who the machine is: a stop, if that is wanted, and nobody can have taken it
    back since. None: nothing."""
    wish = known.wish
    if wish is None or wish.verb is not Verb.STOP or _is_in_doubt(known, told, incarnations.history(db)[-1]):
        return None
    if told is not None and told.mark != wish.mark and wish.mark.number <= told.mark.number:
        return inventory.renumber(db, known.name, wish, told.mark)
    return wish


def settle(db: Connection, known: Machine, offer: Offer, told: Wish | None) -> Machine:
    """The machine, its disks by their ids as far as its agent has told these. Before anything is judged by them."""
    return inventory.settle(db, known, settled(known, offer, told)) if offer.is_known else known


def _unsaid(
    known: Machine, told: Wish | None, offer: Offer, incarnation: str
) -> tuple[WantedDisk, ...] | None:
    """What the agent protects, and would not any more by what this database has, although nobody said of it that it shall go; None: that
    cannot be known, since it does not say what it protects."""
    wish = known.wish
    if wish is None:
        return ()
    if wish.verb is Verb.STOP:
        return offer.goes_by if _is_in_doubt(known, told, incarnation) else ()
    if not wish.disks:
        return ()  # it stands on other hardware since: nobody has named disks of this one
    return offer.unsaid(known.disks, known.dropped)


def _unsaid_servers(known: Machine, told: Wish | None, incarnation: str) -> tuple[str, ...] | None:
    """The process servers that the agent goes by, where this database does not know that, and nobody said that they shall go."""
    wish = known.wish
    if wish is None or wish.verb is not Verb.PROTECT or known.moved:
        return None
    if told is None or told.verb is not Verb.PROTECT or told.mark.incarnation == incarnation:
        return None
    return told.process_servers if told.process_servers != wish.process_servers else None


def _is_in_doubt(known: Machine, told: Wish | None, incarnation: str) -> bool:
    """Of a stop: it is said of all disks, but perhaps taken back behind the backup. (Over what was told before, `judge` decides.)"""
    is_stop = known.wish is not None and known.wish.verb is Verb.STOP
    return is_stop and told is None and known.wish_incarnation != incarnation


def begin_anew(
    db: Connection,
    machine: Machine,
    identity: str,
    told: Wish | None,
    now_ns: int,
    *,
    protects: Sequence[WantedDisk] = (),
) -> Machine:
    """The machine stands on other hardware since, which has this `identity`. `told`: what its agent goes by, if it was asked; disks of that
    are its own. `protects`: what it says that it protects. In the transaction of the caller."""
    own, wish, over = machine.own, told, [told.mark] if told is not None else []
    history = incarnations.history(db)
    if own is not None and protects and _is_in_doubt(machine, told, history[-1]):
        inventory.withdraw(db, machine.name)
        _note_unheard(db, machine.name, own.wish, protects, now_ns)
    elif own is not None:
        verdict = judge(own, told, history)
        later = verdict.wish if isinstance(verdict, Adopt) else own.wish
        verb = later.verb
        if verb is Verb.OTHER:
            verb = Verb.PROTECT if machine.protected else Verb.STOP
        wish = msgspec.structs.replace(later, verb=verb, disks=told.disks if told is not None else ())
        over.append(own.wish.mark)
    after = inventory.begin_anew(db, machine.name, identity, now_ns, wish, over)
    disks = [named(disk) for disk in machine.disks[:_SHOWN]]
    had = f"{', '.join(disks) or 'the disks of its configuration'}, on {shown(machine.identity)}"
    now = f"{in_words(after.wish)}, on {shown(identity)}"
    detail = {
        "before": {"identity": machine.identity, "disks": disks, "wish": _plain(machine.wish)},
        "after": {"identity": identity, "wish": _plain(after.wish)},
    }
    audit.add(db, SELF, "machine.wish.anew", machine.name, detail, now_ns)
    error = OtherHardwareError(
        f"{machine.name} stands on other hardware: which disks were wanted counts no more",
        cause=f"it was to be {had}; now it is: {now}",
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine.name)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)
    return after


def _desired(wish: Wish | None, settings: Settings | None) -> Desired:
    """What is kept with a wish to stop is not told: an agent that cannot do it would not take it, and go on. Nor is what this version does
    not know: it could not say it as it was said."""
    if wish is not None and wish.verb is Verb.OTHER:
        wish = None
    if wish is not None and wish.verb is Verb.STOP:
        wish = msgspec.structs.replace(wish, disks=(), process_servers=())
    return Desired(wish=wish, settings=settings)


def _plain(wish: Wish | None) -> Any:
    """Short, for the audit log: it may be anything that an agent says."""
    return None if wish is None else {"wish": in_words(wish), "mark": msgspec.to_builtins(wish.mark)}


def _note_kept(
    db: Connection,
    machine: str,
    before: Wish,
    after: Wish,
    kept: Sequence[WantedDisk],
    now_ns: int,
    *,
    told: Wish | None,
) -> None:
    names = ", ".join(named(disk) for disk in kept[:_SHOWN])
    detail = {"before": _plain(before), "after": _plain(after), "kept": names}
    audit.add(db, SELF, "machine.wish.kept", machine, detail, now_ns)
    cause = (
        f"when it was made ({in_words(before)}) this database did not know that its agent protects them, so nobody said that they shall"
        " go"
    )
    if told is not None and before.mark.number < told.mark.number:
        cause = f"{cause}; or another config server has told it since: {in_words(told)}"
    error = DisksKeptError(
        f"{machine} goes on protecting disks that the last act did not name: {names}", cause=cause
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)


def _note_too_many(
    db: Connection, machine: str, wish: Wish, unsaid: Sequence[WantedDisk], now_ns: int
) -> bool:
    """Once for each act."""
    if events.is_noted(db, SELF, DisksKeptError.code, wish.mark.act):
        return False
    names = ", ".join(named(disk) for disk in unsaid[:_SHOWN])
    error = DisksKeptError(
        f"{machine} is not told the last act: its agent protects disks for which that has no room: {names}",
        cause=f"an act names {inventory.MOST_DISKS} disks at most, and nobody said that these shall go, since nobody knew of them",
        action=f"Name fewer (understudy machine protect {machine} --disk PATH for each): then these are kept, and can be left out by"
        " the next act.",
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine, key=wish.mark.act)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)
    return True


def _note_stays(db: Connection, machine: str, before: Wish, after: Wish, now_ns: int) -> None:
    audit.add(
        db,
        SELF,
        "machine.wish.stays",
        machine,
        {"before": _plain(before), "after": _plain(after)},
        now_ns,
    )
    servers = ", ".join(after.process_servers[:_SHOWN]) or "those of its configuration"
    error = ServersKeptError(
        f"{machine} stays with the process servers that its agent goes by: {servers}",
        cause=f"this database did not know these when the last act was made ({in_words(before)}), so nobody said that they shall go",
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)


def _note_unheard(
    db: Connection, machine: str, wish: Wish, protects: Sequence[WantedDisk], now_ns: int
) -> None:
    names = ", ".join(named(disk) for disk in protects[:_SHOWN])
    audit.add(
        db, SELF, "machine.wish.withdrawn", machine, {"before": _plain(wish), "protects": names}, now_ns
    )
    error = WishInDoubtError(
        f"Whether {machine} is to stop is not known: it goes on protecting {names}",
        cause=UNHEARD,
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine)
    events.note(db, EventKind.RESTORED, SELF, happened, now_ns)


def _note_begun(db: Connection, machine: str, told: Wish, after: Machine, now_ns: int) -> None:
    detail = {"before": _plain(told), "after": _plain(after.wish)}
    audit.add(db, SELF, "machine.wish.anew", machine, detail, now_ns)
    happened = Problem(
        code="",
        what=f"The agent of {machine} was to stop, since the machine was deleted; it was enrolled again, and protects by its configuration",
        cause="that it should stop was said of the machine that was deleted",
        action=f"Say what is wanted: understudy machine protect {machine}, or unprotect.",
        severity=Severity.WARNING,
        object=machine,
    )
    events.note(db, EventKind.STATE, SELF, happened, now_ns)


def _note_adoption(db: Connection, machine: str, before: Wish | None, wish: Wish, now_ns: int) -> None:
    had = f"it had: {in_words(before)}" if before is not None else "it had no opinion"
    happened = Problem(
        code="",
        what=f"The agent of {machine} knows of a later act than this database, and that holds: {in_words(wish)}",
        cause=f"this database is from a backup or was set back, or the act was another config server's; {had}",
        action=f"Nothing, if that is what you want. Else say it anew: understudy machine protect {machine}, or unprotect.",
        severity=Severity.WARNING,
        object=machine,
    )
    events.note(db, EventKind.RESTORED, SELF, happened, now_ns)


def _pair(own: Wish, told: Wish) -> str:
    return f"{own.mark.act} {told.mark.act}"


def _note_earlier(db: Connection, machine: str, own: Wish, told: Wish, now_ns: int) -> bool:
    """Once for each two acts."""
    key = _pair(own, told)
    if events.is_noted(db, SELF, "", key):
        return False
    happened = Problem(
        code="",
        what=f"The agent of {machine} went by an earlier act than this database has, and is told again: {in_words(own)}",
        cause=f"another config server told it that, or it was said behind a backup: {in_words(told)}",
        action="If another config server of this installation still runs, stop it: its agents may reach either.",
        severity=Severity.WARNING,
        object=machine,
        key=key,
    )
    events.note(db, EventKind.RESTORED, SELF, happened, now_ns)
    return True


def _note_doubt(
    db: Connection, machine: str, own: Wish, told: Wish, holds: Wish, doubt: str, now_ns: int
) -> bool:
    """Once for each two acts: while the agent has not taken what it is told, it says the same again."""
    key = _pair(own, told)
    if events.is_noted(db, SELF, WishInDoubtError.code, key):
        return False
    error = WishInDoubtError(
        f"Of two acts for {machine} it is not known which is the later; what protects more holds: {in_words(holds)}",
        cause=f"{doubt}. This database has: {in_words(own)}. The agent goes by: {in_words(told)}",
    )
    happened = Problem(**error.as_dict(), severity=Severity.WARNING, object=machine, key=key)
    events.note(db, EventKind.RESTORED, SELF, happened, now_ns)
    return True

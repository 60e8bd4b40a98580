"""Handlers of what daemons report, and of what operators read of it: status, commands, events, daemons,
audit."""

from __future__ import annotations

import contextlib
from typing import Any, Final, NamedTuple

import msgspec

from config_server.operations import desired_state
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.operations.deleted import Deleted
from config_server.operations.jobs import DRIVEN
from config_server.operations.pages import before, page
from config_server.operations.replicas import stored
from config_server.operations.sides import Sides
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.rules.health import worst
from config_server.rules.lanes import Lane
from config_server.rules.presence import Seen, decode, problems_of
from config_server.rules.wrong import problems_with
from config_server.store import audit, certificates, commands, events, inventory, journal
from config_server.store.database import Connection
from shared.api.audit import AuditList
from shared.api.commands import Command, CommandView
from shared.api.daemons import DaemonList, DaemonView, StatusReply
from shared.api.events import EventKind, EventList, EventQuery, EventView
from shared.api.route import Nothing, Page
from shared.daemon import logging
from shared.desired import Desired, Verb, Wish
from shared.errors import DatabaseError
from shared.status import AgentReport, Problem
from shared.vocabulary import Role, Severity
from shared.waiting import wait_for

_log = logging.get()
_LOGGED: Final = 20
"""Events of one report."""
_SAVE_NS: Final = 15 * SECOND_NS
"""How often a report is stored while its state stays: it only has to tell, after a restart, who there is."""


class _Told(NamedTuple):
    """What is said to a daemon."""

    commands: list[Command]
    desired: Desired | None = None
    is_withheld: bool = False
    """There is an opinion, perhaps, that it does not hear (desired_state.py)."""
    waits: Wish | None = None
    left_entries: bool = False
    """What its agent said did."""


class Reporting:
    def __init__(self, control: Control, sides: Sides) -> None:
        self._control = control
        self._sides = sides
        self._deleted = Deleted(control)
        self._saved_ns: dict[str, int] = {}
        self._entries_ns: dict[str, int] = {}
        """By machine: when what its agent said of wishes left entries last (monotonic)."""
        self._others: dict[str, str] = {}
        """By machine: the act that its agent goes by, where this version does not know what it means."""
        self._noted: set[int] = set()
        """Serial numbers of certificates that were shown to this process, and are in the database."""

    async def status(self, call: Call, _body: msgspec.Struct) -> StatusReply:
        """Take a daemon's report, hand out its commands, and tell an agent what it is to do; with `Prefer: wait` only when there is
        something new to say, or at the end."""
        role = Role(call.role)  # one of the route's
        received_ns = now_ns = self._control.now_ns()
        began_ns = self._control.mono_ns()
        if role == Role.AGENT and self._control.force.error is None:
            said = decode(role, call.body)
            assert isinstance(said, AgentReport)
            name = check_name(call.name, role)
            await self._sides.admit(name, said.identity, said.boot, call.remote, said.former)
            self._control.refuse_revoked(
                call.serial, call.who, call.begins_s
            )  # storage may have taken its time
        others = self._control.others
        if others is not None:
            await others.fresh()
        before = self._control.presence.of(role, call.name)
        seen = self._control.presence.learn(
            role,
            check_name(call.name, role),
            call.body,
            now_ns,
            began_ns,
            address=call.remote,
            held_up_ns=self._control.stillness.held_up_ns(began_ns),
        )
        taken = seen is not before
        rung = self._control.bell.listen(call.who)

        is_news = before is None or before.report.state != seen.report.state
        is_awaited = _is_awaited(before, seen, began_ns)
        # Where there are other servers, each report is stored for them, with all that came in the same second.
        is_due = others is None and began_ns - self._saved_ns.get(call.who, 0) > _SAVE_NS
        # A server on another host, which begins with what the database has, waits for nobody who has gone over by then.
        goes_by = (seen.report.anchors, seen.report.issuer)
        is_other = before is not None and goes_by != (before.report.anchors, before.report.issuer)
        is_saved = is_news or is_due or is_other or call.who not in self._saved_ns

        def told(db: Connection) -> _Told:
            if self._control.force.error is not None:
                return _Told([])  # that is another server's to say
            asked = commands.pending(db, call.who, now_ns)
            answer = self._answer(db, seen, now_ns, began_ns)
            if answer is None:
                return _Told(asked)
            said = None if answer.desired == Desired() else answer.desired
            return _Told(asked, said, answer.is_withheld, answer.waits, answer.left_entries)

        def work(db: Connection) -> tuple[list[str], list[EventView], _Told, str | None]:
            if not taken:
                # Who was held up hears no answer any more; commands and wishes are not for a twin.
                return [], [], _Told([]), None
            if call.serial not in self._noted:
                # A database from a backup may not know it, and it shall be seen, and revoked with what is renewed from it.
                certificates.note_presented(db, call.role, call.name, call.der)
            finished = commands.finish(db, call.who, seen.report.results, now_ns)
            changed = events.reconcile(db, call.who, problems_of(seen), now_ns)
            change = self._note_state(db, before, seen, now_ns) if is_news else None
            if is_awaited:
                journal.wake(db, call.name, Lane.LIFE)
            if is_saved:
                if role == Role.AGENT:
                    inventory.ensure_machine(db, call.name, now_ns)
                inventory.save_report(db, stored(seen, self._control.mono_ns()))
            answer = told(db)
            return finished, changed, answer, change

        kept = taken and self._control.force.error is None  # what it says of commands is said again
        try:
            finished, changed, answer, old = await self._control.db.run(work)
            if taken:
                self._noted.add(call.serial)
                self._note_entries(seen, answer, began_ns)
                if is_saved:
                    self._saved_ns[call.who] = began_ns
        except DatabaseError:
            # It says so itself. The answer tells who was revoked, which must not wait for room on a disk.
            finished, changed, answer, old, kept = [], [], _Told([]), None, False
        for id_ in (*finished, *([DRIVEN] if is_awaited else [])):
            self._control.bell.ring(id_)
        log_changes(changed)
        if old is not None:
            cause = seen.report.cause if isinstance(seen.report, AgentReport) else ""
            _log.info("machine state", machine=seen.name, old=old, new=seen.report.state, cause=cause)
        has_news = taken and self._note_wish(seen, answer)
        if others is not None and taken:
            others.tell(seen)
        if call.wait_s > 0 and not has_news and {c.id for c in answer.commands} <= set(seen.report.running):
            await wait_for(rung, call.wait_s)
            answer = _Told([])
            if taken:
                with contextlib.suppress(DatabaseError):  # it says so itself
                    now_ns = self._control.now_ns()
                    answer = await self._control.db.run(told)
                    self._note_entries(seen, answer, began_ns)
                self._note_wish(seen, answer)
        revoked = self._control.revoked if role in (Role.PROCESS_SERVER, Role.AGENT) else None
        deleted = await self._deleted.of(seen.report)
        held_ns = self._control.mono_ns() - began_ns
        return StatusReply(
            commands=answer.commands,
            received_ns=received_ns,
            held_ns=held_ns,
            revoked=revoked,
            trust=self._control.trust,
            desired=answer.desired,
            kept=kept,
            deleted=deleted,
            superseded=self._control.force.error is not None,
            pointer=self._control.elsewhere if self._control.force.error is not None else "",
            generation=self._control.force.generation,
        )

    def _answer(self, db: Connection, seen: Seen, now_ns: int, mono_ns: int) -> desired_state.Answer | None:
        """What the daemon is to do, if it is an agent."""
        if not isinstance(seen.report, AgentReport):
            return None
        self._note_other(seen.name, seen.report.wish)
        last_ns = self._entries_ns.get(seen.name)
        may_leave = last_ns is None or mono_ns - last_ns > desired_state.PAUSE_NS
        return desired_state.answer(
            db,
            seen.name,
            seen.report.wish,
            now_ns,
            offer=Offer.of(seen.report),
            identity=seen.report.identity,
            is_the_machine=self._sides.is_the_machine(seen.name, seen.report.identity),
            has_storage=bool(self._control.storage.place),
            may_leave_entries=may_leave,
        )

    def _note_entries(self, seen: Seen, told: _Told, mono_ns: int) -> None:
        if told.left_entries:
            self._entries_ns[seen.name] = mono_ns

    def _note_other(self, machine: str, wish: Wish | None) -> None:
        """Once for each act that is a newer version's."""
        act = wish.mark.act if wish is not None and wish.verb is Verb.OTHER else ""
        if act and self._others.get(machine) != act:
            _log.warning("an agent goes by what this version does not know", machine=machine, act=act)
        self._others[machine] = act

    def _note_wish(self, seen: Seen, told: _Told) -> bool:
        """Whether its agent has not been told that yet."""
        if not isinstance(seen.report, AgentReport):
            return False
        untaken, now_ns = self._control.untaken, self._control.mono_ns()
        if told.is_withheld or told.desired is not None:
            untaken.withhold(seen.name, is_withheld=told.is_withheld, now_ns=now_ns)
        if told.waits is not None:
            untaken.note(seen.name, told.waits, seen.report.wish, now_ns)
        if told.waits is not None or told.desired is None:
            return False
        return untaken.note(seen.name, told.desired.wish, seen.report.wish, now_ns)

    async def command(self, call: Call, _body: Nothing) -> CommandView:
        """A command; with `Prefer: wait` when its result is there, or at the end of the wait."""
        return await self._control.wait_for_result(call.path["id"], call.wait_s)

    async def events(self, _call: Call, body: EventQuery) -> EventList:
        behind = before(body)

        def work(db: Connection) -> list[EventView]:
            return events.find(db, body.object, body.open, body.limit + 1, behind)

        shown, next_ = page(await self._control.db.run(work), body, lambda event: str(event.id))
        return EventList(events=shown, next=next_)

    async def daemons(self, _call: Call, _body: Nothing) -> DaemonList:
        now_ns = self._control.mono_ns()
        return DaemonList(daemons=[_daemon_view(seen, now_ns) for seen in self._control.presence.all()])

    async def audit(self, _call: Call, body: Page) -> AuditList:
        behind = before(body)
        found = await self._control.db.run(lambda db: audit.newest(db, body.limit + 1, behind))
        shown, next_ = page(found, body, lambda entry: str(entry.id))
        return AuditList(entries=shown, next=next_)

    def _note_state(self, db: Connection, before: Seen | None, seen: Seen, now_ns: int) -> str | None:
        """The state that its agent had before, if it has another one now."""
        if not isinstance(seen.report, AgentReport):
            return None
        old = inventory.reported_state(db, seen.role, seen.name)  # another server may have heard it
        if not old:
            old = before.report.state if before is not None else "not-connected"
        if seen.report.state == old:
            return None
        happened = Problem(
            code="",
            what=f"{seen.name} went from {old} to {seen.report.state}",
            cause=seen.report.cause,
            severity=Severity.INFO,
            object=seen.name,
        )
        events.note(db, EventKind.STATE, seen.source, happened, now_ns)
        return old


def _is_awaited(before: Seen | None, seen: Seen, now_ns: int) -> bool:
    """Whether an agent comes, or comes back, or does something else than before: a job may wait for that."""
    if not isinstance(seen.report, AgentReport):
        return False
    if before is None or before.is_silent(now_ns) or not isinstance(before.report, AgentReport):
        return True
    return _does(before.report) != _does(seen.report)


def _does(report: AgentReport) -> tuple[Any, ...]:
    return (
        report.state,
        report.identity,
        report.wish.mark if report.wish is not None else None,
        [(disk.name, bool(disk.mode), disk.state) for disk in report.disks],
        [error.code for error in report.errors],
    )


def log_changes(changed: list[EventView]) -> None:
    """A line for each, and one for what is more than a few."""
    for event in changed[:_LOGGED]:
        _log.info(
            "event opened" if event.resolved is None else "event resolved",
            id=event.id,
            object=event.object,
            code=event.code,
            what=event.what,
            cause=event.cause,
            source=event.source,
        )
    if more := changed[_LOGGED:]:
        opened = sum(event.resolved is None for event in more)
        _log.info("more events", source=more[0].source, opened=opened, resolved=len(more) - opened)


def _daemon_view(seen: Seen, now_ns: int) -> DaemonView:
    report: dict[str, Any] = msgspec.to_builtins(seen.report)
    return DaemonView(
        role=seen.role,
        name=seen.name,
        state=seen.report.state,
        health=worst(problems_with(seen, now_ns)),
        connected=not seen.is_silent(now_ns),
        seen_s=seen.age_s(now_ns),
        skew_s=seen.skew_ns / SECOND_NS,
        report=report,
    )

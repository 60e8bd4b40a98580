"""Deleting a machine: what operators say of it, and what this server does by itself when the delay is over.

At once the machine is stopped, as by `unprotect`, and what was said is kept with it (deletions.py). Then a look every minute counts the
delay, and when that is over goes on by one stage (deletion.py) a look, so that between two of them everybody has reported again:

    waiting    nothing hinders it → written down as closing; the certificates of its agent are revoked; → closed
    closed     nothing hinders it → written down as removing; the container goes, the registry's entry, and what this database has of it

Each stage is written down before what it says is done, and all of that may be done again: killed anywhere, the next look goes on. What
was being removed is looked at first: a container that is there still is closed again, and all is judged anew. Where storage says that it
did not do it, it can be taken back as before; where it gave no answer, it may yet do it.

What hinders it is judged anew in each look, and once more in the transaction that goes on; whoever is given access to the machine, or
takes the deletion back, looks at the stage in his own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from config_server import audit, deletion_view, deletions, events, incarnations, inventory, machines, removal
from config_server import deletion as rules
from config_server.binding import Binder, Call
from config_server.clock import SECOND_NS, rfc3339
from config_server.control import Control, new_id
from config_server.deletion import Deletion, Found, Stage
from config_server.facts import SELF
from config_server.inventory import Machine
from config_server.sides import Sides
from shared import api, logging
from shared.crashpoints import reach
from shared.errors import (
    ContainerMissingError,
    DatabaseError,
    DeletionOfAnotherError,
    DeletionStorageError,
    RequestError,
    StorageError,
    TransientError,
    UnderstudyError,
    UnhealthyError,
)
from shared.messages import (
    CertificateList,
    DeletionRequest,
    DeletionView,
    EventKind,
    Kept,
    MachineView,
    Nothing,
    PointView,
)
from shared.status import Problem
from shared.vocabulary import Role, Severity

_log = logging.get()

PASS_S: Final = 60.0
"""How often it is looked."""
_MOST: Final = 2
"""Of a longer time between two looks no more than so many count: this server, or its host, stood still, and nobody could take it back."""


class _Revoking(Protocol):
    async def refuse(self, subject: str, reason: str, who: str) -> CertificateList: ...


class _Protecting(Protocol):
    async def stop(
        self, call: Call, name: str, also: Callable[[sqlite3.Connection, Machine, Machine], None]
    ) -> Machine: ...


class _Points(NamedTuple):
    found: Sequence[PointView]
    unknown: str = ""


class Deleting:
    def __init__(self, control: Control, sides: Sides, revoking: _Revoking, protecting: _Protecting) -> None:
        self._control = control
        self._sides = sides
        self._revoking = revoking
        self._protecting = protecting
        self._counted_ns: dict[str, int] = {}
        """By deletion: until when (monotonic) its delay is counted. One that is not in it was not looked at by this process yet."""

    def bind(self, binder: Binder) -> None:
        binder.on(api.DELETION, self.look)
        binder.on(api.DELETE, self.delete)
        binder.on(api.KEEP, self.keep)

    # ---- what operators say

    async def look(self, call: Call, _body: Nothing) -> DeletionView:
        """What is lost. Raises MachineNotFoundError, StorageError, IntegrityError."""
        machine = await machines.known(self._control, call.path["machine"])
        container, found = await self._meant(machine.name)
        points = await self._points(machine.name)
        shown = deletion_view.shown(machine, self._hindered(machine))
        view = shown or DeletionView(machine=machine.name, container="", identity="", points=0)
        view.container, view.identity = container, found.identity
        view.points, view.unknown = len(points.found), points.unknown
        if points.found:
            view.first, view.last = points.found[0].time, points.found[-1].time
        view.stays = deletion_view.what_stays(self._control.presence, machine.name)
        return view

    async def delete(self, call: Call, body: DeletionRequest) -> MachineView:
        """Raises MachineNotFoundError, RequestError, BeingDeletedError, StorageError, IntegrityError."""
        machine = await machines.known(self._control, call.path["machine"])
        name, what = machine.name, f"'{machine.name}' is not to be deleted yet"
        container, found = await self._meant(name)
        if body.container is not None and body.container != container:
            raise RequestError(
                what,
                cause=f"its container is {container or 'none'}, and {body.container or 'none'} was meant",
                action="Look again what would be lost, and ask again.",
            )
        points = await self._points(name)
        now_ns = self._control.now_ns()

        def also(db: sqlite3.Connection, before: Machine, after: Machine) -> None:
            if deletions.is_past_recall(db, before):
                raise deletions.being_deleted(name, what)
            assert after.wish is not None
            deletion = Deletion(
                id=new_id(),
                incarnation=incarnations.history(db)[-1],
                who=call.who,
                asked_ns=now_ns,
                after_ns=int(body.after_s * SECOND_NS),
                counted_ns=now_ns,
                act=after.wish.mark.act,
                container=container,
                identity=found.identity,
                points=len(points.found),
            )
            if isinstance(wrong := rules.of_storage(name, deletion, found), DeletionOfAnotherError):
                raise RequestError(
                    what, cause=wrong.cause, action="See which is right, and correct it first."
                )
            deletions.put(db, name, deletion)
            audit.add(db, call.who, "machine.delete", name, _plain(deletion), now_ns)
            day = deletion_view.day(deletion)
            _note(db, name, f"{name} is to be deleted on {day}, as {call.who} asked", now_ns, keep=True)

        machine = await self._protecting.stop(call, name, also)
        return await machines.shown(self._control, machine)

    async def keep(self, call: Call, _body: Nothing) -> Kept:
        """Raises MachineNotFoundError, BeingDeletedError."""
        name, now_ns = call.path["machine"], self._control.now_ns()

        def work(db: sqlite3.Connection) -> tuple[Machine, Deletion | None]:
            machine = inventory.machine(db, name)
            if machine.deletion is None:
                return machine, None
            if deletions.is_past_recall(db, machine):
                raise deletions.being_deleted(name, f"The deletion of '{name}' was not taken back")
            deletions.put(db, name, None)
            audit.add(db, call.who, "machine.keep", name, _plain(machine.deletion), now_ns)
            _note(db, name, f"{name} is not to be deleted any more, as {call.who} asked", now_ns)
            return inventory.machine(db, name), machine.deletion

        machine, deletion = await self._control.db.run(work)
        return Kept(
            machine=await machines.shown(self._control, machine),
            taken_back=deletion is not None,
            revoked=deletion is not None and deletion.is_closed,
        )

    # ---- what this server does by itself

    async def sweep(self) -> None:
        """One look at all that are to be deleted. What hinders one, whatever it is, hinders no other; the first such error that nobody has
        thought of is raised at the end."""
        found = await self._control.db.run(deletions.all_)
        hindered: dict[str, UnhealthyError] = {}
        failed: list[Exception] = []
        for machine, deletion in found:
            try:
                wrong = await self._go_on(machine, deletion)
            except DatabaseError:
                raise
            except UnderstudyError as exc:
                wrong = _storage(machine.name, exc)
            except Exception as exc:  # noqa: BLE001 - raised at the end
                failed.append(exc)
                wrong = self._control.hindered.get(deletion.id)
            if wrong is not None:
                hindered[deletion.id] = wrong
                self._log_new(machine.name, self._control.hindered.get(deletion.id), wrong)
        self._control.hindered = hindered
        standing = {deletion.id for _, deletion in found}
        self._counted_ns = {id_: at_ns for id_, at_ns in self._counted_ns.items() if id_ in standing}
        if failed:
            raise failed[0]

    async def _go_on(self, machine: Machine, deletion: Deletion) -> UnhealthyError | None:
        """What hinders it."""
        name = machine.name
        incarnation = await self._control.db.run(lambda db: incarnations.history(db)[-1])
        if (wrong := rules.of_acts(name, deletion, machine.wish, incarnation)) is not None:
            self._counted_ns.pop(deletion.id, None)
            return wrong
        counted = await self._count(name, deletion)
        if counted is None or not counted.is_due:
            return None
        if counted.stage is Stage.REMOVING:
            await self._find_removed(name, counted)
            return None
        daemons = self._control.presence
        agent, now_ns = daemons.agent(name), self._control.mono_ns()
        servers = [seen for seen in daemons.all() if seen.role is Role.PROCESS_SERVER]
        if rules.is_too_early([*servers, *([agent[0]] if agent is not None else [])], now_ns):
            return self._control.hindered.get(deletion.id)
        if wrong := rules.of_daemons(name, counted, agent, daemons.streams(name), now_ns):
            return wrong
        found = await removal.look(self._control.storage.machines(), name, counted.container)
        if wrong := rules.of_storage(name, counted, found):
            return wrong
        if wrong := rules.of_enrolment(name, counted, self._control.revoked):
            return wrong
        if counted.stage is Stage.CLOSED:
            return await self._remove(name, counted, found)
        return await self._close(name, counted, found)

    async def _count(self, name: str, deletion: Deletion) -> Deletion | None:
        mono_ns, now_ns = self._control.mono_ns(), self._control.now_ns()
        passed_ns = mono_ns - self._counted_ns.get(deletion.id, mono_ns)
        passed_ns = min(passed_ns, int(_MOST * PASS_S * SECOND_NS))
        counted = await self._control.db.run(
            lambda db: deletions.count(db, name, deletion.id, passed_ns, now_ns)
        )
        self._counted_ns[deletion.id] = mono_ns
        return counted

    async def _close(self, name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
        """Nobody takes the machine up any more."""
        subject, revoked = f"{Role.AGENT}:{name}", self._control.revoked
        if deletion.stage is Stage.WAITING:
            said_ns = revoked.since.get(subject, 0)
            using = await self._advance(name, deletion, Stage.CLOSING, found, said_ns)
            if using is None or using:
                return rules.of_running(name, using or ())
        reach("deletion.closing")
        if subject not in revoked.names:
            await self._revoking.refuse(subject, f"the machine is deleted, as {deletion.who} asked", SELF)
        reach("deletion.revoked")
        await self._advance(name, replace(deletion, stage=Stage.CLOSING), Stage.CLOSED)
        return None

    async def _remove(self, name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
        using = await self._advance(name, deletion, Stage.REMOVING, found)
        if using is None or using:
            return rules.of_running(name, using or ())
        reach("deletion.removing")
        removing = replace(deletion, stage=Stage.REMOVING)
        if found.changed is not None:
            try:
                await removal.remove_container(
                    self._control.storage.machines(), deletion.container, found.changed
                )
            except (TransientError, ContainerMissingError):
                raise  # it may have done it, or do it yet: the next look tells
            except StorageError:
                await self._advance(name, removing, Stage.CLOSED)
                raise
        await self._unregister(name, removing)
        return None

    async def _find_removed(self, name: str, deletion: Deletion) -> None:
        """Storage was asked to delete its container, and nobody knows whether it did. One that is there is judged anew."""
        storage = self._control.storage.machines()
        if deletion.container and not await removal.is_gone(storage, deletion.container):
            await self._advance(name, deletion, Stage.CLOSED)
            return
        await self._unregister(name, deletion)

    async def _unregister(self, name: str, deletion: Deletion) -> None:
        """Its container has gone."""
        storage = self._control.storage.machines()
        if deletion.container:
            await storage.unregister(name, deletion.container)
            reach("deletion.entry-gone")
        await self._finish(name, deletion, await storage.named(name))

    async def _finish(self, name: str, deletion: Deletion, named: str | None) -> None:
        now_ns = self._control.now_ns()
        stays = deletion_view.what_stays(self._control.presence, name)
        others = f"; the name is that of another machine by now, in {named}, which stays" if named else ""

        def work(db: sqlite3.Connection) -> bool:
            machine = inventory.find(db, name)
            if machine is None or machine.deletion is None or machine.deletion.id != deletion.id:
                return False
            detail = {**_plain(deletion), "stays": stays, "now": named or ""}
            audit.add(db, SELF, "machine.deleted", name, detail, now_ns)
            _note(db, name, f"{name} was deleted, as {deletion.who} asked{others}", now_ns, stays=stays)
            if named:
                deletions.put(db, name, None)
            else:
                deletions.remove(db, name)
            return True

        if await self._control.db.run(work) and not named:
            self._control.presence.forget(Role.AGENT, name)
            self._control.storage.forget(name)
            self._sides.forget(name)
        _log.warning("machine deleted", machine=name, container=deletion.container, asked_by=deletion.who)

    async def _advance(
        self, name: str, seen: Deletion, to: Stage, found: Found | None = None, said_ns: int | None = None
    ) -> Sequence[str] | None:
        """See deletions.advance."""
        date = found.date if found is not None else None
        now_ns = self._control.now_ns() if date is None else int(date.timestamp()) * SECOND_NS
        return await self._control.db.run(lambda db: deletions.advance(db, name, seen, to, now_ns, said_ns))

    # ---- small things

    async def _meant(self, name: str) -> tuple[str, Found]:
        """Which container is the machine's now (empty: none), and what is known of it."""
        storage = self._control.storage.machines()
        container = await storage.named(name) or ""
        return container, await removal.look(storage, name, container)

    async def _points(self, name: str) -> _Points:
        try:
            return _Points((await self._control.storage.points(name)).points)
        except UnderstudyError as exc:
            return _Points((), f"{exc.what}: {exc.cause}")

    def _hindered(self, machine: Machine) -> UnhealthyError | None:
        return None if machine.deletion is None else self._control.hindered.get(machine.deletion.id)

    @staticmethod
    def _log_new(name: str, before: UnhealthyError | None, wrong: UnhealthyError) -> None:
        if before is None or (before.code, before.cause) != (wrong.code, wrong.cause):
            _log.warning("machine not deleted", machine=name, **wrong.as_dict())


def _storage(name: str, exc: UnderstudyError) -> DeletionStorageError:
    return DeletionStorageError(
        f"{name} is due to be deleted, and waits for storage", cause=f"{exc.what}: {exc.cause}"
    )


def _plain(deletion: Deletion) -> dict[str, object]:
    """For the audit log: what of it people ask for."""
    return {
        "deletion": deletion.id,
        "container": deletion.container,
        "identity": deletion.identity,
        "points": deletion.points,
        "who": deletion.who,
        "asked": rfc3339(deletion.asked_ns),
        "after_s": deletion.after_ns / SECOND_NS,
        "stage": deletion.stage,
    }


def _note(
    db: sqlite3.Connection,
    name: str,
    what: str,
    now_ns: int,
    *,
    keep: bool = False,
    stays: Sequence[str] = (),
) -> None:
    action = f"To take it back: understudy machine keep {name}." if keep else ""
    if stays:
        action = f"What was not deleted: {'; '.join(stays)}. The name may be used again: enrol it with a new token."
    happened = Problem(code="", what=what, action=action, severity=Severity.WARNING, object=name)
    events.note(db, EventKind.STATE, SELF, happened, now_ns)

"""Machines that are to be deleted: what this server does by itself.

The delay of each is counted every minute, whatever else goes on. When it is over, a look goes on by one stage (deletion.py), so that
between two of them everybody has reported again:

    waiting    nothing hinders it → written down as closing; the certificates of its agent are revoked; → closed
    closed     nothing hinders it → the container notes no deletion any more; written down as removing; it goes → gone
    gone       the registry's entry goes, and what this database has of it

Each stage is written down before what it says is done, and all of that may be done again: killed anywhere, the next look goes on. What
was being removed is looked at first: a container that is there still is closed again, and all is judged anew.

**A container that was brought back is not deleted a second time.** Storage may keep what was deleted (container soft delete), and people
bring it back, this one and its note. So the note is taken out before a request to delete can be sent, and who finds the container later
finds none: a person has to say it again (US631). It stands again only where storage said that it does not do it, and nobody has written
since; busy storage, which turned the request away, did say that (`StorageError.is_refusal`), and is asked again. (A server that is killed
between the two, or gets no answer of storage's own and finds the container still there, needs a person's word.)

**Only while it stands as removing can a request to delete the container be on its way.** Each is sent behind that transaction, and nothing
leads back from it but a fence (removal.py), whatever storage answered. So who takes the deletion back, reads the machine or binds it to
other hardware in an earlier stage keeps its container. What may not be fenced (a role that deletes, and does not write) is not begun with:
that is tried before anything is closed. A database that was put back knows of no request that was sent before: there, who says something
of its deletion fences first (deleting.py).

What hinders it is judged anew in each look, and once more in the transaction that goes on; whoever is given access to the machine, or
takes the deletion back, looks at the stage in his own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from config_server.operations import deletion_job
from config_server.operations.control import Control
from config_server.operations.jobs import DRIVEN
from config_server.operations.sides import Sides
from config_server.rules import deletion as rules
from config_server.rules import deletion_view
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Found, Stage
from config_server.rules.facts import SELF
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.storage.deletion_note import Written
from config_server.store import audit, deleted, deletions, incarnations, inventory
from config_server.store.database import Connection
from shared.api.certificates import RefusedList
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    ContainerMissingError,
    DatabaseError,
    DeletionStorageError,
    DeletionUnconfirmedError,
    IntegrityError,
    PreconditionError,
    StorageError,
    TransientError,
    UnderstudyError,
    UnhealthyError,
)
from shared.vocabulary import Role

_log = logging.get()

PASS_S: Final = 60.0
"""How often it is looked."""
LEASE: Final = "deletions"
"""Of several config servers one sees to them, ..."""
LEASE_S: Final = 2.5 * PASS_S
"""... until it has not looked for so long."""
LOOK_S: Final = 600.0
"""How often storage is asked again while what it says, or refuses, hinders a deletion, perhaps for months: that is a dozen requests."""
NOTE_S: Final = 21_600.0
"""How often it is looked whether a container notes the deletion that is not due yet."""
_MOST: Final = 2
"""Of a longer time between two looks no more than so many count: this server, or its host, stood still, and nobody could take it back."""
_PASSING: Final = (TransientError, PreconditionError, ContainerMissingError)
"""What storage says otherwise a minute later, or has done by then."""


class Revokes(Protocol):
    """See revoking.py."""

    async def refuse(
        self,
        subject: str,
        reason: str,
        who: str,
        *,
        still: Callable[[Connection], bool] | None = None,
    ) -> RefusedList: ...


class _Said(NamedTuple):
    """By storage."""

    at_ns: int
    hinders: UnhealthyError


class DeletionSweep:
    def __init__(self, control: Control, sides: Sides, revoking: Revokes) -> None:
        self._control = control
        self._sides = sides
        self._revoking = revoking
        self._counted_ns: dict[str, int] = {}
        """By deletion: until when (monotonic) its delay is counted. One that is not in it was not looked at by this process yet."""
        self._said: dict[str, _Said] = {}
        self._notes: dict[str, tuple[int, UnhealthyError | None]] = {}
        """By deletion that is not due: when (monotonic) its container was looked at, and what hinders it."""

    async def count(self) -> None:
        """How much of each delay has passed. It waits for nobody but the database: a look may take long."""
        mono_ns, now_ns = self._control.mono_ns(), self._control.now_ns()

        def work(db: Connection) -> dict[str, int]:
            counted: dict[str, int] = {}
            if not self._control.holds(db, LEASE, LEASE_S):
                return counted  # another server counts
            for machine, deletion in deletions.all_(db):
                passed_ns = mono_ns - self._counted_ns.get(deletion.id, mono_ns)
                passed_ns = min(passed_ns, int(_MOST * PASS_S * SECOND_NS))
                if deletions.count(db, machine.name, deletion.id, passed_ns, now_ns) is not None:
                    counted[deletion.id] = mono_ns
            return counted

        self._counted_ns = await self._control.db.run(work)

    async def sweep(self) -> None:
        """One look at all that are to be deleted. What hinders one, whatever it is, hinders no other; the first such error that nobody has
        thought of is raised at the end."""
        if not await self._control.is_its(LEASE, LEASE_S):
            self._control.hindered = {}
            return
        found = await self._control.db.run(deletions.all_)
        hindered: dict[str, UnhealthyError] = {}
        failed: list[Exception] = []
        for machine, deletion in found:
            if await self._control.force.is_superseded():
                return
            try:
                wrong = await self._go_on(machine, deletion)
            except DatabaseError:
                raise
            except UnderstudyError as exc:
                wrong = _storage(machine.name, await self._as_it_is(machine.name, deletion), exc)
                if not isinstance(exc, _PASSING):
                    self._said[deletion.id] = _Said(self._control.mono_ns(), wrong)
            except Exception as exc:  # noqa: BLE001 - raised at the end
                failed.append(exc)
                wrong = self._control.hindered.get(deletion.id)
            if isinstance(wrong, DeletionUnconfirmedError) and await self._is_being_said(
                machine.name, deletion
            ):
                wrong = self._control.hindered.get(deletion.id)
            if wrong is not None:
                hindered[deletion.id] = wrong
                self._log_new(machine.name, self._control.hindered.get(deletion.id), wrong)
        before, self._control.hindered = self._control.hindered, hindered
        changed = [
            machine.name
            for machine, deletion in found
            if _words(before.get(deletion.id)) != _words(hindered.get(deletion.id))
        ]
        if changed:
            await self._control.db.run(lambda db: deletion_job.wake(db, changed))
            self._control.bell.ring(DRIVEN)
        standing = {deletion.id for _, deletion in found}
        self._said = {id_: said for id_, said in self._said.items() if id_ in standing}
        self._notes = {id_: note for id_, note in self._notes.items() if id_ in standing}
        if failed:
            raise failed[0]

    async def _go_on(self, machine: Machine, deletion: Deletion) -> UnhealthyError | None:
        """What hinders it."""
        name = machine.name
        incarnation = await self._control.db.run(lambda db: incarnations.history(db)[-1])
        if wrong := rules.of_acts(name, deletion, machine.wish, incarnation):
            return wrong
        if wrong := rules.of_place(name, deletion, self._control.storage.place):
            return wrong
        if not deletion.is_due:
            return await self._unnoted(name, deletion)
        if deletion.is_past_recall:
            if (said := self._still_said(deletion)) is not None:
                return said
            if deletion.stage is Stage.GONE:
                await self._unregister(name, deletion)
            else:
                await self._find_removed(name, deletion)
            return None
        daemons = self._control.presence
        agent, now_ns = daemons.agent(name), self._control.mono_ns()
        servers = [seen for seen in daemons.all() if seen.role is Role.PROCESS_SERVER]
        if rules.is_too_early([*servers, *([agent[0]] if agent is not None else [])], now_ns):
            return self._control.hindered.get(deletion.id)
        if wrong := rules.of_daemons(name, deletion, agent, daemons.streams(name), now_ns):
            return wrong
        if (said := self._still_said(deletion)) is not None:
            return said
        found = await removal.look(self._control.storage.machines(), name, deletion.container)
        if wrong := rules.of_storage(name, deletion, found):
            self._said[deletion.id] = _Said(now_ns, wrong)
            return wrong
        if deletion.stage is Stage.CLOSED:
            return await self._remove(name, deletion, found)
        return await self._close(name, deletion, found)

    async def _is_being_said(self, name: str, deletion: Deletion) -> bool:
        """Whether its container notes what somebody says now, or has just said, and this server has not read yet."""

        def stands(db: Connection) -> bool:
            machine = inventory.find(db, name)
            return machine is not None and machine.deletion is not None and machine.deletion.id == deletion.id

        is_free = await self._control.turns.is_free(deletion_job.saying(name))
        if is_free and await self._control.db.run(stands):
            return False
        self._said.pop(deletion.id, None)
        self._notes.pop(deletion.id, None)
        return True

    async def _unnoted(self, name: str, deletion: Deletion) -> UnhealthyError | None:
        """Of one that is not due yet: whether its container notes another word, so that people hear it before the day on which it is due.
        It is read now and then; storage that is away, or refuses, is told on that day."""
        if not deletion.container:
            return None
        mono_ns = self._control.mono_ns()
        at_ns, wrong = self._notes.get(deletion.id, (None, None))
        if at_ns is not None and mono_ns - at_ns < (NOTE_S if wrong is None else LOOK_S) * SECOND_NS:
            return wrong
        try:
            wrong = rules.of_note(
                name, deletion, await removal.noted(self._control.storage.machines(), deletion.container)
            )
        except StorageError as exc:
            _log.info("not looked which deletion a container notes", machine=name, **exc.as_dict())
        self._notes[deletion.id] = mono_ns, wrong
        return wrong

    def _still_said(self, deletion: Deletion) -> UnhealthyError | None:
        said = self._said.get(deletion.id)
        is_new = said is not None and self._control.mono_ns() - said.at_ns < LOOK_S * SECOND_NS
        return said.hinders if said is not None and is_new else None

    async def _close(self, name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
        """Nobody takes the machine up any more."""
        subject, revoked = f"{Role.AGENT}:{name}", self._control.revoked
        closing = replace(deletion, stage=Stage.CLOSING)
        if deletion.stage is Stage.WAITING:
            if found.metadata is not None:
                storage = self._control.storage.machines()
                await removal.fence(storage, deletion.container)
                if await removal.renew(storage, deletion.container, deletion.id) is None:
                    return rules.unnoted(name, deletion)  # something else was said since it was looked at
            using = await self._advance(name, deletion, Stage.CLOSING, found)
            if using is None or using:
                return rules.of_running(name, using or ())
        reach("deletion.closing")
        if subject not in revoked.names:
            # Whoever was enrolled since is another machine, and who took the deletion back keeps his certificate.
            await self._revoking.refuse(
                subject,
                f"the machine is deleted, as {deletion.who} asked",
                SELF,
                still=lambda db: deletions.stands(db, name, closing) is not None,
            )
        reach("deletion.revoked")
        await self._advance(name, closing, Stage.CLOSED)
        return None

    async def _remove(self, name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
        storage = self._control.storage.machines()
        written: Written | None = None
        # One that is not there is gone: should it be brought back, nobody has wanted that one deleted.
        to = Stage.REMOVING if found.changed is not None else Stage.GONE
        using = await self._advance(name, deletion, to, found, dry_run=True)
        if using is None or using:
            return rules.of_running(name, using or ())
        if found.changed is not None:
            written = await removal.take_out(storage, deletion.container, deletion.id)
            if written is None:
                return rules.unnoted(name, deletion)  # something else was said since it was looked at
            reach("deletion.unnoted")
        using = await self._advance(name, deletion, to, found)
        if using is None or using:
            if written is not None:
                await removal.take_back(storage, deletion.container, written)
            return rules.of_running(name, using or ())
        reach("deletion.removing")
        after = replace(deletion, stage=to)
        if found.changed is None:
            await self._unregister(name, after, was_there=False)
            return None
        try:
            await removal.remove_container(storage, deletion.container, found.changed)
        except ContainerMissingError:
            raise  # the next look tells what became of it
        except StorageError as exc:
            with contextlib.suppress(ContainerMissingError):
                if written is not None and exc.is_refusal:  # first: it stands whatever hinders the fence
                    await removal.take_back(storage, deletion.container, written)
                await self._close_again(name, after)
                if not exc.is_refusal:
                    _log.warning(
                        "nobody knows whether a container was deleted", machine=name, **exc.as_dict()
                    )
                    return rules.unnoted(name, deletion)
                self._said[deletion.id] = _Said(self._control.mono_ns(), _storage(name, deletion, exc))
            raise
        await self._forget(name, after)
        return None

    async def _find_removed(self, name: str, deletion: Deletion) -> None:
        """Storage was asked to delete its container, and nobody knows whether it did. Of one that is there, and notes no deletion, a person
        has to say it again: it may have been brought back."""
        storage = self._control.storage.machines()
        if deletion.container and not await removal.is_gone(storage, deletion.container):
            await self._close_again(name, deletion)
            return
        await self._forget(name, deletion)

    async def _close_again(self, name: str, deletion: Deletion) -> None:
        """Back from removing, when no request that was sent can do anything any more."""
        await removal.fence(self._control.storage.machines(), deletion.container)
        await self._advance(name, deletion, Stage.CLOSED)

    async def _forget(self, name: str, deletion: Deletion) -> None:
        """Its container has gone, which is written down before all else: whoever brings it back has it."""
        if await self._advance(name, deletion, Stage.GONE) is None:
            return
        reach("deletion.gone")
        await self._unregister(name, replace(deletion, stage=Stage.GONE))

    async def _unregister(self, name: str, deletion: Deletion, *, was_there: bool = True) -> None:
        """Its container has gone."""
        storage = self._control.storage.machines()
        named = await storage.unregister(name, deletion.container)
        reach("deletion.entry-gone")
        more: Sequence[str] = ()
        if not named:
            try:
                more = await removal.others(storage, name, deletion.container)
            except StorageError as exc:  # it is gone all the same
                _log.warning("not looked for further containers", machine=name, **exc.as_dict())
        await self._finish(name, deletion, named, more, was_there=was_there)

    async def _finish(
        self, name: str, deletion: Deletion, named: str, more: Sequence[str], *, was_there: bool
    ) -> None:
        now_ns = self._control.now_ns()
        stays = [
            *deletion_view.what_stays(self._control.presence, name),
            *map(deletion_view.older, more),
        ]
        others = f"; the name is that of another machine by now, in {named}, which stays" if named else ""
        if deletion.container and not was_there:
            others = f"; its container {deletion.container} had gone before that{others}"

        def work(db: Connection) -> bool:
            machine = inventory.find(db, name)
            if machine is None or machine.deletion is None or machine.deletion.id != deletion.id:
                return False
            detail = {**deletion_view.plain(machine.deletion), "stays": stays, "now": named}
            audit.add(db, SELF, deletions.DONE, name, detail, now_ns)
            what = f"{name} was deleted, as {deletion.who} asked{others}"
            rest = f"What was not deleted: {'; '.join(stays)}. The name can be used again: enrol it with a new token."
            deletions.note(db, name, what, rest, now_ns)
            deletion_job.end(db, name, machine.deletion, SELF, now_ns)
            if deletion.container:
                deleted.note(db, deletion.container, name, now_ns)
            if named:
                deletions.put(db, name, None)
            else:
                deletions.remove(db, name, now_ns)
            return True

        if not named:  # first: a machine whose agent has reported is stored by whoever asks for it
            self._control.forget(Role.AGENT, name)
        if await self._control.db.run(work) and not named:
            self._control.storage.forget(name)
            self._sides.forget(name)
        _log.warning("machine deleted", machine=name, container=deletion.container, asked_by=deletion.who)

    async def _advance(
        self, name: str, seen: Deletion, to: Stage, found: Found | None = None, *, dry_run: bool = False
    ) -> Sequence[str] | None:
        """See deletions.advance."""
        date = found.date if found is not None else None
        now_ns = self._control.now_ns() if date is None else int(date.timestamp()) * SECOND_NS

        def work(db: Connection) -> Sequence[str] | None:
            if not self._control.holds(db, LEASE, LEASE_S):
                return None  # this server stood still, and another one goes on with it
            return deletions.advance(db, name, seen, to, now_ns, dry_run=dry_run)

        return await self._control.db.run(work)

    async def _as_it_is(self, name: str, seen: Deletion) -> Deletion:
        """It may have gone on since it was seen."""
        machine = await self._control.db.run(lambda db: deletions.current(db, name, seen.id))
        return seen if machine is None or machine.deletion is None else machine.deletion

    @staticmethod
    def _log_new(name: str, before: UnhealthyError | None, wrong: UnhealthyError) -> None:
        if _words(before) != _words(wrong):
            _log.warning("machine not deleted", machine=name, **wrong.as_dict())


def _words(hinders: UnhealthyError | None) -> tuple[str, str]:
    return ("", "") if hinders is None else (hinders.code, hinders.cause)


def _storage(name: str, deletion: Deletion, exc: UnderstudyError) -> DeletionStorageError:
    mends = (
        f"{exc.action} It is tried again within ten minutes."
        if isinstance(exc, IntegrityError)
        else DeletionStorageError.default_action
    )
    back = "" if deletion.is_past_recall else f" To take it back: understudy machine keep {name}."
    waits = "is due to be deleted, and waits for storage"
    if deletion.stage is Stage.GONE:
        waits = "is being deleted: its container has gone, and its entry in the registry waits for storage"
    return DeletionStorageError(
        f"{name} {waits}",
        cause=f"{exc.what}: {exc.cause}",
        action=f"{mends}{back}",
    )

"""Machines that are to be deleted: what this server does by itself.

The delay of each is counted every minute, whatever else goes on. When it is over, a look goes on by one stage (deletion.py), so that
between two of them everybody has reported again:

    waiting    nothing hinders it → written down as closing; the certificates of its agent are revoked; → closed
    closed     nothing hinders it → written down as removing; the container goes, the registry's entry, and what this database has of it

Each stage is written down before what it says is done, and all of that may be done again: killed anywhere, the next look goes on. What
was being removed is looked at first: a container that is there still is closed again, and all is judged anew.

**Only while it stands as removing can a request to delete the container be on its way.** Each is sent behind that transaction, and nothing
leads back from it but a fence (removal.py), whatever storage answered. So who takes the deletion back, reads the machine or binds it to
other hardware in an earlier stage keeps its container. What may not be fenced (a role that deletes, and does not write) is not begun with:
that is tried before anything is closed. A database that was put back knows of no request that was sent before: there, who says something
of its deletion fences first (deleting.py).

What hinders it is judged anew in each look, and once more in the transaction that goes on; whoever is given access to the machine, or
takes the deletion back, looks at the stage in his own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from config_server.operations.control import Control
from config_server.operations.sides import Sides
from config_server.rules import deletion as rules
from config_server.rules import deletion_view
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Found, Stage
from config_server.rules.facts import SELF
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.store import audit, deleted, deletions, incarnations, inventory, jobs
from config_server.store.database import Connection
from shared import logging
from shared.api.certificates import CertificateList
from shared.crashpoints import reach
from shared.errors import (
    ContainerMissingError,
    DatabaseError,
    DeletionStorageError,
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
LOOK_S: Final = 600.0
"""How often storage is asked again while what it says, or refuses, hinders a deletion, perhaps for months: that is a dozen requests."""
_MOST: Final = 2
"""Of a longer time between two looks no more than so many count: this server, or its host, stood still, and nobody could take it back."""
_PASSING: Final = (TransientError, PreconditionError, ContainerMissingError)
"""What storage says otherwise a minute later, or has done by then."""


class Revokes(Protocol):
    """See revoking.py."""

    async def refuse(self, subject: str, reason: str, who: str) -> CertificateList: ...


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
        self._given_up_ns: dict[str, int] = {}
        """Jobs of such machines that were given up → when this process saw it (monotonic)."""

    async def count(self) -> None:
        """How much of each delay has passed. It waits for nobody but the database: a look may take long."""
        mono_ns, now_ns = self._control.mono_ns(), self._control.now_ns()

        def work(db: Connection) -> dict[str, int]:
            counted: dict[str, int] = {}
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
        found, given_up = await self._control.db.run(_standing)
        mono_ns = self._control.mono_ns()
        self._given_up_ns = {id_: self._given_up_ns.get(id_, mono_ns) for id_ in given_up}
        hindered: dict[str, UnhealthyError] = {}
        failed: list[Exception] = []
        for machine, deletion in found:
            try:
                wrong = await self._go_on(machine, deletion)
            except DatabaseError:
                raise
            except UnderstudyError as exc:
                wrong = _storage(machine.name, deletion, exc)
                if not isinstance(exc, _PASSING):
                    self._said[deletion.id] = _Said(self._control.mono_ns(), wrong)
            except Exception as exc:  # noqa: BLE001 - raised at the end
                failed.append(exc)
                wrong = self._control.hindered.get(deletion.id)
            if wrong is not None:
                hindered[deletion.id] = wrong
                self._log_new(machine.name, self._control.hindered.get(deletion.id), wrong)
        self._control.hindered = hindered
        standing = {deletion.id for _, deletion in found}
        self._said = {id_: said for id_, said in self._said.items() if id_ in standing}
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
            return None
        if deletion.stage is Stage.REMOVING:
            if (said := self._still_said(deletion)) is not None:
                return said
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

    def _still_said(self, deletion: Deletion) -> UnhealthyError | None:
        said = self._said.get(deletion.id)
        is_new = said is not None and self._control.mono_ns() - said.at_ns < LOOK_S * SECOND_NS
        return said.hinders if said is not None and is_new else None

    async def _close(self, name: str, deletion: Deletion, found: Found) -> UnhealthyError | None:
        """Nobody takes the machine up any more."""
        subject, revoked = f"{Role.AGENT}:{name}", self._control.revoked
        if deletion.stage is Stage.WAITING:
            if found.metadata is not None:
                await removal.fence(self._control.storage.machines(), deletion.container)
            using = await self._advance(name, deletion, Stage.CLOSING, found)
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
                await self._close_again(name, removing)
                raise
        await self._unregister(name, removing, was_there=found.metadata is not None)
        return None

    async def _find_removed(self, name: str, deletion: Deletion) -> None:
        """Storage was asked to delete its container, and nobody knows whether it did. One that is there is judged anew."""
        storage = self._control.storage.machines()
        if deletion.container and not await removal.is_gone(storage, deletion.container):
            await self._close_again(name, deletion)
            return
        await self._unregister(name, deletion)

    async def _close_again(self, name: str, deletion: Deletion) -> None:
        """Back from removing, when no request that was sent can do anything any more."""
        await removal.fence(self._control.storage.machines(), deletion.container)
        await self._advance(name, deletion, Stage.CLOSED)

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
            if deletion.container:
                deleted.note(db, deletion.container, name, now_ns)
            if named:
                deletions.put(db, name, None)
            else:
                deletions.remove(db, name, now_ns)
            return True

        if not named:  # first: a machine whose agent has reported is stored by whoever asks for it
            self._control.presence.forget(Role.AGENT, name)
        if await self._control.db.run(work) and not named:
            self._control.storage.forget(name)
            self._sides.forget(name)
        _log.warning("machine deleted", machine=name, container=deletion.container, asked_by=deletion.who)

    async def _advance(
        self, name: str, seen: Deletion, to: Stage, found: Found | None = None
    ) -> Sequence[str] | None:
        """See deletions.advance."""
        date = found.date if found is not None else None
        now_ns = self._control.now_ns() if date is None else int(date.timestamp()) * SECOND_NS
        since_ns = self._control.mono_ns() - rules.GIVEN_UP_S * SECOND_NS
        over = {id_ for id_, at_ns in self._given_up_ns.items() if at_ns <= since_ns}
        return await self._control.db.run(lambda db: deletions.advance(db, name, seen, to, now_ns, over))

    @staticmethod
    def _log_new(name: str, before: UnhealthyError | None, wrong: UnhealthyError) -> None:
        if before is None or (before.code, before.cause) != (wrong.code, wrong.cause):
            _log.warning("machine not deleted", machine=name, **wrong.as_dict())


def _standing(db: Connection) -> tuple[list[tuple[Machine, Deletion]], list[str]]:
    """The machines that are to be deleted, and jobs of these that were given up."""
    found = deletions.all_(db)
    return found, [id_ for machine, _ in found for id_ in jobs.given_up(db, machine.name)]


def _storage(name: str, deletion: Deletion, exc: UnderstudyError) -> DeletionStorageError:
    mends = (
        f"{exc.action} It is tried again within ten minutes."
        if isinstance(exc, IntegrityError)
        else DeletionStorageError.default_action
    )
    back = "" if deletion.stage is Stage.REMOVING else f" To take it back: understudy machine keep {name}."
    return DeletionStorageError(
        f"{name} is due to be deleted, and waits for storage",
        cause=f"{exc.what}: {exc.cause}",
        action=f"{mends}{back}",
    )

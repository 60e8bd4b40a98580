"""Machines that are to be deleted: what this server does by itself.

A look every minute counts the delay of each. When that is over, a look goes on by one stage (deletion.py), so that between two of them
everybody has reported again:

    waiting    nothing hinders it → written down as closing; the certificates of its agent are revoked; → closed
    closed     nothing hinders it → written down as removing; the container goes, the registry's entry, and what this database has of it

Each stage is written down before what it says is done, and all of that may be done again: killed anywhere, the next look goes on. What
was being removed is looked at first: a container that is there still is closed again, and all is judged anew. Where storage says that it
did not do it, it can be taken back as before; where it gave no answer, it may yet do it.

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
from config_server.store import audit, deletions, incarnations, inventory
from config_server.store.database import Connection
from shared import logging
from shared.api.certificates import CertificateList
from shared.crashpoints import reach
from shared.errors import (
    ContainerMissingError,
    DatabaseError,
    DeletionStorageError,
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
"""How often storage is asked again while what it says hinders a deletion, perhaps for months: that is a dozen requests."""
_MOST: Final = 2
"""Of a longer time between two looks no more than so many count: this server, or its host, stood still, and nobody could take it back."""


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
        self._said = {id_: said for id_, said in self._said.items() if id_ in standing}
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
        said = self._said.get(deletion.id)
        if said is not None and now_ns - said.at_ns < LOOK_S * SECOND_NS:
            return said.hinders
        found = await removal.look(self._control.storage.machines(), name, counted.container)
        if wrong := rules.of_storage(name, counted, found):
            self._said[deletion.id] = _Said(now_ns, wrong)
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

        def work(db: Connection) -> bool:
            machine = inventory.find(db, name)
            if machine is None or machine.deletion is None or machine.deletion.id != deletion.id:
                return False
            detail = {**deletion_view.plain(deletion), "stays": stays, "now": named or ""}
            audit.add(db, SELF, "machine.deleted", name, detail, now_ns)
            what = f"{name} was deleted, as {deletion.who} asked{others}"
            rest = f"What was not deleted: {'; '.join(stays)}. The name can be used again: enrol it with a new token."
            deletions.note(db, name, what, rest, now_ns)
            if named:
                deletions.put(db, name, None)
            else:
                deletions.remove(db, name)
            return True

        if not named:  # first: a machine whose agent has reported is stored by whoever asks for it
            self._control.presence.forget(Role.AGENT, name)
        if await self._control.db.run(work) and not named:
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

    @staticmethod
    def _log_new(name: str, before: UnhealthyError | None, wrong: UnhealthyError) -> None:
        if before is None or (before.code, before.cause) != (wrong.code, wrong.cause):
            _log.warning("machine not deleted", machine=name, **wrong.as_dict())


def _storage(name: str, exc: UnderstudyError) -> DeletionStorageError:
    return DeletionStorageError(
        f"{name} is due to be deleted, and waits for storage", cause=f"{exc.what}: {exc.cause}"
    )

"""Handlers of deletions: what is lost, that it shall be, and that it shall not. At once the machine is stopped, as by `unprotect`, and what
was said is kept with it (deletions.py); what follows from that does deletion_sweep.py.

Who takes a deletion back is told what is so: whether there is a container still, and whether the machine's agent is refused. That it was
taken back is noted in the container, too, as is which one was said: a database that is set back with its whole host finds it there. Each
such note fences off the requests to delete the container that are on their way (removal.py): of these a database that was put back, or
whose storage is another account now, knows nothing. There nothing is said of a deletion before that is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec

from config_server.operations import deletion_job, machines
from config_server.operations.call import Call
from config_server.operations.control import Control, new_id
from config_server.operations.jobs import DRIVEN
from config_server.operations.protecting import Protecting
from config_server.rules import deletion_view
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Found, Stage
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.storage.deletion_note import NONE, Written
from config_server.store import audit, certificates, deletions, incarnations, inventory, journal, revocation
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared.api.deletion import DeletionRequest, Kept
from shared.api.machines import DeletionView, MachineView
from shared.api.points import PointView
from shared.api.route import Nothing
from shared.daemon import logging
from shared.errors import (
    AskerGoneError,
    ContainerMissingError,
    JobActError,
    RequestError,
    StorageError,
    UnderstudyError,
    UnhealthyError,
)
from shared.status import AgentReport
from shared.vocabulary import Role

_log = logging.get()


class _Points(NamedTuple):
    found: Sequence[PointView]
    unknown: str = ""


class _Meant(NamedTuple):
    container: str
    """Empty: none is the machine's."""
    found: Found
    points: _Points


class Deleting:
    def __init__(self, control: Control, protecting: Protecting) -> None:
        self._control = control
        self._protecting = protecting

    async def look(self, call: Call, _body: Nothing) -> DeletionView:
        """What is lost. Raises MachineNotFoundError, StorageError, IntegrityError; RequestError of what could not be asked for."""
        machine = await machines.known(self._control, call.path["machine"])
        container, found, points = await self._meant(machine.name)
        if machine.deletion is None:
            _check_its_own(f"'{machine.name}' cannot be deleted", machine.name, container, found)
        shown = deletion_view.shown(machine, self._hindered(machine))
        view = shown or DeletionView(machine=machine.name, container="", identity="", points=0)
        view.container, view.gone, view.identity = container, _is_gone(container, found), found.identity
        view.points, view.unknown = len(points.found), points.unknown
        if points.found:
            view.first, view.last = points.found[0].time, points.found[-1].time
        more = await removal.others(self._control.storage.machines(), machine.name, container)
        view.stays = [
            *deletion_view.what_stays(self._control.presence, machine.name),
            *map(deletion_view.older, more),
        ]
        return view

    async def delete(self, call: Call, body: DeletionRequest) -> MachineView:
        """Raises MachineNotFoundError, RequestError, BeingDeletedError, StorageError, IntegrityError, AskerGoneError."""
        machine = await machines.known(self._control, call.path["machine"])
        name, what = machine.name, f"'{machine.name}' is not to be deleted yet"
        enrolled = await self._control.db.run(lambda db: certificates.enrolments(db, Role.AGENT, name))
        container, found, points = await self._meant(name)
        _check_its_own(what, name, container, found)
        if body.container is not None and body.container != container:
            raise RequestError(
                what,
                cause=f"its container is {container or 'none'}, and {body.container or 'none'} was meant",
                action="Look again what would be lost, and ask again.",
            )
        now_ns, place, id_ = self._control.now_ns(), self._control.storage.place, new_id()

        def check(db: Connection) -> None:
            self._control.turns.check(db, deletion_job.saying(name))
            deletions.check_not_removed(db, name, place, what)
            if certificates.enrolments(db, Role.AGENT, name) != enrolled:
                raise RequestError(
                    what,
                    cause="an agent was enrolled under its name meanwhile",
                    action="Look again what would be lost, and ask again.",
                )
            if not call.is_there():  # he was told nothing, or that it failed
                raise AskerGoneError(what)

        def also(db: Connection, _before: Machine, after: Machine, _report: AgentReport | None) -> str:
            check(db)
            assert after.wish is not None
            deletion = Deletion(
                id=id_,
                incarnation=incarnations.history(db)[-1],
                who=call.who,
                asked_ns=now_ns,
                after_ns=int(body.after_s * SECOND_NS),
                counted_ns=now_ns,
                act=after.wish.mark.act,
                place=place,
                container=container,
                identity=found.identity,
                points=None if points.unknown else len(points.found),
            )
            deletions.put(db, name, deletion)
            audit.add(db, call.who, "machine.delete", name, deletion_view.plain(deletion), now_ns)
            day = deletion_view.day(deletion)
            back = f"To take it back: understudy machine keep {name}."
            deletions.note(db, name, f"{name} is to be deleted on {day}, as {call.who} asked", back, now_ns)
            return deletion_job.begin(db, name, id_, call.who, now_ns)

        async with self._one_at_a_time(name):
            await self._control.db.run(check)
            written: Written | None = None
            try:
                if container and not _is_gone(container, found):  # one that is brought back notes none: US631
                    written = await removal.note(self._control.storage.machines(), container, id_)
                    await removal.fence(self._control.storage.machines(), container)
                machine, job = await self._protecting.stop(call, name, also)
            except BaseException:
                if written is not None:
                    await self._take_back(name, container, written)
                raise
        self._control.bell.ring(DRIVEN)
        return msgspec.structs.replace(await machines.shown(self._control, machine), job=job)

    async def keep(self, call: Call, _body: Nothing) -> Kept:
        """Raises MachineNotFoundError, BeingDeletedError; StorageError where storage has to say first what became of it."""
        return await self._keep(call.who, call.path["machine"])

    async def cancel(self, job: Job, who: str) -> None:
        """The deletion to which it sees is taken back. Raises as `keep`, and JobActError where it is not that one any more."""
        await self._keep(who, job.machine, job)

    async def _keep(self, who: str, name: str, job: Job | None = None) -> Kept:
        now_ns, place = self._control.now_ns(), self._control.storage.place
        what = deletion_job.not_taken_back(name)

        def check(db: Connection) -> Machine:
            self._control.turns.check(db, deletion_job.saying(name))
            if job is not None and (deletion_job.of_machine(db, name) or job).id != job.id:
                raise JobActError(what, cause=f"job {job.id} has ended, and another deletion was said since")
            deletions.check_not_removed(db, name, place, what)
            return inventory.machine(db, name)

        def work(db: Connection) -> tuple[Deletion | None, bool]:
            deletion = check(db).deletion
            if deletion is None:
                return None, False
            there = deletion_job.of_machine(db, name)
            if there is not None:
                journal.cancel(db, there.id, who, now_ns)
            deletions.put(db, name, None)
            audit.add(db, who, "machine.keep", name, deletion_view.plain(deletion), now_ns)
            deletions.note(db, name, f"{name} is not to be deleted any more, as {who} asked", "", now_ns)
            is_refused = deletion.stage is Stage.CLOSING or revocation.is_refused(db, Role.AGENT, name)
            return deletion, is_refused

        async with self._one_at_a_time(name):
            asked = (await self._control.db.run(check)).deletion
            is_there = asked is None or await self._note_kept(asked)
            deletion, is_refused = await self._control.db.run(work)
        self._control.bell.ring(DRIVEN)
        machine = await machines.known(self._control, name)
        return Kept(
            machine=await machines.shown(self._control, machine),
            taken_back=deletion is not None,
            revoked=is_refused,
            gone=deletion is not None and not is_there,
        )

    # ---- inside

    def _one_at_a_time(self, name: str) -> AbstractAsyncContextManager[None]:
        """Of what is said of one machine's deletion, so that its container notes what this database has."""
        return self._control.turns.of(deletion_job.saying(name))

    async def _take_back(self, name: str, container: str, written: Written) -> None:
        """It was not said after all: in its container stands again what stood before. Where that fails a deletion waits, with an event
        (deletion_sweep.py)."""
        try:
            await removal.take_back(self._control.storage.machines(), container, written)
        except StorageError as exc:
            _log.warning(
                "not noted in storage that a deletion was not asked for", machine=name, **exc.as_dict()
            )

    async def _note_kept(self, deletion: Deletion) -> bool:
        """In its container; whether that is there, as far as is known. Storage that is away does not hinder it, unless this database does
        not know what became of the deletion."""
        place = self._control.storage.place
        if not deletion.container or not place:
            return True  # without storage nothing is deleted, nor is any request on its way
        storage = self._control.storage.machines()
        try:
            await removal.note(storage, deletion.container, NONE)
            await removal.fence(storage, deletion.container)
        except ContainerMissingError:
            return await self._is_there(deletion)
        except StorageError as exc:
            if await self._is_of_before(deletion):
                raise
            _log.warning("not noted in storage that a deletion was taken back", **exc.as_dict())
        return True

    async def _is_there(self, deletion: Deletion) -> bool:
        """Of a container that does not answer: by the account's list. What is in another account nobody knows here, nor where the list is
        refused."""
        storage = self._control.storage
        if deletion.place not in ("", storage.place):
            return True
        try:
            return not await removal.is_gone(storage.machines(), deletion.container)
        except StorageError as exc:
            if await self._is_of_before(deletion):
                raise
            _log.warning("not looked whether the container of a deletion is gone", **exc.as_dict())
            return True

    async def _is_of_before(self, deletion: Deletion) -> bool:
        place = self._control.storage.place
        return await self._control.db.run(lambda db: deletions.is_of_before(db, deletion, place))

    async def _meant(self, name: str) -> _Meant:
        """What is the machine's now."""
        storage = self._control.storage.machines()

        async def look() -> tuple[str, Found]:
            container = await storage.named(name) or ""
            return container, await removal.look(storage, name, container)

        (container, found), points = await asyncio.gather(look(), self._points(name))
        return _Meant(container, found, _Points(()) if _is_gone(container, found) else points)

    async def _points(self, name: str) -> _Points:
        try:
            return _Points((await self._control.storage.points(name)).points)
        except UnderstudyError as exc:
            return _Points((), f"{exc.what}: {exc.cause}" if exc.cause else exc.what)

    def _hindered(self, machine: Machine) -> UnhealthyError | None:
        return None if machine.deletion is None else self._control.hinders(machine.deletion.id)


def _is_gone(container: str, found: Found) -> bool:
    """Whether the registry names a container that is not there any more."""
    return bool(container) and found.metadata is None


def _check_its_own(what: str, name: str, container: str, found: Found) -> None:
    """Raises RequestError where the container does not say that it is the machine's."""
    own = {"machine": name, "vault": found.vault}
    if found.metadata is None or own.items() <= found.metadata.items():
        return
    said = ", ".join(f"{key}={found.metadata[key]}" for key in own if key in found.metadata)
    raise RequestError(
        what,
        cause=f"the metadata of its container {container} say {said or 'nothing of whose it is'}",
        action=f"If it is the machine's, as the registry says, give it these (az storage container metadata update --name {container}"
        f" --metadata machine={name} vault={found.vault}), and ask again.",
    )

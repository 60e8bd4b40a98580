"""Handlers of deletions: what is lost, that it shall be, and that it shall not. At once the machine is stopped, as by `unprotect`, and what
was said is kept with it (deletions.py); what follows from that does deletion_sweep.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from config_server.operations import machines
from config_server.operations.call import Call
from config_server.operations.control import Control, new_id
from config_server.operations.protecting import Protecting
from config_server.rules import deletion_view
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Deletion, Found, of_storage
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.store import audit, deletions, incarnations, inventory
from config_server.store.database import Connection
from shared.api.deletion import DeletionRequest, Kept
from shared.api.machines import DeletionView, MachineView
from shared.api.points import PointView
from shared.api.route import Nothing
from shared.errors import DeletionOfAnotherError, RequestError, UnderstudyError, UnhealthyError


class _Points(NamedTuple):
    found: Sequence[PointView]
    unknown: str = ""


class Deleting:
    def __init__(self, control: Control, protecting: Protecting) -> None:
        self._control = control
        self._protecting = protecting

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

        def also(db: Connection, before: Machine, after: Machine) -> None:
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
            if isinstance(wrong := of_storage(name, deletion, found), DeletionOfAnotherError):
                raise RequestError(
                    what, cause=wrong.cause, action="See which is right, and correct it first."
                )
            deletions.put(db, name, deletion)
            audit.add(db, call.who, "machine.delete", name, deletion_view.plain(deletion), now_ns)
            day = deletion_view.day(deletion)
            back = f"To take it back: understudy machine keep {name}."
            deletions.note(db, name, f"{name} is to be deleted on {day}, as {call.who} asked", back, now_ns)

        machine = await self._protecting.stop(call, name, also)
        return await machines.shown(self._control, machine)

    async def keep(self, call: Call, _body: Nothing) -> Kept:
        """Raises MachineNotFoundError, BeingDeletedError."""
        name, now_ns = call.path["machine"], self._control.now_ns()

        def work(db: Connection) -> tuple[Machine, Deletion | None]:
            machine = inventory.machine(db, name)
            if machine.deletion is None:
                return machine, None
            if deletions.is_past_recall(db, machine):
                raise deletions.being_deleted(name, f"The deletion of '{name}' was not taken back")
            deletions.put(db, name, None)
            audit.add(db, call.who, "machine.keep", name, deletion_view.plain(machine.deletion), now_ns)
            deletions.note(db, name, f"{name} is not to be deleted any more, as {call.who} asked", "", now_ns)
            return inventory.machine(db, name), machine.deletion

        machine, deletion = await self._control.db.run(work)
        return Kept(
            machine=await machines.shown(self._control, machine),
            taken_back=deletion is not None,
            revoked=deletion is not None and deletion.is_closed,
        )

    # ---- inside

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

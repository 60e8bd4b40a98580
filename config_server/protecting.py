"""Handlers of protection: which machines shall be protected, and which of their disks."""

from __future__ import annotations

import sqlite3

import msgspec

from config_server import audit, commands, inventory, machines, view
from config_server.binding import Binder, Call
from config_server.control import Control, check_name, new_id
from config_server.inventory import Machine
from shared import api
from shared.batch import SECTOR
from shared.errors import RequestError
from shared.limits import check_page_blob_target
from shared.messages import CommandKind, MachineView, Nothing, Protection


class Protecting:
    def __init__(self, control: Control) -> None:
        self._control = control

    def bind(self, binder: Binder) -> None:
        binder.on(api.PROTECT, self.protect)
        binder.on(api.UNPROTECT, self.unprotect)

    async def protect(self, call: Call, body: Protection) -> MachineView:
        """Record what shall be protected; a connected agent that protects other disks is told."""
        name = check_name(call.path["machine"], "machine")
        if len(set(body.disks)) != len(body.disks) or any(
            not disk.startswith("/dev/") for disk in body.disks
        ):
            raise RequestError(
                f"The protection of '{name}' was refused",
                cause="it needs the paths of its disks, /dev/NAME, each once",
            )
        now_ns = self._control.now_ns()
        facts = view.facts_of(self._control.presence, name, self._control.mono_ns())
        target = f"agent:{name}"
        reported = None
        if facts.agent is not None and not facts.agent[0].is_silent(self._control.mono_ns()):
            reported = {disk.device or f"/dev/{disk.name}" for disk in facts.agent[1].disks}

        self._check_sizes(facts, body)

        def work(db: sqlite3.Connection) -> Machine:
            machine = inventory.protect(db, name, body.disks, body.policy, now_ns)
            audit.add(db, call.who, "machine.protect", name, msgspec.to_builtins(body), now_ns)
            if reported is not None and reported != set(body.disks):
                commands.add(db, new_id(), target, CommandKind.PROTECT, {"disks": body.disks}, now_ns)
            return machine

        machine = await self._control.db.run(work)
        self._control.bell.ring(target)
        return await machines.shown(self._control, machine)

    def _check_sizes(self, facts: view.Facts, body: Protection) -> None:
        """Raises DiskTooLargeError for a disk that no master target here can hold."""
        if facts.agent is None or self._control.presence.has_image_target():
            return
        for disk in facts.agent[1].disks:
            if (disk.device or f"/dev/{disk.name}") in body.disks:
                check_page_blob_target(disk.name, disk.sectors * SECTOR)

    async def unprotect(self, call: Call, _body: Nothing) -> MachineView:
        known = await machines.known(self._control, call.path["machine"])
        target = f"agent:{known.name}"
        now_ns = self._control.now_ns()

        def work(db: sqlite3.Connection) -> Machine:
            machine = inventory.unprotect(db, known.name)
            audit.add(db, call.who, "machine.unprotect", known.name, {}, now_ns)
            if self._control.presence.agent(known.name) is not None:
                commands.add(db, new_id(), target, CommandKind.UNPROTECT, {}, now_ns)
            return machine

        machine = await self._control.db.run(work)
        self._control.bell.ring(target)
        return await machines.shown(self._control, machine)

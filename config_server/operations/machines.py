"""Machines as people see them, and what operations on one share: which a call means, how it is shown, whether its agent is there."""

from __future__ import annotations

import asyncio

from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.rules import view
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.store import certificates, inventory
from config_server.store.database import Connection
from shared.api.machines import MachineList, MachineView
from shared.api.route import Nothing
from shared.daemon import logging
from shared.errors import DisconnectedError, NeverReportedError, RequestError
from shared.vocabulary import Role

_log = logging.get()


async def known(control: Control, name: str) -> Machine:
    """Raises MachineNotFoundError; NeverReportedError where its agent was enrolled."""
    # An agent that has just reported for the first time is known before its machine is stored. (What another server heard it has stored,
    # unless the machine was deleted since.)
    agent = control.presence.agent(name)
    if agent is not None and (control.others is None or _is_new(agent[0], control.mono_ns())):
        await control.db.run(lambda db: inventory.ensure_machine(db, name, control.now_ns()))
    return await control.db.run(lambda db: _stored(db, name))


def _is_new(seen: Seen, now_ns: int) -> bool:
    """It was heard here, a moment ago."""
    return not seen.by and not seen.is_silent(now_ns)


def _stored(db: Connection, name: str) -> Machine:
    found = inventory.find(db, name)
    if found is None and certificates.is_known(db, Role.AGENT, name):
        raise NeverReportedError(f"Nothing is known of machine '{name}' yet")
    return found or inventory.machine(db, name)


async def shown(control: Control, machine: Machine) -> MachineView:
    last_point = await control.storage.last_point(machine.name)
    facts = control.facts(machine, last_point)
    return view.machine_view(machine, facts, control.mono_ns())


def present_agent(control: Control, machine: Machine, what: str) -> str:
    """Where commands for the machine go. One of whom this server could not have heard lately (it was started just now, or the server that
    heard it last is gone) is asked, too, and does it when it is there again. Raises RequestError, DisconnectedError."""
    if not machine.protected:
        raise RequestError(what, cause="it is not protected")
    found = control.presence.agent(machine.name)
    if found is None or found[0].is_missing(control.mono_ns()):
        raise DisconnectedError(what, cause="its agent does not report")
    return found[0].source


class Machines:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def all(self, _call: Call, _body: Nothing) -> MachineList:
        found = await self._control.db.run(inventory.machines)
        # Side by side: storage that hangs is waited for once, and not once for each.
        return MachineList(machines=await asyncio.gather(*(self._listed(machine) for machine in found)))

    async def _listed(self, machine: Machine) -> MachineView:
        """What cannot be shown of one machine hides no other."""
        try:
            return await shown(self._control, machine)
        except Exception as exc:  # noqa: BLE001 - whatever its daemons reported
            _log.error("a machine could not be shown: this is a bug", machine=machine.name, exc_info=exc)
            return view.not_shown(machine, exc)

    async def one(self, call: Call, _body: Nothing) -> MachineView:
        return await shown(self._control, await known(self._control, call.path["machine"]))

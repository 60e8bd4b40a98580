"""What handlers of machines share: which one a call means, and how it is shown."""

from __future__ import annotations

import sqlite3

from config_server.operations.control import Control
from config_server.rules import view
from config_server.rules.machine import Machine
from config_server.store import inventory, revocation
from shared.errors import NeverReportedError
from shared.messages import MachineView
from shared.vocabulary import Role


async def known(control: Control, name: str) -> Machine:
    """Raises MachineNotFoundError; NeverReportedError where its agent was enrolled."""
    # An agent that has just reported for the first time is known before its machine is stored.
    if control.presence.agent(name) is not None:
        await control.db.run(lambda db: inventory.ensure_machine(db, name, control.now_ns()))
    return await control.db.run(lambda db: _stored(db, name))


def _stored(db: sqlite3.Connection, name: str) -> Machine:
    found = inventory.find(db, name)
    if found is None and revocation.is_known(db, Role.AGENT, name):
        raise NeverReportedError(f"Nothing is known of machine '{name}' yet")
    return found or inventory.machine(db, name)


async def shown(control: Control, machine: Machine) -> MachineView:
    last_point = await control.storage.last_point(machine.name)
    facts = control.facts(machine, last_point)
    return view.machine_view(machine, facts, control.mono_ns())

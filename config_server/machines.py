"""What handlers of machines share: which one a call means, and how it is shown."""

from __future__ import annotations

from config_server import inventory, view
from config_server.control import Control
from config_server.inventory import Machine
from shared.messages import MachineView


async def known(control: Control, name: str) -> Machine:
    """Raises MachineNotFoundError."""
    # An agent that has just reported for the first time is known before its machine is stored.
    if control.presence.agent(name) is not None:
        await control.db.run(lambda db: inventory.ensure_machine(db, name, control.now_ns()))
    return await control.db.run(lambda db: inventory.machine(db, name))


async def shown(control: Control, machine: Machine) -> MachineView:
    last_point = await control.storage.last_point(machine.name)
    facts = control.facts(machine, last_point)
    return view.machine_view(machine, facts, control.mono_ns())

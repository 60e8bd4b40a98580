"""Which hardware a machine is, where this server has no storage (`[blob]`): its database alone says so.

The identity that stands there is the machine's, once there is one: that of whoever reported first. Nobody else can tell the machine from
a copy that carries its name and certificate (a drill VM, a clone), so another one becomes the machine by a person's word alone. Process
servers, which have storage, go by what that says, as ever: this changes nothing there.
"""

from __future__ import annotations

from config_server.operations import desired_state, machines
from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.rules.disks import Offer
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.store import audit, deletions, inventory
from config_server.store.database import Connection
from shared.api.copies import CopyList, CopyView, SideView
from shared.api.machines import ErrorView
from shared.daemon import logging
from shared.errors import RequestError
from shared.machine.active_side import UNKNOWN, shown
from shared.status import AgentReport

_log = logging.get()


async def copies(control: Control, name: str) -> CopyList:
    """Who it is, and who reports under its name. Raises MachineNotFoundError."""
    machine, agent = await machines.known(control, name), control.presence.agent(name)
    meant, unclear, others = "", None, []
    try:
        meant = _meant(machine, agent)
    except RequestError as exc:
        unclear = ErrorView(exc.code, exc.what, exc.cause, exc.action)
    if agent is not None and agent[1].identity != machine.identity:
        age_s = agent[0].age_s(control.mono_ns())
        cause = "it reports under this name, and is told nothing but to stop"
        others.append(
            CopyView(identity=agent[1].identity, address="-", refused_s=age_s, since_s=age_s, cause=cause)
        )
    return CopyList(
        machine=name, identity=machine.identity, generation=0, copies=others, meant=meant, unclear=unclear
    )


async def rebind(control: Control, call: Call, name: str, identity: str) -> SideView:
    """`identity`: empty for whoever reports. Raises MachineNotFoundError, RequestError, BeingDeletedError."""
    agent, now_ns = control.presence.agent(name), control.now_ns()
    identity = identity or _meant(await machines.known(control, name), agent)
    said = agent[1] if agent is not None and agent[1].identity == identity else None

    def work(db: Connection) -> Machine:
        deletions.check_not_removed(
            db, name, control.storage.place, f"'{name}' was not bound to other hardware"
        )
        before = inventory.machine(db, name)
        if before.identity != identity:
            told = said.wish if said is not None else None
            protects = (Offer.of(said).goes_by if said is not None else None) or ()
            desired_state.begin_anew(db, before, identity, told, now_ns, protects=protects)
        detail = {"identity": identity, "generation": 0, "before": before.identity}
        audit.add(db, call.who, "machine.rebind", name, detail, now_ns)
        return before

    before = await control.db.run(work)
    control.bell.ring(f"agent:{name}")
    _log.info("machine rebound, in this database alone", machine=name, identity=identity)
    return SideView(machine=name, identity=identity, generation=0, repeated=before.identity == identity)


def _meant(machine: Machine, agent: tuple[Seen, AgentReport] | None) -> str:
    """Whoever reports. Raises RequestError."""
    what, is_now = f"Machine '{machine.name}' was not bound anew", f"it is {shown(machine.identity)}"
    if agent is None:
        raise RequestError(
            what,
            cause=f"{is_now}, and nobody has reported under its name, so it is not known which machine is meant",
            action="Start the agent on the machine that is it from now on, or name its identity: --identity ID.",
        )
    if agent[1].identity == UNKNOWN:
        raise RequestError(
            what,
            cause=f"{is_now}, and whoever reports under its name has no identity",
            action="Give the machine an identity of its own (`identity` in its agent.toml), start its agent, and run the command again.",
        )
    return agent[1].identity

"""Handlers of replication policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from config_server.operations import machines
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.rules.machine import Machine
from config_server.store import audit, inventory, policies
from config_server.store.database import Connection
from shared.api.machines import MachineView, PolicyChoice
from shared.api.policies import Policy, PolicyList, PolicyView
from shared.api.route import Nothing


class PolicyOperations:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def default(self, _call: Call, _body: Nothing) -> Policy:
        return await self._control.db.run(lambda db: policies.get(db, policies.DEFAULT))

    async def put_default(self, call: Call, body: Policy) -> Policy:
        """By the command line of an earlier version, which knows no policy without an interval: it sends the one that nobody chose beside
        each threshold."""
        before = await self._control.db.run(lambda db: policies.get(db, policies.DEFAULT))
        if before.point_interval_s is msgspec.UNSET and body.point_interval_s == policies.UNCHOSEN_S:
            body = msgspec.structs.replace(body, point_interval_s=msgspec.UNSET)
        await self._put(call, policies.DEFAULT, body)
        return body

    async def all(self, _call: Call, _body: Nothing) -> PolicyList:
        return PolicyList(policies=await self._control.db.run(policies.views))

    async def get(self, call: Call, _body: Nothing) -> PolicyView:
        return await self._control.db.run(lambda db: policies.view(db, call.path["policy"]))

    async def put(self, call: Call, body: Policy) -> PolicyView:
        """Agents whose machines follow it are told at once. Raises ChangedSinceError, VersionNeededError."""
        name = check_name(call.path["policy"], "policy")

        def check(db: Connection) -> None:
            call.check_version(f"Policy '{name}' was not changed", policies.version(db, name))

        return await self._put(call, name, body, check)

    async def _put(
        self, call: Call, name: str, body: Policy, check: Callable[[Connection], None] = lambda _db: None
    ) -> PolicyView:
        now_ns = self._control.now_ns()

        def work(db: Connection) -> PolicyView:
            check(db)
            before = msgspec.to_builtins(policies.find(db, name))
            policies.put(db, name, body)
            detail = {"before": before, "after": msgspec.to_builtins(body)}
            audit.add(db, call.who, "policy.set", name, detail, now_ns)
            return policies.view(db, name)

        changed = await self._control.db.run(work)
        self._ring(changed.machines)
        return changed

    async def delete(self, call: Call, _body: Nothing) -> PolicyView:
        """What it was. Raises RequestError while it is assigned to a machine; ChangedSinceError."""
        name, now_ns = call.path["policy"], self._control.now_ns()

        def work(db: Connection) -> PolicyView:
            before = policies.view(db, name)
            call.check_version(f"Policy '{name}' was not deleted", before.version, is_needed=False)
            detail = {"before": msgspec.to_builtins(policies.find(db, name))}
            policies.delete(db, name)
            audit.add(db, call.who, "policy.delete", name, detail, now_ns)
            return before

        return await self._control.db.run(work)

    async def assign(self, call: Call, body: PolicyChoice) -> MachineView:
        machine, now_ns = await machines.known(self._control, call.path["machine"]), self._control.now_ns()

        def work(db: Connection) -> Machine:
            policies.assign(db, machine.name, body.name)
            after = inventory.machine(db, machine.name)
            detail = {"before": _named(machine), "after": _named(after)}
            audit.add(db, call.who, "policy.assign", machine.name, detail, now_ns)
            return after

        after = await self._control.db.run(work)
        self._ring([machine.name])
        return await machines.shown(self._control, after)

    def _ring(self, names: Iterable[str]) -> None:
        for name in names:
            self._control.bell.ring(f"agent:{name}")


def _named(machine: Machine) -> object:
    return machine.policy_name or msgspec.to_builtins(machine.policy)

"""Handlers of replication policies."""

from __future__ import annotations

import sqlite3

import msgspec

from config_server import audit, inventory
from config_server.binding import Binder, Call
from config_server.control import Control
from shared import api
from shared.messages import Nothing, Policy


class PolicyOperations:
    def __init__(self, control: Control) -> None:
        self._control = control

    def bind(self, binder: Binder) -> None:
        binder.on(api.POLICY, self.policy)
        binder.on(api.POLICY_SET, self.set_policy)

    async def policy(self, _call: Call, _body: Nothing) -> Policy:
        return await self._control.db.run(inventory.default_policy)

    async def set_policy(self, call: Call, body: Policy) -> Policy:
        now_ns = self._control.now_ns()

        def work(db: sqlite3.Connection) -> None:
            inventory.set_default_policy(db, body)
            audit.add(db, call.who, "policy.set", "default", msgspec.to_builtins(body), now_ns)

        await self._control.db.run(work)
        return body

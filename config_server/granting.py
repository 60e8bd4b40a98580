"""Grants: whoever restores a machine may read its container, and nothing else, for some hours; the account's key stays here.

A grant is a row of the database and a stored access policy of the machine's container, whose id comes from the grant's; the token that is
handed out names that policy and holds nothing besides (shared/blob/policies.py). Order of things: the row first, then the policy, then
the answer; to make it longer, the row first, then the policy; and to end it, the policy first, then the row. So a policy that counts always
has a row that says so, at least as long, and what is said to be revoked is. A policy of ours without a living row (a kill in between, a
database from a backup) is removed before the next is made.

All changes of one container's grants go through one lock here, which keeps rows and policies together; that no change of policies undoes
another one, whoever makes it and however late it lands, is seen to there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from config_server import audit, grants, inventory
from config_server.binding import Binder, Call
from config_server.clock import SECOND_NS, rfc3339
from config_server.control import Control, new_id
from config_server.grants import Grant
from shared import api, logging
from shared.blob import BlobStore
from shared.blob.policies import MOST, Policy, token
from shared.errors import (
    ContainerMissingError,
    GrantEndedError,
    GrantLimitError,
    StorageForgotError,
)
from shared.messages import GrantEnd, GrantList, GrantView, Limit, Nothing, StorageGrant

_log = logging.get()

_PREFIX: Final = "understudy-"


class Granting:
    def __init__(self, control: Control, life_hours: float) -> None:
        self._control = control
        self._life_ns = int(life_hours * 3600 * SECOND_NS)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By container."""

    def bind(self, binder: Binder) -> None:
        binder.on(api.GRANTS, self.list)
        binder.on(api.GRANT_RENEW, self.renew)
        binder.on(api.GRANT_END, self.end)

    async def give(
        self, call: Call, machine: str, store: BlobStore, *, host: str, again: str
    ) -> StorageGrant:
        """Access to the machine's container, `store`; that of the grant `again`, when one is named. Raises GrantLimitError,
        GrantEndedError, StorageError.
        """
        config, key = self._control.storage.account()
        granted = StorageGrant(
            url=config.url, container=store.container, ca_pem=self._control.storage.ca_pem()
        )
        if key is None:
            return granted  # no key, no token: the reader uses his own identity
        grant = await self._living(machine, again) if again else await self._new(call, machine, store, host)
        granted.id, granted.container = grant.id, grant.container
        granted.life_s = (grant.expires_ns - self._control.now_ns()) / SECOND_NS
        granted.sas = token(config.account, key, grant.container, _policy(grant))
        return granted

    async def list(self, call: Call, body: Limit) -> GrantList:
        machine, now_ns = call.path["machine"], self._control.now_ns()

        def work(db: sqlite3.Connection) -> list[Grant]:
            inventory.machine(db, machine)
            return grants.newest(db, machine, body.limit)

        found = await self._control.db.run(work)
        return GrantList(grants=[grants.view(grant, now_ns) for grant in found])

    async def renew(self, call: Call, _body: Nothing) -> GrantView:
        """Raises GrantEndedError for one that is over: whoever ended it shall not find it alive again."""
        machine, id_ = call.path["machine"], call.path["id"]
        store = self._store((await self._get(machine, id_)).container)
        async with self._locks[store.container]:
            grant = await self._living(machine, id_)
            if all(policy.id != _policy(grant) for policy in await store.policies.list()):
                raise _over(grant, "its policy was removed from the container")
            expires_ns = self._control.now_ns() + self._life_ns
            await self._note(
                call,
                "grant.renew",
                grant,
                {"expires": rfc3339(expires_ns)},
                lambda db: grants.extend(db, id_, expires_ns),
            )
            await store.policies.put(_policy(grant), _time(expires_ns))
        return grants.view(await self._get(machine, id_), self._control.now_ns())

    async def end(self, call: Call, body: GrantEnd) -> GrantView:
        """When it returns, storage refuses the token. Again is harmless. Raises StorageError: then it may still count."""
        machine, id_ = call.path["machine"], call.path["id"]
        store = self._store((await self._get(machine, id_)).container)
        async with self._locks[store.container]:
            grant = await self._get(machine, id_)
            if grant.ended_ns is None:
                with contextlib.suppress(
                    ContainerMissingError, StorageForgotError
                ):  # nor is there anything to read then
                    await store.policies.remove([_policy(grant)])
                now_ns = self._control.now_ns()
                await self._note(
                    call,
                    "grant.return" if body.returned else "grant.revoke",
                    grant,
                    {},
                    lambda db: grants.end(db, id_, call.who, now_ns, returned=body.returned),
                )
        return grants.view(await self._get(machine, id_), self._control.now_ns())

    # ---- inside

    async def _new(self, call: Call, machine: str, store: BlobStore, host: str) -> Grant:
        async with self._locks[store.container]:
            now_ns = self._control.now_ns()
            grant = Grant(
                id=new_id(),
                machine=machine,
                container=store.container,
                who=call.who,
                host=host,
                given_ns=now_ns,
                expires_ns=now_ns + self._life_ns,
            )
            alive = await self._control.db.run(lambda db: grants.living(db, store.container, now_ns))
            over = _checked(machine, await store.policies.list(), alive)
            await self._note(
                call,
                "grant.give",
                grant,
                {"host": host, "expires": rfc3339(grant.expires_ns)},
                lambda db: grants.add(db, grant),
            )
            try:
                await store.policies.put(_policy(grant), _time(grant.expires_ns), drop=over)
            except BaseException:
                # It may count already; nobody has its token, and the next grant removes it.
                await self._note(call, "grant.failed", grant, {}, lambda db: grants.forget(db, grant.id))
                raise
        _log.info("grant given", machine=machine, grant=grant.id, who=call.who, host=host)
        return grant

    async def _get(self, machine: str, id_: str) -> Grant:
        return await self._control.db.run(lambda db: grants.get(db, machine, id_))

    async def _living(self, machine: str, id_: str) -> Grant:
        grant = await self._get(machine, id_)
        if not grant.lives(self._control.now_ns()):
            raise _over(grant, f"{grant.ended_by} ended it" if grant.ended_by else "its time is over")
        return grant

    def _store(self, container: str) -> BlobStore:
        return self._control.storage.machines().vault.in_container(container)

    async def _note(
        self,
        call: Call,
        action: str,
        grant: Grant,
        detail: dict[str, str],
        work: Callable[[sqlite3.Connection], None],
    ) -> None:
        now_ns = self._control.now_ns()

        def both(db: sqlite3.Connection) -> None:
            work(db)
            audit.add(db, call.who, action, grant.machine, {"grant": grant.id, **detail}, now_ns)

        await self._control.db.run(both)


def _checked(machine: str, policies: list[Policy], alive: list[Grant]) -> list[str]:
    """Which policies of the container are over: ours, of no living grant. Raises GrantLimitError when the others leave no room."""
    by_policy = {_policy(grant): grant for grant in alive}
    over = [policy.id for policy in policies if policy.id.startswith(_PREFIX) and policy.id not in by_policy]
    left = [policy.id for policy in policies if policy.id not in over]
    if len(left) < MOST:
        return over
    named = [
        f"{grant.id} (of {grant.who}{f' on {grant.host}' if grant.host else ''}, until {rfc3339(grant.expires_ns)[:19]})"
        for id_ in left
        if (grant := by_policy.get(id_)) is not None
    ]
    foreign = [f"policy {id_!r}, which is not ours" for id_ in left if id_ not in by_policy]
    raise GrantLimitError(
        f"Access to machine '{machine}' was not granted",
        cause=f"a container takes {MOST} grants at a time, and these are there: {', '.join(named + foreign)}",
        action=f"Wait until one ends, or end one: understudy grant revoke {machine} ID.",
    )


def _over(grant: Grant, cause: str) -> GrantEndedError:
    return GrantEndedError(f"Grant {grant.id} of machine '{grant.machine}' is over", cause=cause)


def _policy(grant: Grant) -> str:
    return f"{_PREFIX}{grant.id}"


def _time(ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ns // SECOND_NS, dt.UTC)

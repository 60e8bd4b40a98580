"""Grants: whoever restores a machine may read its container, and nothing else, for some hours; the account's key stays here.

A grant is a row of the database and a stored access policy of the machine's container, whose id comes from the grant's; the token that is
handed out names that policy and holds nothing besides (shared/blob/policies.py). Order of things: the row first, then the policy, then
the answer; to make it longer, the row first, then the policy; and to end it, the policy first, then the row. So a policy that counts always
has a row that says so, at least as long, and what is said to be revoked is.

A database from a backup knows less than storage: grants that were given since, or made longer, go on to count there. `sweep` looks
through all containers, at the start and every hour: a policy of ours without a living row goes, one that ends later than its row is
made as short. What a kill in between left is found so, too. Ours is what has the form of our names; what others made is never touched.

Nobody knows whether an answer arrived. So a grant is given for FIRST_LIFE_S, and whoever has it makes it longer at once; one that
nobody ever took is over soon, and a container's few places are not used up by those who gave up waiting for slow storage. Whoever has
gone before it was given is given none, and takes none with him when he went meanwhile. Who asks again with the id of his first request
gets the same grant.

Grants end by storage's clock: that is who refuses the token. Each look at a container's policies says how far this host's clock is off.

All changes of one container's grants go one after the other (turns.py), also between config servers, which keeps rows and policies
together; that no change of policies undoes another one, whoever makes it and however late it lands, is seen to there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from config_server.operations.call import Call
from config_server.operations.control import Control, new_id
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.facts import SELF
from config_server.store import audit, deletions, grants, inventory
from config_server.store.database import Connection
from config_server.store.grants import Grant
from shared.api.restores import GrantEnd, GrantList, GrantView, StorageGrant
from shared.api.route import Limit, Nothing
from shared.blob import BlobStore
from shared.blob.policies import MOST, Look, Policy, token
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    AskerGoneError,
    ContainerMissingError,
    GrantEndedError,
    GrantLimitError,
    NotFoundError,
    RequestError,
    StorageForgotError,
    TransientError,
    UnderstudyError,
)

_log = logging.get()

FIRST_LIFE_S: Final = 300.0
"""How long a grant counts that nobody has made longer."""
SWEEP_S: Final = 3600.0
"""One request for each machine."""
_PREFIX: Final = "understudy-"
_OURS: Final = re.compile(r"understudy-[0-9a-f]{16}\Z")
_GONE: Final = (ContainerMissingError, StorageForgotError)
"""Nor is there anything to read then."""


class Granting:
    def __init__(self, control: Control, life_hours: float) -> None:
        self._control = control
        self._life_ns = int(life_hours * 3600 * SECOND_NS)
        self._ahead_ns = 0
        """How much storage's clock is ahead of this host's."""
        self._noted: set[tuple[str, str, str]] = set()
        """Action, container, policy: what is on record as being ended, and is not yet. A try that fails is not noted again."""

    async def give(
        self, call: Call, machine: str, store: BlobStore, *, host: str, again: str, request: str = ""
    ) -> StorageGrant:
        """Access to the machine's container, `store`; that of the grant `again`, when one is named, or that which `request` got already.
        Raises GrantLimitError, GrantEndedError, AskerGoneError, StorageError.
        """
        config, key = self._control.storage.account()
        granted = StorageGrant(
            url=config.url, container=store.container, ca_pem=self._control.storage.ca_pem()
        )
        if key is None:
            return granted  # no key, no token: the reader uses his own identity
        grant = (
            await self._living(machine, again)
            if again
            else await self._new(call, machine, store, host, request)
        )
        granted.id, granted.container = grant.id, grant.container
        granted.life_s = (grant.expires_ns - self._now_ns()) / SECOND_NS
        granted.sas = token(config.account, key, grant.container, _policy(grant))
        return granted

    async def list(self, call: Call, body: Limit) -> GrantList:
        machine, now_ns = call.path["machine"], self._now_ns()

        def work(db: Connection) -> list[Grant]:
            inventory.machine(db, machine)
            return grants.newest(db, machine, body.limit)

        found = await self._control.db.run(work)
        return GrantList(grants=[grants.view(grant, now_ns) for grant in found])

    async def renew(self, call: Call, _body: Nothing) -> GrantView:
        """Raises GrantEndedError for one that is over: whoever ended it shall not find it alive again."""
        machine, id_ = call.path["machine"], call.path["id"]
        store = self._store((await self._get(machine, id_)).container)
        async with self._control.turns.of(_changing(store.container)):
            look = await self._look(store)
            grant = await self._living(machine, id_)
            if all(policy.id != _policy(grant) for policy in look.policies):
                raise _over(grant, "its policy was removed from the container")
            expires_ns = self._now_ns() + self._life_ns
            await self._note(
                call.who,
                "grant.renew",
                grant,
                {"expires": rfc3339(expires_ns)},
                lambda db: grants.extend(db, id_, expires_ns),
            )
            reach("grant.longer-in-row")
            await store.policies.put(_policy(grant), _time(expires_ns))
            reach("grant.longer")
        return grants.view(await self._get(machine, id_), self._now_ns())

    async def end(self, call: Call, body: GrantEnd) -> GrantView:
        """When it returns, storage refuses the token. Again is harmless. Raises StorageError: then it may still count."""
        machine, id_ = call.path["machine"], call.path["id"]
        store = self._store((await self._get(machine, id_)).container)
        async with self._control.turns.of(_changing(store.container)):
            grant = await self._get(machine, id_)
            if grant.ended_ns is None:
                await self._end(store, grant, call.who, returned=body.returned)
        return grants.view(await self._get(machine, id_), self._now_ns())

    async def take_back(
        self, machine: str, id_: str, who: str, *, returned: bool, unless: Callable[[Connection], bool]
    ) -> bool:
        """As `end`, where nobody has ended it and not `unless`, which is asked where nobody takes it up meanwhile (`kept`). Whether it was.
        (One whose time is over, too: that is by this host's clock, and storage goes by its own.) Raises StorageError: then it may
        still count."""
        try:
            store = self._store((await self._get(machine, id_)).container)
            async with self._control.turns.of(_changing(store.container)):
                grant = await self._get(machine, id_)
                if grant.ended_ns is not None or await self._control.db.run(unless):
                    return False
                await self._end(store, grant, who, returned=returned)
        except NotFoundError:
            return False  # it went with its machine; or the database does not know it, and sweep ends it
        return True

    @contextlib.asynccontextmanager
    async def kept(self, call: Call, storage: StorageGrant) -> AsyncIterator[Callable[[Connection], None]]:
        """While it is written down that somebody reads by this grant, nobody ends it. What it gives is called first in the transaction that
        writes. Raises GrantEndedError, AskerGoneError, DeadlineError."""
        turn = _changing(storage.container)
        async with self._control.turns.of(turn):
            if storage.id:
                await self._living(call.path["machine"], storage.id)
            _check_there(call, call.path["machine"])  # he may have waited long, behind others
            yield lambda db: self._control.turns.check(db, turn)

    async def sweep(self) -> None:
        """Ends what counts in storage and is on no record, in every container. What hinders it in one, whatever it is, hinders it in no
        other; the first such error is raised at the end, before all the first that time alone does not mend.
        """
        if not self._control.storage.grants:
            return
        failed: list[Exception] = []
        for container, machine in (await self._control.storage.machines().containers()).items():
            if await self._control.force.is_superseded():
                return  # another server's grants would be strays to this one
            try:
                await self._sweep_one(container, machine)
            except _GONE:
                pass
            except Exception as exc:  # noqa: BLE001 - raised at the end
                failed.append(exc)
        if failed:
            raise next((exc for exc in failed if not isinstance(exc, TransientError)), failed[0])

    # ---- inside

    async def _end(self, store: BlobStore, grant: Grant, who: str, *, returned: bool) -> None:
        with contextlib.suppress(*_GONE):
            await store.policies.remove([_policy(grant)])
        reach("grant.ended-in-storage")
        now_ns = self._now_ns()
        await self._note(
            who,
            "grant.return" if returned else "grant.revoke",
            grant,
            {},
            lambda db: grants.end(db, grant.id, who, now_ns, returned=returned),
        )

    async def _sweep_one(self, container: str, machine: str) -> None:
        store = self._store(container)
        async with self._control.turns.of(_changing(container)):
            look = await self._look(store)
            alive = await self._alive(container)
            over = _over_policies(look.policies, alive)
            longer = [grant for policy in look.policies if (grant := _shorter(policy, alive)) is not None]
            await self._note_strays(container, machine, look, over, longer)
            reach("grant.strays-noted")
            if over:
                await store.policies.remove(over)
            reach("grant.strays-removed")
            for grant in longer:
                await store.policies.put(_policy(grant), _time(grant.expires_ns))
            self._ended(container)

    async def _note_strays(
        self, container: str, machine: str, look: Look, over: Sequence[str], longer: Sequence[Grant]
    ) -> None:
        """That somebody could read is on record before that ends, lest a stop in between makes it forgotten: then it is noted twice. What
        had ended by itself needs no word.
        """
        until = {policy.id: policy.until for policy in look.policies}
        strays = [("grant.swept", id_) for id_ in over if (end := until[id_]) is None or end > look.date]
        strays += [("grant.shortened", _policy(grant)) for grant in longer]
        found = [(action, id_) for action, id_ in strays if (action, container, id_) not in self._noted]
        now_ns = self._control.now_ns()

        def work(db: Connection) -> None:
            for action, id_ in found:
                detail = {"grant": id_.removeprefix(_PREFIX), "container": container}
                audit.add(db, SELF, action, machine, detail, now_ns)

        if found:
            _log.warning(
                "grants that are on no record end", machine=machine, container=container, found=found
            )
            await self._control.db.run(work)
            self._noted.update((action, container, id_) for action, id_ in found)

    def _ended(self, container: str) -> None:
        """What is found there from now on is another stray."""
        self._noted = {noted for noted in self._noted if noted[1] != container}

    async def _new(self, call: Call, machine: str, store: BlobStore, host: str, request: str) -> Grant:
        async with self._control.turns.of(_changing(store.container)):
            _check_there(call, machine)  # he may have waited long, behind others
            look = await self._look(store)
            before = await self._asked_before(call, machine, store, request)
            if before is not None:
                if any(policy.id == _policy(before) for policy in look.policies):
                    return before
                # Stopped before it counted, or somebody removed it: in neither case it comes alive under its name.
                await self._note(
                    call.who, "grant.untaken", before, {}, lambda db: grants.forget(db, before.id)
                )
            now_ns = self._now_ns()
            grant = Grant(
                id=new_id(),
                machine=machine,
                container=store.container,
                who=call.who,
                host=host,
                given_ns=now_ns,
                expires_ns=now_ns + min(self._life_ns, int(FIRST_LIFE_S * SECOND_NS)),
                request=request,
            )
            alive = await self._alive(store.container)
            over = _checked(machine, look.policies, alive)
            await self._note_strays(store.container, machine, look, over, ())
            await self._give(call, store, grant, over)
            self._ended(store.container)
            if not call.is_there():
                await self._take_back(call, store, grant)
            _check_there(call, machine)
        _log.info("grant given", machine=machine, grant=grant.id, who=call.who, host=host)
        return grant

    async def _give(self, call: Call, store: BlobStore, grant: Grant, over: Sequence[str]) -> None:
        def add(db: Connection) -> None:
            deletions.check_readable(db, grant.machine, self._control.storage.place)
            # Since it was looked for: for another container, or by another server.
            if grants.asked_for(db, grant.request) is not None:
                raise RequestError(
                    f"Access to machine '{grant.machine}' was not granted",
                    cause="the same request is being answered already",
                    action="Ask again, with the same id.",
                )
            grants.add(db, grant)

        await self._note(
            call.who,
            "grant.give",
            grant,
            {"host": grant.host, "expires": rfc3339(grant.expires_ns)},
            add,
        )
        reach("grant.in-row")
        try:
            await store.policies.put(_policy(grant), _time(grant.expires_ns), drop=over)
            reach("grant.given")
        except BaseException:
            # It may count already; nobody has its token, and the next grant, or sweep, removes it.
            await self._note(call.who, "grant.failed", grant, {}, lambda db: grants.forget(db, grant.id))
            raise

    async def _asked_before(self, call: Call, machine: str, store: BlobStore, request: str) -> Grant | None:
        """What this request got, when it was made first. Raises RequestError, GrantEndedError."""
        grant = await self._control.db.run(lambda db: grants.asked_for(db, request))
        if grant is None:
            return None
        if (grant.machine, grant.container, grant.who) != (machine, store.container, call.who):
            raise RequestError(
                f"Access to machine '{machine}' was not granted",
                cause="the id of the request is that of another one, which got access to something else",
                action="Ask with a new random id.",
            )
        return await self._living(machine, grant.id)

    async def _take_back(self, call: Call, store: BlobStore, grant: Grant) -> None:
        """Nobody has its token. When storage does not take it back, its first life ends soon."""
        with contextlib.suppress(UnderstudyError):
            await store.policies.remove([_policy(grant)])
            await self._note(call.who, "grant.untaken", grant, {}, lambda db: grants.forget(db, grant.id))

    async def _look(self, store: BlobStore) -> Look:
        look = await store.policies.look()
        self._ahead_ns = int(look.date.timestamp()) * SECOND_NS - self._control.now_ns()
        return look

    def _now_ns(self) -> int:
        """Storage's time of day, as far as it is known."""
        return self._control.now_ns() + self._ahead_ns

    async def _alive(self, container: str) -> Sequence[Grant]:
        now_ns = self._now_ns()
        return await self._control.db.run(lambda db: grants.living(db, container, now_ns))

    async def _get(self, machine: str, id_: str) -> Grant:
        return await self._control.db.run(lambda db: grants.get(db, machine, id_))

    async def _living(self, machine: str, id_: str) -> Grant:
        grant = await self._get(machine, id_)
        if not grant.lives(self._now_ns()):
            raise _over(grant, f"{grant.ended_by} ended it" if grant.ended_by else "its time is over")
        return grant

    def _store(self, container: str) -> BlobStore:
        return self._control.storage.machines().vault.in_container(container)

    async def _note(
        self,
        who: str,
        action: str,
        grant: Grant,
        detail: dict[str, str],
        work: Callable[[Connection], None],
    ) -> None:
        now_ns = self._control.now_ns()

        def both(db: Connection) -> None:
            self._control.turns.check(db, _changing(grant.container))
            work(db)
            audit.add(db, who, action, grant.machine, {"grant": grant.id, **detail}, now_ns)

        await self._control.db.run(both)


def _changing(container: str) -> str:
    return f"grants of {container}"


def _check_there(call: Call, machine: str) -> None:
    """Raises AskerGoneError."""
    if not call.is_there():
        raise AskerGoneError(f"Access to machine '{machine}' was not granted")


def _over_policies(policies: Sequence[Policy], alive: Sequence[Grant]) -> list[str]:
    """Those of ours that no living grant has."""
    known = {_policy(grant) for grant in alive}
    return [policy.id for policy in policies if _OURS.match(policy.id) and policy.id not in known]


def _shorter(policy: Policy, alive: Sequence[Grant]) -> Grant | None:
    """The grant that is over before its policy is."""
    grant = next((grant for grant in alive if _policy(grant) == policy.id), None)
    if grant is None or (policy.until is not None and policy.until <= _time(grant.expires_ns)):
        return None
    return grant


def _checked(machine: str, policies: Sequence[Policy], alive: Sequence[Grant]) -> list[str]:
    """Which policies of the container are over. Raises GrantLimitError when the others leave no room."""
    by_policy = {_policy(grant): grant for grant in alive}
    over = _over_policies(policies, alive)
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

"""Copies of machines at the config server: refused for status, commands and renewal, as process servers refuse them for replication.

Which machine is the active side stands in storage (shared/machine/active_side.py); it is read when a machine is first heard of, and
again when somebody with another identity speaks. While storage cannot be read, what was known counts. Where none is configured, nobody is
refused here for his identity, and who the machine is says the database (row_binding.py).

A copy with the same identity is told by its boot. The machine is the one whose session a process server has open, since that was asked and
answered, unless storage calls another server the machine's (serving.py); without a session, the one that reported within the last moments.
Whoever was really restarted is heard as soon as the old boot is gone there, a few seconds later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Set
from typing import Final, NamedTuple

from config_server.operations import act_jobs, row_binding
from config_server.operations.call import Call
from config_server.operations.control import SIDE, Control, check_name, new_id
from config_server.operations.jobs import DRIVEN
from config_server.rules.acts import Rebound
from config_server.rules.clock import SECOND_NS
from config_server.rules.copies import Copies, meant
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.rules.serving import signature
from config_server.storage import removal
from config_server.store import audit, commands, deletions, inventory
from config_server.store.database import Connection
from shared.api.commands import CommandKind
from shared.api.copies import CopyList, CopyView, RebindRequest, SideView
from shared.api.machines import ErrorView
from shared.api.route import Nothing
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import (
    BeingDeletedError,
    ConfigError,
    ContainerMissingError,
    CopyRefusedError,
    IntegrityError,
    MachineNotFoundError,
    RequestError,
    StorageError,
)
from shared.machine import active_side
from shared.machine.active_side import ActiveSide, Known
from shared.status import AgentReport, Problem
from shared.vocabulary import Role

_log = logging.get()

_ASK_AGAIN_S: Final = 10.0
_ASK_S: Final = 2.0
"""How long storage may take; a report is not held up for longer."""
_NAMED: Final = 3
"""So many copies are named in words."""
RECENT_S: Final = 6.0
"""A boot that reported so lately is there: reports come every two seconds."""


class _Heard(NamedTuple):
    boot: str
    at_s: float


class Sides:
    def __init__(self, control: Control) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._control = control
        self._known = Known()
        self._asked_s: dict[str, float] = {}
        self._anew: set[str] = set()
        """Another config server has said whose these are: storage is asked, whoever reports."""
        self._nobody: set[str] = set()
        """Of them storage says that no machine of this name was ever replicated."""
        self._heard: dict[str, _Heard] = {}
        self._copies = Copies()

    async def admit(
        self, machine: str, identity: str, boot: str | None, address: str, former: str = ""
    ) -> None:
        """Raises CopyRefusedError: nothing that the caller says is of this machine. `boot` None: whichever of its boots it is, as for
        a renewal, which a wrong word about boots must not hinder until the certificate is over. `former`: the boot that it says it had
        before in the same process, which no copy knows."""
        now_s = self.clock()
        try:
            side = await self._side(machine, identity, now_s)
            if side is not None and side.identity != active_side.UNKNOWN:
                side.check(identity)
            if boot is not None:
                await self._check_boot(machine, {boot, former or boot}, now_s)
        except CopyRefusedError as exc:
            self._copies.refused(machine, identity, boot, address, exc, now_s)
            raise
        if boot is not None:
            self._heard[machine] = _Heard(boot, now_s)
            self._copies.admitted(machine, identity, boot)

    async def ask(self, machine: str) -> None:
        """Before somebody speaks of the machine's disks: this process may have heard of no hardware yet. Storage that is away does not
        hinder him."""
        if self._known.get(machine) is None:
            await self._side(machine, active_side.UNKNOWN, self.clock())

    def bound(self, machine: str) -> str:
        """The identity of the hardware that is the machine, as storage said last; empty while it has not said one."""
        side = self._known.get(machine)
        return active_side.UNKNOWN if side is None else side.identity

    def is_the_machine(self, machine: str, identity: str) -> bool:
        """Whether storage says so of one that was admitted; where no machine of this name was ever replicated, anybody is."""
        if self._known.get(machine) is None:
            return machine in self._nobody
        return identity != active_side.UNKNOWN and identity == self.bound(machine)

    def agent(self, machine: str, known: Machine | None) -> tuple[Seen, AgentReport] | None:
        """What its agent said last, on the hardware that is the machine by storage, or, while that names none, by what is `known`: disks
        of another one's report are others. Nor does an act make that the machine: it may be a copy."""
        found = self._control.presence.agent(machine)
        is_ = self.bound(machine) or (known.identity if known is not None else active_side.UNKNOWN)
        if found is None or is_ in (active_side.UNKNOWN, found[1].identity):
            return found
        return found if self.is_the_machine(machine, found[1].identity) else None

    def forget(self, machine: str) -> None:
        """It was deleted."""
        self._known.forget(machine)
        self._copies.forget(machine)
        self._heard.pop(machine, None)
        self._asked_s.pop(machine, None)
        self._nobody.discard(machine)
        self._anew.discard(machine)

    def ask_anew(self, machine: str | None = None) -> None:
        """Whose it is may have changed; None: of each. What is known counts while storage cannot be asked."""
        for name in list(self._asked_s) if machine is None else [machine]:
            self._anew.add(name)
            self._asked_s.pop(name, None)

    def problems(self) -> list[Problem]:
        return self._copies.problems(self.clock())

    def refused(self, machine: str) -> str:
        """In words, who was refused lately as a copy of it, and why; empty: nobody."""
        found = self._copies.lately(machine, self.clock())[:_NAMED]
        return "; ".join(
            f"refused is {active_side.shown(one.identity)} at {one.address}: {one.error.cause}"
            for one in found
        )

    async def copies(self, call: Call, _body: Nothing) -> CopyList:
        """Who is the machine, who was refused as a copy of it lately, and whom `rebind` means where it names nobody."""
        machine = check_name(call.path["machine"], "machine")
        if not self._control.storage.place:
            return await row_binding.copies(self._control, machine)
        side = await self._stored(await self._control.storage.machines().find(machine))
        now_s = self.clock()
        meant, unclear = "", None
        try:
            meant = self._meant(machine, side)
        except RequestError as exc:
            unclear = ErrorView(exc.code, exc.what, exc.cause, exc.action)
        return CopyList(
            machine=machine,
            identity=side.identity if side is not None else "",
            generation=side.generation if side is not None else 0,
            copies=[
                CopyView(
                    identity=refused.identity,
                    address=refused.address,
                    refused_s=now_s - refused.at_s,
                    since_s=now_s - refused.since_s,
                    cause=refused.error.cause,
                )
                for refused in self._copies.lately(machine, now_s)
            ],
            meant=meant,
            unclear=unclear,
        )

    async def rebind(self, call: Call, body: RebindRequest) -> SideView:
        """From now on another machine is the one of this name: what the operator names, or what was refused as a copy, where only one was.
        Asked for what is so already it changes nothing, and answers the same. Raises BeingDeletedError, among others."""
        machine = check_name(call.path["machine"], "machine")
        place, what = self._control.storage.place, _not_bound(machine)
        if not place:
            return await row_binding.rebind(self._control, call, machine, body.identity)
        await self._control.db.run(lambda db: deletions.check_not_removed(db, machine, place, what))
        store = await self._control.storage.machines().find(machine)
        moment = self._known.asking()
        before = await self._stored(store)
        identity = body.identity or self._meant(machine, before)
        if before is not None and before.identity == identity:
            side = before  # the answer to the first time was lost, or somebody repeats it
        else:
            side = await active_side.change(store, machine, identity)
        await self._keep_from_removal(machine, store)
        now_ns = self._control.now_ns()
        self._known.learn(side, moment)
        if side is not before:
            self._heard.pop(machine, None)
        is_there = self._copies.bound(machine, identity)
        holders = [seen for seen, _stream in self._control.presence.streams(machine)]
        asked = {seen.source: new_id() for seen in holders}
        if is_there:
            # Its agent pauses for a minute before it says Hello again; its next report, in a moment, is taken, and gets this.
            asked[f"agent:{machine}"] = new_id()
        mono_ns = self._control.mono_ns()
        silent = [seen.source for seen in holders if seen.is_silent(mono_ns)]
        at = act_jobs.moment(self._control, machine, call.who)

        def work(db: Connection) -> str:
            detail = {
                "identity": identity,
                "generation": side.generation,
                "before": before.identity if before else "",
            }
            audit.add(db, call.who, "machine.rebind", machine, detail, now_ns)
            for holder, id_ in asked.items():
                commands.add(db, id_, holder, CommandKind.CHECK_SIDE, {"machine": machine}, now_ns)
            rebound = Rebound(identity=identity, generation=side.generation, before=side.replaced)
            known = inventory.find(db, machine)
            return act_jobs.begin_rebind(db, machine, known, rebound, at, is_repeated=side is before)

        job = await self._control.db.run(work)
        for holder in (f"{SIDE}{machine}", *asked, DRIVEN):
            self._control.bell.ring(holder)
        _log.info("machine rebound", machine=machine, identity=identity, generation=side.generation)
        return SideView(
            machine=machine,
            identity=identity,
            generation=side.generation,
            repeated=side is before,
            asked={holder: id_ for holder, id_ in asked.items() if holder not in silent},
            silent=silent,
            job=job,
        )

    # ---- inside

    async def _keep_from_removal(self, machine: str, store: BlobStore) -> None:
        """Who looked at it before it was bound, to delete it, removes it no more; it may be another config server. Raises BeingDeletedError
        where he did."""
        try:
            await removal.fence(self._control.storage.machines(), store.container)
        except ContainerMissingError as exc:
            raise BeingDeletedError(_not_bound(machine), cause=exc.cause) from exc

    async def _stored(self, store: BlobStore) -> ActiveSide | None:
        """None also for a document that cannot be read: binding the machine anew is what mends it."""
        try:
            return await active_side.find(store)
        except IntegrityError:
            return None

    def _meant(self, machine: str, side: ActiveSide | None) -> str:
        changed_s = max(0.0, (self._control.now_ns() - side.changed_ns) / SECOND_NS) if side else 0.0
        now_s = self.clock()
        return meant(machine, side, self._copies.lately(machine, now_s), now_s, changed_s)

    async def _side(self, machine: str, identity: str, now_s: float) -> ActiveSide | None:
        side = self._known.get(machine)
        fits = side is not None and side.identity == identity and machine not in self._anew
        if not self._control.storage.place:
            return side  # there is none to ask (row_binding.py)
        if not fits and now_s - self._asked_s.get(machine, -_ASK_AGAIN_S) >= _ASK_AGAIN_S:
            self._asked_s[machine] = now_s
            asked = self._known.asking()
            try:
                async with asyncio.timeout(_ASK_S):
                    found, _ = await active_side.find_of(self._control.storage.machines(), machine)
            except MachineNotFoundError:
                self._nobody.add(machine)
                self._anew.discard(machine)
                return side
            except (StorageError, IntegrityError, ConfigError, TimeoutError) as exc:
                _log.warning("active side not asked for", machine=machine, cause=str(exc))
            else:
                self._anew.discard(machine)
                if found is None:
                    self._nobody.add(machine)
                side = self._known.learn(found, asked) if found is not None else self._known.get(machine)
        return side

    async def _check_boot(self, machine: str, boots: Set[str], now_s: float) -> None:
        """`boots`: all that are the caller's.

        Of sessions with several servers (one may not know yet that its own is over) the caller's own counts. That of a server which is
        not the machine's by storage keeps nobody out, nor does any while storage knows no term of the machine: it is over, or was made up.
        An owner of whom nobody has heard here is no server's word against another's: its name may be written wrong in a configuration.
        """
        now_ns = self._control.mono_ns()
        streams = list(self._control.presence.streams(machine))
        sessions = [
            (seen, stream.boot)
            for seen, stream in streams
            if stream.connected and stream.boot and not seen.is_silent(now_ns)
        ]
        if any(theirs in boots for _seen, theirs in sessions):
            return
        if sessions:
            owner = await self._control.serving.asked(machine, signature(streams))
            known = owner == "" or (
                owner is not None and self._control.presence.of(Role.PROCESS_SERVER, owner) is not None
            )
            theirs = [seen for seen, _boot in sessions if not known or seen.name == owner]
            if theirs:
                raise _same_identity(machine, f"it has a session with {theirs[0].source}")
        heard = self._heard.get(machine)
        is_heard = heard is not None and heard.boot not in boots and now_s - heard.at_s < RECENT_S
        elsewhere = self._control.presence.agent(machine)
        if elsewhere is not None and elsewhere[0].by and elsewhere[1].boot not in boots:
            is_heard |= elsewhere[0].age_s(now_ns) < RECENT_S
        if is_heard:
            raise _same_identity(machine, "it reported a moment ago")


def _not_bound(machine: str) -> str:
    return f"'{machine}' was not bound to other hardware"


def _same_identity(machine: str, why: str) -> CopyRefusedError:
    return CopyRefusedError(
        f"A copy of machine {machine} was refused",
        cause=f"the machine is there ({why}), and this is another boot with the same identity",
    )

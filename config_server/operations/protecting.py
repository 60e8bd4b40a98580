"""Handlers of protection: what is wanted of a machine's agent. It is told with the answer to its next report (desired_state.py).

Whatever loses nothing is taken: more disks, another process server. Fewer disks than before, disks that the agent does not know, and a
machine of which nothing is known each want a word of their own in the request, since a mistyped path or name looks the same. That word can
say what was shown to whom it was asked: which disks go (`gone`), and over which act (`over`). What somebody else has said meanwhile is
not undone by his yes.

An act holds from then on, whatever becomes of it. What becomes of it a job sees (act_jobs.py), which is in nobody's way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from config_server.operations import act_jobs, desired_state, machines
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.operations.jobs import DRIVEN
from config_server.operations.sides import Sides
from config_server.rules import acts as rules
from config_server.rules.clock import rfc3339
from config_server.rules.disks import Offer
from config_server.rules.lanes import Watch
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.rules.wishes import in_words, named, without, word_of
from config_server.store import audit, certificates, deletions, inventory, policies
from config_server.store.database import Connection
from shared.api.machines import MachineView
from shared.api.protection import DiskCandidates, Protection
from shared.api.route import Nothing
from shared.desired import Verb, WantedDisk
from shared.errors import (
    FewerDisksError,
    MachineNotFoundError,
    NeverReportedError,
    RequestError,
    SaidSinceError,
    ToBeDeletedError,
)
from shared.machine.active_side import UNKNOWN, shown
from shared.naming import address_of, is_address
from shared.status import MAX_WORD, AgentReport
from shared.vocabulary import Role

_Agent = tuple[Seen, AgentReport] | None
_Also = Callable[[Connection, Machine, Machine, AgentReport | None], str]


class Protecting:
    def __init__(self, control: Control, sides: Sides) -> None:
        self._control = control
        self._sides = sides

    async def protect(self, call: Call, body: Protection) -> MachineView:
        """Raises RequestError, MachineNotFoundError, PolicyNotFoundError, FewerDisksError, SaidSinceError, DiskTooLargeError,
        ToBeDeletedError, BeingDeletedError."""
        name = check_name(call.path["machine"], "machine")
        what = f"The protection of '{name}' was refused"
        _check_words(what, body)
        await self._sides.ask(name)
        now_ns = self._control.now_ns()
        stored = await self._control.db.run(lambda db: inventory.find(db, name))
        agent = self._sides.agent(name, stored)
        is_other = agent is None and self._control.presence.agent(name) is not None
        is_moved = is_other and self._sides.bound(name) != UNKNOWN
        is_unclear = is_other and not is_moved
        offer = Offer.of(agent[1] if agent is not None else None)
        has_image_target = self._control.presence.has_image_target()
        said = agent[1].wish if agent is not None else None
        at = act_jobs.moment(self._control, name, call.who, agent[1] if agent is not None else None)

        def work(db: Connection) -> tuple[Machine, str]:
            before = inventory.find(db, name)
            if before is not None:
                deletions.check_not_removed(db, name, self._control.storage.place, what)
                _refuse_to_be_deleted(what, before)
            if body.over is not None:
                _refuse_said_since(what, body.over, before)
            if before is not None:
                if is_other and not self._control.storage.place:
                    self._refuse_other(what, before, now_ns=self._control.mono_ns())
                before = self._as_bound(db, before, now_ns)
                if agent is not None and before.identity in (UNKNOWN, agent[1].identity):
                    before = desired_state.settle(db, before, offer, said)
            if agent is None and not body.offline and not is_unclear:
                _refuse_unknown(db, what, name, before, is_moved=is_moved)
            known = before.disks if before is not None else ()
            disks = offer.meant(what, body.disks, known)
            if not has_image_target:
                offer.check_sizes(disks)
            if not body.force:
                offer.check(what, disks, known)
                if is_unclear and not body.offline:
                    _refuse_unknown_disks(what, disks, known)
            is_any = body.fewer and body.gone is None
            if not is_any and before is not None and not before.ended:
                _check_fewer(what, offer, known, disks, body.gone)
            machine = inventory.act(
                db,
                name,
                Verb.PROTECT,
                now_ns,
                disks=disks,
                process_servers=tuple(body.process_servers),
                known=said.mark if said is not None else None,
                identity=self._identity(name, agent),
            )
            if body.policy_name:
                policies.assign(db, name, body.policy_name)
            elif body.policy is not None:
                policies.give_own(db, name, body.policy)
            machine = inventory.machine(db, name)
            detail = {
                "before": rules.plain(before),
                "after": rules.plain(machine),
                "asked": msgspec.to_builtins(body),
            }
            audit.add(db, call.who, "machine.protect", name, detail, now_ns)
            return machine, act_jobs.begin(db, Watch.PROTECT, before, machine, at)

        machine, job = await self._control.db.run(work)
        self._control.bell.ring(f"agent:{name}")
        return await self._answered(machine, job)

    async def unprotect(self, call: Call, _body: Nothing) -> MachineView:
        name = (await machines.known(self._control, call.path["machine"])).name
        at = act_jobs.moment(self._control, name, call.who)

        def also(db: Connection, before: Machine, after: Machine, report: AgentReport | None) -> str:
            deletions.follow(db, before, after)
            return act_jobs.begin(db, Watch.UNPROTECT, before, after, at._replace(report=report))

        return await self._answered(*await self.stop(call, name, also))

    async def stop(self, call: Call, name: str, also: _Also) -> tuple[Machine, str]:
        """Its agent is told to stop. `also` is done in the same transaction, with the machine before and after, and what its agent said
        last; its answer is given back, too. Raises MachineNotFoundError, and what `also` raises."""
        await self._sides.ask(name)
        now_ns = self._control.now_ns()
        agent = self._sides.agent(name, await self._control.db.run(lambda db: inventory.find(db, name)))
        said = agent[1].wish if agent is not None else None

        def work(db: Connection) -> tuple[Machine, str]:
            before = self._as_bound(db, inventory.machine(db, name), now_ns)
            machine = inventory.act(
                db,
                name,
                Verb.STOP,
                now_ns,
                known=said.mark if said is not None else None,
                identity=self._identity(name, agent),
            )
            detail = {"before": rules.plain(before), "after": rules.plain(machine)}
            audit.add(db, call.who, "machine.unprotect", name, detail, now_ns)
            found = also(db, before, machine, agent[1] if agent is not None else None)
            return inventory.machine(db, name), found

        machine, found = await self._control.db.run(work)
        self._control.bell.ring(f"agent:{name}")
        return machine, found

    async def disks(self, call: Call, _body: Nothing) -> DiskCandidates:
        machine = await machines.known(self._control, call.path["machine"])
        await self._sides.ask(machine.name)
        agent = self._sides.agent(machine.name, machine)
        if self._is_moved(machine):
            machine = msgspec.structs.replace(machine, disks=())
        return DiskCandidates(
            machine=machine.name,
            seen_s=agent[0].age_s(self._control.mono_ns()) if agent is not None else None,
            disks=Offer.of(agent[1] if agent is not None else None).candidates(machine),
            by_configuration=not machine.protected and not machine.ended,
        )

    async def _answered(self, machine: Machine, job: str) -> MachineView:
        self._control.bell.ring(DRIVEN)
        return msgspec.structs.replace(await machines.shown(self._control, machine), job=job)

    def _identity(self, name: str, agent: _Agent) -> str:
        """Whose disks an operator speaks of. Where nobody knew any hardware of the machine, that of the report by which he speaks: else
        each copy would hear of it."""
        return self._sides.bound(name) or (agent[1].identity if agent is not None else UNKNOWN)

    def _refuse_other(self, what: str, machine: Machine, *, now_ns: int) -> None:
        """Without storage the database alone says who the machine is, and only that one is told. One that has fallen silent, as a drill
        that has ended, hinders nobody. Raises RequestError."""
        found = self._control.presence.agent(machine.name)
        if found is None or found[0].is_silent(now_ns):
            return
        here = shown(found[1].identity)
        raise RequestError(
            what,
            cause=f"the machine is {shown(machine.identity)}, and what reports under its name is {here}: this config server has no storage"
            " ([blob]) that says which of them it is",
            action=f"If it stands on that hardware from now on: understudy machine rebind {machine.name}. Else end what reports there (a"
            " drill, a clone), and say it again when the machine itself has reported.",
        )

    def _as_bound(self, db: Connection, machine: Machine, now_ns: int) -> Machine:
        """The machine; of one that was bound to other hardware, and has not reported since, none of the former disks."""
        if not self._is_moved(machine):
            return machine
        return desired_state.begin_anew(db, machine, self._sides.bound(machine.name), None, now_ns)

    def _is_moved(self, machine: Machine) -> bool:
        bound = self._sides.bound(machine.name)
        return UNKNOWN not in (bound, machine.identity) and bound != machine.identity


def _check_words(what: str, body: Protection) -> None:
    if len(set(body.disks)) != len(body.disks) or any(
        disk.startswith("/") and not disk.startswith("/dev/") for disk in body.disks
    ):
        raise RequestError(
            what,
            cause="it needs its disks, each once: by path, /dev/NAME, or by stable id where they have one",
        )
    for disk in body.disks:
        if not disk.isprintable():
            raise RequestError(what, cause=f"the path {disk[:100]!r} has a character that cannot be printed")
        if len(disk) > MAX_WORD:  # as its agent reports it
            cause = (
                f"the path {disk[:100]}… has {len(disk)} characters, and no more than {MAX_WORD} are possible"
            )
            raise RequestError(what, cause=cause, action="Name the disk by a shorter path.")
    for address in body.process_servers:
        if not is_address(address):
            raise RequestError(
                what,
                cause=f"{address[:100]!r} is no process server's address",
                action="Give it as HOST:PORT, for example ps1.example.com:9443.",
            )
    if len(set(map(address_of, body.process_servers))) != len(body.process_servers):
        raise RequestError(what, cause="it names a process server twice")
    if body.policy is not None and body.policy_name:
        raise RequestError(what, cause="it has a policy, and the name of another")


def _refuse_unknown(
    db: Connection, what: str, name: str, known: Machine | None, *, is_moved: bool
) -> NoReturn:
    """Of a machine whose agent never came."""
    offline = "or record it before its agent ever comes: --offline (`offline` in the API)"
    if is_moved:
        cause = "its agent has not reported since the machine was bound to other hardware"
        raise RequestError(what, cause=cause, action=f"Start its agent there, {offline}.")
    if known is not None or certificates.is_known(db, Role.AGENT, name):
        raise NeverReportedError(what, action=f"Start its agent, {offline}.")
    raise MachineNotFoundError(
        what,
        cause=f"no machine '{name}' is known: its agent was never enrolled here",
        action=f"See that the name is right, enrol it first (understudy token create agent {name}), {offline}.",
    )


def _refuse_unknown_disks(what: str, disks: Sequence[WantedDisk], known: Sequence[WantedDisk]) -> None:
    """Of a machine of whose agent nothing is heard: only of another one, that may be a copy."""
    if more := without(disks, known):
        names = ", ".join(map(named, more))
        raise RequestError(
            what,
            cause=f"it names disks that nobody knows yet ({names}), and what reports under this name is other hardware than the"
            " machine's, of which storage does not say that it is the machine",
            action="Say it again when storage can be read and its agent has reported, or bind the machine to that hardware (understudy"
            " machine rebind). To say it all the same: --force (`force` in the API).",
        )


def _refuse_to_be_deleted(what: str, machine: Machine) -> None:
    """Not taken back by the way: a script that protects its machines every hour would do so unasked."""
    if machine.deletion is not None:
        raise ToBeDeletedError(
            what,
            cause="it is to be deleted",
            action=f"Take that back first: understudy machine keep {machine.name}.",
        )


def _refuse_said_since(what: str, over: str, known: Machine | None) -> None:
    wish = known.wish if known is not None else None
    if over == (wish.mark.act if wish is not None else ""):
        return
    at = f" ({rfc3339(known.wish_ns)})" if known is not None and wish is not None else ""
    holds = in_words(wish) if wish is not None else "nothing, and its agent goes by its configuration"
    raise SaidSinceError(what, cause=f"something else was said since: what holds now is {holds}{at}")


def _check_fewer(
    what: str,
    offer: Offer,
    protected: Sequence[WantedDisk],
    disks: Sequence[WantedDisk],
    said: Sequence[str] | None,
) -> None:
    """`said`: those that may go; None: nobody has said which."""
    gone = without(protected, disks)
    if any(word_of(disk) not in (said or ()) for disk in gone):
        names = ", ".join(map(offer.shown, gone))
        raise FewerDisksError(
            what,
            cause=f"it leaves out what is protected now: {names}",
            names=[word_of(disk) for disk in gone],
        )

"""Admission: which session is the machine's, and how much it may send.

Input: hellos of sessions (it is their `Host`). Output: the machine's log, for the one session that may feed it. Nothing here blocks: hellos
are tasks; a machine whose log is slow waits alone.

Which machine (I7). A copy of a machine carries its name and certificate. Who is not the active side is refused
(`check_side`). A copy on the same hardware, or restored under the same identity, is told by its boot: while a session of
another boot still answers a ping, the machine is there, and whoever else says Hello in its name is refused before anything of
that session is touched. A session that does not answer is not touched either: whoever has another boot of the kernel waits
until it is over, and then for as long as an agent may take to come back (boots.py). Which boot is the machine's is written
down when its log has begun, before WELCOME: a copy whose log cannot begin, since storage is away, must not have the name kept
for itself, nor keep the machine out, whose log goes on without storage.

One session per machine, and why WELCOME's position is exact. A HELLO first closes the machine's earlier
session: its wire takes no further batch. Then it waits, under the machine's lock, until the batches of that
session that are on their way have ended, and only then asks the log to begin. So no append runs while the
log says where it stands, and none that was begun before can be counted later. Of several waiting sessions
only the newest goes on. The newest is the one whose HELLO came last, and not the one for
which storage answered last: an agent gives a HELLO up that is not answered, and comes again, and what the first one asked for (a
new epoch, perhaps) must not be done to what has begun since. So who gets past the copies ends every session of the machine whose HELLO
came earlier, however far that one got.

A HELLO ends with its session. Storage may be slow, a disk may hang, and the agent be gone meanwhile: from its first step until it has the
log, its task is cancelled when the session is over, so behind no `await` anything is asked, claimed or told in the name of somebody who is
not there. Cancelled while it claims the side, nobody knows whether storage has the claim, just as if this server had died then. Whoever
storage names is the side: the claim is a compare-and-swap, so it is this identity, asked for while its session was there, or another one;
nothing of it is remembered here, and the next HELLO of anybody asks anew, and goes by that. From then on, when the log begins, the HELLO
goes on to its end: an epoch is not left half begun.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from process_server.reception.boots import SILENT_RETRY_S, BootFiles, LastBoot, awaited
from process_server.reception.credit import CacheSpace, CreditPolicy
from process_server.reception.machine import Copy, Machine
from process_server.reception.pace import Pace
from process_server.reception.session import Session, StreamLog
from shared.api.certificates import Revocations
from shared.daemon import logging
from shared.errors import (
    CertificateRevokedError,
    CopyRefusedError,
    StorageError,
    SupersededError,
    TooManyHellosError,
    UnderstudyError,
)
from shared.serving.connections import origin
from shared.serving.refusals import Refusals
from shared.trust import tls
from shared.wire.messages import Hello, kernel_of

_log = logging.get()

CHECK_SIDES_S: Final = 60.0
"""How often it is asked whether machines with an open session are still the active side: 44,000 requests a month and machine. The
command of a config server comes sooner, but none comes from one that is away, or does not know that the machine is here."""

_HELLOS: Final = 30
_HELLOS_PER_S: Final = 0.5
"""With one name's certificates from one address: a Hello asks storage three times, and writes lines into the log. Whoever has a
machine's certificate elsewhere takes nothing of the machine's own."""

OpenLog = Callable[[Hello], Awaitable[StreamLog]]


_NOT_ANY_MORE: Final = "another machine was named as the one of this name"


class CheckSide(Protocol):
    def __call__(self, machine: str, identity: str, *, claim: bool, surely: bool = False) -> Awaitable[bool]:
        """See process_server/spool/sides.py."""


class _Claim(NamedTuple):
    machine: str
    task: asyncio.Task[Any]


class Admission:
    """The Host of all sessions."""

    def __init__(
        self,
        open_log: OpenLog,
        *,
        policy: CreditPolicy,
        cache: Callable[[], CacheSpace],
        check_side: CheckSide,
        boots: BootFiles,
    ) -> None:
        self.machines: dict[str, Machine] = {}
        self.copies: dict[str, Copy] = {}
        """By machine, the copy that was refused last."""
        self.clock: Callable[[], float] = time.monotonic
        self._boots: dict[str, LastBoot] = {}
        self._boot_files = boots
        self._started_s = self.clock()
        self.revoked = Revocations()
        self.control = b""
        self._open_log = open_log
        self._policy = policy
        self._check_side = check_side
        self._measure_cache = cache
        self.cache = cache()
        self._hellos = Pace(_HELLOS, _HELLOS_PER_S)
        self._orders = itertools.count(1)
        self.refusals = Refusals()
        self._claims: dict[Session, _Claim] = {}
        """HELLOs that have no log yet."""

    async def recall(self) -> None:
        """What an earlier run knew. Before the first session."""
        self._boots = await asyncio.to_thread(self._boot_files.recall, self._started_s)

    def is_revoked(self, session: Session) -> bool:
        channel = session.channel
        return self.revoked.covers(channel.serial, channel.peer, channel.begins_s)

    def refresh(self) -> None:
        """Measure the cache again, and let every session acknowledge what has moved."""
        self.cache = self._measure_cache()
        for machine in self.machines.values():
            if machine.session is not None:
                machine.session.refresh()

    async def check_side(self, name: str) -> None:
        """Whoever is not the active side any more loses his session. Raises StorageErrors and IntegrityError when that cannot be told."""
        machine = self.machines.get(name)
        if machine is None:
            return
        for session in {machine.session, machine.newest}:
            if session is not None and (session.connected or session.waiting):
                try:
                    await self._check_side(name, session.identity, claim=False, surely=True)
                except CopyRefusedError as exc:
                    what = f"The session of {name} was closed"
                    session.fail(CopyRefusedError(what, cause=f"{_NOT_ANY_MORE}: {exc.cause}"))

    def is_free(self, name: str) -> bool:
        """Whether nobody is here who bears the name, or asks to."""
        machine = self.machines.get(name)
        there = () if machine is None else (machine.session, machine.newest)
        return (
            (machine is None or machine.holder is None)
            and all(known is None or not (known.connected or known.waiting) for known in there)
            and all(claim.machine != name for claim in self._claims.values())
        )

    def forget(self, name: str) -> bool:
        """Whoever comes with the name is new here; False while somebody is here."""
        if not self.is_free(name):
            return False
        for known in (self.machines, self.copies, self._boots):
            known.pop(name, None)
        return True

    # ---- for sessions (session.Host) ----

    async def claim(self, session: Session, hello: Hello) -> StreamLog:
        if not session.waiting:
            raise _superseded(hello.machine)  # over before its task had begun
        session.order = next(self._orders)
        task = asyncio.current_task()
        assert task is not None
        self._claims[session] = _Claim(hello.machine, task)
        try:
            return await self._claim(session, hello)
        finally:
            del self._claims[session]

    async def _claim(self, session: Session, hello: Hello) -> StreamLog:
        self._check_pace(session)
        if self.is_revoked(session):
            raise certificate_refused(session)
        tls.require_name(session.channel.peer, f"agent:{hello.machine}")
        session.on_named()
        session.identity, session.boot = hello.identity, hello.boot
        await self._refuse_copies(session, hello)
        machine = self.machines.setdefault(hello.machine, Machine(hello.machine, self._policy))
        session.machine = machine.name
        claiming = [other for other, claim in self._claims.items() if claim.machine == machine.name]
        for known in (machine.session, machine.newest, *claiming):
            if known is not None and known.order < session.order:
                known.fail(_superseded(machine.name))
        machine.newest = session
        # Its holder may wait long, for a disk that hangs, without end.
        await machine.lock.acquire()
        machine.holder = session
        if machine.session is not None:
            await _appended(machine.session)
        # Another may have been named while this one waited.
        await self._check_side(machine.name, hello.identity, claim=False)
        if self.is_revoked(session):  # meanwhile
            raise certificate_refused(session)
        machine.admit(session)
        if machine.log is None:
            machine.log = await self._open_log(hello)
        return machine.log

    async def begun(self, session: Session, hello: Hello) -> None:
        if session.waiting:
            # No news here may be news to the disk: the boot of a machine of this name that was deleted has just been removed from it.
            await self._boot_files.remember(session.machine, self._boots[session.machine].admit(hello))

    def release(self, session: Session) -> None:
        machine = self.machines.get(session.machine)
        if machine is None or machine.holder is not session:
            return
        if session.connected:
            machine.problem = None
        machine.holder = None
        machine.lock.release()

    async def refused(self, session: Session, error: CopyRefusedError) -> None:
        self.copies[session.machine] = Copy(session.address, error, time.monotonic())
        if self._boots[session.machine].withdraw(session.boot):
            await self._boot_files.forget(session.machine)

    def credit_b(self, session: Session) -> int:
        machine = self.machines[session.machine]
        before = machine.gate.problem
        credit_b = machine.gate.update(
            machine.name,
            pending_b=machine.log.pending_b if machine.log is not None else 0,
            disks=session.disks,
            cache=self.cache,
            sharers=sum(other.connected for other in self.machines.values()) + (not session.connected),
        )
        problem = machine.gate.problem
        if problem is not None and type(problem) is not type(before):
            _log.warning("machine throttled", machine=machine.name, **problem.as_dict())
        elif problem is None and before is not None:
            _log.info("throttling ended", machine=machine.name, credit_b=credit_b)
        return credit_b

    def over(self, session: Session) -> None:
        claim = self._claims.get(session)
        if claim is not None:
            claim.task.cancel()
        machine = self.machines.get(session.machine)
        if machine is not None and (boot := self._boots.get(machine.name)) is not None:
            boot.ended(session.boot, self.clock())
        if machine is not None and session is machine.session:
            machine.problem = session.problem

    async def check_sides(self) -> None:
        """Trouble may be of one machine's container only, so all are asked for. Where many do not answer, a round ends after its time, and
        the next one begins with those that were not reached.
        """
        began_s = time.monotonic()
        for machine in sorted(self.machines.values(), key=lambda machine: machine.side_asked_s):
            machine.side_asked_s = time.monotonic()
            try:
                await self.check_side(machine.name)
            except StorageError as exc:  # told by service.py, or by what the machine uploads
                _log.debug(
                    "active side not checked; again in a minute", machine=machine.name, **exc.as_dict()
                )
            except UnderstudyError as exc:
                _log.warning("active side not checked", machine=machine.name, **exc.as_dict())
            if time.monotonic() - began_s > CHECK_SIDES_S:
                return

    # ---- inside ----

    def _check_pace(self, session: Session) -> None:
        """Raises TooManyHellosError. By whose certificate it is, whatever the Hello names; before anything else, since who is refused for
        another reason may come as often as he likes, too."""
        peer = session.channel.peer
        where = origin(session.address.rpartition(":")[0])
        wait_s = self._hellos.wait_s(f"{peer} {where}", self.clock())
        if wait_s > 0:
            raise TooManyHellosError(f"A session of {peer} was refused", retry_after_s=wait_s)

    async def _refuse_copies(self, session: Session, hello: Hello) -> None:
        """Raises CopyRefusedError or MachineAwaitedError; nothing of the machine was touched then. Nobody else was admitted since the last
        look at it, which is this one's last step.
        """
        try:
            is_side = await self._check_side(hello.machine, hello.identity, claim=False)
            boot = self._boots.setdefault(hello.machine, LastBoot.unknown(self._started_s))
            while (other := self._other_boot(hello, boot)) is not None:
                if is_side and other.identity != hello.identity:
                    other.fail(
                        CopyRefusedError(f"The session of {hello.machine} was closed", cause=_NOT_ANY_MORE)
                    )
                elif await other.answers():
                    raise CopyRefusedError(
                        f"A copy of machine {hello.machine} was refused",
                        cause=f"the machine is there, at {other.address}, and this is another boot with the same identity",
                    )
                elif self._other_boot(hello, boot) is other:
                    self._wait_for_silent(other, hello)
                    break  # the same kernel, and its agent is gone
            boot.check(hello, is_side=is_side, now_s=self.clock())
            await self._check_side(hello.machine, hello.identity, claim=True)
            if (other := self._other_boot(hello, boot)) is not None:
                self._wait_for_silent(other, hello)
            boot.check(hello, is_side=is_side, now_s=self.clock())
        except CopyRefusedError as exc:
            self.copies[hello.machine] = Copy(session.address, exc, time.monotonic())
            raise

    def _wait_for_silent(self, other: Session, hello: Hello) -> None:
        """Its session is open, and it did not answer."""
        if kernel_of(other.boot) != kernel_of(hello.boot):
            raise awaited(hello.machine, f"its session from {other.address} is not over", SILENT_RETRY_S)

    def _other_boot(self, hello: Hello, boot: LastBoot) -> Session | None:
        """The machine's session, when it is with another boot than this Hello comes from. Whoever only waits for a log is none
        where the machine itself asks: the boot that was admitted last.
        """
        machine = self.machines.get(hello.machine)
        if machine is None:
            return None
        for known in (machine.newest, machine.session):
            if known is None or known.boot == hello.boot:
                continue
            if known.connected or (known.waiting and not boot.is_of(hello.boot)):
                return known
        return None


def _superseded(machine: str) -> SupersededError:
    return SupersededError(f"The session of {machine} was closed")


def certificate_refused(session: Session) -> CertificateRevokedError:
    return CertificateRevokedError(f"The certificate of {session.channel.peer} was refused")


async def _appended(session: Session) -> None:
    while True:
        try:
            async with asyncio.timeout(10.0):
                return await session.appended()
        except TimeoutError:
            _log.warning("batches of the earlier session are still on their way", machine=session.machine)

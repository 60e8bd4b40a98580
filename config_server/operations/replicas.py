"""This config server among others on one database (docs/decisions/0031): it tells them what it hears and rings, and hears what they do.

Once a second it writes, sooner where it has something to ring, and once a second it reads (store/replicas.py). What it read is taken as if
it had heard it itself: reports into presence, bells to those who wait here. While it cannot read, or another one writes nothing any more,
whom it would have heard of is not called silent: that is a gap, as when this server itself stood still.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec

from config_server.operations.control import REVOCATIONS, SIDE, Control
from config_server.operations.jobs import DRIVEN
from config_server.operations.sides import Sides
from config_server.rules.ca_renewal import Has, Server
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import SELF
from config_server.rules.presence import Seen
from config_server.rules.twins import SILENT_S
from config_server.rules.wishes import Told
from config_server.store import replicas, restored
from config_server.store.database import Connection
from config_server.store.inventory import StoredReport
from config_server.store.replicas import Other
from shared import decoding
from shared.api.route import Failure
from shared.control.rest import error_of
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    DatabaseError,
    DataFolderInUseError,
    OtherServerGoneError,
    RequestError,
    ServerNameTakenError,
    UnhealthyError,
)
from shared.status import Problem
from shared.vocabulary import Role, Severity

_log = logging.get()

BEAT_S: Final = 1.0
"""How often it writes, and reads."""
_SOONEST_S: Final = 0.2
"""Between two batches, whatever is rung."""
FRESH_S: Final = 3.0
"""What was read may be so old when a report is judged by it; ..."""
_STANDS_S: Final = 3.0
"""... and so long another one may write nothing: then its daemons are on their way to somebody else. That may be anybody: who was heard
here last may have turned to that one since, by a line that it had still, and waits for an answer (a client does for 20 s), ..."""
_EXCUSED_S: Final = 60.0
"""... for which they have so long."""
_GONE_S: Final = SILENT_S
"""Behind this what it said of itself counts no more."""
_GAP_S: Final = SILENT_S / 2
_MISSED_S: Final = 15.0
"""Who has not read for longer may have missed what was rung: of KEPT batches none is younger."""
_SET_NS: Final = 2 * SECOND_NS
"""The database's clock was set, where it went so much otherwise than this host's monotonic one."""


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server says of itself."""

    own: tuple[Problem, ...] = ()
    """Wrong with itself."""
    more: tuple[Problem, ...] = ()
    """That it alone has seen: copies that it refused, twins."""
    hindered: dict[str, Failure] = {}
    """By deletion: why it waits, of who sees to them."""
    left: bool = False
    """It has ended, and said all that it knew."""
    ca: Has = Has()
    """What it has of the CA; nothing: an earlier version does not say."""


class _Known:
    """Another server, as it was read last."""

    def __init__(self, name: str, now_ns: int) -> None:
        self.name = name
        self.batch = 0
        self.risen_ns = now_ns
        """When that was another one than before (monotonic, here)."""
        self.stood_ns = 0
        """How long it has been that one, in looks of this server: what passed while this one stood still, or could not read, is not its
        silence."""
        self.beat_ns = 0
        """When it wrote last, by the database's clock."""
        self.told = ""
        self.said = Said()
        self.stands = False
        self.has_risen = False
        """Since it was read first: it is no former start of this server, that was killed."""

    @property
    def lives(self) -> bool:
        return not self.said.left and self.stood_ns < _GONE_S * SECOND_NS


class Replicas:
    def __init__(
        self,
        control: Control,
        sides: Sides,
        name: str,
        *,
        take_revocations: Callable[[], Awaitable[None]],
    ) -> None:
        """`name`: of this server, for people."""
        self.id: Final = secrets.token_hex(8)
        self._control = control
        self._sides = sides
        self._name = name
        self._take_revocations = take_revocations
        self._heard: dict[tuple[Role, str], Seen | None] = {}
        """What was not written yet; None: it takes part no more."""
        self._rung = dict[str, None]()
        self._due = asyncio.Event()
        self._writing, self._looking = asyncio.Lock(), asyncio.Lock()
        self._known: dict[str, _Known] = {}
        self._leaves = False
        self._batch = 0
        """The last that was surely written."""
        self._looked_ns = 0
        """When it was read last (monotonic), ..."""
        self._clock_ns = 0
        """... and what the database's clock said then."""

    # ---- what this server does tells the others

    def tell(self, seen: Seen) -> None:
        """It was heard here."""
        self._heard[seen.role, seen.name] = seen

    def forget(self, role: Role, name: str) -> None:
        """It takes part no more."""
        self._heard[role, name] = None
        self._due.set()

    def ring(self, name: str) -> None:
        self._rung[name] = None
        self._due.set()

    # ---- what they have said

    def problems(self) -> list[Problem]:
        """What is wrong with them; and who is gone without a word, unless it has begun anew: of a name the start that wrote last counts,
        also where that one has ended since, and said so."""
        living = [*self._living()]
        last = {known.name: known for known in sorted(self._known.values(), key=lambda known: known.beat_ns)}
        names = {known.name for known in living} | {self._name}
        gone = [name for name, known in last.items() if name not in names and not known.said.left]
        theirs = (problem for known in living for problem in known.said.own)
        return [*theirs, *map(_gone, gone), *self._of_its_name()]

    def there(self) -> list[str]:
        """Those that write, as this server sees it, whatever the database's clock says; and this one."""
        return [self.id, *(id_ for id_, known in self._known.items() if known.lives)]

    def more_problems(self) -> list[Problem]:
        """What they alone have seen."""
        return [problem for known in self._living() for problem in known.said.more]

    def hindered(self, deletion: str) -> UnhealthyError | None:
        """Why it waits."""
        for known in self._living():
            if (failure := known.said.hindered.get(deletion)) is not None:
                error = error_of(failure)
                return error if isinstance(error, UnhealthyError) else None
        return None

    async def have(self) -> list[Server]:
        """What each of them that is there has of the CA: as it is now, also of one that has just come. Raises DatabaseError."""
        await self.look()
        last = {known.name: known for known in sorted(self._known.values(), key=lambda known: known.beat_ns)}
        return [
            Server(id_, known.name, known.said.ca)
            for id_, known in self._known.items()
            # Of a name the start that wrote last; and a former one of this server, or of another, that was killed, never rises.
            if known.lives and (known.has_risen or (known is last[known.name] and known.name != self._name))
        ]

    async def fresh(self) -> None:
        """Before a report is taken: what the others have heard meanwhile is known, if the database says it."""
        if self._control.mono_ns() - self._looked_ns <= FRESH_S * SECOND_NS:
            return
        async with self._looking:
            if self._control.mono_ns() - self._looked_ns > FRESH_S * SECOND_NS:
                with contextlib.suppress(
                    DatabaseError
                ):  # it says so itself; who reports is heard all the same
                    await self._look()

    # ---- by itself

    async def join(self) -> None:
        """At the start, behind what was recovered. Raises DatabaseError."""
        self._control.bell.forward = self.ring
        self._control.others = self
        said = msgspec.json.encode(self._said()).decode()

        def work(db: Connection) -> None:
            replicas.bury(db)
            replicas.join(db, self.id, self._name, said)

        await self._control.db.run(work)
        await self.look()

    async def leave(self) -> None:
        """What is known here is known to the others, and what this one had alone is anybody's."""
        with contextlib.suppress(
            DatabaseError, DataFolderInUseError
        ):  # then it ends as if it had been killed
            self._leaves = True
            await self.write()
            await self._control.db.run(lambda db: replicas.let_go(db, self.id))

    async def due(self) -> None:
        """Until there is something to write."""
        await asyncio.sleep(_SOONEST_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S - _SOONEST_S):
                await self._due.wait()
        self._due.clear()

    async def write(self) -> None:
        """What was heard and rung since. Raises DatabaseError: then it is written the next time. DataFolderInUseError where this server is
        not known any more, or the database is not the one any more to which it wrote: it was set back under it (a standby that lacked the
        last commits took over, a dump was put back), and is marked so, as a restore does it, in the same transaction."""
        async with self._writing:
            heard, self._heard = self._heard, {}
            rung, self._rung = self._rung, {}
            said = msgspec.json.encode(self._said()).decode()

            def work(db: Connection) -> int | None:
                batch = replicas.write(db, self.id, said, [*self._stored(heard)], [*rung])
                if batch is not None and batch <= self._batch:
                    restored.prepare(db, self._control.now_ns())
                    replicas.forget_all(db)
                    return None
                return batch

            try:
                batch = await self._control.db.run(work)
            except BaseException:
                self._heard = heard | self._heard
                self._rung = rung | self._rung
                raise
            if batch is None:
                raise DataFolderInUseError(
                    "The config server gives up its database",
                    cause="it is not among those that use it any more: it was away for ten minutes, or the database was put back",
                    action="It is started anew by its service, and begins with what the database has.",
                )
            self._batch = batch

    async def look(self) -> None:
        """What the others have heard and rung. Raises DatabaseError: while that is not known nobody is called silent."""
        async with self._looking:
            try:
                await self._look()
            except DatabaseError:
                now_ns = self._control.mono_ns()
                if self._looked_ns and now_ns - self._looked_ns > _GAP_S * SECOND_NS:
                    self._control.presence.excuse(self._looked_ns, now_ns)
                raise

    # ---- inside

    def _living(self) -> Iterator[_Known]:
        return (known for known in self._known.values() if known.lives)

    def _of_its_name(self) -> list[Problem]:
        """Another one that lives has it, too: said by both, whoever of all has the sweep."""
        names = {known.name for known in self._living() if known.has_risen}
        return [_named_twice(self._name)] if self._name in names else []

    def _said(self) -> Said:
        control = self._control
        return Said(
            own=(*control.its_problems(), *self._of_its_name()),
            more=(*self._sides.problems(), *control.presence.twins(control.mono_ns())),
            hindered={
                id_: Failure(**error.as_dict(), exit_code=error.exit_code)
                for id_, error in control.hindered.items()
            },
            left=self._leaves,
            ca=self._control.has,
        )

    def _stored(self, heard: dict[tuple[Role, str], Seen | None]) -> Iterator[StoredReport]:
        now_ns = self._control.mono_ns()
        for (role, name), seen in heard.items():
            if seen is None:
                yield StoredReport(role, name, self._control.now_ns(), b"", age_ns=0)
                continue
            told = self._control.untaken.told(name, seen.heard_ns) if role is Role.AGENT else Told()
            yield stored(seen, now_ns, told)

    async def _look(self) -> None:
        asked = {id_: known.batch for id_, known in self._known.items()}
        news = await self._control.db.run(lambda db: replicas.read(db, self.id, asked))
        now_ns, before_ns = self._control.mono_ns(), self._looked_ns
        is_first = before_ns == 0
        was_set = not is_first and abs(news.clock_ns - self._clock_ns - (now_ns - before_ns)) > _SET_NS
        self._looked_ns, self._clock_ns = now_ns, news.clock_ns
        rung = dict[str, None]()
        missed = not is_first and now_ns - before_ns > _MISSED_S * SECOND_NS
        for other in news.others:
            known = self._known.setdefault(other.id, _Known(other.name, now_ns))
            for report in other.reports:
                age_ns = report.age_ns or 0
                if was_set:  # it is from since the last look, whatever its time says
                    age_ns = min(age_ns, now_ns - before_ns)
                if not is_first or age_ns < SILENT_S * SECOND_NS:
                    self._hear(other, report, now_ns - age_ns)
            rung |= dict.fromkeys(other.rung)
            missed |= self._note(other, known, now_ns, now_ns - before_ns)
        for id_ in self._known.keys() - {other.id for other in news.others}:
            del self._known[id_]
        if not is_first and now_ns - before_ns > _GAP_S * SECOND_NS:
            _log.warning("what other servers heard was not read", seconds=(now_ns - before_ns) / SECOND_NS)
            self._control.presence.excuse(before_ns, now_ns)
        await self._pass_on(rung, everything=missed)

    def _note(self, other: Other, known: _Known, now_ns: int, since_ns: int) -> bool:
        """What it is now, `since_ns` behind the last look; whether something that it rang may never be read."""
        known.beat_ns = other.beat_ns
        if other.said != known.told:
            known.told, known.said = other.said, _said_by(other)
        if other.batch != known.batch:
            if known.stands:
                _log.info("another config server is there again", server=other.name)
            known.has_risen = bool(known.batch)
            known.batch, known.risen_ns, known.stood_ns, known.stands = other.batch, now_ns, 0, False
            return False
        known.stood_ns += min(since_ns, int(FRESH_S * SECOND_NS))
        stands_ns = now_ns - known.risen_ns
        if stands_ns <= _STANDS_S * SECOND_NS:
            return False
        if stands_ns < _EXCUSED_S * SECOND_NS:
            self._control.presence.excuse(known.risen_ns, now_ns)
        is_new, known.stands = not known.stands and not known.said.left, True
        if is_new:
            _log.warning("another config server writes nothing any more", server=other.name)
        return is_new

    def _hear(self, other: Other, report: StoredReport, heard_ns: int) -> None:
        presence, name = self._control.presence, report.name
        if not report.report:
            seen = presence.of(report.role, name)
            if seen is not None and seen.heard_ns > heard_ns:
                return  # another one of its name has come since
            presence.forget(report.role, name)
            self._heard.pop((report.role, name), None)
            if report.role is Role.AGENT:
                self._control.storage.forget(name)
                self._sides.forget(name)
            return
        try:
            is_later = presence.hear_of(
                report.role,
                name,
                report.report,
                report.received_ns,
                heard_ns,
                by=other.id,
                address=report.address,
            )
        except RequestError as exc:  # stored by another version of this program
            _log.warning("a report that another server heard was dropped", name=name, cause=exc.cause)
            return
        if is_later and report.role is Role.AGENT:
            told = Told()
            with contextlib.suppress(*UNDECODABLE):
                told = decoding.decode(report.told, type=Told) if report.told else told
            self._control.untaken.hear_of(name, told, heard_ns)

    async def _pass_on(self, rung: dict[str, None], *, everything: bool) -> None:
        if everything:
            self._sides.ask_anew()
        for name in rung:
            if name.startswith(SIDE):
                self._sides.ask_anew(name.removeprefix(SIDE))
        if everything or REVOCATIONS in rung:  # before held answers go out
            await self._take_revocations()
        if everything:
            self._control.bell.ring_all()
            self._control.bell.ring_here(DRIVEN)
        for name in rung:
            self._control.bell.ring_here(name)


def stored(seen: Seen, now_ns: int, told: Told = Told()) -> StoredReport:  # noqa: B008 - it is frozen
    """A report as it is kept: without results of commands, which may be long, and are kept with these. `now_ns`: monotonic."""
    return StoredReport(
        role=seen.role,
        name=seen.name,
        received_ns=seen.received_ns,
        report=msgspec.json.encode(msgspec.structs.replace(seen.report, results={})),
        state=seen.report.state,
        start=seen.report.start,
        number=seen.report.number,
        age_ns=max(0, now_ns - seen.heard_ns),
        address=seen.address,
        told="" if told in (Told(), Told(since_ns=told.since_ns)) else msgspec.json.encode(told).decode(),
    )


def _gone(name: str) -> Problem:
    error = OtherServerGoneError(
        f"Config server {name} does nothing any more",
        cause="it has written nothing into the database for a while, and did not say that it ends",
    )
    return Problem(**error.as_dict(), severity=Severity.WARNING, object=SELF, key=name)


def _named_twice(name: str) -> Problem:
    error = ServerNameTakenError(
        f"Two config servers are named {name}",
        cause="if one of them is gone nobody is told so: the other has its name",
    )
    return Problem(**error.as_dict(), severity=Severity.WARNING, object=SELF, key=name)


def _said_by(other: Other) -> Said:
    if not other.said:
        return Said()
    try:
        return decoding.decode(other.said, type=Said)
    except UNDECODABLE as exc:  # another version's
        _log.warning(
            "what another server says of itself is not understood", server=other.name, cause=str(exc)
        )
        return Said()

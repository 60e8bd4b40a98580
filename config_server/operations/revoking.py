"""Revoking: in force at once, on record in the database and in storage.

Either place may fail on the worst day, and a restored database knows less than storage. So who revokes is told that it is done once it is
recorded in one of them, and what the other lacks is said, and made up for as soon as it answers:

- What the database could not write is in force from memory, and written when it works again, before anybody enrols or renews.
- What storage could not take is a problem of this server until it has. Which records storage has the database remembers: so a restored
  one knows that it does not know them.
- At the start, and once a day, storage is listed, and what is new there is taken in, with an audit entry and an event. A blob that cannot
  be read keeps no other from that; it is a problem, and tried again every minute. A start waits for
  that for a moment only: this server works without storage. Until it was listed once, that is a problem of this server, shown at once
  where the database was restored, and else when it lasts. (Who was told of a revocation keeps it meanwhile: shared/trust/revocation.py.)

Recorded in neither, it is an error, and in force until this server stops; it goes on trying.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from config_server.identity.revocation_record import MOST_B, decode, put, record_blobs
from config_server.operations.call import Call
from config_server.operations.control import REVOCATIONS, Control
from config_server.rules.clock import rfc3339
from config_server.rules.facts import SELF
from config_server.rules.revocations import Record, newest
from config_server.store import audit, events, restored, revocation, taking_in
from config_server.store.database import Connection
from config_server.store.taking_in import Unwritten, as_written
from shared.api.certificates import CertificateView, RefusedList, Revocations, RevokeRequest
from shared.api.events import EventKind
from shared.blob import BlobStore, Retry
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    BlobNotFoundError,
    DatabaseError,
    RenewalPutOffError,
    RevocationsUncomparedError,
    RevocationUnrecordedError,
    RevocationUnstoredError,
    StorageError,
    TransientError,
    UnderstudyError,
)
from shared.status import Problem
from shared.vocabulary import Role, Severity
from shared.waiting import wait_for

_log = logging.get()

LIST_S: Final = 86_400.0
_AGAIN_S: Final = 60.0
"""How often storage is tried while it lacks something, ..."""
_WRITE_AGAIN_S: Final = 5.0
"""... and the database while that does."""
_PATIENCE_S: Final = 8.0
"""So long who revokes waits for storage."""
_START_S: Final = 3.0
_LASTING_S: Final = 60.0
"""So long storage may be away at a start before that is a problem."""
_SILENT: Final = "it does not answer"
_GIVE_UP: Final = 3
"""So many blobs in a row that storage does not give for now, and it is away."""


class Revoking:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._of_database = Revocations()
        self._asked = self._taken = 0
        """How often the database was asked for them; and the how many-eth answer that is."""
        self._unwritten: dict[str, Unwritten] = {}
        """By blob: what is in force, and the database does not have."""
        self._stored: set[str] = set()
        """Blobs that storage has for certain, also when the database could not note it."""
        self._strange: set[str] = set()
        """Blobs that are none of ours."""
        self._storing = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._due = asyncio.Event()
        self._listed_s: float | None = None
        self._started_s = time.monotonic()
        self._restored = False
        """Since the last comparison with storage the database was put back."""
        self._away = "it was not asked yet"
        """Why they were not compared."""
        self._partly: RevocationsUncomparedError | None = None
        """They were, but for blobs that could not be read."""
        self.problem: RevocationUnstoredError | None = None
        """What storage lacks."""

    async def revoke(self, call: Call, body: RevokeRequest) -> RefusedList:
        """Raises RequestError, RevocationUnrecordedError."""
        return await self.refuse(revocation.subject_of(body.certificate), body.reason, call.who)

    async def refuse(
        self,
        subject: str,
        reason: str,
        who: str,
        *,
        still: Callable[[Connection], bool] | None = None,
    ) -> RefusedList:
        """In force when it returns. `still` is asked in the same transaction: where it says no, nothing is refused. Raises
        RevocationUnrecordedError; with `still` DatabaseError, too."""
        last_ns = self._control.revoked.since.get(subject, 0)
        revoked_ns = max(self._control.now_ns(), last_ns + 1)  # the clock was ahead when it was readmitted
        record = Record(subject=subject, reason=reason, who=who, revoked_ns=revoked_ns)
        failed: DatabaseError | None = None

        def work(db: Connection) -> list[CertificateView] | None:
            return _revoke(db, record) if still is None or still(db) else None

        try:
            covered = await self._control.db.run(work, vital=True)
        except DatabaseError as exc:
            if still is not None:
                raise
            failed, covered = exc, await self._keep(record)
        if covered is None:
            return RefusedList(certificates=[])
        reach("revocation.in-row")
        if failed is None:
            await self.changed()
        _log.warning("certificate revoked", certificate=subject, who=who, reason=reason)
        # Held answers go out: the revoked daemon's is a refusal, the process servers' carry the list.
        for name in {view.name for view in covered} | {
            seen.source for seen in self._control.presence.all() if seen.role == Role.PROCESS_SERVER
        }:
            self._control.bell.ring(name)
        unstored = await self._store_soon()
        if failed is None:
            warning = "" if unstored is None else f"It is in force. {unstored}"
            return RefusedList(certificates=covered, warning=warning)
        if unstored is not None or not self._control.storage.place:
            away = unstored.cause if unstored is not None else "none is configured"
            raise RevocationUnrecordedError(
                f"The revocation of {subject} is not on record",
                cause=f"the database: {failed.cause}; storage: {away}",
            )
        warning = f"It is in force, and recorded in storage alone, until the database works again. {failed}"
        return RefusedList(certificates=covered, warning=warning)

    async def changed(self) -> None:
        """The database has something new: it is in force from now on, here, and in a moment at other config servers."""
        await self.take()
        self._control.bell.ring(REVOCATIONS)

    async def take(self) -> None:
        """From now on what the database has is in force, and what it still lacks."""
        self._asked += 1
        asked = self._asked
        with contextlib.suppress(DatabaseError):  # it says so itself; what was read before holds
            found = await self._control.db.run(revocation.current, urgent=True)
            if asked > self._taken:  # several threads read, and who asked first may be answered last
                self._taken, self._of_database = asked, found
        self._enforce()

    def _enforce(self) -> None:
        self._control.revoked = as_written(self._of_database, self._unwritten.values())

    def look(self) -> None:
        """The database has something new that storage lacks: it is seen to soon."""
        self._due.set()

    async def write_down(self) -> None:
        """What is in force gets into the database before anybody is admitted by it. Raises DatabaseError."""
        if not self._unwritten:
            return
        async with self._writing:
            waiting = dict(self._unwritten)
            now_ns = self._control.now_ns()

            def work(db: Connection) -> None:
                for record, ours in waiting.values():
                    if ours:
                        _revoke(db, record)
                _take_in(db, [record for record, ours in waiting.values() if not ours], now_ns)
                revocation.note_recorded(db, waiting.keys() & self._stored)

            await self._control.db.run(work, vital=True)
            for blob in waiting:
                del self._unwritten[blob]
        await self.changed()

    def uncompared(self) -> RevocationsUncomparedError | None:
        """While the database may be older than storage, and that lasts, or is known."""
        if self._listed_s is not None or not self._control.storage.place:
            return None
        if self._partly is not None:
            return self._partly
        if not self._restored and time.monotonic() - self._started_s < _LASTING_S:
            return None
        return RevocationsUncomparedError("Revocations were not compared with storage yet", cause=self._away)

    def check_renewal(self, who: str) -> None:
        """Nothing is issued that the comparison could have refused: a third of the life is left to wait in. (A token is from after the
        restore: its certificate is meant.) Raises RenewalPutOffError."""
        if self._restored and self._control.storage.place:
            raise RenewalPutOffError(f"The certificate of {who} was not renewed yet")

    async def recover(self) -> None:
        """At the start: what the database has, and what storage says if it says it at once. Raises DatabaseError: one that cannot be
        read is not one without revocations."""
        self._of_database = await self._control.db.run(revocation.current)
        self._restored = await self._control.db.run(restored.mark) is not None
        self._enforce()
        if not self._control.storage.place:
            return
        self._control.watched += [lambda: self.problem, self.uncompared]
        vault = self._control.storage.machines().vault.with_retry(Retry(deadline_s=0.0))
        try:
            async with asyncio.timeout(_START_S):
                await self.compare(vault)
        except (UnderstudyError, TimeoutError):
            _log.warning("revocations not compared with storage yet", cause=self._away)
            self._due.set()

    async def due(self) -> None:
        """Until `make_up` has something to do, or it is time to look."""
        if self._unwritten:
            wait_s = _WRITE_AGAIN_S
        elif self._control.storage.place and (
            self.problem is not None or self._listed_s is None or self._restored
        ):
            wait_s = _AGAIN_S
        else:
            wait_s = LIST_S
        await wait_for(self._due, wait_s)
        self._due.clear()

    async def make_up(self) -> None:
        """For what one of the two places lacks. Raises StorageErrors that time alone does not mend."""
        with contextlib.suppress(DatabaseError):  # it says so itself
            await self.write_down()
        if not self._control.storage.place:
            return
        if self._listed_s is not None and time.monotonic() - self._listed_s < LIST_S:
            await self._end_restore()
            await self._store_soon()
            return
        try:
            await self.compare()
        except (TransientError, RevocationsUncomparedError) as exc:  # (`uncompared` says it)
            _log.info("revocations not compared with storage", **exc.as_dict())

    async def compare(self, vault: BlobStore | None = None) -> None:
        """Lists what storage has, takes in what is new there, and writes what it lacks. A blob that cannot be read costs itself alone.
        Raises StorageErrors, RevocationsUncomparedError."""
        try:
            await self._compare(vault or self._control.storage.machines().vault)
        except UnderstudyError as exc:
            self._away = f"{exc.what}: {exc.cause}" if exc.cause else exc.what
            raise
        except asyncio.CancelledError:
            self._away = _SILENT
            raise

    # ---- inside

    async def _compare(self, vault: BlobStore) -> None:
        async with self._storing:
            listed = await record_blobs(vault)
            self._stored &= listed
            recorded = await self._recorded()
            unread = listed - recorded - self._stored - self._strange - self._unwritten.keys()
            try:
                self._partly = await self._read(vault, unread)
            finally:
                self._enforce()  # what was read, whatever becomes of the rest
            with contextlib.suppress(DatabaseError):
                await self._control.db.run(lambda db: revocation.forget_recorded(db, recorded - listed))
            with contextlib.suppress(DatabaseError):
                await self.write_down()
            await self.take()
            self._listed_s = None if self._partly is not None else time.monotonic()
            await self._end_restore()
            await self._store(vault)
            if self._partly is not None:
                raise self._partly

    async def _end_restore(self) -> None:
        """When all that storage told is in the database. Where that fails it is tried again: nothing is renewed meanwhile."""
        if self._restored and self._listed_s is not None and not self._unwritten:
            with contextlib.suppress(DatabaseError):
                await self._control.db.run(restored.forget)
                self._restored = False

    async def _read(self, vault: BlobStore, unread: set[str]) -> RevocationsUncomparedError | None:
        """Into memory, to be written into the database. What is wrong, if some could not be read. Raises StorageErrors when storage is
        away."""
        found: dict[str, Record] = {}
        failed: dict[str, UnderstudyError] = {}
        silent = 0
        try:
            for blob in sorted(unread):
                try:
                    record = decode(blob, await vault.read(blob, 0, MOST_B), self._control.ca)
                except BlobNotFoundError:
                    unread.discard(blob)  # gone since the list
                    continue
                except StorageError as exc:
                    failed[blob] = exc
                    silent = silent + 1 if isinstance(exc, TransientError) else 0
                    if silent == _GIVE_UP:
                        raise
                    continue
                silent = 0
                unread.discard(blob)
                if record is None:
                    _log.warning("a record of a revocation is not of this installation", blob=blob)
                    self._strange.add(blob)
                else:
                    found[blob] = record
        finally:
            # A readmission counts when nothing later of its name is unread: that may be the revocation which it is told from.
            last = newest(unread)
            for blob, record in found.items():
                if record.begins_s is None or record.revoked_ns > last.get(record.folder, 0):
                    self._stored.add(blob)
                    self._unwritten[blob] = Unwritten(record, ours=False)
        return _partly(failed) if failed else None

    async def _keep(self, record: Record) -> list[CertificateView]:
        """In memory, and in force at once; and then what the record covers, as far as the database still reads."""
        self._enforce_unwritten(record, [record.subject])
        serials: Sequence[str] = ()
        covered: list[CertificateView] = []
        with contextlib.suppress(DatabaseError):
            serials, covered = await self._control.db.run(
                lambda db: revocation.covered(db, record.subject), urgent=True
            )
        self._enforce_unwritten(record, serials)
        return covered

    def _enforce_unwritten(self, record: Record, subjects: Sequence[str]) -> None:
        for subject in subjects:
            kept = Record(subject=subject, reason=record.reason, who=record.who, revoked_ns=record.revoked_ns)
            self._unwritten[kept.blob] = Unwritten(kept, ours=True)
        self._due.set()
        self._enforce()

    async def _recorded(self) -> set[str]:
        """Which blobs the database knows to be there."""
        with contextlib.suppress(DatabaseError):
            return await self._control.db.run(revocation.recorded, urgent=True)
        return set()

    async def _store_soon(self) -> RevocationUnstoredError | None:
        """What is wrong afterwards. None where there is no storage."""
        if not self._control.storage.place:
            return None
        cause = _SILENT
        try:
            async with asyncio.timeout(_PATIENCE_S), self._storing:
                await self._store(self._control.storage.machines().vault)
                return None
        except TimeoutError:
            pass
        except UnderstudyError as exc:
            cause = f"{exc.what}: {exc.cause}" if exc.cause else exc.what
        self._note(RevocationUnstoredError("Storage has no record of a revocation yet", cause=cause))
        return self.problem

    async def _store(self, vault: BlobStore) -> None:
        """The newest first: somebody waits for them. Of a database that cannot be read, what is in memory alone; and no verdict."""
        rows, was_read = list[Record](), False
        with contextlib.suppress(DatabaseError):
            rows = await self._control.db.run(revocation.rows, urgent=True)
            was_read = True
        recorded = await self._recorded()
        wanted = {record.blob: record for record in rows}
        wanted |= {blob: kept.record for blob, kept in self._unwritten.items() if kept.ours}
        missing = [record for blob, record in wanted.items() if blob not in recorded | self._stored]
        for record in sorted(missing, key=lambda record: -record.revoked_ns):
            await put(vault, record, self._control.ca)
            reach("revocation.in-storage")
            self._stored.add(record.blob)
        if unnoted := {record.blob for record in rows} & self._stored - recorded:
            with contextlib.suppress(DatabaseError):
                await self._control.db.run(lambda db: revocation.note_recorded(db, unnoted), urgent=True)
        if was_read:
            self._note(None)

    def _note(self, problem: RevocationUnstoredError | None) -> None:
        before, self.problem = self.problem, problem
        if problem is not None and before is None:
            self._due.set()  # whoever waited for the next list tries again sooner
        if problem is not None and (before is None or before.cause != problem.cause):
            _log.error("revocations: trouble", **problem.as_dict())
        elif problem is None and before is not None:
            _log.info("revocations: trouble is over")


def _revoke(db: Connection, record: Record) -> list[CertificateView]:
    covered = revocation.revoke(db, record.subject, record.reason, record.revoked_ns, record.who)
    detail = {"reason": record.reason}
    audit.add(db, record.who, "certificate.revoke", record.subject, detail, record.revoked_ns)
    return covered


def _take_in(db: Connection, found: Sequence[Record], now_ns: int) -> None:
    """What storage knew, and this database did not."""
    news = taking_in.take_in(db, found)
    revocation.note_recorded(db, [record.blob for record in found])
    for record in news:
        if record.begins_s is None:
            detail = {"reason": record.reason, "who": record.who, "revoked": rfc3339(record.revoked_ns)}
            audit.add(db, SELF, "certificate.revoke.recovered", record.subject, detail, now_ns)
        else:
            detail = {"readmitted": rfc3339(record.revoked_ns)}
            audit.add(db, SELF, "certificate.readmit.recovered", record.subject, detail, now_ns)
    if news:
        named = ", ".join(record.subject for record in news[:10])
        happened = Problem(
            code="",
            what=f"{len(news)} revocations and readmissions were taken in from storage: {named}{' …' if len(news) > 10 else ''}",
            cause="this database did not know them: it was restored from a backup, or could not be written",
            action="Check that nothing else is lost: understudy certificate list, machine list.",
            severity=Severity.WARNING,
            object=SELF,
        )
        events.note(db, EventKind.REVOCATION, SELF, happened, now_ns)
        _log.warning("revocations taken in from storage", subjects=[record.subject for record in news])


def _partly(failed: dict[str, UnderstudyError]) -> RevocationsUncomparedError:
    blob, exc = min(failed.items())
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return RevocationsUncomparedError(
        "Not all revocations that storage has were taken in",
        cause=f"{blob}{others} could not be read: {exc.what}: {exc.cause}",
        action="Make it readable (an archived blob: change its tier). Its name says whom it is about: until then revoke who should be, and"
        " then delete it. It is tried again every minute; a server from a backup renews no certificate before.",
    )

"""A daemon's line to the config server: it reports status, fetches commands, and keeps the daemon's certificate fresh.

Who may be a peer it is told with each answer (`Trust`), and says with each report by whom it goes: the CA can so be exchanged for another
one, over days, without an end of any session (docs/decisions/0035).

`ControlClient.serve` reports again and again: a daemon does its work whether or not the config server is there, and
whatever it, the line to it, or this module does. Nothing but `stop` (or cancelling it) ends `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from cryptography import x509

from shared import api
from shared.api.certificates import RenewRequest, Revocations, Trust
from shared.api.commands import Command
from shared.api.daemons import StatusReply
from shared.control import newer
from shared.control.rest import RestClient
from shared.daemon import logging
from shared.daemon.threads import no_room
from shared.desired import Desired
from shared.errors import (
    CertificateExpiredError,
    ConfigError,
    NoThreadError,
    OthersFolderError,
    RenewalNotDueError,
    UnderstudyError,
    UnreachableError,
    cause_of,
)
from shared.status import Problem, Report
from shared.trust import anchors, identity, tls
from shared.trust.pointer import Whereabouts
from shared.vocabulary import Severity
from shared.waiting import wait_for

_log = logging.get()

REPORT_INTERVAL_S: Final = 2.0
_RETRY_LIMIT_S: Final = 3.0
_SILENT_S: Final = 60.0
"""So long it may be away before it is looked for elsewhere, ..."""
_SUPERSEDED_S: Final = 5.0
"""... and where it says itself that it is not the one any more."""
_LOOK_S: Final = 60.0
"""How often storage is asked while all is well."""
_RENEWAL_CHECK_S: Final = 60.0
_RENEWAL_RETRY_S: Final = 15.0
"""While something hinders it."""

Status = Mapping[str, Any] | Report
Results = dict[str, dict[str, Any]]


class ControlClient:
    """A daemon's line to the config server.

    A daemon either calls `report` itself, or lets `serve` do everything. `on_renewed` gets what is in the certificate's files when it, or
    what is trusted, was replaced: for what presents it (shared/trust/tls.py: `present`). What hinders a renewal is in the reports, as a
    warning; in the last ninth of the certificate's life it is critical. `on_revoked` gets the certificates that are not to be
    admitted, with every answer that tells them; `on_desired` what an agent is to do, likewise: should it fail, the answer counts all the
    same. `on_deleted` gets, with every answer, which containers that the report named were deleted; it must not raise. `machine`: of an
    agent, the identity and boot that it reports, too. `where`: where the config server is, if that may change (`url` else). `find`
    reads what storage says of it: it is called every minute, and sooner when the config server says that it is not the one any more.
    (That one says where the other is, too, if it knows.)
    """

    def __init__(
        self,
        url: str,
        files: tls.TlsFiles,
        *,
        on_renewed: Callable[[tls.Chain], None] | None = None,
        on_revoked: Callable[[Revocations], Awaitable[None]] | None = None,
        on_desired: Callable[[Desired], Awaitable[None]] | None = None,
        on_deleted: Callable[[Collection[str]], None] = lambda _containers: None,
        machine: tuple[str, str] = ("", ""),
        where: Whereabouts | None = None,
        find: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._files = files
        self._name = identity.loaded_name(files)
        self._loaded = _stamp(files)
        """What the contexts present and trust, or what was before it: then it is loaded once more."""
        self._goes_by = _goes_by(*self._loaded)
        self._signer = ""
        """Which anchor issues now, by the last answer; "": it was not said."""
        self._trust_told: Trust | None = None
        """What is in force of that."""
        self._context = tls.client_context(files, tls.CONFIG_SERVER)
        self._where = where or Whereabouts(url, files.cert, files.ca)
        self._url = self._where.url
        self._client = RestClient(self._url, self._context)
        self._find = find
        self._sought_s = time.monotonic()
        """When it was sought last, or found."""
        self._looked_s = -_LOOK_S
        self._looking: asyncio.Task[None] | None = None
        self._superseded = False
        self._seeks_anew = False
        """What it has found may be signed by an anchor that went since: at its next start it would not know it."""
        self._on_renewed = on_renewed
        self._round_trip_ns = 0
        self._kept = True
        """Whether the config server remembers the results of the last report."""
        self._start, self._number = secrets.token_hex(8), 0
        self._lost: list[newer.Lost] = []
        """What was not understood of the last answer."""
        self._on_revoked = on_revoked
        self._on_desired = on_desired
        self._on_deleted = on_deleted
        self._machine = machine
        self.problem: UnderstudyError | None = None
        """Why the certificate cannot be renewed; None while nothing is wrong with it."""
        self._severity = Severity.WARNING
        """Of that."""
        self.untrusted: UnderstudyError | None = None
        """Why what is to be trusted was not taken; None while nothing is wrong with it."""

    async def close(self) -> None:
        await self._client.close()

    async def report(self, status: Status, *, wait_s: float = 0.0) -> list[Command]:
        """Send `status` (shared/status.py says which fields) and return the commands that wait for this
        daemon.

        A command comes again in every reply until a status carried its result: `{"results": {id: {...}}}`.
        With `wait_s` the server answers at once when there is a command, else after that time. Raises
        UnderstudyError.
        """
        self._number += 1
        if self._where.url != self._url:
            self._client.url = self._url = self._where.url
        body = {
            **_plain(status),
            "sent_ns": time.time_ns(),
            "round_trip_ns": self._round_trip_ns,
            "start": self._start,
            "number": self._number,
            "anchors": list(self._goes_by.anchors),
            "issuer": self._goes_by.issuer,
        }
        began_ns = time.monotonic_ns()
        try:
            lost: list[newer.Lost] = []
            reply: StatusReply = await self._client.call_plain(
                api.STATUS, body, {}, wait_s, lambda content: newer.reply(content, lost)
            )
        except UnreachableError:
            # A server that refuses a certificate cuts the connection; the reason can be seen on this side.
            await asyncio.to_thread(identity.check_certificate, self._files)
            raise
        except CertificateExpiredError as exc:
            raise await asyncio.to_thread(identity.explained, self._files, exc) from exc
        self._round_trip_ns = max(0, time.monotonic_ns() - began_ns - reply.held_ns)
        self._note_lost(lost)
        if reply.revoked is not None and self._on_revoked is not None:
            await self._on_revoked(reply.revoked)
        self._on_deleted(reply.deleted)
        if reply.trust is not None and not reply.superseded:
            await self._take_trust(reply.trust)
        if reply.desired is not None:
            await self._tell(reply.desired)
        self._kept = reply.kept
        self._superseded = reply.superseded
        if not reply.superseded:
            self._where.hear(reply.generation)
        elif reply.pointer:
            await self._where.take(reply.pointer.encode())
        return reply.commands

    def _note_lost(self, lost: list[newer.Lost]) -> None:
        """It comes with each answer, and is said once."""
        for part, cause in lost:
            if (part, cause) not in self._lost:
                _log.warning(
                    "a part of the config server's answer is not understood, and is left: it may be newer",
                    part=part,
                    cause=cause,
                )
        self._lost = lost

    async def _tell(self, desired: Desired) -> None:
        """It comes again with the next answer. What else this one says (commands, whose results are kept) must not be lost for it."""
        if self._on_desired is None:
            return
        try:
            await self._on_desired(desired)
        except Exception as exc:  # noqa: BLE001 - the daemon lives on, see the head of this module
            _log.error("what is desired could not be taken: this is a bug", exc_info=exc)

    async def _take_trust(self, told: Trust) -> None:
        """On the disk first, and then in all that begins sessions. It comes again with the next answer, and nothing else that this one says
        is lost for it."""
        if told == self._trust_told:
            return
        before, self.untrusted = self.untrusted, None
        try:
            await asyncio.to_thread(self._check_name)
            await asyncio.to_thread(identity.trust, self._files, told)
            trusted = self._goes_by.anchors
            await self._load_what_is_new()
            self._seeks_anew |= not set(trusted) <= set(self._goes_by.anchors)
            self._signer, self._trust_told = told.signer, told
        except UnderstudyError as exc:
            self.untrusted = exc
            if before is None or before.as_dict() != exc.as_dict():
                _log.warning("what is to be trusted was not taken", **exc.as_dict())
        except Exception as exc:  # noqa: BLE001 - the daemon lives on, see the head of this module
            self.untrusted = UnderstudyError("What is to be trusted was not taken", cause=repr(exc))
            if before is None or before.as_dict() != self.untrusted.as_dict():
                _log.error("what is to be trusted was not taken: this is a bug", exc_info=exc)

    async def serve(
        self,
        status: Callable[[], Status],
        handle: Callable[[Command], Awaitable[dict[str, Any]]],
        stop: asyncio.Event,
        *,
        interval_s: float = REPORT_INTERVAL_S,
    ) -> None:
        """Report `status()` every `interval_s` and run commands, until `stop` is set.

        `handle` runs each command once in this process, concurrently with others; what it returns, or the
        UnderstudyError that it raises, is reported as the result at once. A config server that is away is
        logged once and tried again with backoff. Returns soon after `stop`; commands still running are
        cancelled.
        """
        desk = _CommandDesk(handle)
        link = _Link(self._client.url)
        renew_at = time.monotonic()
        try:
            while not stop.is_set():
                if time.monotonic() >= renew_at:
                    await self._renew_quietly()
                    pause_s = _RENEWAL_CHECK_S if self.problem is None else _RENEWAL_RETRY_S
                    renew_at = time.monotonic() + pause_s
                began = time.monotonic()
                await self._seek(link)
                try:
                    news = await self._exchange(desk, stop, status, interval_s, link)
                except UnderstudyError as exc:
                    await wait_for(stop, link.failed(exc))
                except Exception as exc:  # noqa: BLE001 - the work of this daemon must not end for its reports
                    full = no_room(exc)
                    await wait_for(stop, link.failed(full) if full else link.failed_by_bug(exc))
                else:
                    if not news:
                        # The server holds its answer for the interval; should it not, this is no busy loop.
                        await desk.wait(stop, max(0.0, began + interval_s - time.monotonic()))
        finally:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
            await desk.close()

    async def _exchange(
        self,
        desk: _CommandDesk,
        stop: asyncio.Event,
        status: Callable[[], Status],
        interval_s: float,
        link: _Link,
    ) -> bool:
        """One report, and the commands in its answer; whether there is something to say again at once."""
        sent = desk.results()
        body = {**_plain(status()), "results": sent, "running": desk.running}
        for problem, severity in (
            (self.problem, self._severity),
            (self.untrusted, Severity.WARNING),
            (logging.problem(), Severity.WARNING),
        ):
            if problem is not None:
                told = Problem(**problem.as_dict(), severity=severity)
                body["errors"] = [*body.get("errors", []), msgspec.to_builtins(told)]
        # Cut short when a command finishes: its result is reported at once.
        commands = await desk.unless_finished(stop, self.report(body, wait_s=interval_s))
        if commands is None:
            return True
        link.works()
        if not self._superseded:
            self._sought_s = time.monotonic()
        if self._kept:
            desk.reported(sent)
        return desk.take(commands)

    async def _seek(self, link: _Link) -> None:
        """The config server that is in force, where this one says nothing, or that it is not. Whoever cannot ask storage is told by a
        process server, if he has a session (`where`), or by this one."""
        link.url = self._where.url
        now_s = time.monotonic()
        if now_s - self._sought_s < (_SUPERSEDED_S if self._superseded else _SILENT_S):
            # This one answers. Whether another is in force is asked beside the reports, which wait for no storage.
            is_due = self._seeks_anew or now_s - self._looked_s >= _LOOK_S
            if self._find is not None and self._looking is None and is_due:
                self._looked_s = now_s
                self._looking = asyncio.create_task(self._look(), name="pointer")
            return
        self._sought_s = self._looked_s = now_s
        is_news = await self._found()
        if not is_news and not self._superseded:
            self._where.next()
        link.url = self._where.url

    async def _look(self) -> None:
        try:
            await self._found()
        finally:
            self._looking = None

    async def _found(self) -> bool:
        """Whether storage has news."""
        if self._find is None:
            return False
        try:
            found = await self._find()
            self._seeks_anew = False
            return await self._where.take(found)
        except UnderstudyError as exc:  # who works with storage says so
            _log.info("not found out where the config server is", **exc.as_dict())
            return False

    async def renew_if_due(self) -> bool:
        """Get a new certificate when less than a third of this one's life is left, or another anchor issues now; whether there was one. The
        key stays the same, so that
        one atomic replacement of the certificate's file is all. Raises UnderstudyError."""
        await asyncio.to_thread(self._check_name)
        due = await asyncio.to_thread(identity.renewal_is_due, self._files.cert) or (
            bool(self._signer) and await asyncio.to_thread(identity.is_of_another, self._files, self._signer)
        )
        if due:
            request = await asyncio.to_thread(identity.request_of, self._files)
            try:
                answer = await self._client.call(
                    api.RENEW, RenewRequest(csr=request, identity=self._machine[0], boot=self._machine[1])
                )
            except RenewalNotDueError as exc:
                raise await asyncio.to_thread(identity.not_due, self._files, exc) from exc
            await asyncio.to_thread(identity.renew, self._files, answer)
            _log.info("certificate renewed", name=answer.name, not_after=answer.not_after)
        # Not only after a renewal: loading may have failed the last time, and an administrator may have enrolled this host anew.
        await self._load_what_is_new()
        return due

    def _check_name(self) -> None:
        """Raises OthersFolderError: what is in memory serves on, whoever was enrolled in this daemon's folder."""
        found = identity.loaded_name(self._files)
        if found != self._name:
            raise OthersFolderError(
                f"The certificate {self._files.cert} is not this daemon's any more",
                cause=f"it is for '{found}', and this is '{self._name}': another daemon was enrolled in this folder",
                action=f"Enrol this host as '{self._name}' again, in this folder, with --replace, before this daemon is restarted.",
            )

    async def _load_what_is_new(self) -> None:
        stamp = await asyncio.to_thread(_stamp, self._files)
        if stamp == self._loaded:
            return
        chain = await asyncio.to_thread(tls.read_chain, self._files)
        goes_by = await asyncio.to_thread(_goes_by, chain.cert, chain.ca)
        tls.present(self._context, chain)
        if self._on_renewed is not None:
            self._on_renewed(chain)
        self._loaded, self._goes_by = (chain.cert, chain.ca), goes_by

    async def _renew_quietly(self) -> None:
        """Whatever fails, the daemon goes on with the certificate that it has: a third of its life is left to try in."""
        before, self.problem = self.problem, None
        try:
            await self.renew_if_due()
        except UnderstudyError as exc:
            self.problem = exc
            if isinstance(exc, CertificateExpiredError):
                with contextlib.suppress(NoThreadError):  # then it is told as it is
                    self.problem = await asyncio.to_thread(identity.explained, self._files, exc)
            told = self.problem
            if before is None or (before.code, before.what) != (told.code, told.what):
                _log.warning("the certificate could not be renewed yet", **told.as_dict())
        except Exception as exc:  # noqa: BLE001 - the daemon lives on, see the head of this module
            self.problem = UnderstudyError("The certificate could not be renewed", cause=repr(exc))
            if before is None or before.as_dict() != self.problem.as_dict():
                _log.error("the certificate could not be renewed: this is a bug", exc_info=exc)
        if self.problem is not None:
            self._severity = await asyncio.to_thread(self._how_bad)
        elif before is not None:
            _log.info("the certificate is in order again")

    def _how_bad(self) -> Severity:
        try:
            return Severity.CRITICAL if identity.ends_soon(self._files.cert) else Severity.WARNING
        except ConfigError:
            return Severity.WARNING  # that it cannot be read is the problem itself


def _stamp(files: tls.TlsFiles) -> tuple[bytes, bytes]:
    """Certificate and anchors, as they lie there."""
    try:
        return files.cert.read_bytes(), files.ca.read_bytes()
    except OSError as exc:
        path = exc.filename or files.cert
        raise ConfigError(f"Certificate {path} could not be read", cause=cause_of(exc)) from exc


class _GoesBy(NamedTuple):
    """Fingerprints, for the reports."""

    anchors: tuple[str, ...]
    issuer: str


def _goes_by(cert: bytes, ca: bytes) -> _GoesBy:
    """Nothing is said of files that a context could not be made of: whoever holds this has made one."""
    try:
        trusted = anchors.loaded(ca)
        issuer = anchors.issuer_of(x509.load_pem_x509_certificate(cert), trusted)
    except anchors.NO_CERTIFICATE:
        return _GoesBy((), "")
    return _GoesBy(tuple(map(anchors.fingerprint, trusted)), anchors.fingerprint(issuer) if issuer else "")


class _CommandDesk:
    """The commands of one `serve`: which run, which are finished and not yet reported."""

    def __init__(self, handle: Callable[[Command], Awaitable[dict[str, Any]]]) -> None:
        self._handle = handle
        self._running: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._done: Results = {}
        self._forgotten: set[str] = set()

    @property
    def running(self) -> list[str]:
        return list(self._running)

    def take(self, commands: list[Command]) -> bool:
        """Start those that are new here; whether there were any."""
        listed = {command.id for command in commands}
        self._forgotten &= listed  # the server does not repeat them any more
        known = self._running.keys() | self._done.keys() | self._forgotten
        new = [command for command in commands if command.id not in known]
        for command in new:
            _log.info("command", id=command.id, kind=command.kind, args=command.args)
            self._running[command.id] = asyncio.create_task(
                self._run(command), name=f"command {command.kind} {command.id}"
            )
        return bool(new)

    def results(self) -> Results:
        """Of commands that have finished and were not reported yet."""
        for id_, task in list(self._running.items()):
            if task.done():
                self._done[id_] = task.result()
                del self._running[id_]
        return dict(self._done)

    def reported(self, sent: Results) -> None:
        """The server has these results."""
        for id_ in sent:
            self._done.pop(id_, None)
            self._forgotten.add(id_)

    async def unless_finished(
        self, stop: asyncio.Event, work: Awaitable[list[Command]]
    ) -> list[Command] | None:
        """The result of `work`, or None when a command finished or `stop` was set first: then it is
        cancelled."""
        task = asyncio.ensure_future(work)
        try:
            await self.wait(stop, None, task)
            return await task if task.done() else None
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, UnderstudyError):
                await task

    async def wait(
        self, stop: asyncio.Event, seconds: float | None, *also: asyncio.Future[list[Command]]
    ) -> None:
        """Until a command has finished, `stop` is set, one of `also` is done, or the time is over."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        waited: set[asyncio.Future[Any]] = {stopping, *self._running.values(), *also}
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, command: Command) -> dict[str, Any]:
        try:
            return await self._handle(command)
        except UnderstudyError as exc:
            return {"error": exc.as_dict()}
        except Exception as exc:  # noqa: BLE001 - reported as the result, with its traceback in the log
            if (full := no_room(exc)) is not None:
                return {"error": full.as_dict()}
            _log.error("command failed: this is a bug", id=command.id, kind=command.kind, exc_info=exc)
            error = UnderstudyError(f"The command '{command.kind}' failed", cause=repr(exc))
            return {"error": error.as_dict()}


class _Link:
    """Whether the config server can be reached: logs the changes only, and says how long to wait."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._failures = 0
        self._cause: tuple[str, str] | None = None

    def works(self) -> None:
        if self._failures:
            _log.info("config server reached again", url=self.url)
        self._failures, self._cause = 0, None

    def failed(self, exc: UnderstudyError) -> float:
        """Each cause once: behind "connection refused" of a restart may follow a certificate that is not accepted."""
        if self._cause != (exc.code, exc.cause):
            self._cause = exc.code, exc.cause
            _log.warning("config server not reached; work goes on", url=self.url, **exc.as_dict())
        return self._pause_s()

    def failed_by_bug(self, exc: Exception) -> float:
        if self._cause != (UnderstudyError.code, repr(exc)):
            self._cause = UnderstudyError.code, repr(exc)
            _log.error("report failed: this is a bug; work goes on", url=self.url, exc_info=exc)
        return self._pause_s()

    def _pause_s(self) -> float:
        self._failures += 1
        return min(_RETRY_LIMIT_S, 0.5 * float(2 ** min(self._failures, 5))) * random.uniform(0.5, 1.0)


def _plain(status: Status) -> Mapping[str, Any]:
    if isinstance(status, Report):
        plain: dict[str, Any] = msgspec.to_builtins(status)
        return plain
    return status

"""What must be so on this host and around it before a daemon is set up: ports, the config server and its clock, the storage account."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from shared import api
from shared.api.route import Nothing
from shared.control import enrol
from shared.control.rest import RestClient
from shared.errors import (
    ConfigError,
    HostClockError,
    ListenError,
    StorageUnfitError,
    UnderstudyError,
    UsageError,
    cause_of,
)
from shared.host.ports import listener_of
from shared.http.clock_evidence import AGREE_S, date_in
from shared.moments import apart_s
from shared.serving import listening
from shared.setup.steps import Done, Outcome
from shared.trust import anchors, tls
from shared.trust.tls import TlsFiles

if TYPE_CHECKING:
    from shared.blob import BlobConfig

_PATIENCE_S: Final = 10.0
_WARN_S: Final = 5.0
_HEAD_B: Final = 16 << 10
_SET_RIGHT: Final = "Set it right (NTP: timedatectl, chronyc tracking)."


class Check:
    """A step that makes nothing."""

    async def do(self) -> Done:
        raise NotImplementedError("a check is never missing")


@dataclass(frozen=True)
class PortFree(Check):
    """Nobody but this daemon listens where it will."""

    host: str
    port: int
    daemon: str
    config: Path

    async def look(self, dry_run: bool) -> Done:
        what = f"port {self.port}"
        try:
            listening.listening_socket(self.host, self.port, self.daemon).close()
        except ListenError as exc:
            listener = listener_of(self.port)
            if listener is None:
                raise
            if listener.was_given(self.config):
                return Done(
                    step="port", outcome=Outcome.KEPT, what=what, detail=f"{self.daemon} listens there"
                )
            raise ListenError(
                exc.what,
                cause=f"process {listener.pid} ({listener.command[:100]}) listens on it",
                action="Stop that process, or give another port (--port).",
            ) from exc
        return Done(step="port", outcome=Outcome.CHECKED, what=what, detail=f"free for {self.daemon}")


@dataclass(frozen=True)
class PortReached(Check):
    """Something answers there. That nobody does is only told: hosts are set up in any order."""

    host: str
    port: int
    who: str

    async def look(self, dry_run: bool) -> Done:
        what = f"{listening.shown(self.host)}:{self.port}"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                _, writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, TimeoutError) as exc:
            why = "no answer" if isinstance(exc, TimeoutError) or not exc.args else cause_of(exc) or str(exc)
            return Done(
                step="port",
                outcome=Outcome.WARNING,
                what=what,
                detail=f"{self.who} is not reached: {why}",
                action=f"If it runs already: open the way from this host to port {self.port} there (firewall, routes, name).",
            )
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return Done(step="port", outcome=Outcome.CHECKED, what=what, detail=f"{self.who} is reached")


class ConfigServer(Check):
    """It answers, and is the right one: its CA is the token's, or the one that this host has from its enrolment. Else nothing is sent."""

    def __init__(self, url: str, token: str, files: TlsFiles) -> None:
        self.url: Final = url
        self.trusted: anchors.Anchors | None = None
        """Its CA, once it was looked at; while that is renewed, the other one, too."""
        self.known: anchors.Anchors = ()
        """And those before them, as far as they are told."""
        self._token: Final = token
        self._files: Final = files

    async def look(self, dry_run: bool) -> Done:
        self.trusted = await self._authority()
        async with RestClient(self.url, self.context) as client:
            health = await client.call(api.HEALTH, Nothing())
        return Done(
            step="config-server",
            outcome=Outcome.CHECKED,
            what=self.url,
            detail=f"{health.name} answers, version {health.version}, and its CA is {'the token' if self._token else 'this host'}'s",
        )

    async def _authority(self) -> anchors.Anchors:
        if self._token:
            found = await enrol.installation(self.url, enrol.parse_token(self._token))
            self.known = found.known
            return found.trusted
        try:
            self.known = anchors.loaded(self._files.ca.read_bytes())
            return self.known
        except FileNotFoundError as exc:
            raise UsageError(
                "This host is not enrolled",
                cause=f"there is no {self._files.ca}, and no token was given",
                action="Make one on the config server (understudy token create ROLE NAME), and give it: --token-file FILE.",
            ) from exc
        except (OSError, *anchors.NO_CERTIFICATE) as exc:
            raise ConfigError(
                f"The CA {self._files.ca} cannot be used",
                cause=str(exc),
                action="Make a token (understudy token create ROLE NAME), and give it: --token-file FILE.",
            ) from exc

    @property
    def context(self) -> ssl.SSLContext:
        assert self.trusted is not None
        return enrol.trusting(self.trusted)


@dataclass(frozen=True)
class Clock(Check):
    """This host's beside the config server's: certificates begin and end, and recovery points are named by time."""

    server: ConfigServer

    async def look(self, dry_run: bool) -> Done:
        before_s, theirs_s, after_s = await self._ask()
        if theirs_s is None:
            return self._done(Outcome.WARNING, "the config server does not say what time it is", "")
        off_s = apart_s(before_s, after_s, theirs_s)
        if off_s == 0:
            return self._done(Outcome.CHECKED, "it agrees with the config server's to the second", "")
        detail = f"it is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the config server's"
        if abs(off_s) > AGREE_S:
            raise HostClockError(
                "This host's clock is wrong, or the config server's is",
                cause=detail,
                action=f"{_SET_RIGHT} Then run the command again.",
            )
        is_off = abs(off_s) > _WARN_S
        return self._done(
            Outcome.WARNING if is_off else Outcome.CHECKED, detail, _SET_RIGHT if is_off else ""
        )

    def _done(self, outcome: Outcome, detail: str, action: str) -> Done:
        return Done(step="clock", outcome=outcome, what="this host's clock", detail=detail, action=action)

    async def _ask(self) -> tuple[float, float | None, float]:
        """This clock, theirs (whole seconds), this one."""
        url = urlsplit(self.server.url)
        host, port = url.hostname or "", url.port or 443
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self.server.context, limit=_HEAD_B
                )
                try:
                    before_s = time.time()
                    writer.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    return before_s, date_in(head), time.time()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as exc:
            raise tls.translate(
                exc, f"The config server {self.server.url} was not asked for its time"
            ) from exc


@dataclass(frozen=True)
class StorageFit(Check):
    """`understudy storage check`. It makes a container for a moment, so a dry run only names it."""

    config: BlobConfig
    show: Callable[[str], None]

    async def look(self, dry_run: bool) -> Done:
        from shared.blob.check import State, check

        what = f"the storage account {self.config.account}, container {self.config.container}"
        if dry_run:
            return Done(step="storage", outcome=Outcome.WOULD_CHECK, what=what)
        report = await check(
            self.config, lambda found: self.show(f"checking storage: {found.name} {found.state}")
        )
        for finding in report.findings:
            if finding.state is State.ERROR:
                raise StorageUnfitError(
                    f"The storage account {report.account} cannot be used as it is",
                    cause=f"{finding.name}: {finding.detail}",
                    action=f"{finding.action} All that was found: {_storage_check(self.config)}".strip(),
                )
        warnings = [finding for finding in report.findings if finding.state is State.WARNING]
        return Done(
            step="storage",
            outcome=Outcome.WARNING if warnings else Outcome.CHECKED,
            what=what,
            detail="; ".join(f"{finding.name}: {finding.detail}" for finding in warnings)
            or "it can be reached, and does what it must",
            action=" ".join(finding.action for finding in warnings),
        )


def _storage_check(config: BlobConfig) -> str:
    """The command, for a shell, that looks at the same account by the same key and CA."""
    options = [
        ("--blob-url", config.url),
        ("--blob-container", config.container),
        ("--blob-key-file", config.account_key_file),
        ("--blob-ca-file", config.ca_file),
    ]
    given = [str(word) for name, value in options if value is not None for word in (name, value)]
    return shlex.join(["understudy", "storage", "check", *given])


@dataclass(frozen=True)
class Answering(Check):
    """The config server that was set up here, under the name that stands in everybody's configuration."""

    url: str
    ca_file: Path
    is_started: bool
    """By its unit; else it is somebody's to start."""

    async def look(self, dry_run: bool) -> Done:
        if dry_run:
            return Done(step="answers", outcome=Outcome.WOULD_CHECK, what=self.url)
        try:
            trusted = anchors.of_file(self.ca_file)
            async with RestClient(self.url, enrol.trusting(trusted)) as client:
                health = await client.call(api.HEALTH, Nothing())
        except (UnderstudyError, OSError, ValueError) as exc:
            if not self.is_started:
                return self._done(Outcome.TO_DO, "nobody answers there yet: it was not started by this run")
            action = "Others need this name and port: see that they resolve it, and reach it."
            return self._done(Outcome.WARNING, str(exc), action)
        return self._done(Outcome.CHECKED, f"{health.name}, version {health.version}")

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(step="answers", outcome=outcome, what=self.url, detail=detail, action=action)

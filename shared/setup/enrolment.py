"""The daemon's certificate, as a step. How a host gets one, and why nobody in the middle can give it another: shared/control/enrol.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509

from shared.control import enrol
from shared.crashpoints import reach
from shared.errors import (
    CertificateExpiredError,
    ConfigError,
    OthersFolderError,
    TokenUsedError,
    UsageError,
)
from shared.host import durable
from shared.host.owner import as_owner
from shared.setup.access import Access
from shared.setup.checks import ConfigServer
from shared.setup.steps import Done, Outcome
from shared.trust import anchors, identity
from shared.trust.tls import TlsFiles
from shared.vocabulary import Role


class Enrolment:
    """Key, certificate and CA in `folder`, of whose owner they are. `name` is known once they are there."""

    def __init__(
        self, role: Role, folder: Path, server: ConfigServer, token: str, *, again: bool = False
    ) -> None:
        """`again`: for a new key, though there is a certificate: it was revoked, or may be stolen."""
        self.files: Final[TlsFiles] = identity.files_in(folder)
        self.name = ""
        """Of the daemon, for which the token was made; "": not known yet (dry run)."""
        self.made = False
        """By this run."""
        self._role: Final = role
        self._folder: Final = folder
        self._server: Final = server
        self._token: Final = token
        self._again: Final = again
        self._is_open = False
        """Whether others could use the key that is there."""

    async def look(self, dry_run: bool) -> Done:
        try:
            if not self._is_whole():
                return self._missing("with a key that is made here")
            identity.check_certificate(self.files)
        except CertificateExpiredError as exc:
            return self._missing(exc.cause)
        self._take_name()
        with self._as_set_up():
            self._check_server()
        if self._again:
            return self._missing("with a new key, as was asked for")
        if wrong := self._key().wrong():
            self._is_open = True
            return self._done(Outcome.WOULD_MEND, f"{self.files.key}: {wrong}")
        ends = self._certificate().not_valid_after_utc
        return self._done(
            Outcome.KEPT, f"{self._role}:{self.name}, until {ends:%Y-%m-%d}; the daemon renews it"
        )

    async def do(self) -> Done:
        if self._is_open:
            return self._done(
                Outcome.MENDED,
                f"{self.files.key}: {self._key().close()}",
                f"Consider it known to others: understudy certificate revoke {self._role}:{self.name}, then a new token, and the same"
                " command with --enrol-again.",
            )
        with as_owner(self._folder):
            with durable.named(f"The folder {self._folder} could not be used"):
                for key in (self.files.key, self._folder / enrol.NEW_KEY):
                    durable.remove_leftovers(key)  # of a run that was killed; no daemon writes a key
            try:
                with self._as_set_up():
                    await enrol.enrol(self._server.url, self._token, self._folder, role=self._role)
            except TokenUsedError:
                if not (self._again and self.name and await self._has_this_key()):
                    raise
                self.made = True  # by a run that was killed, perhaps before it restarted the daemon
                return self._done(
                    Outcome.WARNING,
                    f"{self._role}:{self.name}; this token was used for the key that is here, which stays",
                    f"Is another key wanted than that: understudy token create {self._role} {self.name}, and the same command.",
                )
        reach("setup.step")
        self.made = True
        self._take_name()
        return self._done(Outcome.CREATED, f"{self._role}:{self.name}; its key never leaves this host")

    def _is_whole(self) -> bool:
        """Whether the three files are there and belong together: an enrolment that was killed leaves some, and enrolling again mends it."""
        if not all(path.exists() for path in (self.files.cert, self.files.key, self.files.ca)):
            return False
        try:
            return self._certificate().public_key() == identity.key_of(self.files).public_key()
        except (ConfigError, ValueError):
            return False

    @contextlib.contextmanager
    def _as_set_up(self) -> Iterator[None]:
        """What to do is said by the options that a set-up has."""
        try:
            yield
        except OthersFolderError as exc:
            again = (
                f"understudy token create {self._role} {self.name}"
                if self.name
                else "understudy token create"
            )
            raise OthersFolderError(
                exc.what,
                cause=exc.cause,
                action=f"Give a token of the daemon that is here, from its config server ({again}); or another folder (--etc); or move"
                f" {self._folder} away if that daemon is not on this host any more.",
            ) from exc

    async def _has_this_key(self) -> bool:
        """From this token, in a run that was killed behind it."""
        return await enrol.was_for_this_key(self._server.url, self._token, self._folder)

    def _key(self) -> Access:
        with durable.named(f"The folder {self._folder} could not be used"):
            return Access.in_folder(self.files.key)

    def _certificate(self) -> x509.Certificate:
        return identity.only_certificate(self.files.cert.read_text("ascii"))

    def _take_name(self) -> None:
        role, _, name = identity.loaded_name(self.files).partition(":")
        if role != self._role:
            raise ConfigError(
                f"The certificate {self.files.cert} is not one of a {self._role}",
                cause=f"it is for '{role}:{name}'",
                action=f"Give another folder (--etc), or move {self._folder} away if that daemon is not on this host any more.",
            )
        self.name = name

    def _check_server(self) -> None:
        """Raises OthersFolderError where a token leads to another installation than the one in which this host is."""
        if known := self._server.known:
            identity.check_folder(self.files, known)
            if set(known).isdisjoint(anchors.of_file(self.files.ca)):
                raise OthersFolderError(
                    f"Nothing was written to {self._folder}",
                    cause=f"{self.files.ca} is another CA than that of {self._server.url}",
                )

    def _missing(self, why: str) -> Done:
        if not self._token:
            raise UsageError(
                "This host cannot be enrolled",
                cause=f"no token was given, and a new certificate is needed ({why})",
                action=f"Make one on the config server (understudy token create {self._role} NAME), and give it: --token-file FILE.",
            )
        return self._done(Outcome.WOULD_CREATE, why)

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(
            step="certificate", outcome=outcome, what=str(self.files.cert), detail=detail, action=action
        )

"""The config server's own key and certificate: made anew when they are missing, due, not valid yet (this host's clock was ahead once),
of another key or CA, or for other hosts.

It signs for itself, so nothing but its disk can hinder it. A certificate that still serves is kept while a new one cannot be written.

Nor can its clock: a certificate begins with the CA, and not now. One that was made while the clock was years ahead is therefore good for
everybody whose clock is right, and while the clock is years back none is due.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509

from config_server.config import ConfigServerConfig
from config_server.identity.ca import CertificateAuthority, check_host, hosts_of
from shared.errors import HostClockError, IdentityFileError, UnderstudyError
from shared.naming import is_host
from shared.trust import anchors, identity, tls
from shared.vocabulary import Role

ROLE: Final = Role.CONFIG_SERVER


class OwnCertificate:
    """It, on the port: `context` presents it. Raises as `ready` does."""

    def __init__(self, config: ConfigServerConfig, ca: CertificateAuthority) -> None:
        self._config: Final = config
        self._ca: Final = ca
        files, _kept = ready(config, ca)
        self.context: Final[ssl.SSLContext] = tls.server_context(files, require_client=False)
        self._presented: tls.Chain | None = None

    @property
    def presented(self) -> tls.Chain | None:
        """Since `renew` has returned for the first time."""
        return self._presented

    async def renew(self) -> None:
        """If it is due: new connections get the new one. What cannot be renewed serves on; then the cause is raised."""
        files, kept = await asyncio.to_thread(ready, self._config, self._ca)
        chain = await asyncio.to_thread(tls.read_chain, files)
        if chain != self._presented:
            tls.present(self.context, chain)
            self._presented = chain
        if kept is not None:
            raise kept


def ready(
    config: ConfigServerConfig, ca: CertificateAuthority
) -> tuple[tls.TlsFiles, UnderstudyError | None]:
    """The files, with a certificate in them that serves; and why it is an old one, where it should have been renewed. Raises
    ConfigError, HostClockError, IdentityFileError."""
    folder = config.data_dir
    files = tls.TlsFiles(cert=folder / "server.pem", key=folder / "server.key", ca=folder / "ca.pem")
    # As a certificate gives them back: another spelling of an address is no other host.
    named = [*_own_names(), *config.hosts]
    hosts = list(dict.fromkeys(check_host(host) for host in named))
    if not files.key.exists():
        identity.write(files.key, identity.new_key_pem(), mode=0o600)
    key = identity.key_of(files).public_key()
    name = f"{ROLE}:{config.name}"
    there = _there(files.cert)
    now = dt.datetime.now(dt.UTC)
    serves = (
        there is not None
        and there.public_key() == key
        and identity.name_of(there) == name
        and _issued(there, ca)
    )
    life = dt.timedelta(days=config.certificate_days)
    if now < ca.certificate.not_valid_before_utc:
        wrong = HostClockError(
            "The config server's clock is wrong",
            cause=f"it shows {now:%Y-%m-%d %H:%M:%S} UTC, and its CA was made at {ca.certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S}",
            action="Set it right (NTP: timedatectl, chronyc tracking); then it goes on by itself.",
        )
        if not serves:
            raise wrong
        return files, wrong
    if serves and there is not None:
        begins, ends = there.not_valid_before_utc, there.not_valid_after_utc
        if begins <= now < ends - life / 3 and sorted(hosts_of(there)) == sorted(hosts):
            return files, None
    issued = ca.issue(key, ROLE, config.name, hosts, life, now, begins=ca.certificate.not_valid_before_utc)
    try:
        identity.write(files.cert, identity.pem_of(issued), mode=0o644)
    except IdentityFileError as exc:
        if not serves:
            raise
        # The one that is there is good for something yet; this is tried again with every sweep.
        return files, exc
    return files, None


def _own_names() -> list[str]:
    name = socket.gethostname()  # whatever somebody once called this host
    return ["localhost", "127.0.0.1", "::1", *([name] if name.isascii() and is_host(name) else [])]


def _there(cert: Path) -> x509.Certificate | None:
    """The certificate that is there; None for what is none, which is replaced."""
    try:
        return identity.only_certificate(cert.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _issued(certificate: x509.Certificate, ca: CertificateAuthority) -> bool:
    """By that which signs now: one of the other is renewed."""
    return anchors.issuer_of(certificate, [ca.certificate]) is not None

"""The way to the account, hop by hop, before anything is asked of it: name, connection, TLS.

Each hop is tried by itself and has a deadline of its own, so that the first that fails is named. Behind a proxy only the way to the
proxy can be looked at so; the first request to the account then says the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from shared.blob.answers import place
from shared.blob.check.findings import Aspect, Finding, failed, ok
from shared.blob.config import BlobConfig, tls_context
from shared.blob.core import explained
from shared.errors import AccountMissingError, StorageError, TransientError
from shared.http.proxies import Proxy, proxy_for
from shared.naming import is_host
from shared.trust import tls

_DNS: Final = "Check the account's name, and this host's DNS (resolvectl query)."
_NETWORK: Final = (
    "Let this host reach it: routes, firewalls, a proxy (HTTPS_PROXY), or the account's private endpoint."
)
_BETWEEN: Final = "Find out what answers there: a firewall or a proxy in between may hold it up."
_PORTS: Final = {"https": 443, "http": 80}


async def reach(config: BlobConfig, limit_s: float) -> AsyncIterator[Finding]:
    """One finding for each hop, up to the first that fails. `limit_s`: for each."""
    way = _Way(config, limit_s)
    for hop, attempt in (
        (Aspect.NAME, way.resolve),
        (Aspect.CONNECTION, way.connect),
        (Aspect.TLS, way.shake_hands),
    ):
        try:
            finding = await attempt()
        except StorageError as exc:
            yield failed(hop, exc)
            return
        if finding is not None:
            yield finding


class _Way:
    def __init__(self, config: BlobConfig, limit_s: float) -> None:
        self._config = config
        self._limit_s = limit_s
        self._proxy: Proxy | None = None
        self._host, self._port = _server(config.url)

    async def resolve(self) -> Finding:
        if not is_host(self._host):  # what a resolver would choke on
            raise AccountMissingError(
                "Could not find the address of the storage account",
                cause=f"{self._host[:100]!r} can be no name of a host",
            )
        async with self._limited("find the address of the storage account", _DNS):
            self._proxy = await proxy_for(self._config.url)
        if self._proxy is not None:
            self._host, self._port = _server(self._proxy.url)
        async with self._limited("find the address of the storage account", _DNS):
            found = await asyncio.get_running_loop().getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            )
        addresses = ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))
        return ok(Aspect.NAME, f"{self._named} is at {addresses}")

    async def connect(self) -> Finding:
        async with self._limited("connect to the storage account", _NETWORK):
            began = time.monotonic()
            _, writer = await asyncio.open_connection(self._host, self._port)
            took_s = time.monotonic() - began
            address, *_ = writer.get_extra_info("peername")
            writer.transport.abort()
        return ok(Aspect.CONNECTION, f"port {self._port} of {address} answers, after {took_s * 1000:.0f} ms")

    async def shake_hands(self) -> Finding | None:
        """None where there is none to look at: without encryption, or behind a proxy."""
        if self._proxy is not None or urlsplit(self._config.url).scheme == "http":
            return None
        context = tls_context(self._config, "")
        async with self._limited("agree on encryption with the storage account", _BETWEEN):
            _, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
            session: ssl.SSLObject = writer.get_extra_info("ssl_object")
            version, certificate = session.version(), session.getpeercert() or {}
            writer.transport.abort()
        trusted = f"the CA in {self._config.ca_file}" if self._config.ca_file else "a public CA"
        return ok(
            Aspect.TLS,
            f"{version}; certificate of {_name(certificate, 'subject')}, signed by {_name(certificate, 'issuer')},"
            f" valid until {certificate.get('notAfter', '?')}; trusted by {trusted}",
        )

    @property
    def _named(self) -> str:
        return self._host if self._proxy is None else f"{self._proxy} is used; {self._host}"

    @contextlib.asynccontextmanager
    async def _limited(self, what: str, action: str) -> AsyncIterator[None]:
        """`action`: what to do where nothing better is known."""
        what = f"Could not {what}"
        where = place(self._config, self._proxy)
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError as exc:
            cause = f"no answer within {self._limit_s:.0f} s from {where}"
            raise TransientError(what, cause=cause, action=action) from exc
        except OSError as exc:
            error = await explained(what, exc, self._config, self._proxy)
            if isinstance(error, TransientError):
                words = tls.translate(exc, what).cause  # asyncio's own name no cause
                error = TransientError(what, cause=f"{where} does not answer: {words}", action=action)
            raise error from exc


def _server(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443)


def _name(certificate: Mapping[str, Any], field: str) -> str:
    """Who it is of, or signed it: the common name with the organisation, as far as the certificate has them."""
    words: dict[str, str] = {key: value for part in certificate.get(field, ()) for key, value in part}
    named = [words[key] for key in ("commonName", "organizationName") if key in words]
    return " of ".join(named) or "nobody that it names"

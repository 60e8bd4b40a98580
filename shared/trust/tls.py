"""TLS between the parts: version 1.3 only, both ends authenticated by certificates of the config server's CA.

A certificate's common name is ROLE:NAME, for example `agent:web1` or `process-server:ps1`. The TLS library
proves that the CA signed it; what a role may do is decided by whoever asked for `peer_name`. Servers'
certificates also carry DNS names or addresses, which clients check. That is not enough: every process server's certificate is valid for
some host, and who takes over that host's name or address could play the config server with it. So clients name the role that the server
must have (`server`), and a handshake with any other fails before a byte of theirs is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

import msgspec

from shared.errors import (
    CertificateExpiredError,
    CertificateMissingError,
    CertificateRevokedError,
    ConfigError,
    NotTlsError,
    PeerError,
    TlsError,
    UnknownAuthorityError,
    UnreachableError,
    WrongHostError,
    WrongRoleError,
)
from shared.moments import coarse

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_ALERT_S: Final = 1.0
"""So long a refused client may take to read why."""
CONFIG_SERVER: Final = "config-server:*"
PROCESS_SERVER: Final = "process-server:*"


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files of one daemon: its certificate (with chain), its private key, and the CA of its peers (shared/trust/anchors.py)."""

    cert: Path
    """The certificate, PEM. The daemon renews it in place."""
    key: Path
    """Its private key, PEM, readable by the daemon's user only."""
    ca: Path
    """The certificate of the config server's CA, PEM. While that is renewed, the other one's, too: the daemon writes what it is told."""


def server_context(files: TlsFiles, require_client: bool = True) -> ssl.SSLContext:
    """For a listening port. Raises ConfigError when a file is missing or does not fit.

    With `require_client` False a client may come without a certificate (enrolment); one that it does show
    must still be the CA's."""

    def anew() -> _ServerContext:
        context = _ServerContext(ssl.PROTOCOL_TLS_SERVER, anew)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
        # No resumption: every session shows its certificate, so that an expired one cannot live on in a ticket.
        context.num_tickets = 0
        return context

    return _loaded(anew(), files)


_accepted: ContextVar[socket.socket | None] = ContextVar("accepted", default=None)


class _Context(ssl.SSLContext):
    """One that a daemon holds for as long as it runs. Sessions are begun by `now`, which `present` replaces as a whole: OpenSSL takes no
    anchor out of a context, and one that is changed while another thread begins a session by it gives that a new certificate with the old
    key, or frees what it copies. Sessions that were begun keep the context by which they were."""

    def __new__(cls, protocol: int, _anew: Callable[[], _Context]) -> Self:
        return super().__new__(cls, protocol)

    def __init__(self, _protocol: int, anew: Callable[[], _Context]) -> None:
        self.anew: Final = anew
        """Another one like this, without certificate and anchors."""
        self.now: _Context = self

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if self.now is not self:
            return self.now.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


class _ServerContext(_Context):
    """Sends the alert of a handshake that fails. asyncio closes the socket with the alert unsent, and a client whose certificate is refused
    (which in TLS 1.3 has finished its own handshake) would see a connection that was reset."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        wrapped = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        sock = _accepted.get()
        if sock is None or self.now is not self:  # (that one has seen to it)
            return wrapped
        shake = wrapped.do_handshake

        def do_handshake() -> None:
            try:
                shake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    sock.send(outgoing.read())
                    sock.shutdown(socket.SHUT_WR)
                raise

        wrapped.do_handshake = do_handshake  # type: ignore[method-assign]
        return wrapped


async def accept(
    protocol: Callable[[], _P], sock: socket.socket, context: ssl.SSLContext, handshake_s: float
) -> tuple[asyncio.Transport, _P]:
    """The server's side of a connection that was accepted.

    `sock` stays the caller's, who closes it afterwards, and may shut it down to end the handshake at any time. The transport has a
    descriptor of its own: a number that is closed under it names the next connection, which the event loop, that still knows the
    number, would never hear.

    Raises OSError (ssl.SSLError is one), after the client had a moment to read why."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _accepted.set(sock)
    try:
        return await loop.connect_accepted_socket(
            protocol, sock.dup(), ssl=context, ssl_handshake_timeout=handshake_s, ssl_shutdown_timeout=1.0
        )
    except ssl.SSLError:
        # What the client has sent meanwhile is read: closing with unread bytes resets the connection, and the alert would be lost.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ALERT_S):
                while await loop.sock_recv(sock, 65_536):
                    pass
        raise


def client_context(files: TlsFiles, server: str = "") -> ssl.SSLContext:
    """For connecting as this daemon to a server whose certificate is `server` (`config-server:*`); "": to any of the CA's. Checks the
    server's certificate and host name. Raises ConfigError."""

    def anew() -> _Context:
        context = _Context(ssl.PROTOCOL_TLS_CLIENT, anew)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if server:
            expecting(context, server)
        return context

    return _loaded(anew(), files)


def expecting(context: ssl.SSLContext, server: str) -> ssl.SSLContext:
    """The context, which from now on completes no handshake but with a server whose certificate is `server`."""

    class Checked(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            try:
                require_name(peer_name(self), server)
            except WrongRoleError as exc:
                raise _WrongRole(exc) from exc

    context.sslobject_class = Checked
    return context


class _WrongRole(ssl.SSLError):
    """A WrongRoleError inside a handshake: asyncio takes only errors of `ssl` from there."""

    def __init__(self, error: WrongRoleError) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, error.cause)
        self.error = error


class Chain(NamedTuple):
    """A certificate (with chain), its private key, and the anchors by which peers are accepted, PEM. They fit."""

    cert: bytes
    key: bytes
    ca: bytes

    def __repr__(self) -> str:
        return "Chain(…)"


def read_chain(files: TlsFiles) -> Chain:
    """What `files` hold now. Blocks on the disk. Raises ConfigError where a daemon could not run by them: a load that fails half way leaves
    a certificate without its key, so the files are first tried on a context that nobody uses."""
    with _named_if_unusable(files):
        chain = Chain(files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes())
        _fill(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain)
    return chain


def present(context: ssl.SSLContext, chain: Chain) -> None:
    """In the sessions that begin from here on, certificate and anchors. `context`: of `server_context` or `client_context`. Blocks on
    nothing."""
    if not isinstance(context, _Context):
        raise TypeError("only what was made here can be renewed")
    fresh = context.anew()
    _fill(fresh, chain)
    context.now = fresh


def _fill(context: ssl.SSLContext, chain: Chain) -> None:
    """Raises OSError (ssl.SSLError is one), ValueError."""
    with ExitStack() as stack:
        paths = []
        for name, data in (
            ("cert", chain.cert),
            ("key", chain.key),
        ):  # OpenSSL takes paths, and a disk may hang
            file = stack.enter_context(os.fdopen(os.memfd_create(name), "wb", buffering=0))
            file.write(data)
            paths.append(f"/proc/self/fd/{file.fileno()}")
        context.load_cert_chain(*paths)
    context.load_verify_locations(cadata=chain.ca.decode("ascii"))


def peer_name(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """The common name in the peer's verified certificate, ROLE:NAME; "" when it showed none."""
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    for relative_name in (certificate or {}).get("subject", ()):
        for field in relative_name:
            # getpeercert() is a loosely typed structure: ((("commonName", "agent:web1"),), …)
            if isinstance(field, tuple) and len(field) == 2 and field[0] == "commonName":
                return str(field[1])
    return ""


def peer_serial(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> int:
    """The serial number of the peer's verified certificate; 0 when it showed none."""
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    return int(str((certificate or {}).get("serialNumber", "0")), 16)


def peer_begins_s(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> int:
    """From when on the peer's verified certificate is valid (Unix seconds); 0 when it showed none."""
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    return ssl.cert_time_to_seconds(str(certificate["notBefore"])) if certificate else 0


def require_name(name: str, *expected: str) -> str:
    """`name`, when it is one of `expected`: "ROLE:NAME" for one peer, "ROLE:*" for any of a role.

    Raises WrongRoleError."""
    for pattern in expected:
        if name == pattern or (
            pattern.endswith(":*") and name.startswith(pattern[:-1]) and name != pattern[:-1]
        ):
            return name
    raise WrongRoleError(
        f"A peer with the certificate '{name or '(none)'}' was refused",
        cause=f"here only {' or '.join(expected)} is admitted",
    )


# https://www.openssl.org/docs/man3.0/man1/openssl-verification-options.html (X509_V_ERR_*)
_EXPIRED: Final = {9, 10}
_UNKNOWN_CA: Final = {2, 18, 19, 20, 21, 24, 79}
_WRONG_PURPOSE: Final = 26
_WRONG_HOST: Final = {62, 64}
_NOT_TLS_REASONS: Final = {
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "UNKNOWN_PROTOCOL",
    "UNEXPECTED_MESSAGE",
    "BAD_RECORD_TYPE",
    "INVALID_ALERT",
}


def is_matter_of_time(exc: ssl.SSLCertVerificationError) -> bool:
    """Whether the certificate seems expired, or not valid yet, by this host's clock."""
    return exc.verify_code in _EXPIRED


def translate(exc: BaseException, what: str) -> PeerError:
    """The named error for what `ssl`, asyncio or the socket raised while connecting or talking TLS.

    `what` names the failed operation and the peer."""
    if isinstance(exc, PeerError):
        return exc
    if isinstance(exc, _WrongRole):
        return WrongRoleError(what, cause=f"{exc.error.what}: {exc.error.cause}")
    if isinstance(exc, ssl.SSLCertVerificationError):
        cause = f"its certificate was not accepted: {exc.verify_message}"
        if is_matter_of_time(exc):
            return CertificateExpiredError(
                what, cause=f"{cause} by this host's clock, which shows {coarse()}"
            )
        if exc.verify_code in _UNKNOWN_CA:
            return UnknownAuthorityError(what, cause=cause)
        if exc.verify_code == _WRONG_PURPOSE:
            return WrongRoleError(what, cause=f"{cause} (it is of a role that is no server, or no client)")
        if exc.verify_code in _WRONG_HOST:
            return WrongHostError(what, cause=cause)
        return TlsError(what, cause=cause)
    if isinstance(exc, ssl.SSLError):
        return _translate_ssl(exc, what)
    if isinstance(exc, TimeoutError):
        return UnreachableError(what, cause="no answer in time")
    if isinstance(exc, ConnectionResetError | BrokenPipeError):
        return UnreachableError(what, cause=CUT)
    return UnreachableError(what, cause=_words(exc))


CUT: Final = "the peer cut the connection without a word; if it does so at once and again, it refuses our certificate, and its log says why"


def _words(exc: BaseException) -> str:
    """The system's words for an error; asyncio's own ("Connect call failed") name no cause."""
    number = exc.errno if isinstance(exc, OSError) else None
    if number and number > 0 and not isinstance(exc, socket.gaierror):
        return os.strerror(number).lower()
    return (exc.strerror if isinstance(exc, OSError) else "") or str(exc) or type(exc).__name__


def _translate_ssl(exc: ssl.SSLError, what: str) -> PeerError:
    reason = (exc.reason or "").upper()
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE" or "CERTIFICATE_REQUIRED" in reason:
        return CertificateMissingError(what)
    if "ALERT_UNKNOWN_CA" in reason:
        return UnknownAuthorityError(what, cause="the peer does not know the CA of our certificate")
    if "ALERT_CERTIFICATE_REVOKED" in reason:
        return CertificateRevokedError(what, cause="the peer says that our certificate was revoked")
    if "ALERT_UNSUPPORTED_CERTIFICATE" in reason:
        return WrongRoleError(
            what, cause="the peer says that our certificate is of a role that may not do this"
        )
    if "ALERT_CERTIFICATE_EXPIRED" in reason:
        return CertificateExpiredError(what, cause="the peer says that our certificate has expired")
    if reason in _NOT_TLS_REASONS:
        return NotTlsError(what, cause=f"the bytes are not TLS 1.3 ({reason.lower().replace('_', ' ')})")
    if isinstance(exc, ssl.SSLEOFError):
        return UnreachableError(what, cause=CUT)
    return TlsError(what, cause=reason.lower().replace("_", " ") or str(exc))


def _loaded(context: _Context, files: TlsFiles) -> _Context:
    with _named_if_unusable(files):
        _fill(context, Chain(files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes()))
    return context


@contextlib.contextmanager
def _named_if_unusable(files: TlsFiles) -> Iterator[None]:
    for path in (files.cert, files.key, files.ca):
        if not path.is_file():
            raise ConfigError(
                f"TLS file {path} does not exist",
                action="Enrol this daemon, or correct the path in its configuration.",
            )
    try:
        yield
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"TLS files {files.cert}, {files.key} and {files.ca} could not be used",
            cause=str(exc),
            action="The key must belong to the certificate, and all must be PEM. Enrol this daemon again.",
        ) from exc

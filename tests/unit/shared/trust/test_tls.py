"""TLS contexts and names of failures, by real handshakes in memory."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

import pytest

from shared.errors import (
    CertificateExpiredError,
    CertificateMissingError,
    ConfigError,
    NotTlsError,
    PeerError,
    UnknownAuthorityError,
    UnreachableError,
    WrongHostError,
    WrongRoleError,
)
from shared.trust import tls
from shared.trust.identity import only_certificate
from tests.pki import TestCa


class Pair:
    """A client and a server that talk TLS through memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        self.client = client.wrap_bio(to_client, to_server, server_hostname=host)

    def shake(self) -> None:
        """Raises what the end that refuses raises."""
        waiting = {self.client, self.server}
        for _ in range(10):
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.discard(end)
                except ssl.SSLWantReadError:
                    continue
            if not waiting:
                self._read_server()
                return

    def _read_server(self) -> None:
        # In TLS 1.3 the client finishes first, and learns of a refusal by reading.
        with pytest.raises(ssl.SSLWantReadError):
            self.client.read(1)


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server(ca: TestCa) -> ssl.SSLContext:
    return tls.server_context(ca.issue("process-server:ps1"))


def refusal(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> PeerError:
    with pytest.raises(ssl.SSLError) as caught:
        Pair(client, server, host).shake()
    return tls.translate(caught.value, "Connecting")


def test_both_ends_know_each_other_by_name(ca: TestCa, server: ssl.SSLContext) -> None:
    pair = Pair(tls.client_context(ca.issue("agent:lab")), server)
    pair.shake()
    assert tls.peer_name(pair.server) == "agent:lab"
    assert tls.peer_name(pair.client) == "process-server:ps1"
    assert pair.client.version() == "TLSv1.3"


def test_nothing_older_than_tls_1_3_is_spoken(ca: TestCa, server: ssl.SSLContext) -> None:
    old = tls.client_context(ca.issue("agent:lab"))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refusal(old, server).code.startswith("US46")


def test_a_client_without_certificate_is_refused_unless_it_may_come_so(ca: TestCa) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(ca.path)
    files = ca.issue("config-server:cs1")
    assert isinstance(refusal(bare, tls.server_context(files)), CertificateMissingError)
    pair = Pair(bare, tls.server_context(files, require_client=False))
    pair.shake()
    assert tls.peer_name(pair.server) == ""


def test_a_foreign_certificate_is_refused(tmp_path: Path, ca: TestCa, server: ssl.SSLContext) -> None:
    foreign = TestCa(tmp_path, "foreign CA").issue("agent:lab")
    mixed = tls.TlsFiles(cert=foreign.cert, key=foreign.key, ca=ca.path)
    error = refusal(tls.client_context(mixed), server)
    assert isinstance(error, UnknownAuthorityError)
    assert error.action


def test_an_expired_certificate_is_refused(ca: TestCa, server: ssl.SSLContext) -> None:
    old = tls.client_context(ca.issue("agent:lab", expired=True))
    assert isinstance(refusal(old, server), CertificateExpiredError)


def test_a_server_under_another_address_is_refused(ca: TestCa, server: ssl.SSLContext) -> None:
    assert isinstance(refusal(tls.client_context(ca.issue("agent:lab")), server, "127.0.0.2"), WrongHostError)


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"USWP\x01" + bytes(40), bytes(range(100, 200))])
def test_bytes_that_are_not_tls_are_named(server: ssl.SSLContext, junk: bytes) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(junk)
    end = server.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError) as caught:
        end.do_handshake()
    assert isinstance(tls.translate(caught.value, "Connecting"), NotTlsError)


@pytest.mark.parametrize("exc", [TimeoutError(), ConnectionRefusedError("refused"), OSError("no route")])
def test_a_peer_that_is_not_there_is_unreachable(exc: OSError) -> None:
    error = tls.translate(exc, "Connecting to ps1")
    assert isinstance(error, UnreachableError)
    assert error.cause


@pytest.mark.parametrize(
    ("exc", "cause"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"),
            "connection refused",
        ),
        (OSError(errno.EHOSTUNREACH, "Connect call failed ('192.0.2.1', 1)"), "no route to host"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), tls.CUT),
        (ConnectionResetError("Connection lost"), tls.CUT),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), tls.CUT),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_the_cause_is_in_the_words_of_the_system(exc: OSError, cause: str) -> None:
    assert tls.translate(exc, "Connecting to ps1").cause == cause


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
def test_a_missing_or_broken_file_is_named(ca: TestCa, which: str) -> None:
    files = ca.issue("agent:lab")
    path: Path = getattr(files, which)
    path.write_text("not PEM")
    with pytest.raises(ConfigError) as caught:
        tls.client_context(files)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        tls.server_context(files)
    assert str(path) in str(caught.value)


def test_names_are_checked_by_role_or_exactly() -> None:
    assert tls.require_name("agent:lab", "agent:lab") == "agent:lab"
    assert tls.require_name("agent:lab", "operator", "agent:*") == "agent:lab"
    for name in ("agent:lab2", "agent:", "agent", "", "master-target:lab", "xagent:lab"):
        with pytest.raises(WrongRoleError):
            tls.require_name(name, "agent:lab")
    for name in ("agent:", "agent", "", "master-target:agent:x"):
        with pytest.raises(WrongRoleError):
            tls.require_name(name, "agent:*")


def test_a_server_of_another_role_is_refused_in_the_handshake(ca: TestCa, server: ssl.SSLContext) -> None:
    agent = ca.issue("agent:lab")
    Pair(tls.client_context(agent, tls.PROCESS_SERVER), server).shake()
    for wanted in (tls.CONFIG_SERVER, "process-server:ps2"):
        error = refusal(tls.client_context(agent, wanted), server)
        assert isinstance(error, WrongRoleError)
        assert "process-server:ps1" in error.cause


def test_the_serial_number_of_a_peer_is_known(ca: TestCa, server: ssl.SSLContext) -> None:
    files = ca.issue("agent:lab")
    pair = Pair(tls.client_context(files), server)
    pair.shake()
    assert tls.peer_serial(pair.server) == only_certificate(files.cert.read_text()).serial_number
    assert tls.peer_serial(None) == 0

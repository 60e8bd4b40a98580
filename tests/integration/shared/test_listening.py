"""What `listen` may say. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.errors import ListenError
from shared.serving.connections import origin, unmapped
from shared.serving.door import Peer
from shared.serving.listening import listening_socket
from tests.integration.shared.test_door import Site

needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")


def reached(sock: socket.socket, host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, sock.getsockname()[1]), 5):
        return True
    return False


def refused(host: str, port: int = 0) -> ListenError:
    with pytest.raises(ListenError) as caught:
        listening_socket(host, port, "A server")
    return caught.value


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0"])
def test_two_colons_are_every_address_of_both_kinds(host: str) -> None:
    with listening_socket(host, 0, "A server") as sock:
        assert reached(sock, "127.0.0.1")
        assert reached(sock, "::1")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_an_address_or_a_name_is_listened_on(host: str) -> None:
    with listening_socket(host, 0, "A server") as sock:
        assert reached(sock, "localhost")


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_two_colons_are_every_address_of_ipv4_where_the_kernel_has_no_ipv6(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    create = socket.create_server

    def without(address: Any, *, family: int, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return create(address, family=family, **more)

    monkeypatch.setattr(socket, "create_server", without)
    with listening_socket("::", 0, "A server") as sock:
        assert reached(sock, "127.0.0.1")
    if number == errno.EAFNOSUPPORT:
        assert refused("::1").cause == "this kernel has no IPv6"


def test_what_cannot_be_listened_on_is_said_in_words() -> None:
    gone = refused("192.0.2.1")
    assert gone.what == "A server could not listen on 192.0.2.1:0"
    assert "no interface of this host has this address" in gone.cause
    assert "::" in gone.action
    nothing = refused("no such host")
    assert "'no such host' is no address" in nothing.cause
    assert "0.0.0.0" in nothing.action
    assert "is no address" in refused("a" * 70 + ".x").cause
    other = refused("::ffff:127.0.0.1")
    assert ("nvalid argument" in other.cause, other.action) == (True, nothing.action)
    with listening_socket("127.0.0.1", 0, "A server") as sock:
        taken = refused("0.0.0.0", sock.getsockname()[1])
    assert "something listens there already" in taken.cause
    assert "ss -ltnp" in taken.action


def test_a_port_that_needs_a_right_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: Any, **_more: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied (while attempting to bind on address)")

    monkeypatch.setattr(socket, "create_server", forbidden)
    error = refused("0.0.0.0", 443)
    assert "below 1024" in error.cause
    assert "CAP_NET_BIND_SERVICE" in error.action


def test_a_peer_is_named_by_the_address_that_it_has() -> None:
    assert (str(Peer("::ffff:192.0.2.1", 5)), str(Peer("2001:db8::1", 5))) == (
        "192.0.2.1:5",
        "[2001:db8::1]:5",
    )
    assert (unmapped("2001:db8::1"), unmapped("192.0.2.1"), unmapped("")) == ("2001:db8::1", "192.0.2.1", "")
    assert origin("[2001:db8:1:2::5]") == origin("2001:db8:1:2::6")


@needs_ipv6
async def test_who_comes_over_ipv4_to_a_port_of_both_is_shown_with_his_address(tmp_path: Path) -> None:
    site = Site(tmp_path, "::")
    running = asyncio.create_task(site.door.run(site.visit))
    with capture_logs() as lines:
        for host in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(host, site.door.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            writer.write_eof()
            await reader.read()
            writer.close()
        await site.answered()
    assert [line["address"].rpartition(":")[0] for line in lines] == ["127.0.0.1", "[::1]"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

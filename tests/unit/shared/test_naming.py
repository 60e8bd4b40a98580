"""What can be a name, a host, a config server's URL."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.naming import address_of, is_address, is_host, is_server_url


@pytest.mark.parametrize(
    "url",
    [
        "https://cs",
        "https://cs.example.com:8443",
        "https://cs.example.com.",
        "https://192.0.2.1/",
        "https://[2001:db8::1]:443",
        "https://bücher.example",
    ],
)
def test_a_server_has_such_a_url(url: str) -> None:
    assert is_server_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cs.example.com",
        "http://cs",
        "https://",
        "https://cs:0",
        "https://cs:x",
        "https://[::1",
        "https://a..b",
        "https://.a",
        "https://ex ample",
        "https://" + "x" * 64,
        "https://" + ".".join(["x" * 60] * 5),
        "https://ü" + "x" * 64,
        "https://root:secret@cs",
    ],
)
def test_no_server_has_such_a_url(url: str) -> None:
    assert not is_server_url(url)


@given(st.text(st.sampled_from("a.-_ü:[]% \x00"), max_size=70))
def test_what_can_be_a_host_can_be_given_to_a_resolver(text: str) -> None:
    if is_host(text):
        with contextlib.suppress(OSError):  # a name would have been asked for
            socket.getaddrinfo(text, 443, flags=socket.AI_NUMERICHOST)


@pytest.mark.parametrize(
    "address", ["ps1:9443", "ps1.example.com:1", "192.0.2.1:65535", "[2001:db8::1]:9443"]
)
def test_an_address_is_host_and_port(address: str) -> None:
    assert is_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ps1",
        ":9443",
        "ps1:",
        "ps1:0",
        "ps1:65536",
        "ps1:x",
        "2001:db8::1:9443",
        "[2001:db8::1:9443",
        "a b:1",
        "ps1:²",
        "[]:1",
        "[ps1]:9443",
    ],
)
def test_what_is_no_address(address: str) -> None:
    assert not is_address(address)


def test_one_address_that_is_written_in_two_ways_is_one() -> None:
    assert address_of("ps1:9443") == address_of("ps1:09443") == ("ps1", 9443)
    assert address_of("[::1]:9443") == address_of("[::1]:09443") == ("::1", 9443)
    assert (address_of("ps1"), address_of(":1"), address_of("ps1:0")) == (None, None, None)

"""What `python -m agent setup` is told."""

from __future__ import annotations

import pytest

from agent.setup import _address
from shared.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ps1", ("ps1", 9443)),
        ("ps1.example.com:444", ("ps1.example.com", 444)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]", ("2001:db8::1", 9443)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_a_process_server_is_named_with_or_without_its_port(text: str, address: tuple[str, int]) -> None:
    assert _address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "ps1:", "ps1:0", "ps1:65536", "ps1:x", "2001:db8::1", "[::1", "a:1:2"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address of a process server"):
        _address(text)

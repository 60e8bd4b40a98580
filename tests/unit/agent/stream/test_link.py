"""A connection that cannot be made."""

from __future__ import annotations

import ssl

import pytest

from agent.stream.link import Link
from shared.errors import UnreachableError


@pytest.mark.parametrize("host", ["ps..example.com", "x" * 70 + ".com"])
async def test_a_name_that_cannot_be_looked_up_is_named_and_tried_again(host: str) -> None:
    with pytest.raises(UnreachableError, match="no name of a host") as caught:
        await Link((host, 9443)).connect(ssl.create_default_context())
    assert host in caught.value.what

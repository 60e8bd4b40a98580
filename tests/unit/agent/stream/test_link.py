"""A connection that cannot be made, and one that does not close."""

from __future__ import annotations

import asyncio
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from agent.stream.link import Link
from shared.errors import UnreachableError


@pytest.mark.parametrize("host", ["ps..example.com", "x" * 70 + ".com"])
async def test_a_name_that_cannot_be_looked_up_is_named_and_tried_again(host: str) -> None:
    with pytest.raises(UnreachableError, match="no name of a host") as caught:
        await Link((host, 9443)).connect(ssl.create_default_context())
    assert host in caught.value.what


async def test_a_connection_that_does_not_close_is_aborted_by_whoever_is_cancelled_meanwhile() -> None:
    did: list[str] = []
    link = Link(("ps", 9443))
    channel: Any = SimpleNamespace(
        close=lambda: did.append("close"), abort=lambda: did.append("abort"), closed=asyncio.Event()
    )
    link.channel = channel
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert did == ["close", "abort"]

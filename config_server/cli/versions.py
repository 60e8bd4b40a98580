"""Calls to a config server that may be older than this command line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from shared import api
from shared.api.route import API_VERSION, Nothing
from shared.api.server import ServerInfo
from shared.control.rest import RestClient
from shared.errors import NotFoundError, RequestError, ServerOutdatedError, UnderstudyError

_HEALTH_S: Final = 3.0
_T = TypeVar("_T")


async def answered(client: RestClient, asked: Awaitable[_T], *, is_new: bool = False) -> _T:
    """What a call of `client` is answered. Raises what the server answers; ServerOutdatedError where it is older than the request, or
    than the route where that `is_new`: that is no mistake of the user's.
    What it refuses with a word of its own (US129) it has understood."""
    try:
        return await asked
    except (RequestError, NotFoundError) as exc:
        if type(exc) is not RequestError and not (is_new and type(exc) is NotFoundError):
            raise  # no such machine, say
        server = await health(client)
        if server is None or server.api >= API_VERSION:
            raise
        raise ServerOutdatedError(exc.what, cause=exc.cause) from exc


async def health(client: RestClient) -> ServerInfo | None:
    """None when it does not answer soon."""
    try:
        async with asyncio.timeout(_HEALTH_S):
            return await client.call(api.HEALTH, Nothing())
    except (UnderstudyError, TimeoutError):
        return None

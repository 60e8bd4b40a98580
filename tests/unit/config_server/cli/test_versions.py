"""Calls to a config server that is older than the command line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from config_server.cli import versions
from shared import api
from shared.api.route import API_VERSION
from shared.api.server import ServerInfo
from shared.control.rest import RestClient
from shared.errors import FewerDisksError, RequestError, ServerOutdatedError, UnderstudyError


def older(error: UnderstudyError) -> RestClient:
    """One that refuses whatever is asked."""

    async def call(route: object, *_: object, **__: object) -> object:
        if route is api.HEALTH:
            return ServerInfo(name="cs1", version="0", api=API_VERSION - 1)
        raise error

    return SimpleNamespace(call=call)  # type: ignore[return-value]


async def test_what_an_older_server_does_not_understand_is_not_the_users_mistake() -> None:
    client = older(RequestError("The call was not understood"))
    with pytest.raises(ServerOutdatedError):
        await versions.answered(client, client.call(api.PROTECT))


async def test_what_an_older_server_refuses_with_a_word_of_its_own_it_has_understood() -> None:
    client = older(FewerDisksError("The protection of 'web1' was refused"))
    with pytest.raises(FewerDisksError):
        await versions.answered(client, client.call(api.PROTECT))

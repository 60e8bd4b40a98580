"""Asking a config server of another version for access."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from config_server.cli import access
from config_server.cli.rescue import is_of_the_user
from shared import api
from shared.api.restores import RestoreRequest
from shared.api.route import API_VERSION
from shared.api.server import ServerInfo
from shared.control.rest import RestClient
from shared.errors import RequestError, ServerOutdatedError

OLDER = msgspec.defstruct(
    "RestoreRequest",
    [("point", str, "latest"), ("to", str, ""), ("host", str, ""), ("dry_run", bool, False)],
    forbid_unknown_fields=True,
)


def server(version: int) -> RestClient:
    """One that knows the fields of an older one, whichever version it says that it has; its words are its own."""

    async def call(route: object, request: RestoreRequest, *, machine: str = "") -> object:
        if route is api.HEALTH:
            return ServerInfo(name="cs1", version="0", api=version)
        try:
            return msgspec.json.decode(msgspec.json.encode(request), type=OLDER)
        except msgspec.ValidationError as exc:
            raise RequestError(f"The call for {machine} was not understood", cause="nanu") from exc

    return SimpleNamespace(call=call)  # type: ignore[return-value]


async def test_a_server_that_is_older_than_the_id_of_a_request_is_asked_without_it() -> None:
    wanted = RestoreRequest(host="rescue1", dry_run=True)
    assert await access._asked(server(API_VERSION - 1), "web1", wanted) == OLDER(host="rescue1", dry_run=True)


async def test_what_a_server_is_too_old_for_is_not_the_user_s_mistake_and_what_one_of_now_refuses_is() -> (
    None
):
    wanted = RestoreRequest(grant="0" * 16)
    with pytest.raises(ServerOutdatedError) as outdated:
        await access._asked(server(API_VERSION - 1), "web1", wanted)
    assert not is_of_the_user(outdated.value), "so the vault and the storage key of the profile are used"
    with pytest.raises(RequestError) as wrong:
        await access._asked(server(API_VERSION), "web1", wanted)
    assert is_of_the_user(wrong.value)

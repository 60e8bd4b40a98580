"""Asking a config server of another version for access."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from config_server.cli import access
from config_server.cli.rescue import is_of_the_user
from shared.errors import RequestError
from shared.messages import RestoreRequest

OLDER = msgspec.defstruct(
    "RestoreRequest",
    [("point", str, "latest"), ("to", str, ""), ("host", str, ""), ("dry_run", bool, False)],
    forbid_unknown_fields=True,
)


async def restore(_route: object, request: RestoreRequest, *, machine: str) -> object:
    """As an older server's binder answers."""
    try:
        return msgspec.json.decode(msgspec.json.encode(request), type=OLDER)
    except msgspec.ValidationError as exc:
        raise RequestError(f"The call for {machine} was not understood", cause=str(exc)) from exc


async def test_a_server_that_is_older_than_the_id_of_a_request_is_asked_without_it() -> None:
    client = SimpleNamespace(call=restore)
    wanted = RestoreRequest(host="rescue1", dry_run=True)
    assert await access._asked(client, "web1", wanted) == OLDER(host="rescue1", dry_run=True)  # type: ignore[arg-type]


async def test_a_request_that_a_server_is_too_old_for_is_not_the_user_s_mistake() -> None:
    client = SimpleNamespace(call=restore)
    with pytest.raises(RequestError) as refused:
        await access._asked(client, "web1", RestoreRequest(grant="0" * 16))  # type: ignore[arg-type]
    assert not is_of_the_user(refused.value), "so the vault and the storage key of the profile are used"
    assert is_of_the_user(RequestError("X", cause="`to` is no path"))

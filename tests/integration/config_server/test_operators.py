"""Operators beside the first, and what is shown of tokens and of the vault; a real server, the command line as processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from config_server.store import sqlite
from shared import api
from shared.api.operators import OperatorToken, OperatorTokenRequest
from shared.api.route import Nothing, Page
from shared.control import enrol
from shared.control.rest import RestClient
from shared.errors import AccessError, NotFoundError, RequestError, TokenUnknownError
from shared.keys.vault import FileVault
from tests.command_line import Line
from tests.config_parts import ConfigServer, config_for, running


async def added(operator: RestClient, name: str = "anna", ttl_s: int = 3600) -> OperatorToken:
    return await operator.call(
        api.OPERATOR_TOKEN_CREATE, OperatorTokenRequest(words="a laptop", ttl_s=ttl_s), operator=name
    )


def client_of(server: ConfigServer, token: str) -> RestClient:
    return RestClient(server.url, server.anonymous_context(), token=token)


async def test_another_operator_has_a_name_of_his_own_in_the_audit_log_until_his_token_ends(
    server: ConfigServer, operator: RestClient
) -> None:
    made = await added(operator)
    assert made.token not in repr(made)
    async with client_of(server, made.token) as anna:
        await added(anna, "bert")
        [entry] = (await anna.call(api.AUDIT, Page(limit=1))).entries
        assert (entry.who, entry.action, entry.object) == ("operator:anna", "operator.token", "bert")
        assert made.token not in str(entry.detail)
        found = {one.name: one.tokens for one in (await operator.call(api.OPERATORS, Nothing())).operators}
        assert [(t.id, t.words, t.who, t.used is None) for t in found["anna"]] == [
            (made.id, "a laptop", "operator:admin", False)
        ]
        assert [(t.id, t.expires) for t in found["admin"]] == [("file", None)]
        ended = await operator.call(api.OPERATOR_TOKEN_END, Nothing(), operator="anna", id=made.id)
        assert ended.id == made.id
        with pytest.raises(AccessError, match="not valid"):
            await anna.call(api.MACHINES, Nothing())
    [entry] = (await operator.call(api.AUDIT, Page(limit=1))).entries
    assert (entry.who, entry.action, entry.object) == ("operator:admin", "operator.token.end", "anna")
    with pytest.raises(NotFoundError):
        await operator.call(api.OPERATOR_TOKEN_END, Nothing(), operator="anna", id=made.id)
    with pytest.raises(RequestError, match="was not ended"):
        await operator.call(api.OPERATOR_TOKEN_END, Nothing(), operator="admin", id="file")


async def test_a_token_that_has_expired_says_so(server: ConfigServer, operator: RestClient) -> None:
    made = await added(operator)
    with contextlib.closing(sqlite.connect(server.config.data_dir / "state.db")) as db:
        sqlite.raw_of(db).execute("UPDATE operator_tokens SET expires_ns = 1")
    async with client_of(server, made.token) as anna:
        with pytest.raises(AccessError, match="operator 'anna' expired at 1970-01-01"):
            await anna.call(api.MACHINES, Nothing())


async def test_an_enrolment_token_that_went_astray_is_ended(
    server: ConfigServer, operator: RestClient, tmp_path: Path
) -> None:
    token = await server.token("agent", "web9")
    [shown, *_] = (await operator.call(api.TOKENS, Page())).tokens
    assert (shown.role, shown.name, shown.used) == ("agent", "web9", None)
    assert token.token not in str(shown)
    await operator.call(api.TOKEN_END, Nothing(), id=shown.id)
    with pytest.raises(TokenUnknownError):
        await enrol.enrol(server.url, token.token, tmp_path / "web9")
    assert shown.id not in [one.id for one in (await operator.call(api.TOKENS, Page())).tokens]


async def test_the_command_line_adds_lists_and_ends(server: ConfigServer, tmp_path: Path) -> None:
    line, file = Line(server, None), tmp_path / "anna.token"
    made = await line.json("operator", "add", "anna", "--for", "her laptop", "--to", str(file))
    assert (made["token"], file.stat().st_mode & 0o777) == (f"in {file}", 0o600)
    async with client_of(server, file.read_text().strip()) as anna:
        await anna.call(api.MACHINES, Nothing())
    listed = await line.json("operator", "list")
    assert [(one["name"], len(one["tokens"])) for one in listed] == [("admin", 1), ("anna", 1)]
    assert (await line.json("operator", "end", "anna", made["id"]))["words"] == "her laptop"
    again = await line.run("operator", "end", "anna", made["id"])
    assert (again.exit_code, "has no token" in again.stderr) == (3, True)
    await server.token("agent", "web9")
    [token] = await line.json("token", "list")
    assert (await line.json("token", "end", token["id"]))["name"] == "web9"
    for table in (("operator", "list"), ("token", "list")):
        assert (await line.run(*table, "--output", "table")).exit_code == 0


async def test_the_vault_shows_which_keys_it_has_and_none_of_them(tmp_path: Path) -> None:
    vault = FileVault.create(tmp_path / "vault.json")
    async with running(config_for(tmp_path, vault_file=vault.path)) as server:
        shown = await Line(server, None).json("vault", "show")
    assert shown == {
        "file": str(vault.path),
        "keys": [
            {
                "id": vault.current,
                "fingerprint": vault.fingerprints[vault.current],
                "is_current": True,
                "is_recorded": False,
            }
        ],
        "missing": [],
        "problem": None,
    }

"""The API as others than our own client meet it: what answers look like, who may do what, and its description."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from config_server.operations.call import Call, Operator
from config_server.web.binding import Binder, undeclared
from shared import api
from shared.api import page
from shared.api.permissions import ALL, Permission
from shared.api.route import Access, Nothing, Route
from shared.errors import BlobNotFoundError, ForbiddenError, JobActError, UnderstudyError
from tests.config_parts import ConfigServer

BODIES: dict[str, dict[str, Any]] = {
    "token_create": {"role": "agent", "name": "a"},
    "certificate_revoke": {"certificate": "agent:a"},
    "protect": {"disks": ["/dev/a"]},
    "delete": {"after_s": 3600},
    "policy_assign": {"name": "p"},
    "restore_key": {"key_id": "k", "wrapped": ""},
}
"""What requests must have."""
DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_the_description_is_served_to_anybody_and_is_the_committed_one(
    server: ConfigServer, session: aiohttp.ClientSession
) -> None:
    async with session.get(f"{server.url}/v1/openapi.json", ssl=server.anonymous_context()) as answer:
        assert answer.status == 200
        assert await answer.json() == json.loads((DOCS / "openapi.json").read_text())


def test_the_page_is_what_the_code_says() -> None:
    is_right = (DOCS / "api.md").read_text(encoding="utf-8") == page.text(api.ROUTES)
    assert is_right, "docs/api.md is not what the code says any more: run `make docs`, and commit it"


async def test_the_call_on_the_page_is_answered(server: ConfigServer, tmp_path: Path) -> None:
    [command] = re.findall(r"```sh\n(.*)\n```", (DOCS / "api.md").read_text(encoding="utf-8"))
    (tmp_path / "ca.pem").write_bytes((server.config.data_dir / "ca.pem").read_bytes())
    (tmp_path / "operator.token").write_text(server.operator_token)
    command = command.replace("https://config.example.com", server.url)
    ran = await asyncio.create_subprocess_shell(command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    out, _ = await ran.communicate()
    assert (ran.returncode, json.loads(out)) == (0, {"machines": []})


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/machines/nobody", 404, "US201"),
        ("/v1/events?limit=many", 400, "US125"),
        ("/v1/nothing", 404, "US200"),
    ],
)
async def test_a_failure_is_a_problem_as_http_has_it_and_as_we_have_it(
    server: ConfigServer, session: aiohttp.ClientSession, path: str, status: int, code: str
) -> None:
    headers = {"Authorization": f"Bearer {server.operator_token}"}
    async with session.get(server.url + path, ssl=server.anonymous_context(), headers=headers) as answer:
        said = await answer.json(content_type="application/problem+json")
    assert (answer.status, said["status"], said["type"]) == (status, status, f"urn:understudy:{code}")
    assert (said["code"], said["title"]) == (code, said["what"])
    assert said["detail"].startswith(said["cause"]) and said["detail"].endswith(said["action"])


async def test_what_is_new_answers_that_it_was_created(
    server: ConfigServer, session: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": f"Bearer {server.operator_token}"}
    url, body = f"{server.url}/v1/tokens", {"role": "agent", "name": "web1"}
    async with session.post(url, ssl=server.anonymous_context(), headers=headers, json=body) as answer:
        assert answer.status == 201


async def answer_to(
    route: Route[Any, Any], allowed: frozenset[Permission], error: UnderstudyError | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and body, for an operator who is allowed that, of a server whose operations do nothing, or fail so."""

    async def done(_call: Call, _body: Any) -> Nothing:
        if error is not None:
            raise error
        return Nothing()

    async def eve(_token: str) -> Operator:
        return Operator("eve", allowed)

    binder = Binder(eve, lambda *_certificate: False, lambda _request, *, proved: None)
    for each in api.ROUTES:
        binder.on(each, done)
    path = route.path.format(machine="web1", id="x", policy="gold", operator="anna")
    async with TestClient(TestServer(binder.application())) as client:
        headers = {"Authorization": "Bearer t"}
        answer = await client.request(route.method, path, headers=headers, json=BODIES.get(route.name, {}))
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize(
    "route", [route for route in api.ROUTES if route.access is Access.OPERATOR], ids=lambda route: route.name
)
async def test_each_operation_needs_its_permission_and_no_other(route: Route[Any, Any]) -> None:
    assert route.needs is not None
    assert await answer_to(route, frozenset({route.needs})) == (route.status, {})
    status, said = await answer_to(route, ALL - {route.needs})
    assert (status, said["code"]) == (403, ForbiddenError.code)
    assert str(route.needs) in said["cause"] and "eve" in said["cause"]


async def test_an_error_that_the_route_does_not_name_is_answered_all_the_same_and_logged_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        status, said = await answer_to(api.JOB_RETRY, ALL, JobActError("no"))
        assert (status, said["code"], undeclared) == (400, "US134", set())
        status, said = await answer_to(api.JOB, ALL, BlobNotFoundError("no"))
        assert (status, said["code"], undeclared) == (503, "US434", set())
    for _ in range(2):
        status, said = await answer_to(api.JOB, ALL, JobActError("no"))
        assert (status, said["code"], undeclared) == (400, "US134", {("job", "US134")})
    assert capsys.readouterr().out.count("this is a bug") == 1
    undeclared.clear()  # else it fails this test (tests/conftest.py)

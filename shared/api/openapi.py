"""The API as an OpenAPI 3.1 document, derived from the routes and their bodies. It is served, and docs/openapi.json is the same."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec

from shared import decoding
from shared.api import ROUTES, failures
from shared.api.route import API_VERSION, MAX_KEY_LENGTH, MAX_WAIT_S, Access, FailureAnswer, Nothing, Route
from shared.status import AgentReport, MasterTargetReport, ProcessServerReport

PATH: Final = "/v1/openapi.json"
PROBLEM: Final = "application/problem+json"
_JSON: Final = "application/json"
_REPORTS: Final = (AgentReport, ProcessServerReport, MasterTargetReport)
"""Of `POST /v1/status`: which, follows from the caller's certificate."""
_OVER: Final = "The `version` that is changed, in quotes; or *"
_NEEDED: Final = ". Where there is one, it is needed (428)"
_NEW: Final = "*: only if there is none yet"
_KEY: Final = "Of this request alone: sent again with it, it begins nothing twice"
_WAIT: Final = (
    f"wait=SECONDS: the answer is held until there is something to say, or so long ({MAX_WAIT_S:g} at most)"
)
_SECURITY: Final[dict[Access, list[dict[str, list[str]]]]] = {
    Access.PUBLIC: [],
    Access.OPERATOR: [{"operator": []}],
    Access.DAEMON: [{"daemon": []}],
}
_SCHEMES: Final = {
    "operator": {"type": "http", "scheme": "bearer", "description": "An operator's token"},
    "daemon": {
        "type": "mutualTLS",
        "description": "A certificate of this installation's CA, whose common name is ROLE:NAME",
    },
}


def document(routes: Iterable[Route[Any, Any]]) -> dict[str, Any]:
    """Only values that JSON has. The same for the same routes: nothing in it depends on when or where."""
    routes = tuple(routes)
    bodies = {route.request for route in routes if route.request is not msgspec.Struct}
    answers = {route.response for route in routes}
    types: list[type[msgspec.Struct]] = sorted(
        {*bodies, *answers, *_REPORTS, FailureAnswer}, key=lambda type_: type_.__name__
    )
    schemas, components = decoding.schema_components(types, "#/components/schemas/{name}")
    of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, of, components)
        if links := _links(route, routes):
            paths[route.path][route.method.lower()]["responses"][str(int(route.status))]["links"] = links
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Understudy config server",
            "version": str(API_VERSION),
            "description": "The control plane: what is protected, how well, and what may be done about it.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                str(status.code): {
                    "description": status.meaning,
                    "content": {PROBLEM: {"schema": of[FailureAnswer]}},
                }
                for status in sorted(failures.STATUSES)
            },
            "securitySchemes": _SCHEMES,
        },
    }


@functools.cache
def served() -> bytes:
    """That of this program's own routes, as JSON."""
    return msgspec.json.encode(document(ROUTES))


def _operation(
    route: Route[Any, Any], of: dict[type[msgspec.Struct], dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "security": _SECURITY[route.access],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _names(route.path)
        ],
        "responses": {
            str(int(route.status)): {
                "description": HTTPStatus(route.status).phrase,
                "content": {_JSON: {"schema": of[route.response]}},
            },
            **{
                str(status): {"$ref": f"#/components/responses/{status}", "description": codes}
                for status, codes in failures.codes_of(route).items()
            },
        },
    }
    if route.versioned:
        found["responses"][str(int(route.status))]["headers"] = {
            "ETag": {"required": True, "schema": {"type": "string"}}
        }
        if route.changes:
            found["parameters"].append(_header("If-Match", _OVER + _NEEDED if route.replaces else _OVER))
        if route.replaces:
            found["parameters"].append(_header("If-None-Match", _NEW))
    if route.keyed:
        found["parameters"].append(_header("Idempotency-Key", _KEY, minLength=1, maxLength=MAX_KEY_LENGTH))
    if route.waits:
        found["parameters"].append(_header("Prefer", _WAIT))
    if route.needs is not None:
        found["x-needs"] = str(route.needs)
    if route.roles:
        found["x-roles"] = [str(role) for role in route.roles]
    if route.method == "GET":
        found["parameters"] += _query(route, components)
    elif route.request is msgspec.Struct:
        found["requestBody"] = _body({"oneOf": [of[type_] for type_ in _REPORTS]})
    elif route.request is not Nothing:
        found["requestBody"] = _body(of[route.request])
    return found


def _links(route: Route[Any, Any], routes: Iterable[Route[Any, Any]]) -> dict[str, Any]:
    """From what was changed to where it is read and ended: what gives the same, and what stands below it."""
    found: dict[str, Any] = {}
    fields = {field.encode_name for field in msgspec.structs.fields(route.response)}
    for other in routes if route.changes else ():
        parameters = {
            name: f"$request.path.{name}" if f"{{{name}}}" in route.path else f"$response.body#/{name}"
            for name in _names(other.path)
        }
        is_known = all(f"{{{name}}}" in route.path or name in fields for name in parameters)
        is_same = other.response is route.response and (other.method == "GET" or other.path == route.path)
        is_below = route.status is HTTPStatus.CREATED and other.path == f"{route.path}/{{id}}"
        if other is not route and other.method in ("GET", "DELETE") and is_known and (is_same or is_below):
            found[other.name] = {"operationId": other.name, "parameters": parameters}
    return found


def _names(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)


def _header(name: str, described: str, **bounds: int) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": described,
        "schema": {"type": "string", **bounds},
    }


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": schema}}}


def _query(route: Route[Any, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    """The request's fields: they are flat (tests/unit/shared/test_api.py)."""
    schema = components[route.request.__name__]
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]


def text(routes: Iterable[Route[Any, Any]]) -> str:
    """docs/openapi.json."""
    return json.dumps(document(routes), indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(ROUTES), encoding="utf-8")

"""The description of the API, and which errors its routes name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from shared.api import ROUTES, failures, openapi
from shared.api.route import Route
from shared.errors import (
    ChangedSinceError,
    ForbiddenError,
    JobNotFoundError,
    MachineNotFoundError,
    NotFoundError,
    PolicyNotFoundError,
    RequestError,
    StorageError,
    ThrottledError,
    UnderstudyError,
    VersionNeededError,
)

DOCUMENT: Final = openapi.document(ROUTES)
BY_NAME: Final = {route.name: route for route in ROUTES}


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def operations() -> Iterator[dict[str, Any]]:
    for path in DOCUMENT["paths"].values():
        yield from path.values()


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > len(ROUTES)
    for reference in found:
        part: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            assert step in part, reference
            part = part[step]


def test_every_link_leads_to_an_operation_and_fills_in_its_path() -> None:
    names = {
        operation["operationId"]: {part["name"] for part in operation["parameters"] if part["in"] == "path"}
        for operation in operations()
    }
    links = {
        (operation["operationId"], link["operationId"]): link["parameters"].keys()
        for operation in operations()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    }
    assert links == {(begin, end): names[end] for begin, end in links}
    assert {("policy_put", "policy_delete"), ("resync", "command"), ("job_cancel", "job")} <= links.keys()


def test_no_operation_leaves_open_with_which_status_it_answers() -> None:
    for operation in operations():
        answers = operation["responses"].keys() - {"200", "201", "202"}
        assert len(answers) == len(operation["responses"]) - 1
        assert {"400", "500"} <= answers <= {str(status.code) for status in failures.STATUSES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_route_names_no_error_that_its_shape_says(route: Route[Any, Any]) -> None:
    for error in route.errors:
        others = tuple(each for each in route.errors if each is not error)
        bare = Route(**(vars(route) | {"errors": others}))
        assert not failures.may_answer(bare, error), error.__name__


@pytest.mark.parametrize(
    ("route", "error", "may"),
    [
        ("machine", MachineNotFoundError, True),
        ("machine", JobNotFoundError, False),
        ("machines", MachineNotFoundError, False),
        ("grant_end", NotFoundError, True),
        ("grant_end", MachineNotFoundError, False),
        ("policy_put", PolicyNotFoundError, False),
        ("policy_put", VersionNeededError, True),
        ("policy_delete", ChangedSinceError, True),
        ("policy_delete", VersionNeededError, False),
        ("policy_get", ChangedSinceError, False),
        ("key_create", MachineNotFoundError, False),
        ("key_create", ForbiddenError, False),
        ("machine", StorageError, True),
        ("machine", ThrottledError, True),
        ("health", StorageError, False),
        ("health", RequestError, True),
        ("health", UnderstudyError, True),
    ],
)
def test_which_errors_a_route_has_its_shape_says(
    route: str, error: type[UnderstudyError], *, may: bool
) -> None:
    assert failures.may_answer(BY_NAME[route], error) is may


def test_the_document_says_which_headers_are_read_where() -> None:
    headers = {
        operation["operationId"]: {part["name"] for part in operation["parameters"] if part["in"] == "header"}
        for operation in operations()
    }
    assert {name: read for name, read in headers.items() if read} == {
        "status": {"Prefer"},
        "command": {"Prefer"},
        "job_update": {"Prefer"},
        "policy_put": {"If-Match", "If-None-Match"},
        "policy_delete": {"If-Match"},
        **{name: {"Idempotency-Key"} for name in ("ca_renew", "resync", "point_create")},
    }

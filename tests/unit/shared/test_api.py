"""The API's declaration and the errors that travel through it."""

from __future__ import annotations

import re

import msgspec
import pytest

from shared import errors
from shared.api import ROUTES, Access
from shared.messages import Failure, Nothing
from shared.rest import error_of
from shared.status import AgentReport, MasterTargetReport, ProcessServerReport


def test_routes_have_unique_names_and_places() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_every_route_is_versioned_and_get_requests_have_flat_queries() -> None:
    for route in ROUTES:
        assert route.path.startswith("/v1/"), route.name
        assert route.method in ("GET", "POST", "PUT", "DELETE"), route.name
        if route.method == "GET":
            assert all(field.type in (str, int, bool) for field in msgspec.structs.fields(route.request)), (
                route.name
            )


def test_only_three_things_can_be_done_without_proof_of_identity() -> None:
    assert {route.name for route in ROUTES if route.access is Access.PUBLIC} == {"health", "ca", "enrol"}


def test_bodies_survive_json() -> None:
    for type_ in (Nothing, AgentReport, ProcessServerReport, MasterTargetReport):
        assert msgspec.json.decode(msgspec.json.encode(type_()), type=type_) == type_()


def test_an_error_arrives_as_the_class_that_was_raised_with_its_words() -> None:
    sent = errors.TokenUsedError("The enrolment was refused")
    got = error_of(Failure(**sent.as_dict(), exit_code=sent.exit_code))
    assert type(got) is errors.TokenUsedError
    assert got.as_dict() == sent.as_dict()


@pytest.mark.parametrize(
    ("exit_code", "class_"), [(2, "UsageError"), (3, "NotFoundError"), (5, "UnhealthyError")]
)
def test_an_error_of_an_unknown_code_keeps_its_exit_code(exit_code: int, class_: str) -> None:
    got = error_of(Failure("US999", "something new", exit_code=exit_code))
    assert type(got).__name__ == class_
    assert re.match("something new", str(got))

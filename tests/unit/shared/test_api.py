"""The API's declaration and the errors that travel through it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect
import pytest

from shared import errors
from shared.api import ROUTES, Access
from shared.api.route import API_VERSION, Failure, Nothing
from shared.control.rest import error_of
from shared.status import AgentReport, MasterTargetReport, ProcessServerReport

EXAMPLES: dict[str, dict[str, Any]] = {
    "enrol": {"token": "t", "csr": "c"},
    "renew": {"csr": "c"},
    "token_create": {"role": "agent", "name": "a"},
    "certificate_revoke": {"certificate": "agent:a"},
    "protect": {"disks": ["/dev/a"]},
    "delete": {"after_s": 3600},
    "policy_assign": {"name": "p"},
    "key_unwrap": {"key_id": "k", "wrapped": ""},
    "restore_key": {"key_id": "k", "wrapped": ""},
}
"""What requests must have."""


def test_routes_have_unique_names_and_places() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_every_route_is_versioned_and_get_requests_have_flat_queries() -> None:
    for route in ROUTES:
        assert route.path.startswith("/v1/"), route.name
        assert route.method in ("GET", "POST", "PUT", "DELETE"), route.name
        if route.method == "GET":
            assert all(
                getattr(field.type, "__origin__", field.type) in (str, int, bool)
                for field in msgspec.structs.fields(route.request)
            ), route.name


def test_every_request_but_a_report_refuses_fields_that_it_does_not_have() -> None:
    for route in ROUTES:
        if route.request is not msgspec.Struct:
            with pytest.raises(msgspec.ValidationError, match="unknown field"):
                msgspec.convert(EXAMPLES.get(route.name, {}) | {"tpyo": 1}, route.request)
            msgspec.convert(EXAMPLES.get(route.name, {}), route.request)


def test_the_api_has_a_new_version_when_a_request_has_a_new_field() -> None:
    """By it a client knows whether an older server refuses what it sends, or the user is wrong. Where the digest differs: raise
    API_VERSION, unless fields only went, and put the new digest here."""
    fields = sorted(
        f"{route.name}.{field.name}"
        for route in ROUTES
        if route.request is not msgspec.Struct
        for field in msgspec.structs.fields(route.request)
    )
    digest = hashlib.sha256(" ".join(fields).encode()).hexdigest()
    assert (API_VERSION, digest[:16]) == (6, "3cdcdd1f4a51cab9")


def test_every_number_in_a_request_has_both_bounds() -> None:
    for route in ROUTES:
        info = msgspec.inspect.type_info(route.request)
        assert isinstance(info, msgspec.inspect.StructType)
        for name, part in numbers(info):
            assert (part.ge is None, part.le is None) == (False, False), (route.name, name)


Number = msgspec.inspect.IntType | msgspec.inspect.FloatType


def numbers(info: msgspec.inspect.Type, name: str = "") -> Iterator[tuple[str, Number]]:
    """The numbers in a request, at any depth; an error that is passed on keeps what it had."""
    if isinstance(info, msgspec.inspect.StructType) and info.cls is not Failure:
        for field in info.fields:
            yield from numbers(field.type, f"{name}.{field.name}")
    elif isinstance(info, msgspec.inspect.UnionType):
        for part in info.types:
            yield from numbers(part, name)
    elif isinstance(info, (msgspec.inspect.IntType, msgspec.inspect.FloatType)):
        yield name, info


def test_only_four_things_can_be_done_without_proof_of_identity() -> None:
    assert {route.name for route in ROUTES if route.access is Access.PUBLIC} == {
        "health",
        "ready",
        "ca",
        "enrol",
    }


def test_a_config_server_that_was_superseded_answers_reports_and_gives_keys_that_are_and_changes_nothing_else() -> (
    None
):
    told = {route.name for route in ROUTES if not route.changes and route.method != "GET"}
    assert told == {"status", "key_unwrap", "restore_key"}
    assert not any(route.changes for route in ROUTES if route.method == "GET")


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

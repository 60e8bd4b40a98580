"""What people read and then change: nobody undoes unseen what somebody else has said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from shared import api
from shared.api.policies import Policy
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.errors import ChangedSinceError, RequestError, VersionNeededError
from tests.cli import understudy
from tests.config_parts import ConfigServer

SLOW, FAST = Policy(point_interval_s=600), Policy(point_interval_s=60)


async def test_over_the_version_that_was_read_it_is_changed_and_over_an_earlier_one_not(
    operator: RestClient,
) -> None:
    made = await operator.call(api.POLICY_PUT, SLOW, policy="gold", version="")
    changed = await operator.call(api.POLICY_PUT, FAST, policy="gold", version=made.version)
    assert changed.version != made.version
    with pytest.raises(ChangedSinceError, match="it was changed since it was read"):
        await operator.call(api.POLICY_PUT, SLOW, policy="gold", version=made.version)
    with pytest.raises(ChangedSinceError):
        await operator.call(api.POLICY_DELETE, Nothing(), policy="gold", version=made.version)
    assert await operator.call(api.POLICY_GET, Nothing(), policy="gold") == changed
    await operator.call(api.POLICY_PUT, SLOW, policy="gold", version="*")
    again = await operator.call(api.POLICY_GET, Nothing(), policy="gold")
    assert again.version == made.version, "the same policy again"


async def test_what_is_there_is_not_replaced_by_who_does_not_say_that_he_has_read_it(
    operator: RestClient,
) -> None:
    await operator.call(api.POLICY_PUT, SLOW, policy="gold")
    with pytest.raises(VersionNeededError):
        await operator.call(api.POLICY_PUT, FAST, policy="gold")
    with pytest.raises(ChangedSinceError, match="it is there by now"):
        await operator.call(api.POLICY_PUT, FAST, policy="gold", version="")
    with pytest.raises(VersionNeededError):
        await operator.call(api.POLICY_PUT, FAST, policy="default")
    deleted = await operator.call(api.POLICY_DELETE, Nothing(), policy="gold")
    assert deleted.point_interval_s == 600
    with pytest.raises(ChangedSinceError, match="it is not there any more"):
        await operator.call(api.POLICY_PUT, FAST, policy="gold", version=deleted.version)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"another", "{version}"'}, 200),
        ({"If-Match": 'W/"{version}"'}, 412),  # of a weak one nobody knows whether it is the same
        ({"If-Match": '"another"'}, 412),
        ({"If-None-Match": "*"}, 412),
        ({}, 428),
        ({"If-Match": "{version}"}, 400),
    ],
)
async def test_it_is_said_as_http_has_it(
    server: ConfigServer, operator: RestClient, header: dict[str, str], status: int
) -> None:
    version = (await operator.call(api.POLICY_PUT, SLOW, policy="gold")).version
    headers = {name: value.replace("{version}", version) for name, value in header.items()}
    url, token = f"{server.url}/v1/policies/gold", f"Bearer {server.operator_token}"
    async with aiohttp.ClientSession(headers={"Authorization": token}) as session:
        async with session.get(url, ssl=server.anonymous_context()) as read:
            assert read.headers["ETag"] == f'"{version}"'
        async with session.put(
            url, json={"point_interval_s": 60}, headers=headers, ssl=server.anonymous_context()
        ) as said:
            assert said.status == status, await said.text()
            assert ("ETag" in said.headers) is (status == 200)


async def test_of_two_who_change_the_same_at_once_one_hears_of_the_other(operator: RestClient) -> None:
    read = await operator.call(api.POLICY_PUT, SLOW, policy="gold")
    refused = 0

    async def change(seconds: float) -> None:
        nonlocal refused
        with contextlib.suppress(ChangedSinceError):
            await operator.call(
                api.POLICY_PUT, Policy(point_interval_s=seconds), policy="gold", version=read.version
            )
            return
        refused += 1

    await asyncio.gather(*(change(10.0 + number) for number in range(5)))
    assert refused == 4


async def test_two_command_lines_that_change_different_fields_at_once_both_count(
    server: ConfigServer, operator: RestClient
) -> None:
    folder = server.config.data_dir
    options = (
        *("--server", server.url, "--token-file", str(folder / "operator.token")),
        *("--ca-file", str(folder / "ca.pem")),
    )
    await operator.call(api.POLICY_PUT, SLOW, policy="gold")
    await asyncio.gather(
        understudy("policy", "set", "gold", "--point-interval", "60", *options),
        understudy("policy", "set", "gold", "--rpo-threshold", "300", *options),
        understudy("policy", "set", "silver", "--rpo-threshold", "300", *options),
    )
    found = await operator.call(api.POLICY_GET, Nothing(), policy="gold")
    assert (found.point_interval_s, found.rpo_threshold_s) == (60, 300)
    made = await operator.call(api.POLICY_GET, Nothing(), policy="silver")
    assert made.rpo_threshold_s == 300


async def test_a_version_is_none_of_a_report_or_a_list(operator: RestClient) -> None:
    with pytest.raises(RequestError, match="is no If-Match"):
        await operator.call(api.MACHINES, Nothing(), version='a"b')

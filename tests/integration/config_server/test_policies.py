"""Replication policies by name: who follows which, and that agents hear of it."""

from __future__ import annotations

from typing import Any

import pytest

from shared import api
from shared.api.machines import PolicyChoice
from shared.api.policies import Policy
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.desired import Settings
from shared.errors import PolicyNotFoundError, RequestError
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer
from tests.obedient_agent import obedient_agent


async def test_nobody_ever_set_a_policy_and_the_default_one_is_there(operator: RestClient) -> None:
    [found] = (await operator.call(api.POLICIES, Nothing())).policies
    assert (found.name, found.point_interval_s, found.machines) == ("default", None, [])
    assert await operator.call(api.POLICY_GET, Nothing(), policy="default") == found
    with pytest.raises(PolicyNotFoundError, match="'gold'"):
        await operator.call(api.POLICY_GET, Nothing(), policy="gold")


async def test_agents_hear_of_the_policy_that_was_set_for_their_machine(
    server: ConfigServer, operator: RestClient, files: TlsFiles
) -> None:
    async def interval() -> float | None:
        await web1.report()
        return web1.settings.point_interval_s if web1.settings is not None else None

    async with obedient_agent(server, files) as web1:
        assert await interval() is None, "its own configuration holds"
        await operator.call(api.POLICY_SET, Policy(point_interval_s=60))
        assert await interval() == 60
        await operator.call(api.POLICY_PUT, Policy(point_interval_s=10), policy="gold")
        assert await interval() == 60
        shown = await operator.call(api.POLICY_ASSIGN, PolicyChoice("gold"), machine="web1")
        assert (shown.policy_name, shown.policy.point_interval_s) == ("gold", 10)
        assert await interval() == 10
        with pytest.raises(RequestError, match="assigned to web1"):
            await operator.call(api.POLICY_DELETE, Nothing(), policy="gold")
        own = Protection(disks=["/dev/sda"], policy=Policy(point_interval_s=20))
        shown = await operator.call(api.PROTECT, own, machine="web1")
        assert (shown.policy_name, shown.policy.point_interval_s) == ("", 20)
        assert await interval() == 20
        shown = await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
        assert shown.policy.point_interval_s == 20, "it keeps the one that it has"
        named = Protection(disks=["/dev/sda"], policy_name="default")
        shown = await operator.call(api.PROTECT, named, machine="web1")
        assert (shown.policy_name, await interval()) == ("default", 60)
        gone = await operator.call(api.POLICY_DELETE, Nothing(), policy="gold")
        assert (gone.name, gone.point_interval_s) == ("gold", 10)
        with pytest.raises(PolicyNotFoundError):
            await operator.call(api.POLICY_ASSIGN, PolicyChoice("gold"), machine="web1")


async def test_what_a_policy_does_not_say_any_more_is_the_agents_own_again(
    server: ConfigServer, operator: RestClient, files: TlsFiles
) -> None:
    async with obedient_agent(server, files) as web1:
        await web1.report()
        await operator.call(api.POLICY_PUT, Policy(point_interval_s=10), policy="gold")
        await operator.call(api.POLICY_ASSIGN, PolicyChoice("gold"), machine="web1")
        await web1.report()
        assert web1.settings == Settings(point_interval_s=10)
        await operator.call(api.POLICY_ASSIGN, PolicyChoice("default"), machine="web1")
        await web1.report()
        assert web1.settings == Settings(), "nobody ever set the default one"
        shown = await operator.call(api.POLICY_SET, Policy(rpo_threshold_s=60))
        assert shown == Policy(rpo_threshold_s=60)
        await web1.report()
        assert web1.settings == Settings(), "a threshold alone sets no interval"
        await operator.call(api.POLICY_SET, Policy(point_interval_s=20))
        await web1.report()
        assert web1.settings == Settings(point_interval_s=20)
        await operator.call(api.POLICY_SET, Policy())
        await web1.report()
        assert web1.settings == Settings()


async def test_a_threshold_that_is_set_by_an_earlier_version_sets_no_interval(operator: RestClient) -> None:
    """It reads a policy without one as its default, and writes that beside what is changed."""
    asked = Policy(point_interval_s=300, rpo_threshold_s=600)
    assert await operator.call(api.POLICY_SET, asked) == Policy(rpo_threshold_s=600)
    assert await operator.call(api.POLICY_SET, Policy(point_interval_s=60)) == Policy(point_interval_s=60)
    assert await operator.call(api.POLICY_SET, asked) == asked, "another one was chosen before"


async def test_what_was_changed_is_in_the_audit_log_with_what_was_before(operator: RestClient) -> None:
    await operator.call(api.POLICY_PUT, Policy(point_interval_s=10), policy="gold")
    await operator.call(api.POLICY_PUT, Policy(point_interval_s=20), policy="gold", version="*")
    await operator.call(api.POLICY_DELETE, Nothing(), policy="gold")
    entries = (await operator.call(api.AUDIT, Page(limit=3))).entries
    ten, twenty = ({"point_interval_s": seconds, "rpo_threshold_s": 900} for seconds in (10, 20))
    assert [(e.action, e.object, e.detail) for e in entries] == [
        ("policy.delete", "gold", {"before": twenty}),
        ("policy.set", "gold", {"before": ten, "after": twenty}),
        ("policy.set", "gold", {"before": None, "after": ten}),
    ]


@pytest.mark.parametrize("name", ["../x", "", "a b", "x" * 64])
async def test_a_policy_has_a_name_that_can_be_one(operator: RestClient, name: str) -> None:
    body: dict[str, Any] = {}
    with pytest.raises(Exception) as refused:
        await operator.call_plain(api.POLICY_PUT, body, {"policy": name}, 0)
    assert refused.value.exit_code in (2, 3)  # type: ignore[attr-defined]

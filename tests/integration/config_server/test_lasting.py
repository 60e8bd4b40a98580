"""What nobody complains of is looked for by the server itself, and is an event as long as it lasts; over HTTPS."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server import background, sweep
from config_server.rules import lasting
from config_server.rules.clock import SECOND_NS
from config_server.rules.conditions import CONDITIONS
from shared import api
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.vocabulary import Health
from tests.config_parts import config_for, running


@pytest.fixture(autouse=True)
def sweeps_come_soon_and_nothing_is_put_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)
    # Not those with a key: they would come beside the ones that are looked for here.
    at_once = tuple(
        condition if condition.key else msgspec.structs.replace(condition, after_s=0.0)
        for condition in CONDITIONS
    )
    monkeypatch.setattr(lasting, "CONDITIONS", at_once)


async def test_a_protected_machine_whose_agent_never_came_is_an_event_until_it_comes(
    operator: RestClient, agent: ControlClient
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
    (event,) = await _until(operator, ["US609"])
    assert (event.object, event.source) == ("web1", "config-server")
    (machine,) = (await operator.call(api.MACHINES, Nothing())).machines
    assert (machine.health, [error.code for error in machine.errors]) == (Health.CRITICAL, ["US609"])
    await agent.report({"state": "stopped"})
    (other,) = await _until(operator, ["US609"], "it says that it is 'stopped'")
    assert other.id != event.id
    await agent.report({"state": "ordered", "connected": True, "uploaded_captured_ns": 1})
    (still,) = await _until(operator, ["US609"], "does not report that here")
    assert still.severity == "warning"
    await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    await _until(operator, [])


async def test_what_lasts_is_kept_over_a_start_of_the_config_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_LASTING_NS", -1)
    never_came = msgspec.structs.replace(CONDITIONS[0], after_s=0.2)
    monkeypatch.setattr(lasting, "CONDITIONS", (never_came,))
    monkeypatch.setattr(lasting, "_AT_ONCE_NS", SECOND_NS // 10)
    config = config_for(tmp_path)
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        [event] = await _until(operator, ["US609"])
    monkeypatch.setattr(lasting, "_AT_ONCE_NS", 0)  # no time passes any more
    async with running(config) as server, server.operator() as operator:
        [still] = await _until(operator, ["US609"])
        (machine,) = (await operator.call(api.MACHINES, Nothing())).machines
    assert (still.id, machine.health) == (event.id, Health.CRITICAL)


async def _until(operator: RestClient, codes: list[str], cause: str = "") -> list[Any]:
    """The open events, when they are these."""
    async with asyncio.timeout(20):
        while True:
            query = EventQuery(open=True, limit=1000)
            found = (await operator.call(api.EVENTS, query)).events
            found = [event for event in found if event.code in ("US609", "US615")]
            if [event.code for event in found] == codes and all(cause in event.cause for event in found):
                return found
            await asyncio.sleep(0.02)

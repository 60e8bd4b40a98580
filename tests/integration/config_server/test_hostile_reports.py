"""What one daemon reports spoils nothing for others: numbers without end, floods of problems, words for a terminal; over HTTPS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from config_server import background
from config_server.rules import wrong
from config_server.rules.presence import MAX_PROBLEMS
from shared import api
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import RequestError
from shared.vocabulary import Role
from tests.config_parts import config_for, daemon, running

HUGE = "1" + "0" * 400
LONGER = "1" + "0" * 5000
"""Python itself refuses to print it."""


@pytest.fixture(autouse=True)
def sweeps_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)


async def send(client: ControlClient, body: str) -> None:
    """As it is, past what a client would check itself."""
    session = client._client._open()
    async with session.post(f"{client._client.url}/v1/status", data=body.encode()) as answer:
        if answer.status != 200:
            raise RequestError(await answer.text())


@pytest.mark.parametrize(
    "body",
    [
        f'{{"uploaded_captured_ns": -{HUGE}}}',
        f'{{"ring_used_b": {HUGE}, "ring_b": 1}}',
        f'{{"sent_ns": {HUGE}}}',
        f'{{"audit": {{"exact_ns": {LONGER}}}}}',
        f'{{"results": {{"x": {{"n": {LONGER}}}}}}}',
        '{"disks": [{"name": "sda", "sectors": 9223372036854775807}]}',
        '{"audit": {"x": ' + "[" * 970 + "]" * 970 + "}}",
    ],
)
async def test_a_report_that_could_not_be_shown_again_is_refused(agent: ControlClient, body: str) -> None:
    with pytest.raises(RequestError, match="US125"):
        await send(agent, body)


@pytest.mark.parametrize("edge", [-(1 << 63), (1 << 63) - 1])
async def test_numbers_at_the_edge_are_judged_stored_and_shown(tmp_path: Path, edge: int) -> None:
    numbers = ("epoch", "ring_used_b", "ring_b", "sent", "uploaded_captured_ns", "sent_ns", "round_trip_ns")
    fields = ", ".join(f'"{name}": {edge}' for name in numbers)
    disks = f'"disks": [{{"name": "sda", "sectors": {(1 << 54) - 1}}}], "audit": {{"x": {HUGE}}}'
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        async with daemon(server, files) as agent:
            await send(agent, f"{{{fields}, {disks}}}")
        await shown(operator, edge)
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        await shown(operator, edge)
        assert "US551" not in {event.code for event in await _open(operator)}


async def shown(operator: RestClient, edge: int) -> None:
    (machine,) = (await operator.call(api.MACHINES, Nothing())).machines
    (disk,) = machine.disks
    assert (disk.size_b, machine.epoch) == (((1 << 54) - 1) * 512, edge)
    (one,) = (await operator.call(api.DAEMONS, Nothing())).daemons
    assert one.report["sent"] == edge


async def test_a_machine_that_cannot_be_judged_is_an_event_and_the_others_are_judged(
    operator: RestClient, agent: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = wrong.derived_problems

    def fail(machine: Any, *rest: Any) -> Any:
        if machine.name == "web1" and machine.protected:
            raise ArithmeticError("nobody thought of it")
        return judge(machine, *rest)

    for name in ("web0", "web1", "web2"):
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine=name)
    await agent.report({"state": "ordered"})
    monkeypatch.setattr(wrong, "derived_problems", fail)
    with capture_logs() as logs:
        while not (found := await _open(operator)):
            pass
    assert [(e.object, e.code) for e in found] == [("web1", "US551")]
    assert "ArithmeticError" in found[0].cause
    assert any(line["event"] == "machine not judged" for line in logs)
    listed = (await operator.call(api.MACHINES, Nothing())).machines
    assert [(m.name, m.state, [e.code for e in m.errors]) for m in listed] == [
        ("web0", "not-connected", []),
        ("web1", "unknown", ["US551"]),
        ("web2", "not-connected", []),
    ]
    monkeypatch.setattr(wrong, "derived_problems", judge)
    while await _open(operator):
        pass


async def test_a_flood_of_problems_is_cut_short_and_says_how_many_there_are(
    operator: RestClient, agent: ControlClient
) -> None:
    problems = [{"code": "US1", "what": "w" * 2999, "cause": "", "key": f"{n}"} for n in range(300)]
    with capture_logs() as logs:
        await agent.report({"errors": problems})
    found = await _open(operator)
    assert len(found) == MAX_PROBLEMS[Role.AGENT] + 1
    assert "200 more" in found[0].what
    assert max(len(e.what) for e in found) == 2000
    lines = [line for line in logs if line["event"] in ("event opened", "more events")]
    assert len(lines) == 21
    assert lines[-1]["opened"] == MAX_PROBLEMS[Role.AGENT] + 1 - 20


async def _open(operator: RestClient) -> list[Any]:
    return (await operator.call(api.EVENTS, EventQuery(open=True, limit=1000))).events

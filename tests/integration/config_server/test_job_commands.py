"""`understudy job …` as processes, against a real config server and an agent that reports."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared import api
from shared.api.protection import Protection
from shared.control.rest import RestClient
from shared.trust.tls import TlsFiles
from tests.command_line import Line
from tests.config_parts import ConfigServer
from tests.obedient_agent import ObedientAgent, obedient_agent


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles, operator: RestClient) -> AsyncIterator[ObedientAgent]:
    async with obedient_agent(server, files) as agent:
        agent.epoch = 1
        await agent.report()
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
        await agent.report()
        yield agent


@pytest.fixture
async def job(line: Line) -> str:
    """The id of a resync that its agent has not taken."""
    asked = await line.run("machine", "resync", "web1", "--yes", "--output", "json")
    id_: str = asked.json["id"]
    return id_


async def test_a_job_is_listed_and_shown_with_what_can_be_said_of_it(line: Line, job: str) -> None:
    active = await line.run("job", "list", "--active", "--machine", "web1", "--output", "json")
    assert [found["id"] for found in active.json if found["kind"] == "resync"] == [job]
    assert (await line.run("job", "list", "--machine", "web2", "--output", "json")).json == []
    shown = await line.run("job", "show", job, "--output", "table")
    assert "the agent to take it" in shown.stdout
    assert f"understudy job cancel {job}" in shown.stdout


async def test_waiting_for_it_ends_in_time_and_the_job_goes_on(line: Line, job: str) -> None:
    waited = await line.run("job", "watch", job, "--timeout", "0.5")
    assert waited.exit_code == 4
    assert f"understudy job show {job}" in waited.stderr
    shown = await line.run("job", "show", job, "--output", "json")
    assert shown.json["state"] in ("waiting", "running")


async def test_waiting_for_it_ends_when_it_is_done(line: Line, job: str, web1: ObedientAgent) -> None:
    web1.epoch = 2
    await web1.report(results={job: {}})
    done = await line.run("job", "watch", job, "--timeout", "30", "--output", "json")
    assert (done.exit_code, done.json["state"], done.json["result"]) == (0, "done", {"epoch": 2})


async def test_what_undoes_is_asked_for_at_a_terminal_and_has_to_be_said_without_one(
    line: Line, job: str
) -> None:
    refused = await line.run("job", "cancel", job)
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert "Cancel the resync of 'web1'? What it has done is undone, where that can be." in refused.stderr
    assert (await line.run("job", "cancel", job, typed="n\n")).exit_code == 130
    assert (await line.run("job", "show", job, "--output", "json")).json["cancelled_by"] == ""
    cancelled = await line.run("job", "cancel", job, "--yes", "--output", "json")
    assert cancelled.json["cancelled_by"] == "operator:admin"
    ended = await line.run("job", "watch", job, "--timeout", "30")
    assert (ended.exit_code, "US639" in ended.stderr, "operator:admin cancelled it" in ended.stderr) == (
        5, True, True,
    )  # fmt: skip


async def test_what_cannot_be_said_of_it_is_an_error_in_words(line: Line, job: str) -> None:
    refused = await line.run("job", "abandon", job, "--yes")
    assert (refused.exit_code, "US134" in refused.stderr) == (2, True)
    assert "possible is: cancel, retry" in refused.stderr
    assert (await line.run("job", "show", "none")).exit_code == 3

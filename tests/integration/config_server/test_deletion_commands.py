"""`understudy machine delete|keep` as processes, against a real config server with storage and an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared import api
from shared.api.protection import Protection
from shared.control.rest import RestClient
from shared.desired import Verb
from shared.trust.tls import TlsFiles
from tests.command_line import Line
from tests.config_parts import ConfigServer
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent


@pytest.fixture
def server(server_with_storage: ConfigServer) -> ConfigServer:
    return server_with_storage


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles, operator: RestClient) -> AsyncIterator[ObedientAgent]:
    async with obedient_agent(server, files) as agent:
        await agent.report()
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
        await agent.report()
        yield agent


async def test_it_is_shown_what_is_lost_and_without_a_terminal_it_has_to_be_said(
    line: Line, web1: ObedientAgent, machine: ModelMachine
) -> None:
    refused = await line.run("machine", "delete", "web1")
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert "All that storage has of web1" in refused.stderr
    assert machine.store.container in refused.stderr
    assert "the agent and its folder" in refused.stderr, "what stays"
    asked = await line.run("machine", "delete", "web1", "--after", "36h", typed="n\n")
    assert asked.exit_code == 130
    assert "Stop replicating 'web1' now, and delete all of this in 1 day and 12 hours?" in asked.stderr
    await web1.report()
    assert web1.wish is not None
    assert web1.wish.verb is Verb.PROTECT


async def test_it_is_deleted_and_taken_back(line: Line, web1: ObedientAgent) -> None:
    done = await line.run("machine", "delete", "web1", "--yes", "--output", "json")
    found = done.json
    assert (found["state"], found["deletion"]["after_s"]) == ("to-be-deleted", 14 * 86_400)
    assert found["deletion"]["due"][:10] in done.stderr
    assert "To take it back: understudy machine keep web1" in done.stderr
    assert "Not deleted with it, on the machine: the agent and its folder" in done.stderr
    assert web1.wish is not None
    assert web1.wish.verb is Verb.STOP
    listed = (await line.run("machine", "list", "--output", "table")).stdout
    assert "to-be-deleted" in listed
    assert f"web1: to be deleted on {found['deletion']['due'][:10]}" in listed
    page = (await line.run("machine", "show", "web1", "--output", "table")).stdout
    assert "deletion" in page
    protect = await line.run("machine", "protect", "web1", "--disk", "/dev/sda")
    assert (protect.exit_code, "US634" in protect.stderr, "machine keep web1" in protect.stderr) == (
        5,
        True,
        True,
    )
    kept = await line.run("machine", "keep", "web1", "--output", "json")
    assert (kept.json["state"], kept.json["deletion"]) == ("unprotected", None)
    assert "To protect it again: understudy machine protect web1" in kept.stderr
    again = await line.run("machine", "keep", "web1", "--output", "json")
    assert "was not to be deleted" in again.stderr


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("59m", "between an hour and ten years"),
        ("14", "no duration"),
        ("2 weeks", "no duration"),
        ("11000d", "ten years"),
    ],
)
async def test_a_delay_that_is_none_is_refused_before_anything_is_asked(
    line: Line, after: str, says: str
) -> None:
    refused = await line.run("machine", "delete", "web1", "--after", after, "--yes")
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert (await line.json("machine", "show", "web1"))["protected"]

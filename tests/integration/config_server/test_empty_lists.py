"""A list in which nothing is says so in one line, and what to do next; as JSON it is an empty list."""

from __future__ import annotations

import pytest

from shared import api
from shared.api.protection import Protection
from shared.control.rest import RestClient
from tests.command_line import Line
from tests.config_parts import ConfigServer


@pytest.fixture
def line(server: ConfigServer) -> Line:
    return Line(server, None)


async def check(line: Line, command: str, says: str) -> None:
    table = await line.run(*command.split(), "--output", "table")
    assert (table.exit_code, table.stderr, len(table.stdout.splitlines())) == (0, "", 1), table
    assert says in table.stdout
    assert await line.json(*command.split()) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("machine list", "No machine is known yet. Next, for each: understudy token create agent NAME"),
        ("daemon list", "No daemon has reported yet. Next, for each host: understudy token create ROLE NAME"),
        ("event list", "No event. How machines do: understudy machine list"),
        ("event list --open", "No open problem. How machines do"),
        ("event list --object config-server --open", "No open problem of config-server. Of all"),
        (
            "job list",
            "No job was begun yet. A restore is one, for example: understudy restore MACHINE --to FOLDER",
        ),
        ("certificate list", "No certificate was issued yet. Next, for each host"),
    ],
)
async def test_of_a_new_installation(line: Line, command: str, says: str) -> None:
    await check(line, command, says)


async def test_of_a_machine_whose_agent_never_came(line: Line, operator: RestClient) -> None:
    wanted = Protection(disks=["/dev/sda"], offline=True)
    await operator.call(api.PROTECT, wanted, machine="web1")
    await check(line, "event list web1", "No event of web1. Of all: understudy event list")
    await check(line, "event list --object web1/sda --open", "No open problem of web1/sda. Of all")
    for about in ("wbe1", "--object=wbe1", "--object=wbe1/sda", "--object=agent:wbe1"):
        done = await line.run("event", "list", about, "--open")
        assert (done.exit_code, done.stdout) == (3, ""), (
            f"{about}, which nobody bears, is not one that is well"
        )
        assert "wbe1" in done.stderr
    await check(line, "grant list web1", "Nobody has a grant to read web1, or had one: a restore gets it")

"""`understudy machine protect|unprotect|disks` and `understudy policy …` as processes, against a real config server and an agent."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from shared import api
from shared.api.jobs import JobQuery, JobView
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.desired import Verb, WantedDisk
from shared.status import AvailableDisk
from shared.trust.tls import TlsFiles
from tests.cli import ended, understudy
from tests.command_line import Line
from tests.config_parts import ConfigServer
from tests.dispositions import inherited
from tests.obedient_agent import ObedientAgent, obedient_agent


@pytest.fixture
def captured() -> tuple[str, ...]:
    """By its agent, when it reports first."""
    return ("sda",)


@pytest.fixture
async def web1(
    server: ConfigServer, files: TlsFiles, captured: tuple[str, ...]
) -> AsyncIterator[ObedientAgent]:
    async with obedient_agent(server, files) as agent:
        agent.captured = captured
        await agent.report()
        yield agent


async def test_protect_waits_until_the_agent_goes_by_it(
    line: Line, web1: ObedientAgent, operator: RestClient
) -> None:
    disks = ("--disk", "/dev/sda", "--disk", "/dev/sdb", "--process-server", "ps1:9443")
    done = await line.json("machine", "protect", "web1", *disks)
    assert (done["wish"]["disks"], done["wish"]["pending"]) == (["/dev/sda", "/dev/sdb"], None)
    assert web1.wish is not None
    assert web1.wish.process_servers == ("ps1:9443",)
    shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert done["wish"]["mark"]["act"] == web1.wish.mark.act
    assert shown.wish is not None
    assert done["wish"].keys() == {"verb", "disks", "process_servers", "since", "pending", "mark"}
    again = await line.json("machine", "protect", "web1", "--disk", "/dev/sda", "--yes")
    assert again["wish"]["process_servers"] == ["ps1:9443"], "as it is"
    gone = await line.json("machine", "unprotect", "web1", "--yes")
    assert (gone["wish"]["verb"], gone["wish"]["disks"], gone["wish"]["pending"]) == ("stop", [], None)
    assert web1.wish.verb is Verb.STOP
    assert not [*web1.wish.disks, *web1.wish.process_servers], "nothing that it could refuse"
    page = (await line.run("machine", "show", "web1", "--output", "table")).stdout
    assert "ps1" not in page
    web1.captured = ()
    await web1.report()
    back = await line.json("machine", "protect", "web1", "--disk", "/dev/sda")
    assert back["wish"]["process_servers"] == ["ps1:9443"], "as it was"
    assert web1.wish.disks == (WantedDisk("/dev/sda", id="sda"),)


async def test_the_job_is_named_that_sees_whether_it_comes_true(
    line: Line, web1: ObedientAgent, operator: RestClient
) -> None:
    said = await line.run("machine", "protect", "web1", "--disk", "/dev/sda", "--output", "json")
    id_ = said.json["job"]
    assert f"Job {id_} sees to it: understudy job show {id_}" in said.stderr
    watched = await line.run("job", "watch", id_, "--output", "table")
    assert watched.exit_code == 0
    for words in ("wants protect /dev/sda", "instead of its configuration alone", "follow", "copy"):
        assert words in watched.stdout
    again = await line.run("machine", "protect", "web1", "--disk", "/dev/sda", "--output", "json")
    assert (again.json["job"], "sees to it" in again.stderr) == ("", False), "it is so already"
    web1.obeys = False
    stops = await line.json("machine", "unprotect", "web1", "--yes", "--no-wait")
    await line.json("machine", "protect", "web1", "--no-wait")
    gone = await line.run("job", "watch", stops["job"])
    assert gone.exit_code == 5
    assert f"its place took job {(await newest(operator)).id}, as operator:admin said" in gone.stderr


async def newest(operator: RestClient) -> JobView:
    return (await operator.call(api.JOBS, JobQuery(limit=1))).jobs[0]


@pytest.mark.parametrize("disks", [(), ("--disk", "/dev/sda")])
async def test_protect_waits_for_the_first_report_of_an_agent_that_was_just_set_up(
    server: ConfigServer, files: TlsFiles, disks: tuple[str, ...]
) -> None:
    async with obedient_agent(server, files) as agent:
        line = Line(server, None)
        process = await line.begun("machine", "protect", "web1", *disks, "--output", "json")
        assert process.stderr is not None
        assert b"first report" in await process.stderr.readline()
        done = asyncio.create_task(ended(process))
        while not done.done():
            await agent.report(wait_s=0.2)
    assert (await done).json["wish"]["disks"] == ["/dev/sda"]


async def test_without_disks_those_are_meant_that_are_captured(line: Line) -> None:
    assert (await line.json("machine", "protect", "web1"))["wish"]["disks"] == ["/dev/sda"]


async def test_after_an_end_those_are_meant_that_were_protected_until_then(
    line: Line, web1: ObedientAgent, operator: RestClient
) -> None:
    await line.json("machine", "protect", "web1", "--disk", "/dev/sda")
    await line.json("machine", "unprotect", "web1", "--yes")
    web1.captured = ()
    web1.available[0].id = "sda"
    await web1.report()
    stopped = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert stopped.wish is not None
    until = f"until {stopped.wish.since[:16].replace('T', ' ')} UTC"
    table = (await line.run("machine", "disks", "web1", "--output", "table")).stdout
    assert (table.count("until"), until in table) == (1, True), table
    back = await line.run("machine", "protect", "web1", "--output", "json")
    assert back.json["wish"]["disks"] == ["/dev/sda"]
    assert f"taken are those that were protected {until}: /dev/sda." in back.stderr
    assert web1.wish is not None
    assert web1.wish.disks == (WantedDisk("/dev/sda", id="sda"),)


async def test_after_an_end_a_disk_that_is_away_is_not_left_out_without_a_word(
    line: Line, web1: ObedientAgent
) -> None:
    await line.json("machine", "protect", "web1", "--disk", "/dev/sda", "--disk", "/dev/sdb")
    await line.json("machine", "unprotect", "web1", "--yes")
    web1.captured = ()
    del web1.available[1]
    await web1.report()
    back = await line.run("machine", "protect", "web1", "--output", "json")
    assert back.json["wish"]["disks"] == ["/dev/sda", "/dev/sdb"]
    assert "/dev/sdb (its agent does not name it)." in back.stderr


@pytest.mark.parametrize("captured", [()])
async def test_without_disks_all_that_are_offered_are_meant_if_that_is_said(
    line: Line, web1: ObedientAgent
) -> None:
    web1.available.append(AvailableDisk(device="/dev/sdc", why_not="it is read-only"))
    await web1.report()
    asked = await line.run("machine", "protect", "web1")
    assert asked.exit_code == 2
    assert "it is read-only" in asked.stderr, "they are shown"
    assert "it would be all, /dev/sda, /dev/sdb" in asked.stderr
    assert "--yes" in asked.stderr
    assert (await line.json("machine", "protect", "web1", "--yes"))["wish"]["disks"] == [
        "/dev/sda",
        "/dev/sdb",
    ]


async def test_fewer_disks_than_before_are_refused_without_a_terminal_unless_that_is_said(line: Line) -> None:
    await line.json("machine", "protect", "web1", "--disk", "/dev/sda", "--disk", "/dev/sdb")
    fewer = ("machine", "protect", "web1", "--disk", "/dev/sdb")
    refused = await line.run(*fewer)
    assert (refused.exit_code, "US129" in refused.stderr) == (2, True)
    assert "/dev/sda" in refused.stderr
    assert (await line.json(*fewer, "--yes"))["wish"]["disks"] == ["/dev/sdb"]


async def test_to_end_protection_without_a_terminal_has_to_be_said(line: Line, web1: ObedientAgent) -> None:
    await line.json("machine", "protect", "web1")
    refused = await line.run("machine", "unprotect", "web1")
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert "there is no terminal" in refused.stderr
    await web1.report()
    asked = await line.run("machine", "unprotect", "web1", typed="n\n")
    assert (asked.exit_code, "Stop replicating 'web1'?" in asked.stderr) == (130, True)
    await web1.report()
    assert web1.wish is not None
    assert web1.wish.verb == "protect"
    await line.run("machine", "unprotect", "web1", typed="y\n")
    assert web1.wish.verb == "stop"


async def test_who_names_no_disk_leaves_out_none_that_is_away(line: Line, web1: ObedientAgent) -> None:
    await line.json("machine", "protect", "web1", "--disk", "/dev/sda", "--disk", "/dev/sdb")
    web1.captured, web1.available = ("sda",), []
    await web1.report()
    moved = await line.json("machine", "protect", "web1", "--process-server", "ps2:9443", "--yes")
    assert (moved["wish"]["disks"], moved["wish"]["process_servers"]) == (
        ["/dev/sda", "/dev/sdb"],
        ["ps2:9443"],
    )


@pytest.mark.parametrize("captured", [()])
async def test_at_a_terminal_fewer_disks_and_all_that_there_are_are_asked_for(
    line: Line, web1: ObedientAgent
) -> None:
    protect = ("machine", "protect", "web1", "--output", "json")
    refused = await line.run(*protect, typed="n\n")
    assert (refused.exit_code, "Protect /dev/sda, /dev/sdb of 'web1'?" in refused.stderr) == (130, True)
    assert web1.wish is None
    assert (await line.run(*protect, typed="y\n")).json["wish"]["disks"] == ["/dev/sda", "/dev/sdb"]
    fewer = (*protect, "--disk", "/dev/sda")
    refused = await line.run(*fewer, typed="n\n")
    assert refused.exit_code == 130
    assert "It leaves out what is protected now: /dev/sdb." in refused.stderr
    assert (await line.run(*fewer, typed="y\n")).json["wish"]["disks"] == ["/dev/sda"]


@pytest.mark.parametrize("meanwhile", ["adds a disk, and moves it", "ends its protection"])
async def test_a_yes_counts_for_what_was_shown_and_what_was_said_meanwhile_is_asked_anew(
    line: Line, web1: ObedientAgent, operator: RestClient, meanwhile: str
) -> None:
    web1.available.append(AvailableDisk(device="/dev/sdc", sectors=2048))
    await web1.report()
    await line.json("machine", "protect", "web1", "--disk", "/dev/sda", "--disk", "/dev/sdb")
    async with line.typing("machine", "protect", "web1", "--disk", "/dev/sda", "--no-wait") as typed:
        shown = await typed.until("[y/N]")
        assert "It leaves out what is protected now: /dev/sdb." in shown
        if meanwhile == "ends its protection":
            await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        else:
            more = Protection(disks=["/dev/sda", "/dev/sdb", "/dev/sdc"], process_servers=["ps2:9443"])
            await operator.call(api.PROTECT, more, machine="web1")
        await web1.report()
        typed.type("y\n")
        shown = await typed.until("[y/N]")
        assert "Somebody else has said something of 'web1' meanwhile." in shown
        assert ("it is to stop" if "ends" in meanwhile else "/dev/sdc, by ps2:9443") in shown
        typed.type("n\n")
        assert await typed.ended() == 130
    await web1.report()
    assert web1.wish is not None
    if meanwhile == "ends its protection":
        assert web1.wish.verb is Verb.STOP
        return
    assert ([disk.device for disk in web1.wish.disks], web1.wish.process_servers) == (
        ["/dev/sda", "/dev/sdb", "/dev/sdc"],
        ("ps2:9443",),
    )
    async with line.typing("machine", "protect", "web1", "--disk", "/dev/sda", "--no-wait") as typed:
        assert "protected now: /dev/sdb, /dev/sdc." in await typed.until("[y/N]")
        typed.type("y\n")
        assert await typed.ended() == 0
    await web1.report()
    assert [disk.device for disk in web1.wish.disks] == ["/dev/sda"]
    assert web1.wish.process_servers == ("ps2:9443",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["unprotect web1 --yes", "protect web1 --disk /dev/sda"])
async def test_who_ends_the_waiting_is_told_that_what_he_asked_for_goes_on(
    line: Line, web1: ObedientAgent, operator: RestClient, command: str, number: signal.Signals
) -> None:
    web1.obeys = False
    with inherited(signal.SIG_DFL, number):
        process = await line.begun("machine", *command.split())
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.readline())
    while not reading.done():
        await web1.report(wait_s=0.2)
    assert b"waiting for its agent" in await reading
    process.send_signal(number)
    done = await ended(process)
    assert (done.exit_code, done.stdout) == (128 + number, "")
    assert "It is recorded, and the agent of web1 is told" in done.stderr
    assert "Aborted" not in done.stderr
    shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
    assert shown.wish is not None, "it is recorded"


async def test_of_an_agent_that_does_not_report_it_is_said_that_it_is_told_when_it_does(
    server: ConfigServer,
) -> None:
    line = Line(server, None)
    unknown = await line.run("machine", "protect", "web9", "--disk", "/dev/sda")
    assert (unknown.exit_code, "--offline" in unknown.stderr) == (3, True)
    nothing = await line.run("machine", "protect", "web9")
    assert (nothing.exit_code, "--offline" in nothing.stderr) == (3, True)
    recorded = await line.run(
        "machine", "protect", "web9", "--disk", "/dev/sda", "--offline", "--output", "json"
    )
    assert recorded.json["wish"]["pending"] is not None
    assert "The agent of web9 does not report; it is told when it does." in recorded.stderr


async def test_disks_are_shown_as_the_api_gives_them_and_as_a_table(line: Line, operator: RestClient) -> None:
    found = await line.json("machine", "disks", "web1")
    assert [disk["device"] for disk in found["disks"]] == ["/dev/sda", "/dev/sdb"]
    table = (await line.run("machine", "disks", "web1", "--output", "table")).stdout
    assert "by its agent's configuration" in table
    await line.json("machine", "protect", "web1")
    page = (await line.run("machine", "show", "web1", "--output", "table")).stdout
    assert "protect /dev/sda" in page


async def test_policies_are_made_assigned_and_deleted(line: Line, web1: ObedientAgent) -> None:
    made = await line.json("policy", "set", "gold", "--point-interval", "10")
    assert (made["name"], made["point_interval_s"], made["rpo_threshold_s"]) == ("gold", 10, 900)
    changed = await line.json("policy", "set", "gold", "--rpo-threshold", "60")
    assert (changed["point_interval_s"], changed["rpo_threshold_s"]) == (10, 60)
    assigned = await line.json("policy", "assign", "gold", "web1")
    assert (assigned["policy_name"], assigned["policy"]["point_interval_s"]) == ("gold", 10)
    await web1.report()
    assert web1.settings is not None
    assert web1.settings.point_interval_s == 10
    assert [each["name"] for each in await line.json("policy", "list")] == ["default", "gold"]
    table = (await line.run("policy", "list", "--output", "table")).stdout
    assert "gold" in table
    assert "web1" in table
    refused = await line.run("policy", "delete", "gold")
    assert (refused.exit_code, "assigned to web1" in refused.stderr) == (2, True)
    protected = await line.json("machine", "protect", "web1", "--policy", "default")
    assert protected["policy_name"] == "default"
    assert (await line.json("policy", "delete", "gold"))["name"] == "gold"
    assert (await line.run("policy", "show", "gold")).exit_code == 3
    bare = await line.json("policy", "set", "--rpo-threshold", "60")
    assert (bare["point_interval_s"], bare["rpo_threshold_s"]) == (None, 60)
    await web1.report()
    assert web1.settings.point_interval_s is None, "its own configuration holds"
    assert "as configured" in (await line.run("policy", "list", "--output", "table")).stdout
    both = await line.run("policy", "set", "--point-interval", "60", "--own-interval")
    assert both.exit_code == 2
    default = await line.json("policy", "set", "--point-interval", "60")
    own = await line.json("policy", "set", "--own-interval")
    assert (own["point_interval_s"], own["rpo_threshold_s"]) == (None, 60)
    default = await line.json("policy", "set", "--point-interval", "60")
    assert default == await line.json("policy", "show") | {"machines": default["machines"]}


@pytest.mark.parametrize(
    "command",
    [
        "machine protect",
        "machine unprotect",
        "machine disks",
        "machine delete",
        "machine keep",
        "event list",
        *(f"policy {verb}" for verb in ("list", "show", "set", "assign", "delete")),
    ],
)
async def test_help_has_an_example(command: str) -> None:
    assert f"Example: understudy {command}" in (await understudy(*command.split(), "--help")).stdout

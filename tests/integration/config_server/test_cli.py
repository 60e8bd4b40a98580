"""The `understudy` command as a process, against a real config server and real blob storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import resource
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from config_server import background
from shared import api
from shared.api.events import EventQuery
from shared.api.jobs import JobQuery, JobView
from shared.api.protection import Protection
from shared.api.route import Page
from shared.blob import BlobConfig, BlobStore
from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import PointNotFoundError
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from shared.status import AgentDisk, AgentReport, ProcessServerReport, StreamReport
from tests.cli import Done, begun, ended, understudy
from tests.command_line import Line
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.dispositions import inherited
from tests.machine_log import ModelMachine


@dataclass(frozen=True)
class Site:
    """A config server over storage that holds the log of a model machine, `web1`."""

    server: ConfigServer
    machine: ModelMachine

    @property
    def options(self) -> list[str]:
        folder = self.server.config.data_dir
        return [
            *("--server", self.server.url),
            *("--token-file", str(folder / "operator.token")),
            *("--ca-file", str(folder / "ca.pem")),
        ]

    async def run(self, *arguments: str) -> Done:
        return await understudy(*arguments, *self.options)


@pytest.fixture
def quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)


@pytest.fixture
async def site(tmp_path: Path, store: BlobStore, blob_config: BlobConfig) -> AsyncIterator[Site]:
    machine = await ModelMachine.create(await MachineStorage(store).find_or_create("web1"), tmp_path)
    await machine.begin_epoch()
    machine.write(mark="m1")
    machine.write()
    machine.write(mark="m2")
    machine.write()
    await machine.publish()
    config = config_for(tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json")
    async with running(config) as server, server.operator() as operator:
        await operator.call(
            api.PROTECT, Protection(disks=["/dev/loop0", "/dev/loop1"], offline=True), machine="web1"
        )
        yield Site(server, machine)


@pytest.fixture
async def agent(site: Site, tmp_path: Path) -> AsyncIterator[ControlClient]:
    files = await site.server.enrolled("agent", "web1", tmp_path / "agent")
    async with daemon(site.server, files) as client:
        await client.report(report())
        yield client


def report(state: str = "ordered", **fields: Any) -> AgentReport:
    disks = [AgentDisk(name="loop0", sectors=512, mode="ordered"), AgentDisk(name="loop1", sectors=193)]
    return AgentReport(machine="web1", state=state, epoch=1, disks=disks, ring_b=64 << 20, **fields)


async def restores(operator: RestClient) -> list[JobView]:
    """Their jobs."""
    return [job for job in (await operator.call(api.JOBS, JobQuery())).jobs if job.kind == "restore"]


def images(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.raw"))]


# ---- without a server


async def test_help_is_quick() -> None:
    def spent_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent_s()
    assert "Commands:" in (await understudy("--help")).stdout
    # Processor time: on a busy host the clock on the wall says nothing about the command.
    assert spent_s() - before < 0.3


async def test_usage_errors_end_with_2_and_say_what_to_do() -> None:
    nowhere = await understudy("machine", "list")
    assert nowhere.exit_code == 2
    assert "--lab DIR" in nowhere.stderr
    assert (await understudy("no-such-command")).exit_code == 2
    assert (await understudy("machine", "show")).exit_code == 2
    plain = await understudy("machine", "list", "--server", "http://127.0.0.1:1")
    assert (plain.exit_code, "https://HOST" in plain.stderr) == (2, True)
    missing = await understudy(
        "machine", "list", "--server", "https://127.0.0.1:1", "--token-file", "/nonexistent"
    )
    assert (missing.exit_code, "/nonexistent" in missing.stderr) == (2, True)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"-----BEGIN\nCERTIFICATE-----\n"])
async def test_a_token_file_that_holds_no_token_is_named(tmp_path: Path, content: bytes) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    done = await understudy("machine", "list", "--server", "https://127.0.0.1:1", "--token-file", str(token))
    assert (done.exit_code, f"{token} does not hold an operator token" in done.stderr) == (2, True)


async def test_a_rescue_over_http_without_a_key_is_refused(tmp_path: Path) -> None:
    options = ["--vault-file", str(tmp_path / "vault.json"), "--blob-url", "http://127.0.0.1:1/acct"]
    done = await understudy("restore", "web1", "--to", str(tmp_path / "out"), *options)
    assert (done.exit_code, "without an account key" in done.stderr) == (2, True)


async def test_a_lab_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    for arguments in (["machine", "list", "--lab"], ["lab", "status", "--dir"], ["lab", "down", "--dir"]):
        done = await understudy(*arguments, str(tmp_path / "none"))
        assert (done.exit_code, "is no lab" in done.stderr) == (3, True), arguments


async def test_a_server_that_is_away_is_unhealthy(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("uso1.x")
    done = await understudy(
        "machine", "list", "--server", "https://127.0.0.1:24099", "--token-file", str(token)
    )
    assert done.exit_code == 5
    assert "24099" in done.stderr
    assert "Do:" in done.stderr


async def test_a_command_without_the_servers_ca_is_told_to_give_it(site: Site) -> None:
    without = [option for option in site.options if not option.endswith(("--ca-file", "ca.pem"))]
    done = await understudy("machine", "list", *without)
    assert done.exit_code == 5
    assert "certificate was not accepted" in done.stderr
    assert "--ca-file FILE" in done.stderr


async def test_completion_scripts_and_completions_of_commands() -> None:
    assert "_UNDERSTUDY_COMPLETE" in (await understudy("completion", "bash")).stdout
    done = await understudy(
        _UNDERSTUDY_COMPLETE="bash_complete", COMP_WORDS="understudy mach", COMP_CWORD="1"
    )
    assert "machine" in done.stdout


@pytest.mark.parametrize("command", ["machine show", "event list"])
async def test_names_of_machines_are_completed(site: Site, command: str) -> None:
    folder = site.server.config.data_dir
    env = {
        "_UNDERSTUDY_COMPLETE": "bash_complete",
        "UNDERSTUDY_TOKEN_FILE": str(folder / "operator.token"),
        "UNDERSTUDY_CA_FILE": str(folder / "ca.pem"),
    }
    by_environment = await understudy(
        **env, UNDERSTUDY_SERVER=site.server.url, COMP_WORDS=f"understudy {command} w", COMP_CWORD="3"
    )
    by_option = await understudy(
        **env, COMP_WORDS=f"understudy --server {site.server.url} {command} w", COMP_CWORD="5"
    )
    for done in (by_environment, by_option):
        assert (done.stdout.split(), done.stderr) == (["plain,web1"], "")


# ---- machines


async def test_machines_are_listed_and_shown(site: Site, agent: ControlClient) -> None:
    (listed,) = (await site.run("machine", "list", "--output", "json")).json
    assert (listed["name"], listed["state"]) == ("web1", "ordered")
    shown = (await site.run("machine", "show", "web1", "--output", "json")).json
    assert [disk["name"] for disk in shown["disks"]] == ["loop0", "loop1"]
    assert shown["last_point"]["id"] == str(site.machine.marked[-1])
    table = await site.run("machine", "show", "web1", "--output", "table")
    assert "loop1" in table.stdout
    assert table.exit_code == 0
    ended = (await site.run("machine", "unprotect", "web1", "--yes", "--no-wait", "--output", "json")).json
    assert (ended["state"], ended["protected"]) == ("unprotected", False)
    begun = await site.run(
        "machine", "protect", "web1", "--disk", "/dev/loop0", "--no-wait", "--output", "json"
    )
    assert (begun.json["protected"], begun.json["wish"]["disks"]) == (True, ["/dev/loop0"])
    unknown = await site.run("machine", "show", "nobody")
    assert (unknown.exit_code, "'nobody'" in unknown.stderr) == (3, True)


async def test_output_is_json_where_there_is_no_terminal_and_options_work_at_every_level(site: Site) -> None:
    for arguments in (
        [*site.options, "machine", "list"],
        ["machine", *site.options, "list"],
        [*site.options, "--output", "table", "machine", "list", "--output", "json"],
    ):
        done = await understudy(*arguments)
        assert [machine["name"] for machine in done.json] == ["web1"]
    env = {
        "UNDERSTUDY_SERVER": site.server.url,
        "UNDERSTUDY_TOKEN_FILE": str(site.server.config.data_dir / "operator.token"),
        "UNDERSTUDY_CA_FILE": str(site.server.config.data_dir / "ca.pem"),
    }
    assert len((await understudy("machine", "list", **env)).json) == 1
    assert (await understudy("machine", "list", UNDERSTUDY_OUTPUT="table", **env)).stdout.startswith(
        "machine"
    )


async def test_watch_prints_one_json_object_per_look(site: Site, agent: ControlClient) -> None:
    done = await site.run("machine", "watch", "web1", "--count", "2", "--interval", "0.1", "--output", "json")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [look["state"] for look in looks] == ["ordered", "ordered"]
    assert [hop["name"] for hop in looks[0]["hops"]] == ["capture", "stream", "upload", "apply"]
    table = await site.run(
        "machine", "watch", "web1", "--count", "1", "--interval", "0.1", "--output", "table"
    )
    assert "capture" in table.stdout


async def test_wait_ends_when_the_state_is_reported_and_not_by_what_was_reported_before(
    site: Site, agent: ControlClient
) -> None:
    await agent.report(report("ordered"))
    arguments = ["machine", "wait", "web1", "--for", "ordered", "--output", "json"]
    assert (await site.run(*arguments, "--timeout", "0.3")).exit_code == 4
    waiting = asyncio.create_task(site.run(*arguments, "--timeout", "30"))
    while not waiting.done():
        await agent.report(report("ordered"), wait_s=0.2)
    assert (await waiting).json["state"] == "ordered"


async def test_an_rpo_that_only_the_newest_point_tells_is_shown_and_raises_the_alert(
    quick_sweeps: None, site: Site, agent: ControlClient
) -> None:
    await agent.report(report("bitmap"))
    shown = (await site.run("machine", "show", "web1", "--output", "json")).json
    assert shown["rpo_s"] > 900
    async with site.server.operator() as operator:
        for _ in range(200):
            found = (await operator.call(api.EVENTS, EventQuery(object="web1", open=True))).events
            if found:
                break
            await asyncio.sleep(0.05)
    assert [(event.code, event.source) for event in found] == [("US472", "config-server")]


async def test_a_resync_is_a_command_for_the_agent(site: Site, agent: ControlClient) -> None:
    asked = (await site.run("machine", "resync", "web1", "--output", "json")).json
    again = (await site.run("machine", "resync", "web1", "--output", "json")).json
    assert again["id"] == asked["id"]  # who is impatient has all disks read once
    assert [(c.id, c.kind) for c in await agent.report(report())] == [(asked["id"], "resync")]


async def test_wait_that_is_over_ends_with_4_and_says_what_held_it_up(
    site: Site, agent: ControlClient
) -> None:
    await agent.report(report("bitmap", cause="the ring was full"))
    done = await site.run("machine", "wait", "web1", "--for", "ordered", "--timeout", "0.2")
    assert "It goes on without this command. See `understudy machine show web1`" in done.stderr
    assert done.exit_code == 4
    assert "the ring was full" in done.stderr


async def test_wait_that_is_over_says_that_the_server_has_gone_and_what_was_so_before(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        wanted = Protection(disks=["/dev/loop0", "/dev/loop1"], offline=True)
        await operator.call(api.PROTECT, wanted, machine="web1")
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(server, files) as client:
            await client.report(report("bitmap", cause="the ring was full"))
            process = await Line(server, None).begun(
                *["machine", "wait", "web1", "--for", "ordered", "--timeout", "4"]
            )
            assert process.stderr is not None
            assert b"the ring was full" in await process.stderr.readline()
    done = await ended(process)
    assert done.exit_code == 4
    why = re.search(r"Why: the config server has not answered for \S+ s \((.+)\); (.+)", done.stderr)
    assert why is not None, done.stderr
    assert "connection refused" in why[1]
    assert why[2].startswith("it was bitmap (the ring was full)")


async def test_wait_for_what_was_so_before_says_that_it_is_old(site: Site, agent: ControlClient) -> None:
    await agent.report(report("ordered"))
    done = await site.run("machine", "wait", "web1", "--for", "ordered", "--timeout", "0.2")
    assert (done.exit_code, "it is ordered, as its agent said before the waiting began" in done.stderr) == (
        4,
        True,
    ), done.stderr


async def test_waiting_for_an_unknown_machine_ends_at_once_with_3(site: Site) -> None:
    assert (await site.run("machine", "wait", "nobody", "--timeout", "30")).exit_code == 3


# ---- points


async def test_points_are_a_json_list_with_the_fields_of_the_contract(site: Site) -> None:
    points = (await site.run("point", "list", "web1", "--output", "json")).json
    assert [point["id"] for point in points] == [str(position) for position in site.machine.marked]
    for point in points:
        assert set(point) >= {"id", "time", "epoch", "batch", "consistency", "state"}
    assert "m1" in points[0]["marks"]
    table = await site.run("point", "list", "web1", "--output", "table")
    assert points[0]["id"] in table.stdout
    assert "no points between the beginning" in table.stdout


async def test_create_waits_until_the_point_is_in_storage_and_prints_it(
    site: Site, agent: ControlClient
) -> None:
    creating = asyncio.create_task(site.run("point", "create", "web1", "--wait", "--output", "json"))
    (command,) = await agent.report(report(), wait_s=20)
    position = site.machine.write(mark=command.id)
    results = {command.id: {"epoch": position.epoch, "batch": position.batch}}
    await agent.report(report(results=results))
    await site.machine.publish()
    point = (await creating).json
    assert (point["id"], point["marks"]) == (str(position), [command.id])


async def test_create_tells_why_the_agent_could_not(site: Site, agent: ControlClient) -> None:
    creating = asyncio.create_task(site.run("point", "create", "web1", "--wait"))
    (command,) = await agent.report(report(), wait_s=20)
    error = {"code": "US300", "what": "No point", "cause": "the stream is not ordered", "action": "Wait."}
    await agent.report(report(results={command.id: {"error": error}}))
    done = await creating
    assert (done.exit_code, "the stream is not ordered" in done.stderr) == (4, True)


async def test_create_gives_up_when_the_time_is_over(site: Site, agent: ControlClient) -> None:
    done = await site.run("point", "create", "web1", "--wait", "--timeout", "0.2")
    assert (done.exit_code, "has not placed it" in done.stderr) == (4, True)


async def test_verify_opens_everything_that_a_point_needs(site: Site) -> None:
    done = (await site.run("point", "verify", "web1", "--all", "--output", "json")).json
    assert [found["id"] for found in done] == [str(position) for position in site.machine.marked]
    assert [(found["verified"], found["snapshots_read"]) for found in done] == [(True, False)] * len(done)
    missing = await site.run("point", "verify", "web1", "9-9")
    assert missing.exit_code == 3


async def test_verify_goes_on_past_a_point_that_cannot_be_restored(site: Site) -> None:
    good = str(site.machine.marked[0])
    done = await site.run("point", "verify", "web1", "9-9", good, "--output", "json")
    shown = json.loads(done.stdout)
    assert [(found["id"], found["verified"]) for found in shown] == [("9-9", False), (good, True)]
    assert shown[0]["error"]["code"] == PointNotFoundError.code
    assert done.exit_code == 5
    assert "1 of 2 points" in done.stderr


# ---- restore


async def test_restore_writes_the_images_a_manifest_and_a_job(site: Site, tmp_path: Path) -> None:
    to = tmp_path / "out"
    position = site.machine.marked[0]
    done = await site.run("restore", "web1", "--point", str(position), "--to", str(to), "--output", "json")
    assert [disk["file"] for disk in done.json["disks"]] == ["loop0.raw", "loop1.raw"]
    assert images(to) == site.machine.digests[position]
    assert [disk["sha256"] for disk in done.json["disks"]] == site.machine.digests[position]
    async with site.server.operator() as operator:
        jobs = await restores(operator)
        log = (await operator.call(api.AUDIT, Page())).entries
        events = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    # The model's points are years old: a sweep may have found that, too.
    (event,) = [event for event in events if event.kind == "job"]
    assert [(job.kind, job.machine, job.state) for job in jobs] == [("restore", "web1", "done")]
    assert (event.kind, event.severity, event.what) == ("job", "info", f"The restore of web1 to {to} is done")
    assert [entry.action for entry in log[:4]] == [
        *("grant.return", "restore.grant", "restore.grant", "grant.give"),
    ]
    shown = (await site.run("job", "show", jobs[0].id, "--output", "json")).json
    assert shown["progress"] == 1.0


async def test_latest_is_the_last_ordered_batch_and_a_time_the_one_before_it(
    site: Site, tmp_path: Path
) -> None:
    latest = await site.run("restore", "web1", "--to", str(tmp_path / "a"), "--output", "json")
    assert latest.json["id"] == str(site.machine.ordered[-1])
    when = latest.json["time"]
    again = await site.run(
        "restore", "web1", "--point", when, "--to", str(tmp_path / "b"), "--output", "json"
    )
    assert again.json["id"] == latest.json["id"]
    assert images(tmp_path / "a") == images(tmp_path / "b") == site.machine.digests[site.machine.ordered[-1]]


async def test_a_dry_run_writes_nothing_and_opens_no_job(site: Site, tmp_path: Path) -> None:
    to = tmp_path / "out"
    plan = (await site.run("restore", "web1", "--to", str(to), "--dry-run", "--output", "json")).json
    [grant] = (await site.run("grant", "list", "web1", "--output", "json")).json
    assert grant["state"] == "returned"
    assert (plan["id"], plan["base"]) == (str(site.machine.ordered[-1]), None)
    assert plan["at_most_b"] == sum(disk["size_b"] for disk in plan["disks"])
    assert not to.exists()
    async with site.server.operator() as operator:
        assert await restores(operator) == []


async def test_a_dry_run_refuses_the_folder_that_the_restore_would_refuse(site: Site, tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "mine").write_text("of somebody")
    refused = await site.run("restore", "web1", "--to", str(to), "--dry-run")
    assert (refused.exit_code, "US141" in refused.stderr) == (2, True)


@pytest.mark.parametrize("wrong", ["folder", "point", "machine"])
async def test_a_mistyped_restore_is_refused_before_there_is_a_job(
    site: Site, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "out").mkdir()
    if wrong == "folder":
        (tmp_path / "out/file").write_text("mine")
    point, machine = "1-99999" if wrong == "point" else "latest", "web2" if wrong == "machine" else "web1"
    done = await site.run("restore", machine, "--point", point, "--to", str(tmp_path / "out"))
    assert done.exit_code != 0
    async with site.server.operator() as operator:
        assert await restores(operator) == []


@pytest.mark.parametrize("point", ["yesterday", "1-99999"])
async def test_a_point_that_is_none_is_refused_with_a_reason(site: Site, tmp_path: Path, point: str) -> None:
    done = await site.run("restore", "web1", "--point", point, "--to", str(tmp_path / "out"))
    assert done.exit_code in (2, 3)
    assert "Why:" in done.stderr
    assert not (tmp_path / "out").exists()
    async with site.server.operator() as operator:
        events = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    # The model's points are years old: a sweep may have found that.
    assert [event for event in events if event.kind == "job"] == []


@pytest.mark.parametrize("registry", ["there", "lost"])
async def test_storage_and_vault_alone_are_enough(
    site: Site, tmp_path: Path, blob_config: BlobConfig, store: BlobStore, registry: str
) -> None:
    if registry == "lost":
        await store._core.container.delete_container()
    done = await understudy(
        *("restore", "web1", "--to", str(tmp_path / "out"), "--output", "json"),
        *("--vault-file", str(tmp_path / "vault.json"), "--blob-url", blob_config.url),
        *("--blob-container", blob_config.container, "--blob-key-file", str(blob_config.account_key_file)),
        *("--blob-ca-file", str(blob_config.ca_file)),
    )
    assert done.json["id"] == str(site.machine.ordered[-1])
    assert images(tmp_path / "out") == site.machine.digests[site.machine.ordered[-1]]


async def test_storage_alone_lists_machines_and_points_and_says_so_when_the_server_is_gone(
    site: Site, tmp_path: Path, blob_config: BlobConfig
) -> None:
    storage = [
        *("--vault-file", str(tmp_path / "vault.json"), "--blob-url", blob_config.url),
        *("--blob-container", blob_config.container, "--blob-key-file", str(blob_config.account_key_file)),
        *("--blob-ca-file", str(blob_config.ca_file)),
    ]
    listed = (await understudy("point", "list", "web1", *storage, "--output", "json")).json
    asked = (await site.run("point", "list", "web1", "--output", "json")).json
    assert listed == asked
    [machine] = (await understudy("machine", "list", *storage, "--output", "json")).json
    assert (machine["name"], machine["points"], machine["last_point"]) == ("web1", len(asked), asked[-1])
    [verified] = (await understudy("point", "verify", "web1", *storage, "--output", "json")).json
    assert verified["verified"]
    needed = FileVault(tmp_path / "vault.json").current
    wrong = FileVault.create(tmp_path / "wrong.json")
    storage[1] = str(wrong.path)
    told = await understudy("restore", "web1", "--to", str(tmp_path / "out"), *storage)
    assert (told.exit_code, told.stderr.count(needed), told.stderr.count(wrong.current)) == (5, 2, 2)
    gone = ["--server", "https://127.0.0.1:1", *site.options[2:]]
    refused = await understudy("restore", "web1", "--to", str(tmp_path / "out"), *gone)
    assert refused.exit_code == 5
    assert "--vault-file FILE --blob-url URL" in refused.stderr


def private_files() -> list[Path]:
    """What commands keep, or kept, in folders of memory; also those of other installations on this host."""
    return list(Path("/dev/shm").glob("understudy-*/*.key"))


def has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes().strip() == content
    except FileNotFoundError:
        return False  # another's, and gone since


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_restore_that_is_ended_by_a_signal_is_a_cancelled_job_and_leaves_no_key_behind(
    site: Site, blob_config: BlobConfig, tmp_path: Path, number: signal.Signals
) -> None:
    assert blob_config.account_key_file is not None
    key = blob_config.account_key_file.read_bytes().strip()
    files = await site.server.enrolled("process-server", "ps1", tmp_path / "ps")
    async with daemon(site.server, files) as process_server, site.server.operator() as operator:
        holding = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
        await process_server.report(holding)
        with inherited(signal.SIG_DFL, number):
            process = await begun("restore", "web1", "--to", str(tmp_path / "out"), *site.options)
        # It has its grant, and waits for the process server's answer.
        (command,) = await process_server.report(holding, wait_s=20)
        assert command.kind == "flush"
        # SIGKILL at this moment would leave everything as it is: the key must not be in a file now either.
        kept = [path for path in private_files() if has(path, key)]
        process.send_signal(number)
        done = await ended(process)
        (job,) = await restores(operator)
    assert (done.exit_code, number.name in done.stderr) == (128 + number, True)
    assert job.state == "cancelled"
    assert kept == []


async def test_a_restore_under_nohup_survives_the_end_of_its_terminal(site: Site, tmp_path: Path) -> None:
    files = await site.server.enrolled("process-server", "ps1", tmp_path / "ps")
    async with daemon(site.server, files) as process_server:
        holding = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
        await process_server.report(holding)
        with inherited(signal.SIG_IGN, signal.SIGHUP):
            process = await begun("restore", "web1", "--to", str(tmp_path / "out"), *site.options)
        (command,) = await process_server.report(holding, wait_s=20)
        process.send_signal(signal.SIGHUP)
        await process_server.report(ProcessServerReport(results={command.id: {}}))
        assert (await ended(process)).exit_code == 0


async def test_a_restore_of_a_time_asks_first_for_what_process_servers_hold(
    site: Site, tmp_path: Path
) -> None:
    files = await site.server.enrolled("process-server", "ps1", tmp_path / "ps")
    async with daemon(site.server, files) as process_server:
        holding = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)})
        await process_server.report(holding)
        process = await begun(
            "restore", "web1", "--point", "2023-11-14T23:00:00Z", "--to", str(tmp_path / "out"), *site.options
        )
        (command,) = await process_server.report(holding, wait_s=20)
        assert command.kind == "flush"
        await process_server.report(ProcessServerReport(results={command.id: {}}))
        done = await ended(process)
    assert done.exit_code == 3
    assert "has not arrived" in done.stderr


# ---- records


async def test_tokens_policies_events_daemons_and_audit(site: Site, agent: ControlClient) -> None:
    token = (await site.run("token", "create", "agent", "web2", "--ttl", "60", "--output", "json")).json
    assert token["token"].startswith("usy1.")
    policy = (await site.run("policy", "set", "--point-interval", "60", "--output", "json")).json
    assert policy == (await site.run("policy", "show", "--output", "json")).json
    assert policy["point_interval_s"] == 60
    problem = {"code": "US410", "what": "it broke", "object": "loop0"}
    await agent.report({"machine": "web1", "state": "bitmap", "errors": [problem]})
    for about in (["--object", "web1"], ["web1"]):
        events = (await site.run("event", "list", *about, "--open", "--output", "json")).json
        # (On a busy machine the sweep has found by now that the model's states are old.)
        assert [event["object"] for event in events if event["code"] == "US410"] == ["web1/loop0"]
    assert (await site.run("event", "list", "web")).exit_code == 3
    twice = await site.run("event", "list", "web1", "--object", "web1/loop0")
    assert (twice.exit_code, "NAME and --object exclude each other" in twice.stderr) == (2, True)
    wrong = await site.run("event", "list", "web 1")
    assert (wrong.exit_code, "'web 1'" in wrong.stderr) == (2, True)
    (listed,) = (await site.run("daemon", "list", "--output", "json")).json
    assert (listed["role"], listed["connected"]) == ("agent", True)
    entries = (await site.run("audit", "list", "--limit", "1", "--output", "json")).json
    assert entries[0]["action"] == "policy.set"


async def test_a_token_goes_to_a_file_that_nobody_else_reads_and_is_not_shown(
    site: Site, tmp_path: Path
) -> None:
    file = tmp_path / "ps1.token"
    words = ("token", "create", "process-server", "ps1", "--host", "127.0.0.1", "--to", str(file))
    made = (await site.run(*words)).json
    assert (made["token"], file.stat().st_mode & 0o777) == (f"in {file}", 0o600)
    await enrol.enrol(site.server.url, file.read_text(), tmp_path / "ps1")
    for place, why in ((file, "is there already"), (tmp_path / "no/file", "there is no folder")):
        refused = await site.run(*words[:-1], str(place))
        assert (refused.exit_code, why in refused.stderr) == (2, True)

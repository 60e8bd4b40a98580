"""An agent that does what a config server wants, with real capture; nobody is at its other end."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import attachment, desired, idle, service
from agent.capture import attach, bindings, libbpf, pins
from agent.config import AgentConfig, ProtectedDisk
from agent.stream.state import AgentState, Reason, Word
from shared.api.commands import Command
from shared.control.control_client import ControlClient
from shared.desired import Verb, WantedDisk
from shared.host import protected
from tests.capture_parts import MIB, Rig, needs_capture, rig
from tests.epoch_ids import eid
from tests.pki import TestCa
from tests.small_fs import fill, small_fs
from tests.wishing import Teller, agent_of, codes, devices, teller

pytestmark = needs_capture


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of this test's own, and an agent that is in a hurry to report."""
    monkeypatch.setattr(protected, "_FOLDER", tmp_path / "protected")
    often = functools.partialmethod(ControlClient.serve, interval_s=0.1)
    monkeypatch.setattr(ControlClient, "serve", often)


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig(4 * MIB, count=3, attached=False) as made:
        yield made


@pytest.fixture
async def says(ca: TestCa) -> AsyncIterator[Teller]:
    async with teller(ca) as made:
        yield made


@asynccontextmanager
async def running(config: AgentConfig) -> AsyncIterator[None]:
    """An agent, which must live until the end of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(config, stop))
    try:
        yield
        assert not task.done(), task
    finally:
        stop.set()
        await task


def paths(r: Rig) -> list[str]:
    return [str(disk.path) for disk in r.disks]


def identities(r: Rig) -> dict[str, int]:
    """Of all that is pinned, to the kernel."""
    found = {f"program of link {link}": program for link, program in pins.program_ids(r.pin_dir).items()}
    for path in r.pin_dir.iterdir():
        if path.name.startswith("link-"):
            continue
        fd = libbpf.get(path)
        found[path.name] = libbpf.map_info(fd).id
        os.close(fd)
    return found


def state_of(r: Rig) -> AgentState:
    return AgentState(attach.state_words(r.pin_dir))


async def test_a_disk_joins_and_leaves_by_a_wish_and_nothing_that_is_pinned_for_the_others_changes(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, c = paths(r)
    async with running(agent_of(r, ca, says.url, a, b)):
        await says.hears(lambda report: devices(report) == [a, b], "the configuration is not gone by")
        before = identities(r)
        state_of(r).begin_epoch(eid(7))
        wish = says.wish(Verb.PROTECT, a, b, c)
        report = await says.hears(lambda report: devices(report) == [a, b, c], "the third did not join")
        assert report.wish == wish
        assert (state_of(r)[Word.EPOCH], state_of(r).reason) == (0, Reason.DISK_JOINED)
        assert before.items() <= identities(r).items()
        state_of(r).begin_epoch(eid(8))
        says.wish(Verb.PROTECT, a, b)
        await says.hears(lambda report: devices(report) == [a, b], "the third did not leave")
        assert (state_of(r)[Word.EPOCH], state_of(r).reason) == (0, Reason.DISK_LEFT)
        assert before == identities(r)
        assert state_of(r).suspicion is None


async def test_an_agent_that_is_restarted_goes_on_with_whom_the_stream_was_and_a_new_epoch_with_the_first(
    ca: TestCa, r: Rig
) -> None:
    """What the ring does not hold any more may lie at that process server alone."""
    first, second, third = servers = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    config = agent_of(r, ca, "https://127.0.0.1:1", *paths(r), process_server="", process_servers=servers)
    config.state_dir.mkdir()
    async with attachment.running(config, attachment.Kept()) as agent:
        assert agent.sender.server == first
        agent.state.begin_epoch(eid(1))
        agent.state.goes_on_with(("127.0.0.1", 2))
    async with attachment.running(config, attachment.Kept()) as agent:
        assert agent.sender.server == second
    async with attachment.running(config, attachment.Kept(server=("127.0.0.1", 3))) as agent:
        assert agent.sender.server == third, "this process knows better"
        agent.state.want_epoch(Reason.MANUAL)
    async with attachment.running(config, attachment.Kept()) as agent:
        assert agent.sender.server == first


async def test_who_is_named_no_more_keeps_the_stream_over_restarts_while_the_epoch_needs_it(
    ca: TestCa, r: Rig
) -> None:
    """Whether a wish or agent.toml names another: both are the configuration of the next session."""
    first, second = (f"127.0.0.1:{port}" for port in (1, 2))
    a, b, _ = paths(r)

    def config(server: str, *disks: str) -> AgentConfig:
        return agent_of(r, ca, "https://127.0.0.1:1", *disks, process_server=server)

    async def server_of(config: AgentConfig) -> str:
        async with attachment.running(config, attachment.Kept()) as agent:
            return agent.sender.server

    config(first).state_dir.mkdir()
    async with attachment.running(config(first, a), attachment.Kept()) as agent:
        agent.state.begin_epoch(eid(1))
        agent.state.goes_on_with(("127.0.0.1", 1))
        agent.state[Word.FREED] = 5
        agent.state.uploaded(3)
    for _ in range(2):
        assert await server_of(config(second, a)) == first
    assert await server_of(config(second, a, b)) == second, "the epoch is over: nothing is waited for"
    state_of(r).begin_epoch(eid(2))
    assert await server_of(config(second, a, b)) == second, "nothing was freed"
    state_of(r)[Word.FREED] = 5
    assert await server_of(config(second, a, b)) == first
    state_of(r).uploaded(5)
    assert await server_of(config(second, a, b)) == second


async def test_a_wish_that_changes_neither_disks_nor_servers_is_only_noted(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, *_ = paths(r)
    says.set_interval(7)
    async with running(agent_of(r, ca, says.url, a)):
        await says.hears(lambda report: devices(report) == [a], "it does not begin")
        state_of(r).begin_epoch(eid(7))
        wish = says.wish(Verb.PROTECT, a, servers=("127.0.0.1:1",))
        report = await says.hears(lambda report: report.wish == wish, "it was not noted")
        start = report.start
        report = await says.hears(lambda report: report.number > 3, "it does not go on")
        assert (report.start, state_of(r).epoch) == (start, eid(7)), "the session was ended"


async def test_the_same_disk_by_another_path_goes_on_with_its_id_and_its_epoch(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, *_ = paths(r)
    link = r.folder / "by-id"
    link.symlink_to(a)
    async with running(agent_of(r, ca, says.url, a)):
        before = await says.hears(lambda report: devices(report) == [a], "it does not begin")
        state_of(r).begin_epoch(eid(7))
        pinned = identities(r)
        says.wish(Verb.PROTECT, str(link))
        report = await says.hears(lambda report: devices(report) == [str(link)], "it is not gone by")
        assert [disk.name for disk in report.disks] == [disk.name for disk in before.disks]
        assert (state_of(r).epoch, identities(r)) == (eid(7), pinned)


async def test_a_disk_that_is_asked_for_and_not_there_is_named_and_the_others_go_on(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, *_ = paths(r)
    async with running(agent_of(r, ca, says.url, a)):
        says.wish(Verb.PROTECT, a, "/dev/no-such-disk")
        report = await says.hears(lambda report: "US404" in codes(report), "nobody is told")
        assert devices(report) == [a]


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_a_disk_that_is_called_otherwise_keeps_its_id_and_who_has_its_name_is_a_disk_of_its_own(
    r: Rig, ca: TestCa, says: Teller, is_stopped: bool
) -> None:
    """`name` is a name as the kernel gives it, which leads to A, and after a boot to B."""
    a, b, _ = paths(r)
    name = r.folder / "sdb"
    name.symlink_to(a)
    says.wish(Verb.PROTECT, str(name))
    async with running(agent_of(r, ca, says.url)):
        first = await says.hears(lambda report: devices(report) == [str(name)], "it does not begin")
        if is_stopped:
            says.wish(Verb.STOP)
            await says.hears(lambda report: report.state == "unprotected", "it does not stop")
    [mine] = [disk.name for disk in first.disks]
    name.unlink()
    name.symlink_to(b)
    async with running(agent_of(r, ca, says.url)):
        report = await says.hears(lambda report: report.available, "it does not tell which disks there are")
        told = {disk.device: disk for disk in report.available}
        assert (told[a].id, told[b].id) == (mine, "")
        if not is_stopped:
            report = await says.hears(lambda report: report.disks, "it does not go on")
            assert [(disk.name, disk.device) for disk in report.disks] == [(mine, a)]
            assert [(disk.id, disk.device) for disk in report.bound] == [(mine, str(name))]
        # An operator, who sees B there.
        says.wish(Verb.PROTECT, WantedDisk(str(name), identity=told[b].identity))
        report = await says.hears(lambda report: devices(report) == [str(name)], "B is not taken in")
        [other] = [disk.name for disk in report.disks]
        assert other != mine
        assert [(disk.id, disk.identity) for disk in report.bound] == [(other, told[b].identity)]
        # Both, the one by its id alone, which was called so once.
        both = WantedDisk(str(name), mine), WantedDisk(str(name), identity=told[b].identity)
        says.wish(Verb.PROTECT, *both)
        report = await says.hears(lambda report: len(report.disks) == 2, "A is not taken in again")
        assert {(disk.name, disk.device) for disk in report.disks} == {(mine, a), (other, str(name))}


async def test_a_path_that_is_longer_than_a_report_takes_costs_no_report(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, _ = paths(r)
    link = r.folder / ("x" * 250)
    link.symlink_to(b)
    async with running(agent_of(r, ca, says.url, a)):
        says.wish(Verb.PROTECT, a, str(link))
        report = await says.hears(lambda report: len(report.disks) == 2, "it is not taken in, or not heard")
        assert devices(report) == [a, b]


@pytest.mark.parametrize("stays", [True, False])
async def test_disks_that_are_exchanged_in_one_act_are_no_damage(
    r: Rig, ca: TestCa, says: Teller, stays: bool
) -> None:
    """Until then all that was written to the one that goes was seen."""
    a, b, c = paths(r)
    kept = [a] if stays else []
    says.wish(Verb.PROTECT, *kept, b)
    async with running(agent_of(r, ca, says.url)):
        await says.hears(lambda report: devices(report) == [*kept, b], "it does not begin")
        state_of(r).begin_epoch(eid(7))
        says.wish(Verb.PROTECT, *kept, c)
        await says.hears(lambda report: devices(report) == [*kept, c], "it does not exchange them")
        state = state_of(r)
        assert (state[Word.EPOCH], state.reason, state.suspicion) == (0, Reason.DISK_JOINED, None)


async def test_when_none_that_is_asked_for_is_there_the_agent_stays_to_hear_of_others(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    _, b, _ = paths(r)
    says.wish(Verb.PROTECT, "/dev/no-such-disk")
    async with running(agent_of(r, ca, says.url)):
        report = await says.hears(lambda report: report.state == "failed", "nobody is told")
        assert "US418" in codes(report)
        says.wish(Verb.PROTECT, b)
        await says.hears(lambda report: devices(report) == [b], "it does not begin")


async def test_an_agent_for_which_nobody_names_a_disk_waits_and_says_which_there_are(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, *_ = paths(r)
    says.commands = [Command(id="c1", kind="mark")]
    async with running(agent_of(r, ca, says.url, process_server="")):
        report = await says.hears(lambda report: report.available, "the disks of the host are not told")
        assert (report.state, report.disks, report.wish, report.errors) == ("unprotected", [], None, [])
        found = {disk.device: disk for disk in report.available}
        assert (found[a].sectors, found[a].why_not) == (4 * MIB // 512, "")
        assert found[a].identity.startswith("loop:")
        await says.hears(lambda _: says.results, "the command has no result")
        assert says.results["c1"]["error"]["code"] == "US624"
        says.wish(Verb.PROTECT, WantedDisk(a, "root", found[a].identity))
        report = await says.hears(lambda report: report.disks, "it does not begin")
        assert ([disk.name for disk in report.disks], report.process_server) == (["root"], "")
        assert "US623" in codes(report)


async def test_stop_leaves_the_kernel_clean_and_holds_over_a_restart_without_the_config_server(
    r: Rig, ca: TestCa, says: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = paths(r)
    config = agent_of(r, ca, says.url, a, b)
    async with running(config):
        await says.hears(lambda report: report.disks, "it does not begin")
        state_of(r).begin_epoch(eid(7))
        before = pins.program_ids(r.pin_dir)
        assert any(protected._FOLDER.iterdir())
        wish = says.wish(Verb.STOP)
        report = await says.hears(lambda report: report.state == "unprotected", "it does not stop")
        assert (report.wish, report.disks, report.errors) == (wish, [], [])
        assert not pins.exist(r.pin_dir)
        assert not {info.id for info in libbpf.links()} & before.keys()
        assert not any(protected._FOLDER.iterdir())
    alone = agent_of(r, ca, "https://127.0.0.1:1", a, b)
    waits = asyncio.Event()

    async def serve_idle(*arguments: Any, **options: Any) -> None:
        waits.set()
        await idle.serve(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(service, "serve_idle", serve_idle)
        async with running(alone), asyncio.timeout(20):
            await waits.wait()
            assert not pins.exist(r.pin_dir)
    async with running(config):
        says.wish(Verb.PROTECT)
        await says.hears(lambda report: devices(report) == [a, b], "it does not begin again")
        state = state_of(r)
        assert (state[Word.EPOCH], state.reason, state.suspicion) == (0, Reason.INITIAL, None)


async def test_protection_that_is_stopped_and_asked_for_again_in_one_process_begins_as_a_first_one(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, *_ = paths(r)
    async with running(agent_of(r, ca, says.url, a)):
        await says.hears(lambda report: report.disks, "it does not begin")
        id_ = says.last.disks[0].name
        state_of(r).begin_epoch(eid(7))
        for _ in range(2):
            says.wish(Verb.STOP)
            await says.hears(lambda report: report.state == "unprotected", "it does not stop")
            says.wish(Verb.PROTECT)
            report = await says.hears(lambda report: report.disks, "it does not begin again")
            assert report.disks[0].name == id_
            assert (state_of(r).reason, state_of(r).suspicion) == (Reason.INITIAL, None)


@pytest.mark.parametrize("lost", ["the wish", "all"])
async def test_with_a_lost_file_what_is_captured_stays_so_until_the_config_server_or_a_person_says_something(
    r: Rig, ca: TestCa, says: Teller, lost: str
) -> None:
    a, b, _ = paths(r)
    config = agent_of(r, ca, says.url, b)
    file = config.state_dir / desired.NAME
    says.wish(Verb.PROTECT, a, b)
    async with running(config):
        await says.hears(lambda report: devices(report) == [a, b], "it does not begin")
    state_of(r).begin_epoch(eid(7))
    before = identities(r)
    told, says.desired = says.desired, None
    for _ in range(2):
        file.unlink(missing_ok=True)
        if lost == "all":
            (config.state_dir / "disks.json").unlink()
        async with running(config):
            report = await says.hears(lambda report: report.disks, "it does not go on")
            assert (devices(report), report.wish) == ([a, b], None)
            assert "US620" in codes(report)
            assert (state_of(r).epoch, identities(r)) == (eid(7), before)
    assert not file.exists(), "nobody said that nothing is wanted"
    async with running(config):
        says.desired = told
        report = await says.hears(lambda report: report.wish, "its word is not taken")
        assert "US620" not in codes(report)
        await says.hears(lambda report: report.disks, "it does not go on")
        assert (state_of(r).epoch, identities(r)) == (eid(7), before)
    says.desired = None
    file.write_text(f'{{"v": 1, "wish": null, "machine": "{config.machine}"}}')
    async with running(config):
        report = await says.hears(lambda report: report.disks, "it does not go on")
        assert (devices(report), "US620" in codes(report)) == ([b], False), "a person said so"


async def test_a_disk_that_a_person_takes_out_of_the_configuration_leaves(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    """Of a machine of which the config server never wanted anything."""
    a, b, _ = paths(r)
    both, one = agent_of(r, ca, says.url, a, b), agent_of(r, ca, says.url, b)
    for config, expected in ((both, [a, b]), (one, [b])):
        async with running(config):
            report = await says.hears(lambda report: report.disks, "it does not begin")
            assert (devices(report), "US620" in codes(report)) == (expected, False)


@pytest.mark.parametrize("content", [b"{", None])
async def test_with_a_damaged_file_what_is_captured_stays_so_until_the_config_server_says_something(
    r: Rig, ca: TestCa, says: Teller, content: bytes | None
) -> None:
    a, b, _ = paths(r)
    config = agent_of(r, ca, says.url, b)
    file = config.state_dir / desired.NAME
    says.wish(Verb.PROTECT, a, b)
    async with running(config):
        await says.hears(lambda report: devices(report) == [a, b], "it does not begin")
    state_of(r).begin_epoch(eid(7))
    before = identities(r)
    if content is not None:
        file.write_bytes(content)
    else:
        file.unlink()
        file.mkdir()
    told, says.desired = says.desired, None
    async with running(config):
        report = await says.hears(lambda report: report.disks, "it does not go on")
        assert (devices(report), report.wish) == ([a, b], None)
        assert "US620" in codes(report)
        assert (state_of(r).epoch, identities(r)) == (eid(7), before)
        if content is None:
            file.rmdir()
        says.desired = told
        report = await says.hears(lambda report: report.wish, "its word is not taken")
        assert "US620" not in codes(report)
        await says.hears(lambda report: report.disks, "it does not go on")
        assert (state_of(r).epoch, identities(r)) == (eid(7), before)
    assert file.read_bytes().startswith(b"{\n")


async def test_a_copy_of_the_folder_on_other_hardware_captures_what_its_configuration_names(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, c = paths(r)
    says.wish(Verb.PROTECT, a, b)
    async with running(agent_of(r, ca, says.url, identity="original")):
        await says.hears(lambda report: devices(report) == [a, b], "it does not begin")
    pins.detach(r.pin_dir)  # what is in the kernel's memory is no copy's
    told, says.desired = says.desired, None
    async with running(agent_of(r, ca, says.url, c, identity="clone")):
        report = await says.hears(lambda report: report.disks, "it does not begin")
        assert (devices(report), report.wish, "US585" in codes(report)) == ([c], None, True)
        says.desired = told  # from whoever thinks that it is the machine
        report = await says.hears(lambda report: devices(report) == [a, b], "it is not gone by")
        assert "US585" not in codes(report)


async def test_what_is_captured_stays_so_also_when_no_file_says_which_disk_is_which(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, _ = paths(r)
    config = agent_of(r, ca, says.url, a, b)
    async with running(config):
        await says.hears(lambda report: report.disks, "it does not begin")
    state_of(r).begin_epoch(eid(7))
    (config.state_dir / "disks.json").unlink()
    (config.state_dir / desired.NAME).write_bytes(b"{")
    async with running(agent_of(r, ca, says.url, b)):
        report = await says.hears(lambda report: report.disks, "it does not go on")
        assert (devices(report), state_of(r).epoch) == ([a, b], eid(7))


async def test_disks_that_are_wanted_by_their_ids_go_on_when_the_file_of_these_is_lost(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    """What capture is pinned to is proof, wherever it stands and whatever it is called."""
    a, b, c = paths(r)
    config = agent_of(r, ca, says.url)
    says.wish(Verb.PROTECT, a, c)
    async with running(config):
        report = await says.hears(lambda report: devices(report) == [a, c], "it does not begin")
        first, second = (disk.name for disk in report.disks)
        wish = says.wish(Verb.PROTECT, WantedDisk(b, first), WantedDisk(c, second))  # it was called so once
        await says.hears(
            lambda report: report.wish == wish and devices(report) == [a, c], "it is not gone by"
        )
    state_of(r).begin_epoch(eid(7))
    file = config.state_dir / "disks.json"
    before = bindings.read(config.state_dir)
    file.unlink()
    async with running(config):
        report = await says.hears(lambda report: report.disks, "it does not go on")
        assert [(disk.name, disk.device) for disk in report.disks] == [(first, a), (second, c)]
        assert state_of(r).epoch == eid(7)
    assert [(line.id, line.last) for line in bindings.read(config.state_dir) or []] == [
        (line.id, line.last) for line in before or []
    ]
    file.unlink()
    pins.detach(r.pin_dir)
    async with running(config):
        report = await says.hears(lambda report: report.state == "failed", "they are taken by their paths")
        assert codes(report) == ["US418"]
        assert "a [[disk]] of this id with its device" in report.errors[0].action
    named = [ProtectedDisk(a, first), ProtectedDisk(b, second)]
    async with running(msgspec.structs.replace(config, disk=named)):
        report = await says.hears(lambda report: report.disks, "what agent.toml says is not believed")
        assert [(disk.name, disk.device) for disk in report.disks] == [(first, a), (second, b)]


async def test_a_damaged_file_where_nothing_is_captured_leaves_what_the_configuration_names(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, _ = paths(r)
    config = agent_of(r, ca, says.url, a)
    config.state_dir.mkdir()
    (config.state_dir / desired.NAME).write_bytes(b"{")
    async with running(config):
        report = await says.hears(lambda report: report.disks, "nothing is protected")
        assert (devices(report), "US620" in codes(report)) == ([a], True)
        says.wish(Verb.PROTECT, b)
        report = await says.hears(lambda report: devices(report) == [b], "its word is not taken")
        assert "US620" not in codes(report)


async def test_disks_that_are_in_nobodys_words_any_more_stay_captured(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    a, b, _ = paths(r)
    async with running(agent_of(r, ca, says.url, a, b)):
        await says.hears(lambda report: report.disks, "it does not begin")
    state_of(r).begin_epoch(eid(7))
    before = identities(r)
    async with running(agent_of(r, ca, says.url)):
        await says.hears(lambda report: devices(report) == [a, b], "it does not go on")
        assert (state_of(r).epoch, identities(r)) == (eid(7), before)


async def test_a_stop_that_cannot_be_written_is_not_done_until_it_can(
    r: Rig, ca: TestCa, says: Teller, tmp_path: Path
) -> None:
    a, *_ = paths(r)
    with small_fs(tmp_path / "state") as folder:
        config = agent_of(r, ca, says.url, a, state_dir=folder)
        async with running(config):
            await says.hears(lambda report: report.disks, "it does not begin")
            state_of(r).begin_epoch(eid(7))
            ballast = fill(folder)
            says.wish(Verb.STOP)
            report = await says.hears(lambda report: "US621" in codes(report), "nobody is told")
            assert (devices(report), report.wish) == ([a], None)
            assert state_of(r).epoch == eid(7)
            ballast.unlink()
            report = await says.hears(lambda report: report.state == "unprotected", "it is not tried again")
            assert (codes(report), pins.exist(r.pin_dir)) == ([], False)


async def test_a_disk_that_was_never_there_is_said_to_be_one_that_is_to_be_captured(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    """Or whoever names what the machine protects, to assign a policy say, drops it."""
    [disk, *_], late = paths(r), r.folder / "late"
    async with running(agent_of(r, ca, says.url, disk, str(late))):
        report = await says.hears(lambda report: devices(report) == [disk], "begin")
        assert [(bound.id != "", bound.device) for bound in report.bound] == [
            (True, disk),
            (False, str(late)),
        ]
        gone = says.wish(Verb.PROTECT, str(late))
        report = await says.hears(lambda report: report.wish == gone and report.state == "failed", "taken")
        assert [(bound.id, bound.device) for bound in report.bound] == [("", str(late))]


async def test_an_id_of_which_the_agent_knows_nothing_any_more_is_not_given_to_what_has_its_path(
    r: Rig, ca: TestCa, says: Teller
) -> None:
    """Its state_dir was lost. An operator who names the path says which disk is meant."""
    [disk, *_] = paths(r)
    async with running(agent_of(r, ca, says.url)):
        wish = says.wish(Verb.PROTECT, WantedDisk(disk, "loop-of-old"))
        report = await says.hears(lambda report: report.wish == wish and report.state == "failed", "refused")
        assert "loop-of-old" in report.cause
        assert not pins.exist(r.pin_dir)
        says.wish(Verb.PROTECT, disk)
        await says.hears(lambda report: devices(report) == [disk], "named anew")

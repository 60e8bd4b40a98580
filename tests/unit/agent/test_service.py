"""What the service manager is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent import attachment, pipeline, service
from agent.capture import bindings, pins
from agent.capture.bindings import Bound
from agent.config import AgentConfig
from agent.desired import Goal, WishFile
from agent.host_note import HostNote
from agent.pipeline import Agent
from shared.batch import StreamState
from shared.daemon.threads import Threads
from shared.desired import Desired, Mark, Verb, WantedDisk, Wish
from shared.errors import BpfError, NotMountedError, NoUsableDiskError
from shared.host import mounts
from shared.status import BoundDisk
from shared.trust.tls import TlsFiles
from tests.no_threads import no_room


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


@pytest.mark.parametrize("beside_others", [True, False])
async def test_why_an_agent_ends_is_told_also_when_a_part_of_a_running_one_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside_others: bool
) -> None:
    told = []
    failure = BpfError("A BPF program could not be opened", number=2)

    async def tell(_config: object, error: Exception, *_: object) -> None:
        told.append(error)

    @contextlib.asynccontextmanager
    async def running(*_: object) -> AsyncIterator[Any]:
        if not beside_others:
            raise failure
        yield SimpleNamespace(boot="", capture=SimpleNamespace(state=None, disks=()))

    async def serve(*_: object) -> None:
        async def part() -> None:
            raise failure

        async with asyncio.TaskGroup() as group:
            group.create_task(part())

    monkeypatch.setattr(service, "check_machine", lambda: None)
    monkeypatch.setattr("shared.trust.identity.check_name", lambda files, name: None)
    monkeypatch.setattr(pins, "ensure_bpffs", lambda pin_dir: None)
    monkeypatch.setattr(service, "tell_why", tell)
    monkeypatch.setattr(service, "running", running)
    monkeypatch.setattr(service, "_serve", serve)
    files = TlsFiles(cert=tmp_path / "c", key=tmp_path / "k", ca=tmp_path / "a")
    config = AgentConfig(
        machine="m", disks=["/dev/x"], process_server="ps:9443", control_url="https://cs", tls=files,
        state_dir=tmp_path / "state", pin_dir=tmp_path / "pins",
    )  # fmt: skip
    with pytest.raises(ExceptionGroup if beside_others else BpfError):
        await service.run(config, asyncio.Event())
    assert told == [failure]


@pytest.mark.parametrize("state_dir", ["whole", "not mounted", "damaged"])
async def test_last_words_say_what_is_to_be_protected_unless_nobody_has_read_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_dir: str
) -> None:
    """None of its disks is there yet, at a boot say: what it is told by somebody who knows fewer would drop the others. Without its notes
    it knows paths alone, and they would be taken for other disks than those that bear the ids."""
    is_mounted = state_dir != "not mounted"
    told = []

    async def tell(*arguments: object) -> None:
        told.append(arguments[-1])

    def check(*_: object) -> None:
        if not is_mounted:
            raise NotMountedError("The agent was not started")

    @contextlib.asynccontextmanager
    async def running(*_: object) -> AsyncIterator[Any]:
        raise NoUsableDiskError("None of the protected disks can be captured")
        yield

    monkeypatch.setattr(service, "check_machine", lambda: None)
    monkeypatch.setattr("shared.trust.identity.check_name", lambda files, name: None)
    monkeypatch.setattr(pins, "ensure_bpffs", lambda pin_dir: None)
    monkeypatch.setattr(mounts, "check", check)
    monkeypatch.setattr(service, "tell_why", tell)
    monkeypatch.setattr(service, "running", running)
    files = TlsFiles(cert=tmp_path / "c", key=tmp_path / "k", ca=tmp_path / "a")
    state = tmp_path / "state"
    state.mkdir()
    bindings.write(state, [Bound("sda", "/dev/sda", "wwid:A"), Bound("former", "/dev/sdz", "wwid:Z")])
    if state_dir == "damaged":
        (state / bindings.NAME).write_bytes(b"{")
    config = AgentConfig(
        machine="m", disks=["/dev/sda", "/dev/late"], process_server="ps:9443", control_url="https://cs", tls=files,
        state_dir=state, pin_dir=tmp_path / "pins",
    )  # fmt: skip
    with pytest.raises(NoUsableDiskError if is_mounted else NotMountedError):
        await service.run(config, asyncio.Event())
    bound = [BoundDisk(id="sda", device="/dev/sda"), BoundDisk(id="", device="/dev/late")]
    assert told == [bound if state_dir == "whole" else None]


async def test_the_client_of_the_config_server_is_closed_also_when_a_part_of_the_agent_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failure, closed = BpfError("A BPF program could not be opened", number=2), asyncio.Event()

    async def fail(over: asyncio.Event) -> None:
        raise failure

    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    async def close() -> None:
        closed.set()

    control = SimpleNamespace(serve=wait, close=close)
    monkeypatch.setattr(service, "ControlClient", lambda *_, **__: control)
    for beside in ("_watchdog", "_keep_note", "_follow"):
        monkeypatch.setattr(service, beside, wait)
    files = SimpleNamespace(cert=tmp_path / "cert.pem", ca=tmp_path / "ca.pem")
    agent: Any = SimpleNamespace(
        config=SimpleNamespace(control_url="", tls=files), identity="", boot="", present=None, place_points=wait, handle=None,
        sender=SimpleNamespace(run=fail), revoked=SimpleNamespace(load=lambda: None, take=None),
        continuity=SimpleNamespace(run=wait, resized=asyncio.Event()),
    )  # fmt: skip
    with pytest.raises(ExceptionGroup) as caught:
        wanted: Any = SimpleNamespace(wishes=SimpleNamespace(take=None), available=None)
        await service._serve(agent, asyncio.Event(), wanted)
    assert (caught.value.exceptions, closed.is_set()) == ((failure,), True)


async def test_a_second_signal_lets_go_of_no_pins_while_a_thread_attaches_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    def attach(*_: object) -> Any:
        begun.set()
        go_on.wait()
        return SimpleNamespace(close=lambda: closed.append(True)), None

    async def start() -> None:
        async with attachment.running(config, attachment.Kept()):
            pass

    monkeypatch.setattr(attachment, "attach", attach)
    config: Any = None
    agent = asyncio.create_task(start())
    await asyncio.to_thread(begun.wait)
    for _ in range(2):
        agent.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    is_over = agent.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await agent
    assert (is_over, closed) == (False, [True])


async def test_a_host_without_room_for_a_thread_keeps_no_agent_from_running_whatever_its_note_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "NOTE_S", 0.01)
    written: list[str] = []
    monkeypatch.setattr("shared.host.protected.note", lambda machine, *_: written.append(machine))
    config: Any = SimpleNamespace(machine="m", pin_dir=tmp_path)
    note = HostNote(config, cast("Any", SimpleNamespace(disks=[])))
    with no_room():
        keeping = asyncio.create_task(service._keep_note(cast("Any", SimpleNamespace(note=note))))
        while note.problem is None:
            assert not keeping.done()
            await asyncio.sleep(0)
        assert "new thread" in note.problem.cause
    while note.is_due:  # noqa: ASYNC110 - a thread decides
        await asyncio.sleep(0.01)
    assert written == ["m"]
    asyncio.get_running_loop().set_default_executor(Threads())  # without any that is idle
    with no_room():
        for _ in range(20):
            await asyncio.sleep(0.005)
    assert not keeping.done()
    assert note.problem is None, "a thread was asked for although there was nothing to do"
    keeping.cancel()


class Parts:
    """Of an agent, those that tell whether it moves."""

    def __init__(self) -> None:
        now = time.monotonic()
        made: Any = SimpleNamespace(
            continuity=SimpleNamespace(looked_at=now),
            sender=SimpleNamespace(busy_since=None, sent=7),
            stream=SimpleNamespace(state=StreamState.ORDERED),
        )
        made.standstill = partial(Agent.standstill, made)
        self.agent = made


async def told(manager: socket.socket, agent: Any) -> str:
    """What the manager is told first."""
    watchdog = asyncio.create_task(service._watchdog(agent))
    async with asyncio.timeout(10):
        said = await asyncio.get_running_loop().sock_recv(manager, 1024)
    watchdog.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watchdog
    return said.decode()


async def test_an_agent_that_moves_or_has_nothing_to_do_is_alive(manager: socket.socket) -> None:
    parts = Parts()
    assert await told(manager, parts.agent) == "WATCHDOG=1\nSTATUS=ordered, batch 7"
    parts.agent.sender.busy_since = time.monotonic()
    assert "WATCHDOG=1" in await told(manager, parts.agent)


@pytest.mark.parametrize("what", ["audit", "pump"])
async def test_an_agent_in_which_something_stands_still_is_not_told_to_be_alive(
    manager: socket.socket, what: str
) -> None:
    parts = Parts()
    long_ago = time.monotonic() - 2 * pipeline.STILL_S
    if what == "audit":
        parts.agent.continuity.looked_at = long_ago
    else:
        parts.agent.sender.busy_since = long_ago
    assert "WATCHDOG" not in await told(manager, parts.agent)


def test_where_nobody_knows_what_is_wanted_what_is_captured_and_what_is_configured_is_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Path("/nowhere")
    config = AgentConfig(
        machine="m", disks=["/dev/sda", "/dev/sdb"], process_server="ps:9443", control_url="https://cs",
        tls=TlsFiles(cert=nowhere, key=nowhere, ca=nowhere), state_dir=tmp_path, pin_dir=nowhere,
    )  # fmt: skip

    def disks(is_unknown: bool, *captured: WantedDisk) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(pins, "exist", lambda _: bool(captured))
            patch.setattr(service, "as_captured", lambda *_: captured)
            return [disk.device for disk in service._disks(Goal(), config, attachment.Kept(), is_unknown)]

    sdb, sdc = WantedDisk("/dev/sdb", "sdb"), WantedDisk("/dev/sdc", "sdc")
    assert disks(True) == ["/dev/sda", "/dev/sdb"], "after a reboot nothing is captured"
    assert disks(True, sdb, sdc) == ["/dev/sdb", "/dev/sdc", "/dev/sda"]
    assert disks(False, sdb, sdc) == ["/dev/sdb", "/dev/sdc"]
    assert disks(False) == []


@pytest.mark.parametrize("verb", [Verb.PROTECT, Verb.STOP])
async def test_a_session_is_over_as_soon_as_something_else_is_wanted(tmp_path: Path, verb: Verb) -> None:
    """Who has the stream may have it in the next one, too: nobody waits for him here."""
    files = TlsFiles(cert=tmp_path / "c", key=tmp_path / "k", ca=tmp_path / "a")
    config = AgentConfig(
        machine="m", disks=["/dev/x"], process_server="ps1:9443", control_url="https://cs", tls=files,
        state_dir=tmp_path, pin_dir=tmp_path / "pins",
    )  # fmt: skip
    wishes, over = WishFile(tmp_path, "m", ""), asyncio.Event()
    agent = cast(Any, SimpleNamespace(point_every=lambda seconds: None))
    wanted = service._Wanted(wishes.goal(config), wishes, config, cast(Any, None))
    following = asyncio.create_task(service._follow(wanted, agent, over))
    mark = Mark(incarnation="i", number=1, act="a")
    servers = ("ps2:9443",) if verb is Verb.PROTECT else ()
    await wishes.take(Desired(wish=Wish(mark=mark, verb=verb, process_servers=servers)))
    assert await wishes.written()
    async with asyncio.timeout(10):
        await following
    assert over.is_set()

"""The agent's session against a process server that follows a script, with a real stream behind it."""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from agent.capture.maps import detach
from agent.stream import sender as sender_module
from agent.stream import servers
from agent.stream.sender import Sender
from agent.stream.state import AgentState, Reason, Suspicion, Word
from shared.api.certificates import Revocations
from shared.daemon.threads import Threads
from shared.errors import (
    CertificateRevokedError,
    CopyRefusedError,
    NotAFrameError,
    NoThreadError,
    RefusedError,
    UnreachableError,
)
from shared.recovery.position import Position
from shared.trust.pointer import Whereabouts
from shared.wire import transport
from shared.wire.messages import Ack, Fault, Hello
from shared.wire.protocol import Connection
from tests.epoch_ids import eid
from tests.loopdisk import loop_disk
from tests.no_threads import no_room
from tests.process_server_site import free_port
from tests.sender_site import DISK_B, Site, hang_up, next_hello, serving, welcome
from tests.wire_parts import until


@pytest.fixture
def device() -> Iterator[str]:
    folder = Path("/dev/shm") / f"understudy-{secrets.token_hex(4)}"
    folder.mkdir()
    with loop_disk(folder / "disk", DISK_B) as made:
        yield made
    shutil.rmtree(folder)


@pytest.fixture
async def site(device: str, tmp_path: Path) -> AsyncIterator[Site]:
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    async with serving(device, tmp_path, pin_dir) as made:
        yield made
    detach(pin_dir)


async def test_a_process_server_whose_name_no_thread_can_be_had_to_look_up_is_tried_again(
    site: Site,
) -> None:
    asyncio.get_running_loop().set_default_executor(Threads())
    await site.hellos.get()
    real, nowhere = site.sender._servers, servers.ProcessServers([("process-server.invalid", 1)], 0.0)
    site.sender._servers = nowhere
    with no_room():
        async with asyncio.timeout(20):
            while not isinstance(site.sender.problem, NoThreadError):
                site.sender.hurry()
                await asyncio.sleep(0.01)
    site.sender._servers = real
    while not site.hellos.empty():
        site.hellos.get_nowait()
    site.sender.hurry()
    async with asyncio.timeout(30):
        await site.hellos.get()


async def test_where_the_config_server_is_is_taken_from_whoever_welcomes(site: Site, tmp_path: Path) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    class Where(Whereabouts):
        async def take(self, data: bytes) -> bool:
            heard.put_nowait(data)
            return False

    site.sender.where = Where("https://old.example.com", tmp_path / "cert.pem", tmp_path / "ca.pem")

    async def welcome_with(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        said = replace(welcome(hello.epoch or 1), control=b"signed")
        writer.write(b"".join(bytes(part) for part in wire.send_welcome(said)))
        await writer.drain()

    site.script = welcome_with
    async with asyncio.timeout(30):
        assert await heard.get() == b"signed"


async def test_a_fault_right_behind_welcome_ends_the_session_and_nothing_else(site: Site) -> None:
    async def welcome_and_refuse(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        said = [
            *wire.send_welcome(welcome(hello.epoch or 1)),
            *wire.send_fault(Fault(code="US000", what="no")),
        ]
        writer.write(b"".join(bytes(part) for part in said))
        await writer.drain()
        writer.close()

    site.script = welcome_and_refuse
    assert (await next_hello(site)).epoch == 0
    for _ in range(2):
        await next_hello(site)


async def test_a_copy_that_was_refused_for_a_minute_tries_again_at_once_when_it_is_told_to(
    site: Site,
) -> None:
    async def refuse(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        fault = Fault(code=CopyRefusedError.code, what="a copy", retry_after_s=60.0)
        writer.write(b"".join(bytes(part) for part in wire.send_fault(fault)))
        await writer.drain()
        writer.close()

    site.script = refuse
    await next_hello(site)
    for _ in range(2):
        site.sender.hurry()
        await next_hello(site)


async def test_why_batches_are_refused_is_shown_until_one_is_taken_and_not_only_between_two_tries(
    site: Site,
) -> None:
    full = Fault(code="US480", what="Batch 1 could not be written", cause="No space left on device")

    async def refuse(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines([*wire.send_welcome(welcome(hello.epoch or 1)), *wire.send_fault(full)])
        writer.close()

    taking: asyncio.Queue[tuple[Connection, asyncio.StreamWriter]] = asyncio.Queue()

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(welcome(hello.epoch, 1 << 26)))
        taking.put_nowait((wire, writer))

    site.script = refuse
    for _ in range(2):
        await next_hello(site)
    site.script = take
    async with asyncio.timeout(10):
        wire, writer = await taking.get()
        first = await site.batches.get()
        assert isinstance(site.sender.problem, RefusedError)
        assert "No space left on device" in site.sender.problem.cause
        ack = Ack(spooled=1, spooled_seq=first.batch.end_seq, uploaded=0, uploaded_seq=0, credit_b=1 << 26)
        writer.writelines(wire.send_ack(ack))
        while site.sender.problem is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_epoch_that_ended_while_welcome_was_awaited_is_not_taken_up(site: Site) -> None:
    async def lose_continuity(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        if hello.epoch == 0 and hello.suspect_after is None:
            site.state.want_epoch(Reason.AUDIT_SHORTFALL, Suspicion(Position.of(6, 123), 1))
        writer.writelines(wire.send_welcome(welcome(hello.epoch or 7)))

    site.script = lose_continuity
    first, second = await next_hello(site), await next_hello(site)
    assert (first.epoch, first.suspect_after) == (0, None)
    assert (second.epoch, second.suspect_after) == (0, (6, 123))


async def test_a_process_server_that_says_nothing_after_hello_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say_nothing(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        pass

    monkeypatch.setattr(transport, "SILENCE_S", 0.0)
    site.script = say_nothing
    for _ in range(2):
        await next_hello(site)


async def test_a_frame_that_makes_no_sense_is_answered_with_a_fault(site: Site) -> None:
    faults: asyncio.Queue[Fault] = asyncio.Queue()

    async def talk_nonsense(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense" * 8)

    site.script = talk_nonsense
    site.on_fault = faults.put_nowait
    async with asyncio.timeout(10):
        assert (await faults.get()).code == NotAFrameError.code


async def test_a_revoked_process_server_loses_its_session_and_hears_nothing_more(site: Site) -> None:
    faults: asyncio.Queue[Fault] = asyncio.Queue()

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(welcome(hello.epoch or 1)))

    site.script, site.on_fault = take, faults.put_nowait
    await next_hello(site)
    async with asyncio.timeout(10):
        while not site.sender.connected:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        site.sender.revoke(Revocations(names=["process-server:ps"]))
        assert (await faults.get()).code == CertificateRevokedError.code
        while not isinstance(site.sender.problem, CertificateRevokedError):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert site.hellos.empty()
    site.sender.revoke(Revocations(serials=["1"]))
    await next_hello(site)


@pytest.mark.parametrize("lie", ["seq", "digest", "claim"])
async def test_a_process_server_that_stands_elsewhere_moves_nothing_of_the_ring(site: Site, lie: str) -> None:
    async def welcome_all(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(welcome(hello.epoch or 3)))

    site.script = welcome_all
    assert (await next_hello(site)).epoch == 0
    async with asyncio.timeout(10):
        first = await site.batches.get()
    said = replace(
        welcome(3), spooled=first.batch.number, spooled_seq=first.batch.end_seq, spooled_digest=first.digest
    )
    lies = {
        "seq": replace(said, spooled_seq=said.spooled_seq + 1000),
        "digest": replace(said, spooled_digest=bytes(range(16))),
        "claim": replace(said, claim=eid(3, life=2).claim),
    }

    async def welcome_elsewhere(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(lies[lie]))
        site.script = hang_up

    freed = site.ring.consumer_seq
    site.script = welcome_elsewhere
    site.hang_up()
    again, after = await next_hello(site), await next_hello(site)
    assert again.epoch_id == eid(3)
    assert (after.epoch, after.seen) == ((3, 3) if lie == "claim" else (0, 3))
    assert site.ring.consumer_seq == freed
    assert site.ring.read_seq <= site.ring.producer_seq


async def test_a_process_server_that_is_away_is_turned_from_and_gone_back_to_when_it_answers(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_S", 0.5)
    monkeypatch.setattr(servers, "BACK_S", 0.5)
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    address = "127.0.0.1", free_port()

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(welcome(hello.epoch or 1)))

    async with serving(device, tmp_path, pin_dir, [address]) as second:
        second.script = take
        await next_hello(second)
        assert second.sender.server != "{}:{}".format(*address)
        first = Site(second.state, second.ring)
        first.script, first.sessions = take, second.sessions
        async with await asyncio.start_server(first.serve, *address, ssl=second.context):
            assert (await next_hello(first)).epoch == 1, "the epoch went on at the second"
            assert second.sender.server == "{}:{}".format(*address)
    detach(pin_dir)
    assert (first.most, second.most) == (1, 1), "two sessions at once"


@pytest.mark.parametrize("comes", [True, False])
async def test_it_goes_back_only_when_all_that_the_ring_does_not_hold_is_in_storage(
    monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """The first one never had it, and could not go on with the epoch."""
    monkeypatch.setattr(sender_module, "UPLOAD_LOOK_S", 0.0)
    flushes: list[int] = []

    def flush() -> None:
        flushes.append(len(flushes))
        sending._state.is_freed_too_early = not (comes and len(flushes) > 100)

    sending: Any = SimpleNamespace(_state=SimpleNamespace(is_freed_too_early=True), flush=flush)
    seconds = 60.0 if comes else 0.01
    assert await Sender._nothing_is_freed_too_early(sending, seconds) is comes
    assert flushes


@pytest.mark.parametrize("who", ["uploads when it is asked", "never uploads", "is away"])
async def test_one_that_is_named_no_more_has_the_stream_until_all_is_in_storage_or_waiting_helps_no_more(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """What the ring does not hold any more lies there alone: the next one could not go on with the epoch."""
    monkeypatch.setattr(sender_module, "UPLOAD_LOOK_S", 0.01)
    monkeypatch.setattr(sender_module, "RESTARTS_S", 0.5)
    monkeypatch.setattr(servers, "PATIENCE_S", 0.5)
    if who == "never uploads":
        monkeypatch.setattr(sender_module, "LEAVE_S", 1.0)
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    address = "127.0.0.1", free_port()
    lies_there = replace(welcome(1), spooled=5, spooled_digest=b"d" * 16, spooled_seq=0)

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(lies_there))

    def upload(wire: Connection, writer: asyncio.StreamWriter) -> None:
        if who == "uploads when it is asked":
            writer.writelines(
                wire.send_ack(Ack(spooled=5, spooled_seq=0, uploaded=5, uploaded_seq=0, credit_b=0))
            )

    def begin(state: AgentState) -> None:
        state.begin_epoch(eid(1))
        state.cut(5, b"d" * 16, 0)
        state[Word.FREED] = 5
        state.uploaded(3)

    async with serving(device, tmp_path, pin_dir, [address], is_named=False, begin=begin) as left:
        left.script = hang_up if who == "is away" else take
        left.on_flush = upload
        new = Site(left.state, left.ring)
        new.script, new.sessions = take, left.sessions
        async with await asyncio.start_server(new.serve, *address, ssl=left.context):
            hello = await next_hello(new)
        assert (hello.epoch, new.state.is_freed_too_early) == (1, who != "uploads when it is asked")
        assert left.sender.server == "{}:{}".format(*address)
        assert left.sender._servers.is_elsewhere is False, "it is come back to"
        assert left.hellos.qsize() >= 1, "the new one had the stream first"
    detach(pin_dir)


def write_blocks(device: str, blocks: int) -> None:
    """Each a write of its own."""
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            for block in range(blocks):
                os.pwrite(fd, page, block * 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_an_ack_that_comes_behind_the_look_that_lets_the_stream_leave_costs_no_epoch(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """`turns`: of the event loop, so long before the session is over it arrives. Behind a ring that is half full it would free what nobody
    else has."""
    monkeypatch.setattr(sender_module, "UPLOAD_LOOK_S", 0.01)
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    address = "127.0.0.1", free_port()
    lies_there = replace(welcome(1, 1 << 26), spooled=5, spooled_digest=b"d" * 16, spooled_seq=0)
    held: list[tuple[Connection, asyncio.StreamWriter]] = []

    def ack(spooled: int, seq: int) -> None:
        for wire, writer in held:
            frame = Ack(spooled=spooled, spooled_seq=seq, uploaded=5, uploaded_seq=0, credit_b=1 << 26)
            writer.writelines(wire.send_ack(frame))

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        held.append((wire, writer))
        writer.writelines(wire.send_welcome(lies_there))
        await asyncio.to_thread(write_blocks, device, 200)

    async def take_next(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(replace(lies_there, epoch=hello.epoch or 2)))

    def begin(state: AgentState) -> None:
        state.begin_epoch(eid(1))
        state.cut(5, b"d" * 16, 0)
        state[Word.FREED] = 5
        state.uploaded(3)

    async with serving(device, tmp_path, pin_dir, [address], is_named=False, begin=begin) as left:
        left.script = take
        look = Sender._nothing_is_freed_too_early

        async def looking(sender: Sender, seconds: float) -> bool:
            await until(lambda: not left.batches.empty() and left.ring.used_b * 2 >= left.ring.size_b)
            ack(5, 0)
            assert await look(sender, seconds)
            sent = left.batches._queue[-1].batch  # type: ignore[attr-defined]
            ack(sent.number, sent.end_seq)
            for _ in range(turns - 1):
                await asyncio.sleep(0)
            assert not left.state.is_freed_too_early
            return True

        monkeypatch.setattr(Sender, "_nothing_is_freed_too_early", looking)
        new = Site(left.state, left.ring)
        new.script, new.sessions = take_next, left.sessions
        async with await asyncio.start_server(new.serve, *address, ssl=left.context):
            hello = await next_hello(new)
            assert (hello.epoch, left.state.is_freed_too_early) == (1, False)
    detach(pin_dir)


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_a_welcome_that_comes_behind_the_look_that_lets_the_stream_leave_costs_no_epoch(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """`turns`: of the event loop, so long before the look it was sent. The session with the one that is left only begins then."""
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    address = "127.0.0.1", free_port()
    stored = replace(welcome(1, 1 << 26), spooled=4, spooled_digest=b"d" * 16, spooled_seq=0, uploaded=4)
    more = replace(stored, spooled=5, spooled_digest=b"e" * 16)
    greeted: asyncio.Future[tuple[Connection, asyncio.StreamWriter]] = asyncio.Future()

    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(write_blocks, device, 200)
        greeted.set_result((wire, writer))

    async def take_next(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(replace(stored, epoch=hello.epoch or 2)))

    def begin(state: AgentState) -> None:
        state.begin_epoch(eid(1))
        state.cut(4, b"d" * 16, 0)
        state.cut(5, b"e" * 16, 0)
        state[Word.FREED] = 4
        state.uploaded(4)

    async def looking(sender: Sender, seconds: float) -> bool:
        wire, writer = await greeted
        assert left.ring.used_b * 2 >= left.ring.size_b
        writer.writelines(wire.send_welcome(more))
        for _ in range(turns - 1):
            await asyncio.sleep(0)
        assert not left.state.is_freed_too_early
        return True

    async with serving(device, tmp_path, pin_dir, [address], is_named=False, begin=begin) as left:
        left.script = take
        monkeypatch.setattr(Sender, "_nothing_is_freed_too_early", looking)
        new = Site(left.state, left.ring)
        new.script, new.sessions = take_next, left.sessions
        async with await asyncio.start_server(new.serve, *address, ssl=left.context):
            hello = await next_hello(new)
            assert (hello.epoch, left.state.is_freed_too_early) == (1, False)
    detach(pin_dir)


@pytest.mark.parametrize("lies_there_alone", [True, False])
async def test_one_that_may_be_restarted_is_waited_for_where_another_could_not_go_on_with_the_epoch(
    monkeypatch: pytest.MonkeyPatch, lies_there_alone: bool
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_S", 0.0)
    turning: Any = SimpleNamespace(
        _state=SimpleNamespace(is_freed_too_early=lies_there_alone), may_restart=True, connected=False,
        _servers=servers.ProcessServers([("a", 1), ("b", 1)], 0.0), server="", _opened_at=0.0,
    )  # fmt: skip
    for turning.may_restart in (True, False):
        Sender._turn_elsewhere(turning, UnreachableError("away"))
        stays = lies_there_alone and turning.may_restart
        assert turning._servers.is_elsewhere is not stays
        if not stays:
            break


async def test_an_agent_that_ran_before_has_left_word_with_which_process_server(site: Site) -> None:
    async def take(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_welcome(welcome(hello.epoch or 1, 1 << 26)))

    here = site.sender.address
    assert here is not None
    site.script = take
    await next_hello(site)
    async with asyncio.timeout(10):
        await site.batches.get()
    assert site.state.last_server([("another", 9443), here]) == here
    assert site.state.last_server([("another", 9443)]) == here, "it may be named no more by now"
    assert AgentState(site.state._words).last_server([("another", 9443)]) is None, (
        "an older agent had no words for it"
    )
    site.state.forget_older_declared()
    assert site.state.last_server([here]) == here
    site.state.want_epoch(Reason.MANUAL)
    assert site.state.last_server([here]) is None, "whoever is preferred can have the new epoch"


async def test_whoever_is_refused_as_a_copy_turns_to_no_other_process_server(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_S", 0.0)
    pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    address = "127.0.0.1", free_port()

    async def refuse(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
        writer.writelines(wire.send_fault(Fault(code=CopyRefusedError.code, what="a copy")))
        writer.close()

    async with serving(device, tmp_path, pin_dir, others=[address]) as first:
        first.script = refuse
        second = Site(first.state, first.ring)
        async with await asyncio.start_server(second.serve, *address, ssl=first.context):
            for _ in range(5):
                await next_hello(first)
                first.sender.hurry()
    detach(pin_dir)
    assert second.hellos.empty()

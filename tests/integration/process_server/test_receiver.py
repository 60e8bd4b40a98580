"""The receiver over real TLS on loopback, with a machine log in memory."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from process_server.reception import session as sessions
from process_server.reception.credit import MIB, CacheSpace, CreditPolicy
from process_server.reception.machine import Machine
from process_server.reception.pace import Pace
from process_server.reception.receiver import Receiver
from shared.api.certificates import Revocations
from shared.batch import Buffer, StreamState
from shared.errors import (
    CacheQuotaError,
    CertificateRevokedError,
    ListenError,
    SpoolFullError,
    StoppingError,
    StorageForgotError,
    SupersededError,
    TooManyHellosError,
    WrongRoleError,
)
from shared.trust import tls
from shared.wire import frames
from shared.wire import transport as channels
from shared.wire.frames import FrameType
from shared.wire.protocol import Connection, Faulted
from tests.receiver_site import Site
from tests.wire_parts import DISKS, Agent, Chain, hello, until

ContextOf = Callable[..., ssl.SSLContext]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.start()
    yield site
    await site.receiver.stop()


async def test_batches_reach_the_log_unchanged_and_are_acknowledged(site: Site) -> None:
    async with site.agent() as agent:
        welcome = await agent.open(hello())
        assert (welcome.epoch, welcome.spooled, welcome.credit_b) == (1, 0, MIB)
        chain = Chain.after(welcome)
        sent = [chain.next(sectors=8 * n) for n in range(1, 20)]
        for batch in sent:
            await agent.send(batch)
        ack = await agent.acked(19)
        assert ack.spooled_seq == 19
    assert site.log().durable == {b.number: b"".join(b.parts) for b in sent}


async def test_where_the_config_server_is_is_told_where_a_session_begins_and_sessions_begin_anew_for_it(
    site: Site,
) -> None:
    async with site.agent() as agent:
        assert (await agent.open(hello())).control == b""
        telling = asyncio.create_task(site.receiver.tell(b"signed"))
        assert (await agent.expect(Faulted)).fault.code == StoppingError.code
    await telling
    async with site.agent() as agent:
        assert (await agent.open(hello())).control == b"signed"


async def test_an_ack_is_not_sent_before_append_has_returned(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log = site.log()
        log.gate.clear()
        await agent.send(chain.next())
        await agent.send(chain.next())
        await until(lambda: log.running == 2)
        site.admission.refresh()
        # An answer to a duplicate is an Ack too: it must not run ahead either.
        first = Chain.after(agent.wire.welcome) if agent.wire.welcome else chain
        again = first.next()
        agent.write([frames.header(FrameType.BATCH, again.size_b), *filter(len, again.parts)])
        assert (await agent.acked(0)).spooled == 0
        log.gate.set()
        assert (await agent.acked(2)).spooled == 2


async def test_uploads_are_acknowledged_as_the_log_reports_them(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        await agent.send(chain.next())
        assert (await agent.acked(1)).uploaded == 0
        site.log().upload()
        ack = await agent.acked(1, uploaded=1)
        assert ack.uploaded_seq == 1


async def test_an_upload_that_overtakes_its_append_is_acknowledged_with_it(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log = site.log()
        log.return_gate.clear()
        await agent.send(chain.next())
        await until(lambda: log.position.spooled == 1)
        log.upload()
        site.admission.refresh()
        await asyncio.sleep(0)
        assert site.admission.machines["lab"].connected
        log.return_gate.set()
        ack = await agent.acked(1)
        assert (ack.spooled, ack.uploaded) == (1, 1)


async def test_flush_waits_for_what_came_before_it(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log = site.log()
        log.gate.clear()
        await agent.send(chain.next())
        agent.write(agent.wire.send_flush())
        await log.begun.wait()
        assert log.flushes == 0
        log.gate.set()
        await agent.acked(1, uploaded=1)
        assert log.flushes == 1


async def test_flushes_without_end_are_one_and_then_one_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = site.log()
    away = asyncio.Event()

    async def flush() -> None:
        log.flushes += 1
        await away.wait()

    monkeypatch.setattr(log, "flush", flush)
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        agent.write(agent.wire.send_flush() * 5000)
        await agent.send(chain.next())
        await agent.acked(1)  # so all of them have come
        session = site.admission.machines["lab"].session
        assert session is not None
        assert (log.flushes, len(session._tasks)) == (1, 1)
        away.set()
        await until(lambda: not session._flushing)
        assert log.flushes == 2


async def test_tiny_batches_within_the_credit_are_a_bounded_number_of_tasks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_IN_FLIGHT", 10)
    log = site.log()
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log.gate.clear()
        agent._writer.transport.set_write_buffer_limits(high=1 << 30)
        for _ in range(240):
            await agent.send(chain.next())
        session = site.admission.machines["lab"].session
        assert session is not None
        await until(lambda: session.channel._paused)
        # What had been read at once is taken, nothing after it.
        assert len(session._in_flight) < 200
        log.gate.set()
        await agent.acked(240)


async def test_pings_and_batches_whose_answers_are_not_read_are_answered_once_when_they_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        session = site.admission.machines["lab"].session
        assert session is not None
        channel, send = session.channel, session.channel.send
        sent: list[Sequence[Buffer]] = []

        def noted(buffers: Sequence[Buffer]) -> None:
            sent.append(buffers)
            send(buffers)

        monkeypatch.setattr(channel, "send", noted)
        channel.pause_writing()  # as asyncio does when the peer does not read
        for number in range(1, 100):
            agent.write(agent.wire.send_ping(ask=number))
            await agent.send(chain.next())
        await until(lambda: site.log().position.spooled == 99 and not session._in_flight)
        assert sent == []
        channel.resume_writing()
        assert sent == [Connection.send_ping(channel.wire, answer=99)]
        await agent.acked(99)


async def test_a_machine_that_says_hello_without_end_is_told_when_the_next_one_is_taken(site: Site) -> None:
    now_s = site.admission.clock()
    site.admission.clock = lambda: now_s
    site.admission._hellos = Pace(2, 0.5)
    for _ in range(2):
        async with site.agent() as agent:
            await agent.open(hello())
    asked = len(site.opened)
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello()))
        fault = await agent.fault()
        assert (fault.code, fault.retry_after_s) == (TooManyHellosError.code, 2.0)
    async with site.agent("other") as agent:
        await agent.open(hello("other"))
    now_s += 2.0
    async with site.agent() as agent:
        await agent.open(hello())
    assert len(site.opened) == asked + 1  # `other`; of the machine it was open


async def test_whoever_is_refused_is_refused_at_a_pace_and_in_few_lines(site: Site) -> None:
    """Revoked, another machine's, of another role, or with bytes that are no HELLO: each as often as it likes."""
    now_s = site.admission.clock()
    site.admission.clock = lambda: now_s
    site.admission._hellos = Pace(2, 0.5)
    site.receiver.revoke(Revocations(names=["agent:stolen"]))
    with capture_logs() as lines:
        for name, machine in (
            ("agent:stolen", "stolen"),
            ("agent:other", "lab"),
            ("process-server:ps9", "lab"),
        ):
            told = []
            for _ in range(4):
                async with Agent.connect(site.receiver.port, site.context(name)) as agent:
                    agent.write(agent.wire.send_hello(hello(machine)))
                    told.append((await agent.fault()).code)
                    await agent.close()
            refused = CertificateRevokedError if machine == "stolen" else WrongRoleError
            assert told == [refused.code] * 2 + [TooManyHellosError.code] * 2
        for said in (b"garbage" * 9, b""):
            for _ in range(3):
                async with Agent.connect(site.receiver.port, site.context("agent:stolen")) as agent:
                    agent.write([said])
                    await agent.close()
        async with site.agent() as agent:
            await agent.open(hello())
        await until(lambda: not site.receiver._sessions)
    warnings = [
        (line["peer"], line["code"]) for line in lines if line["log_level"] != "debug" and "peer" in line
    ]
    assert len(warnings) == len(set(warnings)) == 7
    assert {line["event"] for line in lines if line.get("peer") is None and line["log_level"] != "debug"} == {
        "session opened", "session ended",
    }  # fmt: skip


async def test_a_broken_connection_loses_nothing_and_the_next_session_goes_on(site: Site) -> None:
    log = site.log()
    async with site.agent() as agent:
        welcome = await agent.open(hello())
        chain = Chain.after(welcome)
        await agent.send(chain.next())
        await agent.acked(1)
        log.gate.clear()
        log.begun.clear()
        await agent.send(chain.next())
        await log.begun.wait()
        agent.cut()
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello(epoch=1, last_sent=2)))
        await until(
            lambda: site.admission.machines["lab"].newest is not site.admission.machines["lab"].session
        )
        assert log.running == 1
        log.gate.set()
        # The batch that was on its way counts: the position is exact.
        welcome = await agent.open_rest()
        assert welcome.spooled == 2
        await agent.send(Chain.after(welcome).next())
        await agent.acked(3)
    assert sorted(log.durable) == [1, 2, 3]


async def test_a_new_session_closes_the_old_one_before_it_is_welcomed(site: Site) -> None:
    log = site.log()
    async with site.agent() as old, site.agent() as new:
        chain = Chain.after(await old.open(hello()))
        log.gate.clear()
        await old.send(chain.next())
        await log.begun.wait()
        new.write(new.wire.send_hello(hello(epoch=1, last_sent=1)))
        assert (await old.fault()).code == SupersededError.code
        # What the old agent sends after that goes nowhere.
        late = chain.next()
        old.write([frames.header(FrameType.BATCH, late.size_b), *filter(len, late.parts)])
        log.gate.set()
        assert (await new.open_rest()).spooled == 1
        await old.close()
        assert sorted(log.durable) == [1]


async def test_of_many_waiting_sessions_only_the_newest_is_welcomed(site: Site) -> None:
    log = site.log()
    log.begin_gate.clear()
    async with site.agent() as a, site.agent() as b, site.agent() as c:
        sessions = []
        for agent in (a, b, c):
            agent.write(agent.wire.send_hello(hello()))
            await until(lambda: len(site.admission.machines) == 1)
            machine = site.admission.machines["lab"]
            await until(lambda: machine.newest is not None and machine.newest not in sessions)  # noqa: B023
            sessions.append(machine.newest)
        log.begin_gate.set()
        assert (await c.open_rest()).spooled == 0
        assert (await b.fault()).code == SupersededError.code
        assert (await a.fault()).code == SupersededError.code
    assert site.opened == ["lab"]


async def test_an_agent_that_comes_and_goes_while_its_log_hangs_leaves_nothing_behind(site: Site) -> None:
    asked: list[str] = []
    really = site.admission._check_side

    async def check_side(machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
        asked.append(machine)
        return await really(machine, identity, claim=claim, surely=surely)

    site.admission._check_side = check_side
    site.log().begin_gate.clear()
    site.admission.machines["lab"] = Machine("lab", site.policy)
    for _ in range(5):
        async with site.agent() as agent:
            agent.write(agent.wire.send_hello(hello()))
            await until(
                lambda: any(s is site.admission.machines["lab"].newest for s in site.receiver._sessions)
            )
        await until(lambda: not site.receiver._sessions)
    await until(lambda: at_work() == 1)
    at_rest = len(asked)
    site.log().begin_gate.set()
    await until(lambda: at_work() == 0)
    assert len(asked) == at_rest, "nobody asks storage for a session that is over"
    async with site.agent() as agent:
        assert (await agent.open(hello())).epoch == 2


async def test_machines_do_not_wait_for_one_another(site: Site) -> None:
    site.log("slow").gate.clear()
    async with site.agent("slow") as slow, site.agent("quick") as quick:
        await slow.send(Chain.after(await slow.open(hello("slow"))).next())
        await quick.send(Chain.after(await quick.open(hello("quick"))).next())
        await quick.acked(1)
        assert site.log("slow").running == 1
        site.log("slow").gate.set()
        await slow.acked(1)


async def test_an_agent_may_only_speak_for_its_own_machine(site: Site) -> None:
    async with site.agent("evil") as agent:
        agent.write(agent.wire.send_hello(hello("lab")))
        fault = await agent.fault()
        assert fault.code == WrongRoleError.code
        assert "agent:lab" in fault.cause
        await agent.close()
    assert site.opened == []


@pytest.mark.parametrize("role", ["master-target:lab", "operator", "agent:lab2"])
async def test_no_other_role_may_send(site: Site, role: str) -> None:
    context = tls.client_context(site.ca.issue(role))
    async with Agent.connect(site.receiver.port, context) as agent:
        agent.write(agent.wire.send_hello(hello("lab")))
        assert (await agent.fault()).code == WrongRoleError.code


async def test_an_error_at_begin_is_told_and_the_next_session_may_succeed(site: Site) -> None:
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello(epoch=7)))
        fault = await agent.fault()
        assert fault.new_epoch
    problem = site.admission.machines["lab"].problem
    assert problem is not None
    assert problem.code == fault.code
    async with site.agent() as agent:
        await agent.open(hello())
        assert site.admission.machines["lab"].problem is None


async def test_a_server_that_is_ahead_of_the_agent_asks_for_a_new_epoch(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        for _ in range(3):
            await agent.send(chain.next())
        await agent.acked(3)
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello(epoch=1, last_sent=2)))
        assert (await agent.fault()).new_epoch


async def test_a_full_cache_disk_is_told_and_nothing_is_lost(site: Site) -> None:
    log = site.log()
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        first, second, third = chain.next(), chain.next(), chain.next()
        log.fail_from = (2, SpoolFullError("The cache disk is full", cause="ENOSPC"))
        log.gate.clear()
        for batch in (first, second, third):
            await agent.send(batch)
        await until(lambda: log.running == 3)
        with capture_logs() as lines:
            log.gate.set()
            fault = await agent.fault()
        assert fault.code == SpoolFullError.code
        assert not fault.new_epoch
        assert fault.action
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert [(line["event"], line["code"], line["machine"]) for line in warnings] == [
        ("session failed", SpoolFullError.code, "lab")
    ]
    log.fail_from = None
    async with site.agent() as agent:
        assert (await agent.open(hello(epoch=1, last_sent=3))).spooled == 1
        for batch in (second, third):
            await agent.send(batch)
        await agent.acked(3)
    assert sorted(log.durable) == [1, 2, 3]


async def test_storage_that_forgot_asks_for_a_new_epoch(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        site.log().fail_from = (1, StorageForgotError("Epoch 1 of lab has a hole"))
        await agent.send(chain.next())
        assert (await agent.fault()).new_epoch


async def test_a_log_that_fails_while_nothing_is_sent_is_told_too(site: Site) -> None:
    async with site.agent() as agent:
        await agent.open(hello())
        log = site.log()
        log.failure = StorageForgotError("Epoch 1 of lab has a hole")
        assert log.on_change is not None
        log.on_change()
        assert (await agent.fault()).new_epoch


async def test_a_bug_in_the_log_ends_the_session_and_not_the_server(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        site.log().fail_from = (1, ZeroDivisionError())
        with capture_logs() as lines:
            await agent.send(chain.next())
            assert (await agent.fault()).code == "US000"
        assert [line for line in lines if line.get("exc_info")]
    site.log().fail_from = None
    async with site.agent() as agent:
        await agent.open(hello(epoch=1, last_sent=1))


async def test_a_used_up_quota_takes_the_credit_away_until_room_is_made(site: Site) -> None:
    log = site.log()
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log.pending_b = 64 * MIB
        with capture_logs() as lines:
            await agent.send(chain.next())
            assert (await agent.acked(1)).credit_b == 0
        assert [line["code"] for line in lines] == [CacheQuotaError.code]
        assert not agent.wire.may_send(1)
        gate = site.admission.machines["lab"].gate
        assert isinstance(gate.problem, CacheQuotaError)
        assert gate.credit_b == 0
        log.upload()
        ack = await agent.acked(1, uploaded=1)
        while ack.credit_b == 0:
            ack = await agent.acked(1)
        assert gate.problem is None


async def test_a_cache_that_fills_up_stops_the_agent_and_freeing_it_lets_it_go_on(site: Site) -> None:
    async with site.agent() as agent:
        await agent.open(hello())
        site.space = CacheSpace(total_b=1 << 40, free_b=0)
        assert (await agent.acked(0)).credit_b == 0
        site.space = CacheSpace(total_b=1 << 40, free_b=1 << 40)
        assert (await agent.acked(0)).credit_b == MIB


async def test_an_agent_that_ignores_its_credit_costs_no_memory(site: Site) -> None:
    log = site.log()
    log.keep = False
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log.gate.clear()
        total = 0
        transport = agent._writer.transport
        transport.set_write_buffer_limits(high=1 << 30)
        for _ in range(30):
            batch = chain.next(sectors=4096)
            total += batch.size_b
            agent.write([frames.header(FrameType.BATCH, batch.size_b), *filter(len, batch.parts)])
        session = site.admission.machines["lab"].session
        assert session is not None
        await until(lambda: session.channel._paused)
        assert session._in_flight_b < MIB + frames.MAX_BATCH_B + 3 * MIB < total
        log.gate.set()
        await until(lambda: log.position.spooled == 30)


async def test_ordered_uploads_are_reported_with_their_time(site: Site) -> None:
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        await agent.send(chain.next())
        await agent.send(chain.next(state=StreamState.CATCHING_UP))
        await agent.acked(2)
        machine = site.admission.machines["lab"]
        assert machine.ordered_captured_ns == 0
        site.log().upload()
        await agent.acked(2, uploaded=2)
        assert (machine.ordered_captured_ns, machine.connected) == (1, True)


async def test_a_stop_makes_durable_and_acknowledges_what_came(site: Site) -> None:
    log = site.log()
    async with site.agent() as agent:
        chain = Chain.after(await agent.open(hello()))
        log.gate.clear()
        await agent.send(chain.next())
        await log.begun.wait()
        stopping = asyncio.create_task(site.receiver.stop())
        await until(lambda: site.receiver._door is not None and site.receiver._door._sock.fileno() < 0)
        log.gate.set()
        await agent.acked(1)
        fault = await agent.fault()
        assert fault.code == StoppingError.code
        await agent.close()
        await stopping
    assert sorted(log.durable) == [1]


async def test_a_port_in_use_is_a_clear_error(site: Site) -> None:
    context = tls.server_context(site.ca.issue("process-server:ps2"))
    second = Receiver(("127.0.0.1", site.receiver.port), context, site.admission)
    with pytest.raises(ListenError) as caught:
        await second.start()
    assert str(site.receiver.port) in str(caught.value)
    assert caught.value.exit_code == 2


async def test_both_ends_ping_when_there_is_nothing_to_say(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings = 0

    def counted(self: Connection) -> list[bytes]:
        nonlocal pings
        pings += 1
        return original(self)  # type: ignore[return-value]

    original = Connection.send_ping
    monkeypatch.setattr(Connection, "send_ping", counted)
    async with site.agent() as agent:
        await agent.open(hello())
        agent.write(original(agent.wire))
        monkeypatch.setattr(channels, "PING_S", 0.0)
        session = site.admission.machines["lab"].session
        assert session is not None
        session.channel._keep_alive()
        assert pings == 1
        batch = Chain().next()
        await agent.send(batch)
        await agent.acked(1)  # the ping before it was understood


async def test_a_silent_agent_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.agent() as agent:
        await agent.open(hello())
        session = site.admission.machines["lab"].session
        assert session is not None
        monkeypatch.setattr(session.channel, "_heard_at", session.channel._heard_at - channels.SILENCE_S)
        with capture_logs() as lines:
            session.channel._keep_alive()
        assert [line["code"] for line in lines] == ["US453"]
        await session.channel.closed.wait()
    assert not site.admission.machines["lab"].connected


async def test_time_in_which_nothing_was_read_is_not_silence(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.agent() as agent:
        await agent.open(hello())
        session = site.admission.machines["lab"].session
        assert session is not None
        session.channel.pause_reading()
        monkeypatch.setattr(session.channel, "_heard_at", session.channel._heard_at - channels.SILENCE_S)
        session.channel._keep_alive()
        session.channel.resume_reading()
        session.channel._keep_alive()
        assert session.connected


async def test_a_peer_that_says_nothing_after_the_handshake_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "HELLO_S", 0.0)
    async with site.agent() as agent:
        assert (await agent.fault()).code == "US453"


def test_the_magic_of_a_frame_is_no_tls_record() -> None:
    # Plain wire on the TLS port must fail in the handshake, and TLS bytes on the wire must fail as a frame.
    assert frames.MAGIC[0] not in (20, 21, 22, 23)
    assert struct.calcsize("<4sBBHI") + 4 == frames.HEADER_SIZE


class SlowSides:
    """One question for the active side, the first unless `after` others, is answered when it is told to."""

    def __init__(self, site: Site, after: int = 0) -> None:
        self._ask = site.admission._check_side
        self._after = after
        site.admission._check_side = self
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.claims: list[str] = []
        """The identities for which the name was claimed."""

    async def __call__(self, machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
        self._after -= 1
        if self._after == -1:
            self.asked.set()
            await self.answer.wait()
        if claim:
            self.claims.append(identity)
        return await self._ask(machine, identity, claim=claim, surely=surely)


def at_work() -> int:
    """HELLOs that are neither admitted nor refused."""
    return sum(task.get_name().startswith("begin ") for task in asyncio.all_tasks())


@pytest.mark.parametrize("first", ["is gone", "waits"])
async def test_a_hello_for_which_storage_was_slow_does_nothing_to_the_session_of_a_later_one(
    site: Site, first: str
) -> None:
    """The agent gave the first one up, whether or not that was noticed, was rebooted, and came again: it is no copy of itself."""
    slow = SlowSides(site)
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello(identity="lab", boot="1/a")))
        await slow.asked.wait()
        if first == "is gone":
            agent.cut()
            await until(lambda: not [one for one in site.receiver._sessions if one.waiting])
        async with site.agent() as later:
            welcome = await later.open(hello(identity="lab", boot="2/a"))
            slow.answer.set()
            if first == "waits":
                assert (await agent.fault()).code == SupersededError.code
            await until(lambda: not at_work())
            chain = Chain.after(welcome)
            await later.send(chain.next())
            await later.acked(1)
    assert site.admission.copies == {}


@pytest.mark.parametrize("after", range(3))
async def test_who_is_gone_when_storage_answers_claims_no_name_and_asks_nothing_more(
    site: Site, after: int
) -> None:
    """A clone that was switched off meanwhile, say. The name is taken by whoever is there, at the second of three questions."""
    slow = SlowSides(site, after)
    async with site.agent() as clone:
        clone.write(clone.wire.send_hello(hello(identity="clone")))
        await slow.asked.wait()
        clone.cut()
        await until(lambda: not site.receiver._sessions)
    slow.answer.set()
    await until(lambda: not at_work())
    assert (slow._after, slow.claims) == (-1, ["clone"] if after == 2 else [])
    assert site.opened == []
    async with site.agent() as agent:
        await agent.open(hello(identity="original"))


async def test_who_is_revoked_while_storage_is_asked_gets_no_session(site: Site) -> None:
    slow = SlowSides(site)
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(hello()))
        await slow.asked.wait()
        site.admission.revoked = Revocations(names=["agent:lab"])  # and it is not among the sessions yet
        slow.answer.set()
        assert (await agent.fault()).code == CertificateRevokedError.code
    assert site.opened == []


async def test_a_receiver_that_is_stopped_as_it_starts_gives_its_port_back(site: Site) -> None:
    context = tls.server_context(site.ca.issue("process-server:ps2"))
    second = Receiver(("127.0.0.1", 0), context, site.admission)
    await second.start()
    port = second.port
    await second.stop()
    third = Receiver(("127.0.0.1", port), context, site.admission)
    await third.start()
    await third.stop()


async def test_who_names_thousands_of_disks_has_no_more_of_the_cache_than_a_machine_can_have(
    site: Site,
) -> None:
    site.admission._policy = CreditPolicy(window_b=1 << 40, quota_per_disk_b=MIB)
    disks = tuple(replace(DISKS[0], number=number, name=f"d{number}") for number in range(5000))
    many = replace(hello(), disks=disks, reason="r" * 20_000)
    with capture_logs() as lines:
        async with site.agent() as agent:
            assert (await agent.open(many)).credit_b == 64 * MIB
    assert all(len(str(line)) < 3000 for line in lines)

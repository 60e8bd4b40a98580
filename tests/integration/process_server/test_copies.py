"""Copies of a machine at the receiver: refused by name, and the machine itself does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from process_server.reception import admission, boots
from process_server.spool.sides import Sides
from process_server.standing import Standing
from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import (
    CopyRefusedError,
    IntegrityError,
    MachineAwaitedError,
    SupersededError,
    TransientError,
)
from shared.host import durable
from shared.log import names
from shared.machine import active_side
from shared.machine.active_side import ActiveSide, Direction
from shared.machine.storage import MachineStorage
from shared.wire import transport
from shared.wire.messages import Fault, Hello
from tests.azurite import Azurite, in_one
from tests.epoch_ids import eid
from tests.receiver_site import Site
from tests.wire_parts import Agent, Chain, hello, until


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    site.active = ActiveSide(machine="lab", generation=1, identity="original", changed_ns=0, claim="")
    await site.start()
    yield site
    await site.receiver.stop()


@contextlib.asynccontextmanager
async def answering(agent: Agent) -> AsyncIterator[None]:
    """The agent reads, so it answers pings, until the end."""
    reading = asyncio.create_task(agent.listen())
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_another_identity_is_refused_and_nothing_is_taken(site: Site) -> None:
    async with site.agent() as original, site.agent() as copy:
        chain = Chain.after(await original.open(hello(identity="original", boot="1")))
        copy.write(copy.wire.send_hello(hello(identity="clone", boot="2")))
        fault = await copy.fault()
        assert (fault.code, fault.retry_after_s) == (CopyRefusedError.code, 60.0)
        assert "clone" in fault.cause
        assert "original" in fault.cause
        await original.send(chain.next())
        await original.acked(1)
    assert site.log().position.epoch == 1
    assert site.opened == ["lab"]
    assert site.admission.machines["lab"].problem is None
    assert site.admission.copies["lab"].error.code == CopyRefusedError.code


async def test_a_copy_with_the_same_identity_is_refused_while_the_machine_answers(site: Site) -> None:
    async with site.agent() as original, site.agent() as copy:
        chain = Chain.after(await original.open(hello(identity="original", boot="1")))
        async with answering(original):
            copy.write(copy.wire.send_hello(hello(identity="original", boot="2")))
            assert (await copy.fault()).code == CopyRefusedError.code
        await original.send(chain.next())
        await original.acked(1)
    assert site.log().position.epoch == 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(site: Site) -> Clock:
    """The receiver's, which stands still unless it is moved."""
    clock = Clock()
    site.admission.clock = clock
    return clock


async def refused(site: Site, message: Hello) -> Fault:
    async with site.agent() as agent:
        agent.write(agent.wire.send_hello(message))
        return await agent.fault()


async def welcomed(site: Site, message: Hello) -> int:
    """The epoch; the session is over then."""
    async with site.agent() as agent:
        epoch = (await agent.open(message)).epoch
    await until(lambda: not site.admission.machines["lab"].connected)
    return epoch


ORIGINAL, COPY = "11111111/a", "22222222/b"


async def test_a_moment_without_a_session_is_not_enough_for_a_copy_with_the_same_identity(
    site: Site, clock: Clock
) -> None:
    assert await welcomed(site, hello(identity="original", boot=ORIGINAL)) == 1
    fault = await refused(site, hello(identity="original", boot=COPY))
    assert (fault.code, fault.retry_after_s) == (MachineAwaitedError.code, boots.KEEP_S)
    assert "another boot" in fault.cause
    for _ in range(3):  # it comes and goes
        clock.now_s += boots.KEEP_S - 1
        assert await welcomed(site, hello(epoch=1, identity="original", boot=ORIGINAL)) == 1
        assert (await refused(site, hello(identity="original", boot=COPY))).code == MachineAwaitedError.code
    assert site.log().position.epoch == 1
    assert site.admission.copies == {}, "a machine that was rebooted is told the same, and is no copy"


async def test_a_machine_that_was_rebooted_is_taken_once_its_last_boot_had_time_to_come_back(
    site: Site, clock: Clock
) -> None:
    await welcomed(site, hello(identity="original", boot=ORIGINAL))
    clock.now_s += boots.KEEP_S
    assert await welcomed(site, hello(identity="original", boot=COPY)) == 2
    fault = await refused(site, hello(epoch=1, identity="original", boot=ORIGINAL))
    assert fault.code == MachineAwaitedError.code, "from now on the other one waits"


async def test_a_copy_whose_log_cannot_begin_keeps_the_machine_out_for_no_moment(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage is away: whoever needs a new epoch waits, and is refused, again and again; the machine goes on from the spool."""
    epoch = await welcomed(site, hello(identity="original", boot="1/a"))
    clock.now_s += boots.KEEP_S
    log = site.log()
    begin, waits = log.begin, asyncio.Event()

    async def without_storage(message: Hello) -> Standing:
        if message.epoch:
            return await begin(message)
        waits.set()
        await log.begin_gate.wait()
        raise TransientError("An epoch cannot be allocated")

    monkeypatch.setattr(log, "begin", without_storage)
    copy, machine = (hello(identity="original", boot=boot) for boot in ("2/a", "1/b"))
    assert (await refused(site, copy)).code == TransientError.code
    clock.now_s += 5
    assert (
        await welcomed(site, msgspec.structs.replace(machine, epoch=epoch, claim=eid(epoch).claim)) == epoch
    )
    assert site.boots.recall(0.0)["lab"].is_of("1/b")
    clock.now_s += boots.KEEP_S
    log.begin_gate.clear()
    waits.clear()
    async with site.agent() as waiting, answering(waiting):
        waiting.write(waiting.wire.send_hello(copy))
        await waits.wait()
        async with site.agent() as agent:
            agent.write(agent.wire.send_hello(hello(identity="original", boot="1/b", epoch=epoch)))
            newest = site.admission.machines["lab"].newest
            await until(lambda: site.admission.machines["lab"].newest is not newest)
            log.begin_gate.set()
            assert (await agent.open_rest()).epoch == epoch


async def test_capture_that_was_attached_anew_under_the_same_kernel_waits_for_nothing(
    site: Site, clock: Clock
) -> None:
    await welcomed(site, hello(identity="original", boot="11111111/a"))
    assert await welcomed(site, hello(identity="original", boot="11111111/b")) == 2


async def test_a_session_that_does_not_answer_keeps_another_boot_out_until_it_is_over(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 0.2)
    async with site.agent() as silent:
        chain = Chain.after(await silent.open(hello(identity="original", boot=ORIGINAL)))
        fault = await refused(site, hello(identity="original", boot=COPY))
        assert (fault.code, fault.retry_after_s) == (MachineAwaitedError.code, boots.SILENT_RETRY_S)
        await silent.send(chain.next())
        await silent.acked(1)
    await until(lambda: not site.admission.machines["lab"].connected)
    assert (await refused(site, hello(identity="original", boot=COPY))).code == MachineAwaitedError.code
    clock.now_s += boots.KEEP_S
    assert await welcomed(site, hello(identity="original", boot=COPY)) == 2


async def test_an_agent_of_the_same_kernel_takes_over_from_a_session_that_does_not_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 0.2)
    async with site.agent() as before, site.agent() as after:
        await before.open(hello(identity="original", boot="11111111/a"))
        assert (await after.open(hello(identity="original", boot="11111111/b"))).epoch == 2
        assert (await before.fault()).code == SupersededError.code


@pytest.mark.parametrize(
    "left", [None, b"", b"\xff{", b'{"v": 1}'], ids=["whole", "empty", "garbage", "other"]
)
async def test_a_process_server_that_was_restarted_waits_for_the_machine_that_it_had(
    site: Site, left: bytes | None
) -> None:
    await welcomed(site, hello(identity="original", boot=ORIGINAL))
    await site.receiver.stop()
    if left is not None:
        (site.folder / "spool/lab/boot.json").write_bytes(left)
    await site.start()
    assert (await refused(site, hello(identity="original", boot=COPY))).code == MachineAwaitedError.code
    assert await welcomed(site, hello(epoch=1, identity="original", boot=ORIGINAL)) == 1
    assert (await refused(site, hello(identity="original", boot=COPY))).code == MachineAwaitedError.code


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_name_is_not_kept_for_a_boot_that_the_log_calls_a_copy(site: Site, restarted: bool) -> None:
    site.log().begin_error = CopyRefusedError("A copy was refused", cause="the machine is at work elsewhere")
    assert (await refused(site, hello(identity="original", boot=COPY))).code == CopyRefusedError.code
    assert "at work elsewhere" in site.admission.copies["lab"].error.cause
    site.log().begin_error = None
    if restarted:
        await site.receiver.stop()
        await site.start()
    assert await welcomed(site, hello(identity="original", boot=ORIGINAL)) == 1


async def test_a_process_server_that_never_had_the_machine_takes_it_at_once(
    site: Site, tmp_path: Path
) -> None:
    await welcomed(site, hello(identity="original", boot=ORIGINAL))
    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other")
    await other.start()
    try:
        assert await welcomed(other, hello(identity="original", boot=COPY)) == 1
    finally:
        await other.receiver.stop()


async def test_whoever_was_named_the_machine_does_not_wait_for_the_one_before(
    site: Site, clock: Clock
) -> None:
    await welcomed(site, hello(identity="original", boot=ORIGINAL))
    site.active = ActiveSide(machine="lab", generation=2, identity="new", changed_ns=0, claim="")
    assert await welcomed(site, hello(identity="new", boot=COPY)) == 2


async def test_an_agent_that_was_restarted_in_the_same_boot_is_not_asked_for(site: Site) -> None:
    async with site.agent() as before, site.agent() as after:
        await before.open(hello(identity="original", boot="1"))
        await after.open(hello(epoch=1, identity="original", boot="1"))
        assert (await before.fault()).code == SupersededError.code


async def test_of_two_that_begin_at_once_the_first_that_answers_stays(site: Site) -> None:
    site.log().begin_gate.clear()
    async with site.agent() as original, site.agent() as copy:
        original.write(original.wire.send_hello(hello(identity="original", boot="1")))
        await until(lambda: "lab" in site.admission.machines)
        async with answering(original):
            copy.write(copy.wire.send_hello(hello(identity="original", boot="2")))
            assert (await copy.fault()).code == CopyRefusedError.code
        site.log().begin_gate.set()
        await original.open_rest()


async def test_the_first_identity_is_the_active_side_until_somebody_changes_it(
    store: BlobStore, tmp_path: Path
) -> None:
    sides = Sides(in_one(store), tmp_path)
    await sides.check("m1", "first", claim=True)
    with pytest.raises(CopyRefusedError, match="second"):
        await sides.check("m1", "second", claim=True)
    changed = await active_side.change(store, "m1", "second")
    assert (changed.generation, changed.direction) == (2, Direction.OUTWARD)
    await sides.check("m1", "second", claim=True)
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", "first", claim=True)


async def test_a_side_that_storage_was_set_back_to_counts_although_its_generation_is_lower(
    store: BlobStore, tmp_path: Path
) -> None:
    sides = Sides(in_one(store), tmp_path)
    for identity in ("first", "second", "old"):
        await active_side.change(store, "m1", identity)
    assert await sides.check("m1", "old", claim=True)
    await store.delete(names.SIDE_DOCUMENT)  # its container was deleted, say
    assert (await active_side.change(store, "m1", "new")).generation == 1
    assert await sides.check("m1", "new", claim=False, surely=True)
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", "old", claim=False, surely=True)


async def test_the_side_that_was_learnt_last_is_on_the_disk_although_an_older_write_was_slow(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, began, goes_on = durable.replace_file, threading.Event(), threading.Event()

    def slow(path: Path, data: bytes) -> None:
        if b"first" in data:
            began.set()
            goes_on.wait(10)
        really(path, data)

    monkeypatch.setattr(durable, "replace_file", slow)
    sides = Sides(in_one(store), tmp_path)
    first = asyncio.create_task(sides.check("m1", "first", claim=True))
    await asyncio.to_thread(began.wait, 10)
    await active_side.change(store, "m1", "second")
    second = asyncio.create_task(sides.check("m1", "second", claim=True))
    await asyncio.wait([second], timeout=0.5)  # without the order it would be over
    goes_on.set()
    await asyncio.gather(first, second)
    assert active_side.decode((tmp_path / "m1/side.json").read_bytes(), "").identity == "second"


async def test_two_that_are_first_agree_on_one(store: BlobStore) -> None:
    found = await asyncio.gather(*(active_side.find_or_begin(store, "m1", f"id-{i}") for i in range(8)))
    assert len({side.identity for side in found}) == 1
    assert {side.generation for side in found} == {1}


async def test_changes_at_once_get_generations_of_their_own(store: BlobStore) -> None:
    changed = await asyncio.gather(*(active_side.change(store, "m1", f"id-{i}") for i in range(5)))
    assert sorted(side.generation for side in changed) == [1, 2, 3, 4, 5]
    newest = await active_side.find(store)
    assert newest == max(changed, key=lambda side: side.generation)


async def test_a_machine_that_had_no_identity_is_known_by_its_first(store: BlobStore, tmp_path: Path) -> None:
    sides = Sides(in_one(store), tmp_path)
    await sides.check("m1", active_side.UNKNOWN, claim=True)
    await sides.check("m1", "now-known", claim=True)
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", "other", claim=True)
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", active_side.UNKNOWN, claim=True)


async def test_what_storage_said_last_counts_while_it_is_away_also_after_a_restart(
    azurite: Azurite, blob_config: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with BlobStore.connect(blob_config) as store:
        await Sides(in_one(store), tmp_path).check("m1", "first", claim=True)
    gone = BlobConfig(
        url="https://127.0.0.1:1/account",
        container=blob_config.container,
        account_key_file=blob_config.account_key_file,
        ca_file=blob_config.ca_file,
    )
    monkeypatch.setattr("process_server.spool.sides._ASK", Retry(deadline_s=0.3))
    async with BlobStore.connect(gone) as away:
        restarted = Sides(MachineStorage(away), tmp_path)
        await restarted.check("m1", "first", claim=True)
        with pytest.raises(CopyRefusedError):
            await restarted.check("m1", "second", claim=True)
        with pytest.raises(TransientError, match="cannot be taken yet"):
            await restarted.check("m2", "first", claim=True)
        with pytest.raises(TransientError):  # what is known counts for a Hello, and not for who must know
            await restarted.check("m1", "first", claim=False, surely=True)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_copy_does_not_become_the_machine_because_its_container_was_deleted(
    machine_storage: MachineStorage, tmp_path: Path, restarted: bool
) -> None:
    sides = Sides(machine_storage, tmp_path)
    await sides.check("m1", "first", claim=True)
    named = await active_side.change(await machine_storage.find("m1"), "m1", "machine")
    assert await sides.check("m1", "machine", claim=True)
    store = await machine_storage.find("m1")
    container = store._core.container
    await container.delete_container()
    if restarted:
        sides = Sides(MachineStorage(machine_storage.vault), tmp_path)
    for claim in (False, True):
        with pytest.raises(CopyRefusedError):
            await sides.check("m1", "clone", claim=claim)
    assert not await container.exists(), "nothing is made for a Hello that is refused"
    assert await sides.check("m1", "machine", claim=True)
    assert await active_side.find(await MachineStorage(machine_storage.vault).find("m1")) == named
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", "clone", claim=True)


async def test_a_name_that_was_taken_out_of_storage_is_free_for_another_machine(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    sides = Sides(machine_storage, tmp_path)
    await sides.check("m1", "first", claim=True)
    await (await machine_storage.find("m1"))._core.container.delete_container()
    await machine_storage.vault.delete("machines/m1.json")
    assert await sides.check("m1", "new", claim=True)
    with pytest.raises(CopyRefusedError):
        await sides.check("m1", "first", claim=True)


async def test_a_copy_that_has_an_identity_does_not_get_the_name_of_a_machine_that_has_none_while_that_is_there(
    site: Site, store: BlobStore, tmp_path: Path
) -> None:
    sides = Sides(in_one(store), tmp_path / "spool")
    site.admission._check_side = sides.check
    async with site.agent() as original, site.agent() as copy:
        await original.open(hello(identity=active_side.UNKNOWN, boot="1"))
        async with answering(original):
            copy.write(copy.wire.send_hello(hello(identity="smbios:1", boot="2")))
            assert (await copy.fault()).code == CopyRefusedError.code
    side = await active_side.find(store)
    assert side is not None
    assert side.identity == active_side.UNKNOWN
    async with site.agent() as again:
        await again.open(hello(epoch=1, identity=active_side.UNKNOWN, boot="1"))


async def test_a_machine_in_the_middle_of_a_large_frame_is_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 0.6)
    async with site.agent() as original, site.agent() as copy:
        chain = Chain.after(await original.open(hello(identity="original", boot="1")))
        batch = chain.next(sectors=4096)
        frame = b"".join(bytes(part) for part in original.wire.send_batch(batch.number, batch.parts))

        async def trickle() -> None:
            """It does not read, and it cannot answer before its frame is over."""
            for at in range(0, len(frame), len(frame) // 20):
                original.write([frame[at : at + len(frame) // 20]])
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(trickle())
        copy.write(copy.wire.send_hello(hello(identity="original", boot="2")))
        assert (await copy.fault()).code == CopyRefusedError.code
        await sending
        await original.acked(1)
    assert site.log().position.epoch == 1


async def test_a_session_of_the_old_side_does_not_keep_the_new_one_out(site: Site) -> None:
    async with site.agent() as old, site.agent() as new:
        await old.open(hello(identity="original", boot="1"))
        site.active = ActiveSide(machine="lab", generation=2, identity="new", changed_ns=0, claim="")
        async with answering(old):
            await new.open(hello(identity="new", boot="2"))
        assert (await old.fault()).code == CopyRefusedError.code


async def test_sessions_are_checked_without_anybody_asking_and_again_after_an_outage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.receiver.stop()
    monkeypatch.setattr(admission, "CHECK_SIDES_S", 0.02)
    await site.start()
    async with site.agent() as old, site.agent("idle") as idle:
        chain = Chain.after(await old.open(hello(identity="original", boot="1")))
        await idle.open(hello("idle", identity="original"))
        await idle.close()
        await until(lambda: not site.admission.machines["idle"].connected)
        site.storage_away = True
        site.active = ActiveSide(machine="lab", generation=2, identity="new", changed_ns=0, claim="")
        site.asked.clear()
        await until(lambda: len(site.asked) > 2)
        await old.send(chain.next())
        await old.acked(1)
        with pytest.raises(TransientError):
            await site.admission.check_side("lab")
        site.storage_away = False
        fault = await old.fault()
    assert fault.code == CopyRefusedError.code
    assert fault.what == "The session of lab was closed"
    assert "another machine was named" in fault.cause
    assert set(site.asked) == {"lab"}, "a machine without a session costs no request"


async def test_a_machine_whose_storage_does_not_answer_keeps_no_other_from_being_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.receiver.stop()
    monkeypatch.setattr(admission, "CHECK_SIDES_S", 0.02)
    await site.start()
    really = site.check_side

    async def check_side(machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
        site.storage_away = machine == "lab"  # its container is being deleted, say
        return await really(machine, identity, claim=claim, surely=surely)

    site.admission._check_side = check_side
    async with site.agent() as unlucky, site.agent("web") as moved:
        await unlucky.open(hello(identity="original"))
        await moved.open(hello("web", identity="original"))
        site.active = ActiveSide(machine="web", generation=2, identity="new", changed_ns=0, claim="")
        assert (await moved.fault()).code == CopyRefusedError.code
        assert site.admission.machines["lab"].connected


async def test_a_round_of_checks_ends_in_time_and_the_next_begins_where_it_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CHECK_SIDES_S", 0.0)
    async with site.agent("a") as one, site.agent("b") as two, site.agent("c") as three:
        for name, agent in (("a", one), ("b", two), ("c", three)):
            await agent.open(hello(name, identity="original"))
        site.asked.clear()
        for _ in range(4):
            await site.admission.check_sides()
        assert site.asked == ["a", "b", "c", "a"]


async def test_a_document_that_cannot_be_read_ends_no_session_and_keeps_no_other_from_being_checked(
    machine_storage: MachineStorage, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.receiver.stop()
    monkeypatch.setattr(admission, "CHECK_SIDES_S", 0.02)
    await site.start()
    site.admission._check_side = Sides(machine_storage, tmp_path / "spool").check
    async with site.agent() as damaged, site.agent("web") as moved:
        await damaged.open(hello(identity="original"))
        await moved.open(hello("web", identity="original"))
        await (await machine_storage.find("lab")).replace(names.SIDE_DOCUMENT, b"{")
        await active_side.change(await machine_storage.find("web"), "web", "new")
        assert (await moved.fault()).code == CopyRefusedError.code
        assert site.admission.machines["lab"].connected


async def test_a_damaged_document_is_mended_by_naming_the_active_side(
    store: BlobStore, tmp_path: Path
) -> None:
    sides = Sides(in_one(store), tmp_path)
    await sides.check("m1", "first", claim=True)
    await store.replace(names.SIDE_DOCUMENT, b"{")
    with pytest.raises(IntegrityError, match="cannot be read"):
        await Sides(in_one(store), tmp_path).check("m1", "first", claim=True)
    await active_side.change(store, "m1", "second")
    await sides.check("m1", "second", claim=True)

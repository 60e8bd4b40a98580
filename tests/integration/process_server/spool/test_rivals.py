"""A copy of a machine, or the machine after a restart, at another process server."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from process_server.spool import rivals
from process_server.spool.ownership import LONGEST_PAUSE_S, Patience
from shared.blob import BlobStore
from shared.errors import (
    CopyRefusedError,
    EpochRefusedError,
    TransientError,
)
from shared.log import names
from shared.log.epochs import EpochDisk, allocate_epoch, newest_epoch
from shared.machine import active_side
from shared.wire.messages import Hello
from tests.logs import Made, make_batch, make_chain
from tests.spools import (
    append_all,
    hello,
    hello_again,
    make_spool,
    read_log,
    same_batches,
    started,
    until,
)

NOW = make_chain(3, seed=2)
OLD = make_chain(5, seed=1)


class Now:
    """The monotonic clock of what watches a rival's log: it stands still unless told otherwise."""

    s = 0.0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(rivals, "monotonic_s", lambda: now.s)
    return now


def copy_of(boot: str) -> Hello:
    return msgspec.structs.replace(hello(0), identity="smbios:1", boot=boot)


async def test_who_is_left_behind_hears_which_copy_began_the_new_epoch(
    store: BlobStore, tmp_path: Path
) -> None:
    async with started(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await at_a.begin(hello(0))
        theirs = await hello_again(store, 1)
        async with started(make_spool(tmp_path / "b", store, owner="b")) as at_b:
            await at_b.begin(copy_of("b2"))
        with pytest.raises(EpochRefusedError, match="begun by smbios:1, boot b2, through process server b"):
            await at_a.begin(theirs)


async def test_an_open_log_finds_that_its_epoch_was_ended_elsewhere_and_lists_its_rest(
    store: BlobStore, tmp_path: Path
) -> None:
    async with started(make_spool(tmp_path / "a", store, owner="a", check_seconds=0.05)) as at_a:
        await at_a.begin(hello(0))
        await append_all(at_a, OLD)
        async with started(make_spool(tmp_path / "b", store, owner="b")) as at_b:
            await at_b.begin(copy_of("b2"))
        await until(at_a, lambda: at_a.failure is not None)
        assert isinstance(at_a.failure, EpochRefusedError)
        assert at_a.failure.ends_epoch
        assert "boot b2, through process server b" in at_a.failure.cause
        assert at_a.elsewhere
        await until(at_a, lambda: not (tmp_path / "a/m1/00000001").exists())
        with pytest.raises(EpochRefusedError):
            await at_a.append(*NOW[0])
    assert same_batches(await read_log(store, tmp_path / "a"), OLD)


def captured_soon(number: int, made: Made) -> Made:
    """In a later second than this one, which is as much as storage's clock tells apart."""
    return make_batch(number, made.digest, captured_ns=CLOCK() + 2_000_000_000)


CLOCK = time.time_ns


@pytest.mark.parametrize(("hours", "tail_b"), [(-3, 1 << 14), (0, 10), (3, 1 << 14)])
async def test_a_copy_at_another_server_is_refused_by_name_while_the_machine_works(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int, tail_b: int
) -> None:
    """Whatever the process servers' clocks say; however long a line of the index is (many marks, or an order that comes and goes); and also
    where a kill left the next blob of the index behind, to which nothing leads yet."""
    monkeypatch.setattr(rivals, "_TAIL_B", tail_b)
    monkeypatch.setattr(time, "time_ns", lambda: CLOCK() + hours * 3600 * 1_000_000_000)
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        assert (await at_a.begin(copy_of("b1"))).epoch == 1
        await append_all(at_a, OLD)
        await at_a.flush()
        await store.append_create(names.index(1, 2))
        with pytest.raises(TransientError, match="may be at work"):
            await at_b.begin(copy_of("b2"))
        await append_all(at_a, [captured_soon(6, OLD[-1])])
        await at_a.flush()
        with pytest.raises(
            CopyRefusedError,
            match=r"at work elsewhere: .* boot b1, through process server a; this is boot b2",
        ):
            await at_b.begin(copy_of("b2"))
        assert at_a.failure is None
        assert await newest_epoch(store) == 1
        # Another boot at the server where the machine is was asked by the receiver; the same boot of the kernel is no copy, whatever
        # attachment of capture it has.
        assert (await at_b.begin(copy_of("b1/anew"))).epoch == 2
        assert (await at_b.begin(copy_of("b2"))).epoch == 3


@pytest.mark.parametrize("segments", [0, 1, 4])
async def test_a_log_may_stand_still_for_as_long_as_any_servers_does_however_fast_it_went_before(
    store: BlobStore, tmp_path: Path, now: Now, segments: int
) -> None:
    """A segment may be open for a minute, of a machine that has just begun, or has just come to rest."""
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        await at_a.begin(copy_of("b1"))
        for made in make_chain(segments):
            await append_all(at_a, [made])
            await at_a.flush()
        for now.s in (0.0, 61.0, LONGEST_PAUSE_S - 1):
            with pytest.raises(TransientError, match="may be at work"):
                await at_b.begin(copy_of("b2"))
        now.s = LONGEST_PAUSE_S
        assert (await at_b.begin(copy_of("b2"))).epoch == 2


async def test_an_epoch_that_another_server_is_about_to_open_is_not_ended(
    store: BlobStore, tmp_path: Path, now: Now
) -> None:
    """No term of it is taken yet. One that was begun here was asked about by the receiver."""
    disks = [EpochDisk(0, "sda", "s0", 8)]
    async with started(make_spool(tmp_path / "b", store, owner="b")) as at_b:
        for owner in ("b", "a"):
            info = await allocate_epoch(
                store, "m1", disks=disks, reason="test", agent_id="a", boot="b1", owner=owner
            )
            if owner == "a":
                with pytest.raises(TransientError, match="may be at work"):
                    await at_b.begin(copy_of("b2"))
                now.s = LONGEST_PAUSE_S
            assert (await at_b.begin(copy_of("b2"))).epoch == info.epoch + 1


async def test_what_a_machine_did_since_it_was_here_last_makes_nobody_a_copy(
    store: BlobStore, tmp_path: Path, now: Now
) -> None:
    """It came, went back, worked, was restarted, and comes again."""
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        await at_a.begin(copy_of("b1"))
        await append_all(at_a, OLD)
        await at_a.flush()
        with pytest.raises(TransientError, match="may be at work"):
            await at_b.begin(copy_of("b2"))
        await append_all(at_a, [captured_soon(6, OLD[-1])])
        await at_a.flush()
        for now.s in (1000.0, 1000.0 + LONGEST_PAUSE_S - 1):
            with pytest.raises(TransientError, match="may be at work"):
                await at_b.begin(copy_of("b3"))
        now.s = 1000.0 + LONGEST_PAUSE_S
        assert (await at_b.begin(copy_of("b3"))).epoch == 2


async def test_a_machine_whose_log_goes_slowly_is_not_taken_for_gone(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: Now
) -> None:
    """A segment a minute, as it may be configured, and as a slow uplink may take."""
    passed_s = [0]
    monkeypatch.setattr(time, "time_ns", lambda: CLOCK() + passed_s[0] * 1_000_000_000)
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        await at_a.begin(copy_of("b1"))
        for made in make_chain(4):
            passed_s[0] += 60
            await append_all(at_a, [made])
            await at_a.flush()
        for now.s in (0.0, 100.0, 179.0):
            with pytest.raises(TransientError, match="may be at work"):
                await at_b.begin(copy_of("b2"))
        now.s = 182.0
        assert (await at_b.begin(copy_of("b2"))).epoch == 2


async def test_whoever_was_named_the_machine_waits_for_nothing_that_the_one_before_does(
    store: BlobStore, tmp_path: Path
) -> None:
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    new = msgspec.structs.replace(hello(0), identity="smbios:2", boot="b2")
    async with started(a) as at_a, started(b) as at_b:
        await active_side.find_or_begin(store, "m1", "smbios:1")
        await at_a.begin(copy_of("b1"))
        await append_all(at_a, OLD)
        with pytest.raises(TransientError, match="may be at work"):
            await at_b.begin(new)
        await active_side.change(store, "m1", "smbios:2")
        assert (await at_b.begin(new)).epoch == 2
        with pytest.raises(TransientError, match="may be at work"):
            await at_a.begin(msgspec.structs.replace(new, boot="b3"))


async def test_a_copy_of_a_machine_that_had_no_identity_when_its_epoch_began_is_not_taken_for_a_named_one(
    store: BlobStore, tmp_path: Path
) -> None:
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        await at_a.begin(msgspec.structs.replace(copy_of("b1"), identity=""))
        await active_side.find_or_begin(store, "m1", "smbios:1")
        with pytest.raises(TransientError, match="may be at work"):
            await at_b.begin(copy_of("b2"))


async def test_a_machine_that_was_restarted_is_taken_when_nothing_comes_from_its_earlier_boot(
    store: BlobStore, tmp_path: Path
) -> None:
    async with started(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await at_a.begin(copy_of("b1"))
        await append_all(at_a, OLD)
        await at_a.flush()
    async with started(make_spool(tmp_path / "b", store, owner="b", patience=Patience(copy_s=0.0))) as at_b:
        assert (await at_b.begin(copy_of("b2"))).epoch == 2


async def test_what_an_earlier_boot_left_to_be_listed_keeps_nobody_out_for_ever(
    store: BlobStore, tmp_path: Path, now: Now
) -> None:
    a, b = (make_spool(tmp_path / name, store, owner=name) for name in ("a", "b"))
    async with started(a) as at_a, started(b) as at_b:
        await at_a.begin(copy_of("b1"))
        told = 0
        for made in make_chain(8):
            await append_all(at_a, [made])
            await at_a.flush()
            now.s += LONGEST_PAUSE_S - 1
            try:
                await at_b.begin(copy_of("b2"))
            except TransientError:
                told += 1
            else:
                break
        assert told == 7
        assert await newest_epoch(store) == 2

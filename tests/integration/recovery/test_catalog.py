"""What `--point` may say, against a real log in real blob storage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from shared.batch import StreamState
from shared.blob import BlobStore
from shared.errors import (
    IndexDamagedError,
    IndexMissingError,
    MachineNotFoundError,
    NoPointsError,
    PointNotFoundError,
    PointReferenceError,
    StorageForgotError,
)
from shared.log import names
from shared.log.epochs import EpochDisk, allocate_epoch
from shared.log.segment import MarkRow
from shared.log.writer import IndexWriter
from shared.recovery import listing, point_store
from shared.recovery.catalog import Catalog
from shared.recovery.points import logged_point
from shared.recovery.position import Position, format_ns
from shared.recovery.references import resolve
from shared.recovery.verify import make_plan
from tests.azurite import in_one
from tests.epoch_ids import eid
from tests.machine_log import SECOND_NS, START_NS, ModelMachine


def at(batch_second: float) -> str:
    return format_ns(START_NS + int(batch_second * SECOND_NS))


async def two_epochs(machine: ModelMachine) -> Catalog:
    """Epoch 1: replication 1-3, ordered 4-6, lost 7-8, ordered 9; epoch 2 (seconds 10-12 replication), ordered 4-5."""
    await machine.begin_epoch()
    for _ in range(3):
        machine.write()
    await machine.publish(segments=4)
    machine.write(state=StreamState.BITMAP)
    machine.write(state=StreamState.CATCHING_UP)
    machine.write(mark="m")
    await machine.begin_epoch("agent restarted")
    machine.write()
    machine.write()
    await machine.publish()
    return await Catalog.load(machine.store, machine.name)


async def test_latest_is_the_last_ordered_batch_by_position(machine: ModelMachine) -> None:
    catalog = await two_epochs(machine)
    assert await resolve(catalog, "latest") == Position.of(2, 5)
    machine.write(state=StreamState.BITMAP)
    await machine.publish()
    assert await resolve(await Catalog.load(machine.store, machine.name), "latest") == Position.of(2, 5)


async def test_any_ordered_position_is_a_point_and_others_name_their_neighbours(
    machine: ModelMachine,
) -> None:
    catalog = await two_epochs(machine)
    assert await resolve(catalog, "1-5") == Position.of(1, 5)
    assert await resolve(catalog, "00000001-000000000009") == Position.of(1, 9)
    with pytest.raises(PointNotFoundError) as caught:
        await resolve(catalog, "1-7")
    assert f"nearest earlier point: 1-6 of {at(6)}" in caught.value.cause
    assert f"nearest later point: 1-9 of {at(9)}" in caught.value.cause
    with pytest.raises(PointNotFoundError, match="nearest later point: none"):
        await resolve(catalog, "3-1")
    with pytest.raises(PointNotFoundError, match="nearest earlier point: none"):
        await resolve(catalog, "1-2")


async def test_a_time_means_the_last_batch_captured_at_or_before_it(machine: ModelMachine) -> None:
    catalog = await two_epochs(machine)
    assert await resolve(catalog, at(4)) == Position.of(1, 4)
    assert await resolve(catalog, at(5.999)) == Position.of(1, 5)
    assert await resolve(catalog, at(6)) == Position.of(1, 6)
    assert await resolve(catalog, at(9)) == Position.of(1, 9)
    assert await resolve(catalog, at(13.5)) == Position.of(2, 4)
    # The last batch is of second 14. An ordered stream has heartbeats: up to there nothing was written since.
    assert await resolve(catalog, at(14 + 10)) == Position.of(2, 5)


async def test_a_time_that_uploads_have_not_reached_is_refused_and_names_the_newest_point(
    machine: ModelMachine,
) -> None:
    """Else, while a process server cannot upload, an hour that is only in its cache would be answered with the state before it."""
    catalog = await two_epochs(machine)
    with pytest.raises(PointNotFoundError) as caught:
        await resolve(catalog, at(1000))
    assert f"the log in storage reaches {at(14)}" in caught.value.cause
    assert f"nearest earlier point: 2-5 of {at(14)}" in caught.value.cause
    assert await resolve(catalog, "latest") == Position.of(2, 5)
    machine.captured_ns += 1000 * SECOND_NS
    machine.write()
    await machine.publish()
    catalog = await Catalog.load(machine.store, machine.name)
    assert await resolve(catalog, at(1000)) == Position.of(2, 5)  # now it is known that there was nothing


@pytest.mark.parametrize(
    ("second", "cause", "earlier", "later"),
    [
        (0.5, "the log begins later", "none", "1-4"),
        (2, "order was not kept", "none", "1-4"),
        (6.5, "order was not kept", "1-6", "1-9"),
        (8, "order was not kept", "1-6", "1-9"),
        (9.5, "order was not kept", "1-9", "2-4"),
        (11, "order was not kept", "1-9", "2-4"),
        (2e9, "future", "2-5", "none"),
    ],
)
async def test_a_time_without_order_is_refused_and_names_the_nearest_points(
    machine: ModelMachine, second: float, cause: str, earlier: str, later: str
) -> None:
    catalog = await two_epochs(machine)
    with pytest.raises(PointNotFoundError) as caught:
        await resolve(catalog, at(second))
    assert cause in caught.value.cause
    assert f"nearest earlier point: {earlier}" in caught.value.cause
    assert f"nearest later point: {later}" in caught.value.cause


async def test_a_time_behind_the_log_is_refused_once_a_newer_epoch_has_begun(machine: ModelMachine) -> None:
    await two_epochs(machine)
    await allocate_epoch(
        machine.store, machine.name, disks=[EpochDisk(0, "loop0", "", 8)], reason="rebooted", agent_id="test"
    )
    catalog = await Catalog.load(machine.store, machine.name)
    assert catalog.gaps()[-1].after == Position.of(2, 5)
    with pytest.raises(PointNotFoundError) as caught:
        await resolve(catalog, at(1000))
    assert "epoch 3 has begun" in caught.value.cause
    assert f"nearest earlier point: 2-5 of {at(14)}" in caught.value.cause
    assert await resolve(catalog, at(14)) == Position.of(2, 5)
    assert await resolve(catalog, at(13.5)) == Position.of(2, 4)
    assert await resolve(catalog, "latest") == Position.of(2, 5)


async def spoil(machine: ModelMachine, blob: str, data: bytes) -> None:
    """Adds to an append blob, as its owner would not."""
    await machine.store.leases.break_now(blob)
    await machine.store.append(blob, data, None, (await machine.store.properties(blob)).size_b)


async def test_a_damaged_index_takes_away_only_what_lies_behind_the_damage(machine: ModelMachine) -> None:
    await two_epochs(machine)
    await spoil(machine, names.index(1, 1), b"no line\n")
    catalog = await Catalog.load(machine.store, machine.name)
    assert await resolve(catalog, "latest") == Position.of(2, 5)
    assert await resolve(catalog, "1-6") == Position.of(1, 6)
    await spoil(machine, names.index(2, 1), b"no line\n")
    catalog = await Catalog.load(machine.store, machine.name)
    assert await resolve(catalog, "2-4") == Position.of(2, 4)
    for reference in ("latest", at(1000)):
        with pytest.raises(IndexDamagedError) as caught:
            await resolve(catalog, reference)
        assert "--point 2-5" in caught.value.action


async def test_a_damaged_epoch_document_takes_away_that_epoch_alone(machine: ModelMachine) -> None:
    await two_epochs(machine)
    await machine.store.replace(names.epoch_document(2), b"{")
    catalog = await Catalog.load(machine.store, machine.name)
    assert await resolve(catalog, "1-9") == Position.of(1, 9)
    for reference in ("latest", at(1000)):
        with pytest.raises(IndexDamagedError) as caught:
            await resolve(catalog, reference)
        assert "--point 1-9" in caught.value.action
    with pytest.raises(IndexDamagedError):
        catalog.epoch(2)


async def lose(machine: ModelMachine, *blobs: str) -> None:
    for blob in blobs:
        await machine.store.leases.break_now(blob)
        assert await machine.store.delete(blob)


async def documented(machine: ModelMachine, position: Position, captured_ns: int) -> None:
    id_ = machine.id if position.epoch == machine.position.epoch else eid(position.epoch)
    await point_store.write_new(
        machine.store, logged_point(machine.name, position, id_.claim, captured_ns, "crash", ["m"])
    )


@pytest.mark.parametrize("gone", [(names.epoch_document(2),), (names.index(2, 1),)])
async def test_an_epoch_that_lost_its_document_or_index_is_never_taken_for_one_that_has_nothing_yet(
    machine: ModelMachine, gone: tuple[str, ...]
) -> None:
    await two_epochs(machine)
    await lose(machine, *gone)
    catalog = await Catalog.load(machine.store, machine.name)
    assert await resolve(catalog, "1-9") == Position.of(1, 9)
    assert await resolve(catalog, at(5)) == Position.of(1, 5)
    for reference in ("latest", at(12)):
        with pytest.raises(IndexMissingError) as caught:
            await resolve(catalog, reference)
        assert "--point 1-9" in caught.value.action
    lasting = catalog.gaps()[-1]
    assert (lasting.after, lasting.until) == (Position.of(1, 9), None)
    assert "gone" in lasting.cause


async def test_the_only_epoch_without_its_document_is_damage_and_shown_as_such(machine: ModelMachine) -> None:
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    await machine.store.replace(names.epoch_document(1), b"{")
    catalog = await Catalog.load(machine.store, machine.name)
    assert [(gap.after, gap.until) for gap in catalog.gaps()] == [(None, None)]
    assert "cannot be read" in catalog.gaps()[0].cause
    assert catalog.points() == []
    with pytest.raises(IndexDamagedError):
        await resolve(catalog, "latest")
    await documented(machine, machine.position, machine.captured_ns)
    await lose(machine, names.epoch_document(1))
    catalog = await Catalog.load(machine.store, machine.name)
    with pytest.raises(IndexMissingError):
        catalog.epoch(1)


async def test_an_index_that_lost_a_blob_between_others_or_its_newest_one_is_damaged_there(
    machine: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = IndexWriter.take.__func__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "max_blocks", 2)
    await machine.begin_epoch()
    for _ in range(6):
        machine.write()
        await machine.publish()
    numbers = [int(info.name[-6:]) async for info in machine.store.list(f"{names.epoch_folder(1)}index-")]
    assert numbers[-1] > 4
    for number in (numbers[-1], 3):
        await lose(machine, names.index(1, number))
        catalog = await Catalog.load(machine.store, machine.name)
        with pytest.raises(IndexMissingError, match=f"index-{number:06d} is gone"):
            await resolve(catalog, "latest")
    assert await resolve(catalog, "1-4") == Position.of(1, 4)
    with pytest.raises(StorageForgotError):
        await IndexWriter.take(machine.store, machine.name, machine.id, "ps2")


async def test_an_index_that_ends_before_a_point_is_not_the_newest(machine: ModelMachine) -> None:
    """As after a failover of the storage account that lost the last minutes of one blob and not of another."""
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    await documented(machine, Position.of(1, 7), machine.captured_ns)
    with pytest.raises(IndexMissingError, match=r"ends at batch 4, and there is point 1-7.*--point 1-4"):
        await resolve(await Catalog.load(machine.store, machine.name), "latest")
    await documented(machine, Position.of(2, 7), machine.captured_ns)
    with pytest.raises(IndexMissingError, match=r"nothing is left of the epoch, and there is point 2-7"):
        await resolve(await Catalog.load(machine.store, machine.name), "latest")


async def _document_gone(machine: ModelMachine) -> None:
    await lose(machine, names.epoch_document(1))


async def _index_cut(machine: ModelMachine) -> None:
    index = names.index(1, 1)
    data = await machine.store.read(index)
    await lose(machine, index)
    await machine.store.append_create(index)
    await machine.store.append(index, data[:-30], None, 0)


@pytest.mark.parametrize(("harm", "left"), [(_document_gone, []), (_index_cut, ["1-4"])])
async def test_what_is_listed_as_good_is_what_restores(
    machine: ModelMachine, harm: Callable[[ModelMachine], Awaitable[None]], left: list[str]
) -> None:
    await machine.begin_epoch()
    for mark in ("a", "b"):
        machine.write(mark=mark)
        await machine.publish()
        await documented(machine, machine.position, machine.captured_ns)
    await harm(machine)
    catalog = await Catalog.load(machine.store, machine.name)
    shown = listing.listing(catalog).points
    assert [p.id for p in shown] == ["1-4", "1-5"]
    assert [p.id for p in shown if not p.lost] == [doc.id for doc in catalog.restorable()] == left
    for point in shown:
        if point.lost:
            with pytest.raises(PointNotFoundError, match="its log cannot be read"):
                await resolve(catalog, point.id)
        else:
            await make_plan(machine.store, catalog, await resolve(catalog, point.id))


async def test_an_epoch_whose_log_was_not_begun_yet_is_whole(machine: ModelMachine) -> None:
    """Between the allocation, the term, and the first blob of the index."""
    await two_epochs(machine)
    await allocate_epoch(
        machine.store, machine.name, disks=[EpochDisk(0, "loop0", "", 8)], reason="rebooted", agent_id="test"
    )
    await machine.store.create(names.term_document(3, 1), b"{}")
    catalog = await Catalog.load(machine.store, machine.name)
    assert not catalog.damaged
    assert await resolve(catalog, "latest") == Position.of(2, 5)


@pytest.mark.parametrize("reference", ["", "newest", "2024-01-01T00:00:00", "12", "../1-4"])
async def test_nonsense_is_a_usage_error(machine: ModelMachine, reference: str) -> None:
    catalog = await two_epochs(machine)
    with pytest.raises(PointReferenceError):
        await resolve(catalog, reference)


async def test_points_are_documents_and_marks_that_have_none_yet(machine: ModelMachine) -> None:
    await machine.begin_epoch()
    first = machine.write(mark="a")
    machine.write(state=StreamState.BITMAP, mark="lost")
    second = machine.write(mark="b")
    await machine.publish()
    await point_store.write_new(
        machine.store, logged_point(machine.name, first, machine.id.claim, START_NS, "app", ["a"])
    )
    await machine.store.create("points/00000009-000000000001.json", b"{}")
    catalog = await Catalog.load(machine.store, machine.name)
    assert [(p.position, p.consistency, p.marks) for p in catalog.points()] == [
        (first, "app", ("a",)),
        (second, "crash", ("b",)),
    ]
    with pytest.raises(NoPointsError):
        await resolve(catalog, "latest-processed")
    assert [(g.after, g.until) for g in catalog.gaps()] == [(None, first), (first, second)]


async def test_a_machine_without_points_says_so(machine: ModelMachine) -> None:
    with pytest.raises(MachineNotFoundError):
        await Catalog.load(machine.store, machine.name)
    await machine.begin_epoch()
    for _ in range(2):
        catalog = await Catalog.load(machine.store, machine.name)
        for reference in ("latest", "latest-processed"):
            with pytest.raises(NoPointsError):
                await resolve(catalog, reference)
        with pytest.raises(PointNotFoundError):
            await resolve(catalog, at(2))
        await machine.publish()


async def test_points_made_after_capture_was_last_proved_whole_are_suspect(machine: ModelMachine) -> None:
    await machine.begin_epoch()
    machine.write(mark="proved")
    machine.write(mark="doubtful")
    await machine.publish()
    proved, doubtful = (await Catalog.load(machine.store, machine.name)).points()
    assert not proved.suspect
    assert not doubtful.suspect
    await machine.begin_epoch("capture audit shortfall", suspect_after=proved.position)
    machine.write(mark="new")
    await machine.publish()
    found = {p.id: p.suspect for p in (await Catalog.load(machine.store, machine.name)).points()}
    assert found == {proved.id: False, doubtful.id: True, "2-4": False}


async def test_a_clock_that_goes_back_makes_no_other_points_suspect(machine: ModelMachine) -> None:
    """Capture was proved whole after the second point; the clock went back an hour before it, and forth again behind it."""
    await machine.begin_epoch()
    machine.write(mark="before")
    machine.captured_ns -= 3600 * SECOND_NS
    proved = machine.write(mark="behind")
    machine.captured_ns -= 3600 * SECOND_NS
    machine.write(mark="lacks writes")
    await machine.publish()
    since_ns = machine.captured_ns + 1800 * SECOND_NS  # as that clock says
    await machine.begin_epoch("capture audit shortfall", suspect_since_ns=since_ns, suspect_after=proved)
    machine.write(mark="new")
    await machine.publish()
    found = {p.id: p.suspect for p in (await Catalog.load(machine.store, machine.name)).points()}
    assert found == {"1-4": False, "1-5": False, "1-6": True, "2-4": False}


async def test_doubt_without_a_position_is_of_every_earlier_point(machine: ModelMachine) -> None:
    """As an older agent said it: a time of the machine's clock, which tells nothing."""
    await machine.begin_epoch()
    machine.write(mark="m")
    await machine.publish()
    await machine.begin_epoch("capture audit shortfall", suspect_since_ns=machine.captured_ns + SECOND_NS)
    machine.write(mark="n")
    await machine.publish()
    found = {p.id: p.suspect for p in (await Catalog.load(machine.store, machine.name)).points()}
    assert found == {"1-4": True, "2-4": False}


async def test_suspicion_does_not_vanish_with_the_document_that_says_it(machine: ModelMachine) -> None:
    for reason in ("first replication", "rebooted", "capture audit shortfall"):
        await machine.begin_epoch(reason)
        machine.write(mark="m")
        await machine.publish()
    await machine.store.replace(names.epoch_document(3), b"{")
    catalog = await Catalog.load(machine.store, machine.name)
    assert {p.id: p.suspect for p in catalog.points()} == {"1-4": True, "2-4": True}
    assert names.epoch_document(3) in catalog.gaps()[-1].cause


async def test_a_machine_that_is_listed_again_has_only_what_is_new_read(
    machine: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_one(machine.store)
    readers = listing.Readers()
    read: list[int] = []
    real = BlobStore.read

    async def counted(self: BlobStore, name: str, *args: Any, **more: Any) -> bytes:
        data = await real(self, name, *args, **more)
        if "/index-" in name:
            read.append(len(data))
        return data

    monkeypatch.setattr(BlobStore, "read", counted)
    await machine.begin_epoch()
    machine.write(mark="a")
    await machine.publish()
    assert len((await listing.read(store, machine.name, readers)).points) == 1
    machine.write(mark="b")
    await machine.publish()
    assert len((await listing.read(store, machine.name, readers)).points) == 2
    assert len((await listing.read(store, machine.name, readers)).points) == 2
    assert sum(read) == (await machine.store.properties(names.index(1, 1))).size_b
    await spoil(machine, names.index(1, 1), b"no line\n")
    for _ in range(2):  # what was damaged is looked at anew: somebody may have mended it
        assert "damaged" in (await listing.read(store, machine.name, readers)).gaps[-1].cause


async def test_a_log_of_weeks_is_read_whole(machine: ModelMachine) -> None:
    """50,000 segments, five seconds apart, in two blobs of the index; each hundredth has a mark."""
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    writer = machine.writer
    count, before = 50_000, writer.fold.entries[-1]
    first = before.last + 1
    entries = []
    for number in range(first, first + count):
        captured_ns = START_NS + number * 5 * SECOND_NS
        digest = f"{number:032x}"
        entries.append(
            msgspec.structs.replace(
                before,
                blob=names.segment(1, 1, "0" * 16, number),
                first=number,
                last=number,
                first_captured_ns=captured_ns,
                last_captured_ns=captured_ns,
                end_seq=number * 10,
                predecessor=before.last_digest,
                last_digest=digest,
                ordered=((number, number),),
                marks=(MarkRow(number, f"m{number}", "crash", captured_ns),) if number % 100 == 0 else (),
                written_ns=captured_ns,
            )
        )
        before = entries[-1]
    for start in range(0, count, 4000):
        await writer.append(entries[start : start + 4000])
    assert writer.fold.number == 2
    catalog = await Catalog.load(machine.store, machine.name)
    last = first + count - 1
    assert len(catalog.entries(1)) == count + 1
    assert await resolve(catalog, "latest") == Position.of(1, last)
    assert len(catalog.points()) == count // 100
    assert catalog.points()[-1].batch == last // 100 * 100
    assert [gap.until for gap in catalog.gaps()] == [machine.position]
    assert await resolve(catalog, f"1-{last - 40_000}") == Position.of(1, last - 40_000)

"""Index writer and reader against real blob storage: terms, fences, rotation, storage that forgot, damaged
segments.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shared.blob import BlobStore, Lease
from shared.errors import (
    BlobNotFoundError,
    FencedError,
    IndexDamagedError,
    IndexMissingError,
    IntegrityError,
    OtherEpochSegmentError,
    SegmentAlteredError,
    SegmentMissingError,
    SegmentTruncatedError,
    StorageForgotError,
    TransientError,
    WrongKeyError,
)
from shared.keys.vault import FileVault, machine_key
from shared.log import chain, names
from shared.log.chain import IndexChain
from shared.log.epochs import EpochDisk, EpochInfo, allocate_epoch, newest_epoch
from shared.log.index import NEWEST, Line, decode_up_to_damage
from shared.log.reader import LogReader
from shared.log.terms import TermDocument, create, newest_term
from shared.log.writer import IndexWriter
from tests.epoch_ids import eid
from tests.lives import copied, forget_log, set_back
from tests.logs import OTHER_KEY, VAULT, KnownKeys, Made, make_chain, put_segment

M, E = "m1", eid(1)


async def test_what_one_owner_lists_a_reader_reads(store: BlobStore) -> None:
    chain = make_chain(7)
    writer = await IndexWriter.take(store, M, E, "ps1")
    reader = LogReader(store, M)
    assert await reader.entries(E) == []
    first = await put_segment(store, chain[:3])
    second = await put_segment(store, chain[3:])
    await writer.append([first])
    assert await reader.entries(E) == [first]
    await writer.append([second])
    assert await reader.entries(E) == [first, second]
    assert await reader.entries(E, after=3) == [second]
    assert await reader.entries(E, after=2) == [first, second]
    assert await reader.entries(E, after=7) == []
    assert [b.number for b in await reader.batches(E, second, VAULT)] == [4, 5, 6, 7]
    some = await reader.batches(E, second, VAULT, first=5, last=6)
    assert [(b.number, bytes(b.payload)) for b in some] == [
        (m.batch.number, bytes(m.batch.payload)) for m in chain[4:6]
    ]
    assert [row.number for row in await reader.footer(first)] == [1, 2, 3]


async def test_a_stale_owner_is_fenced_and_the_new_one_continues(store: BlobStore) -> None:
    chain = make_chain(6)
    old = await IndexWriter.take(store, M, E, "ps1")
    await old.append([await put_segment(store, chain[:2], term=old.term)])
    new = await IndexWriter.take(store, M, E, "ps2", known_last=2)
    assert (old.term, new.term, new.fold.last) == (1, 2, 2)
    late = await put_segment(store, chain[2:4], term=old.term)
    with pytest.raises(FencedError):
        await old.append([late])
    with pytest.raises(FencedError):
        await old.check()
    await new.append([await put_segment(store, chain[2:6], term=new.term)])
    with pytest.raises(FencedError):
        await old.append([late])
    entries = await LogReader(store, M).entries(E)
    assert [(e.term, e.first, e.last) for e in entries] == [(1, 1, 2), (2, 3, 6)]
    await new.check()


async def test_an_owner_that_lost_its_lease_but_not_its_term_goes_on(store: BlobStore) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    await store.leases.break_now(names.index(E.number, 1))
    await writer.append([await put_segment(store, make_chain(1))])
    assert len(await LogReader(store, M).entries(E)) == 1


async def test_of_many_owners_at_once_every_listed_segment_has_one_history(store: BlobStore) -> None:
    """Eight owners take the log at the same time and append until they are fenced: no entry is lost, none
    doubled.
    """
    listed: list[tuple[int, int]] = []

    async def own(owner: int) -> None:
        writer = await IndexWriter.take(store, M, E, f"ps{owner}", max_blocks=7)
        for _ in range(3):
            last = writer.fold.last
            predecessor = bytes.fromhex(writer.fold.last_digest)
            made = make_chain(2, first=last + 1, predecessor=predecessor, seed=owner)
            entry = await put_segment(store, made, term=writer.term)
            await writer.append([entry])
            listed.append((writer.term, entry.last))  # what `uploaded` would say

    results = await asyncio.gather(*(own(i) for i in range(8)), return_exceptions=True)
    assert all(r is None or isinstance(r, FencedError) for r in results), results
    entries = await LogReader(store, M).entries(E)
    assert [(e.term, e.last) for e in entries] == sorted(listed, key=lambda item: item[1])
    assert [e.term for e in entries] == sorted(e.term for e in entries)
    assert any(r is None for r in results)


async def test_the_index_goes_on_in_the_next_blob(store: BlobStore) -> None:
    chain = make_chain(12)
    reader = LogReader(store, M)
    writer = await IndexWriter.take(store, M, E, "ps1", max_blocks=4)
    for i in range(12):
        if i == 7:
            writer = await IndexWriter.take(store, M, E, "ps2", max_blocks=4)
        await writer.append([await put_segment(store, chain[i : i + 1], term=writer.term)])
        assert [e.last for e in await reader.entries(E)] == list(range(1, i + 2))
    blobs = [b async for b in store.list(names.epoch_folder(E.number) + "index-")]
    assert len(blobs) >= 4
    assert [b.leased for b in blobs] == [False] * (len(blobs) - 1) + [True]
    assert [e.last for e in await LogReader(store, M).entries(E)] == list(range(1, 13))
    await writer.release()
    assert not (await store.properties(blobs[-1].name)).leased


@pytest.mark.parametrize(("piece_b", "inline_b"), [(10, 0), (1000, 0), (1000, 1 << 20), (1 << 20, 0)])
async def test_an_index_is_read_in_pieces_of_whole_lines_and_large_ones_in_a_thread(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, piece_b: int, inline_b: int
) -> None:
    made = make_chain(12)
    writer = await IndexWriter.take(store, M, E, "ps1", max_blocks=7)
    listed = []
    for one in made:
        listed.append(await put_segment(store, [one], term=writer.term))
        await writer.append(listed[-1:])
    threads: set[bool] = set()

    def decode(data: bytes, name: str) -> tuple[list[Line], IndexDamagedError | None]:
        threads.add(threading.current_thread() is not threading.main_thread())
        return decode_up_to_damage(data, name)

    monkeypatch.setattr(chain, "_PIECE_B", piece_b)
    monkeypatch.setattr(chain, "_INLINE_B", inline_b)
    monkeypatch.setattr(chain, "decode_up_to_damage", decode)
    index = IndexChain(store, M, E)
    pieces = [entries async for entries in index.read_on()]
    assert [entry for entries in pieces for entry in entries] == listed
    assert max(len(entries) for entries in pieces) <= max(piece_b // 400, 1)
    assert threads == {inline_b == 0}
    assert await LogReader(store, M).entries(E) == listed
    again = await IndexWriter.take(store, M, E, "ps2", known_last=12)
    assert list(again.fold.entries) == listed[-NEWEST:]
    await again.check()


async def test_an_index_that_is_damaged_behind_the_first_piece_is_known_up_to_there(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    listed = [await put_segment(store, [made], term=writer.term) for made in make_chain(4)]
    for entry in listed:
        await writer.append([entry])
    await writer.release()
    size_b = (await store.properties(names.index(E.number, 1))).size_b
    await store.append(names.index(E.number, 1), b"no line", None, size_b)
    monkeypatch.setattr(chain, "_PIECE_B", 10)
    index = IndexChain(store, M, E)
    found = []
    for _ in range(2):
        with pytest.raises(IndexDamagedError):
            async for entries in index.read_on():
                found += entries
    assert 0 < len(found) < 5
    assert found == listed[: len(found)]


async def test_an_owner_that_died_between_the_next_blob_and_closing_is_succeeded(store: BlobStore) -> None:
    await IndexWriter.take(store, M, E, "ps1", max_blocks=2)
    await store.append_create(names.index(E.number, 2))  # and then it was killed
    successor = await IndexWriter.take(store, M, E, "ps2", max_blocks=2)
    for made in make_chain(3):
        await successor.append([await put_segment(store, [made], term=2)])
    assert (successor.fold.last, successor.fold.number) == (3, 4)
    assert len(await LogReader(store, M).entries(E)) == 3


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_log_that_lost_a_blob_of_its_index_is_not_taken(number: int, store: BlobStore) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1", max_blocks=2)
    for made in make_chain(3):
        await writer.append([await put_segment(store, [made])])
    assert writer.fold.number == 3
    await store.leases.break_now(names.index(E.number, number))
    await store.delete(names.index(E.number, number))
    with pytest.raises(StorageForgotError, match=f"index-{number:06d} is gone"):
        await IndexWriter.take(store, M, E, "ps2")
    with pytest.raises(IndexMissingError, match=f"index-{number:06d} is gone"):
        await LogReader(store, M).entries(E)


async def test_an_append_that_does_not_continue_the_log_is_refused_before_it_is_written(
    store: BlobStore,
) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    with pytest.raises(IndexDamagedError):
        await writer.append([await put_segment(store, make_chain(2, first=5))])
    assert await LogReader(store, M).entries(E) == []


async def test_storage_that_forgot_index_entries_is_noticed(store: BlobStore) -> None:
    chain = make_chain(4)
    writer = await IndexWriter.take(store, M, E, "ps1")
    index = names.index(E.number, 1)
    before = await store.read(index)
    await writer.append([await put_segment(store, chain[:2])])
    reader = LogReader(store, M)
    await reader.entries(E)
    await store.leases.break_now(index)
    await store.delete(index)
    await store.append_create(index)
    await store.append(index, before, None, 0)
    with pytest.raises(StorageForgotError):
        await writer.check()
    with pytest.raises(StorageForgotError):
        await writer.append([await put_segment(store, chain[2:])])
    with pytest.raises(StorageForgotError):
        await reader.entries(E)
    with pytest.raises(StorageForgotError):
        await IndexWriter.take(store, M, E, "ps1", known_last=2)
    await store.leases.break_now(index)
    await store.delete(index)
    with pytest.raises(StorageForgotError):
        await writer.check()


async def test_storage_that_forgot_a_listed_segment_or_the_terms_is_noticed(store: BlobStore) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    entry = await put_segment(store, make_chain(2))
    await writer.append([entry])
    await writer.check()
    await store.delete(entry.blob)
    with pytest.raises(StorageForgotError, match="uploaded, and is gone"):
        await writer.check()
    with pytest.raises(StorageForgotError):
        await IndexWriter.take(store, M, E, "ps1")
    await store.create(entry.blob, b"short")
    with pytest.raises(StorageForgotError):
        await IndexWriter.take(store, M, E, "ps1")
    for term in (1, 2, 3):
        await store.delete(names.term_document(E.number, term))
    with pytest.raises(StorageForgotError):
        await writer.check()


async def test_what_people_put_beside_a_log_is_no_part_of_it(store: BlobStore) -> None:
    for stray in (
        names.segment(1, 1, "0" * 16, 1) + ".bak",
        names.index(1, 1) + " - Copy",
        "logs/99/epoch.json",
    ):
        await store.create(stray, b"x")
    await store.create(names.term_prefix(1) + "00000001 - Copy.json", b"x")
    writer = await IndexWriter.take(store, M, E, "ps1")
    await writer.append([await put_segment(store, make_chain(2))])
    await writer.check()
    assert writer.taken == await newest_term(store, 1)
    assert await newest_epoch(store) == 1


@pytest.mark.parametrize("gone", [0, 1])
async def test_what_was_uploaded_before_storage_was_set_back_is_not_listed(
    store: BlobStore, gone: int
) -> None:
    """Set back between upload and listing: the index is as long as it was left, and the term is ours."""
    writer = await IndexWriter.take(store, M, E, "ps1")
    chain = make_chain(4)
    await writer.append([await put_segment(store, chain[:1])])
    uploaded = []
    for number in (1, 2):
        if number == 1 + gone:
            older = await copied(store)
        uploaded.append(await put_segment(store, chain[number : number + 1]))
    await set_back(store, older)
    for entry in uploaded[:gone]:  # under a new lease, which no later append loses
        await writer.append([entry])
    with pytest.raises(StorageForgotError, match="uploaded, and is gone"):
        await writer.append([uploaded[gone]])
    assert [e.last for e in await LogReader(store, M).entries(E)] == [*range(1, 2 + gone)]


@pytest.mark.parametrize(
    ("before", "cause"), [("_claim", "index-000002 is gone"), ("_take_lease", "index-000001 has")]
)
async def test_a_rotation_during_which_storage_is_set_back_is_noticed(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, before: str, cause: str
) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1", max_blocks=2)
    chain = make_chain(2)
    await writer.append([await put_segment(store, chain[:1])])
    older = await copied(store)
    entry = await put_segment(store, chain[1:])
    going_on = getattr(writer, before)

    async def set_back_first() -> object:
        await set_back(store, older)
        return await going_on()

    monkeypatch.setattr(writer, before, set_back_first)
    with pytest.raises(StorageForgotError, match=cause):
        await writer.append([entry])


async def test_epochs_are_allocated_one_by_one(store: BlobStore) -> None:
    disks = [EpochDisk(number=0, name="sda", serial="s", sectors=8)]
    made = [await allocate_epoch(store, M, disks=disks, reason=f"test {i}", agent_id="a") for i in range(3)]
    assert [info.epoch for info in made] == [1, 2, 3]
    assert len({info.claim for info in made}) == 3
    assert await newest_epoch(store) == 3
    assert await LogReader(store, M).epochs() == made
    above = await allocate_epoch(store, M, disks=disks, reason="test", agent_id="a", above=7)
    assert above.epoch == 8


async def test_of_several_that_begin_an_epoch_at_once_one_does_and_nobody_ends_it(store: BlobStore) -> None:
    disks = [EpochDisk(number=0, name="sda", serial="s", sectors=8)]
    made = await asyncio.gather(
        *(
            allocate_epoch(store, M, disks=disks, reason="test", agent_id="a", owner=f"ps{i}", above=0)
            for i in range(5)
        ),
        return_exceptions=True,
    )
    begun = [info for info in made if isinstance(info, EpochInfo)]
    told = [error for error in made if isinstance(error, TransientError)]
    assert (len(begun), len(told)) == (1, 4)
    assert await newest_epoch(store) == begun[0].epoch == 1
    assert all(f"through process server {begun[0].owner}" in error.cause for error in told)


@pytest.mark.parametrize("data", [b"", b'{"reason":"\xff"}', b'{"reason":' + b"[" * 100_000])
async def test_an_epoch_document_that_cannot_be_read_is_damage(store: BlobStore, data: bytes) -> None:
    await store.create(names.epoch_document(E.number), data)
    with pytest.raises(IndexDamagedError, match=r"epoch\.json"):
        await LogReader(store, M).epochs()


async def damaged(
    store: BlobStore, made: list[Made], change: bytes | None
) -> tuple[LogReader, IntegrityError]:
    """What a reader says of a segment whose blob was replaced by `change` (None: deleted)."""
    entry = await put_segment(store, made)
    await store.delete(entry.blob)
    if change is not None:
        await store.create(entry.blob, change)
    reader = LogReader(store, M)
    with pytest.raises(IntegrityError) as caught:
        await reader.batches(E, entry, VAULT)
    return reader, caught.value


async def test_a_missing_a_truncated_and_an_altered_segment_are_told_apart_by_name(store: BlobStore) -> None:
    made = make_chain(3)
    entry = await put_segment(store, made)
    data = await store.read(entry.blob)
    await store.delete(entry.blob)
    for change, kind in (
        (None, SegmentMissingError),
        (data[:-100], SegmentTruncatedError),
        (b"", SegmentTruncatedError),
        (data[:500] + b"\x00" + data[501:], SegmentAlteredError),
        (bytes(len(data)), IntegrityError),
    ):
        await store.delete(entry.blob)
        _, error = await damaged(store, made, change)
        assert isinstance(error, kind)
        assert entry.blob in error.what
        assert error.cause
        assert error.action
        await store.delete(entry.blob)
    other = await put_segment(store, make_chain(3, seed=9))  # whole, but not the one that the index lists
    with pytest.raises(SegmentAlteredError):
        await LogReader(store, M).batches(E, entry, VAULT)
    assert other.blob == entry.blob


async def test_a_wrong_key_is_named_as_such(store: BlobStore) -> None:
    entry = await put_segment(store, make_chain(2))
    with pytest.raises(WrongKeyError) as caught:
        await LogReader(store, M).batches(E, entry, KnownKeys(OTHER_KEY))
    assert "vault-key-1" in caught.value.cause


async def test_a_large_footer_is_read_whole(store: BlobStore) -> None:
    entry = await put_segment(store, make_chain(900, sectors=0))
    reader = LogReader(store, M)
    assert len(await reader.footer(entry)) == 900
    assert len(await reader.batches(E, entry, VAULT)) == 900


async def test_a_machine_document_that_was_lost_and_made_anew_takes_no_segment_away(
    store: BlobStore, tmp_path: Path
) -> None:
    vault = FileVault.create(tmp_path / "vault")
    with pytest.raises(BlobNotFoundError):
        await machine_key(store, vault, M)
    keys = await asyncio.gather(*(machine_key(store, vault, M, create=True) for _ in range(4)))
    assert len({key.key for key in keys}) == 1
    chain = make_chain(4)
    first = await put_segment(store, chain[:2], key=keys[0])
    await store.delete(names.KEY_DOCUMENT)
    reader = LogReader(store, M)
    assert [b.number for b in await reader.batches(E, first, vault)] == [1, 2]
    other = await machine_key(store, vault, M, create=True)
    assert other.key != keys[0].key
    second = await put_segment(store, chain[2:], key=other)
    assert [b.number for e in (first, second) for b in await reader.batches(E, e, vault)] == [1, 2, 3, 4]
    with pytest.raises(WrongKeyError):
        await LogReader(store, M).batches(E, first, FileVault.create(tmp_path / "other"))


async def test_the_index_of_another_life_is_not_read_nor_gone_on_with(store: BlobStore) -> None:
    """`epoch.json` and the index come from different copies of storage."""
    writer = await IndexWriter.take(store, M, E, "ps1")
    await writer.append([await put_segment(store, make_chain(3))])
    await writer.release()
    other = eid(1, life=2)
    with pytest.raises(IndexDamagedError, match="that of another epoch with this number"):
        await LogReader(store, M).entries(other)
    with pytest.raises(StorageForgotError, match="that of another epoch with this number"):
        await IndexWriter.take(store, M, other, "ps1")
    assert len(await LogReader(store, M).entries(E)) == 1


async def test_a_reader_that_remembers_one_life_never_reads_another_into_it(store: BlobStore) -> None:
    empty, begun = LogReader(store, M), LogReader(store, M)
    assert await empty.entries(E) == []
    writer = await IndexWriter.take(store, M, E, "ps1")
    await writer.append([await put_segment(store, make_chain(3))])
    assert len(await begun.entries(E)) == 1
    await writer.release()
    await forget_log(store, 1)
    other = eid(1, life=2)
    writer = await IndexWriter.take(store, M, other, "ps1")
    for first in (1, 2):
        made = make_chain(2, seed=7)[first - 1 : first]
        await writer.append([await put_segment(store, made, claim=other.claim)])
    for reader in (empty, begun):
        with pytest.raises((IndexDamagedError, StorageForgotError)):
            await reader.entries(E)


async def test_a_segment_of_another_life_is_refused(store: BlobStore) -> None:
    entry = await put_segment(store, make_chain(3), claim=eid(1, life=2).claim)
    reader = LogReader(store, M)
    with pytest.raises(OtherEpochSegmentError, match="is of another epoch"):
        await reader.batches(E, entry, VAULT)
    with pytest.raises(OtherEpochSegmentError, match="is of another epoch"):
        await reader.check_key(E, entry, VAULT)


async def test_an_owner_whose_terms_number_was_given_out_again_is_fenced(store: BlobStore) -> None:
    """Storage was set back to before the claim, and another took the same number: the index is as long as it was."""
    old = await IndexWriter.take(store, M, E, "ps1")
    await store.delete(names.term_document(E.number, old.term))
    await old.release()
    await store.delete(names.index(E.number, 1))
    new = await IndexWriter.take(store, M, E, "ps2")
    assert new.term == old.term
    chain = make_chain(2)
    late = await put_segment(store, chain[:1], term=9)
    for _ in range(2):
        with pytest.raises(FencedError):
            await old.append([late])
        with pytest.raises(FencedError):
            await old.check()
    await new.append([await put_segment(store, chain, term=new.term)])
    assert [e.last for e in await LogReader(store, M).entries(E)] == [2]


async def test_a_term_whose_document_cannot_be_read_is_nobodys_and_the_next_is_taken(
    store: BlobStore,
) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    document = names.term_document(E.number, writer.term)
    await store.delete(document)
    await store.create(document, b"{")
    with pytest.raises(FencedError, match="document of our term 1 cannot be read"):
        await writer.check()
    again = await IndexWriter.take(store, M, E, "ps1")
    assert again.term == 2
    await again.append([await put_segment(store, make_chain(2), term=again.term)])
    await again.check()


async def test_a_term_whose_metadata_were_left_behind_is_told_by_its_document(store: BlobStore) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    await store.set_metadata(names.term_document(E.number, 1), {})
    await writer.check()
    assert await newest_term(store, E.number) == writer.taken


def _stopped_before_the_lease(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[None]]
) -> None:
    """Whoever next wants the lease of the index looks away for a moment, in which this happens."""
    acquire = store.leases.acquire

    async def slowly(name: str, seconds: int = 60, lease_id: str | None = None) -> Lease:
        monkeypatch.setattr(store.leases, "acquire", acquire)
        await meanwhile()
        return await acquire(name, seconds, lease_id)

    monkeypatch.setattr(store.leases, "acquire", slowly)


async def test_an_owner_whose_lease_another_is_quicker_to_take_takes_it_again(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await IndexWriter.take(store, M, E, "ps1")
    index = names.index(E.number, 1)

    async def another_takes_the_lease() -> None:
        await store.leases.acquire(index)

    await store.leases.break_now(index)
    _stopped_before_the_lease(store, monkeypatch, another_takes_the_lease)
    await writer.append([await put_segment(store, make_chain(1))])
    assert len(await LogReader(store, M).entries(E)) == 1


@pytest.mark.parametrize("max_blocks", [2, 1000], ids=["closes", "lists"])
async def test_an_owner_whose_term_storage_gave_to_another_just_before_it_took_the_lease_lists_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, max_blocks: int
) -> None:
    """The other's claim is as long as ours was, so the size of the index tells nothing; nor does the segment: a secondary may have it."""
    await IndexWriter.take(store, M, E, "ps0")
    older = await copied(store)
    old = await IndexWriter.take(store, M, E, "ps1", max_blocks=max_blocks)
    chain = make_chain(2)
    late = await put_segment(store, chain[:1], term=9)
    older |= await copied(store, late.blob)
    owners: list[IndexWriter] = []

    async def another_takes_it() -> None:
        await set_back(store, older)
        owners.append(await IndexWriter.take(store, M, E, "ps2"))
        await store.leases.break_now(names.index(E.number, 1))

    await store.leases.break_now(names.index(E.number, 1))
    _stopped_before_the_lease(store, monkeypatch, another_takes_it)
    with pytest.raises(FencedError, match="set back, and gave our term"):
        await old.append([late])
    (new,) = owners
    assert new.term == old.term
    await new.append([await put_segment(store, chain, term=new.term)])
    assert [e.last for e in await LogReader(store, M).entries(E)] == [2]


@pytest.mark.parametrize("wins", ["ps2", "nobody"])
async def test_whoever_takes_the_log_and_loses_its_term_before_the_lease_claims_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, wins: str
) -> None:
    """Storage is set back to before the term, and another takes that number, or none does."""
    first = await IndexWriter.take(store, M, E, "ps0")
    older = await copied(store)
    index = await store.read(names.index(E.number, 1))

    async def set_back_and_given_out() -> None:
        await set_back(store, older)
        if wins == "ps2":
            document = TermDocument(term=2, owner="ps2", claim="2" * 16, after=0, created_ns=0)
            assert await create(store, E.number, document) is not None

    _stopped_before_the_lease(store, monkeypatch, set_back_and_given_out)
    with pytest.raises(FencedError if wins == "ps2" else StorageForgotError):
        await IndexWriter.take(store, M, E, "ps1")
    found = names.index(E.number, 1)
    assert await store.read(found) == index, "no claim of a term that is not there"
    assert not (await store.properties(found)).leased, "whose it is finds it free"
    assert (await newest_term(store, E.number)).number == (2 if wins == "ps2" else first.term)

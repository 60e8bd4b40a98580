"""Which batch may come next, and what it may touch."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest

from shared.batch import (
    EXTENT,
    NO_DIGEST,
    Batch,
    BatchMeta,
    BatchNumber,
    Epoch,
    Extents,
    Op,
    Seq,
    StreamState,
    make_extents,
)
from shared.errors import BatchConflictError, BatchGapError, ContinuityError, MalformedFrameError
from shared.wire.messages import DiskInfo
from shared.wire.sequence import NAMED_MAX, REMEMBERED, Sequence

D1, D2, D3 = (bytes([n]) * 16 for n in (1, 2, 3))
DISKS = (
    DiskInfo(number=0, name="loop0", serial="", sectors=1000),
    DiskInfo(number=3, name="loop1", serial="", sectors=10),
)


def batch(
    number: int,
    predecessor: bytes = NO_DIGEST,
    *,
    epoch: int = 1,
    seq: int = 0,
    extents: Extents | None = None,
) -> Batch:
    return Batch(
        epoch=Epoch(epoch),
        number=BatchNumber(number),
        end_seq=Seq(seq or number),
        captured_ns=0,
        state=StreamState.ORDERED,
        predecessor=predecessor,
        extents=make_extents([]) if extents is None else extents,
        payload=b"",
    )


def fresh(last: int = 0, digest: bytes = NO_DIGEST) -> Sequence:
    return Sequence(Epoch(1), BatchNumber(last), Seq(last), digest, DISKS)


def test_a_chain_is_taken() -> None:
    sequence = fresh()
    assert sequence.take(batch(1), D1)
    assert sequence.take(batch(2, D1), D2)
    assert (sequence.last, sequence.end_seq) == (2, 2)


def test_a_chain_goes_on_behind_the_welcomed_position() -> None:
    assert fresh(7, D3).take(batch(8, D3), D1)
    with pytest.raises(ContinuityError):
        fresh(7, D3).take(batch(8, D2), D1)


def test_a_gap_is_refused_and_nothing_is_taken() -> None:
    sequence = fresh()
    with pytest.raises(BatchGapError):
        sequence.take(batch(2, D1), D2)
    assert sequence.last == 0


def test_a_duplicate_is_dropped() -> None:
    sequence = fresh(7, D3)
    assert sequence.take(batch(8, D3), D1)
    assert not sequence.take(batch(8, D3), D1)
    assert not sequence.take(batch(7), D3)
    assert sequence.last == 8


def test_a_duplicate_with_another_digest_ends_the_epoch() -> None:
    sequence = fresh(7, D3)
    with pytest.raises(BatchConflictError) as caught:
        sequence.take(batch(7), D1)
    assert caught.value.ends_epoch


def test_a_duplicate_too_old_to_be_compared_is_refused_without_ending_the_epoch() -> None:
    sequence = fresh(7, D3)
    with pytest.raises(BatchGapError) as caught:
        sequence.take(batch(6), D1)
    assert not caught.value.ends_epoch


def test_the_memory_of_digests_is_bounded() -> None:
    sequence = fresh()
    for number in range(1, REMEMBERED + 10):
        predecessor = NO_DIGEST if number == 1 else (number - 1).to_bytes(16, "little")
        assert sequence.take(batch(number, predecessor), number.to_bytes(16, "little"))
    assert len(sequence._digests) == REMEMBERED
    assert not sequence.take(batch(sequence.last), sequence.last.to_bytes(16, "little"))


def test_another_epoch_is_refused() -> None:
    with pytest.raises(MalformedFrameError):
        fresh().take(batch(1, epoch=2), D1)


def test_a_ring_position_never_goes_back() -> None:
    sequence = fresh(7, D3)
    with pytest.raises(MalformedFrameError):
        sequence.take(batch(8, D3, seq=6), D1)
    with pytest.raises(MalformedFrameError):
        sequence.take(batch(8, D3, seq=2**63), D1)
    assert sequence.take(batch(8, D3, seq=7), D1)


@pytest.mark.parametrize(
    ("sector", "sectors", "disk", "op"),
    [
        (1000, 1, 0, Op.WRITE),
        (999, 2, 0, Op.ZERO),
        (2**64 - 1, 8, 0, Op.WRITE),
        (2**64 - 8, 8, 0, Op.WRITE),
        (0, 1001, 0, Op.WRITE),
        (0, 2**32 - 1, 0, Op.ZERO),
        (0, 0, 0, Op.WRITE),
        (0, 1, 1, Op.WRITE),
        (0, 1, 4, Op.WRITE),
        (0, 1, 2**16 - 1, Op.WRITE),
        (10, 1, 3, Op.SYNC),
        (0, 1, 0, 0),
        (0, 1, 0, 5),
    ],
)
def test_an_extent_that_could_never_be_applied_is_refused(
    sector: int, sectors: int, disk: int, op: int
) -> None:
    extents = np.zeros(2, EXTENT)
    extents[0] = (0, 1, 0, Op.ZERO, 0)
    extents[1] = (sector, sectors, disk, op, 0)
    sequence = fresh()
    with pytest.raises(MalformedFrameError):
        sequence.take(batch(1, extents=extents), D1)
    assert sequence.last == 0


@pytest.mark.parametrize("named", [(1, 0, 1), (4, 0, 1), (0, 1000, 1), (3, 0, 11), (0, 2**55 - 1, 8)])
def test_what_is_named_unreadable_is_on_a_disk(named: tuple[int, int, int]) -> None:
    def naming(*ranges: tuple[int, int, int]) -> Batch:
        return msgspec.structs.replace(batch(1), meta=BatchMeta(unreadable=ranges))

    with pytest.raises(MalformedFrameError):
        fresh().take(naming((0, 0, 1000), named), D1)
    assert fresh().take(naming((0, 0, 1000), (3, 9, 1)), D1)


@pytest.mark.parametrize("more", [0, 1])
def test_more_than_any_agent_names_in_a_batch_is_refused(more: int) -> None:
    meta = BatchMeta(unreadable=((0, 0, 1),) * (NAMED_MAX + more))
    sequence = fresh()
    with pytest.raises(MalformedFrameError, match="too much") if more else contextlib.nullcontext():
        sequence.take(msgspec.structs.replace(batch(1), meta=meta), D1)
    assert sequence.last == 1 - more


def test_extents_up_to_the_last_sector_are_taken() -> None:
    rows = [(0, 0, 1000, Op.ZERO), (0, 999, 1, Op.WRITE), (3, 9, 1, Op.SYNC), (3, 0, 10, Op.SYNC_ZERO)]
    assert fresh().take(batch(1, extents=make_extents(rows)), D1)


def test_a_machine_without_disks_can_send_empty_batches_only() -> None:
    sequence = Sequence(Epoch(1), BatchNumber(0), Seq(0), NO_DIGEST, ())
    assert sequence.take(batch(1), D1)
    with pytest.raises(MalformedFrameError):
        sequence.take(batch(2, D1, extents=make_extents([(0, 0, 1, Op.ZERO)])), D2)

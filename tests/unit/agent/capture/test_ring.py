"""The ring's reader over a file that looks like the kernel's ring: wrap, busy, discarded, cursors."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from agent.capture.layout import DATA_AT, RECORD_SIZE
from agent.capture.ring import Ring
from shared.errors import IntegrityError

SIZE_B = 1 << 16
PAGE = mmap.PAGESIZE
HELD = SIZE_B // RECORD_SIZE


class Kernel:
    """Writes the pages as the kernel does; the second copy of the data is kept equal by hand."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE_B)
        self.bytes = np.frombuffer(mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE_B), np.uint8)
        self.produced = 0

    def put(self, *, busy: bool = False, discarded: bool = False) -> int:
        """Appends a record whose sector and data are its seq."""
        seq = self.produced
        record = np.zeros(RECORD_SIZE, np.uint8)
        record[:4] = np.array([4152 | busy << 31 | discarded << 30], np.uint32).view(np.uint8)
        record[32:40] = np.array([seq], np.uint64).view(np.uint8)
        record[DATA_AT:] = seq % 251
        at = np.arange(seq * RECORD_SIZE, (seq + 1) * RECORD_SIZE) % SIZE_B
        for copy in (0, SIZE_B):
            self.bytes[2 * PAGE + copy + at] = record
        self.produced += 1
        self.bytes[PAGE : PAGE + 8] = np.array([self.produced * RECORD_SIZE], np.uint64).view(np.uint8)
        return seq

    def commit(self, seq: int) -> None:
        for copy in (0, SIZE_B):
            self.bytes[2 * PAGE + copy + (seq * RECORD_SIZE + 3) % SIZE_B] &= 0x7F


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(kernel: Kernel) -> Ring:
    return Ring(kernel.fd, SIZE_B)


def sectors(ring: Ring, limit: int = 1000) -> list[int]:
    found: list[int] = ring.peek(limit).headers["sector"].tolist()
    return found


def test_an_empty_ring_gives_an_empty_window(ring: Ring) -> None:
    window = ring.peek(10)
    assert (len(window), window.first_seq, window.data.shape) == (0, 0, (0, 4096))
    assert ring.used_b == 0


def test_records_are_seen_across_the_wrap_again_and_again(kernel: Kernel, ring: Ring) -> None:
    for _ in range(10):
        first = kernel.produced
        put = [kernel.put() for _ in range(HELD - 2)]
        assert ring.used_b == len(put) * RECORD_SIZE
        window = ring.peek(1000)
        assert window.first_seq == first
        assert window.headers["sector"].tolist() == put
        assert (window.data == np.array(put)[:, None] % 251).all()
        ring.free_to(kernel.produced)
        assert (ring.consumer_seq, ring.used_b) == (kernel.produced, 0)


def test_a_busy_record_ends_the_window_until_it_is_committed(kernel: Kernel, ring: Ring) -> None:
    kernel.put()
    busy = kernel.put(busy=True)
    kernel.put()
    assert sectors(ring) == [0]
    assert ring.producer_seq == 3
    kernel.commit(busy)
    assert sectors(ring) == [0, 1, 2]


def test_a_discarded_record_keeps_its_place_but_is_not_valid(kernel: Kernel, ring: Ring) -> None:
    kernel.put()
    kernel.put(discarded=True)
    kernel.put()
    assert ring.peek(10).valid.tolist() == [True, False, True]


def test_the_limit_bounds_the_window_and_peeking_does_not_move_the_cursor(kernel: Kernel, ring: Ring) -> None:
    for _ in range(5):
        kernel.put()
    assert sectors(ring, 2) == [0, 1]
    assert sectors(ring, 2) == [0, 1]
    ring.advance_to(2)
    assert sectors(ring, 2) == [2, 3]
    ring.rewind_to(1)
    assert sectors(ring) == [1, 2, 3, 4]
    assert ring.consumer_seq == 0


def test_freeing_takes_the_cursor_along(kernel: Kernel, ring: Ring) -> None:
    for _ in range(5):
        kernel.put()
    ring.free_to(3)
    assert (ring.read_seq, ring.consumer_seq) == (3, 3)
    ring.advance_to(5)
    ring.free_to(4)
    assert (ring.read_seq, ring.consumer_seq) == (5, 4)


def test_a_new_reader_begins_at_the_consumer(kernel: Kernel, ring: Ring) -> None:
    for _ in range(5):
        kernel.put()
    ring.advance_to(5)
    ring.free_to(2)
    assert sectors(Ring(kernel.fd, SIZE_B)) == [2, 3, 4]


@pytest.mark.parametrize(
    ("move", "seq"), [("free_to", 6), ("free_to", 1), ("rewind_to", 1), ("advance_to", 6)]
)
def test_cursors_cannot_leave_what_the_ring_holds(kernel: Kernel, ring: Ring, move: str, seq: int) -> None:
    for _ in range(5):
        kernel.put()
    ring.free_to(2)
    with pytest.raises(IntegrityError, match="holds records 2 to 5"):
        getattr(ring, move)(seq)

"""The kernel's ring buffer, as numpy arrays over its own memory.

Input: pages that the BPF programs write. Output: windows of whole records, never copied. Nothing here blocks.

Positions. A record's `seq` is its byte position ÷ RECORD_SIZE: records have one size, so positions are
multiples of it for ever, and position order is reservation order. `consumer_seq` ≤ read cursor ≤
`producer_seq`. The kernel reuses memory only below the consumer position, which only `free_to` moves; the
read cursor lives in this process alone, so after a crash reading begins again at the consumer.

Wrap. The kernel maps the data area twice, one behind the other, so a run of records that crosses the end is
contiguous here too.

Visibility. The kernel stores the record's length word with the busy bit, then releases the new producer
position; the program fills the record; submission exchanges the length word (a full barrier) for one
without busy bit. So: read the producer position, then the length words, then (behind a fence) the rest. A
record that is still busy ends the window: what stands behind it may be complete, but nothing may be taken
out of order.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.layout import BUSY, DATA_AT, DISCARDED, MAX_DISKS, RECORD, RECORD_SIZE
from shared.errors import IntegrityError

_PAGE: Final = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Window:
    """Committed records `first_seq`, `first_seq` + 1, …: views that are valid until `free_to` passes them."""

    first_seq: int
    headers: npt.NDArray[np.void]
    """(n,) of `layout.RECORD`, strided."""
    data: npt.NDArray[np.uint8]
    """(n, 4096): row i holds the data of record i; meaningless for ZERO and behind `sectors`."""
    valid: npt.NDArray[np.bool_]
    """(n,): False where the kernel discarded the record."""

    def __len__(self) -> int:
        return len(self.headers)


GONE: Final = 0xFFFF
"""The number of a slot whose disk left."""


def numbers(slots: Sequence[int]) -> npt.NDArray[np.uint16]:
    """By slot, the number of its disk in the stream, or GONE."""
    table = np.full(MAX_DISKS, GONE, np.uint16)
    table[list(slots)] = np.arange(len(slots), dtype=np.uint16)
    return table


class Ring:
    """A mapped BPF ring buffer of RECORD_SIZE records. `map_fd` may be closed afterwards; `size_b` is the
    map's max_entries.

    `slots`: the slots of the disks whose records are wanted, in the order of their numbers in the stream. Records of other
    slots are of disks that left: they are as if discarded, and `disk` is a number, not a slot."""

    def __init__(self, map_fd: int, size_b: int, slots: Sequence[int] | None = None) -> None:
        self.size_b: Final = size_b
        self._numbers = (
            numbers(slots) if slots is not None and list(slots) != list(range(len(slots))) else None
        )
        consumer = mmap.mmap(map_fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        producer = mmap.mmap(map_fd, _PAGE + 2 * size_b, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        self._consumer = np.frombuffer(consumer, np.uint64, 1)
        self._producer = np.frombuffer(producer, np.uint64, 1)
        self._memory = np.frombuffer(producer, np.uint8, 2 * size_b, offset=_PAGE)
        self._read_seq = self.consumer_seq
        self._fence_lock = threading.Lock()

    @property
    def producer_seq(self) -> int:
        """Every record reserved until now is below this."""
        return int(self._producer[0]) // RECORD_SIZE

    @property
    def consumer_seq(self) -> int:
        """Everything below this is freed."""
        return int(self._consumer[0]) // RECORD_SIZE

    @property
    def read_seq(self) -> int:
        """Where the next `peek` begins."""
        return self._read_seq

    @property
    def used_b(self) -> int:
        return (self.producer_seq - self.consumer_seq) * RECORD_SIZE

    def peek(self, limit: int) -> Window:
        """The committed records from the read cursor up to the first busy one, `limit` at most. Does not
        move the cursor."""
        first = self._read_seq
        count = max(0, min(limit, self.producer_seq - first))
        begin = first * RECORD_SIZE % self.size_b
        rows = self._memory[begin : begin + count * RECORD_SIZE].reshape(count, RECORD_SIZE)
        headers = rows.view(RECORD)[:, 0]
        length = headers["length"].copy()
        busy = np.flatnonzero(length & BUSY)
        if len(busy):
            count = int(busy[0])
        self._fence()
        headers, valid = headers[:count], (length[:count] & DISCARDED) == 0
        if self._numbers is not None:
            headers = headers.copy()
            number = self._numbers[headers["disk"] % MAX_DISKS]
            valid &= number != GONE
            headers["disk"] = number
        return Window(first, headers, rows[:count, DATA_AT:], valid)

    def advance_to(self, seq: int) -> None:
        """Moves the read cursor forward."""
        self._require(self._read_seq <= seq <= self.producer_seq, f"advance from {self._read_seq} to {seq}")
        self._read_seq = seq

    def rewind_to(self, seq: int) -> None:
        """Puts the read cursor anywhere in what is not freed."""
        self._require(self.consumer_seq <= seq <= self.producer_seq, f"move its reading to {seq}")
        self._read_seq = seq

    def free_to(self, seq: int) -> None:
        """Gives everything below `seq` back to the kernel. There is no way back."""
        self._require(self.consumer_seq <= seq <= self.producer_seq, f"free up to {seq}")
        self._read_seq = max(self._read_seq, seq)
        self._fence()  # what was read of these records was read before
        self._consumer[0] = seq * RECORD_SIZE

    def _require(self, possible: bool, what: str) -> None:
        if not possible:
            raise IntegrityError(
                f"The ring cannot {what}",
                cause=f"it holds records {self.consumer_seq} to {self.producer_seq}",
                action="This is a defect of the agent; restart it, it continues from what was acknowledged.",
            )

    def _fence(self) -> None:
        """Keeps loads in order on machines that reorder them (arm64; x86-64 does not). Python has no fence;
        a release followed by an acquire is one, and two turns of a lock contain that."""
        for _ in range(2):
            with self._fence_lock:
                pass

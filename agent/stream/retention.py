"""Retention of what was sent: what of the ring may be freed, and where emission goes on after a break. Never blocks.

The ring is the retransmit buffer. A batch that was cut is remembered by its positions only; if it has to be sent again, its records are
read from the ring again, perhaps into other batches, and its SYNC chunks are read from the disk again in a new round.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agent.capture.ring import Ring
from agent.stream.records import Records
from agent.stream.state import AgentState, Word


@dataclass(slots=True)
class _Sent:
    number: int
    free_seq: int
    """Ring positions below this one are not needed any more once the batch is safe."""


class Retention:
    def __init__(self, ring: Ring, state: AgentState, records: Records) -> None:
        self._ring = ring
        self._state = state
        self._records = records
        self._sent: deque[_Sent] = deque()

    def clear(self) -> None:
        """A new epoch: nothing of it was sent."""
        self._sent.clear()

    def sent(self, number: int) -> None:
        """Batch `number` was cut; it ends where emission stands now."""
        self._sent.append(_Sent(number, self._records.hold_from))

    def is_sent_behind(self, spooled: int) -> bool:
        """Whether batches behind `spooled` were sent, and are lost if the other end stands there."""
        return bool(self._sent) and self._sent[-1].number > spooled

    def go_on_behind(self, spooled: int, spooled_seq: int) -> None:
        """Emission goes on behind batch `spooled`, whose records end below ring position `spooled_seq`."""
        while self.is_sent_behind(spooled):
            self._sent.pop()
        emitted_to = spooled_seq if spooled else self._ring.consumer_seq
        if self._sent and self._sent[-1].number == spooled:
            self._records.go_to(emitted_to, self._sent[-1].free_seq)
        else:  # another process sent it, or it was freed
            self._records.go_to(emitted_to, None)
            self.sent(spooled)

    def acknowledged(self, spooled: int, uploaded: int) -> None:
        """Frees ring space: behind what is uploaded while the ring is under half full, else behind what is spooled. So a machine can
        move to another process server without a resync as long as the ring has room for what is not uploaded yet, and as the digests
        of what was sent are remembered (state.py: no shorter than that): what is too old for these is freed once it is spooled. That goes
        for whole steps of what this process knows: behind a restart the first of them is all that was spooled before, old and new."""
        has_room = self._ring.used_b * 2 < self._ring.size_b
        needed = self._state.least_freed
        if self._sent and needed > self._state[Word.FREED]:
            needed = max(needed, self._sent[0].number)
        safe = min(spooled, max(uploaded, needed)) if has_room else spooled
        free_seq = 0
        while self._sent and self._sent[0].number <= safe:
            free_seq = self._sent[0].free_seq
            self._state[Word.FREED] = self._sent.popleft().number
        if free_seq > self._ring.consumer_seq:
            self._ring.free_to(free_seq)

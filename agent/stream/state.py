"""What the agent must know after a kill: an array of 64-bit words in a pinned BPF map, and nowhere else.

It lives exactly as long as the capture that it describes: after a reboot both are gone, and no pins means a new epoch. Nothing is
written to a disk, so a protected disk never sees the agent's own writes.

A SIGKILL can fall between any two word stores. Every multi-word fact therefore has one word that makes it valid, stored last and
cleared first.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

from shared.batch import DIGEST_SIZE, Epoch

WORDS: Final = 4096
_LAYOUT: Final = 1
_RECENT_AT: Final = 64
_RECENT_WORDS: Final = 4
_RECENT: Final = (WORDS - _RECENT_AT) // _RECENT_WORDS


class Word(enum.IntEnum):
    LAYOUT = 0
    EPOCH = 1
    """0: a new epoch is wanted."""
    REASON = 2
    """Why the running (or wanted) epoch was begun: index into `Reason`."""
    LAST_CUT = 3
    """Highest batch number ever given out in this epoch; stored before the batch is sent."""
    FREED = 4
    """Number of the batch up to which the ring was freed: a process server below it cannot be served any more."""
    ORDERED = 5
    """1: the next two are valid."""
    LOSS_AT_ORDER = 6
    ORDERED_FROM = 7
    EVER_ORDERED = 8
    """1 once the epoch has been ordered: its full replication is done."""
    SETTLED = 9
    """1 once no write from before capture was attached can still be in flight."""
    EPOCHS_BEGUN = 10
    ROUNDS = 11
    CAPTURED_NS_BEFORE = 12
    """Not used any more: a wall-clock time."""
    SUSPECT_SINCE_NS = 13
    """Points captured from then on are suspect, up to the epoch that followed; Unix ns, 0: none."""
    MISSES_SEEN = 14
    PASSTHROUGH_SEEN = 15
    """Incident counts that have led to a new epoch already."""
    OPEN_MISSED_SEEN = 16
    """Writes in flight that are not among the open ones: how many had been when capture was last taken to be not settled for it."""
    IMAGE_BOOT_NS = 17
    """The moment of the newest image given out, on the boot clock: that of a later batch is never earlier."""


class Reason(enum.IntEnum):
    """Why an epoch begins, in REFERENCE's words for resync reasons."""

    INITIAL = 0
    AUDIT_SHORTFALL = 1
    CAPTURE_SKIPPED = 2
    PROCESS_SERVER_AHEAD = 3
    PROCESS_SERVER_BEHIND = 4
    DIGEST_MISMATCH = 5
    STORAGE_FORGOT = 6
    PASSTHROUGH_WRITE = 7
    MANUAL = 8
    DISK_RESIZED = 9

    @property
    def text(self) -> str:
        return _REASONS[self]


_REASONS: Final = {
    Reason.INITIAL: "initial replication",
    Reason.AUDIT_SHORTFALL: "capture audit shortfall: the kernel wrote sectors that capture did not see",
    Reason.CAPTURE_SKIPPED: "the kernel skipped a capture program",
    Reason.PROCESS_SERVER_AHEAD: "the process server has batches that this agent never sent (reverted or cloned machine)",
    Reason.PROCESS_SERVER_BEHIND: "the process server lost batches that this agent does not hold any more",
    Reason.DIGEST_MISMATCH: "the process server's last batch is not the one that this agent sent",
    Reason.STORAGE_FORGOT: "storage lost log that it had acknowledged",
    Reason.PASSTHROUGH_WRITE: "a passthrough command may have written to the disk behind the block layer",
    Reason.MANUAL: "requested by an operator",
    Reason.DISK_RESIZED: "a protected disk was resized",
}


class AgentState:
    """Typed access to the pinned words."""

    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        if len(words) < WORDS:
            raise ValueError(f"the state map has {len(words)} words, {WORDS} are needed")
        self._words = words
        if int(words[Word.LAYOUT]) != _LAYOUT:
            words[:] = 0
            words[Word.LAYOUT] = _LAYOUT

    def __getitem__(self, word: Word) -> int:
        return int(self._words[word])

    def __setitem__(self, word: Word, value: int) -> None:
        self._words[word] = value

    @property
    def reason(self) -> Reason:
        return Reason(self[Word.REASON])

    # -- epoch -------------------------------------------------------------------------------------------

    def want_epoch(self, reason: Reason, suspect_since_ns: int = 0) -> None:
        """Continuity is lost. Points captured since `suspect_since_ns` may lack writes; 0: none does."""
        self.set_unordered()
        known_ns = 0 if self[Word.EPOCH] else self[Word.SUSPECT_SINCE_NS]
        self[Word.SUSPECT_SINCE_NS] = min((ns for ns in (known_ns, suspect_since_ns) if ns), default=0)
        self[Word.EVER_ORDERED] = 0
        self[Word.REASON] = reason
        self[Word.EPOCH] = 0

    def begin_epoch(self, epoch: Epoch) -> None:
        """The process server allocated `epoch`. The caller has marked everything as to-do before."""
        self.set_unordered()
        self._words[_RECENT_AT:] = 0
        self[Word.LAST_CUT] = 0
        self[Word.FREED] = 0
        self[Word.EVER_ORDERED] = 0
        self[Word.EPOCHS_BEGUN] += 1
        self[Word.EPOCH] = epoch

    # -- order -------------------------------------------------------------------------------------------

    def set_ordered(self, loss: int, ordered_from: int) -> None:
        self[Word.LOSS_AT_ORDER] = loss
        self[Word.ORDERED_FROM] = ordered_from
        self[Word.ORDERED] = 1

    def set_unordered(self) -> None:
        self[Word.ORDERED] = 0

    # -- batches that were cut ---------------------------------------------------------------------------

    def cut(self, number: int, digest: bytes) -> None:
        """Called before the batch leaves the agent."""
        at = _RECENT_AT + number % _RECENT * _RECENT_WORDS
        self._words[at] = 0
        self._words[at + 1 : at + 3] = np.frombuffer(digest, np.uint64)
        self._words[at] = number
        self[Word.LAST_CUT] = number

    def digest_of(self, number: int) -> bytes | None:
        """The digest of a batch that was cut, or None when it is no longer known."""
        if number == 0:
            return bytes(DIGEST_SIZE)
        at = _RECENT_AT + number % _RECENT * _RECENT_WORDS
        if int(self._words[at]) != number:
            return None
        return self._words[at + 1 : at + 3].tobytes()

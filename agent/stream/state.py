"""What the agent must know after a kill: an array of 64-bit words in a pinned BPF map, and nowhere else.

It lives as long as the capture that it describes, and until another has taken its place: after a reboot both are gone, and no pins
means a new epoch. Nothing is written to a disk, so a protected disk never sees the agent's own writes.

A SIGKILL can fall between any two word stores. Every multi-word fact therefore has one word that makes it valid, stored last and
cleared first. The epoch's identity is such a fact: EPOCH makes CLAIM valid, so both change as one.

**Digests.** Of each batch that was cut one word is remembered: 48 bits of a hash over its digest and the ring position at which it ends,
and 16 that say for which of the numbers that share the place. That is a check against histories that are not ours (a reverted or cloned
machine), and against a process server that would have the ring freed or skipped up to another place than that batch's (I5). As many are
remembered as the map has room for, and no more may ever be held: `retention` keeps FREED so near behind LAST_CUT that whoever may be
continued at all (FREED ≤ its last batch ≤ LAST_CUT) can be compared.

**The memory is never shorter than the ring.** There is room for N digests, N being at least the records that the ring can hold
(`layout.state_words`: 8 bytes for each, 0.2 % of the ring). Behind what is uploaded, the ring keeps records while it is less than half full
(`retention`): N/2 at most, so N/2 batches at most that carry one. Batches that only tell the time are cut while no more than N/4 are held
(`may_tell_time`). Both together leave FREED alone, which is moved for want of memory at 7/8 N: there is room for N/8 batches more, of
marks and of changes of state, which is two thousand of the default ring's. What catch-up reads has no place in the ring; where
that fills the memory, what is too old is freed once it is spooled, as it is when the ring is half full; after a restart of the agent,
all that was spooled before it at once.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.capture.layout import SERVER_WORDS
from agent.stream.servers import Address
from shared.batch import DIGEST_SIZE
from shared.log.epoch_id import NO_EPOCH, EpochId
from shared.recovery.position import Position

_LAYOUT: Final = 3
_OLDER_DECLARED_AT: Final = 26
"""To 30: in them an older agent keeps what it declared unreadable, its epoch's claim first."""
_PATIENCE_AT: Final = 32
_DIGESTS_AT: Final = 96
_DIGESTS_AT_ONCE: Final = 64
"""Where captures of older agents have them, and half as many words of patience."""
_TAG_BITS: Final = 16


class Word(enum.IntEnum):
    LAYOUT = 0
    EPOCH = 1
    """0: a new epoch is wanted. Its claim is CLAIM."""
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
    UPLOADED = 12
    """The last batch that is known to be in storage, packed in one word with its epoch: it says nothing of another. (Once a time.)"""
    SUSPECT_SINCE_NS = 13
    """0: no point is suspect. Else since when those behind SUSPECT_AFTER are, up to the epoch that followed: Unix ns, for people."""
    MISSES_SEEN = 14
    PASSTHROUGH_SEEN = 15
    """Incident counts that have led to a new epoch already."""
    OPEN_MISSED_SEEN = 16
    """Writes in flight that are not among the open ones: how many had been when capture was last taken to be not settled for it."""
    IMAGE_BOOT_NS = 17
    """The moment of the newest image given out, on the boot clock: that of a later batch is never earlier."""
    ALL_THERE_NS = 18
    """When all captured disks were last seen where capture is attached to them; Unix ns, by the earliest that the clock may have shown."""
    CLAIM = 19
    """Of EPOCH; stored before it. Means nothing while that is 0."""
    SEEN_EPOCH = 20
    """The highest number of an epoch that was ever begun here."""
    SUSPECT_AFTER = 21
    """The last position that is not suspect, packed in one word; 0: every one is."""
    ALL_THERE_AT = 22
    """The last position that was cut by ALL_THERE_NS, packed in one word, stored after it; 0: not known."""
    DIGESTS_AT = 23
    """Where the digests begin; 0: at 64."""
    WENT = 24
    """Captured disks that were seen gone and not seen back yet, a bit a number: what they hold when they are back is unknown."""
    IDS = 25
    """Digest of the disks' ids by their numbers, which are fixed for an epoch; 0: not noted."""
    SERVER = 31
    """Digest of the address of the process server that took up the last session; 0: not known. The address has words of its own, stored
    before it, which it makes valid. An older agent writes here what is the digest of none, and reads it only with its claim before it."""


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
    DIGEST_FORGOTTEN = 10
    DISK_LEFT = 11
    DISK_JOINED = 12
    DISK_RETURNED = 13
    CAPTURE_REMOVED = 20
    DISK_RENAMED = 21
    OTHER = 255
    OTHER_EPOCH = 14

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
    Reason.DIGEST_FORGOTTEN: "the process server's last batch is too old to be compared with what this agent sent",
    Reason.DISK_LEFT: "a disk is away, or is to be protected no more: the machine goes on without it",
    Reason.DISK_JOINED: "a protected disk was taken in",
    Reason.DISK_RETURNED: "a protected disk was taken away and came back: what was written to it meanwhile is unknown",
    Reason.CAPTURE_REMOVED: "somebody removed a part of what captures: what was written since then is unknown",
    Reason.DISK_RENAMED: "protected disks have other ids in the configuration",
    Reason.OTHER: "a reason that this version of the agent does not know",
    Reason.OTHER_EPOCH: "storage has another epoch: it was restored from an older copy, or another copy of the machine has begun one",
}


class Suspicion(NamedTuple):
    """Capture may have missed writes: the images behind `after` may lack them. Order never depends on a clock: `since_ns` is for people."""

    after: Position
    since_ns: int

    @classmethod
    def joined(cls, found: Sequence[Suspicion | None]) -> Suspicion | None:
        """What covers all of them."""
        known = [one for one in found if one is not None]
        if not known:
            return None
        return cls(min(one.after for one in known), min(one.since_ns for one in known))


class AgentState:
    """Typed access to the pinned words."""

    def __init__(self, words: npt.NDArray[np.uint64], server: npt.NDArray[np.uint64] | None = None) -> None:
        """`server`: words for the address of a process server, where they are at hand."""
        if len(words) <= _DIGESTS_AT:
            raise ValueError(f"the state map has {len(words)} words, more than {_DIGESTS_AT} are needed")
        self._words = words
        if int(words[Word.LAYOUT]) != _LAYOUT:
            words[:] = 0
            words[Word.DIGESTS_AT] = _DIGESTS_AT
        words[Word.LAYOUT] = _LAYOUT
        self._digests_at = _digests_at(words)
        self._remembered = len(words) - self._digests_at
        self._server = (np.zeros(SERVER_WORDS, np.uint64) if server is None else server).view(
            f"S{8 * SERVER_WORDS}"
        )

    def __getitem__(self, word: Word) -> int:
        return int(self._words[word])

    def __setitem__(self, word: Word, value: int) -> None:
        self._words[word] = value

    @property
    def reason(self) -> Reason:
        """A newer agent, which was replaced by this one, may have had reasons of its own."""
        word = self[Word.REASON]
        return Reason(word) if word in _REASONS else Reason.OTHER

    @property
    def patience_words(self) -> npt.NDArray[np.uint64]:
        """64 words that are no other's, 32 in captures of older agents: `agent.continuity.patience` owns their meaning."""
        return self._words[_PATIENCE_AT : self._digests_at]

    @property
    def older_has_declared(self) -> bool:
        """Whether an older agent ran since `forget_older_declared`, and declared something that only its own words tell."""
        return bool(self._words[_OLDER_DECLARED_AT])

    def forget_older_declared(self) -> None:
        self._words[_OLDER_DECLARED_AT : Word.SERVER] = 0

    # -- epoch -------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> EpochId:
        """The epoch that is continued; NO_EPOCH while a new one is wanted."""
        return EpochId(self[Word.EPOCH], f"{self[Word.CLAIM]:016x}") if self[Word.EPOCH] else NO_EPOCH

    @property
    def last_cut(self) -> Position:
        """Behind what is cut by now. While a new epoch is wanted, nothing is: then it is the end of the one before."""
        epoch = (
            self[Word.EPOCH] or self[Word.SEEN_EPOCH]
        )  # first, so that a batch of a new one never counts for it
        return Position.of(epoch, self[Word.LAST_CUT])

    @property
    def suspicion(self) -> Suspicion | None:
        """What the wanted epoch will say of those before it."""
        since_ns = 0 if self[Word.EPOCH] else self[Word.SUSPECT_SINCE_NS]
        return Suspicion(_unpacked(self[Word.SUSPECT_AFTER]), since_ns) if since_ns else None

    @property
    def since_all_there(self) -> Suspicion:
        """For what may have happened since all captured disks were last seen in their places."""
        return Suspicion(_unpacked(self[Word.ALL_THERE_AT]), max(self[Word.ALL_THERE_NS], 1))

    def were_all_there(self, at: Position, unix_ns: int) -> None:
        self[Word.ALL_THERE_NS] = unix_ns
        self[Word.ALL_THERE_AT] = _packed(at)

    def want_epoch(self, reason: Reason, suspicion: Suspicion | None = None) -> None:
        """Continuity is lost."""
        self.set_unordered()
        joined = Suspicion.joined([self.suspicion, suspicion])
        # A kill between any two of these stores leaves what the next look finds again, or a suspicion that reaches further back.
        self[Word.SUSPECT_AFTER] = _packed(joined.after) if joined else 0
        self[Word.SUSPECT_SINCE_NS] = joined.since_ns if joined else 0
        self[Word.EVER_ORDERED] = 0
        self[Word.REASON] = reason
        self[Word.EPOCH] = 0

    def begin_epoch(self, epoch: EpochId) -> None:
        """The process server allocated `epoch`. The caller has marked everything as to-do before."""
        self.set_unordered()
        self[Word.EPOCH] = 0  # until all of it is there: no number ever stands with another's claim
        self._words[self._digests_at :] = 0
        self.forget_older_declared()
        self[Word.LAST_CUT] = 0
        self[Word.FREED] = 0
        self[Word.UPLOADED] = 0
        self[Word.EVER_ORDERED] = 0
        self[Word.EPOCHS_BEGUN] += 1
        self[Word.SEEN_EPOCH] = max(self[Word.SEEN_EPOCH], epoch.number)
        self[Word.CLAIM] = int(epoch.claim, 16)
        self[Word.EPOCH] = epoch.number

    def has_disks(self, ids: Sequence[str]) -> None:
        """The disks by these ids, in the order of their numbers, are captured. An epoch names its disks, and blobs are named after them:
        under other ids its batches would go to other replicas."""
        digest = _digest("\n".join(ids))
        if self[Word.EPOCH] and self[Word.IDS] not in (0, digest):
            self.want_epoch(Reason.DISK_RENAMED)
        self[Word.IDS] = digest

    def goes_on_with(self, server: Address) -> None:
        """It has taken up a session: what the ring does not hold any more may lie there alone."""
        text = f"{server[0]}:{server[1]}"
        self._server[0] = text.encode()
        self[Word.SERVER] = _digest(text)

    def last_server(self, named: Iterable[Address]) -> Address | None:
        """Who has taken up the last session of the epoch, be it with an agent that ran before; None: that is not known, or it does not
        matter, since a new epoch is wanted. `named`: of an older agent's it is known whether it was one of these."""
        if not self[Word.EPOCH]:
            return None
        noted, text = self[Word.SERVER], bytes(self._server[0]).decode(errors="replace")
        if noted == _digest(text):
            host, _, port = text.rpartition(":")
            return host, int(port)
        return next((server for server in named if noted == _digest(f"{server[0]}:{server[1]}")), None)

    def uploaded(self, number: int) -> None:
        """All batches up to this one are in storage."""
        self[Word.UPLOADED] = _packed(Position.of(self[Word.EPOCH], number))

    @property
    def is_freed_too_early(self) -> bool:
        """Whether the ring does not hold something any more that is not known to be in storage: a server that never had it could not go on
        with the epoch (`sender.why_not`)."""
        epoch, uploaded = self[Word.EPOCH], _unpacked(self[Word.UPLOADED])
        return epoch != 0 and self[Word.FREED] > (uploaded.batch if uploaded.epoch == epoch else 0)

    # -- order -------------------------------------------------------------------------------------------

    def set_ordered(self, loss: int, ordered_from: int) -> None:
        self[Word.LOSS_AT_ORDER] = loss
        self[Word.ORDERED_FROM] = ordered_from
        self[Word.ORDERED] = 1

    def set_unordered(self) -> None:
        self[Word.ORDERED] = 0

    # -- batches that were cut ---------------------------------------------------------------------------

    def cut(self, number: int, digest: bytes, end_seq: int) -> None:
        """Called before the batch leaves the agent."""
        self._words[self._digests_at + number % self._remembered] = _word(
            number, digest, end_seq, self._remembered
        )
        self[Word.LAST_CUT] = number

    def is_ours(self, number: int, digest: bytes, end_seq: int) -> bool | None:
        """Whether batch `number` as it was cut has this digest and ends there; None when that is not known any more."""
        if number == 0:
            return digest == bytes(DIGEST_SIZE)
        found = int(self._words[self._digests_at + number % self._remembered])
        expected = _word(number, digest, end_seq, self._remembered)
        if (found ^ expected) % (1 << _TAG_BITS):
            return None
        return found == expected

    @property
    def held(self) -> int:
        """By how many batches a process server may be behind and still be continued."""
        return self[Word.LAST_CUT] - self[Word.FREED]

    @property
    def may_cut(self) -> bool:
        """Whether one more batch can be remembered without forgetting the digest of FREED."""
        return self.held < self._remembered - 1

    @property
    def may_tell_time(self) -> bool:
        """Whether a batch may be cut that says nothing but how late it is. While uploads lag, nobody would learn it from that."""
        return self.held <= self._remembered // 4

    @property
    def least_freed(self) -> int:
        """Up to where batches must be freed at the next chance, so that cutting need not stop for want of memory."""
        return self[Word.LAST_CUT] - self._remembered * 7 // 8


def _digest(text: str) -> int:
    """In one word; never 0."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") | 1


_BATCH_BITS: Final = 40


def _packed(position: Position) -> int:
    """In one word, which a kill does not tear; in the same order. One that does not fit is as one that is not known."""
    epoch, batch = position
    return 0 if epoch >> 64 - _BATCH_BITS or batch >> _BATCH_BITS else epoch << _BATCH_BITS | batch


def _unpacked(word: int) -> Position:
    return Position.of(word >> _BATCH_BITS, word & (1 << _BATCH_BITS) - 1)


def move(before: npt.NDArray[np.uint64], after: npt.NDArray[np.uint64]) -> None:
    """What `before` holds, into `after`, which has room for other numbers of digests and is empty."""
    at = _digests_at(before)
    then, now = len(before) - at, len(after) - _DIGESTS_AT
    last = int(before[Word.LAST_CUT])
    for number in range(max(1, last + 1 - min(then, now)), last + 1):
        word = int(before[at + number % then])
        if word % (1 << _TAG_BITS) == _tag(number, then):
            after[_DIGESTS_AT + number % now] = word >> _TAG_BITS << _TAG_BITS | _tag(number, now)
    after[:at] = before[:at]
    after[Word.DIGESTS_AT] = _DIGESTS_AT


def _digests_at(words: npt.NDArray[np.uint64]) -> int:
    return int(words[Word.DIGESTS_AT]) or _DIGESTS_AT_ONCE


def _tag(number: int, remembered: int) -> int:
    """Which of the numbers it is that share the place. Never 0, which stands for no digest."""
    return number // remembered % ((1 << _TAG_BITS) - 1) + 1


def _word(number: int, digest: bytes, end_seq: int, remembered: int) -> int:
    known = hashlib.blake2b(digest + end_seq.to_bytes(8, "little"), digest_size=6).digest()
    return int.from_bytes(known, "little") << _TAG_BITS | _tag(number, remembered)

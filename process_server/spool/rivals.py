"""Another copy of a machine at another process server: is it at work in the epoch that this Hello would end? (I7)

At one process server the receiver asks the other copy itself: a session of another boot that answers a ping is there. A session at
another process server cannot be asked. What shows is the log: an agent that is there sends at least a heartbeat every few seconds, so soon
there is a batch in it that was captured after this Hello came. Before an epoch that another boot began is ended, and another process
server has its log, that is looked at, Hello after Hello:

- somebody is at work in it (`Watched.at_work`): whoever says Hello is the copy: CopyRefusedError, which names the other;
- storage calls this machine the active side, and the epoch was begun by one with another identity (`machine rebind`, a failover): whatever
  that one does, it is the copy now, and nothing is waited for. Its server lists what it has of the epoch, as of any that is over;
- the log stood still for `Patience.copy_s`, which no server's does that lists what it gets (`LONGEST_PAUSE_S` in ownership.py), or, where
  the uplink is slower still, for three times as long as it does between two segments (`pace`); or moved for six times as long and nobody
  is at work in it (a server that lists what it still has of a machine that is gone): the epoch may end;
- until then TransientError: the agent says Hello again within seconds. A machine that was restarted and moved at once waits so long. (One
  that merely moved goes on with its own epoch, or begins one under its own boot: nothing is waited for.)

An epoch that another server has begun and not opened yet has no log to look at; it is waited for alike, for its agent may soon hear of it.
What was seen counts as long as Hello follows Hello; who comes after a pause is watched anew, for what happened in the pause says nothing
about who is there now.

What that guarantees. No two copies are ever in one epoch: WELCOME tells its claim to one boot alone. A copy that comes while the machine's
batches get to storage is refused before anything is touched. What it does not: while the machine's process server cannot reach storage, or
is minutes behind, and the copy's is not, the copy is taken for the machine. Then the machine is told by name, at its next Hello or when its
process server next looks at the log (machine_log.py), and is itself refused as long as the other works. And a live clone of a machine's
memory has the same boot; what keeps two of these apart is the term of the log and the digests of the batches.

Clocks. No process server's clock counts: waiting goes by the looker's monotonic one, and what time it is says storage's, which also stamps
each change of the index. What is left is the machine's, which says when a batch was captured, and may be off by any time. Two signs tell
that somebody is at work, and either is enough:

- a batch was captured later than the first look was made, and than the newest that it showed. Of a machine whose clock is right or ahead
  that shows at its next batch. A backlog of one whose clock was ahead shows it, too: then whoever was restarted waits until that is listed.
- captures went on just as storage's time did: between the first look and now, the newest capture moved by as much as the time of the
  change that listed it, over minutes. However wrong a clock is, it goes on by a second a second. A backlog does not: it is listed faster
  than it was made, or it would never end; one that is listed at the very pace of its making keeps whoever was restarted waiting to its end.

A clock that is set in that time shows neither sign only when it was behind before and is again after; then the copy is taken, as above.
An unknown boot, of either side, proves nothing and refuses nobody.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from process_server.spool.epoch_log import Resources
from shared.blob import BlobInfo, BlobStore
from shared.errors import CopyRefusedError, TransientError
from shared.log import names
from shared.log.epochs import EpochInfo
from shared.log.index import NO_TERM, IndexEntry, Term, decode_up_to_damage
from shared.log.terms import newest_term, owner_of
from shared.machine import active_side
from shared.wire.messages import Hello, kernel_of

monotonic_s: Final = time.monotonic
_MOVING: Final = 6
_STEADY: Final = 3
"""For so many times `copy_s` captures must have gone on with storage's time…"""
_UNEVEN: Final = 0.5
"""…but for so much of it: batches get to storage some seconds after their capture, not always as many."""
_PACES: Final = 3
_LONGEST_S: Final = 600.0
_RECENT: Final = 9
"""So many of the newest segments tell the pace."""
_SECOND_NS: Final = 1_000_000_000
_TAIL_B: Final = 16 * 1024
"""Holds the newest segments of nearly every index."""


class Look(NamedTuple):
    """What an index shows."""

    seen: object
    """Term, and how long its blobs are: it stands still as long as this does."""
    captured_ns: int
    """When the newest listed batch was captured (the machine's clock); 0: not known."""
    changed_ns: int
    """When the index was changed last (storage's clock); 0: not known."""
    pace_s: float = 0.0
    """So long it stands still between two segments as a rule; 0: not known."""


class Verdict(enum.Enum):
    AT_WORK = enum.auto()
    GONE = enum.auto()
    WAIT = enum.auto()


class Watched:
    """An epoch's index, look after look. Pure; the argument is in the module's docstring."""

    def __init__(self, epoch: EpochInfo, look: Look, date_ns: int, now_s: float) -> None:
        """`date_ns`: storage's time at this first look; `now_s`, here and below, monotonic."""
        self.epoch: Final = epoch
        self._first = look
        self._date_ns: Final = date_ns + _SECOND_NS  # storage says no more than the second that has begun
        self._began_s: Final = now_s
        self._seen, self._since_s = look.seen, now_s
        self.looked_s = now_s
        """At the last look."""

    def judge(self, look: Look, now_s: float, still_s: float) -> Verdict:
        self.looked_s = now_s
        if look.seen != self._seen:
            self._seen, self._since_s = look.seen, now_s
        if not self._first.captured_ns:
            self._first = look  # the first batch says nothing yet
        if self.at_work(look, still_s):
            return Verdict.AT_WORK
        if now_s - self._since_s >= still_s or now_s - self._began_s >= _MOVING * still_s:
            return Verdict.GONE
        return Verdict.WAIT

    def at_work(self, look: Look, still_s: float) -> bool:
        """Whether a batch was captured since the first look."""
        if look.captured_ns > max(self._date_ns, self._first.captured_ns):
            return True
        if look.changed_ns - self._date_ns < _STEADY * still_s * _SECOND_NS:
            return False
        went_ns = look.changed_ns - self._first.changed_ns
        return abs(look.captured_ns - self._first.captured_ns - went_ns) <= _UNEVEN * still_s * _SECOND_NS


class Rivals:
    """Of one machine, at one process server."""

    def __init__(self, shared: Resources) -> None:
        self._shared = shared
        self._watched: Watched | None = None

    async def check(self, hello: Hello, epoch: EpochInfo, store: BlobStore) -> None:
        """Whether `hello`, which wants a new one, may end `epoch`, the newest. Raises CopyRefusedError, TransientError."""
        if not hello.boot or not epoch.boot or kernel_of(hello.boot) == kernel_of(epoch.boot):
            return
        term = await newest_term(store, epoch.epoch)
        owner = epoch.owner if term == NO_TERM else await owner_of(store, epoch.epoch, term)
        if owner == self._shared.settings.owner or (term == NO_TERM and not owner):
            return  # the receiver has asked it; or nobody can have it
        if await _was_named(hello, epoch, store):
            return
        look = await _look(store, epoch, term)
        still_s = max(self._shared.settings.patience.copy_s, min(_PACES * look.pace_s, _LONGEST_S))
        watched = self._watched
        if watched is None or watched.epoch != epoch or monotonic_s() - watched.looked_s > still_s:
            date_ns = int((await store.date()).timestamp()) * _SECOND_NS
            watched = self._watched = Watched(epoch, look, date_ns, monotonic_s())
        verdict = watched.judge(look, monotonic_s(), still_s)
        if verdict is Verdict.AT_WORK:
            self._watched = None
            raise CopyRefusedError(
                f"A copy of machine {epoch.machine} was refused",
                cause=f"the machine is at work elsewhere: {epoch.begun_by}; this is boot {hello.boot}",
            )
        if verdict is Verdict.GONE:
            self._watched = None
            return
        raise TransientError(
            f"Machine {epoch.machine} cannot be taken yet",
            cause=f"another boot of it may be at work: {epoch.begun_by}",
            action=f"It is taken by itself when nothing new came from that one for {still_s:.0f} s.",
        )


def pace(entries: Sequence[IndexEntry]) -> float:
    """How many seconds lie between two segments as a rule, by the clock of the server that wrote them, which is compared with itself alone.
    The longest time is left out: storage, or the machine, may have been away once. 0: fewer than three segments tell nothing. It only makes
    the waiting longer: that a log went fast does not say how long it may stand still.
    """
    written = [entry.written_ns for entry in entries[-_RECENT:]]
    between = sorted(later - earlier for earlier, later in itertools.pairwise(written))
    return max(0, between[-2]) / _SECOND_NS if len(between) > 1 else 0.0


async def _was_named(hello: Hello, epoch: EpochInfo, store: BlobStore) -> bool:
    """Whether storage calls this machine the active side, and the epoch is of one with another identity. Asked only when they differ. An
    epoch that began before its machine had an identity may be this one's, or one's of which this is a copy.
    """
    if active_side.UNKNOWN in (hello.identity, epoch.identity) or hello.identity == epoch.identity:
        return False
    side = await active_side.find(store)
    return side is not None and side.identity == hello.identity


async def _look(store: BlobStore, epoch: EpochInfo, term: Term) -> Look:
    prefix = f"{names.epoch_folder(epoch.epoch)}index-"
    listed = [info async for info in store.list(prefix) if names.is_index(info.name)]
    found = sorted(listed, key=lambda info: info.name)
    seen = term, [(info.name, info.size_b) for info in found]
    for info in reversed(found):  # the last ones may be empty yet, or hold a claim alone
        if entries := await _newest_entries(store, info):
            changed_ns = int(info.last_modified.timestamp()) * _SECOND_NS
            return Look(seen, entries[-1].last_captured_ns, changed_ns, pace(entries))
    return Look(seen, 0, 0)


async def _newest_entries(store: BlobStore, index: BlobInfo) -> list[IndexEntry]:
    """Some of the newest segments in the blob, at least one if there is any."""
    tail_b = _TAIL_B
    while True:
        at = max(0, index.size_b - tail_b)
        data = await store.read(index.name, at, index.size_b - at)
        whole = data[data.find(b"\n") + 1 :] if at else data
        if tail_b == _TAIL_B:
            lines, _ = decode_up_to_damage(whole, index.name)
        else:
            lines, _ = await asyncio.to_thread(decode_up_to_damage, whole, index.name)
        entries = [line for line in lines if isinstance(line, IndexEntry)]
        if entries or not at:
            return entries
        tail_b *= 8
